"""Frames in, masks out, one clip at a time, in memory that does not depend on its length; knows no files.

Geometry (which size the network sees) and protocols (how outputs of scales and mirror images become a mask) meet here.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from adnet_jax import postprocess
from adnet_jax import pretrained
from adnet_jax import weights
from adnet_jax.errors import DeviceError, UsageError

# The released program's base size, whatever the model (docs/evaluation.md).
RELEASED_SIZE = (857, 481)
# Relative difference of aspect up to which a clip is squeezed to the model's own size.
ASPECT_TOLERANCE = 0.10
SMALLEST_SIDE = 33
# Bytes of up-sampled float32 logits at a time.
UPSAMPLED_BYTES = 256 * 2**20
Size = tuple[int, int]  # (width, height)


def eight_k_plus_one(length: float) -> int:
  """The largest 8k + 1 not above `length`: .75, 1 and 1.5 of 857 x 481 give the released 641 x 353 and 1281 x 721."""
  return max(SMALLEST_SIDE, int(length - 1) // 8 * 8 + 1)


def network_size(frame: Size, recommended: Size) -> Size:
  """(width, height) at which the network sees a clip by default.

  A clip whose aspect is within 10 % of the recommended size's uses that size, another one the same area at its own
  aspect, each side 8k + 1 (at least 33).

  Args:
    frame: (width, height) of the clip's anchor.
    recommended: (width, height) of the model's metadata.
  """
  aspect, usual = frame[0] / frame[1], recommended[0] / recommended[1]
  if abs(aspect / usual - 1) <= ASPECT_TOLERANCE:
    return recommended
  area = recommended[0] * recommended[1]
  # Very long strips: the short side's lower limit must not multiply the area.
  longest = area / SMALLEST_SIDE
  width, height = min(math.sqrt(area * aspect), longest), min(math.sqrt(area / aspect), longest)
  # Rounded to the nearest here: nothing published has to be met, and the aspect is kept better.
  return eight_k_plus_one(width + 4), eight_k_plus_one(height + 4)


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
class Segmenter:
  """A model and how it is applied to a clip; immutable, so threads may share it.

  Attributes:
    model: the network.
    protocol: 'paper' or 'released' (docs/evaluation.md).
    scales: factors of the network's input size.
    mirror: whether mirrored frames are averaged in.
    size: (width, height) of the network's input at scale 1; None for the default geometry (`network_size`).
    threshold: of the probability, protocol `paper` only.
    batch: frames at a time; None to choose by size and device.
  """

  model: pretrained.Model
  protocol: str = 'paper'
  scales: tuple[float, ...] = (1.0,)
  mirror: bool = False
  size: Size | None = None
  threshold: float = postprocess.PAPER_THRESHOLD
  batch: int | None = None

  def __post_init__(self):
    if self.protocol not in postprocess.PROTOCOLS:
      raise UsageError(f'unknown protocol {self.protocol!r}', 'protocol', f'one of {", ".join(postprocess.PROTOCOLS)}')
    if not self.scales or not all(0 < scale <= 8 for scale in self.scales):
      raise UsageError(f'scales are {self.scales}', 'scales', 'at least one factor above 0, at most 8')
    if self.size is not None and not all(8 <= side <= 8192 for side in self.size):
      raise UsageError(f'size is {self.size[0]}x{self.size[1]}', 'size', 'each side from 8 to 8192 pixels')
    if not 0 <= self.threshold <= 1:
      raise UsageError(f'threshold is {self.threshold}', 'threshold', 'a probability from 0 to 1')
    if self.protocol == 'released' and self.threshold != postprocess.PAPER_THRESHOLD:
      raise UsageError('the protocol released has a threshold of its own', 'protocol, threshold', 'leave out threshold')
    if self.batch is not None and self.batch < 1:
      raise UsageError(f'batch is {self.batch}', 'batch', 'at least 1')

  @classmethod
  def from_pretrained(cls, name_or_path: str | Path = weights.DEFAULT_MODEL, *, protocol: str = 'paper',
                      scales: Sequence[float] = (1.0,), mirror: bool = False, size: Size | None = None,
                      threshold: float = postprocess.PAPER_THRESHOLD, batch: int | None = None,
                      device: str | None = None, dtype: str | None = None) -> Segmenter:
    """A segmenter with a model known by name or given as a file; arguments as the attributes and `load_model`."""
    return cls(pretrained.load_model(name_or_path, device=device, dtype=dtype), protocol, tuple(scales), mirror,
               None if size is None else tuple(size), threshold, batch)

  def base_size(self, frame: np.ndarray) -> Size:
    """(width, height) of the network's input at scale 1 for a clip whose anchor is `frame`."""
    if self.size is not None:
      return self.size
    if self.protocol == 'released':
      return RELEASED_SIZE
    return network_size((frame.shape[1], frame.shape[0]), self.model.metadata.size)

  def session(self, anchor: np.ndarray) -> Session:
    """Live state for one clip: (h, w, 3) uint8 RGB anchor -> something to `step` frame by frame."""
    return Session(self, anchor)

  def segment(self, frames: Iterable[np.ndarray], soft: bool = False, *,
              anchor: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Masks of a clip's frames, lazily, a batch or two behind the frames.

    Args:
      frames: (h, w, 3) uint8 RGB arrays; sizes may change within the clip.
      soft: probabilities instead of masks.
      anchor: (h, w, 3) uint8 RGB; None for the first frame.

    Yields:
      (h, w) bool of each frame's own size, or float32 in [0, 1].
    """
    for result in self.results(frames, soft=soft, anchor=anchor):
      yield result.probability if soft else result.mask  # type: ignore[misc]

  def results(self, frames: Iterable[np.ndarray], *, soft: bool = False, anchor: np.ndarray | None = None,
              reference: np.ndarray | None = None) -> Iterator[Result]:
    """`segment` with masks and, if `soft`, probabilities.

    Args:
      frames: as in `segment`.
      soft: whether results hold probabilities.
      anchor: as in `segment`.
      reference: protocol `released`: (h, w) bool, ungated foreground of the frame before the first one.
    """
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
      return
    session = Session(self, first if anchor is None else anchor, reference=reference)
    waiting: collections.deque = collections.deque()
    for group in _batches(_chain(first, iterator), lambda frame: self.batch_for(session.base, frame)):
      waiting.append((group, session.dispatch(group, soft)))
      # One batch is computed while the one before is fetched and the next one read.
      if len(waiting) > 1:
        yield from session.collect(*waiting.popleft(), soft)
    while waiting:
      yield from session.collect(*waiting.popleft(), soft)

  def batch_for(self, base: Size, frame: np.ndarray) -> int:
    """Frames at a time: `batch`, or by the network's input size and the platform, bounded by the masks' memory."""
    devices = len(self.model.devices)
    if self.batch is not None:
      return -(-self.batch // devices) * devices
    pixels = base[0] * base[1] * max(self.scales) ** 2
    on_cpu = self.model.devices[0].platform == 'cpu'
    wanted = min(8, 1_000_000 / pixels) if on_cpu else min(16, 8_000_000 / pixels) * devices
    allowed = UPSAMPLED_BYTES / (4 * frame.shape[0] * frame.shape[1])
    return max(1, int(min(wanted, allowed)) // devices) * devices


class Session:
  """A clip being segmented: its anchor's embeddings and, for the protocol `released`, the last frame's foreground.

  Not for several threads at once; the Segmenter behind it is.

  Attributes:
    base: (width, height) of the network's input at scale 1.
  """

  def __init__(self, segmenter: Segmenter, anchor: np.ndarray, *, reference: np.ndarray | None = None):
    self._segmenter = segmenter
    self._reference = reference
    self.set_anchor(anchor)

  def set_anchor(self, frame: np.ndarray) -> None:
    """Makes `frame`, (h, w, 3) uint8 RGB, the anchor of the frames that follow."""
    segmenter = self._segmenter
    _check_frame(frame)
    self.base = segmenter.base_size(frame)
    self._views: list[tuple[Size, bool, jax.Array | None]] = []
    for scale in segmenter.scales:
      size = self.base if scale == 1 else tuple(eight_k_plus_one(side * scale) for side in self.base)
      for mirror in (False, True) if segmenter.mirror else (False,):
        embedding = None
        if segmenter.model.uses_anchor:
          embedding = segmenter.model.embed(_resized([frame], size), mirror=mirror)
        self._views.append((size, mirror, embedding))

  def step(self, frame: np.ndarray, soft: bool = False) -> np.ndarray:
    """Mask of one frame: (h, w, 3) uint8 RGB -> (h, w) bool, or float32 probability if `soft`."""
    devices = len(self._segmenter.model.devices)
    group = ([frame], devices)
    result = next(self.collect(group, self.dispatch(group, soft), soft))
    return result.probability if soft else result.mask  # type: ignore[return-value]

  def dispatch(self, group: tuple[list[np.ndarray], int], soft: bool) -> jax.Array | None:
    """Starts computing a batch of frames of one size; None where the device had no memory for it."""
    frames, padded = group
    try:
      return self._compute(frames, padded, soft)
    except jax.errors.JaxRuntimeError as error:
      _reraise_unless_memory(error)
      return None

  def _compute(self, frames: list[np.ndarray], padded: int, soft: bool) -> jax.Array:
    """Mean over scales and mirror of (padded, h, w): logits (`released`), probabilities, or the mask itself."""
    segmenter, total = self._segmenter, None
    for frame in frames:
      _check_frame(frame)
    for size, mirror, anchor in self._views:
      images = _resized(frames, size)
      if len(frames) < padded:  # the last batch is padded rather than compiled anew
        images = np.concatenate([images, np.zeros((padded - len(frames), *images.shape[1:]), np.uint8)])
      z = segmenter.model.upsampled_logits(anchor, images, frames[0].shape[:2], mirror=mirror)
      z = z if segmenter.protocol == 'released' else jax.nn.sigmoid(z)
      total = z if total is None else total + z
    assert total is not None
    mean = total / len(self._views)
    # A mask is a quarter of the bytes to bring back.
    return mean if soft or segmenter.protocol == 'released' else mean > jnp.float32(segmenter.threshold)

  def collect(self, group: tuple[list[np.ndarray], int], output: jax.Array | None, soft: bool) -> Iterator[Result]:
    """Results of a dispatched batch, in order; smaller batches where the device's memory did not do (fault 10)."""
    frames, padded = group
    values = None
    if output is not None:
      try:
        values = np.asarray(output)
      except jax.errors.JaxRuntimeError as error:
        _reraise_unless_memory(error)
    if values is None:
      yield from self._collect_halves(frames, padded, soft)
      return
    for frame_values in values[:len(frames)]:
      yield self._finish(frame_values, soft)

  def _collect_halves(self, frames: list[np.ndarray], padded: int, soft: bool) -> Iterator[Result]:
    devices = len(self._segmenter.model.devices)
    half = padded // 2 // devices * devices
    if half < devices:
      width, height = self._views[-1][0]
      raise DeviceError(f'out of device memory at {width}x{height} with one frame a device', self._segmenter.model.devices[0],
                        'give a smaller --size, fewer --scales, or --device cpu')
    logging.warning('out of device memory with %d frames at a time; going on with %d', padded, half)
    for start in range(0, len(frames), half):
      group = (frames[start:start + half], half)
      yield from self.collect(group, self.dispatch(group, soft), soft)

  def _finish(self, values: np.ndarray, soft: bool) -> Result:
    segmenter = self._segmenter
    if segmenter.protocol == 'released':
      mask, self._reference = postprocess.released_step(values, self._reference)
      return Result(mask, postprocess.mean_heatmap([values]) if soft else None)
    if soft:
      return Result(postprocess.paper_mask(values, segmenter.threshold), values)
    return Result(values)


def _reraise_unless_memory(error: Exception) -> None:
  if 'RESOURCE_EXHAUSTED' not in str(error) and 'out of memory' not in str(error).lower():
    raise DeviceError(f'the device failed: {str(error).splitlines()[0]}', None, 'adnet doctor shows what is there') from error


def _check_frame(frame: np.ndarray) -> None:
  if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
    found = f'{frame.dtype} {frame.shape}' if isinstance(frame, np.ndarray) else type(frame).__name__
    raise ValueError(f'frames are (h, w, 3) uint8 RGB arrays, got {found}')
  if 0 in frame.shape:
    raise ValueError('frame without pixels')


def _resized(frames: Sequence[np.ndarray], size: Size) -> np.ndarray:
  """(b, height, width, 3) uint8: OpenCV's bilinear resizing, as the released program's."""
  return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in frames])


def _chain(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
  yield first
  yield from rest


def _batches(frames: Iterator[np.ndarray], batch_for) -> Iterator[tuple[list[np.ndarray], int]]:
  """Groups of consecutive frames of one size, with the batch they are padded to."""
  group: list[np.ndarray] = []
  for frame in frames:
    if group and (frame.shape != group[0].shape or len(group) == batch_for(group[0])):
      yield group, batch_for(group[0])
      group = []
    group.append(frame)
  if group:
    yield group, batch_for(group[0])
