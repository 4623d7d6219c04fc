"""Region similarity J of two masks; knows nothing of clips or files."""

from __future__ import annotations

import numpy as np


def jaccard(prediction: np.ndarray, truth: np.ndarray) -> float:
  """Intersection over union of two masks, J of DAVIS-2016.

  Args:
    prediction: (h, w) bool.
    truth: (h, w) bool.

  Returns:
    J in [0, 1]; 1 where both masks are empty, 0 where just one is. Never nan.

  Raises:
    ValueError: the arrays are not bool, not two-dimensional or of different shapes.

  Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016;
  fperazzi/davis.
  """
  check_pair(prediction, truth)
  union = np.count_nonzero(prediction | truth)
  return np.count_nonzero(prediction & truth) / union if union else 1.0


def check_pair(prediction: np.ndarray, truth: np.ndarray) -> None:
  """Raises ValueError unless both are (h, w) bool arrays of one shape: labels 0/255 would be compared bit by bit."""
  if prediction.dtype != bool or truth.dtype != bool:
    raise ValueError(f'masks must be bool, got {prediction.dtype} and {truth.dtype}')
  if prediction.ndim != 2 or prediction.shape != truth.shape:
    raise ValueError(f'masks must be (h, w) and of one shape, got {prediction.shape} and {truth.shape}')
