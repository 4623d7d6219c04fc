"""From exceptions to exit codes and one line on stderr, for every command; knows no command."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from adnet_jax.errors import AdnetError


def guarded(function: Callable[[], int | None], *, debug: bool = False) -> int:
  """Runs a command and returns its exit code (contracts: exit codes).

  Args:
    function: the command; None counts as 0.
    debug: whether an error's traceback is printed too.
  """
  try:
    status = function() or 0
    # A closed pipe is noticed here at the latest, not by the interpreter on its way out.
    sys.stdout.flush()
    return status
  except AdnetError as error:
    return _report(str(error), error.exit_code, debug)
  except KeyboardInterrupt:
    return _report('interrupted (Ctrl-C): what is written so far is kept, --resume goes on', 130, debug)
  except BrokenPipeError:
    # Whoever read our output has seen enough.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except MemoryError:
    return _report('out of memory: give a smaller --size or --batch', 6, debug)
  except Exception as error:
    if type(error).__name__ == 'JaxRuntimeError' and 'RESOURCE_EXHAUSTED' in str(error):
      return _report('out of device memory: give a smaller size or batch', 6, debug)
    text = ' '.join(str(error).split())
    return _report(f'{type(error).__name__}: {text} (a defect of adnet-jax): run again with --debug and report it', 1, debug)


def _report(text: str, code: int, debug: bool) -> int:
  if debug:
    traceback.print_exc()
  print(f'error: {" ".join(text.split())}', file=sys.stderr)
  return code
