"""Contour accuracy F of two masks; knows nothing of clips or files."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np

from adnet_jax.metrics.region import check_pair


def boundary_map(mask: np.ndarray) -> np.ndarray:
  """Marks the pixels of a mask that differ from their east, south or south-east neighbour.

  The line is one pixel wide and lies half a pixel to the upper left of the true edge. Nothing is drawn where foreground
  meets the image's own border.

  Args:
    mask: (h, w) bool.

  Returns:
    (h, w) bool. In the last row only the east neighbour counts, in the last column only the south one; the bottom right
    pixel is never set.

  Source: seg2bmap of fperazzi/davis, after Martin, Fowlkes and Malik's.
  """
  boundary = np.zeros(mask.shape, bool)
  boundary[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
  boundary[:-1] |= mask[:-1] ^ mask[1:]
  boundary[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
  return boundary


def contour_accuracy(prediction: np.ndarray, truth: np.ndarray, tolerance: float = 0.008) -> float:
  """F of DAVIS-2016: harmonic mean of the precision and recall of boundary pixels, matched within a radius.

  There is no one-to-one matching: a boundary pixel counts as found where the other boundary, dilated by a filled
  Euclidean disk, covers it.

  Args:
    prediction: (h, w) bool.
    truth: (h, w) bool.
    tolerance: below 1 a share of the image's diagonal, rounded up to whole pixels; from 1 on a radius in pixels.

  Returns:
    F in [0, 1], never nan. 1 where neither mask has a boundary (an empty mask and a full one have none), 0 where just
    one has.

  Raises:
    ValueError: the arrays are not bool, not two-dimensional or of different shapes; or the tolerance is negative.

  Source: db_eval_boundary of fperazzi/davis (CVPR 2016).
  """
  check_pair(prediction, truth)
  if tolerance < 0:
    raise ValueError(f'tolerance must not be negative, got {tolerance}')
  found, wanted = boundary_map(prediction), boundary_map(truth)
  found_count, wanted_count = np.count_nonzero(found), np.count_nonzero(wanted)
  if not found_count or not wanted_count:
    return float(found_count == wanted_count)
  radius = tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(*truth.shape))
  precision = np.count_nonzero(found & _dilated(wanted, radius)) / found_count
  recall = np.count_nonzero(wanted & _dilated(found, radius)) / wanted_count
  return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _dilated(boundary: np.ndarray, radius: float) -> np.ndarray:
  return cv2.dilate(boundary.view(np.uint8), _disk(radius)).view(bool)


@functools.cache
def _disk(radius: float) -> np.ndarray:
  offsets = np.arange(-math.floor(radius), math.floor(radius) + 1)
  return (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.uint8)
