"""Live state of one clip: anchor embeddings and the gate's reference; frames in, results out, batch by batch.

How outputs of scales and mirror images become a mask under each protocol is decided in `combine` and `postprocess.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from adnet_jax import postprocess, refinement
from adnet_jax.errors import DeviceError
from adnet_jax.geometry import Size, check_frame, resize_frames, scaled
from adnet_jax.models import layers, platforms

if TYPE_CHECKING:
  from adnet_jax.segmenter import Segmenter


@dataclasses.dataclass(frozen=True)
class Result:
  """What the network says of one frame.

  Attributes:
    mask: (h, w) bool, foreground.
    probability: (h, w) float32 in [0, 1], mean over scales and mirror before any gate; None unless asked for.
  """

  mask: np.ndarray
  probability: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Batch:
  """Frames of one size on their way through the network; `output` is None where the device had no memory for them."""

  frames: list[np.ndarray]
  padded: int
  soft: bool
  blockwise: bool
  output: jax.Array | None
  packed: bool = False

  def values(self) -> np.ndarray | None:
    """The output on the host, (b, h, w); waits for it."""
    if self.output is None:
      return None
    values = np.asarray(self.output)
    return np.unpackbits(values, axis=2, count=self.frames[0].shape[1]).view(bool) if self.packed else values


class Session:
  """A clip being segmented: its anchor's embeddings and, for the protocol `released`, the last frame's foreground.

  Not for several threads at once; the Segmenter behind it is.

  Attributes:
    base: (width, height) of the network's input at scale 1.
  """

  def __init__(self, segmenter: Segmenter, anchor: np.ndarray, *, reference: np.ndarray | None = None):
    self._segmenter = segmenter
    self._reference = reference
    # What is left after the device ran out of memory (fault 10): frames at a time, and whether attention is blockwise.
    self._limit: int | None = None
    self._blockwise = False
    self.set_anchor(anchor)

  def set_anchor(self, frame: np.ndarray, *, new_shot: bool = False) -> None:
    """Makes `frame`, (h, w, 3) uint8 RGB, the anchor of the frames that follow; `new_shot` forgets the frame before."""
    if new_shot:
      self._reference = None
    segmenter = self._segmenter
    check_frame(frame)
    self.base = segmenter.base_size(frame)
    self._views: list[tuple[Size, bool, jax.Array | None]] = []
    for scale in segmenter.scales:
      size = scaled(self.base, scale)
      images = resize_frames([frame], size)
      for mirror in (False, True) if segmenter.mirror else (False,):
        embedding = None
        if segmenter.model.uses_anchor:
          try:
            embedding = segmenter.model.embed(images, mirror=mirror)
          except jax.errors.JaxRuntimeError as error:
            _reraise_unless_memory(error)
            raise self._out_of_memory(1) from error
        self._views.append((size, mirror, embedding))

  def step(self, frame: np.ndarray, soft: bool = False) -> np.ndarray:
    """Mask of one frame: (h, w, 3) uint8 RGB -> (h, w) bool, or float32 probability if `soft`."""
    batch = self.dispatch([frame], len(self._segmenter.model.devices), soft)
    result = next(self.collect(batch))
    return result.probability if soft else result.mask  # type: ignore[return-value]

  def batch_for(self, frame: np.ndarray) -> int:
    """Frames at a time of this frame's size."""
    wanted = self._segmenter.batch_for(self.base, frame)
    return wanted if self._limit is None else min(wanted, self._limit)

  def dispatch(self, frames: list[np.ndarray], padded: int, soft: bool) -> Batch:
    """Starts computing frames of one size as a batch of `padded`."""
    for frame in frames:
      check_frame(frame)
    # An eighth of the bytes from the device, where they have a way to go.
    packed = not soft and self._segmenter.model.devices[0].platform != 'cpu'
    try:
      output = self._compute(frames, padded, soft, packed)
      output.copy_to_host_async()
    except jax.errors.JaxRuntimeError as error:
      _reraise_unless_memory(error)
      output = None
    return Batch(frames, padded, soft, self._blockwise, output, packed)

  def _compute(self, frames: list[np.ndarray], padded: int, soft: bool, packed: bool) -> jax.Array:
    segmenter, logits = self._segmenter, []
    images: dict[Size, np.ndarray] = {}
    for size, mirror, anchor in self._views:
      if size not in images:
        images[size] = _padded(resize_frames(frames, size), padded)
      logits.append(segmenter.model.predict(anchor, images[size], mirror=mirror, blockwise=self._blockwise))
    mirrored = tuple(mirror for _, mirror, _ in self._views)
    released = segmenter.protocol == 'released'
    guide, radius = None, segmenter.refine_radius(self.base)
    if radius:
      guide = jax.device_put(_padded(np.stack(frames), padded), logits[0].sharding)
    return _combining(segmenter.model.devices[0].platform)(
      tuple(logits),
      np.float32(postprocess.RELEASED_THRESHOLD if released else segmenter.threshold),
      mirrored=mirrored,
      size=frames[0].shape[:2],
      protocol=segmenter.protocol,
      soft=soft,
      packed=packed,
      guide=guide,
      grid=refinement.grid_of(self.base) if radius else None,
      radius=round(radius / refinement.STEP) if radius else 0,
    )

  def collect(self, batch: Batch) -> Iterator[Result]:
    """Results of a dispatched batch, in order; in smaller batches where the device's memory did not do (fault 10)."""
    values = None
    try:
      values = batch.values()
    except jax.errors.JaxRuntimeError as error:
      _reraise_unless_memory(error)
    if values is None:
      size = self._shrink(batch)
      for start in range(0, len(batch.frames), size):
        yield from self.collect(self.dispatch(batch.frames[start : start + size], size, batch.soft))
      return
    for frame_values in values[: len(batch.frames)]:
      yield self._finish(frame_values, batch.soft)

  def _shrink(self, batch: Batch) -> int:
    """Frames at a time from now on, after `batch` did not fit; says so, and raises DeviceError at the end."""
    devices = len(self._segmenter.model.devices)
    before = self._limit, self._blockwise
    if batch.padded > devices:
      half = max(devices, batch.padded // 2 // devices * devices)
      self._limit = half if self._limit is None else min(half, self._limit)
    elif not batch.blockwise:
      self._limit, self._blockwise = devices, True
    else:
      raise self._out_of_memory(batch.padded)
    if before != (self._limit, self._blockwise):
      how = f'{self._limit} frame(s) at a time' + (' and attention in blocks' if self._blockwise else '')
      logging.warning(
        'out of device memory at %s with %d frame(s) at a time: going on with %s', self._largest(), batch.padded, how
      )
    assert self._limit is not None
    return self._limit

  def _largest(self) -> str:
    scale = max(self._segmenter.scales)
    return f'{self.base[0]}x{self.base[1]}' + (f' and scale {scale:g}' if scale != 1 else '')

  def _out_of_memory(self, frames: int) -> DeviceError:
    width, height = scaled(self.base, 0.7)
    smaller = f'try --size {width}x{height}' + (', a smaller --scales' if len(self._segmenter.scales) > 1 else '')
    return DeviceError(
      f'out of device memory at {self._largest()} with {frames} frame(s) at a time',
      self._segmenter.model.devices[0],
      f'{smaller}, or --device cpu',
    )

  def _finish(self, values: np.ndarray, soft: bool) -> Result:
    segmenter = self._segmenter
    if segmenter.protocol == 'released':
      # Logits, or whether they are above the threshold: the same to the gate.
      mask, self._reference = postprocess.released_step(values, self._reference)
      return Result(mask, postprocess.mean_heatmap([values]) if soft else None)
    if soft:
      return Result(postprocess.paper_mask(values, segmenter.threshold), values)
    return Result(values)


def _padded(frames: np.ndarray, count: int) -> np.ndarray:
  """Frames, (b, h, w, 3) uint8, and black ones up to `count`: a last batch is padded rather than compiled anew."""
  if len(frames) == count:
    return frames
  return np.concatenate([frames, np.zeros((count - len(frames), *frames.shape[1:]), np.uint8)])


def combine(
  logits: tuple[jax.Array, ...],
  threshold: jax.Array,
  *,
  mirrored: tuple[bool, ...],
  size: tuple[int, int],
  protocol: str,
  soft: bool,
  packed: bool = False,
  guide: jax.Array | None = None,
  grid: tuple[int, int] | None = None,
  radius: int = 0,
) -> jax.Array:
  """Brings the outputs of scales and mirror images to the size of the masks, averages them and applies the threshold.

  Args:
    logits: (b, h', w', 1) float32, one for each scale and mirror image, h' and w' its own.
    threshold: () float32, of the probability, or of the logit (`released`).
    mirrored: which of them saw mirrored frames.
    size: (h, w) of the masks.
    protocol: `released` averages logits, `paper` probabilities.
    soft: whether means are wanted instead of masks.
    packed: whether masks are packed.
    guide: (b, h, w, 3) uint8 RGB, the frames, along whose edges probabilities are refined; None for no refinement.
    grid: (h, w) cells, with a guide.
    radius: of neighbourhoods in cells, with a guide.

  Returns:
    If soft (b, h, w) float32 logits (`released`) or probabilities (`paper`); otherwise (b, h, w) bool, or, packed,
    (b, h, ceil(w / 8)) uint8, eight pixels a byte, the first one highest.
  """
  total = jnp.zeros((), jnp.float32)
  for z, mirror in zip(logits, mirrored, strict=True):
    z = z[:, :, ::-1] if mirror else z
    z = layers.resize_align_corners(z, size) if grid is None else refinement.sample(z, size, grid)
    total = total + (z if protocol == 'released' else jax.nn.sigmoid(z))[..., 0]
  mean = total / len(logits)
  if guide is not None:
    mean = refinement.refine(mean, guide, radius)
  if soft:
    return mean
  masks = mean > threshold
  return jnp.packbits(masks, axis=2) if packed else masks


@functools.cache
def _combining(platform: str) -> Callable[..., jax.Array]:
  """`combine` compiled for a platform.

  A program of its own: frames of another size do not compile the network anew, and what lies between the two never
  leaves the device.
  """
  static = ('mirrored', 'size', 'protocol', 'soft', 'packed', 'grid', 'radius')
  return jax.jit(combine, static_argnames=static, compiler_options=platforms.compiler_options(platform, 'inference'))


def _reraise_unless_memory(error: Exception) -> None:
  if 'RESOURCE_EXHAUSTED' not in str(error) and 'out of memory' not in str(error).lower():
    what = f'the device failed: {str(error).splitlines()[0]}'
    raise DeviceError(what, None, 'adnet doctor shows what is there') from error
