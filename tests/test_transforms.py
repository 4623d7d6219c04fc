"""Augmentation: the window holds the foreground, what lies outside is background, and chance is as the paper says."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adnet_jax.data import transforms

SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 15)
EVERY_ANGLE = st.sampled_from(range(0, 360, 45))


def random_mask(height, width, seed, density=0.2):
  return (np.random.default_rng(seed).random((height, width)) < density).astype(np.uint8)


@settings(deadline=None, max_examples=200)
@given(SIDES, SIDES, SEEDS, EVERY_ANGLE, st.booleans())
def test_window_contains_the_turned_foreground(height, width, seed, degrees, mirror):
  mask = random_mask(height, width, seed)
  turn = transforms.rotation_about_centre(mask.shape, degrees, mirror)
  box = transforms.foreground_box(mask, turn)
  x, y, side = transforms.random_window(mask.shape, box, np.random.default_rng(seed))
  assert side >= min(height, width) / 2
  rows, columns = np.nonzero(mask)
  turned = turn @ np.stack([columns, rows, np.ones_like(rows)])
  # A pixel's centre is half a pixel from its edges: the window is counted in edges.
  assert (turned[0] + 1e-6 >= x).all() and (turned[0] + 1 <= x + side + 1e-6).all()
  assert (turned[1] + 1e-6 >= y).all() and (turned[1] + 1 <= y + side + 1e-6).all()


@settings(deadline=None, max_examples=100)
@given(SIDES, SIDES, SEEDS, st.sampled_from([0.0, 0.51, 1.0]), st.sampled_from([0.0, 1.0]))
def test_every_foreground_pixel_is_seen_in_the_crop(height, width, seed, rotation, flip):
  # Each foreground pixel carries a number of its own, and a crop this large shows each of them several pixels wide.
  mask = random_mask(height, width, seed)
  mask[mask > 0] = np.arange(1, mask.sum() + 1)
  how = transforms.Augmentation(crop=161, rotation=rotation, flip=flip)
  image = np.zeros((height, width, 3), np.uint8)
  _, cropped = transforms.augment(image, mask, how, np.random.default_rng(seed))
  assert set(np.unique(cropped)) - {0} == set(np.unique(mask)) - {0}


@settings(deadline=None, max_examples=30)
@given(st.integers(20, 60), st.integers(20, 60), SEEDS)
def test_outside_the_frame_is_mean_colour_and_background(height, width, seed):
  image = np.full((height, width, 3), (255, 0, 255), np.uint8)
  mask = np.ones((height, width), np.uint8)
  how = transforms.Augmentation(crop=65, rotation=0.0)
  image, mask = transforms.augment(image, mask, how, np.random.default_rng(seed))
  assert image.shape == (65, 65, 3) and mask.shape == (65, 65)
  assert image.dtype == np.uint8 and mask.dtype == np.uint8
  # Interpolation mixes the colours within a source pixel of the frame's edge, which is at most four crop pixels here.
  margin = np.ones((9, 9), np.uint8)
  assert (image[cv2.dilate(mask, margin) == 0] == transforms.MEAN_COLOUR).all()
  inside = cv2.erode(mask, margin, borderType=cv2.BORDER_CONSTANT, borderValue=0) == 1
  assert (image[inside] == (255, 0, 255)).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(1, 60), SEEDS)
def test_masks_stay_binary(height, width, seed):
  image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
  how = transforms.Augmentation(crop=33, rotation=0.3, flip=0.5, colour=0.5)
  image, mask = transforms.augment(image, random_mask(height, width, seed), how, np.random.default_rng(seed))
  assert set(np.unique(mask)) <= {0, 1}


def test_no_rotation_has_the_probability_of_the_paper_and_the_rest_is_shared_evenly():
  rng = np.random.default_rng(0)
  draws = 20_000
  angles = np.array([transforms.random_angle(transforms.Augmentation(1).rotation, rng) for _ in range(draws)])
  found, counts = np.unique(angles, return_counts=True)
  assert found.tolist() == list(range(0, 360, 45))
  expected = np.array([0.51, *[0.07] * 7])
  deviation = np.sqrt(expected * (1 - expected) / draws)
  assert (abs(counts / draws - expected) < 4 * deviation).all()


@pytest.mark.parametrize('shape', [(1, 1), (1, 40), (40, 1), (2, 3)])
@pytest.mark.parametrize('foreground', [0, 1])
def test_tiny_frames_and_masks_without_or_full_of_foreground(shape, foreground):
  image, mask = np.full((*shape, 3), 9, np.uint8), np.full(shape, foreground, np.uint8)
  for seed in range(20):
    rng = np.random.default_rng(seed)
    cropped, cropped_mask = transforms.augment(image, mask, transforms.Augmentation(17, 0.2, 0.5, 0.3), rng)
    assert cropped.shape == (17, 17, 3) and cropped_mask.shape == (17, 17)
    # A line one pixel wide may fall between the samples of a smaller crop.
    assert cropped_mask.any() == foreground or (foreground and 40 in shape)


def test_the_generator_alone_decides():
  image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
  mask = random_mask(30, 50, 1)
  how = transforms.Augmentation(33, flip=0.5, colour=0.3)
  before = image.copy(), mask.copy()
  first, again, other = (transforms.augment(image, mask, how, np.random.default_rng(seed)) for seed in (5, 5, 6))
  np.testing.assert_array_equal(first[0], again[0])
  np.testing.assert_array_equal(first[1], again[1])
  assert (first[0] != other[0]).any()
  np.testing.assert_array_equal(image, before[0])
  np.testing.assert_array_equal(mask, before[1])


def test_a_whole_square_frame_without_rotation_is_resized_and_nothing_else():
  image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
  mask = np.ones((24, 24), np.uint8)
  cropped, cropped_mask = transforms.augment(image, mask, transforms.Augmentation(24, 1.0), np.random.default_rng(0))
  np.testing.assert_array_equal(cropped, image)
  assert cropped_mask.all()


@pytest.mark.parametrize('degrees', range(0, 360, 45))
@pytest.mark.parametrize('mirror', [False, True])
def test_turning_keeps_centre_and_lengths(degrees, mirror):
  turn = transforms.rotation_about_centre((31, 41), degrees, mirror)
  np.testing.assert_allclose(turn @ [20, 15, 1], [20, 15, 1], atol=1e-12)
  np.testing.assert_allclose(turn[:2, :2] @ turn[:2, :2].T, np.eye(2), atol=1e-12)
  assert np.linalg.det(turn) == pytest.approx(-1 if mirror else 1)


def test_colour_jitter_stays_in_range_and_grey_stays_grey():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (8, 8, 3), np.uint8)
  assert transforms.jitter_colour(image, 0.0, rng) is image
  jittered = transforms.jitter_colour(image, 0.9, rng)
  assert jittered.dtype == np.uint8 and (jittered != image).any()
  grey = np.repeat(rng.integers(0, 256, (8, 8, 1), np.uint8), 3, axis=2)
  jittered = transforms.jitter_colour(grey, 0.5, rng)
  assert (jittered == jittered[..., :1]).all()
