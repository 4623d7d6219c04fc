"""A model file as something to call: normalisation, folded network and jitted programs on chosen devices.

Knows nothing of clips, protocols or files other than the model's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adnet_jax import weights
from adnet_jax.errors import DeviceError
from adnet_jax.models import adnet
from adnet_jax.models import layers
from adnet_jax.normalization import normalize


class Model:
  """A network ready for inference; immutable, so threads may share it.

  Attributes:
    metadata: what its file says.
    devices: where it runs; batches are split over them.
    dtype: compute dtype.
  """

  def __init__(self, module: adnet.ADNet, metadata: weights.Metadata, devices: Sequence[jax.Device]):
    self.metadata, self.devices, self.dtype = metadata, tuple(devices), module.dtype
    for _, part in nnx.iter_modules(module):
      if isinstance(part, layers.Conv):
        part.fold()
    self._graph, state = nnx.split(module)
    mesh = Mesh(np.asarray(self.devices), ('data',))
    self._rows, everywhere = NamedSharding(mesh, PartitionSpec('data')), NamedSharding(mesh, PartitionSpec())
    self._state = jax.device_put(state, everywhere)
    self._everywhere = everywhere
    self._embed = jax.jit(self._on_platform(self._embed_program), static_argnames='mirror')
    self._classify = jax.jit(self._on_platform(self._classify_program), static_argnames=('size', 'mirror'))
    self._logits = jax.jit(self._on_platform(self._logits_program))

  @property
  def uses_anchor(self) -> bool:
    """Whether the network looks at an anchor frame."""
    return self.metadata.architecture.uses_anchor

  def normalize(self, rgb: np.ndarray | jax.Array) -> jax.Array:
    """(..., 3) uint8 RGB in 0..255 -> float32 as the weights expect."""
    return normalize(jnp.asarray(rgb), self.metadata.normalization)

  def logits(self, anchor: jax.Array | None, frame: jax.Array) -> jax.Array:
    """Logits before up-sampling.

    Args:
      anchor: (b, h, w, 3) float32, already normalised; None for a variant without an anchor.
      frame: (b, h, w, 3) float32, already normalised.

    Returns:
      (b, h', w', 1) float32, h' about h over the output stride.
    """
    if anchor is None and self.uses_anchor:
      raise ValueError(f'variant {self.metadata.architecture.variant} needs an anchor')
    return self._logits(self._state, anchor if self.uses_anchor else None, frame)

  def embed(self, images: np.ndarray, *, mirror: bool = False) -> jax.Array:
    """Embeddings (b, h', w', c) of (b, h, w, 3) uint8 RGB; all of one frame on every device."""
    return self._embed(self._state, jax.device_put(images, self._everywhere), mirror=mirror)

  def upsampled_logits(self, anchor: jax.Array | None, images: np.ndarray, size: tuple[int, int], *,
                       mirror: bool = False) -> jax.Array:
    """Logits of frames at the size of their masks.

    Args:
      anchor: (1, h', w', c) embedding from `embed` with the same `mirror`; None for a variant without an anchor.
      images: (b, h, w, 3) uint8 RGB; b a multiple of the number of devices.
      size: (H, W) of the result.
      mirror: whether the network sees the frames mirrored; the result is mirrored back.

    Returns:
      (b, H, W) float32.
    """
    return self._classify(self._state, anchor, jax.device_put(images, self._rows), size=size, mirror=mirror)

  def _on_platform(self, program):
    """`program` traced with the convolution forms of this model's devices."""
    @functools.wraps(program)
    def traced(*args, **options):
      with layers.lowering_for(self.devices[0].platform):
        return program(*args, **options)
    return traced

  def _embed_program(self, state, images, *, mirror: bool):
    x = normalize(images, self.metadata.normalization)
    return nnx.merge(self._graph, state).encode(x[:, :, ::-1] if mirror else x)

  def _classify_program(self, state, anchor, images, *, size, mirror: bool):
    current = self._embed_program(state, images, mirror=mirror)
    z = nnx.merge(self._graph, state).classify(anchor, current)
    return layers.resize_align_corners(z[:, :, ::-1] if mirror else z, size)[..., 0]

  def _logits_program(self, state, anchor, frame):
    return nnx.merge(self._graph, state)(anchor, frame)


def load_model(name_or_path: str | Path = weights.DEFAULT_MODEL, *, device: str | None = None,
               dtype: str | None = None) -> Model:
  """Loads a model by name or file.

  Args:
    name_or_path: a known name, see `adnet info`, or a .safetensors file.
    device: 'cpu', 'gpu' or 'tpu'; None for what JAX prefers.
    dtype: 'float32' or 'bfloat16'; None for bfloat16 on accelerators, float32 on a CPU.

  Raises:
    WeightsError: no such model, or a file that cannot be used.
    DeviceError: no such device.
  """
  devices = find_devices(device)
  compute = jnp.dtype(dtype or ('float32' if devices[0].platform == 'cpu' else 'bfloat16'))
  module, metadata = weights.load(name_or_path, dtype=compute)
  return Model(module, metadata, devices)


def find_devices(platform: str | None) -> list[jax.Device]:
  """Local devices of a platform: all accelerators, or one CPU device, whose cores are shared anyway (fault 9)."""
  try:
    devices = jax.local_devices(backend=platform)
  except RuntimeError as error:
    present = ', '.join(sorted({device.platform for device in jax.local_devices()}))
    raise DeviceError(f'no {platform} device is there', '--device', f'present: {present}; adnet doctor says more') from error
  return devices[:1] if devices[0].platform == 'cpu' else devices
