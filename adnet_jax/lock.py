"""One run at a time in a work folder: a lock that the kernel drops with its process; knows nothing of training."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from adnet_jax.errors import UsageError

NAME = 'lock'


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
  """Holds WORKDIR/lock while entered (fault 21).

  The lock is the kernel's (flock): it ends with its process, however that ends. The file's content says whose it is.

  Args:
    workdir: existing folder.

  Raises:
    UsageError: another run holds it; its process, host and start are named.
  """
  path = workdir / NAME
  file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
  try:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UsageError(
        f'another run uses this work folder: {_whose(_read(file))}', workdir, 'wait for it, or choose another --workdir'
      ) from None
    except OSError as error:
      # Some network file systems have no locks; a run there is worth more than the protection.
      logging.warning('%s cannot be locked (%s): do not start a second run there', path, error.strerror)
    before = _read(file)
    if before:
      logging.warning('the last run here was killed (%s): its lock is stale', _whose(before), extra={'note': True})
    mine = {'process': os.getpid(), 'host': socket.gethostname(), 'start': time.strftime('%Y-%m-%d %H:%M:%S %z')}
    _write(file, json.dumps(mine) + '\n')
    try:
      yield
    finally:
      _write(file, '')
  finally:
    # The file stays: whoever removed it could remove a lock that another run has just taken.
    os.close(file)


def _read(file: int) -> str:
  os.lseek(file, 0, os.SEEK_SET)
  return os.read(file, 4096).decode(errors='replace').strip()


def _write(file: int, text: str) -> None:
  with contextlib.suppress(OSError):  # on a full disk the lock holds without its owner's name
    os.ftruncate(file, 0)
    os.pwrite(file, text.encode(), 0)


def _whose(content: str) -> str:
  try:
    owner = json.loads(content)
    return f'process {owner["process"]} on {owner["host"]}, started {owner["start"]}'
  except (ValueError, KeyError, TypeError):
    return f'whose {NAME} file does not name it'
