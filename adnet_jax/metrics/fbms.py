"""Scores of the FBMS motion segmentation benchmark, several rules under their names; knows nothing of files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adnet_jax.metrics.region import check_pair

__all__ = ['RULES', 'Counts', 'binary_counts', 'combine_clips', 'harmonic_mean', 'pooled_prf', 'region_scores']

# How the scores of clips become those of the data set; the names are those of score files.
RULES = ('fbms-pooled', 'fbms-mean-pr', 'fbms-jaccard', 'fbms-official')

_VISIBLE = 1e-4  # pixels, each by its certainty: a region below is none to be found
_STEPS = 10_000  # of F in the assignment


class Counts(NamedTuple):
  """Pixels of one frame: found and wanted, found only, wanted only."""

  tp: int
  fp: int
  fn: int


def binary_counts(prediction: np.ndarray, truth: np.ndarray) -> Counts:
  """Counts the pixels of a mask that are right, false and missed.

  Args:
    prediction: (h, w) bool.
    truth: (h, w) bool, all annotated objects merged to one foreground.

  Returns:
    True positives, false positives, false negatives.

  Raises:
    ValueError: the arrays are not bool, not two-dimensional or of different shapes.
  """
  check_pair(prediction, truth)
  tp = int(np.count_nonzero(prediction & truth))
  return Counts(tp, int(np.count_nonzero(prediction)) - tp, int(np.count_nonzero(truth)) - tp)


def pooled_prf(counts: Iterable[tuple[int, int, int]]) -> dict[str, float | None]:
  """Precision, recall and F of one clip from the pixels of all of its annotated frames together.

  The clip's part of the rules `fbms-pooled` and `fbms-mean-pr`, which combine_clips tells apart.

  Args:
    counts: (tp, fp, fn) of each annotated frame, as of binary_counts.

  Returns:
    `P`, `R`, `F` in [0, 1], never nan: nothing predicted where something is wanted has P 1 and R 0, as the benchmark's
    own program holds it for a region without a cluster; something predicted where nothing is wanted has P 0 and R 1;
    F is 0 in both cases. Nothing predicted and nothing wanted: 1, 1, 1. All None where there is no frame.

  Source: what papers on unsupervised video segmentation report as F on FBMS, with objects merged and annotated frames
  only; none of them names its program, so both ways to combine clips are here.
  """
  frames = list(counts)
  if not frames:
    return {'P': None, 'R': None, 'F': None}
  tp, fp, fn = (sum(column) for column in zip(*frames, strict=True))
  precision = tp / (tp + fp) if tp + fp else 1.0
  recall = tp / (tp + fn) if tp + fn else 1.0
  return {'P': precision, 'R': recall, 'F': harmonic_mean(precision, recall)}


def harmonic_mean(precision: float, recall: float) -> float:
  """F of a precision and a recall, beta^2 = 1; 0 where both are 0."""
  return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def combine_clips(rule: str, clips: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
  """Scores of a data set from those of its clips.

  Args:
    rule: `fbms-pooled` and `fbms-jaccard`: plain means over clips, that of F too. `fbms-mean-pr` and `fbms-official`:
      means of P and of R over clips, and F of these two means; counts of objects are summed.
    clips: one mapping a clip, all with the same keys: of pooled_prf (`fbms-pooled`, `fbms-mean-pr`), of region_scores
      (`fbms-official`), or {'J': mean over the clip's annotated frames} (`fbms-jaccard`).

  Returns:
    The keys of the clips. A clip whose values are None has no counted frame and is left out; where all are, or there is
    none, values are None.

  Raises:
    ValueError: unknown rule.

  Source: `fbms-official`: MoSegEvalAll_PR of Ochs, Malik, Brox, PAMI 2014. `fbms-jaccard`: replies of MATNet's and
  COSNet's authors (binarise all objects, frames with an annotation only).
  """
  if rule not in RULES:
    raise ValueError(f'unknown rule {rule}: one of {", ".join(RULES)}')
  keys = list(dict.fromkeys(key for clip in clips for key in clip))
  counted = [clip for clip in clips if None not in clip.values()]
  if not counted:
    return dict.fromkeys(keys)
  table = np.array([[clip[key] for key in keys] for clip in counted], np.float64)
  means = dict(zip(keys, table.mean(axis=0).tolist(), strict=True))
  if rule in ('fbms-mean-pr', 'fbms-official'):
    means['F'] = harmonic_mean(means['P'], means['R'])
  sums = dict(zip(keys, table.sum(axis=0).tolist(), strict=True))
  return means | {key: int(sums[key]) for key in keys if key in ('objects', 'visible')}


def region_scores(
  labels: Iterable[np.ndarray],
  regions: Iterable[np.ndarray],
  certainty: Iterable[np.ndarray | None] | None = None,
  *,
  object_threshold: float = 0.75,
) -> dict[str, float | None]:
  """Precision, recall and F of one clip's clusters against its annotated regions; rule `fbms-official`.

  The pixels of all annotated frames are pooled, each with its certainty as weight. Precision of a region and a cluster
  is their overlap over the cluster's size, recall their overlap over the region's size as covered by clusters, so that
  unlabelled pixels cost nothing. Regions and clusters are paired one to one so that the sum of F, each cut off to
  1/10000, is greatest. P and R are means over all visible regions, the background among them; a region left without a
  cluster counts P 1 and R 0, a cluster left over costs nothing. F is that of the two means.

  Args:
    labels: a frame's predicted clusters, (h, w) int (or bool); any ids, the same in all frames. Below 0: unlabelled.
    regions: a frame's annotated regions, (h, w) int from 0, the background.
    certainty: a frame's weights, (h, w) float in [0, 1], or None for 1 everywhere.
    object_threshold: F above which a region counts as extracted.

  Returns:
    `P`, `R`, `F` in [0, 1], never nan; `objects`: extracted regions less one for the background, not below 0;
    `visible`: annotated regions less one. All None where nothing is annotated with any certainty.

  Raises:
    ValueError: different numbers of frames, shapes that differ within a frame, regions below 0, weights not in [0, 1].

  Source: MoSegEval_PR, version 2.0, of Ochs, Malik, Brox, "Segmentation of moving objects by long term video analysis",
  PAMI 2014. The program's default threshold is .9, its manual's and the paper's .75. It adds pixels up in single
  precision, which stands still at 16.7 million: not copied.
  """
  overlap, sizes = _overlaps(labels, regions, certainty)
  visible = sizes >= _VISIBLE
  count = int(np.count_nonzero(visible))
  if not count:
    return dict.fromkeys(('P', 'R', 'F', 'objects', 'visible'))
  cluster_sizes = overlap.sum(axis=0, keepdims=True)
  overlap = overlap[visible]
  precision = _ratio(overlap, cluster_sizes)
  covered = overlap.sum(axis=1, keepdims=True)
  recall = _ratio(overlap, covered)
  f = _ratio(2 * overlap, cluster_sizes + covered)
  region, cluster = _assignment(f)
  precisions, recalls = np.ones(count), np.zeros(count)
  precisions[region], recalls[region] = precision[region, cluster], recall[region, cluster]
  mean_precision, mean_recall = float(precisions.mean()), float(recalls.mean())
  return {
    'P': mean_precision,
    'R': mean_recall,
    'F': harmonic_mean(mean_precision, mean_recall),
    'objects': max(0, int(np.count_nonzero(f[region, cluster] > object_threshold)) - 1),
    'visible': count - 1,
  }


def _overlaps(
  labels: Iterable[np.ndarray], regions: Iterable[np.ndarray], certainty: Iterable[np.ndarray | None] | None
) -> tuple[np.ndarray, np.ndarray]:
  """Weight shared by each region and cluster, (regions, clusters), and of each region in all, (regions,)."""
  found, wanted = list(labels), list(regions)
  weights = [None] * len(found) if certainty is None else list(certainty)
  if not len(found) == len(wanted) == len(weights):
    raise ValueError(f'{len(found)} frames of labels, {len(wanted)} of regions, {len(weights)} of certainty')
  for frame in zip(found, wanted, weights, strict=True):
    _check_frame(*frame)
  ids = np.unique(np.concatenate([np.unique(label) for label in found])) if found else np.zeros(0, int)
  region_count = max((int(region.max(initial=-1)) + 1 for region in wanted), default=0)
  table = np.zeros(region_count * ids.size)
  for label, region, weight in zip(found, wanted, weights, strict=True):
    cell = region.ravel().astype(np.int64) * ids.size + np.searchsorted(ids, label.ravel())
    table += np.bincount(cell, None if weight is None else weight.ravel(), minlength=table.size)
  overlap = table.reshape(region_count, ids.size)
  return overlap[:, ids >= 0], overlap.sum(axis=1)


def _check_frame(labels: np.ndarray, regions: np.ndarray, certainty: np.ndarray | None) -> None:
  shapes = {part.shape for part in (labels, regions, certainty) if part is not None}
  if len(shapes) > 1 or labels.ndim != 2:
    raise ValueError(f'labels, regions and certainty must be (h, w) and of one shape, got {sorted(shapes)}')
  if labels.dtype.kind not in 'biu' or regions.dtype.kind not in 'biu':
    raise ValueError(f'labels and regions must be integers, got {labels.dtype} and {regions.dtype}')
  if regions.min(initial=0) < 0:
    raise ValueError('regions are numbered from 0, the background')
  if certainty is not None and not ((certainty >= 0) & (certainty <= 1)).all():
    raise ValueError('certainty must lie in [0, 1]')


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """part / whole, 0 where the whole is 0."""
  return np.divide(part, whole, out=np.zeros(part.shape), where=np.broadcast_to(whole, part.shape) > 0)


def _assignment(f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Pairs of a row and a column whose F, in whole steps, add up to the most."""
  # Half a second to import, for a rule that few ask for.
  from scipy.optimize import linear_sum_assignment

  # In single precision, as the program has it: a product just below a whole number may round up to it.
  steps = (f.astype(np.float32) * np.float32(_STEPS)).astype(np.int64)
  return linear_sum_assignment(steps, maximize=True)
