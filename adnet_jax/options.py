"""Types of what the commands may be given, and a parser whose errors are one line; knows no command."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
  """A parser whose errors are the usage and one line as of any other error (fault 6)."""

  def error(self, message: str) -> NoReturn:
    self.print_usage(sys.stderr)
    self.exit(2, f'error: {message}: {self.prog} --help tells more\n')

  def refuse(self, unknown: list[str]) -> NoReturn:
    """Ends the program over arguments that the command does not have."""
    known = [option for action in self._actions for option in action.option_strings]
    name = unknown[0].split('=')[0]
    close = difflib.get_close_matches(name, known, n=1)
    advice = f', did you mean {close[0]}?' if close else ' (a name that begins with - goes after --)'
    self.error(f'unknown argument {name}{advice if name.startswith("-") else ""}')


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
  """Every option and argument of a parser and of its commands."""
  for action in parser._actions:
    yield action
    if isinstance(action, argparse._SubParsersAction):
      for command in action.choices.values():
        yield from actions(command)


def checked(kind: Callable, allowed: Callable, text: str) -> Callable:
  """An argparse type that refuses values out of range."""

  def parse(value: str):
    try:
      parsed = kind(value)
    except ValueError:
      raise argparse.ArgumentTypeError(f'{value!r} is not {text}') from None
    if not allowed(parsed):
      raise argparse.ArgumentTypeError(f'{value} is not {text}')
    return parsed

  return parse


def size(text: str) -> tuple[int, int]:
  match = re.fullmatch(r'(\d+)[xX](\d+)', text)
  if match is None or not all(8 <= int(side) <= 8192 for side in match.groups()):
    raise argparse.ArgumentTypeError(f'{text!r} is not WIDTHxHEIGHT with sides from 8 to 8192')
  return int(match[1]), int(match[2])


def scales(text: str) -> tuple[float, ...]:
  try:
    scales = tuple(float(part) for part in text.split(','))
  except ValueError:
    scales = ()
  if not scales or not all(0 < scale <= 8 for scale in scales):
    raise argparse.ArgumentTypeError(f'{text!r} is not a list such as .75,1,1.5 of factors above 0, at most 8')
  return scales


natural = checked(int, lambda n: n >= 1, 'a whole number from 1')
whole = checked(int, lambda n: n >= 0, 'a whole number from 0')
steps = checked(float, lambda t: 0 <= t <= 255, 'a number from 0 to 255')
reach = checked(int, lambda n: n == 0 or 4 <= n <= 1024, '0, or a whole number from 4 to 1024')
probability = checked(float, lambda p: 0 <= p <= 1, 'a probability from 0 to 1')


window = checked(int, lambda n: n >= 1 and n % 2 == 1, 'an odd whole number from 1')


def anchor(text: str) -> int | str | None:
  return None if text == 'first' else text if text in ('auto', 'best', 'auto-best') else whole(text)


def track(text: str) -> int | None:
  return None if text == 'all' else 1 if text == 'largest' else natural(text)


def named(text: str) -> tuple[str, Path]:
  name, equals, folder = text.partition('=')
  if not name or not equals or not folder:
    raise argparse.ArgumentTypeError(f'{text!r} is not NAME=DIR')
  return name, Path(folder)
