"""Distances and similarity maps against brute force over all pairs, and against the network's own attention."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from adnet_jax import similarity
from adnet_jax.models import attention
from adnet_jax.similarity import CurvePoint, Place

embeddings = npst.arrays(np.float32, (3, 4, 5), elements=st.floats(-1e3, 1e3, width=32))
masks = npst.arrays(bool, (3, 4))


def cosine(one, other):
  lengths = math.hypot(*map(float, one)), math.hypot(*map(float, other))
  return sum(float(a) / lengths[0] * float(b) / lengths[1] for a, b in zip(one, other)) if all(lengths) else 0.0


def normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(embeddings, masks, embeddings, masks)
def test_distance_is_the_mean_over_all_pairs(anchor, in_anchor, later, in_later):
  one, other = similarity.mean_direction(anchor, in_anchor), similarity.mean_direction(later, in_later)
  assert (one is None, other is None) == (not in_anchor.any(), not in_later.any())
  if one is None or other is None:
    return
  pairs = [1 - cosine(a, b) for a in anchor[in_anchor] for b in later[in_later]]
  assert similarity.mean_cosine_distance(one, other) == pytest.approx(np.mean(pairs), abs=1e-9)


@given(st.floats(-15, 15), st.floats(-15, 15))
def test_distance_knows_no_lengths(one, other):
  everywhere = np.ones((3, 4), bool)
  expected = similarity.mean_cosine_distance(
    *(similarity.mean_direction(normal(s, 3, 4, 5), everywhere) for s in (0, 1))
  )
  scaled = (
    similarity.mean_direction(normal(s, 3, 4, 5) * np.float32(10.0**e), everywhere) for s, e in ((0, one), (1, other))
  )
  assert similarity.mean_cosine_distance(*scaled) == pytest.approx(expected, abs=1e-6)


def test_distance_at_its_ends():
  pixel = np.ones((1, 1), bool)
  up, down = (similarity.mean_direction(np.full((1, 1, 7), value), pixel) for value in (0.3, -40.0))
  assert 0 <= similarity.mean_cosine_distance(up, up) < 1e-15
  assert similarity.mean_cosine_distance(up, down) == pytest.approx(2)
  nothing = similarity.mean_direction(np.zeros((1, 1, 7), np.float32), pixel)
  assert similarity.mean_cosine_distance(up, nothing) == 1


def test_curve_leaves_out_the_anchor_and_frames_without_foreground():
  x, y = np.array([1.0, 0]), np.array([0, 1.0])
  assert similarity.distances_from_anchor({6: y, 0: x, 3: x, 5: None}) == {3: 0, 6: 1}
  assert similarity.distances_from_anchor({0: None, 1: x}) == similarity.distances_from_anchor({1: x}) == {}


def test_mean_over_clips_counts_those_that_reach_a_distance():
  assert similarity.mean_over_clips([{1: 0.1, 2: 0.4}, {1: 0.3}, {}]) == [CurvePoint(1, 0.2, 2), CurvePoint(2, 0.4, 1)]
  assert similarity.mean_over_clips([]) == []


@pytest.mark.parametrize('size', [1.0, 6.0])
def test_maps_are_rows_and_columns_of_the_network_s_transition_matrix(size, monkeypatch):
  monkeypatch.setattr(similarity, 'BLOCK', 5)
  anchor, current = size * normal(0, 3, 4, 8), size * normal(1, 5, 2, 8)
  rows = similarity.softmax(similarity.scaled_product(anchor.reshape(12, 8), current))
  np.testing.assert_allclose(rows.sum((1, 2)), 1, rtol=1e-5)
  with jax.default_matmul_precision('highest'):
    diffused = attention.anchor_diffusion(anchor.reshape(1, 12, 8), current.reshape(1, 10, 8))
  np.testing.assert_allclose(rows.reshape(12, 10) @ current.reshape(10, 8), diffused[0], atol=1e-4)
  for place in (Place(0, 0), Place(4, 1), Place(2, 0)):
    column = similarity.received_attention(anchor, current, place)
    # The last bits of a scaled product of a hundred are 1e-5, and become the exponential's share.
    np.testing.assert_allclose(column, rows[:, place.y, place.x].reshape(3, 4), rtol=1e-4)


def test_softmax_of_large_scores():
  np.testing.assert_array_equal(similarity.softmax(np.array([[[1e4, -1e4]]], np.float32)), [[[1, 0]]])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.data())
def test_grid_lies_corner_on_corner(h, w, height, width, data):
  mask = data.draw(npst.arrays(bool, (height, width)))
  found = similarity.foreground_on_grid(mask, (h, w))
  assert found.shape == (h, w) and found[0, 0] == mask[0, 0]
  if min(h, w) > 1:
    assert found[-1, -1] == mask[-1, -1]
  place = Place(data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1)))
  assert found[place] == mask[similarity.to_frame(place, (h, w), (height, width))]
  if 1 < h <= height and 1 < w <= width:
    assert similarity.to_grid(similarity.to_frame(place, (h, w), (height, width)), (height, width), (h, w)) == place


def test_telling_pixels():
  disc = np.hypot(*np.mgrid[-20:21, -30:31]) < 8
  inside, *outside = similarity.telling_pixels(disc)
  assert inside == (20, 30) and len(outside) == 2
  assert not any(disc[place] for place in outside)
  assert abs(outside[0].x - outside[1].x) > 20  # one on either side of the disc
  assert similarity.telling_pixels(np.ones((3, 3), bool)) == [(1, 1)]
  assert similarity.telling_pixels(np.zeros((3, 3), bool), 1) == [(1, 1)]


def test_random_pixel_repeats_and_is_foreground():
  mask = np.zeros((9, 9), bool)
  mask[2, 3] = mask[7, 1] = True
  found = {similarity.random_pixel(mask, np.random.default_rng(seed)) for seed in range(20)}
  assert found == {(2, 3), (7, 1)}
  once, again = (similarity.random_pixel(mask, np.random.default_rng(4)) for _ in range(2))
  assert once == again
  assert similarity.random_pixel(np.zeros((2, 2), bool), np.random.default_rng(0)) is None
