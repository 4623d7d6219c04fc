"""Sums that have the same bits on any number of devices, against NumPy and XLA's own gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from adnet_jax.models import attention, convolutions, per_frame

PADDING = ((2, 1), (0, 3))


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def on_devices(function, count, *batches):
  """What a program over `count` devices gives, each with its part of the batches."""
  mesh = jax.make_mesh((count,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
  with jax.set_mesh(mesh):
    shared = jax.device_put(batches, NamedSharding(mesh, PartitionSpec('data')))
    return jax.tree.map(np.asarray, jax.jit(function)(*shared))


@pytest.mark.parametrize('shape', [(1, 3), (5, 3), (6, 2, 2), (7, 3, 4), (8, 5, 6), (12, 2, 3, 4)])
def test_frames_are_added_whatever_their_number(shape):
  values = normal(0, *shape)
  np.testing.assert_allclose(per_frame.over_frames(values), values.sum(0, dtype=np.float64), rtol=1e-5, atol=1e-6)
  gradient = jax.grad(lambda x: jnp.vdot(per_frame.over_frames(x), values[0]))(values)
  np.testing.assert_allclose(gradient, np.broadcast_to(values[0], shape), rtol=1e-6)


def test_positions_and_channels_are_added():
  values = normal(0, 3, 4, 5, 6)
  np.testing.assert_allclose(per_frame.over_positions(values), values.sum((1, 2)), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(per_frame.over_positions(values[..., :1]), values[..., :1].sum((1, 2)), rtol=1e-5)
  np.testing.assert_allclose(per_frame.over_channels(values[:, 0]), values[:, 0].sum(-1), rtol=1e-5, atol=1e-5)


def convolution(x, kernel):
  return convolutions.by_frame(x, kernel, 2, 3, PADDING)


def usual_convolution(x, kernel):
  return convolutions.plain(x, kernel, stride=2, dilation=3, padding=PADDING)


# Few channels gather the values under a kernel, many do not; one pixel and one output are products with vectors.
PAIRS = {
  'product': (per_frame.product, lambda x, k: x @ k, (3, 7, 5, 4), [(4, 6)]),
  'product of single pixels': (per_frame.product, lambda x, k: x @ k, (3, 1, 1, 4), [(4, 6)]),
  'product to one channel': (per_frame.product, lambda x, k: x @ k, (3, 7, 5, 4), [(4, 1)]),
  'convolution of few channels': (convolution, usual_convolution, (3, 11, 12, 2), [(3, 3, 2, 5)]),
  'convolution of many channels': (convolution, usual_convolution, (3, 11, 12, 40), [(3, 3, 40, 5)]),
  'affine': (per_frame.affine, lambda x, g, o: x * g + o, (3, 7, 5, 4), [(1, 1, 1, 4)] * 2),
  'shifted': (per_frame.shifted, lambda x, o: x + o, (3, 7, 5, 4), [(1, 1, 1, 4)]),
}


@pytest.mark.parametrize('name', PAIRS)
def test_values_and_gradients_are_those_of_the_usual_forms(name):
  function, usual, shape, others = PAIRS[name]
  x, parameters = normal(0, *shape), [normal(1 + i, *other) for i, other in enumerate(others)]
  flat = [p.reshape(-1) if name in ('affine', 'shifted') else p for p in parameters]
  found, of_found = jax.vjp(function, x, *flat)
  expected, of_expected = jax.vjp(usual, x, *parameters)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  gradient = normal(9, *expected.shape)
  for one, other in zip(of_found(gradient), of_expected(gradient), strict=True):
    np.testing.assert_allclose(one, other.reshape(one.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('devices', [2, 4, 8])
def test_gradients_have_the_same_bits_on_any_number_of_devices(devices):
  """As many pixels and channels as a small network has: with a few dozen, a CPU's products depend on the batch."""
  kernels = normal(0, 64, 96), normal(1, 3, 3, 96, 64), normal(2, 64), normal(3, 64)

  def gradients(x, target):
    def loss(kernel, dilated, gain, offset):
      y = jax.nn.relu(per_frame.product(x, kernel))
      y = convolutions.by_frame(y, dilated, 1, 2, ((2, 2), (2, 2)))
      y = per_frame.affine(y, gain, offset) * target
      return per_frame.over_frames(per_frame.over_positions(y)).sum()

    return jax.grad(loss, (0, 1, 2, 3))(*kernels)

  batches = normal(4, 16, 17, 17, 64), normal(5, 16, 17, 17, 64)
  one, several = on_devices(gradients, 1, *batches), on_devices(gradients, devices, *batches)
  jax.tree.map(np.testing.assert_array_equal, several, one)


@pytest.mark.parametrize('devices', [2, 8])
def test_gradients_of_attention_have_the_same_bits_where_each_device_has_a_frame(devices):
  """As JAX differentiates it, the context's did not."""
  batches = normal(0, 8, 578, 128), normal(1, 8, 289, 128), normal(2, 8, 578, 128)

  def gradients(queries, context, target):
    return jax.grad(lambda q, k: jnp.vdot(attention.attend_exact(q, k), target), (0, 1))(queries, context)

  one, several = on_devices(gradients, 1, *batches), on_devices(gradients, devices, *batches)
  jax.tree.map(np.testing.assert_array_equal, several, one)


def test_a_product_of_few_pixels_has_the_same_bits_on_any_number_of_devices():
  """Nine pixels a frame, as at the edges of a dilated kernel: all frames together were summed in another order."""
  kernel, batches = normal(0, 512, 512), (normal(1, 16, 1, 9, 512), normal(2, 16, 1, 9, 512))

  def values_and_gradients(x, target):
    return per_frame.product(x, kernel), *jax.grad(lambda x, k: jnp.vdot(per_frame.product(x, k), target), (0, 1))(
      x, kernel
    )

  one, several = (on_devices(values_and_gradients, count, *batches) for count in (1, 8))
  jax.tree.map(np.testing.assert_array_equal, several, one)
