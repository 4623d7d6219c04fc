"""Model files: safetensors whose metadata holds everything needed to rebuild and use the network.

Parameters stand under the module tree's names joined by '/'. Knows no foreign names (convert.py) and no torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from adnet_jax.errors import UsageError, WeightsError
from adnet_jax.models import adnet

FORMAT = '1'
ASSETS = Path(__file__).parent / 'assets'
DEFAULT_MODEL = 'adnet-compact'
NORMALIZATIONS = ('released', 'torchvision', 'efficientnet')
_REQUIRED = ('format', 'variant', 'backbone', 'stem', 'output_stride', 'multi_grid', 'aspp_width', 'embedding',
             'batch_norm_eps', 'activation', 'normalization', 'size', 'origin', 'licence', 'created_by')


@dataclasses.dataclass(frozen=True)
class Metadata:
  """What travels with the weights.

  Attributes:
    architecture: the network's shape.
    normalization: a name of normalization.py: what the input must look like.
    size: recommended (width, height) of the input.
    origin: where the weights come from.
    licence: their terms.
    created_by: program and version that wrote the file.
  """

  architecture: adnet.Architecture
  normalization: str
  size: tuple[int, int]
  origin: str
  licence: str
  created_by: str

  def to_strings(self) -> dict[str, str]:
    """The metadata of a safetensors file: strings to strings."""
    a = self.architecture
    return {
        'format': FORMAT, 'variant': a.variant, 'backbone': a.backbone, 'stem': a.stem,
        'output_stride': str(a.output_stride), 'multi_grid': ','.join(map(str, a.multi_grid)),
        'aspp_width': str(a.aspp_width), 'embedding': str(a.embedding), 'batch_norm_eps': repr(a.batch_norm_eps),
        'activation': a.activation, 'auxiliary': str(a.auxiliary), 'normalization': self.normalization,
        'size': f'{self.size[0]}x{self.size[1]}', 'origin': self.origin, 'licence': self.licence,
        'created_by': self.created_by}

  @classmethod
  def from_strings(cls, strings: Mapping[str, str], path: object) -> Metadata:
    """The inverse of `to_strings`; WeightsError names what is missing, wrong, or newer than this program."""
    if not strings or 'format' not in strings:
      raise WeightsError('no adnet-jax metadata in the file', path, 'convert foreign weights with: adnet convert')
    if strings['format'] != FORMAT:
      raise WeightsError(f'model format {strings["format"]}, this version reads {FORMAT}', path,
                         'install a newer adnet-jax')
    missing = [name for name in _REQUIRED if name not in strings]
    if missing:
      raise WeightsError(f'metadata missing: {", ".join(missing)}', path, 'write the file again with: adnet convert')
    try:
      architecture = adnet.Architecture(
          variant=strings['variant'], backbone=strings['backbone'], stem=strings['stem'],
          output_stride=int(strings['output_stride']),
          multi_grid=tuple(int(g) for g in strings['multi_grid'].split(',')),
          aspp_width=int(strings['aspp_width']), embedding=int(strings['embedding']),
          batch_norm_eps=float(strings['batch_norm_eps']), activation=strings['activation'],
          auxiliary=int(strings.get('auxiliary', '0')))
      width, height = (int(n) for n in strings['size'].split('x'))
      if strings['normalization'] not in NORMALIZATIONS:
        raise ValueError(f'normalization is {strings["normalization"]!r}')
      if min(width, height) < 1:
        raise ValueError(f'size is {strings["size"]!r}')
    except ValueError as error:
      raise WeightsError(f'metadata that this version does not understand: {error}', path,
                         'install a newer adnet-jax, or write the file again') from error
    return cls(architecture, strings['normalization'], (width, height), strings['origin'], strings['licence'],
               strings['created_by'])


def default_normalization(stem: str) -> str:
  """The input normalisation of ImageNet weights with this stem (docs/architecture.md)."""
  return 'efficientnet' if stem == 'efficientnet' else 'torchvision'


def flatten(model: nnx.Module) -> dict[str, jax.Array]:
  """Every parameter and statistic of a module under its name, such as 'backbone/layer1/0/conv1/kernel'."""
  state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
  return {'/'.join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def shapes(architecture: adnet.Architecture) -> dict[str, tuple[int, ...]]:
  """Name and shape of every array of a network, without computing any."""
  model = nnx.eval_shape(lambda: adnet.ADNet(architecture, rngs=nnx.Rngs(0)))
  state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
  return {'/'.join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}


def build(architecture: adnet.Architecture, arrays: Mapping[str, np.ndarray], *, dtype: jnp.dtype = jnp.float32,
          path: object = None) -> adnet.ADNet:
  """A network with these parameters, as float32.

  Raises:
    WeightsError: arrays are missing, superfluous, misshapen or not finite (faults 34, 38).
  """
  check_arrays({name: np.shape(array) for name, array in arrays.items()}, shapes(architecture), path)
  check_finite(arrays, path)
  model = nnx.eval_shape(lambda: adnet.ADNet(architecture, dtype=dtype, rngs=nnx.Rngs(0)))
  graph, state = nnx.split(model)
  flat = nnx.to_flat_state(state)
  filled = []
  for key, variable in flat:
    name = '/'.join(map(str, key))
    filled.append((key, variable.replace(jnp.asarray(np.asarray(arrays[name], np.float32)))))
  return nnx.merge(graph, nnx.from_flat_state(filled))


def check_arrays(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], path: object) -> None:
  """Raises WeightsError with the first ten missing, superfluous and misshapen arrays by name and shape (fault 34)."""
  missing = [f'{name} {expected[name]}' for name in expected if name not in found]
  extra = [f'{name} {found[name]}' for name in found if name not in expected]
  wrong = [f'{name} {tuple(found[name])} instead of {tuple(expected[name])}' for name in expected
           if name in found and tuple(found[name]) != tuple(expected[name])]
  parts = [f'{len(names)} {title}: {"; ".join(names[:10])}{" ..." if len(names) > 10 else ""}'
           for title, names in (('missing', missing), ('unexpected', extra), ('misshapen', wrong)) if names]
  if parts:
    raise WeightsError('tensors do not fit the network: ' + '. '.join(parts), path, 'is it the variant and backbone meant?')


def check_finite(arrays: Mapping[str, np.ndarray], path: object) -> None:
  """Raises WeightsError that names the first array with a nan or an infinity (fault 38)."""
  for name, array in arrays.items():
    if not np.isfinite(np.asarray(array, np.float32)).all():
      raise WeightsError(f'{name} holds nan or infinite values', path, 'the file cannot be used')


def save(path: str | Path, arrays: Mapping[str, Any], metadata: Metadata, *, dtype: str = 'float32',
         overwrite: bool = False) -> None:
  """Writes a model file under a temporary name and renames it.

  Args:
    path: ends in .safetensors.
    arrays: names to arrays, as from `flatten`.
    metadata: what travels with them.
    dtype: 'float32' or 'float16' of what is stored; BatchNorm statistics stay float32.
    overwrite: whether an existing file may be replaced.

  Raises:
    UsageError: the file exists.
    WeightsError: the folder cannot be written.
  """
  path = Path(path)
  if path.exists() and not overwrite:
    raise UsageError('output exists', path, 'remove it or add --overwrite')
  stored = {}
  for name, array in arrays.items():
    keep = dtype if not name.endswith(('/mean', '/var')) else 'float32'
    stored[name] = np.ascontiguousarray(np.asarray(array, np.float32).astype(keep))
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(stored, temporary, metadata.to_strings())
    os.replace(temporary, path)
  except (OSError, safetensors.SafetensorError) as error:
    raise WeightsError(f'cannot write the model: {error}', path, 'check the folder and the free space') from error
  finally:
    temporary.unlink(missing_ok=True)


def read_file(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Arrays and metadata strings of a safetensors file; WeightsError says what is wrong with it (faults 31, 32)."""
  path = Path(path)
  check_is_file(path)
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
  except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
    raise WeightsError(f'damaged model file{_size_mismatch(path)}: {error}', path, 'fetch or convert it again') from error


def check_is_file(path: Path) -> None:
  """Raises WeightsError unless `path` is a readable file with something in it (fault 31)."""
  if path.is_dir():
    raise WeightsError('a folder, not a model file', path, 'name the .safetensors file')
  if not path.exists():
    raise WeightsError('model file not found', path, f'known models: {", ".join(known_models()) or "none"}; '
                       'foreign weights become model files with: adnet convert')
  if path.stat().st_size == 0:
    raise WeightsError('empty file', path, 'fetch or convert it again')


def _size_mismatch(path: Path) -> str:
  """', N bytes expected, M found' of a safetensors file with a readable header."""
  try:
    data = path.read_bytes()
    (length,) = struct.unpack('<Q', data[:8])
    header = json.loads(data[8:8 + length])
    expected = 8 + length + max(entry['data_offsets'][1] for name, entry in header.items() if name != '__metadata__')
  except (OSError, ValueError, KeyError, TypeError, struct.error):
    return ''
  return f', {expected} bytes expected, {len(data)} found' if expected != len(data) else ''


def load(name_or_path: str | Path, *, dtype: jnp.dtype = jnp.float32) -> tuple[adnet.ADNet, Metadata]:
  """The network and metadata of a model file or of a model known by name.

  Raises:
    WeightsError: faults 31-39.
  """
  path = find_model(name_or_path)
  arrays, strings = read_file(path)
  metadata = Metadata.from_strings(strings, path)
  return build(metadata.architecture, arrays, dtype=dtype, path=path), metadata


def model_folders() -> list[Path]:
  """Where a model name is looked up: the package, $ADNET_MODELS, the user's cache folder, ./releases."""
  folders = [ASSETS / 'models']
  if os.environ.get('ADNET_MODELS'):
    folders.append(Path(os.environ['ADNET_MODELS']))
  cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
  return [*folders, cache / 'adnet-jax' / 'models', Path('releases')]


def known_models() -> dict[str, Path]:
  """Models that can be named, and their files; the first folder wins."""
  found: dict[str, Path] = {}
  for folder in model_folders():
    if folder.is_dir():
      for path in sorted(folder.glob('*.safetensors')):
        found.setdefault(path.stem, path)
  return found


def find_model(name_or_path: str | Path) -> Path:
  """The file of a model given by name or path; WeightsError lists the known names and sizes (fault 39)."""
  text = str(name_or_path)
  if isinstance(name_or_path, Path) or os.sep in text or text.endswith('.safetensors') or Path(text).exists():
    return Path(text)
  models = known_models()
  if text not in models:
    listing = ', '.join(f'{name} ({path.stat().st_size / 1e6:.0f} MB)' for name, path in models.items())
    raise WeightsError(f'unknown model {text!r}', None, f'known models: {listing or "none"}; or give a file')
  return models[text]
