"""Networks that a seed determines on every machine, without PyTorch; what make_golden.py and its test share."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / 'data'


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Values in [-1, 1) that depend on `name` only: of the bit generator, whose stream NumPy promises to keep."""
  count = int(np.prod(shape))
  raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count)
  return ((raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)).reshape(shape)


def is_norm(name: str) -> bool:
  """Whether a tensor of one axis belongs to a batch norm (by the released, torchvision's and EfficientNet's names)."""
  parts = name.split('.')
  return any(part.strip('_').startswith('bn') for part in parts) or parts[-2] in ('1', '2')


def is_stored(name: str) -> bool:
  """Running statistics, and the last convolutions, which the oracle scales by what it sees."""
  return name.endswith(('running_mean', 'running_var')) or 'head.1.' in name or name.startswith('cls.3.')


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """A tensor of a released file: He's scale for kernels, scales of both signs, small biases."""
  values = uniform(name, shape)
  if len(shape) == 4:
    return values * np.float32(np.sqrt(6 / np.prod(shape[1:])))
  if name.endswith('running_var'):
    return np.ones(shape, np.float32)
  if name.endswith('weight') and is_norm(name):
    # A residual branch adds little to its sum, or nothing is left of the image after many of them.
    last = name.split('.')[-2] in ('bn3', '_bn2') or ('bn2' in name and 'layer' in name)
    low, high = (0.1, 0.4) if last else (0.6, 1.4)
    size = np.float32(low) + np.abs(values) * np.float32(high - low)
    return np.where(uniform(f'sign {name}', shape) < 0, -size, size)
  return values * np.float32(0.3)


def read(path: Path) -> tuple[dict, dict[str, np.ndarray], np.ndarray, np.ndarray]:
  """What the network is, its state under released names, frames (3, h, w, 3) uint8, and the oracle's logits."""
  with np.load(path) as file:
    about = json.loads(str(file['about']))
    stored = {name.removeprefix('tensor/'): file[name] for name in file.files if name.startswith('tensor/')}
    frames, logits = file['frames'], file['logits']
  state = {}
  for name, shape in about['shapes'].items():
    state[name] = stored[name].astype(np.float32) if name in stored else drawn(name, tuple(shape))
  return about, state, frames, logits
