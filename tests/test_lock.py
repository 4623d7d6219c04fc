"""The lock of a work folder: who is refused, what is said, and that no dead run keeps it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from adnet_jax import lock
from adnet_jax.errors import UsageError

HOLD = 'import sys, pathlib\nfrom adnet_jax import lock\nwith lock.held(pathlib.Path(sys.argv[1])):\n  {}'
ROOT = Path(__file__).resolve().parents[1]


def hold(workdir: Path) -> subprocess.Popen[str]:
  """Another process that holds the lock until it is killed."""
  script = HOLD.format('print("held", flush=True); sys.stdin.read()')
  process = subprocess.Popen(
    [sys.executable, '-c', script, str(workdir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
  )
  assert process.stdout is not None and process.stdout.readline() == 'held\n'
  return process


def end(process: subprocess.Popen[str]) -> None:
  process.send_signal(signal.SIGKILL)
  process.communicate()


def test_a_second_run_is_refused_with_the_first_ones_name(tmp_path):
  first = hold(tmp_path)
  try:
    with pytest.raises(UsageError, match='another run uses this work folder') as refused, lock.held(tmp_path):
      pass
  finally:
    end(first)
  message = str(refused.value)
  assert f'process {first.pid} on {socket.gethostname()}, started 2' in message and str(tmp_path) in message


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path, caplog):
  first = hold(tmp_path)
  end(first)
  assert json.loads((tmp_path / 'lock').read_text())['process'] == first.pid  # it had no time to tidy up
  with lock.held(tmp_path):
    assert json.loads((tmp_path / 'lock').read_text())['process'] == os.getpid()
  assert (tmp_path / 'lock').read_text() == '' and f'killed (process {first.pid} on' in caplog.text


def test_it_is_free_again_after_an_error(tmp_path):
  with pytest.raises(ZeroDivisionError), lock.held(tmp_path):
    _ = 1 // 0
  assert (tmp_path / 'lock').read_text() == ''
  with lock.held(tmp_path), pytest.raises(UsageError), lock.held(tmp_path):
    pass


def test_a_lock_without_a_readable_owner_still_refuses(tmp_path):
  (tmp_path / 'lock').write_text('{"pro')
  with (tmp_path / 'lock').open() as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match='does not name it'), lock.held(tmp_path):
      pass
  with lock.held(tmp_path):
    pass


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
  def refuse(*_):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(fcntl, 'flock', refuse)
  with lock.held(tmp_path):
    pass
  assert 'do not start a second run there' in caplog.text
