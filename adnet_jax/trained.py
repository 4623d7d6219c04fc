"""Model files of a training: from its state, from any of its checkpoints, and the best so far; knows no loop."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from adnet_jax import appending, checkpoint, metadata, weights
from adnet_jax.errors import WeightsError
from adnet_jax.models import adnet

if TYPE_CHECKING:
  from adnet_jax.step import Trainer, Tree

GROUPS = ('learnt', 'fixed', 'statistics')


def export(trainer: Trainer, state: Tree, path: Path, *, averaged: bool | None = None, dtype: str = 'float32') -> None:
  """Writes the model file of a training state: the averaged weights where there are any, unless told otherwise."""
  averaged = 'average' in state if averaged is None else averaged
  model = trainer.merge(local({**state, **state['average']} if averaged else state))
  weights.save(path, weights.flatten(model), trainer.metadata, dtype=dtype, overwrite=True)


def local(state: Tree) -> Tree:
  """A replicated state as arrays of one device of this process, for what other processes have no part in."""
  return jax.tree.map(lambda array: array.addressable_data(0), state)


def is_checkpoint(path: str | Path) -> bool:
  """Whether `read_checkpoint` would look for checkpoints here."""
  return _folder_and_step(Path(path)) is not None


def _folder_and_step(path: Path) -> tuple[Path, int | None] | None:
  for folder in (path / 'checkpoints', path):
    if folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir()):
      return folder, None
  return (path.parent, int(path.name)) if path.name.isdigit() and path.is_dir() else None


def read_checkpoint(
  path: str | Path, *, averaged: bool | None = None, step: int | None = None
) -> tuple[int, weights.Initial]:
  """The network in a checkpoint of training.

  Args:
    path: a work folder, its checkpoints/, or one of those, checkpoints/STEP.
    averaged: whether the averaged weights; None: where there are any.
    step: which checkpoint; None: the one that `path` names, or the newest that can be read.

  Returns:
    Steps done, and arrays under a model file's names with its metadata.

  Raises:
    WeightsError: no such checkpoint; it is damaged, of an earlier version, or has no averaged weights.
  """
  found = _folder_and_step(Path(path))
  if found is None:
    raise WeightsError('no checkpoints', path, 'name a work folder of training or one of its checkpoints/STEP')
  folder, named = found
  done, arrays, record = checkpoint.read_checkpoint(folder, named if step is None else step)
  if 'metadata' not in record:
    raise WeightsError(
      "a checkpoint of an earlier version, without a model file's metadata",
      folder / str(done),
      'go on with that training for one checkpoint',
    )
  has_average = any(name.startswith('average/') for name in arrays)
  if averaged and not has_average:
    raise WeightsError('no averaged weights in the checkpoint', folder / str(done), 'they need optim.ema above 0')
  network = _group(arrays, '')
  if has_average if averaged is None else averaged:
    network.update(_group(arrays, 'average/'))
  return done, weights.Initial(network, metadata.parse_metadata(record['metadata'], folder / str(done)))


def read_initial(name_or_path: str, architecture: adnet.Architecture) -> weights.Initial:
  """`weights.read_initial`, for which a folder of checkpoints will do as well; raises as that does."""
  if not is_checkpoint(name_or_path):
    return weights.read_initial(name_or_path, architecture)
  _, found = read_checkpoint(name_or_path)
  weights.check_finite(found.arrays, name_or_path)
  expected = weights.shapes(architecture)
  weights.check_arrays({name: array.shape for name, array in found.arrays.items()}, expected, name_or_path)
  return found


def _group(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
  found = {}
  for group in GROUPS:
    start = f'{prefix}{group}/'
    found.update({name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)})
  return found


def keep_best(candidate: Path, scores: Mapping[str, float | None], workdir: Path, step: int) -> None:
  """Makes a model file WORKDIR/best.safetensors if its J is the highest so far; best.json says whose that is."""
  j, highest = scores['J'], best(workdir).get('J')
  if j is not None and j > (-math.inf if highest is None else highest):
    candidate.replace(workdir / 'best.safetensors')
    appending.write_whole(workdir / 'best.json', json.dumps({'step': step, **scores}) + '\n')


def best(workdir: Path) -> dict[str, Any]:
  """Step, J and F of the best model so far; empty where there is none."""
  try:
    found = json.loads((workdir / 'best.json').read_text())
    return found if isinstance(found, dict) else {}
  except (OSError, ValueError):
    return {}
