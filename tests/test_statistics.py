from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adnet_jax.metrics import clip_statistics


def slow_decay(values: list[float]) -> float:
  """The definition with exact fractions, halves away from zero (all edges are positive)."""
  edges = [int(1 + Fraction(k * (len(values) - 1), 4) + Fraction(1, 2)) for k in range(5)]
  first, last = values[edges[0] - 1 : edges[1]], values[edges[3] - 1 : edges[4]]
  return float(np.mean(first) - np.mean(last))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=700))
def test_statistics_follow_their_definition(values):
  result = clip_statistics(values)
  assert result['mean'] == pytest.approx(np.mean(values))
  assert result['recall'] == sum(value > 0.5 for value in values) / len(values)
  assert result['decay'] == pytest.approx(slow_decay(values), abs=1e-12)
  assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(
  ('count', 'first', 'last'),
  # Edges 1 + k (count - 1) / 4: with 3 frames 1, 1.5, 2, 2.5, 3; halves go up, so bin 1 is frames 1..2, bin 4 is 3..3.
  [(1, 1, 1), (2, 1, 2), (3, 2, 3), (4, 2, 3), (5, 2, 4), (7, 3, 6), (48, 13, 36), (300, 76, 225)],
)
def test_bins_of_decay(count, first, last):
  values = np.arange(1.0, count + 1)
  expected = values[:first].mean() - values[last - 1 :].mean()
  assert clip_statistics(values)['decay'] == pytest.approx(expected)


def test_decay_of_a_long_clip_does_not_wrap_at_256():
  values = np.zeros(400)
  values[299:] = 1
  assert clip_statistics(values)['decay'] == -1
  assert clip_statistics(np.linspace(1, 0, 257))['decay'] == pytest.approx(0.75)


def test_one_half_itself_fails_recall():
  assert clip_statistics([0.5, 0.5, np.nextafter(0.5, 1), 1.0])['recall'] == 0.5


def test_short_clips():
  assert clip_statistics([]) == {'mean': None, 'recall': None, 'decay': None}
  assert clip_statistics([0.75]) == {'mean': 0.75, 'recall': 1.0, 'decay': 0.0}
  assert clip_statistics([0.75, 0.25]) == {'mean': 0.5, 'recall': 0.5, 'decay': 0.5}


@pytest.mark.parametrize('values', [[0.5, float('nan')], [float('inf')], [[0.5]]])
def test_values_that_are_no_scores_are_refused(values):
  with pytest.raises(ValueError, match='flat list of finite numbers'):
    clip_statistics(values)
