"""E-measure of binary maps from their confusion counts; knows nothing of thresholds or of images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_EPSILON = np.spacing(1.0)  # Matlab's eps


def enhanced_alignment(found: ArrayLike, predicted: ArrayLike, wanted: int, size: int) -> np.ndarray:
  """E-measure, the mean of an enhanced alignment matrix, without the matrix: it holds four different values at most.

  Args:
    found: any shape, int: pixels both predicted and wanted.
    predicted: int, the shape of `found`: pixels predicted.
    wanted: pixels of the annotation's foreground.
    size: pixels of the image, at least 1.

  Returns:
    float64 of the shape of `found`, from 0 to size / (size - 1), never nan: the matrix is summed and divided by
    size - 1, so a perfect map comes out a little above 1. An annotation without foreground, or without background,
    counts the pixels on the right side. An image of one pixel, where the formula divides by nothing, has 0 or 1.

  Source: Fan et al., "Enhanced-alignment Measure for Binary Foreground Map Evaluation", IJCAI 2018; as PySODMetrics.
  """
  found, predicted = np.asarray(found, np.float64), np.asarray(predicted, np.float64)
  if wanted == 0:
    total = size - predicted
  elif wanted == size:
    total = predicted
  else:
    missed = wanted - found
    mean, wanted_mean = predicted / size, wanted / size
    total = (
      found * _enhanced(1 - mean, 1 - wanted_mean)
      + (predicted - found) * _enhanced(1 - mean, -wanted_mean)
      + missed * _enhanced(-mean, 1 - wanted_mean)
      + (size - predicted - missed) * _enhanced(-mean, -wanted_mean)
    )
  return total / max(size - 1, 1)


def _enhanced(prediction: np.ndarray, truth: float) -> np.ndarray:
  """The matrix' value where prediction and truth, less their means, have these values."""
  alignment = 2 * prediction * truth / (prediction**2 + truth**2 + _EPSILON)
  return (alignment + 1) ** 2 / 4
