"""S-measure of a soft map against a mask; knows nothing of thresholds, clips or files."""

from __future__ import annotations

import math

import numpy as np

_EPSILON = np.spacing(1.0)  # Matlab's eps


def structure_measure(saliency: np.ndarray, truth: np.ndarray, *, halves_up: bool = False) -> float:
  """S-measure with alpha .5: half of it compares objects and background, half the four quadrants around the centroid.

  Args:
    saliency: (h, w) float64 in [0, 1].
    truth: (h, w) bool.
    halves_up: round a centroid exactly between two pixels up, as Matlab does, and not to the even one, as NumPy does.

  Returns:
    S in [0, 1], never nan. Without foreground in the truth 1 - mean of the map, without background its mean. A quadrant
    without pixels weighs nothing.

  Source: Fan et al., "Structure-measure: A New Way to Evaluate Foreground Maps", ICCV 2017. PySODMetrics rounds halves
  to even, StructureMeasure.m of DengPingFan/DAVSOD up; both have nan where a quadrant is empty.
  """
  wanted = np.count_nonzero(truth)
  if wanted in (0, truth.size):
    mean = float(saliency.mean())
    return mean if wanted else 1 - mean
  share = wanted / truth.size
  objects = share * _object_score(saliency[truth]) + (1 - share) * _object_score(1 - saliency[~truth])
  return max(0.0, float(0.5 * objects + 0.5 * _region_score(saliency, truth, halves_up)))


def _object_score(values: np.ndarray) -> float:
  mean = values.mean()
  deviation = values.std(ddof=1) if values.size > 1 else 0.0
  return 2 * mean / (mean**2 + 1 + deviation + _EPSILON)


def _region_score(saliency: np.ndarray, truth: np.ndarray, halves_up: bool) -> float:
  height, width = truth.shape
  row = _centre(np.count_nonzero(truth, axis=1), halves_up) + 1
  column = _centre(np.count_nonzero(truth, axis=0), halves_up) + 1
  score = 0.0
  for rows in (slice(0, row), slice(row, height)):
    for columns in (slice(0, column), slice(column, width)):
      part = saliency[rows, columns]
      if part.size:
        score += part.size / truth.size * _similarity(part, truth[rows, columns])
  return score


def _centre(counts: np.ndarray, halves_up: bool) -> int:
  """Mean index of what is counted, rounded."""
  mean = float(counts @ np.arange(counts.size)) / int(counts.sum())
  return math.floor(mean + 0.5) if halves_up else round(mean)


def _similarity(saliency: np.ndarray, truth: np.ndarray) -> float:
  """SSIM of one quadrant as a whole; 1 where both are constant, or both zero."""
  size, wanted = truth.size, np.count_nonzero(truth)
  mean, share = saliency.mean(), wanted / size
  # By deviations, not by sums of squares: whether a variance is exactly 0 decides between 0 and 1.
  deviations = saliency - mean
  freedom = size - 1 + _EPSILON
  variance = np.square(deviations).sum() / freedom
  truth_variance = wanted * (1 - share) / freedom
  if 0 < wanted < size:
    above = deviations.sum(where=truth)
    covariance = (above - share * deviations.sum()) / freedom
  else:
    covariance = 0.0
  alpha = 4 * mean * share * covariance
  beta = (mean**2 + share**2) * (variance + truth_variance)
  if alpha:
    return alpha / (beta + _EPSILON)
  return 0.0 if beta else 1.0
