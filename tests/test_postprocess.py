from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adnet_jax.postprocess import PROTOCOLS, mean_heatmap, mean_logits, opened_dilated_gate, paper_mask, released_step


def rectangle(shape: tuple[int, int], top: int, left: int, height: int, width: int) -> np.ndarray:
  mask = np.zeros(shape, bool)
  mask[top : top + height, left : left + width] = True
  return mask


def test_both_protocols_are_there_and_paper_comes_first():
  assert PROTOCOLS == ('paper', 'released')


def test_the_paper_averages_probabilities_and_the_released_program_logits():
  logits = [np.full((2, 3), 8, np.float32), np.full((2, 3), -2, np.float32)]
  heatmap = mean_heatmap(logits)
  assert heatmap.dtype == np.float32
  np.testing.assert_allclose(heatmap, np.mean([1 / (1 + np.exp(-8)), 1 / (1 + np.exp(2))]), rtol=1e-6)
  np.testing.assert_array_equal(mean_logits(logits), np.full((2, 3), 3, np.float32))
  assert mean_logits(logits).dtype == np.float32


def test_heatmap_of_extreme_logits_stays_finite():
  heatmap = mean_heatmap([np.array([[-1e30, -200, 0, 200, 1e30]], np.float32)])
  np.testing.assert_array_equal(heatmap, [[0, 0, 0.5, 1, 1]])


def test_thresholds_are_strict():
  probabilities = np.array([[0.49, 0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.7]], np.float32)
  np.testing.assert_array_equal(paper_mask(probabilities), [[False, False, True, True]])
  np.testing.assert_array_equal(paper_mask(probabilities, 0.6), [[False, False, False, True]])
  logits = np.array([[0.4, 0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.7]], np.float32)
  np.testing.assert_array_equal(released_step(logits, None)[0], [[False, False, True, True]])


@pytest.mark.parametrize(
  ('count', 'gated'),
  [(4_999, False), (5_000, False), (5_001, True), (99_999, True), (100_000, False), (100_001, False)],
)
def test_bounds_of_the_gate_are_exclusive(count, gated):
  reference = np.zeros((480, 854), bool)
  reference.flat[:count] = True
  assert (opened_dilated_gate(reference) is not None) == gated


def test_gate_is_the_opened_mask_dilated_by_fifty_pixels_each_way():
  gate = opened_dilated_gate(rectangle((480, 854), 200, 300, 80, 90))
  np.testing.assert_array_equal(gate, rectangle((480, 854), 150, 250, 180, 190))


def test_opening_drops_what_no_square_of_fifteen_fits_into():
  body = rectangle((480, 854), 100, 100, 80, 80)
  assert np.array_equal(opened_dilated_gate(body | rectangle((480, 854), 400, 700, 14, 60)), opened_dilated_gate(body))
  kept = opened_dilated_gate(body | rectangle((480, 854), 400, 700, 15, 15))
  np.testing.assert_array_equal(kept, opened_dilated_gate(body) | rectangle((480, 854), 350, 650, 115, 115))


def test_the_border_of_the_image_does_not_erode():
  gate = opened_dilated_gate(rectangle((480, 854), 0, 0, 8, 800))
  np.testing.assert_array_equal(gate, rectangle((480, 854), 0, 0, 58, 850))


def test_a_gate_of_thin_lines_only_lets_nothing_pass():
  lines = np.zeros((480, 854), bool)
  lines[::20] = True
  assert opened_dilated_gate(lines).sum() == 0
  mask, _ = released_step(np.full((480, 854), 9, np.float32), lines)
  assert not mask.any()


def test_the_reference_is_the_mask_before_the_gate():
  here = rectangle((480, 854), 100, 100, 80, 80)
  far = rectangle((480, 854), 300, 600, 80, 80)
  first, reference = released_step(np.where(here, 3, -3).astype(np.float32), None)
  np.testing.assert_array_equal(first, here)
  both = np.where(here | far, 3, -3).astype(np.float32)
  second, reference = released_step(both, reference)
  np.testing.assert_array_equal(second, here)
  np.testing.assert_array_equal(reference, here | far)
  third, _ = released_step(both, reference)
  np.testing.assert_array_equal(third, here | far)


def test_a_frame_of_another_size_starts_without_a_gate():
  logits = np.full((100, 120), 3, np.float32)
  mask, reference = released_step(logits, rectangle((480, 854), 0, 0, 80, 80))
  assert mask.all() and reference.shape == (100, 120)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_gating_equals_multiplying_the_logits(seed):
  rng = np.random.default_rng(seed)
  coarse = rng.random((12, 20)) < 0.3
  reference = np.kron(coarse, np.ones((30, 30), bool))
  logits = rng.normal(0, 2, reference.shape).astype(np.float32)
  gate = opened_dilated_gate(reference)
  expected = logits if gate is None else logits * gate
  mask, following = released_step(logits, reference)
  np.testing.assert_array_equal(mask, expected > 0.5)
  np.testing.assert_array_equal(following, logits > 0.5)
  assert not (mask & ~following).any()
