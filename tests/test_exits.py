"""Exit codes, one line on stderr, closed pipes and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from adnet_jax import errors, exits


def raising(error: BaseException):
  def function():
    raise error

  return function


@pytest.mark.parametrize(
  ('error', 'code', 'text'),
  [
    (errors.UsageError('what', 'where', 'do'), 2, 'error: what (where): do\n'),
    (errors.DataError('two\nlines', 'f'), 3, 'error: two lines (f)\n'),
    (errors.WeightsError('w'), 4, 'error: w\n'),
    (errors.DivergedError('w'), 5, 'error: w\n'),
    (errors.DeviceError('w'), 6, 'error: w\n'),
    (MemoryError(), 6, 'error: out of memory'),
    (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: x'), 6, 'error: out of device memory'),
    (KeyboardInterrupt(), 130, 'error: interrupted (Ctrl-C)'),
    (ZeroDivisionError('oh\nno'), 1, 'error: ZeroDivisionError: oh no (a defect of adnet-jax): run again with --debug'),
    (SystemExit(2), 2, ''),
    (SystemExit(), 0, ''),
  ],
)
def test_codes_and_lines(error, code, text, capsys):
  assert exits.guarded(raising(error)) == code
  stderr = capsys.readouterr().err
  assert stderr.startswith(text) and stderr.count('\n') == bool(text)


def test_debug_adds_the_traceback(capsys):
  assert exits.guarded(raising(errors.DataError('what', 'where')), debug=True) == 3
  assert 'Traceback' in (stderr := capsys.readouterr().err) and stderr.endswith('error: what (where)\n')


@pytest.fixture
def foreground():
  """As in a shell's foreground: its background jobs start with Ctrl-C ignored."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


SIGNALS = pytest.mark.parametrize(
  ('number', 'code', 'text'),
  [(signal.SIGTERM, 75, 'stopped (SIGTERM)'), (signal.SIGINT, 130, 'interrupted (Ctrl-C)')],
)


@SIGNALS
def test_results_and_signals(foreground, number, code, text, capsys):
  before = signal.getsignal(number)
  assert exits.guarded(lambda: None) == 0 and exits.guarded(lambda: 3) == 3
  assert exits.guarded(lambda: os.kill(os.getpid(), number)) == code
  assert text in capsys.readouterr().err and signal.getsignal(number) is before


@SIGNALS
def test_signals_where_python_drops_exceptions(foreground, number, code, text):
  class Last:
    def __del__(self):
      os.kill(os.getpid(), number)
      time.sleep(0.01)  # the handler runs here, and nobody sees what it raises

  def delete():
    Last()
    time.sleep(30)

  assert exits.guarded(delete) == code


@SIGNALS
def test_signals_that_a_library_turns_into_an_error(foreground, number, code, text, capsys):
  def meet():
    try:
      os.kill(os.getpid(), number)
      time.sleep(30)
    except BaseException as error:
      raise ImportError('Encountered an error while initializing the extension.') from error

  assert exits.guarded(meet) == code and text in capsys.readouterr().err


def test_an_ignored_ctrl_c_stays_ignored():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    assert exits.guarded(lambda: os.kill(os.getpid(), signal.SIGINT)) == 0
  finally:
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize('stream', ['stdout', 'stderr'])
def test_a_closed_pipe_ends_quietly(stream):
  script = (
    'import sys; from adnet_jax import exits\n'
    f'sys.exit(exits.guarded(lambda: [print("x" * 99, file=sys.{stream}, flush=True) for _ in range(9999)] and None))'
  )
  with subprocess.Popen([sys.executable, '-c', script], **{stream: subprocess.PIPE}) as process:
    pipe = getattr(process, stream)
    pipe.readline()
    pipe.close()
    assert process.wait(60) == 0
