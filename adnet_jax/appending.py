"""Files that grow by whole records and survive a full disk; knows nothing of what the records hold."""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from pathlib import Path

from absl import logging

# What is kept in memory while a disk is full; beyond it the oldest records are lost.
MAX_WAITING = 64 * 2**20


class Appender:
  """A file to which records are appended, each wholly or not at all.

  Where one cannot be written that is said once, the file stays as it was, and the record waits for the next call.
  """

  def __init__(self, path: Path):
    self.path = path
    self._waiting: deque[bytes] = deque()
    self._bytes = 0
    self._said = False

  def append(self, record: bytes) -> None:
    """Appends what waits and then `record`; no OSError comes out of here."""
    self._waiting.append(record)
    self._bytes += len(record)
    while self._bytes > MAX_WAITING:
      self._bytes -= len(self._waiting.popleft())
    try:
      self._write_waiting()
    except OSError as error:
      if not self._said:
        logging.error('%s cannot be written: %s; tried again at each step', self.path, error.strerror)
      self._said = True

  def _write_waiting(self) -> None:
    # Opened for each call: the file may be on a disk that comes and goes, and a step takes far longer.
    file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
      while self._waiting:
        end = os.fstat(file).st_size
        try:
          data = memoryview(self._waiting[0])
          while data:
            data = data[os.write(file, data) :]
        except OSError:
          with contextlib.suppress(OSError):
            os.ftruncate(file, end)  # takes no space
          raise
        self._bytes -= len(self._waiting.popleft())
    finally:
      os.close(file)


def cut_json_lines(path: Path, first: int) -> None:
  """Removes the lines of steps from `first` on, which are about to be done again, and what was cut off in writing.

  Lines stand in the order of their 'step'. Nothing is rewritten: whatever interrupts this, all other lines stay.
  """
  if not path.exists():
    return
  end = 0
  with path.open('rb') as file:
    for line in file:
      try:
        if not line.endswith(b'\n') or json.loads(line)['step'] >= first:
          break
      except (ValueError, KeyError, TypeError):
        break
      end += len(line)
  os.truncate(path, end)


def write_whole(path: Path, text: str) -> None:
  """Writes a small file that is there as a whole or stays as it was; where that fails it is said, not raised."""
  part = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    part.write_text(text)
    os.replace(part, path)
  except OSError as error:
    logging.error('%s cannot be written: %s', path, error.strerror)
    with contextlib.suppress(OSError):
      part.unlink()
