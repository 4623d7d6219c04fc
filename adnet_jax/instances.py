"""Instance pruning as the paper has it: which instances of a clip are background, from arrays; knows no files.

The paper describes the procedure twice, in section 3 (tracks, cumulative area) and as Algorithm 1 (appendix E), and
neither runs as printed. What was decided, in the order of the algorithm:

1.  E holds detections, one a frame and object: M of them in N frames. "Size" and "Area" are pixels of the instance's
    mask, as section 3 sums "the area of instance masks"; the released program takes the box's area.
2.  Frames run from 0 to N - 1, not from 1 to N, and the result is X', not X.
3.  `size_low`, the area of the N-th largest detection, is meant to be the foreground's own size where it is smallest,
    which holds if it is detected in every frame, and is undefined where M < N. So N is here the number of detections
    that belong to large tracks (see 10), at most N: the printed number wherever the foreground is always detected.
4.  `count` is set to 0 within the inner loop, so that it never passes 1: it is set before that loop. It counts
    detections of the whole clip, the instance itself included, as the released program does. `support` is strict.
5.  `GetPruningMask` is given all of T and uses T_t: those of the frame.
6.  It looks for the frame's target among T_t, which are smaller than `size_low` by construction while a target is
    larger: nothing would ever be pruned. The text has it right ("much smaller than the largest instance in the current
    frame"): the target is the largest of b_t, all of the frame's instances, which the algorithm binds and never uses.
7.  It reads T_t[0] before it asks whether there is one, and T_t[1] without asking: a missing second has size 0.
8.  A target is larger than or equal to `size_low`. Strictly larger, an object of constant size would never be one.
9.  It collects what is to be removed, and the prediction is multiplied by the result: by its complement, then. Pixels
    that also belong to the target's mask stay.
10. Section 3 wants objects pruned by their tracks' cumulative area, "small objects or objects that are only present in
    a fraction of the video", and gives no number. A track is small if its area, summed over frames, is less than a
    third of the largest track's (the algorithm's own "much smaller"). Only small tracks are pruned, and of these
    'static' ones, with the support of SmallStatic for more than half of their instances, and 'brief' ones, present in
    no more than half of the frames (the complement of that support). So an object is judged once, not frame by frame,
    and a small one that moves through the whole clip stays. This takes the place of SmallStatic's Size(b_i) <
    `size_low`: a foreground that is hidden in a single frame would make nothing small in the whole clip.
11. Within a frame Algorithm 1 has the last word: without a target nothing is removed, and what is removed is smaller
    than a third of the target.
12. Static means static in the image. Where the camera pans past a small object that stays in view for more than half
    of the clip, the object counts as moving and stays. An object that leaves its own box from one frame to the next
    has no track, and counts as brief in each frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from adnet_jax import tracks as linking

STATIC_IOU = 0.6
SUPPORT = 0.5  # of the clip's frames
DOMINANCE = 2  # times the second largest instance of the frame
MUCH_SMALLER = 3  # times smaller than the target


@dataclass(frozen=True)
class Instances:
  """All instances of a clip, whatever found them, ordered by frame.

  Attributes:
    frames: of the clip, with or without instances.
    frame: (m,) int64, number of each instance's frame from 0, never falling.
    boxes: (m, 4) float64, corners x1, y1, x2, y2 in pixels.
    areas: (m,) float64, pixels of the masks.
    classes: (m,) int64, the detector's class; -1 where there is none.
  """

  frames: int
  frame: np.ndarray
  boxes: np.ndarray
  areas: np.ndarray
  classes: np.ndarray

  @classmethod
  def gather(
    cls, boxes: Sequence[np.ndarray], areas: Sequence[np.ndarray], classes: Sequence[np.ndarray] | None = None
  ) -> Instances:
    """From arrays per frame: (n, 4) boxes, (n,) areas and (n,) classes."""
    counts = [len(one) for one in areas]
    frame = np.repeat(np.arange(len(counts)), counts)
    joined = np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float64)
    sizes = np.concatenate([np.zeros(0), *areas]).astype(np.float64)
    kinds = np.full(len(frame), -1) if classes is None else np.concatenate([np.zeros(0, np.int64), *classes])
    return cls(len(counts), frame, joined, sizes, kinds)

  def by_frame(self) -> Iterator[slice]:
    """The rows of each frame, for all frames in order."""
    edges = np.searchsorted(self.frame, np.arange(self.frames + 1))
    for start, end in itertools.pairwise(edges):
      yield slice(int(start), int(end))


@dataclass(frozen=True)
class Pruned:
  """What the paper's procedure removes from a clip.

  Attributes:
    track: (m,) int64, each instance's track, from 0.
    reasons: by track: 'static' or 'brief'; tracks that are kept are left out.
    size_low: of Algorithm 1, in pixels; 0 for a clip without instances.
    removed: (m,) bool.
    target: (frames,) int64, row of each frame's target; -1 where it has none.
  """

  track: np.ndarray
  reasons: dict[int, str]
  size_low: float
  removed: np.ndarray
  target: np.ndarray


def prune(clip: Instances) -> Pruned:
  """Section 3 and Algorithm 1 of the paper, as the module's text resolves them."""
  track = np.concatenate([np.zeros(0, np.int64), *linking.link([clip.boxes[rows] for rows in clip.by_frame()])])
  removed, target = np.zeros(len(track), bool), np.full(clip.frames, -1, np.int64)
  if not len(track):
    return Pruned(track, {}, 0.0, removed, target)
  cumulative = np.bincount(track, clip.areas)
  large = cumulative * MUCH_SMALLER >= cumulative.max()
  size_low = smallest_foreground(clip.areas, min(clip.frames, int(large[track].sum())))
  reasons = background_tracks(clip, track, ~large)
  background = np.isin(track, list(reasons))
  for number, rows in enumerate(clip.by_frame()):
    row = find_target(clip.areas[rows], size_low)
    if row is not None:
      target[number] = rows.start + row
      removed[rows] = background[rows] & (clip.areas[rows] * MUCH_SMALLER < clip.areas[target[number]])
  return Pruned(track, reasons, size_low, removed, target)


def smallest_foreground(areas: np.ndarray, count: int) -> float:
  """Area of the `count`-th largest instance: Algorithm 1's `size_low`, 'Area(Sort(E)[-N])'."""
  return float(np.sort(areas)[-count])


def background_tracks(clip: Instances, track: np.ndarray, small: np.ndarray) -> dict[int, str]:
  """Small tracks that are 'static' or 'brief', by number.

  Args:
    clip: of m instances.
    track: (m,) int64, each one's track.
    small: (tracks,) bool.
  """
  lengths = np.bincount(track)
  brief = small & (lengths <= SUPPORT * clip.frames)
  rows = np.flatnonzero((small & ~brief)[track])
  static = np.zeros(len(track), bool)
  static[rows] = linking.count_overlaps(clip.boxes[rows], clip.boxes, STATIC_IOU) > SUPPORT * clip.frames
  mostly_static = np.bincount(track, static) > lengths / 2
  return {int(one): 'brief' if brief[one] else 'static' for one in np.flatnonzero(brief | mostly_static)}


def find_target(areas: np.ndarray, size_low: float) -> int | None:
  """The largest of a frame's (n,) areas, if it is no smaller than `size_low` and more than twice the second one."""
  if not len(areas):
    return None
  order = np.argsort(areas, kind='stable')
  second = areas[order[-2]] if len(areas) > 1 else 0
  row = int(order[-1])
  return row if areas[row] >= size_low and areas[row] > DOMINANCE * second else None


def pruning_mask(shape: tuple[int, int], removed: Iterable[np.ndarray], target: np.ndarray | None = None) -> np.ndarray:
  """What a prediction is multiplied by: (h, w) bool, false on the removed (h, w) bool masks outside of the target."""
  keep = np.ones(shape, bool)
  for mask in removed:
    keep &= ~mask
  return keep if target is None else keep | target


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """A mask's connected components, which stand for instances where there is no detector.

  Args:
    mask: (h, w) bool.

  Returns:
    labels: (h, w) int32, 0 for background, k + 1 for component k; pixels that touch at a corner are connected.
    boxes: (n, 4) float64, corners x1, y1, x2, y2.
    areas: (n,) float64, pixels.
  """
  _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
  left, top, width, height, area = stats[1:].T.astype(np.float64)
  return labels, np.stack([left, top, left + width, top + height], axis=1), area
