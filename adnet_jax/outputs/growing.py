"""A text file that grows under a temporary name and gets its own one when it is whole; knows nothing of its text."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

from adnet_jax.writers import cannot_write, temporary


class GrowingFile:
  """UTF-8 text, written piece by piece; nothing is made before the first piece, nothing stays where a piece fails."""

  def __init__(self, path: Path):
    self.path = path
    self._part = temporary(path)
    self._file: IO[str] | None = None

  @property
  def begun(self) -> bool:
    """Whether anything was written."""
    return self._file is not None

  def write(self, text: str) -> None:
    """Adds text; DataError where it cannot be written."""
    try:
      if self._file is None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open('w', encoding='utf-8', newline='\n')
      self._file.write(text)
    except OSError as error:
      self.abort()
      raise cannot_write(self.path, error) from error

  def close(self) -> None:
    """Gives the file its name; DataError where that fails."""
    if self._file is None:
      return
    try:
      self._file.close()
      os.replace(self._part, self.path)
    except OSError as error:
      self.abort()
      raise cannot_write(self.path, error) from error
    self._file = None

  def abort(self) -> None:
    """Drops the file."""
    file, self._file = self._file, None
    with contextlib.suppress(OSError):
      if file is not None:
        file.close()
    with contextlib.suppress(OSError):
      self._part.unlink(missing_ok=True)
