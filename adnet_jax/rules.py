"""The rules of scoring: what each measures on a clip and how clips make a data set's numbers; reads no files.

A rule is data: four functions and what they want to be given. docs/evaluation.md says which paper used which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adnet_jax.metrics import clip_statistics, contour_accuracy, fbms, jaccard, saliency, stability

STABILITY = 'davis-matlab-master'
STABILITIES = stability.RULES
# T of a data set is the mean over these ten clips of DAVIS-2016, whose objects keep their shape.
STABLE_CLIPS = (
  'blackswan', 'camel', 'car-roundabout', 'car-shadow', 'cows', 'drift-straight', 'kite-surf', 'paragliding-launch',
  'scooter-black', 'soapbox',
)  # fmt: skip


@dataclass(frozen=True)
class Frame:
  """One counted frame.

  Attributes:
    prediction: (h, w) bool for masks, float32 in [0, 1] for maps, int32 for labels.
    truth: (h, w) bool; for labels the number of each pixel's region, 0 is background.
    certainty: (h, w) float32 in [0, 1], weight of each pixel of the annotation; None where there is none.
    follows: whether the annotation before this one is the counted frame before, so that both make a pair.
  """

  prediction: np.ndarray
  truth: np.ndarray
  certainty: np.ndarray | None = None
  follows: bool = True


@dataclass(frozen=True)
class Settings:
  """What a clip's measurement depends on besides its frames.

  Attributes:
    metrics: those asked for.
    stability: the program that T follows.
    first_annotation: gives the foreground of the clip's first annotation, or None where another frame lies between it
      and the first counted one.
  """

  metrics: tuple[str, ...]
  stability: str
  first_annotation: Callable[[], np.ndarray | None]


@dataclass(frozen=True)
class Rule:
  """One way to score.

  Attributes:
    metrics: what it can give.
    default: what it gives unasked.
    wants: 'masks', 'maps' (probabilities) or 'labels' (numbers of regions), of predictions and annotations.
    ends: whether a clip's first and last annotation count.
    measure: counted frames of one clip -> something small that travels between processes.
    clip: that, or None for a clip without a counted frame -> the clip's numbers in the score file.
    dataset: that of all clips with a counted frame, by name -> the data set's numbers.
  """

  metrics: tuple[str, ...]
  default: tuple[str, ...]
  wants: str
  ends: bool
  measure: Callable[[Iterator[Frame], Settings], Any]
  clip: Callable[[Any, Sequence[str]], dict]
  dataset: Callable[[Mapping[str, Any], Sequence[str]], dict]


# ------------------------------------------------------------------------------------------------ davis2016

PER_FRAME: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {'J': jaccard, 'F': contour_accuracy}


def _measure_davis(frames: Iterator[Frame], settings: Settings) -> dict[str, list]:
  values: dict[str, list] = {metric: [] for metric in settings.metrics}

  before = None
  for index, frame in enumerate(frames):
    for metric in settings.metrics:
      if metric != 'T':
        values[metric].append(PER_FRAME[metric](frame.prediction, frame.truth))
    if 'T' in settings.metrics:
      if index == 0 and settings.stability == 'davis-matlab-master':
        annotation = settings.first_annotation()
        before = None if annotation is None else stability.describe(annotation, settings.stability)
      now = stability.describe(frame.prediction, settings.stability)
      values['T'].append(stability.instability(before, now) if frame.follows else None)
      before = now
  return values


def _davis_clip(values: dict[str, list] | None, metrics: Sequence[str]) -> dict:
  values = values or {metric: [] for metric in metrics}
  return {
    metric: {**({'mean': _mean(values['T'])} if metric == 'T' else clip_statistics(values[metric])),
             'per_frame': values[metric]}
    for metric in metrics
  }  # fmt: skip


def _davis_dataset(measured: Mapping[str, dict[str, list]], metrics: Sequence[str]) -> dict:
  entries = {name: _davis_clip(values, metrics) for name, values in measured.items()}
  result: dict = {}
  for metric in metrics:
    if metric == 'T':
      stable = [name for name in entries if name in STABLE_CLIPS] or list(entries)
      result['T'] = {'mean': _mean([entries[name]['T']['mean'] for name in stable]), 'clips': stable}
    else:
      result[metric] = {
        key: _mean([entry[metric][key] for entry in entries.values()]) for key in ('mean', 'recall', 'decay')
      }
  return result


def _mean(values: Sequence[float | None]) -> float | None:
  """Plain mean of what is defined."""
  defined = [value for value in values if value is not None]
  return float(np.mean(defined)) if defined else None


# ------------------------------------------------------------------------------------------------ saliency


def _measure_pooled(frames: Iterator[Frame], _: Settings) -> saliency.PooledScores:
  pooled = saliency.PooledScores()
  for frame in frames:
    pooled.add(frame.prediction, frame.truth)
  return pooled


def _pooled_clip(pooled: saliency.PooledScores | None, metrics: Sequence[str]) -> dict:
  result = (pooled or saliency.PooledScores()).result()
  return {metric: result[metric] for metric in metrics}


def _pooled_dataset(measured: Mapping[str, saliency.PooledScores], metrics: Sequence[str]) -> dict:
  total = saliency.PooledScores()
  for pooled in measured.values():
    total.merge(pooled)
  return _pooled_clip(total, [*metrics, 'curve'])


def _measure_saliency(rule: str) -> Callable[[Iterator[Frame], Settings], list[saliency.FrameSaliency]]:
  return lambda frames, _: [saliency.frame_saliency(frame.prediction, frame.truth, rule) for frame in frames]


def _saliency_clip(values: list[saliency.FrameSaliency] | None, metrics: Sequence[str]) -> dict:
  scores = saliency.saliency_scores(saliency.mean_saliency(values or []))
  return {metric: scores[metric] for metric in metrics}


def _davsod_dataset(measured: Mapping[str, list[saliency.FrameSaliency]], metrics: Sequence[str]) -> dict:
  # A clip weighs the same however long it is.
  clips = [saliency.mean_saliency(values) for values in measured.values()]
  return _saliency_clip([clip for clip in clips if clip is not None], [*metrics, 'curve'])


def _pysod_dataset(measured: Mapping[str, list[saliency.FrameSaliency]], metrics: Sequence[str]) -> dict:
  return _saliency_clip([value for values in measured.values() for value in values], [*metrics, 'curve'])


# ---------------------------------------------------------------------------------------------------- FBMS


def _measure_counts(frames: Iterator[Frame], _: Settings) -> list[fbms.Counts]:
  return [fbms.binary_counts(frame.prediction, frame.truth) for frame in frames]


def _counts_clip(counts: list[fbms.Counts] | None, metrics: Sequence[str]) -> dict:
  result = fbms.pooled_prf(counts or [])
  return {metric: result[metric] for metric in metrics}


def _measure_jaccard(frames: Iterator[Frame], _: Settings) -> list[float]:
  return [jaccard(frame.prediction, frame.truth) for frame in frames]


def _jaccard_clip(values: list[float] | None, _: Sequence[str]) -> dict:
  return {'J': _mean(values or [])}


def _measure_regions(frames: Iterator[Frame], _: Settings) -> dict[str, float | None]:
  kept = list(frames)
  # Annotations number their regions as they like, by grey level or colour.
  numbers = np.unique(np.concatenate([np.unique(frame.truth) for frame in kept]))
  return fbms.region_scores(
    [frame.prediction for frame in kept],
    [np.searchsorted(numbers, frame.truth) for frame in kept],
    [frame.certainty for frame in kept],
  )


def _regions_clip(scores: dict[str, float | None] | None, metrics: Sequence[str]) -> dict:
  return {metric: scores[metric] if scores else None for metric in metrics}


def _fbms(rule: str, metrics: tuple[str, ...], wants: str, measure: Callable, clip: Callable) -> Rule:
  def dataset(measured: Mapping[str, Any], chosen: Sequence[str]) -> dict:
    # With the metrics that the combination itself needs, whatever was asked for.
    combined = fbms.combine_clips(rule, [clip(one, metrics) for one in measured.values()])
    return {metric: combined.get(metric) for metric in chosen}

  return Rule(metrics, metrics, wants, True, measure, clip, dataset)


# --------------------------------------------------------------------------------------------------- table

_SALIENCY = ('MAE', 'F_max', 'F_mean', 'F_adaptive', 'S', 'E_max', 'E_mean', 'E_adaptive')

RULES: dict[str, Rule] = {
  'davis2016': Rule(('J', 'F', 'T'), ('J', 'F'), 'masks', False, _measure_davis, _davis_clip, _davis_dataset),
  'adnet-saliency': Rule(
    ('MAE', 'F_max'), ('MAE', 'F_max'), 'maps', False, _measure_pooled, _pooled_clip, _pooled_dataset
  ),
  'davsod': Rule(
    _SALIENCY, _SALIENCY, 'maps', False, _measure_saliency('davsod'), _saliency_clip, _davsod_dataset
  ),
  'pysod': Rule(_SALIENCY, _SALIENCY, 'maps', True, _measure_saliency('pysod'), _saliency_clip, _pysod_dataset),
  'fbms-pooled': _fbms('fbms-pooled', ('P', 'R', 'F'), 'masks', _measure_counts, _counts_clip),
  'fbms-mean-pr': _fbms('fbms-mean-pr', ('P', 'R', 'F'), 'masks', _measure_counts, _counts_clip),
  'fbms-jaccard': _fbms('fbms-jaccard', ('J',), 'masks', _measure_jaccard, _jaccard_clip),
  'fbms-official': _fbms(
    'fbms-official', ('P', 'R', 'F', 'objects', 'visible'), 'labels', _measure_regions, _regions_clip
  ),
}  # fmt: skip
