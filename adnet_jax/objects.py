"""Which of a clip's moving things a mask shows: its pieces, joined over frames to tracks; knows arrays only."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from adnet_jax import tracks
from adnet_jax.instances import components

# Pieces of one object, cut apart by a pole or a thin limb: closer than this share of the picture's diagonal.
REACH = 0.01
# Pieces of a frame that are followed: noise has thousands.
PIECES = 32


def pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Groups of a mask's components that lie close to each other.

  Args:
    mask: (h, w) bool.

  Returns:
    labels: (h, w) int32, 0 for background and what is too small to be followed, k + 1 for piece k.
    boxes: (n, 4) float64, corners x1, y1, x2, y2; n is at most PIECES.
    areas: (n,) float64, pixels, largest first.
  """
  reach = max(1, round(REACH * float(np.hypot(*mask.shape)) / 2))
  kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
  wide, _, _ = components(cv2.dilate(mask.astype(np.uint8), kernel).astype(bool))
  labels = np.where(mask, wide, 0)
  counts = np.bincount(labels.ravel())[1:]
  order = np.argsort(-counts, kind='stable')[:PIECES]
  number = np.zeros(len(counts) + 1, np.int32)
  number[order + 1] = np.arange(1, len(order) + 1)
  labels = number[labels]
  boxes = np.zeros((len(order), 4))
  for k in range(len(order)):
    y, x = (np.flatnonzero((labels == k + 1).any(axis=axis)) for axis in (1, 0))
    boxes[k] = x[0], y[0], x[-1] + 1, y[-1] + 1
  return labels, boxes, counts[order].astype(np.float64)


def choose(boxes: Sequence[np.ndarray], areas: Sequence[np.ndarray], rank: int) -> list[int]:
  """The piece of each frame that belongs to the `rank`-th largest track of the shot.

  Args:
    boxes: per frame (n, 4) float64, as `pieces` gives them.
    areas: per frame (n,) float64.
    rank: from 1, by the pixels that a track covers in all frames together.

  Returns:
    Per frame the number of the piece, from 0; -1 where the track, or a track of this rank, is not there.
  """
  linked = tracks.link(boxes)
  numbers = np.concatenate([np.zeros(0, np.int64), *linked])
  if not len(numbers):
    return [-1] * len(boxes)
  total = np.bincount(numbers, np.concatenate([np.zeros(0), *areas]))
  if rank > len(total):
    return [-1] * len(boxes)
  chosen = np.argsort(-total, kind='stable')[rank - 1]
  found = [np.flatnonzero(one == chosen) for one in linked]
  return [int(one[0]) if len(one) else -1 for one in found]
