from __future__ import annotations

import re
from pathlib import Path

import golden
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from adnet_jax.metrics.fbms import RULES, binary_counts, combine_clips, pooled_prf, region_scores

COUNTS = st.tuples(*[st.integers(0, 50)] * 3)
FRAMES = st.lists(COUNTS, min_size=1, max_size=5)

# P, R, F, extracted objects at .3 and visible ones, as MoSegEval_PR 2.0 prints them for drawn_clip(name, regions): as
# many clusters as regions, more, fewer.
OFFICIAL = {
  ('first', 5): (0.477292, 0.529043, 0.501837, 2, 4),
  ('second', 3): (0.938914, 0.913895, 0.926236, 2, 2),
  ('fifth', 7): (0.562437, 0.49512, 0.526636, 3, 6),
}
# The same at .75 for shifted_clip of the benchmark's own annotation.
OFFICIAL_BMS26 = {
  'cars5': (0.931207, 0.70194, 0.800481, 2, 3),
  'marple4': (0.935945, 0.935945, 0.935945, 1, 1),
}


def drawn_clip(name: str, region_count: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
  """Labels, regions and certainty of three frames, drawn from the name: regions as stripes, clusters that leak."""
  labels, regions, certainty = [], [], []
  for frame in range(3):
    noise, leak, weight = (golden.uniform(f'{name} {frame} {part}', (14, 18)) for part in ('edge', 'leak', 'weight'))
    stripes = (np.arange(18) + 2 * noise + frame) * region_count / 20
    region = np.clip(stripes, 0, region_count - 1).astype(int)
    cluster = (region * 2 + 1) % (region_count + len(name) % 2)
    labels.append(np.where(leak > 0.7, np.abs(leak * 40).astype(int) % 4, np.where(leak < -0.8, -1, cluster)))
    regions.append(region)
    certainty.append(np.rint((weight + 1) * 127) / 255)
  return labels, regions, certainty


def shifted_clip(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """The annotation of a sequence of the older layout, and as clusters the same moved by 9 pixels, regions 2, 3 one."""
  greys = [int(grey) for grey in re.findall(r'Scale of region \d+:\s+(\d+)', next(folder.glob('*Def.dat')).read_text())]
  table = np.zeros(256, int)
  table[greys] = np.arange(len(greys))
  regions = [table[np.asarray(Image.open(path))] for path in sorted(folder.glob('GroundTruth/*.pgm'))]
  return [np.minimum(np.roll(region, 9, axis=1), 2) for region in regions], regions


def test_counts():
  prediction = np.array([[True, True, False, False]])
  truth = np.array([[True, False, True, False]])
  assert binary_counts(prediction, truth) == (1, 1, 1)
  with pytest.raises(ValueError, match='bool'):
    binary_counts(prediction.astype(np.uint8), truth)


def test_a_clip_pools_the_pixels_of_its_frames():
  """A frame with many pixels weighs more: not the mean of the frames' F."""
  assert pooled_prf([(90, 10, 0), (0, 0, 100)]) == {'P': 0.9, 'R': 90 / 190, 'F': pytest.approx(180 / 290)}


@pytest.mark.parametrize(
  ('counts', 'expected'),
  [
    ([(0, 0, 7)], (1, 0, 0)),
    ([(0, 7, 0)], (0, 1, 0)),
    ([(0, 0, 0), (0, 0, 0)], (1, 1, 1)),
    ([(0, 3, 4)], (0, 0, 0)),
    ([], (None, None, None)),
  ],
)
def test_empty_masks_have_numbers(counts, expected):
  assert tuple(pooled_prf(counts).values()) == expected


@given(FRAMES)
def test_pooled_f_is_that_of_the_counts(counts):
  tp, fp, fn = np.sum(counts, axis=0)
  scores = pooled_prf(counts)
  assert scores['F'] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1)
  assert all(0 <= value <= 1 for value in scores.values())


def test_rules_combine_clips_differently():
  clips = [{'P': 1.0, 'R': 0.5, 'F': 2 / 3}, {'P': 0.5, 'R': 1.0, 'F': 2 / 3}]
  assert combine_clips('fbms-pooled', clips) == {'P': 0.75, 'R': 0.75, 'F': pytest.approx(2 / 3)}
  assert combine_clips('fbms-mean-pr', clips) == {'P': 0.75, 'R': 0.75, 'F': 0.75}
  assert combine_clips('fbms-jaccard', [{'J': 0.2}, {'J': 0.6}]) == {'J': pytest.approx(0.4)}
  objects = [{**clip, 'objects': 1, 'visible': 2} for clip in clips]
  assert combine_clips('fbms-official', objects) == {'P': 0.75, 'R': 0.75, 'F': 0.75, 'objects': 2, 'visible': 4}


@pytest.mark.parametrize('rule', RULES)
def test_clips_without_a_counted_frame_are_left_out(rule):
  clip = {'P': 0.5, 'R': 0.5, 'F': 0.5}
  nothing = pooled_prf([])
  assert combine_clips(rule, [nothing, clip]) == clip
  assert combine_clips(rule, [nothing]) == nothing
  assert combine_clips(rule, []) == {}


def test_unknown_rule():
  with pytest.raises(ValueError, match='fbms-official'):
    combine_clips('fbms', [])


def test_clusters_find_their_regions_whatever_they_are_called():
  regions = [np.array([[0, 0, 1, 2], [0, 0, 1, 2]]), np.array([[0, 1, 1, 2], [0, 0, 0, 2]])]
  names = np.array([255, 7, 0])
  scores = region_scores([names[region] for region in regions], regions)
  assert scores == {'P': 1, 'R': 1, 'F': 1, 'objects': 2, 'visible': 2}


def test_a_region_without_a_cluster_has_full_precision_and_no_recall():
  regions = [np.array([[0, 0, 0, 0, 0, 0, 1, 2]])]
  scores = region_scores([np.array([[0, 0, 0, 0, 0, 0, 0, 1]])], regions)
  # Background 6/7 and 1, the first object 1 and 0, the second 1 and 1.
  assert (scores['P'], scores['R']) == (pytest.approx((6 / 7 + 2) / 3), pytest.approx(2 / 3))
  assert (scores['objects'], scores['visible']) == (1, 2)


def test_an_empty_mask_still_has_the_background():
  """As the program counts: P (6/8 + 1) / 2, R (1 + 0) / 2."""
  regions = [np.array([[0, 0, 0, 0, 0, 0, 1, 1]])]
  scores = region_scores([np.zeros((1, 8), bool)], regions)
  assert (scores['P'], scores['R'], scores['objects']) == (0.875, 0.5, 0)


def test_clusters_left_over_cost_the_pixels_only():
  regions = [np.array([[0, 0, 0, 0, 1, 1, 1, 1]])]
  scores = region_scores([np.array([[0, 0, 0, 0, 1, 1, 1, 5]])], regions)
  assert (scores['P'], scores['R']) == (1, 0.875)


def test_unlabelled_pixels_cost_no_recall_but_a_missed_region_does():
  regions = [np.array([[0, 0, 0, 0, 1, 1, 2, 2]])]
  scores = region_scores([np.array([[0, -1, 0, 0, 1, -1, -1, -1]])], regions)
  assert (scores['P'], scores['R'], scores['visible']) == (1, pytest.approx(2 / 3), 2)
  assert region_scores([np.full((1, 8), -1)], regions) == {'P': 1, 'R': 0, 'F': 0, 'objects': 0, 'visible': 2}


def test_certainty_weighs_pixels():
  regions = [np.array([[0, 0, 1, 1]])]
  labels = [np.array([[0, 1, 1, 1]])]
  sure = [np.array([[1.0, 0.0, 1.0, 1.0]])]
  assert region_scores(labels, regions, sure)['F'] == 1
  assert region_scores(labels, regions, [None]) == region_scores(labels, regions)
  half = region_scores(labels, regions, [np.array([[1.0, 0.5, 1.0, 1.0]])])
  assert (half['P'], half['R']) == (pytest.approx((1 + 2 / 2.5) / 2), pytest.approx((1 / 1.5 + 1) / 2))


def test_what_nobody_is_certain_of_is_no_region():
  regions = [np.array([[0, 0, 0, 1]])]
  assert region_scores(regions, regions, [np.array([[1.0, 1.0, 1.0, 0.0]])])['visible'] == 0
  nothing = dict.fromkeys(('P', 'R', 'F', 'objects', 'visible'))
  assert region_scores(regions, regions, [np.zeros((1, 4))]) == nothing
  assert region_scores([], []) == nothing


def test_the_pairing_holds_for_all_frames_together():
  """Clusters that swap between frames are wrong in one of them."""
  regions = [np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 1]])]
  labels = [np.array([[3, 3, 4, 4]]), np.array([[4, 4, 3, 3]])]
  assert region_scores(labels, regions)['F'] == 0.5


@pytest.mark.parametrize('case', OFFICIAL)
def test_numbers_of_the_official_program(case):
  scores = region_scores(*drawn_clip(*case), object_threshold=0.3)
  assert list(scores.values()) == pytest.approx(OFFICIAL[case], abs=1e-6)


@pytest.mark.shared_data
@pytest.mark.parametrize('sequence', OFFICIAL_BMS26)
def test_numbers_of_the_official_program_on_the_benchmark(shared, sequence):
  scores = region_scores(*shifted_clip(shared / 'data' / 'BMS26' / sequence))
  assert list(scores.values()) == pytest.approx(OFFICIAL_BMS26[sequence], abs=1e-6)


@given(
  hnp.arrays(np.int64, (2, 3, 4), elements=st.integers(-1, 4)), hnp.arrays(np.int64, (3, 4), elements=st.integers(0, 3))
)
def test_scores_are_shares(labels, region):
  scores = region_scores(labels, [region, region])
  assert all(0 <= scores[key] <= 1 for key in 'PRF')
  assert 0 <= scores['objects'] <= scores['visible'] <= 3


@pytest.mark.parametrize(
  ('labels', 'regions', 'certainty', 'reason'),
  [
    ([np.zeros((2, 3), int)], [np.zeros((3, 2), int)], None, 'one shape'),
    ([np.zeros((2, 3), int)], [], None, '1 frames of labels, 0 of regions'),
    ([np.zeros((2, 3))], [np.zeros((2, 3), int)], None, 'integers'),
    ([np.zeros((2, 3), int)], [np.full((2, 3), -1)], None, 'numbered from 0'),
    ([np.zeros((2, 3), int)], [np.zeros((2, 3), int)], [np.full((2, 3), np.nan)], 'certainty'),
  ],
)
def test_what_cannot_be_compared_is_refused(labels, regions, certainty, reason):
  with pytest.raises(ValueError, match=reason):
    region_scores(labels, regions, certainty)
