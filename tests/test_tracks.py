from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adnet_jax import tracks
from adnet_jax.tracks import LONGEST_GAP, box_iou, count_overlaps, link


def boxes(*given: tuple[float, float, float, float]) -> np.ndarray:
  return np.array(given, np.float64).reshape(-1, 4)


def test_overlap_of_boxes_with_and_without_the_last_pixel():
  one, others = boxes((0, 0, 10, 10)), boxes((0, 0, 10, 10), (5, 0, 15, 10), (10, 0, 20, 10), (30, 30, 40, 40))
  np.testing.assert_allclose(box_iou(one, others), [[1, 50 / 150, 0, 0]])
  np.testing.assert_allclose(box_iou(one, others, edge=1), [[1, 66 / 176, 11 / 231, 0]])


def test_boxes_without_area_overlap_nothing_not_even_themselves():
  np.testing.assert_array_equal(box_iou(boxes((3, 3, 3, 9)), boxes((3, 3, 3, 9), (0, 0, 9, 9))), [[0, 0]])


def test_counts_of_overlaps_are_those_of_each_with_each(monkeypatch):
  monkeypatch.setattr(tracks, '_ROWS', 3)
  random = np.random.default_rng(0)
  corners = random.uniform(0, 30, (60, 2))
  many = np.concatenate([corners, corners + random.uniform(0, 20, (60, 2))], axis=1)
  for edge in (0, 1):
    expected = (box_iou(many, many, edge) > 0.2).sum(axis=1)
    np.testing.assert_array_equal(count_overlaps(many, many, 0.2, edge), expected)
  assert count_overlaps(boxes(), many, 0.2).shape == (0,) and count_overlaps(many, boxes(), 0.2).tolist() == [0] * 60


def test_a_track_follows_its_object_past_another_one():
  frames = [boxes((x, 0, x + 20, 20), (60, 8, 70, 18)) for x in range(0, 120, 5)]
  assert all(np.array_equal(numbers, [0, 1]) for numbers in link(frames))


@pytest.mark.parametrize(('gap', 'same'), [(LONGEST_GAP, True), (LONGEST_GAP + 1, False)])
def test_a_track_outlives_frames_in_which_the_object_is_missed(gap, same):
  frames = [boxes((0, 0, 9, 9)), *[boxes()] * gap, boxes((0, 0, 9, 9))]
  numbers = link(frames)
  assert (numbers[0][0] == numbers[-1][0]) == same


def test_boxes_apart_begin_tracks_in_order_of_appearance():
  numbers = link([boxes(), boxes((0, 0, 9, 9), (50, 0, 59, 9)), boxes((20, 0, 29, 9))])
  assert [one.tolist() for one in numbers] == [[], [0, 1], [2]]


@given(st.lists(st.lists(st.tuples(*[st.integers(0, 12)] * 2), max_size=5), max_size=8))
def test_a_track_has_one_box_a_frame(corners):
  frames = [boxes(*[(x, y, x + 8, y + 8) for x, y in one]) for one in corners]
  numbers = link(frames)
  assert [len(one) for one in numbers] == [len(one) for one in frames]
  assert all(len(set(one.tolist())) == len(one) for one in numbers)
  seen = [number for one in numbers for number in one.tolist()]
  assert set(seen) == set(range(len(set(seen))))
