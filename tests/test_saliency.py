from __future__ import annotations

import itertools
import pickle

import make_golden_saliency
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adnet_jax.metrics import saliency
from adnet_jax.metrics.enhanced_alignment import enhanced_alignment
from adnet_jax.metrics.saliency import (
  RULES,
  THRESHOLDS,
  FrameSaliency,
  PooledScores,
  frame_saliency,
  mean_saliency,
  saliency_scores,
)
from adnet_jax.metrics.structure import structure_measure

CASES = make_golden_saliency.cases()
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(hnp.arrays(np.uint8, shape), hnp.arrays(bool, shape)))
FLOATS = SHAPES.flatmap(
  lambda shape: st.tuples(
    hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32, allow_subnormal=False)), hnp.arrays(bool, shape)
  )
)


@pytest.fixture(scope='module')
def golden_scores():
  with np.load(make_golden_saliency.PATH) as file:
    return dict(file)


def as_map(grey: np.ndarray) -> np.ndarray:
  return grey.astype(np.float32) / np.float32(255)


def brute_force_f(scores: np.ndarray, truth: np.ndarray) -> float:
  """The greatest F over every distinct score, from the definition."""
  best = 0.0
  for threshold in np.unique(scores):
    found = scores >= threshold
    best = max(best, 2 * np.count_nonzero(found & truth) / max(np.count_nonzero(found) + np.count_nonzero(truth), 1))
  return best


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('rule', RULES)
def test_numbers_of_pysodmetrics(golden_scores, name, rule):
  grey, truth = CASES[name]
  scores = frame_saliency(as_map(grey), truth, rule)
  for key in ('mae', 'f_adaptive', 's', 'e_adaptive', 'precision', 'recall', 'f', 'e'):
    expected, found = golden_scores[f'{name}/{key}'], np.asarray(getattr(scores, key))
    assert np.isfinite(found).all()
    if name == 'pixel' and key.startswith('e'):
      assert np.isin(found, (0, 1)).all()  # there the formula divides by nothing
    elif np.isfinite(expected).all():
      np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9, err_msg=key)
    else:
      assert key == 's' and min(truth.shape) == 1  # quadrants without pixels


def test_golden_numbers_are_those_of_the_programs(golden_scores):
  pytest.importorskip('py_sod_metrics')
  pytest.importorskip('sklearn')
  made = make_golden_saliency.make()
  assert made.keys() == golden_scores.keys()
  for key, value in made.items():
    np.testing.assert_allclose(value, golden_scores[key], rtol=0, atol=1e-12, err_msg=key)


def test_numbers_of_scikit_learn(golden_scores):
  pooled = PooledScores()
  for grey, truth in CASES.values():
    pooled.add(as_map(grey), truth)
  result = pooled.result()
  assert result['F_max'] == pytest.approx(golden_scores['pooled/f_max'], abs=1e-12)
  assert result['MAE'] == pytest.approx(golden_scores['pooled/mae'], abs=1e-8)
  expected = {
    round(255 * threshold): (precision, recall)
    for threshold, precision, recall in zip(
      *(golden_scores[f'pooled/{key}'] for key in ('thresholds', 'precision', 'recall')), strict=True
    )
  }
  curve = result['curve']
  for threshold, *point in zip(curve['thresholds'], curve['precision'], curve['recall'], strict=True):
    assert point == pytest.approx(expected[round(255 * threshold)], abs=1e-12)


@given(PAIRS)
def test_davsod_curves_follow_their_definition(pair):
  grey, truth = pair
  scores = frame_saliency(as_map(grey), truth, 'davsod')
  stretched = grey / 255
  if grey.min() < grey.max():
    stretched = (stretched - stretched.min()) / (stretched.max() - stretched.min())
  for index in (0, 1, 100, 200, 254, 255):
    found = stretched >= THRESHOLDS[index]
    overlap = np.count_nonzero(found & truth)
    precision, recall = overlap / max(found.sum(), 1), overlap / max(truth.sum(), 1)
    f = 1.3 * precision * recall / (0.3 * precision + recall) if overlap else 0
    assert (scores.precision[index], scores.recall[index]) == (precision, recall)
    assert scores.f[index] == pytest.approx(f, abs=1e-12)


def test_every_grey_value_reaches_its_own_threshold():
  """Round-off in the thresholds or in the map would drop whole grey values below theirs."""
  grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
  for rule, map_ in itertools.product(RULES, (as_map(grey), grey / 255)):
    scores = frame_saliency(map_, np.ones((16, 16), bool), rule)
    np.testing.assert_array_equal(scores.recall * 256, np.arange(1, 257))


def test_maps_of_16_bits_are_taken_for_what_they_are():
  values = np.arange(0, 65536, 257, dtype=np.float64).reshape(16, 16)
  truth = values > 30000
  for rule in RULES:
    narrow = frame_saliency((values / 65535).astype(np.float32), truth, rule)
    wide = frame_saliency(values / 65535, truth, rule)
    np.testing.assert_array_equal(narrow.f, wide.f)
    assert (narrow.mae, narrow.s) == (wide.mae, wide.s)


@pytest.mark.parametrize('rule', RULES)
def test_maps_are_stretched_unless_constant(rule):
  truth = np.array([[True, False, False]])
  dim = frame_saliency(np.array([[0.75, 0.25, 0.25]]), truth, rule)
  assert (dim.mae, dim.f_adaptive, dim.f.min()) == (0, 1, pytest.approx(1.3 / 3.3))
  flat = frame_saliency(np.full((1, 3), 0.25), truth, rule)
  assert flat.mae == pytest.approx((0.75 + 0.25 + 0.25) / 3)
  assert flat.f_adaptive == 0


def test_centroids_between_pixels_are_rounded_by_the_rule():
  """Matlab's round and NumPy's differ where an object is even in size and its centre even."""
  truth = np.zeros((6, 9), bool)
  truth[0:2, 4:6] = True
  map_ = np.linspace(0, 1, 54).reshape(6, 9)
  assert frame_saliency(map_, truth, 'pysod').s == structure_measure(map_, truth)
  assert frame_saliency(map_, truth, 'davsod').s == structure_measure(map_, truth, halves_up=True)
  assert structure_measure(map_, truth) != structure_measure(map_, truth, halves_up=True)


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (7, 1), (6, 7)])
@pytest.mark.parametrize('rule', RULES)
def test_no_number_is_undefined(shape, rule):
  corners = [np.zeros(shape, bool) for _ in range(4)]
  for corner, (row, column) in zip(corners, itertools.product((0, -1), repeat=2), strict=True):
    corner[row, column] = True
  truths = [np.zeros(shape, bool), np.ones(shape, bool), *corners]
  maps = [truth.astype(np.float32) for truth in truths] + [np.full(shape, 0.2), np.linspace(0, 1, corners[0].size)]
  for map_, truth in itertools.product(maps, truths):
    scores = frame_saliency(map_.reshape(shape), truth, rule)
    for value in (scores.mae, scores.f_adaptive, scores.s):
      assert 0 <= value <= 1
    assert 0 <= scores.e_adaptive <= truth.size / max(truth.size - 1, 1)
    for curve in (scores.precision, scores.recall, scores.f):
      assert curve.shape == (256,) and ((curve >= 0) & (curve <= 1)).all()
    assert np.isfinite(scores.e).all()


@given(SHAPES.flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))))
def test_enhanced_alignment_needs_no_matrix(pair):
  prediction, truth = pair
  if truth.size == 1:
    return
  a, b = prediction - prediction.mean(), truth - truth.mean()
  matrix = (2 * a * b / (a**2 + b**2 + np.spacing(1)) + 1) ** 2 / 4
  if not truth.any() or truth.all():
    matrix = prediction == truth
  counts = (np.count_nonzero(part) for part in (prediction & truth, prediction, truth))
  assert enhanced_alignment(*counts, truth.size) == pytest.approx(matrix.sum() / (truth.size - 1), abs=1e-9)


def test_means_of_clips_weigh_clips_and_means_of_frames_weigh_frames():
  truth = np.array([[True, False]])
  right, wrong = (frame_saliency(np.array([row], np.float32), truth, 'davsod') for row in ([1, 0], [0, 1]))
  assert mean_saliency([right, right, right, wrong]).mae == 0.25
  assert mean_saliency([mean_saliency([right, right, right]), mean_saliency([wrong])]).mae == 0.5


def test_the_greatest_f_is_that_of_the_mean_curve():
  """Not the mean of the frames' own greatest, which have different thresholds."""
  curves = np.zeros((2, 256))
  curves[0, 10], curves[1, 20] = 1, 0.5
  frames = [FrameSaliency(0.1, 0.2, 0.3, 0.4, curve, curve, curve, curve) for curve in curves]
  scores = saliency_scores(mean_saliency(frames))
  assert (scores['F_max'], scores['F_mean']) == (0.5, 0.75 / 256)
  assert (scores['E_max'], scores['E_mean']) == (0.5, 0.75 / 256)
  assert (scores['MAE'], scores['F_adaptive'], scores['S'], scores['E_adaptive']) == pytest.approx((0.1, 0.2, 0.3, 0.4))
  assert scores['curve'] == {
    'precision': curves.mean(axis=0).tolist(),
    'recall': curves.mean(axis=0).tolist(),
    'thresholds': THRESHOLDS.tolist(),
  }


def test_nothing_to_average():
  assert mean_saliency([]) is None
  assert set(saliency_scores(None).values()) == {None}
  assert saliency_scores(None).keys() == saliency_scores(frame_saliency(*one_frame(), 'pysod')).keys()
  assert PooledScores().result() == {'MAE': None, 'F_max': None, 'curve': None}


def one_frame() -> tuple[np.ndarray, np.ndarray]:
  return np.array([[0.9, 0.1]], np.float32), np.array([[True, False]])


@given(FLOATS)
def test_pooled_f_is_exact_over_every_distinct_score(frame):
  scores, truth = frame
  pooled = PooledScores()
  pooled.add(scores, truth)
  assert pooled.result()['F_max'] == pytest.approx(brute_force_f(scores, truth), abs=1e-12)
  assert pooled.result()['MAE'] == pytest.approx(np.abs(scores.astype(np.float64) - truth).mean(), abs=1e-12)


@settings(max_examples=30)
@given(st.lists(FLOATS, min_size=1, max_size=5), st.data(), st.sampled_from([8, 1 << 20]))
def test_processes_and_order_change_nothing(frames, data, exact):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(saliency, '_EXACT', exact)
    whole = PooledScores()
    for frame in frames:
      whole.add(*frame)
    parts = [PooledScores() for _ in range(3)]
    for frame in data.draw(st.permutations(frames)):
      data.draw(st.sampled_from(parts)).add(*frame)
    merged = PooledScores()
    for part in parts:
      merged.merge(pickle.loads(pickle.dumps(part)))
    expected, found = whole.result(), merged.result()
  assert found['MAE'] == pytest.approx(expected.pop('MAE'), abs=1e-12)
  assert {key: found[key] for key in expected} == expected


def test_counts_stay_exact_where_steps_bound_the_memory(monkeypatch):
  monkeypatch.setattr(saliency, '_EXACT', 64)
  rng = np.random.default_rng(0)
  scores, truth = rng.random((40, 50), np.float32), rng.random((40, 50)) < 0.3
  pooled = PooledScores()
  for rows in (slice(0, 10), slice(10, 40)):
    pooled.add(scores[rows], truth[rows])
  result = pooled.result()
  assert result['F_max'] == pytest.approx(brute_force_f(np.floor(scores * 64) / 64, truth), abs=1e-12)
  for threshold, precision, recall in zip(*(result['curve'][key] for key in ('thresholds', 'precision', 'recall'))):
    found = scores >= threshold
    assert precision == pytest.approx(truth[found].mean()) and recall == found[truth].mean()
  assert len(pickle.dumps(pooled)) < 3000


def test_stored_curve_is_thin_and_keeps_its_ends_and_its_best():
  rng = np.random.default_rng(1)
  truth = rng.random((60, 80)) < 0.3
  scores = np.clip(0.3 * truth + 0.7 * rng.random((60, 80)), 0, 1).astype(np.float32)
  pooled = PooledScores()
  pooled.add(scores, truth)
  result = pooled.result()
  precision, recall, thresholds = (np.array(result['curve'][key]) for key in ('precision', 'recall', 'thresholds'))
  assert 200 < len(thresholds) <= 256
  assert (np.diff(thresholds) < 0).all() and (np.diff(recall) >= 0).all()
  assert (thresholds[0], thresholds[-1], recall[-1]) == (scores.max(), scores.min(), 1)
  assert precision[-1] == pytest.approx(truth.mean())
  assert (2 * precision * recall / (precision + recall)).max() == pytest.approx(result['F_max'])


def test_pooled_scores_of_a_truth_without_foreground():
  pooled = PooledScores()
  pooled.add(np.array([[0.25, 0.75]]), np.zeros((1, 2), bool))
  assert pooled.result() == {
    'MAE': 0.5,
    'F_max': 0,
    'curve': {'precision': [0, 0], 'recall': [0, 0], 'thresholds': [0.75, 0.25]},
  }


@pytest.mark.parametrize(
  ('map_', 'truth', 'reason'),
  [
    (np.zeros((2, 3), np.uint8), np.zeros((2, 3), bool), 'float map'),
    (np.zeros((2, 3)), np.zeros((2, 3), np.uint8), 'bool mask'),
    (np.zeros((2, 3)), np.zeros((3, 2), bool), 'one shape'),
    (np.zeros((0, 3)), np.zeros((0, 3), bool), 'one shape'),
    (np.full((2, 3), 1.5), np.zeros((2, 3), bool), r'\[0, 1\]'),
    (np.full((2, 3), np.nan), np.zeros((2, 3), bool), r'\[0, 1\]'),
  ],
)
def test_what_is_no_map_is_refused(map_, truth, reason):
  with pytest.raises(ValueError, match=reason):
    frame_saliency(map_, truth, 'pysod')
  with pytest.raises(ValueError, match=reason):
    PooledScores().add(map_, truth)


def test_unknown_rule():
  with pytest.raises(ValueError, match='davsod, pysod'):
    frame_saliency(*one_frame(), 'adnet-saliency')
