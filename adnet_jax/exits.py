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
_STOPPED = {
  signal.SIGINT: (INTERRUPTED, 'interrupted (Ctrl-C): what was written is kept, --resume goes on'),
  signal.SIGTERM: (TERMINATED, 'stopped (SIGTERM): what was written is kept, --resume goes on'),
}


class _Terminated(BaseException):
  """SIGTERM; like KeyboardInterrupt not an Exception, so that nothing takes it for a fault and goes on."""


def guarded(function: Callable[[], int | None], *, debug: bool = False) -> int:
  """Runs a command and returns its exit code (contracts: exit codes).

  Args:
    function: the command; None counts as 0. A SystemExit from it, as argparse raises, gives its own code.
    debug: whether an error's traceback is printed too.
  """
  with _signals_raise() as received:
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
      return _report_signal(signal.SIGINT, debug)
    except _Terminated:
      return _report_signal(signal.SIGTERM, debug)
    except BrokenPipeError:
      # Whoever read our output has seen enough.
      _leave_closed_pipes()
      return 0
    except MemoryError:
      return _report('out of memory: give a smaller --size or --batch', 6, debug)
    except Exception as error:
      if type(error).__name__ == 'JaxRuntimeError' and 'RESOURCE_EXHAUSTED' in str(error):
        return _report('out of device memory: give a smaller size or batch', 6, debug)
      if received:  # what the signal raised was turned into this, as by a library whose import it met
        return _report_signal(received[0], debug)
      what = f'{type(error).__name__}: {error} (a defect of adnet-jax): run again with --debug and report it'
      return _report(what, 1, debug)


def leave(status: int) -> NoReturn:
  """Ends the process at once: a thread that waits for what does not come would keep it."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):
      stream.flush()
  os._exit(status)


@contextlib.contextmanager
def _signals_raise() -> Iterator[list[signal.Signals]]:
  """SIGTERM ends a command as Ctrl-C does, with its files whole; the training loop has handlers of its own.

  Yields the signals that came so far. Python drops what a handler raises in a callback of the garbage collector or of
  compiled code: the signal is then sent once more. Where Ctrl-C is ignored, as in a shell's background, it stays so.
  """
  received: list[signal.Signals] = []
  exceptions = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: _Terminated}

  def stop(number: int, _frame: object) -> None:
    received.append(signal.Signals(number))
    raise exceptions[received[-1]]

  def dropped(unraisable: sys.UnraisableHookArgs) -> None:
    for number, exception in exceptions.items():
      if unraisable.exc_type is exception:
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        return
    hook(unraisable)

  if threading.current_thread() is not threading.main_thread():
    yield received
    return
  if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    del exceptions[signal.SIGINT]
  before, hook = {number: signal.signal(number, stop) for number in exceptions}, sys.unraisablehook
  sys.unraisablehook = dropped
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
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


def _report_signal(number: signal.Signals, debug: bool) -> int:
  code, text = _STOPPED[number]
  return _report(text, code, debug)


def _report(text: str, code: int, debug: bool) -> int:
  try:
    if debug:
      traceback.print_exc()
    print(f'error: {" ".join(text.split())}', file=sys.stderr, flush=True)
  except BrokenPipeError:
    _leave_closed_pipes()
  return code
