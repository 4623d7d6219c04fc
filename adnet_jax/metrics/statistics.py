"""Mean, recall and decay of a clip's per-frame scores; knows nothing of what was scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RECALL_THRESHOLD = 0.5


def clip_statistics(values: Sequence[float]) -> dict[str, float | None]:
  """The three statistics of DAVIS-2016 over the scored frames of one clip.

  Args:
    values: one score a scored frame, in the order of time, nothing padded and nothing missing.

  Returns:
    `mean`: plain mean. `recall`: share of frames strictly above 0.5. `decay`: mean of the first of four bins less mean
    of the last; a bin includes both of its edges, so neighbouring bins share a frame. All None where there is no frame.

  Raises:
    ValueError: the values are not one-dimensional or not finite.

  Source: db_statistics of fperazzi/davis (CVPR 2016). Its 8-bit indices go wrong beyond 256 frames: not copied.
  """
  scores = np.asarray(values, np.float64)
  if scores.ndim != 1 or not np.isfinite(scores).all():
    raise ValueError('scores of a clip must be a flat list of finite numbers')
  if not scores.size:
    return {'mean': None, 'recall': None, 'decay': None}
  first, last = scores[: _edge(1, scores.size) + 1], scores[_edge(3, scores.size) :]
  return {
    'mean': float(scores.mean()),
    'recall': np.count_nonzero(scores > RECALL_THRESHOLD) / scores.size,
    'decay': float(first.mean() - last.mean()),
  }


def _edge(k: int, count: int) -> int:
  """Index, from 0, of edge k of four bins: round(1 + k (count - 1) / 4) - 1, halves away from zero, in integers."""
  return (k * (count - 1) + 2) // 4
