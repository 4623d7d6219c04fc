"""Whether one method is better than another on the same clips, and how sure that is; knows nothing of pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adnet_jax.errors import UsageError
from adnet_jax.report.entries import COUNTS, Entry, keys, lower_is_better

RESAMPLES = 10_000
CONFIDENCE = 0.95
# With fewer clips even a sign test in which all of them agree stays above .05.
FEWEST_CLIPS = 6
_OF_SINGLE_FRAMES = ('J mean', 'F mean')


@dataclass(frozen=True)
class Paired:
  """Paired differences `one - other`, clip by clip.

  Attributes:
    mean: of the differences.
    low: lower end of the interval around the mean.
    high: upper end.
    wins: clips on which `one` is better.
    losses: clips on which `other` is.
    ties: clips on which they are equal.
    sign_test: two-sided probability of so uneven wins and losses if either were as likely; ties are left out.
    share_better: share of resamples whose mean difference is in favour of `one`; a resample with none counts half.
    verdict: 'better', 'worse' (of `one`, where the interval leaves out 0), 'undecided', or 'too few clips'.
  """

  mean: float
  low: float
  high: float
  wins: int
  losses: int
  ties: int
  sign_test: float
  share_better: float
  verdict: str


@dataclass(frozen=True)
class Comparison:
  """Two score files compared by one number of each clip.

  Attributes:
    key: the number's name, such as 'J mean'.
    clips: those that both have, in the first file's order.
    one: the first file's numbers of these clips.
    other: the second file's.
    paired: what the differences say; None without a clip in common.
    left_out: clips of both files that could not be compared, as their counted frames differ.
    common_frames: clips whose numbers are over the frames that both files count, as these differ.
  """

  key: str
  clips: tuple[str, ...]
  one: tuple[float, ...]
  other: tuple[float, ...]
  paired: Paired | None
  left_out: tuple[str, ...]
  common_frames: tuple[str, ...]


def paired_bootstrap(
  one: Sequence[float],
  other: Sequence[float],
  *,
  lower_is_better: bool = False,
  resamples: int = RESAMPLES,
  confidence: float = CONFIDENCE,
  seed: int = 0,
) -> Paired:
  """Interval of the mean difference of two methods over the same clips, by the percentile bootstrap.

  Clips are drawn with replacement, each with both methods' numbers, `resamples` times; the interval lies between the
  percentiles of the resamples' mean differences. It says what other clips of the same kind would have given; that clips
  of one data set resemble each other is not in it.

  Args:
    one: a number for each clip.
    other: the other method's, in the same order.
    lower_is_better: whether the smaller number is the better one.
    resamples: how often clips are drawn.
    confidence: share of the resamples inside the interval.
    seed: of the random numbers; the same one gives the same interval.

  Raises:
    ValueError: no clip, or not as many numbers of one as of the other.

  Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3; the sign test is the exact
    binomial one.
  """
  if len(one) != len(other) or not len(one):
    raise ValueError(f'expected as many numbers, and at least one, got {len(one)} and {len(other)}')
  differences = np.asarray(one, np.float64) - np.asarray(other, np.float64)
  count = differences.size
  drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
  means = differences[drawn].mean(axis=1)
  low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
  sign = -1 if lower_is_better else 1
  wins, losses = int((sign * differences > 0).sum()), int((sign * differences < 0).sum())
  return Paired(
    mean=float(differences.mean()),
    low=float(low),
    high=float(high),
    wins=wins,
    losses=losses,
    ties=count - wins - losses,
    sign_test=_sign_test(wins, losses),
    share_better=float((sign * means > 0).mean() + (means == 0).mean() / 2),
    verdict=_verdict(count, *sorted((sign * float(low), sign * float(high)))),
  )


def compare(one: Entry, other: Entry, key: str) -> Comparison:
  """Compares two files by one number of each clip that both have.

  Where the files count other frames of a clip, J and F are averaged over the frames that both count; other numbers of
  such a clip are left out.

  Raises:
    UsageError: files of different rules, or T of different programs: their numbers do not compare.
  """
  if one.rule != other.rule or (key.startswith('T ') and stability(one) != stability(other)):
    names = f'{key}: {one.name}, {other.name}'
    raise UsageError('numbers of different rules cannot be compared', names, 'score both by one rule')
  rows: list[tuple[str, float, float]] = []
  left_out: list[str] = []
  common_frames: list[str] = []
  for clip in one.clips:
    if clip not in other.clips:
      continue
    first, second = one.number(key, clip), other.number(key, clip)
    if one.clips[clip]['frames'] != other.clips[clip]['frames']:
      first, second = _over_common_frames(one, other, key, clip)
      (left_out if first is None else common_frames).append(clip)
    if first is not None and second is not None:
      rows.append((clip, first, second))
  clips, ones, others = zip(*rows, strict=True) if rows else ((), (), ())
  paired = paired_bootstrap(ones, others, lower_is_better=lower_is_better(key)) if rows else None
  return Comparison(key, clips, ones, others, paired, tuple(left_out), tuple(common_frames))


def comparable_keys(one: Entry, other: Entry) -> list[str]:
  """Names of the numbers by which clips of two files are compared: no recall, no decay, T only of one program."""
  shared = [key for key in keys([one]) if key in keys([other])]
  unlike = stability(one) != stability(other)
  return [
    key
    for key in shared
    if not key.endswith((' recall', ' decay')) and key not in COUNTS and not (unlike and key.startswith('T '))
  ]


def stability(entry: Entry) -> str | None:
  """Name of the program that the file's T follows."""
  return entry.scores.get('stability')


def _over_common_frames(one: Entry, other: Entry, key: str, clip: str) -> tuple[float | None, float | None]:
  if key not in _OF_SINGLE_FRAMES:
    return None, None
  metric = key.split()[0]
  tables = [
    dict(zip(entry.clips[clip]['frames'], entry.per_frame(metric, clip) or [], strict=False)) for entry in (one, other)
  ]
  pairs = [(value, tables[1].get(frame)) for frame, value in tables[0].items()]
  defined = [(a, b) for a, b in pairs if a is not None and b is not None]
  if not defined:
    return None, None
  first, second = (float(np.mean(values)) for values in zip(*defined, strict=True))
  return first, second


def _sign_test(wins: int, losses: int) -> float:
  count = wins + losses
  tail = sum(math.comb(count, k) for k in range(min(wins, losses) + 1)) / 2**count
  return min(1.0, 2 * tail)


def _verdict(count: int, low: float, high: float) -> str:
  if count < FEWEST_CLIPS:
    return 'too few clips'
  return 'better' if low > 0 else 'worse' if high < 0 else 'undecided'
