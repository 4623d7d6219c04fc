"""Which frame is the anchor of which frames: the first, one by number, one a shot, the clearest; knows no files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import cv2
import numpy as np

from adnet_jax import shots
from adnet_jax.errors import DataError, UsageError
from adnet_jax.geometry import scaled
from adnet_jax.shots import P

if TYPE_CHECKING:
  from adnet_jax.segmenter import Segmenter
  from adnet_jax.sources import Source

T = TypeVar('T')

CHOICES = ('first', 'auto', 'best', 'auto-best')
# Frames of a shot among which the clearest is looked for, and the factor of the network's size at which it is.
CANDIDATES = 8
CANDIDATE_SCALE = 0.6


@dataclasses.dataclass(frozen=True, eq=False)
class Anchor:
  """An anchor frame and where it holds; frames that share one share the object.

  Attributes:
    index: its number in the clip, from 0.
    image: (h, w, 3) uint8 RGB.
    shot: number of the shot that it serves, from 0.
  """

  index: int
  image: np.ndarray
  shot: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Numbered:
  """A frame that is known by its number alone."""

  index: int
  image: np.ndarray


class Stretch(NamedTuple):
  """Frames from `start` on, to the next stretch, and the number of their anchor."""

  start: int
  anchor: int


def first_of_shots(frames: Iterable[tuple[P, int]]) -> Iterator[tuple[P, Anchor]]:
  """Frames with their shot's number (`shots.split`) -> frames with the first one of their shot as the anchor."""
  anchor = None
  for frame, shot in frames:
    if anchor is None or shot != anchor.shot:
      anchor = Anchor(frame.index, frame.image, shot)
    yield frame, anchor


def planned(frames: Iterable[P], plan: Sequence[Stretch], images: Iterator[np.ndarray]) -> Iterator[tuple[P, Anchor]]:
  """Frames with the anchors of a plan, whose images are taken one by one as they are needed."""
  shot = -1
  anchor = None
  for frame in frames:
    while anchor is None or (shot + 1 < len(plan) and frame.index >= plan[shot + 1].start):
      shot += 1
      anchor = Anchor(plan[shot].anchor, next(images), shot)
    yield frame, anchor


def renewed(frames: Iterable[tuple[P, Anchor]], every: int) -> Iterator[tuple[P, Anchor]]:
  """The same with a new anchor, the frame itself, at every `every`-th frame of a shot."""
  given: Anchor | None = None
  anchor: Anchor | None = None
  count = 0
  for frame, first in frames:
    if first is not given:
      given = anchor = first
      count = 0
    elif count % every == 0:
      anchor = Anchor(frame.index, frame.image, first.shot)
    count += 1
    assert anchor is not None
    yield frame, anchor


def streamed(frames: Iterable[P], choice: str, every: int | None) -> Iterator[tuple[P, Anchor]]:
  """Anchors that need no look ahead at the clip: `first` or `auto`, renewed or not."""
  pairs = first_of_shots(shots.split(frames) if choice == 'auto' else ((frame, 0) for frame in frames))
  return pairs if every is None else renewed(pairs, every)


def clearness(probability: np.ndarray, threshold: float) -> float:
  """How sure the network is of what is foreground: the Jaccard index that its probabilities let expect.

  Args:
    probability: (h, w) float32 in [0, 1].
    threshold: above which a pixel is foreground.

  Returns:
    The expected intersection of the mask with the true one over their expected union, in [0, 1], taking probabilities
    at their word; 0 without foreground, so that an empty scene is no anchor.
  """
  mask = probability > threshold
  inside = float(probability[mask].sum(dtype=np.float64))
  union = float(np.count_nonzero(mask)) + float(probability[~mask].sum(dtype=np.float64))
  return inside / union if union else 0.0


def make_plan(segmenter: Segmenter, source: Source, by_shots: bool) -> list[Stretch]:
  """The clearest of CANDIDATES frames of each shot, each seen as its own anchor; a clip without cuts is one shot.

  Reads the clip twice, of which the second time only candidates; the network sees these at CANDIDATE_SCALE.

  Raises:
    DataError: nothing of the clip can be read; one that breaks off is planned as far as it goes.
  """
  ranges = _ranges(source, by_shots)
  candidates: dict[int, int] = {}
  for shot, (start, count) in enumerate(ranges):
    # Evenly over the shot and its first frame, which wins where none is clearer.
    steps = sorted({round(step * count / CANDIDATES) for step in range(CANDIDATES)})
    candidates.update({start + step * source.every: shot for step in steps if step < count})
  best: dict[int, tuple[float, int]] = {}
  cheap: Segmenter | None = None
  for frame in _readable(source.only(candidates)):
    if cheap is None:
      size = scaled(segmenter.base_size(frame.image), CANDIDATE_SCALE)
      cheap = dataclasses.replace(
        segmenter, protocol='paper', size=size, scales=(1.0,), mirror=False, batch=1, refine=0
      )
    assert cheap.size is not None
    image = cv2.resize(frame.image, cheap.size, interpolation=cv2.INTER_LINEAR)
    score = clearness(cheap.session(image).step(image, soft=True), cheap.threshold)
    shot = candidates[frame.index]
    if shot not in best or score > best[shot][0]:
      best[shot] = score, frame.index
  return [Stretch(start, best[shot][1]) for shot, (start, _) in enumerate(ranges) if shot in best]


def _ranges(source: Source, by_shots: bool) -> list[tuple[int, int]]:
  """First frame and number of frames of each shot."""
  if not by_shots and source.kind == 'frames' and source.length:
    return [(source.start, source.length)]
  ranges: list[list[int]] = []
  frames = source.copy()
  for frame, shot in _readable(shots.split(frames) if by_shots else ((frame, 0) for frame in frames)):
    if shot == len(ranges):
      ranges.append([frame.index, 0])
    # Counted by numbers: frames that cannot be read leave gaps.
    ranges[shot][1] = (frame.index - ranges[shot][0]) // source.every + 1
  return [(start, count) for start, count in ranges]


def _readable(frames: Iterable[T]) -> Iterator[T]:
  """What comes before a frame that cannot be read; DataError where nothing does."""
  found = False
  try:
    for frame in frames:
      found = True
      yield frame
  except DataError:
    if not found:
      raise


def check_choice(choice: Any) -> None:
  """Raises UsageError unless `choice` is one of CHOICES, a number from 0, or None."""
  if choice is None or choice in CHOICES or (isinstance(choice, int) and choice >= 0):
    return
  raise UsageError(f'unknown anchor {choice!r}', 'anchor', f'{", ".join(CHOICES)} or the number of a frame, from 0')
