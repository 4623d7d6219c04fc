"""Model files with programs: what JAX would trace and lower, done ahead for given platforms and sizes; knows no clips.

Such a file is an ordinary model file with more in it: programs of jax.export as byte arrays under 'programs/', and a
metadata key `exported`. Where none of them fits, the model is traced from the weights as any other.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from absl import logging

from adnet_jax import weights
from adnet_jax.errors import UsageError, WeightsError
from adnet_jax.geometry import Size
from adnet_jax.metadata import Metadata, parse_metadata
from adnet_jax.models import layers, platforms
from adnet_jax.normalization import normalize

if TYPE_CHECKING:
  from adnet_jax.pretrained import Model

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
# Frames at a time of the programs; any number is done in batches of these.
BATCHES = {'cpu': (1, 4), 'cuda': (1, 8), 'rocm': (1, 8), 'tpu': (1, 8)}
KEY = 'exported'


class Key(NamedTuple):
  """Which program: `kind` is 'embed' or 'predict'."""

  platform: str
  size: Size
  kind: str
  batch: int

  def name(self) -> str:
    return f'{weights.PROGRAMS}{self.platform}/{self.size[0]}x{self.size[1]}/{self.kind}/{self.batch}'

  @classmethod
  def parse(cls, name: str) -> Key:
    platform, size, kind, batch = name.removeprefix(weights.PROGRAMS).split('/')
    width, height = map(int, size.split('x'))
    return cls(platform, (width, height), kind, int(batch))


def export_model(
  name_or_path: str | Path,
  output: str | Path,
  sizes: Sequence[Size],
  platforms: Sequence[str] = ('cpu',),
  *,
  batches: Sequence[int] | None = None,
  dtype: str | None = None,
  overwrite: bool = False,
  progress: Callable[[], None] = lambda: None,
) -> list[Key]:
  """Writes a model file with programs; needs none of the platforms.

  Args:
    name_or_path: the model.
    output: file to write, whole or not at all.
    sizes: (width, height) of the network's input.
    platforms: some of PLATFORMS.
    batches: frames at a time; None for BATCHES.
    dtype: compute dtype; None for float32 on a CPU, bfloat16 elsewhere.
    overwrite: whether `output` may be replaced.
    progress: called after each program.

  Returns:
    What was written.

  Raises:
    UsageError: an unknown platform, no size, or `output` exists.
    WeightsError: the model cannot be used, the file cannot be written.
  """
  from adnet_jax import pretrained  # builds on this module

  unknown = [platform for platform in platforms if platform not in PLATFORMS]
  if unknown or not platforms:
    raise UsageError(f'unknown platform {", ".join(unknown)!r}', '--platforms', f'some of {",".join(PLATFORMS)}')
  if not sizes:
    raise UsageError('no size', '--size', "the network's input as WxH, such as adnet info says")
  if importlib.util.find_spec('flatbuffers') is None:
    raise UsageError('flatbuffers is not installed', 'export', "pip install 'adnet-jax[export]'")
  output = Path(output)
  weights.check_output(output, overwrite)
  path = weights.find_model(name_or_path)
  module, metadata = weights.load(path)
  arrays, _ = weights.read_file(path)
  dtypes = {platform: dtype or ('float32' if platform == 'cpu' else 'bfloat16') for platform in platforms}
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ('data',))
  written: dict[Key, bytes] = {}
  for platform in dict.fromkeys(platforms):
    module, _ = weights.load(path, dtype=jnp.dtype(dtypes[platform]))
    target = 'gpu' if platform in ('cuda', 'rocm') else platform
    programs = pretrained.Programs(module, metadata.normalization, target, mesh)
    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), programs.params)
    for size in dict.fromkeys(sizes):
      for batch in sorted({1, *(batches or BATCHES[platform])}):
        images = jax.ShapeDtypeStruct((batch, size[1], size[0], 3), np.uint8)
        anchor = None
        if metadata.architecture.uses_anchor:
          first = jax.ShapeDtypeStruct((1, *images.shape[1:]), np.uint8)
          anchor = jax.eval_shape(programs.embed, shapes, first)
          if batch == 1:
            written[Key(platform, size, 'embed', 1)] = _export(programs.embed, platform, shapes, first)
            progress()
        written[Key(platform, size, 'predict', batch)] = _export(programs.predict, platform, shapes, anchor, images)
        progress()
  epsilons = {name: epsilon for name, epsilon in layers.epsilons(module).items() if not name.startswith('auxiliary')}
  stored = 'float16' if any(array.dtype == np.float16 for array in arrays.values()) else 'float32'
  weights.save(
    output,
    arrays,
    metadata,
    dtype=stored,
    overwrite=overwrite,
    programs={key.name(): content for key, content in written.items()},
    extra={KEY: json.dumps({'dtypes': dtypes, 'epsilons': epsilons, 'jax': jax.__version__})},
  )
  return list(written)


def _export(function: Callable, platform: str, *shapes) -> bytes:
  # cuDNN's attention is not among the calls that JAX promises to keep; where it changed, the program is traced again.
  checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in ('__cudnn$fmhaSoftmax', 'tpu_custom_call')]
  return bytes(jax.export.export(jax.jit(function), platforms=[platform], disabled_checks=checks)(*shapes).serialize())


def read(path: Path, device: jax.Device, dtype: str | None, fallback: Callable[[], Model]) -> ExportedModel | None:
  """The model of a file with programs for this device and dtype; None where the file has none or they do not fit.

  Args:
    path: of a model file.
    device: where it is to run.
    dtype: compute dtype asked for, None for any.
    fallback: makes the model from its weights.

  Raises:
    WeightsError: the file is damaged.
  """
  if KEY not in weights.read_strings(path):
    return None
  arrays, strings = weights.read_file(path, programs=True)
  metadata = parse_metadata(strings, path)
  try:
    about = json.loads(strings[KEY])
    keys = [Key.parse(name) for name in arrays if name.startswith(weights.PROGRAMS)]
    dtypes, epsilons = dict(about['dtypes']), dict(about['epsilons'])
  except (ValueError, KeyError, TypeError) as error:
    raise WeightsError(f'damaged list of programs: {error}', path, 'export the model again') from error
  assert isinstance(metadata, Metadata)
  platform = _platform(device)
  if dtype not in (None, dtypes.get(platform)):
    _say(path, f'its programs for {platform} compute in {dtypes.get(platform, "nothing")}, not {dtype}')
    return None
  if platform not in dtypes:
    _say(path, f'its programs are for {", ".join(dtypes)}, not for {platform}')
    return None
  compute = jnp.dtype(dtypes[platform])
  programs = {key: arrays[key.name()].tobytes() for key in keys if key.platform == platform}
  params = _params(arrays, epsilons, compute, device.platform)
  return ExportedModel(path, metadata, device, compute, params, programs, fallback)


def _params(
  arrays: Mapping[str, np.ndarray], epsilons: Mapping[str, float], dtype: jnp.dtype, platform: str
) -> dict[str, np.ndarray]:
  """What `pretrained.Programs.params` holds, without building the network."""
  params: dict[str, np.ndarray] = {}
  for name, array in arrays.items():
    conv, _, last = name.rpartition('/')
    if last != 'kernel' or conv.startswith('auxiliary'):
      continue
    kernel, bias = np.asarray(array, np.float32), np.asarray(arrays[f'{conv}/bias'], np.float32)
    if conv in epsilons:
      statistics = (np.asarray(arrays[f'{conv}/{part}'], np.float32) for part in ('scale', 'mean', 'var'))
      kernel, bias = layers.folded(kernel, bias, statistics, epsilons[conv])
    params |= {at: platforms.stored(values, dtype, platform) for at, values in ((name, kernel), (f'{conv}/bias', bias))}
  return params


class ExportedModel:
  """A model whose programs were traced ahead; used as `pretrained.Model`, and immutable as that.

  Attributes:
    metadata: what its file says.
    devices: the one device where it runs.
    dtype: compute dtype.
  """

  def __init__(
    self,
    path: Path,
    metadata: Metadata,
    device: jax.Device,
    dtype: jnp.dtype,
    params: Mapping[str, np.ndarray],
    programs: Mapping[Key, bytes],
    fallback: Callable[[], Model],
  ):
    self.metadata, self.devices, self.dtype = metadata, (device,), dtype
    self._path, self._fallback, self._lock = path, fallback, threading.RLock()
    self._params = jax.device_put(dict(params), device)
    self._serialized, self._ready = dict(programs), dict[Key, Callable | None]()

  @property
  def uses_anchor(self) -> bool:
    """Whether the network looks at an anchor frame."""
    return self.metadata.architecture.uses_anchor

  def normalize(self, rgb: np.ndarray | jax.Array) -> jax.Array:
    """(..., 3) uint8 RGB in 0..255 -> float32 as the weights expect."""
    return normalize(jnp.asarray(rgb), self.metadata.normalization)

  def logits(self, anchor: np.ndarray | jax.Array | None, frame: np.ndarray | jax.Array) -> jax.Array:
    """As `Model.logits`, whose program is not exported."""
    return self.traced.logits(anchor, frame)

  @functools.cached_property
  def traced(self) -> Model:
    """The model made from the weights."""
    with self._lock:
      return self._fallback()

  def embed(self, images: np.ndarray, *, mirror: bool = False) -> jax.Array:
    """As `Model.embed`."""
    program = self._program('embed', images, len(images))
    if program is None:
      return self.traced.embed(images, mirror=mirror)
    return program(self._params, self._placed(images, mirror))

  def predict(
    self, anchor: jax.Array | None, images: np.ndarray, *, mirror: bool = False, blockwise: bool = False
  ) -> jax.Array:
    """As `Model.predict`, in batches that programs were exported for."""
    height, width = images.shape[1:3]
    sizes = sorted(key.batch for key in self._serialized if key[1:3] == ((width, height), 'predict'))
    parts, start = [], 0
    while start < len(images):
      left = len(images) - start
      batch = next((size for size in sizes if size >= left), sizes[-1] if sizes else left)
      program = None if blockwise else self._program('predict', images, batch)
      if program is None:
        return self.traced.predict(anchor, images, mirror=mirror, blockwise=blockwise)
      some = images[start : start + batch]
      if len(some) < batch:
        some = np.concatenate([some, np.zeros((batch - len(some), *some.shape[1:]), np.uint8)])
      parts.append(program(self._params, anchor, self._placed(some, mirror))[:left])
      start += batch
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

  def _placed(self, images: np.ndarray, mirror: bool) -> jax.Array:
    return jax.device_put(np.ascontiguousarray(images[:, :, ::-1]) if mirror else images, self.devices[0])

  def _program(self, kind: str, images: np.ndarray, batch: int) -> Callable | None:
    """The compiled program, or None after saying once that there is none that fits."""
    height, width = images.shape[1:3]
    key = Key(_platform(self.devices[0]), (width, height), kind, batch)
    with self._lock:
      if key not in self._ready:
        self._ready[key] = self._compiled(key)
      return self._ready[key]

  def _compiled(self, key: Key) -> Callable | None:
    if key not in self._serialized:
      there = sorted({known.size for known in self._serialized})
      sizes = ', '.join(f'{width}x{height}' for width, height in there)
      _say(self._path, f'its programs are for {sizes}, not for {key.size[0]}x{key.size[1]}')
      return None
    if importlib.util.find_spec('flatbuffers') is None:
      _say(self._path, "flatbuffers is not installed (pip install 'adnet-jax[export]')")
      return None
    try:
      program = jax.export.deserialize(bytearray(self._serialized[key])).call
    except Exception as error:  # of another JAX: which exceptions its reader raises is not documented
      _say(self._path, f'its programs cannot be read by JAX {jax.__version__}: {" ".join(str(error).split())[:200]}')
      return None
    return jax.jit(program, compiler_options=platforms.compiler_options(self.devices[0].platform, 'inference'))


def _platform(device: jax.Device) -> str:
  """The name that jax.export gives a device's platform."""
  if device.platform != 'gpu':
    return device.platform
  return 'rocm' if 'rocm' in device.client.platform_version.lower() else 'cuda'


@functools.cache
def _say(path: Path, why: str) -> None:
  logging.warning('the exported model %s is traced and compiled anew: %s', path.name, why)
