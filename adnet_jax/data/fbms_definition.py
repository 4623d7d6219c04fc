"""Reads the text of FBMS' definition files, SEQDef.dat; knows nothing of the files that they name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from adnet_jax.errors import DataError

WHITE = 0xFFFFFF
# Region indices are kept in 8 bits.
_MOST_REGIONS = 256


class Parsed(NamedTuple):
  """The content of a Def.dat.

  Attributes:
    regions: number of each region's colour, red x 65536 + green x 256 + blue, or its grey value.
    total: number of frames of the sequence.
    entries: number from 0, label map and input image (names without folders) of each annotated frame.
  """

  regions: tuple[int, ...]
  total: int
  entries: list[tuple[int, str, str]]


def parse(path: Path) -> Parsed:
  """Reads a Def.dat; DataError names the line that is not what it should be."""
  lines = _Lines(path)
  count = lines.number('Total number of regions', 1, _MOST_REGIONS)
  regions: list[int] = []
  for region in range(count):
    colour = lines.number(f'Scale of region {region}', 0, WHITE)
    if colour in regions:
      first = regions.index(colour)
      raise lines.error(f'regions {first} and {region} have the same colour {colour_name(colour)}')
    regions.append(colour)
  lines.skip_matrix()
  total = lines.number('Total number of frames', 1, 10**9)
  labelled = lines.number('Total number of label', 1, total)
  entries: list[tuple[int, str, str]] = []
  for _ in range(labelled):
    number = lines.number('Frame number', 0, total - 1)
    if number in (entry[0] for entry in entries):
      raise lines.error(f'frame {number} is listed twice')
    entries.append((number, lines.file('File name'), lines.file('Input file name')))
  lines.end(f'{labelled} labelled frames')
  return Parsed(tuple(regions), total, entries)


class _Lines:
  """The non-empty lines of a Def.dat, each heading followed by its value."""

  def __init__(self, path: Path):
    self._path = path
    text = path.read_text(encoding='utf-8', errors='replace')
    self._lines = [(k, line.strip()) for k, line in enumerate(text.splitlines(), 1) if line.strip()]
    self._next = 0
    # The first line is a title.
    while self._next < len(self._lines) and not self._lines[self._next][1].lower().startswith('total number'):
      self._next += 1

  def error(self, what: str) -> DataError:
    number = self._lines[min(self._next, len(self._lines)) - 1][0] if self._lines else 0
    return DataError(f'definition file is wrong: {what}', f'{self._path}, line {number}', 'restore the published file')

  def _take(self) -> str | None:
    self._next += 1
    return self._lines[self._next - 1][1] if self._next <= len(self._lines) else None

  def value(self, heading: str) -> str:
    line = self._take()
    if line is None or not line.lower().startswith(heading.lower().rstrip(' 0123456789')):
      raise self.error(f'expected "{heading}", found {"the end" if line is None else repr(line)}')
    value = line.partition(':')[2].strip() or self._take()
    if value is None:
      raise self.error(f'"{heading}" has no value')
    return value

  def number(self, heading: str, least: int, most: int) -> int:
    text = self.value(heading)
    if not re.fullmatch(r'-?\d+', text) or not least <= int(text) <= most:
      raise self.error(f'"{heading}" is {text!r}, not a number from {least} to {most}')
    return int(text)

  def file(self, heading: str) -> str:
    return re.split(r'[\\/]', self.value(heading))[-1]

  def skip_matrix(self) -> None:
    line = self._take()
    if line is None or 'matrix' not in line.lower():
      raise self.error(f'expected "Confusion penality matrix", found {"the end" if line is None else repr(line)}')
    while self._next < len(self._lines) and re.fullmatch(r'[\d.eE+\-\s]+', self._lines[self._next][1]):
      self._next += 1

  def end(self, announced: str) -> None:
    line = self._take()
    if line is not None:
      raise self.error(f'more than the {announced} that it announces: {line!r}')


def colour_name(code: int) -> str:
  """A colour's number as (red, green, blue), a grey value as it is."""
  code = int(code)
  return f'({code >> 16}, {code >> 8 & 255}, {code & 255})' if code > 255 else str(code)
