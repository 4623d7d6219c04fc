from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adnet_jax.metrics import boundary_map, contour_accuracy

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)
MASKS = SHAPES.flatmap(lambda shape: hnp.arrays(bool, shape))
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape)))


def mask_of(*rows: str) -> np.ndarray:
  return np.array([[sign == '#' for sign in row] for row in rows])


def slow_boundary(mask: np.ndarray) -> np.ndarray:
  """The definition, pixel by pixel: unlike the east, south or south-east neighbour, where there is one."""
  h, w = mask.shape
  result = np.zeros_like(mask)
  for y, x in itertools.product(range(h), range(w)):
    neighbours = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
    result[y, x] = any(mask[y, x] != mask[v, u] for v, u in neighbours if v < h and u < w)
  return result


def slow_accuracy(prediction: np.ndarray, truth: np.ndarray, radius: float) -> float:
  """The definition with distances between all pairs of boundary pixels."""
  found, wanted = (np.argwhere(slow_boundary(mask)) for mask in (prediction, truth))
  if not len(found) or not len(wanted):
    return float(len(found) == len(wanted))
  near = ((found[:, None] - wanted[None]) ** 2).sum(-1) <= radius**2
  precision, recall = near.any(1).mean(), near.any(0).mean()
  return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@given(MASKS)
def test_boundary_follows_its_definition(mask):
  np.testing.assert_array_equal(boundary_map(mask), slow_boundary(mask))


@given(MASKS)
def test_boundary_is_that_of_the_complement(mask):
  np.testing.assert_array_equal(boundary_map(mask), boundary_map(~mask))


@settings(max_examples=50)
@given(PAIRS, st.sampled_from([0.008, 0.1, 0.3, 1, 2, 3.5]))
def test_accuracy_follows_its_definition(pair, tolerance):
  radius = tolerance if tolerance >= 1 else math.ceil(tolerance * np.linalg.norm(pair[0].shape))
  assert contour_accuracy(*pair, tolerance) == pytest.approx(slow_accuracy(*pair, radius), abs=1e-12)


@given(PAIRS)
def test_accuracy_is_symmetric_and_in_range(pair):
  score = contour_accuracy(*pair)
  assert 0 <= score <= 1
  assert score == pytest.approx(contour_accuracy(*reversed(pair)), abs=1e-12)
  assert contour_accuracy(pair[0], pair[0]) == 1


def test_emptiness_is_judged_by_the_boundary():
  empty, full, square = np.zeros((20, 30), bool), np.ones((20, 30), bool), np.zeros((20, 30), bool)
  square[5:9, 5:9] = True
  assert contour_accuracy(empty, empty) == 1
  assert contour_accuracy(full, empty) == 1
  assert contour_accuracy(full, full) == 1
  assert contour_accuracy(square, empty) == 0
  assert contour_accuracy(empty, square) == 0
  assert contour_accuracy(full, square) == 0


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (9, 1)])
def test_thin_masks(shape):
  mask = np.zeros(shape, bool)
  mask.flat[0] = True
  assert boundary_map(mask).sum() == (0 if shape == (1, 1) else 1)
  assert contour_accuracy(mask, mask) == 1


def test_single_pixels_in_the_corners():
  expected = {
    (0, 0): mask_of('#...', '....', '....'),
    (0, 3): mask_of('..##', '....', '....'),
    (2, 0): mask_of('....', '#...', '#...'),
    (2, 3): mask_of('....', '..##', '..#.'),
  }
  for corner, boundary in expected.items():
    mask = np.zeros((3, 4), bool)
    mask[corner] = True
    np.testing.assert_array_equal(boundary_map(mask), boundary)


def test_nothing_is_drawn_where_an_object_leaves_the_image():
  rows, columns = np.mgrid[:8, :9]
  np.testing.assert_array_equal(boundary_map(columns < 3), columns == 2)
  np.testing.assert_array_equal(boundary_map(columns >= 3), columns == 2)
  np.testing.assert_array_equal(boundary_map(rows < 3), rows == 2)
  np.testing.assert_array_equal(boundary_map(rows >= 3), rows == 2)


def test_diagonal_pixels_and_holes():
  diagonal = mask_of('#..', '.#.', '...')
  np.testing.assert_array_equal(boundary_map(diagonal), mask_of('##.', '##.', '...'))
  ring = mask_of('.....', '.###.', '.#.#.', '.###.', '.....')
  np.testing.assert_array_equal(boundary_map(ring), mask_of('####.', '####.', '####.', '####.', '.....'))


def test_tolerance_is_a_euclidean_disk_rounded_up():
  one, other = np.zeros((480, 854), bool), np.zeros((480, 854), bool)
  one[:, 100:] = True
  other[:, 108:] = True  # ceil(7.837) = 8 pixels
  assert contour_accuracy(one, other) == 1
  other[:, 108] = False
  assert contour_accuracy(one, other) == 0
  # 6^2 + 5^2 lies within 8^2, 6^2 + 6^2 does not, though a square or an octagon of that radius holds both.
  dot, near, far = (np.zeros((480, 854), bool) for _ in range(3))
  dot[200, 200], near[206, 205], far[206, 206] = True, True, True
  assert contour_accuracy(dot, near) == 1
  assert contour_accuracy(dot, far) < 1


def test_pixels_and_shares_as_tolerance():
  one, other = np.zeros((40, 30), bool), np.zeros((40, 30), bool)
  one[:, 10:], other[:, 13:] = True, True
  assert contour_accuracy(one, other, 2) == 0
  assert contour_accuracy(one, other, 3) == 1
  assert contour_accuracy(one, other, 0.041) == 1  # ceil(.041 * 50) = 3
  with pytest.raises(ValueError, match='negative'):
    contour_accuracy(one, other, -1)
