"""What the commands set before JAX is used: device, compilation cache, log lines; and what `adnet doctor` prints."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging as std_logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging

from adnet_jax.errors import UsageError

# Of compiled programs; the least recently used ones go first. A training step's takes up to 100 MB.
CACHE_BYTES = 4 * 2**30
# After which an entry that is not whole is not being written any more.
TORN_SECONDS = 60
# Parameters of glibc's mallopt: how many heaps threads share, how many blocks are mapped, what is given back.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1


def cache_folder() -> Path:
  """The user's cache folder of this program."""
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'adnet-jax'


def set_up(device: str | None = None, *, cache: bool | Path = True) -> None:
  """Chooses the device, turns on the persistent compilation cache and plain log lines.

  Args:
    device: 'cpu', 'gpu', 'tpu' or None for what JAX prefers.
    cache: whether compiled programs are kept, or the folder for them; see `compiled_folder`.

  Raises:
    DeviceError: the device is not there.
    UsageError: a folder given as `cache` cannot be written.
  """
  import jax

  from adnet_jax import pretrained

  compiled = compiled_folder(cache)
  if compiled is not None and _is_writable(compiled):
    _drop_torn_entries(compiled)
    jax.config.update('jax_compilation_cache_dir', str(compiled))
    # Below its limit JAX would take no lock, and another process could read half an entry.
    jax.config.update('jax_compilation_cache_max_size', CACHE_BYTES)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.05)
  elif isinstance(cache, Path):
    raise UsageError('compiled programs cannot be written there', cache, 'choose another --cache, or --no-cache')
  print_log_lines()
  devices = pretrained.find_devices(device)
  jax.config.update('jax_default_device', devices[0])
  if devices[0].platform == 'cpu' and device is None and gpu_without_jax():
    logging.warning('a GPU is present but this JAX runs on the CPU only: adnet doctor explains')


def keep_memory() -> None:
  """Has glibc keep freed memory for this process, which segments; elsewhere does nothing.

  XLA takes a program's working memory anew at every call on a CPU, 72 MB a frame for the bundled model, and glibc would
  map and unmap blocks of that size: a sixth of the processor time went into new pages. (A training's gigabytes are
  given back all the same, and it would need half as much again.)
  """
  if sys.platform != 'linux':
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is not None:  # musl has none
    for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
      mallopt(parameter, value)


def compiled_folder(cache: bool | Path = True) -> Path | None:
  """Where compiled programs are kept: `cache`, else what $ADNET_COMPILATION_CACHE names, else in the user's cache.

  None where they are not kept: `cache` is False or the variable is 0.
  """
  if isinstance(cache, Path):
    return cache
  named = os.environ.get('ADNET_COMPILATION_CACHE', '1')
  if not cache or named == '0':
    return None
  return cache_folder() / 'compiled' if named in ('', '1') else Path(named)


def _drop_torn_entries(folder: Path) -> None:
  """Removes entries whose writers died: JAX writes the time of use last, and trips over its absence."""
  for path in folder.glob('*-cache'):
    with contextlib.suppress(OSError):
      used = path.with_name(path.name.removesuffix('-cache') + '-atime')
      if not used.exists() and time.time() - path.stat().st_mtime > TORN_SECONDS:
        path.unlink()


def _is_writable(folder: Path) -> bool:
  """Whether `folder` can be written; it is made where it is missing."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return False
  return os.access(folder, os.W_OK | os.X_OK)


@contextlib.contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Callable[[], None]]:
  """Draws a progress bar on stderr while entered, if that is a terminal; gives the call that moves it by one."""
  from rich.console import Console
  from rich.markup import escape
  from rich.progress import MofNCompleteColumn, Progress, TextColumn

  columns = (TextColumn('{task.description}'), *Progress.get_default_columns()[1:], MofNCompleteColumn())
  console = Console(stderr=True)
  # Left alone, standard output is what a user may have redirected.
  with Progress(
    *columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal
  ) as bar:
    task = bar.add_task(escape(title), total=total)
    yield lambda: bar.advance(task)


def gpu_without_jax() -> bool:
  """Whether an NVIDIA device lies beside a JAX that has no CUDA plugin (fault 12)."""
  return Path('/dev/nvidia0').exists() and not any(
    importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13)
  )


class _PlainLines(std_logging.Handler):
  """Prints 'warning: text' on stderr, or 'note: text' for what is no warning but has to be said."""

  def emit(self, record: std_logging.LogRecord) -> None:
    kind = 'note' if getattr(record, 'note', False) else record.levelname.lower()
    print(f'{kind}: {record.getMessage()}', file=sys.stderr)


def print_log_lines() -> None:
  """From here on what is logged, by absl too, is a line on stderr: 'warning: ...' or 'note: ...'."""
  root = std_logging.getLogger()
  if not any(isinstance(handler, _PlainLines) for handler in root.handlers):
    root.addHandler(_PlainLines())
  # absl's own handler would print each line again, with a prefix.
  root.removeHandler(logging.get_absl_handler())
  logging.set_verbosity(logging.WARNING)
