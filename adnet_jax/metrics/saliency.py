"""Scores of soft maps against masks: a frame's by two rules, and all pixels pooled; knows nothing of files or clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from adnet_jax.metrics.enhanced_alignment import enhanced_alignment
from adnet_jax.metrics.structure import structure_measure

__all__ = ['RULES', 'THRESHOLDS', 'FrameSaliency', 'PooledScores', 'frame_saliency', 'mean_saliency', 'saliency_scores']

# Rules of frame_saliency. A third one, `adnet-saliency`, is that of PooledScores.
RULES = ('davsod', 'pysod')

# Of every curve over thresholds, in this order; foreground is what lies at or above.
THRESHOLDS = np.arange(255, -1, -1) / 255

_BETA_SQUARED = 0.3
_EXACT = 1 << 20  # distinct scores that PooledScores keeps apart before it counts in steps of 1 / _EXACT
_CURVE_POINTS = 256


@dataclass(frozen=True, eq=False)
class FrameSaliency:
  """Scores of one frame, or means of such scores over frames or over clips.

  Attributes:
    mae: mean absolute error, in [0, 1].
    f_adaptive: F, beta^2 = .3, at twice the map's mean, at most 1.
    s: S-measure, alpha .5.
    e_adaptive: E-measure at twice the map's mean, at most 1.
    precision: (256,) float64, at THRESHOLDS; 0 where nothing is found.
    recall: (256,) float64, at THRESHOLDS; 0 where nothing is wanted.
    f: (256,) float64, F with beta^2 = .3 at THRESHOLDS; 0 where prediction and truth do not overlap.
    e: (256,) float64, E-measure at THRESHOLDS; see enhanced_alignment.
  """

  mae: float
  f_adaptive: float
  s: float
  e_adaptive: float
  precision: np.ndarray
  recall: np.ndarray
  f: np.ndarray
  e: np.ndarray


_FIELDS = tuple(field.name for field in fields(FrameSaliency))


def frame_saliency(probability: np.ndarray, truth: np.ndarray, rule: str) -> FrameSaliency:
  """Scores one soft map; rules `davsod` and `pysod`.

  Both stretch the map to [0, 1] unless it is constant, for every score, MAE too. They differ in round-off: `davsod`
  compares the stretched map with the thresholds k/255, `pysod` cuts it off to 8 bits first; and S rounds a centroid
  between two pixels up (`davsod`) or to the even one (`pysod`). And in what the caller averages: `davsod` leaves out a
  clip's first and last annotation, means over a clip's frames, then over clips; `pysod` means over all images.

  Args:
    probability: (h, w) float32 or float64 in [0, 1]. A float32 map that holds v/255 or v/65535 within single precision
      is scored as that map of 8 or 16 bits.
    truth: (h, w) bool.
    rule: one of RULES.

  Returns:
    The frame's scores, never nan: without overlap F is 0; a truth without foreground has precision, recall and F 0.

  Raises:
    ValueError: unknown rule, shapes that differ or are not (h, w) with a pixel, other types, or values outside [0, 1].

  Source: `davsod`: EvaluateTool of DengPingFan/DAVSOD (Fan et al., CVPR 2019). Round-off puts some of its thresholds,
  1:-1/255:0, above k/255, and then a map's grey value k falls short of them: not copied. `pysod`: PySODMetrics. The
  E-measure is that of PySODMetrics, at the rule's own thresholds.
  """
  if rule not in RULES:
    raise ValueError(f'unknown rule {rule}: one of {", ".join(RULES)}')
  _check_map(probability, truth)
  saliency = _double(probability)
  low, high = saliency.min(), saliency.max()
  if high > low:
    saliency = (saliency - low) / (high - low)
  wanted = int(np.count_nonzero(truth))
  levels = _levels(saliency) if rule == 'davsod' else (saliency * 255).astype(np.int64)
  counts = np.bincount((levels + 256 * truth).ravel(), minlength=512).reshape(2, 256)
  above = counts[:, ::-1].cumsum(axis=1)
  found, predicted = above[1], above[0] + above[1]
  adaptive = saliency >= min(2 * saliency.mean(), 1.0)
  adaptive_found = np.count_nonzero(adaptive & truth)
  adaptive_predicted = np.count_nonzero(adaptive)
  return FrameSaliency(
    mae=float(np.abs(saliency - truth).mean()),
    f_adaptive=float(_f_measure(adaptive_found, adaptive_predicted, wanted)),
    s=structure_measure(saliency, truth, halves_up=rule == 'davsod'),
    e_adaptive=float(enhanced_alignment(adaptive_found, adaptive_predicted, wanted, truth.size)),
    precision=found / np.maximum(predicted, 1),
    recall=found / max(wanted, 1),
    f=_f_measure(found, predicted, wanted),
    e=enhanced_alignment(found, predicted, wanted, truth.size),
  )


def mean_saliency(scores: Sequence[FrameSaliency]) -> FrameSaliency | None:
  """Plain means of scores and curves: over frames for a clip or for `pysod`, over clips' means for `davsod`.

  Returns:
    None where there is nothing to average.
  """
  if not scores:
    return None
  means = {name: np.mean([getattr(one, name) for one in scores], axis=0) for name in _FIELDS}
  scalars_too: dict[str, Any] = {name: mean if mean.ndim else float(mean) for name, mean in means.items()}
  return FrameSaliency(**scalars_too)


def saliency_scores(mean: FrameSaliency | None) -> dict:
  """What a score file holds of averaged scores: the greatest and the mean of an averaged curve, not averages of such.

  Args:
    mean: of mean_saliency; None where no frame was counted.

  Returns:
    `MAE, F_max, F_mean, F_adaptive, S, E_max, E_mean, E_adaptive` and `curve`, lists of `precision`, `recall` and
    `thresholds` by falling threshold; all None where no frame was counted.
  """
  if mean is None:
    return dict.fromkeys(('MAE', 'F_max', 'F_mean', 'F_adaptive', 'S', 'E_max', 'E_mean', 'E_adaptive', 'curve'))
  return {
    'MAE': mean.mae,
    'F_max': float(mean.f.max()),
    'F_mean': float(mean.f.mean()),
    'F_adaptive': mean.f_adaptive,
    'S': mean.s,
    'E_max': float(mean.e.max()),
    'E_mean': float(mean.e.mean()),
    'E_adaptive': mean.e_adaptive,
    'curve': _curve(mean.precision, mean.recall, THRESHOLDS),
  }


class PooledScores:
  """All pixels of all frames and clips as one long vector; rule `adnet-saliency`.

  MAE is the mean over pixels, so longer clips weigh more. F_max is the greatest F, beta^2 = 1, over every distinct
  score as a threshold: one curve for the whole data set, neither a mean over images nor over clips.

  Scores are counted in single precision. Up to 1,048,576 distinct ones, which maps of 8 and 16 bits cannot exceed, are
  kept apart, so that F_max is exact. Beyond, they are counted in steps of 1/1,048,576: the thresholds between the steps
  are lost, at every other one the counts stay exact. So memory stays at about 20 MB for any number of frames. The
  result does not depend on the order of frames or of merges, but for the last digits of MAE.

  Source: eval.py of yz93/anchor-diff-VOS: sigmoid maps before pruning and gating, a clip's first and last frame left
  out, scikit-learn's precision_recall_curve. Where precision and recall are both 0 it computes nan; here F is 0.
  """

  def __init__(self) -> None:
    self._error = 0.0
    self._scores: np.ndarray | None = np.zeros(0, np.float32)  # rising; None once they are counted in steps
    self._counts = np.zeros((2, 0), np.int64)  # of background and foreground pixels with that score

  def add(self, probability: np.ndarray, truth: np.ndarray) -> None:
    """Counts one frame.

    Args:
      probability: (h, w) float32 or float64 in [0, 1].
      truth: (h, w) bool.

    Raises:
      ValueError: as frame_saliency.
    """
    _check_map(probability, truth)
    self._error += float(np.abs(np.subtract(probability, truth, dtype=np.float64)).sum())
    scores = probability.astype(np.float32, copy=False)
    for kind, part in enumerate((scores[~truth], scores[truth])):
      if self._scores is None:
        self._counts[kind] += np.bincount(_steps(part), minlength=_EXACT + 1)
      else:
        distinct, counts = np.unique(part, return_counts=True)
        pair = np.zeros((2, distinct.size), np.int64)
        pair[kind] = counts
        self._include(distinct, pair)

  def merge(self, other: PooledScores) -> None:
    """Takes over the counts of another one, as of a process that counted other clips."""
    self._error += other._error
    if other._scores is None:
      self._coarsen()
      self._counts += other._counts
    else:
      self._include(other._scores, other._counts)

  def result(self) -> dict:
    """Scores of all that was counted.

    Returns:
      `MAE`, `F_max` and `curve`: lists of `precision`, `recall` and `thresholds` by falling threshold, thinned to at
      most 256 points in equal steps of recall, with both ends and the threshold of F_max. F_max is 0 where the truth
      has no foreground. All None where nothing was counted.
    """
    scores, counts = self._scores, self._counts
    if scores is None:
      scores = np.arange(_EXACT + 1, dtype=np.float32) / np.float32(_EXACT)
      scores, counts = scores[counts.any(axis=0)], counts[:, counts.any(axis=0)]
    if not scores.size:
      return dict.fromkeys(('MAE', 'F_max', 'curve'))
    unfound, found = counts[:, ::-1].cumsum(axis=1)
    wanted = int(found[-1])
    recall = found / max(wanted, 1)
    f = 2 * found / (found + unfound + wanted)
    targets = np.linspace(recall[0], recall[-1], _CURVE_POINTS - 2)
    kept = np.unique(np.append(np.searchsorted(recall, targets), [recall.size - 1, f.argmax()]))
    precision = found[kept] / (found + unfound)[kept]
    return {
      'MAE': self._error / int(counts.sum()),
      'F_max': float(f.max()),
      'curve': _curve(precision, recall[kept], scores[::-1][kept].astype(np.float64)),
    }

  def _include(self, scores: np.ndarray, counts: np.ndarray) -> None:
    if self._scores is None:
      self._counts += _stepped(scores, counts)
      return
    if not np.array_equal(self._scores, scores):
      union = np.union1d(self._scores, scores)
      merged = np.zeros((2, union.size), np.int64)
      merged[:, np.searchsorted(union, self._scores)] = self._counts
      self._scores, self._counts = union, merged
    self._counts[:, np.searchsorted(self._scores, scores)] += counts
    if self._scores.size > _EXACT:
      self._coarsen()

  def _coarsen(self) -> None:
    if self._scores is not None:
      self._counts = _stepped(self._scores, self._counts)
      self._scores = None


def _check_map(probability: np.ndarray, truth: np.ndarray) -> None:
  if probability.dtype not in (np.float32, np.float64) or truth.dtype != bool:
    raise ValueError(f'a float map and a bool mask are needed, got {probability.dtype} and {truth.dtype}')
  if probability.ndim != 2 or probability.shape != truth.shape or not truth.size:
    raise ValueError(f'map and mask must be (h, w) and of one shape, got {probability.shape} and {truth.shape}')
  if not (probability.min() >= 0 and probability.max() <= 1):
    raise ValueError('probabilities must lie in [0, 1]')


def _double(probability: np.ndarray) -> np.ndarray:
  """The map in double precision; v/255 and v/65535, which single precision holds nearly, as they are exactly.

  A score a hair below its threshold would fall short of it, and with it all pixels of that grey value.
  """
  scores = probability.astype(np.float64)
  if probability.dtype == np.float32:
    steps = scores * 65535
    whole = np.rint(steps)
    if np.abs(steps - whole).max() < 2**-6:
      return whole / 65535
  return scores


def _levels(saliency: np.ndarray) -> np.ndarray:
  """The greatest k with k/255 not above each score, (h, w) int64 from 0 to 255."""
  edges = np.append(THRESHOLDS[::-1], np.inf)
  levels = (saliency * 255).astype(np.int64)
  levels -= saliency < edges[levels]
  levels += saliency >= edges[levels + 1]
  return levels


def _f_measure(found: ArrayLike, predicted: ArrayLike, wanted: int) -> np.ndarray:
  """F with beta^2 = .3 from pixel counts; 0 where nothing is found."""
  return (1 + _BETA_SQUARED) * np.asarray(found) / np.maximum(_BETA_SQUARED * wanted + np.asarray(predicted), 1)


def _steps(scores: np.ndarray) -> np.ndarray:
  return (scores * np.float32(_EXACT)).astype(np.int64)


def _stepped(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Counts of distinct scores, (2, n), as counts of steps, (2, _EXACT + 1)."""
  result = np.zeros((2, _EXACT + 1), np.int64)
  for kind in range(2):
    np.add.at(result[kind], _steps(scores), counts[kind])
  return result


def _curve(precision: np.ndarray, recall: np.ndarray, thresholds: np.ndarray) -> dict[str, list[float]]:
  return {'precision': precision.tolist(), 'recall': recall.tolist(), 'thresholds': thresholds.tolist()}
