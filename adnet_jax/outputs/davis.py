"""Masks of clips in the layout that DAVIS's servers and programs take; knows nothing of how masks are made."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from adnet_jax.errors import UsageError
from adnet_jax.masks import list_masks, read_mask
from adnet_jax.writers import cannot_write, encode_mask, temporary, write_bytes


def check_free(target: Path, replace: bool) -> None:
  """Refuses a target that exists, unless it shall be replaced; an empty folder is none."""
  if replace or not target.exists() or (target.is_dir() and not any(target.iterdir())):
    return
  raise UsageError('the submission exists already', target, 'add --overwrite or --resume, or choose another name')


def write_submission(clips: Mapping[str, Path], target: Path) -> None:
  """Writes CLIP/NAME.png, 8-bit indices with the palette of DAVIS, 1 is the object.

  Args:
    clips: {name: folder of its masks, as `adnet segment` writes them in whatever form}.
    target: a folder, or a file ending in `.zip`, which appears when it is whole.

  Raises:
    DataError: a mask cannot be read, or a file not be written.
  """
  if target.suffix.lower() != '.zip':
    written = set()
    for name, data in _files(clips):
      write_bytes(target / name, data)
      written.add(target / name)
    for path in {path for clip in clips for path in (target / clip).glob('*.png')} - written:
      path.unlink()  # of an earlier, longer run
    return
  part = temporary(target)
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
      with zipfile.ZipFile(part, 'w') as archive:
        for name, data in _files(clips):
          # One date for all: the same masks are the same archive. PNG is compressed already.
          entry = zipfile.ZipInfo(name)
          entry.external_attr = 0o644 << 16  # else nobody may read what is unpacked
          archive.writestr(entry, data)
      os.replace(part, target)
    except BaseException:
      with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)
      raise
  except OSError as error:
    raise cannot_write(target, error) from error


def _files(clips: Mapping[str, Path]) -> Iterator[tuple[str, bytes]]:
  for clip, folder in clips.items():
    for name, path in list_masks(folder).items():
      yield f'{clip}/{name}.png', encode_mask(read_mask(path), 'palette')
