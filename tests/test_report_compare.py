from __future__ import annotations

import numpy as np
import pytest
import report_files
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from adnet_jax.errors import UsageError
from adnet_jax.report.compare import comparable_keys, compare, paired_bootstrap
from adnet_jax.report.entries import read_entries


def entries(tmp_path, **files):
  return read_entries(report_files.write(tmp_path, **files))


def test_a_constant_difference_has_no_width():
  paired = paired_bootstrap([0.75] * 8, [0.5] * 8)
  assert (paired.mean, paired.low, paired.high) == (0.25, 0.25, 0.25)
  assert (paired.wins, paired.losses, paired.ties, paired.share_better) == (8, 0, 0, 1.0)
  assert paired.verdict == 'better'
  assert paired.sign_test == pytest.approx(2 / 2**8)


def test_lower_is_better_turns_the_verdict_and_not_the_numbers():
  rng = np.random.default_rng(3)
  one, other = rng.uniform(0.2, 0.3, 12), rng.uniform(0.4, 0.5, 12)
  usual = paired_bootstrap(one, other)
  turned = paired_bootstrap(one, other, lower_is_better=True)
  assert (usual.verdict, turned.verdict) == ('worse', 'better')
  assert (usual.mean, usual.low, usual.high) == (turned.mean, turned.low, turned.high)
  assert (turned.wins, turned.losses) == (usual.losses, usual.wins) == (12, 0)
  assert turned.share_better == 1 - usual.share_better == 1


def test_the_same_seed_gives_the_same_interval_and_another_one_hardly_another():
  rng = np.random.default_rng(4)
  one, other = rng.uniform(size=20), rng.uniform(size=20)
  first = paired_bootstrap(one, other)
  assert first == paired_bootstrap(one, other)
  reseeded = paired_bootstrap(one, other, seed=1)
  assert reseeded.low == pytest.approx(first.low, abs=0.01)
  assert reseeded.low != first.low


def test_no_verdict_from_a_handful_of_clips():
  assert paired_bootstrap([0.9] * 5, [0.1] * 5).verdict == 'too few clips'
  assert paired_bootstrap([0.9] * 6, [0.1] * 6).verdict == 'better'


def test_an_interval_with_zero_inside_decides_nothing():
  paired = paired_bootstrap([0.5, 0.7] * 5, [0.7, 0.5] * 5)
  assert paired.verdict == 'undecided'
  assert paired.low < 0 < paired.high
  assert paired.sign_test == 1


def test_equal_methods_are_ties():
  paired = paired_bootstrap([0.5] * 7, [0.5] * 7)
  assert (paired.ties, paired.sign_test, paired.share_better, paired.verdict) == (7, 1.0, 0.5, 'undecided')


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says():
  rng = np.random.default_rng(0)
  inside = 0
  for _ in range(300):
    paired = paired_bootstrap(rng.normal(0.1, 0.2, 20), np.zeros(20), resamples=600)
    inside += paired.low <= 0.1 <= paired.high
  assert 0.88 <= inside / 300 <= 0.97


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_sign_test_is_the_binomial_one(wins, losses):
  if wins + losses == 0:
    return
  paired = paired_bootstrap([1.0] * wins + [0.0] * losses, [0.5] * (wins + losses), resamples=10)
  assert paired.sign_test == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)


def test_unlike_or_missing_numbers_are_refused():
  for one, other in (([], []), ([0.5], [0.5, 0.5])):
    with pytest.raises(ValueError, match='as many numbers'):
      paired_bootstrap(one, other)


def test_clips_in_common_are_compared_and_those_without_a_number_left_out(tmp_path):
  one = report_files.davis({'cat': [0.5, 0.7], 'dog': [0.9], 'cow': [], 'hen': [0.1]})
  other = report_files.davis({'dog': [0.8], 'cat': [0.5, 0.5], 'cow': [], 'owl': [0.1]})
  found = compare(*entries(tmp_path, one=one, other=other), 'J mean')
  assert found.clips == ('cat', 'dog')
  assert found.one == pytest.approx((0.6, 0.9))
  assert found.other == pytest.approx((0.5, 0.8))
  assert found.paired.mean == pytest.approx(0.1)
  assert (found.left_out, found.common_frames) == ((), ())


def test_other_frames_of_a_clip_compare_over_those_in_common(tmp_path):
  one = report_files.davis({'cat': [0.5, 0.7, 0.9]})
  other = report_files.davis({'cat': [0.2, 0.4, 1.0]}, first=2)
  pair = entries(tmp_path, one=one, other=other)
  found = compare(*pair, 'J mean')
  assert (found.one, found.other) == (pytest.approx((0.8,)), pytest.approx((0.3,)))
  assert found.common_frames == ('cat',)
  # A share of frames over others' frames cannot be mended.
  assert compare(*pair, 'J recall').left_out == ('cat',)
  assert compare(*pair, 'J recall').paired is None


def test_frames_that_never_meet_are_left_out(tmp_path):
  pair = entries(
    tmp_path, one=report_files.davis({'cat': [0.5]}), other=report_files.davis({'cat': [0.5]}, first=9)
  )  # fmt: skip
  assert compare(*pair, 'J mean').left_out == ('cat',)


def test_files_of_different_rules_are_never_compared(tmp_path):
  pooled = report_files.other('fbms-pooled', {'F': 0.5}, {'cars1': {'F': 0.5}})
  mean = report_files.other('fbms-mean-pr', {'F': 0.6}, {'cars1': {'F': 0.6}})
  with pytest.raises(UsageError, match='different rules'):
    compare(*entries(tmp_path, one=pooled, other=mean), 'F')


def test_t_of_different_programs_is_never_compared(tmp_path):
  files = {}
  for name, program in (('one', 'python'), ('other', 'davis-matlab-master')):
    files[name] = report_files.flat(0.5, stability=program)
    files[name]['dataset']['T'] = {'mean': 0.3}
  pair = entries(tmp_path, **files)
  assert comparable_keys(*pair) == ['J mean', 'F mean']
  assert comparable_keys(pair[0], pair[0]) == ['J mean', 'F mean', 'T mean']
  with pytest.raises(UsageError, match='different rules'):
    compare(*pair, 'T mean')
