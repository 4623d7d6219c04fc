"""Reads a manifest, the list of many clips to segment: JSON lines; looks at no clip and knows nothing of workers."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adnet_jax.errors import DataError, UsageError

ENDING = '.jsonl'
KEYS = ('input', 'name')
# File systems end at 255 bytes; what is made of a name while it is worked on is longer.
MAX_NAME_BYTES = 150
# Written beside the clips' folders.
RESERVED = ('failures.jsonl',)
FORM = 'a line is {"input": "videos/dog.mp4", "name": "dog"}'


@dataclasses.dataclass(frozen=True)
class Clip:
  """A line of a manifest.

  Attributes:
    name: of the folder that is written for it; unique, safe as a file name.
    input: path or pattern of a video or a folder of frames, absolute.
    line: number in the manifest, from 1.
  """

  name: str
  input: str
  line: int


def is_manifest(inputs: Iterable[str | os.PathLike]) -> bool:
  """Whether a command's inputs name a manifest, by its ending."""
  return any(os.fspath(item).lower().endswith(ENDING) for item in inputs)


def read_manifest(path: str | Path) -> list[Clip]:
  """Reads a manifest; all of its lines are checked, none of its inputs is opened.

  Args:
    path: UTF-8 text, a JSON object `{"input", "name"}` a line; empty lines count but say nothing. An input that is not
      absolute is relative to the manifest's folder.

  Returns:
    The clips in the manifest's order, at least one.

  Raises:
    DataError: the file cannot be read, or a line is not what is expected; the first such line is named.
    UsageError: two clips have one name, so that both would be written to one folder; both lines are named.
  """
  path = Path(path)
  folder = path.parent.absolute()
  clips: list[Clip] = []
  names: dict[str, Clip] = {}
  try:
    # By the newline alone: JSON may hold other characters that Python takes for the end of a line.
    lines = path.read_text(encoding='utf-8-sig').split('\n')
  except UnicodeDecodeError as error:
    raise DataError(f'not a manifest: no UTF-8 text from byte {error.start} on', path, FORM) from error
  except OSError as error:
    raise DataError(f'cannot be read: {error.strerror}', path, 'check the file and its permissions') from error
  for number, text in enumerate(lines, 1):
    if not text.strip():
      continue
    entry = _entry(text, f'{path}, line {number}')
    clip = Clip(entry['name'], str(folder / entry['input']), number)
    # Some file systems take Dog and dog, and two ways to write an umlaut, for one name.
    other = names.setdefault(unicodedata.normalize('NFC', clip.name).casefold(), clip)
    if other is not clip:
      what = f'two clips would be written to one folder, {clip.name!r}'
      raise UsageError(what, f'{path}, lines {other.line} and {number}', 'give each a name of its own')
    clips.append(clip)
  if not clips:
    raise DataError('the manifest is empty', path, FORM)
  return clips


def _entry(text: str, where: str) -> dict[str, str]:
  """The object of a line, checked."""
  try:
    entry: Any = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise DataError(f'not JSON: {getattr(error, "msg", error)}', where, FORM) from error
  if not isinstance(entry, dict):
    raise DataError('not a JSON object', where, FORM)
  for key in KEYS:
    if key not in entry:
      raise DataError(f'has no key {key!r}', where, FORM)
    if not isinstance(entry[key], str) or not entry[key]:
      raise DataError(f'{key!r} is no text', where, FORM)
  # What somebody wrote for a reason, such as an anchor, must not be passed over in silence.
  for key in entry:
    if key not in KEYS:
      close = difflib.get_close_matches(key, KEYS, n=1)
      advice = f'did you mean {close[0]!r}?' if close else f'only {" and ".join(KEYS)} are read: remove it'
      raise DataError(f'unknown key {key!r}', where, advice)
  fault = _name_fault(entry['name'])
  if fault is not None:
    raise DataError(f'{entry["name"][:60]!r} is no name for a folder: {fault}', where, 'choose another name')
  if '\0' in entry['input'] or _is_broken(entry['input']):
    raise DataError("'input' is no path", where, FORM)
  return entry


def _name_fault(name: str) -> str | None:
  """Why a clip's folder cannot have this name, or None."""
  if _is_broken(name):
    return 'it holds half a character'
  if '/' in name or '\\' in name:
    return 'it holds a slash'
  if name.startswith('.'):
    return 'it begins with a dot'
  if any(unicodedata.category(character) == 'Cc' for character in name):
    return 'it holds a control character'
  if len(name.encode()) > MAX_NAME_BYTES:
    return f'it is longer than {MAX_NAME_BYTES} bytes'
  if not name.strip():
    return 'it is blank'
  if name.casefold() in RESERVED:
    return 'the report has it'
  return None


def _is_broken(text: str) -> bool:
  """Whether a text has half of a surrogate pair, which JSON can write and a file name cannot hold."""
  return any('\ud800' <= character <= '\udfff' for character in text)
