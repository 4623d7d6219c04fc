"""Tracks: boxes of consecutive frames joined by their overlap; knows arrays of boxes only, not where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

# The paper names the criterion and no number. Low, so that a fast object stays one track: boxes compete for the best
# partner anyway.
LINK_IOU = 0.1
# Frames in which a detector may miss an object before its track ends.
LONGEST_GAP = 5

_ROWS = 64  # compared at a time


def box_iou(boxes: np.ndarray, others: np.ndarray, edge: float = 0) -> np.ndarray:
  """Intersection over union of each box with each other one.

  Args:
    boxes: (m, 4) float64, corners x1, y1, x2, y2 with x1 <= x2 and y1 <= y2.
    others: (n, 4) float64, likewise.
    edge: added to each side's length; 1 where corners are the first and last pixel, as the released program takes them.

  Returns:
    (m, n) float64 in [0, 1]; 0 where the union is empty.
  """
  sides = np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - np.maximum(boxes[:, None, :2], others[None, :, :2])
  common = np.maximum(sides + edge, 0).prod(axis=-1)  # (m, n)
  area, other_area = ((one[:, 2:] - one[:, :2] + edge).prod(axis=-1) for one in (boxes, others))
  union = area[:, None] + other_area - common
  return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def count_overlaps(boxes: np.ndarray, others: np.ndarray, iou: float, edge: float = 0) -> np.ndarray:
  """(m,) int64: how many of the (n, 4) `others` overlap each of the (m, 4) `boxes` by more than `iou` >= 0."""
  counts = np.zeros(len(boxes), np.int64)
  for rows, _, overlap in _overlapping(boxes, others, edge):
    counts[rows] = np.count_nonzero(overlap > iou, axis=1)
  return counts


def link(frames: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Joins boxes to tracks: each frame's boxes with the last boxes of the tracks so far, best overlap first.

  Args:
    frames: per frame (n, 4) float64 boxes as those of `box_iou`; n may be 0.

  Returns:
    Per frame (n,) int64, the number of each box's track, from 0 in order of appearance. A track has at most one box a
    frame and at most LONGEST_GAP frames without one in between.

  Source: section 3 of the paper, "intersection-over-union criterion between consecutive bounding boxes".
  """
  numbers = []
  count = 0
  last_box = np.zeros((0, 4))
  last_frame = track = np.zeros(0, np.int64)
  for now, boxes in enumerate(frames):
    alive = now - last_frame <= LONGEST_GAP + 1
    last_box, last_frame, track = last_box[alive], last_frame[alive], track[alive]
    old, mine = _best_pairs(last_box, boxes)
    number = np.full(len(boxes), -1, np.int64)
    number[mine] = track[old]
    new = np.flatnonzero(number < 0)
    number[new] = count + np.arange(len(new))
    count += len(new)
    waiting = np.ones(len(track), bool)
    waiting[old] = False
    last_box = np.concatenate([last_box[waiting], boxes])
    last_frame = np.concatenate([last_frame[waiting], np.full(len(boxes), now)])
    track = np.concatenate([track[waiting], number])
    numbers.append(number)
  return numbers


def _best_pairs(last: np.ndarray, boxes: np.ndarray) -> tuple[list[int], list[int]]:
  """Pairs of rows of both, each row once, by falling overlap; on ties the one that appeared first."""
  found: list[tuple[float, int, int]] = []
  for rows, columns, overlap in _overlapping(last, boxes):
    near = overlap > LINK_IOU
    row, column = np.nonzero(near)
    found += zip((-overlap[near]).tolist(), rows[row].tolist(), columns[column].tolist(), strict=True)
  pairs: dict[int, int] = {}
  taken = set()
  for _, one, other in sorted(found):
    if one not in pairs and other not in taken:
      pairs[one] = other
      taken.add(other)
  return list(pairs), list(pairs.values())


def _overlapping(
  boxes: np.ndarray, others: np.ndarray, edge: float = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Rows of `boxes`, those of `others` that they may overlap, and the overlap of each with each.

  Noise has thousands of components a frame, so only those are compared that lie side by side.
  """
  # Rows of like width first: one wide box would have all of its part compared with everything.
  order = np.lexsort((boxes[:, 0], np.frexp(boxes[:, 2] - boxes[:, 0])[1]))
  for start in range(0, len(order), _ROWS):
    rows = order[start : start + _ROWS]
    left, right = boxes[rows, 0].min() - edge, boxes[rows, 2].max() + edge
    columns = np.flatnonzero((others[:, 0] <= right) & (others[:, 2] >= left))
    yield rows, columns, box_iou(boxes[rows], others[columns], edge)
