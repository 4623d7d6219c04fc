"""A model file as something to call: normalisation, folded network and jitted programs on chosen devices.

Knows nothing of clips, protocols or files other than the model's.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adnet_jax import exported, weights
from adnet_jax.errors import DeviceError, UsageError
from adnet_jax.metadata import Metadata
from adnet_jax.models import adnet, attention, layers, platforms
from adnet_jax.normalization import normalize

_terms_said: set[Path] = set()
_terms_lock = threading.Lock()


class Programs:
  """A network's functions for inference, to be compiled for devices here (`Model`) or exported (exported.py).

  Attributes:
    params: name to kernel or bias, BatchNorm folded in, as `platforms.stored` has it.
    dtype: compute dtype.
  """

  def __init__(self, module: adnet.ADNet, normalization: str, platform: str, mesh: Mesh):
    """Args:
    module: the network, which stays as it is.
    normalization: what its input looks like.
    platform: what it is compiled for.
    mesh: over whose axis `data` batches are split.
    """
    self.dtype = module.dtype
    self._normalization, self._platform, self._mesh = normalization, platform, mesh
    module = nnx.clone(module)
    module.auxiliary = None  # only training looks at it
    for _, part in nnx.iter_modules(module):
      if isinstance(part, layers.Conv):
        part.fold()
    self._graph, state = nnx.split(module)
    self.params: dict[str, np.ndarray] = {}
    self._variables: list[tuple[str, tuple, Any]] = []
    for path, variable in nnx.to_flat_state(state):
      name, array = '/'.join(map(str, path)), variable[...]
      self._variables.append((name, path, variable.replace(jax.ShapeDtypeStruct(array.shape, array.dtype))))
      self.params[name] = platforms.stored(array, self.dtype, platform)

  @contextlib.contextmanager
  def _network(self, params: Mapping[str, jax.Array]) -> Iterator[adnet.ADNet]:
    arrays = {name: platforms.from_stored(array, self._platform) for name, array in params.items()}
    state = nnx.from_flat_state([(path, variable.replace(arrays[name])) for name, path, variable in self._variables])
    with platforms.lowering_for(self._platform), attention.kernels(self._mesh):
      yield nnx.merge(self._graph, state)

  def embed(self, params: Mapping[str, jax.Array], images: jax.Array, *, mirror: bool = False) -> jax.Array:
    """(b, h, w, 3) uint8 RGB -> embeddings (b, h', w', c)."""
    with self._network(params) as network:
      x = normalize(images, self._normalization)
      return network.encode(x[:, :, ::-1] if mirror else x)

  def predict(
    self,
    params: Mapping[str, jax.Array],
    anchor: jax.Array | None,
    images: jax.Array,
    *,
    mirror: bool = False,
    blockwise: bool = False,
  ) -> jax.Array:
    """The anchor's embedding and (b, h, w, 3) uint8 RGB -> (b, h', w', 1) float32 logits."""
    return self.classify(params, anchor, self.embed(params, images, mirror=mirror), blockwise=blockwise)

  def classify(
    self,
    params: Mapping[str, jax.Array],
    anchor: jax.Array | None,
    current: jax.Array,
    *,
    blockwise: bool = False,
  ) -> jax.Array:
    """The anchor's embedding and those of frames, (b, h', w', c) -> (b, h', w', 1) float32 logits."""
    with self._network(params) as network, attention.blockwise_only() if blockwise else contextlib.nullcontext():
      return network.classify(anchor, current)

  def logits(self, params: Mapping[str, jax.Array], anchor: jax.Array | None, frame: jax.Array) -> jax.Array:
    """Normalised float32 (b, h, w, 3), twice -> (b, h', w', 1) float32 logits."""
    with self._network(params) as network:
      return network(anchor, frame)


class Model:
  """A network ready for inference; immutable, so threads may share it.

  Attributes:
    metadata: what its file says.
    devices: where it runs; batches are split over them.
    dtype: compute dtype.
  """

  def __init__(self, module: adnet.ADNet, metadata: Metadata, devices: Sequence[jax.Device]):
    """Args:
    module: the network, which stays as it is.
    metadata: of its file.
    devices: all of one platform.
    """
    self.metadata, self.devices, self.dtype = metadata, tuple(devices), module.dtype
    mesh = Mesh(np.asarray(self.devices), ('data',))
    programs = Programs(module, metadata.normalization, self.devices[0].platform, mesh)
    self._everywhere = NamedSharding(mesh, PartitionSpec())
    # On one device both are one: or `embed` would be compiled twice.
    self._rows = NamedSharding(mesh, PartitionSpec('data')) if len(self.devices) > 1 else self._everywhere
    self._params = jax.device_put(programs.params, self._everywhere)
    programs.params = {}
    jit = functools.partial(jax.jit, compiler_options=platforms.compiler_options(self.devices[0].platform, 'inference'))
    self._embed = jit(programs.embed, static_argnames='mirror')
    # Not one program with `embed`: an anchor's is a frame's, so that the trunk is traced and compiled once.
    self._classify = jit(programs.classify, static_argnames='blockwise')
    self._logits = jit(programs.logits)

  @property
  def uses_anchor(self) -> bool:
    """Whether the network looks at an anchor frame."""
    return self.metadata.architecture.uses_anchor

  def normalize(self, rgb: np.ndarray | jax.Array) -> jax.Array:
    """(..., 3) uint8 RGB in 0..255 -> float32 as the weights expect."""
    return normalize(jnp.asarray(rgb), self.metadata.normalization)

  def logits(self, anchor: np.ndarray | jax.Array | None, frame: np.ndarray | jax.Array) -> jax.Array:
    """Logits before up-sampling.

    Args:
      anchor: (b, h, w, 3) float32, already normalised; None for a variant without an anchor.
      frame: (b, h, w, 3) float32, already normalised.

    Returns:
      (b, h', w', 1) float32, h' about h over the output stride.

    Raises:
      ValueError: another shape or dtype, or an anchor is missing.
    """
    if self.uses_anchor and anchor is None:
      raise ValueError(f'variant {self.metadata.architecture.variant} needs an anchor')
    given = {'frame': frame} if anchor is None else {'anchor': anchor, 'frame': frame}
    for name, array in given.items():
      if array.ndim != 4 or array.shape[3] != 3 or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f'{name} is {array.dtype} {array.shape}, expected normalised float32 (b, h, w, 3)')
    placed = jax.device_put((anchor if self.uses_anchor else None, frame), self._everywhere)
    return self._logits(self._params, *placed)

  def embed(self, images: np.ndarray, *, mirror: bool = False) -> jax.Array:
    """Embeddings (b, h', w', c) of (b, h, w, 3) uint8 RGB, the same on every device."""
    return self._embed(self._params, jax.device_put(images, self._everywhere), mirror=mirror)

  def predict(
    self, anchor: jax.Array | None, images: np.ndarray, *, mirror: bool = False, blockwise: bool = False
  ) -> jax.Array:
    """Logits of frames of one clip.

    Args:
      anchor: (1, h', w', c) embedding from `embed` with the same `mirror`; None for a variant without an anchor.
      images: (b, h, w, 3) uint8 RGB; b a multiple of the number of devices.
      mirror: whether the network sees the frames mirrored, and the logits are so too.
      blockwise: attention in blocks whatever its size: the least memory.

    Returns:
      (b, h', w', 1) float32 before up-sampling.
    """
    current = self._embed(self._params, jax.device_put(images, self._rows), mirror=mirror)
    return self._classify(self._params, anchor, current, blockwise=blockwise)


def load_model(
  name_or_path: str | Path = weights.DEFAULT_MODEL, *, device: str | None = None, dtype: str | None = None
) -> Model | exported.ExportedModel:
  """Loads a model by name or file.

  Args:
    name_or_path: a known name, see `adnet info`, or a .safetensors file, exported (exported.py) or not.
    device: 'cpu', 'gpu' or 'tpu'; None for what JAX prefers.
    dtype: 'float32' or 'bfloat16'; None for bfloat16 on accelerators, float32 on a CPU.

  Raises:
    WeightsError: no such model, or a file that cannot be used.
    DeviceError: no such device.
  """
  devices = find_devices(device)
  if dtype not in (None, 'float32', 'bfloat16'):
    raise UsageError(f'unknown dtype {dtype!r}', 'dtype', 'float32 or bfloat16')
  compute = jnp.dtype(dtype or ('float32' if devices[0].platform == 'cpu' else 'bfloat16'))
  path = weights.find_model(name_or_path)

  def traced() -> Model:
    return Model(*weights.load(path, dtype=compute), devices)

  model = exported.read(path, devices[0], dtype, traced) or traced()
  _say_terms(path, model.metadata)
  return model


def _say_terms(path: Path, metadata: Metadata) -> None:
  """One line on stderr at a model's first use in the process; `adnet info` says it too."""
  path = path.resolve()
  with _terms_lock:
    if path in _terms_said:
      return
    _terms_said.add(path)
  # As a warning, which every program's logging lets through; the commands print it as what it is (environment.py).
  logging.warning('terms of the model %s: %s', path.stem, ' '.join(metadata.licence.split()), extra={'note': True})


def find_devices(platform: str | None) -> list[jax.Device]:
  """Local devices of a platform: all accelerators, or one CPU device, whose cores are shared anyway.

  Args:
    platform: 'cpu', 'gpu' or 'tpu'; None for what JAX prefers.

  Raises:
    DeviceError: there is none; it names those that are there (fault 9).
  """
  try:
    devices = jax.local_devices(backend=platform)
  except RuntimeError as error:
    raise DeviceError(
      f'no {platform or "usable"} device is there: {_present(error)}', '--device', 'adnet doctor says more'
    ) from error
  return devices[:1] if devices[0].platform == 'cpu' else devices


def _present(error: Exception) -> str:
  """The devices that are there, or JAX's reason why none is."""
  try:
    return 'present are ' + ', '.join(sorted({device.platform for device in jax.local_devices()}))
  except RuntimeError:
    return ' '.join(str(error).split())
