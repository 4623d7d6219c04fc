from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adnet_jax.metrics import outline
from adnet_jax.metrics.outline import polygons

MASKS = hnp.array_shapes(min_dims=2, max_dims=2, max_side=10).flatmap(lambda shape: hnp.arrays(bool, shape))


def last_to_first(count: int) -> range:
  return range(count - 1, -1, -1)


def rings(mask: np.ndarray) -> list[np.ndarray]:
  """The polygons before simplification: every step is a side of a pixel."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(outline, 'TOLERANCES', ())
    return polygons(mask, last_to_first)


def block(height: int, width: int, *slices: tuple[int, int, int, int]) -> np.ndarray:
  mask = np.zeros((height, width), bool)
  for top, bottom, left, right in slices:
    mask[top:bottom, left:right] = True
  return mask


def area(polygon: np.ndarray) -> float:
  """Positive where the inside lies on the right hand, as (row, column) on the screen."""
  (rows, columns), (next_rows, next_columns) = polygon[:-1].T, polygon[1:].T
  return float(np.sum(columns * next_rows - next_columns * rows) / 2)


def test_a_rectangle_is_its_four_corners_clockwise():
  (polygon,) = polygons(block(20, 30, (4, 15, 6, 28)), last_to_first)
  assert polygon.tolist() == [[4, 6], [4, 28], [15, 28], [15, 6], [4, 6]]


def test_a_full_mask_is_the_border_of_the_image():
  (polygon,) = polygons(np.ones((7, 9), bool), last_to_first)
  assert polygon.tolist() == [[0, 0], [0, 9], [7, 9], [7, 0], [0, 0]]


def test_a_hole_runs_the_other_way():
  mask = block(20, 20, (2, 18, 2, 18))
  mask[6:12, 7:13] = False
  hole, region = polygons(mask, last_to_first)
  assert region.tolist() == [[2, 2], [2, 18], [18, 18], [18, 2], [2, 2]]
  assert hole.tolist() == [[6, 7], [12, 7], [12, 13], [6, 13], [6, 7]]


@pytest.mark.parametrize(
  'slices', [[], [(3, 4, 5, 6)], [(3, 5, 5, 7)], [(3, 4, 0, 12)], [(0, 12, 3, 4)], [(0, 1, 0, 1), (11, 12, 11, 12)]]
)
def test_specks_and_straight_lines_of_one_pixel_leave_nothing(slices):
  assert polygons(block(12, 12, *slices), last_to_first) == []


@pytest.mark.parametrize('shape', [(1, 1), (1, 2), (1, 50), (50, 1), (2, 2)])
def test_images_of_a_pixel_or_two_leave_nothing(shape):
  assert polygons(np.ones(shape, bool), last_to_first) == []


def test_the_smallest_rectangles_that_stay():
  assert [len(p) for p in polygons(block(12, 12, (0, 2, 0, 3), (5, 8, 9, 12)), last_to_first)] == [5, 5]


def test_diagonal_squares_are_two_rings():
  assert [p.tolist() for p in polygons(block(12, 12, (0, 6, 0, 6), (6, 12, 6, 12)), last_to_first)] == [
    [[6, 6], [6, 0], [0, 0], [0, 6], [6, 6]],
    [[6, 6], [6, 12], [12, 12], [12, 6], [6, 6]],
  ]


def test_diagonal_holes_are_two_rings_besides_the_outer_one():
  mask = ~block(16, 16, (2, 8, 2, 8), (8, 14, 8, 14))
  assert sorted(area(p) for p in polygons(mask, last_to_first)) == [-36, -36, 256]


def test_the_order_of_junctions_is_that_of_the_rings():
  mask = block(30, 8, (1, 6, 1, 6), (11, 16, 1, 6), (21, 26, 1, 6))
  assert [p[0, 0] for p in polygons(mask, last_to_first)] == [21, 11, 1]
  assert [p[0, 0] for p in polygons(mask, lambda count: (1, 2, 0)[:count])] == [11, 21, 1]


def test_corners_near_a_line_are_dropped_and_far_ones_are_not():
  stairs = np.tri(40, dtype=bool)  # all of its corners are less than a pixel from the diagonal
  assert len(polygons(stairs, last_to_first)[0]) == 4
  notch = block(20, 20, (0, 20, 0, 20))
  notch[0:1, 8:12] = False
  assert len(polygons(notch, last_to_first)[0]) == 5
  notch[0:3, 8:12] = False
  assert len(polygons(notch, last_to_first)[0]) == 9


@given(MASKS)
def test_rings_hold_each_side_between_unlike_pixels_once(mask):
  padded = np.pad(mask, 1)
  rows, columns = np.nonzero(padded[:, 1:-1][:-1] != padded[:, 1:-1][1:])
  sides = {(2.0 * row, 2.0 * column + 1) for row, column in zip(rows, columns)}
  rows, columns = np.nonzero(padded[1:-1, :-1] != padded[1:-1, 1:])
  sides |= {(2.0 * row + 1, 2.0 * column) for row, column in zip(rows, columns)}
  found = [tuple(middle) for ring in rings(mask) for middle in (ring[1:] + ring[:-1]).tolist()]
  assert len(found) == len(sides) and set(found) == sides


@given(MASKS)
def test_signed_areas_of_rings_add_up_to_the_pixels(mask):
  assert sum(area(ring) for ring in rings(mask)) == np.count_nonzero(mask)


@given(MASKS)
def test_no_ring_touches_itself(mask):
  for ring in rings(mask):
    assert (ring[0] == ring[-1]).all()
    assert len(np.unique(ring[:-1], axis=0)) == len(ring) - 1


@given(MASKS)
def test_polygons_stay_within_reach_of_their_rings(mask):
  mask = np.kron(mask, np.ones((4, 4), bool))
  lines = np.zeros((2, *np.multiply(mask.shape, 8) + 1), np.uint8)
  for image, lists in zip(lines, (rings(mask), polygons(mask, last_to_first))):
    cv2.polylines(image, [np.round(8 * p[:, ::-1]).astype(np.int32) for p in lists], True, 1)
  far = cv2.distanceTransform(1 - lines[0], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
  assert far[lines[1] > 0].max(initial=0) / 8 < 1.5 + 0.2


@given(MASKS, st.tuples(*[st.integers(0, 4)] * 4))
def test_margins_shift_polygons_and_change_nothing_else(mask, margins):
  top, bottom, left, right = margins
  padded = polygons(np.pad(mask, ((top, bottom), (left, right))), last_to_first)
  plain = polygons(mask, last_to_first)
  assert [p.tolist() for p in padded] == [(p + (top, left)).tolist() for p in plain]


def test_polygons_of_the_published_program():
  y, x = np.mgrid[:24, :30]
  mask = (x // 4 * 3 + y // 3 * 5 + (x // 4) * (y // 3)) % 7 < 3
  # mask2polycont of fperazzi/davis, tolerance 3, built with GCC 12.
  assert [p.tolist() for p in polygons(mask, last_to_first)] == [
    [[18, 0], [18, 4], [24, 4], [24, 0], [18, 0]],
    [[21, 24], [18, 24], [18, 30], [24, 30], [24, 28], [21, 28], [21, 24]],
    [[21, 24], [24, 24], [24, 20], [21, 20], [21, 24]],
    [[18, 24], [18, 16], [24, 16], [24, 12], [15, 12], [15, 24], [18, 24]],
    [[6, 24], [3, 24], [3, 20], [6, 20], [6, 24]],
    [[9, 24], [9, 16], [3, 16], [0, 24], [3, 24], [4, 28], [6, 28], [6, 24], [9, 24]],
    [[9, 24], [9, 30], [12, 30], [12, 24], [9, 24]],
    [[3, 28], [0, 28], [0, 30], [3, 30], [3, 28]],
    [[3, 16], [3, 12], [0, 12], [0, 16], [3, 16]],
    [[3, 4], [3, 0], [0, 0], [0, 4], [3, 4]],
    [[3, 4], [3, 8], [12, 8], [12, 0], [9, 0], [9, 4], [3, 4]],
  ]
