"""From exceptions and signals to exit codes and one line on stderr, for every command; knows no command."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from adnet_jax.errors import AdnetError

TERMINATED = 75
INTERRUPTED = 130
_STOPPED = 'stopped (SIGTERM): what was written is kept, --resume goes on'


class _Terminated(BaseException):
  """SIGTERM; like KeyboardInterrupt not an Exception, so that nothing takes it for a fault and goes on."""


def guarded(function: Callable[[], int | None], *, debug: bool = False) -> int:
  """Runs a command and returns its exit code (contracts: exit codes).

  Args:
    function: the command; None counts as 0. A SystemExit from it, as argparse raises, gives its own code.
    debug: whether an error's traceback is printed too.
  """
  with _sigterm_raises() as signals:
    try:
      status = function() or 0
      # A closed pipe is noticed here at the latest, not by the interpreter on its way out.
      sys.stdout.flush()
      return status
    except SystemExit as stop:
      with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
      _leave_closed_pipes()
      return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except AdnetError as error:
      return _report(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
      return _report('interrupted (Ctrl-C): what was written is kept, --resume goes on', INTERRUPTED, debug)
    except _Terminated:
      return _report(_STOPPED, TERMINATED, debug)
    except BrokenPipeError:
      # Whoever read our output has seen enough.
      _leave_closed_pipes()
      return 0
    except MemoryError:
      return _report('out of memory: give a smaller --size or --batch', 6, debug)
    except Exception as error:
      if type(error).__name__ == 'JaxRuntimeError' and 'RESOURCE_EXHAUSTED' in str(error):
        return _report('out of device memory: give a smaller size or batch', 6, debug)
      if signals:  # what SIGTERM raised was turned into this, as by a library whose import it met
        return _report(_STOPPED, TERMINATED, debug)
      what = f'{type(error).__name__}: {error} (a defect of adnet-jax): run again with --debug and report it'
      return _report(what, 1, debug)


def leave(status: int) -> NoReturn:
  """Ends the process at once: a thread that waits for what does not come would keep it."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):
      stream.flush()
  os._exit(status)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[list[int]]:
  """SIGTERM ends a command as Ctrl-C does, with its files whole; the training loop has a handler of its own.

  Yields the signals that came so far. Python drops what a handler raises in a callback of the garbage collector or of
  compiled code: the signal is then sent once more.
  """
  received: list[int] = []

  def stop(number: int, _frame: object) -> None:
    received.append(number)
    raise _Terminated

  def dropped(unraisable: sys.UnraisableHookArgs) -> None:
    if unraisable.exc_type is _Terminated:
      threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
      hook(unraisable)

  if threading.current_thread() is not threading.main_thread():
    yield received
    return
  before, hook = signal.signal(signal.SIGTERM, stop), sys.unraisablehook
  sys.unraisablehook = dropped
  try:
    yield received
  finally:
    signal.signal(signal.SIGTERM, before)
    sys.unraisablehook = hook


def _leave_closed_pipes() -> None:
  """Points streams whose reader has gone nowhere, or the interpreter complains when it flushes them at its end."""
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):
      with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _report(text: str, code: int, debug: bool) -> int:
  try:
    if debug:
      traceback.print_exc()
    print(f'error: {" ".join(text.split())}', file=sys.stderr, flush=True)
  except BrokenPipeError:
    _leave_closed_pipes()
  return code
