"""Edge-aware refinement: against a filter written window by window, on edges that bilinear up-sampling misses."""

from __future__ import annotations

import argparse
import dataclasses

import cv2
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from adnet_jax import options, refinement, weights
from adnet_jax.errors import UsageError
from adnet_jax.models import layers
from adnet_jax.segmenter import Segmenter

pytestmark = pytest.mark.usefixtures('compiled_hastily')


def windowed(probabilities: np.ndarray, picture: np.ndarray, radius: int) -> np.ndarray:
  """The guided filter as its paper defines it (equations 19 to 21), window by window, guide and target of one size."""
  colours = picture / 255.0
  h, w = probabilities.shape
  window = lambda i, j: (slice(max(0, i - radius), i + radius + 1), slice(max(0, j - radius), j + radius + 1))  # noqa: E731
  slopes, offsets = np.zeros((h, w, 3)), np.zeros((h, w))
  for i in range(h):
    for j in range(w):
      x, p = colours[window(i, j)].reshape(-1, 3), probabilities[window(i, j)].ravel()
      centred = x - x.mean(0)
      covariance = centred.T @ centred / len(x) + refinement.EPSILON * np.eye(3)
      slopes[i, j] = np.linalg.solve(covariance, centred.T @ p / len(x))
      offsets[i, j] = p.mean() - slopes[i, j] @ x.mean(0)
  out = np.zeros((h, w))
  for i in range(h):
    for j in range(w):
      out[i, j] = slopes[window(i, j)].reshape(-1, 3).mean(0) @ colours[i, j] + offsets[window(i, j)].mean()
  return np.clip(out, 0, 1)


def blurred(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """What a network with a coarse output says of a mask, at the cells of a grid."""
  height, width = mask.shape
  coarse = cv2.resize(mask.astype(np.float32), (width // 16, height // 16), interpolation=cv2.INTER_AREA)
  return cv2.resize(coarse, grid[::-1], interpolation=cv2.INTER_LINEAR)


def scene() -> tuple[np.ndarray, np.ndarray]:
  """A grainy disc before a grainy ground, 96 x 160, and which pixels are the disc."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:96, :160]
  disc = (y - 50) ** 2 + (x - 70) ** 2 < 33**2
  colours = np.where(disc[..., None], (180, 90, 60), (70, 110, 150)) + rng.normal(0, 8, (96, 160, 3))
  return np.clip(colours, 0, 255).astype(np.uint8), disc


@pytest.mark.parametrize('colourful', [True, False])
def test_agrees_with_the_filter_done_window_by_window(colourful):
  rng = np.random.default_rng(1)
  picture = rng.integers(0, 256, (13, 17, 3)).astype(np.uint8)
  if not colourful:  # the covariance is then singular but for epsilon
    picture[...] = picture[..., :1]
  probabilities = np.float32(rng.random((13, 17)))
  found = refinement.refine(jnp.asarray(probabilities[None]), jnp.asarray(picture[None]), 2)[0]
  np.testing.assert_allclose(found, windowed(probabilities, picture, 2), atol=1e-4 if colourful else 2e-3)


def test_follows_edges_that_upsampling_blurs():
  picture, disc = scene()
  coarse = blurred(disc, (24, 40))
  found = np.asarray(refinement.refine(jnp.asarray(coarse[None]), jnp.asarray(picture[None]), 7))[0] > 0.5
  plain = cv2.resize(coarse, (160, 96)) > 0.5
  assert (found != disc).sum() < 0.25 * (plain != disc).sum()


@pytest.mark.parametrize('flat', [False, True])
@pytest.mark.parametrize(('height', 'width', 'radius'), [(1, 1, 0), (3, 40, 9), (37, 5, 2)])
def test_probabilities_stay_probabilities(height, width, radius, flat):
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 256, (1, height, width, 3)) // (256 if flat else 1)
  probabilities = rng.random((1, -(-height // 4), -(-width // 4)), np.float32)
  found = np.asarray(refinement.refine(jnp.asarray(probabilities), jnp.asarray(picture, jnp.uint8), radius))
  assert found.shape == (1, height, width) and found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize('value', [0.0, 0.3, 1.0])
def test_one_probability_everywhere_stays(value):
  picture, _ = scene()
  found = refinement.refine(jnp.full((1, 24, 40), value), jnp.asarray(picture[None]), 7)
  np.testing.assert_allclose(found, value, atol=1e-4)


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 200))
def test_matrices_are_means(outputs, inputs):
  for matrix in (refinement.area_matrix(outputs, inputs), refinement.box_matrix(inputs, outputs)):
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-5)
    assert matrix.min() >= 0
  if inputs % outputs == 0:
    values = np.random.default_rng(0).random(inputs)
    np.testing.assert_allclose(
      refinement.area_matrix(outputs, inputs) @ values, values.reshape(outputs, -1).mean(1), rtol=1e-5
    )


def test_samples_are_those_of_the_upsampled_output():
  """With cells of one pixel, their centres are the pixels."""
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7, 1)), jnp.float32)
  sampled = refinement.sample(logits, (33, 49), (33, 49))
  np.testing.assert_allclose(sampled, layers.resize_align_corners(logits, (33, 49)), atol=1e-5)


# ----------------------------------------------------------------------------------------------------- in a segmenter


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  return Segmenter.from_pretrained(tiny.write_model(tmp_path_factory.mktemp('models') / 'tiny.safetensors'))


@pytest.fixture
def recommending(plain, tmp_path):
  """A model whose file recommends refinement."""

  path = tmp_path / 'refined.safetensors'
  tiny.write_model(path)
  arrays, strings = weights.read_file(path)
  metadata = dataclasses.replace(weights.parse_metadata(strings, path), refine=16)
  weights.save(path, arrays, metadata, dtype='float32', overwrite=True)
  assert 'refinement  16 pixels' in weights.describe(path)
  return path


def test_the_model_recommends_and_the_caller_decides(plain, recommending):
  frames = tiny.frames(3)
  expected = list(plain.segment(frames, soft=True))
  refined = Segmenter.from_pretrained(recommending)
  assert (plain.refine_radius(tiny.SIZE), refined.refine_radius(tiny.SIZE)) == (0, 16)
  found = list(refined.segment(frames, soft=True))
  assert np.abs(np.subtract(found, expected)).max() > 0.05
  asked = Segmenter.from_pretrained(recommending, refine=0)
  np.testing.assert_array_equal(list(asked.segment(frames, soft=True)), expected)
  np.testing.assert_array_equal(list(Segmenter(plain.model, refine=16).segment(frames, soft=True)), found)
  masks = list(refined.segment(frames))
  np.testing.assert_array_equal(masks, np.stack(found) > 0.5)
  gated = Segmenter.from_pretrained(recommending, 'released', size=tiny.SIZE)
  assert gated.refine_radius(tiny.SIZE) == 0
  # The same share of the frame at another size.
  assert refined.refine_radius((257, 129)) == 32 and asked.refine_radius((257, 129)) == 0


def test_scales_mirror_and_batches_are_refined_once(plain):
  """The mean over passes is what is refined; frames of one batch do not touch each other."""
  frames = tiny.frames(4)
  several = Segmenter(plain.model, scales=(1.0, 1.5), mirror=True, refine=16, batch=4)
  one = Segmenter(plain.model, scales=(1.0, 1.5), mirror=True, refine=16, batch=1)
  np.testing.assert_allclose(list(several.segment(frames, soft=True)), list(one.segment(frames, soft=True)), atol=1e-4)


@pytest.mark.parametrize(
  ('options', 'what'),
  [
    ({'refine': 3}, 'refine is 3'),
    ({'refine': -1}, 'refine is -1'),
    ({'protocol': 'released', 'refine': 8}, 'released'),
  ],
)
def test_what_cannot_be(plain, options, what):
  with pytest.raises(UsageError, match=what):
    Segmenter(plain.model, **options)


def test_the_option():

  assert [options.reach(text) for text in ('0', '4', '28')] == [0, 4, 28]
  for text in ('3', '-1', 'far', '1025'):
    with pytest.raises(argparse.ArgumentTypeError, match='0, or a whole number from 4'):
      options.reach(text)


def test_lowers_for_tpu():
  shapes = jax.ShapeDtypeStruct((4, 109, 193), np.float32), jax.ShapeDtypeStruct((4, 480, 854, 3), np.uint8)
  exported = jax.export.export(jax.jit(lambda p, f: refinement.refine(p, f, 7)), platforms=['tpu'])(*shapes)
  assert exported.out_avals[0].shape == (4, 480, 854) and 'f64' not in exported.mlir_module()
