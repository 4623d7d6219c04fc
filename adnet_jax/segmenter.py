"""Frames in, masks out, one clip at a time, in memory that does not depend on its length; knows no files."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from adnet_jax import anchors, exported, postprocess, pretrained, refinement, weights
from adnet_jax.errors import UsageError
from adnet_jax.geometry import RELEASED_SIZE, Size, check_frame, network_size
from adnet_jax.session import Batch, Result, Session

# Pixels of the network's input that a CPU computes at a time: more are no faster, and the first mask comes later.
CPU_BATCH_PIXELS = 500_000
# Bytes of up-sampled float32 numbers at a time; how many there are for each pixel where masks are refined.
UPSAMPLED_BYTES = 256 * 2**20
REFINED_NUMBERS = 8
# The share of an accelerator's free memory that a batch may take, and what it takes there for each pixel of the
# network's input and byte of its numbers: for ResNet-101 at stride 8 XLA plans 413, before what cuDNN works in.
MEMORY_SHARE = 0.5
PIXEL_BYTES = 500


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
    refine: how far probabilities are refined along edges (refinement.py), in pixels of the network's input; 0 for not
      at all, None for what the model's file recommends (`refine_radius`). Protocol `paper` only.
  """

  model: pretrained.Model | exported.ExportedModel
  protocol: str = 'paper'
  scales: tuple[float, ...] = (1.0,)
  mirror: bool = False
  size: Size | None = None
  threshold: float = postprocess.PAPER_THRESHOLD
  batch: int | None = None
  refine: int | None = None

  def __post_init__(self):
    _check_options(self.protocol, self.scales, self.size, self.threshold, self.batch, self.refine)

  @classmethod
  def from_pretrained(
    cls,
    name_or_path: str | Path = weights.DEFAULT_MODEL,
    protocol: str = 'paper',
    scales: Sequence[float] = (1.0,),
    mirror: bool = False,
    size: Size | None = None,
    *,
    threshold: float = postprocess.PAPER_THRESHOLD,
    batch: int | None = None,
    refine: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
  ) -> Segmenter:
    """A segmenter with a model known by name or given as a file; arguments as the attributes and `load_model`."""
    scales = tuple(scales)
    _check_options(protocol, scales, size, threshold, batch, refine)  # before the model is loaded
    model = pretrained.load_model(name_or_path, device=device, dtype=dtype)
    size = None if size is None else (size[0], size[1])
    return cls(model, protocol, scales, mirror, size, threshold, batch, refine)

  def refine_radius(self, base: Size) -> int:
    """Pixels of a network's input of `base`, 0 where nothing is refined: what `refine` comes to.

    The model's recommendation is for its own size; at others it is a square of the same share of the frame.
    """
    if self.protocol == 'released':
      return 0
    if self.refine is not None:
      return self.refine
    recommended, usual = self.model.metadata.refine, self.model.metadata.size
    if not recommended:
      return 0
    return max(refinement.STEP, round(recommended * math.sqrt(base[0] * base[1] / (usual[0] * usual[1]))))

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

  def segment(
    self,
    frames: Iterable[np.ndarray],
    soft: bool = False,
    *,
    anchor: np.ndarray | str | None = None,
    reanchor: int | None = None,
  ) -> Iterator[np.ndarray]:
    """Masks of a clip's frames, lazily, a batch or two behind the frames.

    Args:
      frames: (h, w, 3) uint8 RGB arrays; sizes may change within the clip.
      soft: probabilities instead of masks.
      anchor: (h, w, 3) uint8 RGB; None or 'first' for the first frame; 'auto' for the first frame of each shot.
      reanchor: every how many frames of a shot the frame becomes the anchor; None for never.

    Yields:
      (h, w) bool of each frame's own size, or float32 in [0, 1].
    """
    numbered = (anchors.Numbered(index, frame) for index, frame in enumerate(frames))
    if isinstance(anchor, np.ndarray):
      given = anchors.Anchor(-1, anchor)
      pairs: Iterator = ((frame, given) for frame in numbered)
      pairs = pairs if reanchor is None else anchors.renewed(pairs, reanchor)
    else:
      if anchor not in (None, 'first', 'auto'):
        raise UsageError(f'unknown anchor {anchor!r}', 'anchor', "'first', 'auto' or a frame")
      pairs = anchors.streamed(numbered, anchor or 'first', reanchor)
    for result in self.anchored_results(((frame.image, its) for frame, its in pairs), soft=soft):
      yield result.probability if soft else result.mask  # type: ignore[misc]

  def results(
    self,
    frames: Iterable[np.ndarray],
    *,
    soft: bool = False,
    anchor: np.ndarray | None = None,
    reference: np.ndarray | None = None,
  ) -> Iterator[Result]:
    """`segment` with masks and, if `soft`, probabilities.

    Args:
      frames: as in `segment`.
      soft: whether results hold probabilities.
      anchor: (h, w, 3) uint8 RGB; None for the first frame.
      reference: protocol `released`: (h, w) bool, ungated foreground of the frame before the first one.
    """

    def pairs() -> Iterator[tuple[np.ndarray, anchors.Anchor]]:
      given = None if anchor is None else anchors.Anchor(0, anchor)
      for frame in frames:
        given = given or anchors.Anchor(0, frame)
        yield frame, given

    return self.anchored_results(pairs(), soft=soft, reference=reference)

  def anchored_results(
    self,
    frames: Iterable[tuple[np.ndarray, anchors.Anchor]],
    *,
    soft: bool = False,
    reference: np.ndarray | None = None,
  ) -> Iterator[Result]:
    """`results` of frames that each come with the anchor to compare them with; at a new shot the gate starts anew."""
    session: Session | None = None
    shot = 0
    for anchor, run in itertools.groupby(frames, key=lambda pair: pair[1]):
      if session is None:
        session = Session(self, anchor.image, reference=reference)
      else:
        session.set_anchor(anchor.image, new_shot=anchor.shot != shot)
      shot = anchor.shot
      waiting: collections.deque[Batch] = collections.deque()
      for group, padded in _groups((frame for frame, _ in run), session.batch_for):
        waiting.append(session.dispatch(group, padded, soft))
        # One batch is computed while the one before is fetched and the next one read.
        if len(waiting) > 1:
          yield from session.collect(waiting.popleft())
      # Before the anchor changes: what does not fit into memory is computed again with the session's own.
      while waiting:
        yield from session.collect(waiting.popleft())

  def batch_for(self, base: Size, frame: np.ndarray) -> int:
    """Frames at a time: `batch`, or by the network's input size, the platform and its free memory."""
    devices = len(self.model.devices)
    if self.batch is not None:
      return -(-self.batch // devices) * devices
    pixels = base[0] * base[1] * max(self.scales) ** 2
    on_cpu = self.model.devices[0].platform == 'cpu'
    wanted = min(8, CPU_BATCH_PIXELS / pixels) if on_cpu else min(16, 8_000_000 / pixels) * devices
    numbers = REFINED_NUMBERS if self.refine_radius(base) else 1
    allowed = UPSAMPLED_BYTES / (4 * numbers * frame.shape[0] * frame.shape[1])
    memory = self.model.devices[0].memory_stats() or {}  # None where a platform does not tell
    if 'bytes_limit' in memory:
      free = memory['bytes_limit'] - memory.get('bytes_in_use', 0)
      wanted = min(wanted, MEMORY_SHARE * free / (PIXEL_BYTES * self.model.dtype.itemsize * pixels) * devices)
    return max(1, int(min(wanted, allowed)) // devices) * devices


def _check_options(
  protocol: str,
  scales: Sequence[float],
  size: Size | None,
  threshold: float,
  batch: int | None,
  refine: int | None,
) -> None:
  if protocol not in postprocess.PROTOCOLS:
    raise UsageError(f'unknown protocol {protocol!r}', 'protocol', f'one of {", ".join(postprocess.PROTOCOLS)}')
  if not scales or not all(0 < scale <= 8 for scale in scales):
    raise UsageError(f'scales are {tuple(scales)}', 'scales', 'at least one factor above 0, at most 8')
  if size is not None and (len(size) != 2 or not all(8 <= side <= 8192 for side in size)):
    raise UsageError(f'size is {"x".join(map(str, size))}', 'size', 'width and height, each from 8 to 8192 pixels')
  if not 0 <= threshold <= 1:
    raise UsageError(f'threshold is {threshold}', 'threshold', 'a probability from 0 to 1')
  if protocol == 'released' and threshold != postprocess.PAPER_THRESHOLD:
    raise UsageError('the protocol released has a threshold of its own', 'protocol, threshold', 'leave out threshold')
  if batch is not None and batch < 1:
    raise UsageError(f'batch is {batch}', 'batch', 'at least 1')
  if refine is not None and refine != 0 and not refinement.STEP <= refine <= 1024:
    raise UsageError(f'refine is {refine}', 'refine', f'0, or from {refinement.STEP} to 1024 pixels')
  if protocol == 'released' and refine:
    raise UsageError('the protocol released has no refinement', 'protocol, refine', 'leave out refine')


def _groups(
  frames: Iterable[np.ndarray], batch_for: Callable[[np.ndarray], int]
) -> Iterator[tuple[list[np.ndarray], int]]:
  """Groups of consecutive frames of one size, with the batch they are padded to."""
  group: list[np.ndarray] = []
  padded = 0
  for frame in frames:
    check_frame(frame)
    if group and (frame.shape != group[0].shape or len(group) == padded):
      yield group, padded
      group = []
    if not group:
      padded = batch_for(frame)
    group.append(frame)
  if group:
    yield group, padded
