"""Every form of convolution against XLA's own, pooling and resizing against cases worked out by hand, BatchNorm."""

from __future__ import annotations

import functools
import re

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adnet_jax.models import convolutions, layers, platforms


@pytest.fixture(autouse=True, scope='module')
def full_precision():
  with jax.default_matmul_precision('highest'):
    yield


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def reference_conv(x, kernel, stride, dilation, padding, groups=1):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )


def assert_close(found, expected, tolerance=1e-5):
  """Within `tolerance` of the largest magnitude."""
  assert found.shape == expected.shape and found.dtype == expected.dtype
  scale = max(float(jnp.abs(expected).max()), 1e-30) if expected.size else 1.0
  assert float(jnp.abs(found - expected).max(initial=0)) <= tolerance * scale


# Dense convolutions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
@pytest.mark.parametrize(
  ('size', 'kernel', 'stride', 'dilation'),
  [
    ((7, 9), 1, 1, 1),
    ((7, 10), 1, 2, 1),
    ((9, 8), 3, 2, 1),
    ((9, 8), 3, 1, 4),
    ((9, 14), 3, 1, 8),  # taps: partly outside
    ((5, 7), 3, 1, 24),  # taps: all but the centre outside
    ((30, 3), 3, 1, 12),
    ((1, 1), 3, 1, 36),
  ],
)
def test_conv_is_the_same_on_every_platform(platform, size, kernel, stride, dilation):
  x, k = normal(0, 2, *size, 3), normal(1, kernel, kernel, 3, 5)
  padding = layers.symmetric_padding((kernel, kernel), dilation)
  with platforms.lowering_for(platform):
    found = layers.conv(x, k, stride=stride, dilation=dilation, padding=padding)
  assert_close(found, reference_conv(x, k, stride, dilation, padding))


@pytest.mark.parametrize(
  ('size', 'dilation', 'padding'),
  [
    ((17, 23), 1, ((1, 1), (1, 1))),
    ((17, 23), 3, ((3, 3), (3, 3))),
    ((9, 30), 5, ((2, 7), (4, 3))),
    ((5, 5), 8, ((8, 8), (8, 8))),
    ((7, 7), 2, ((0, 0), (0, 0))),
  ],
)
def test_forms_of_a_convolution_have_the_same_values(size, dilation, padding):
  x, k = normal(0, 2, *size, 16), normal(1, 3, 3, 16, 5)
  expected = reference_conv(x, k, 1, dilation, padding)
  forms = [convolutions.taps, convolutions.space_to_batch, convolutions.winograd]
  forms += [functools.partial(convolutions.winograd, tile=tile) for tile in ((3, 3), (3, 4))]
  for form in forms:
    compiled = jax.jit(functools.partial(form, dilation=dilation, padding=padding))
    assert_close(compiled(x, k), expected, 5e-6)


def test_winograd_is_for_wide_convolutions_of_float32_in_inference_on_a_cpu():
  def multiplies(platform='cpu', channels=128, dtype=jnp.float32, inference=True, dilation=2, width=65):
    x, k = jnp.zeros((1, 33, width, channels), dtype), jnp.zeros((3, 3, channels, 8), dtype)
    padding = layers.symmetric_padding((3, 3), dilation)
    options = dict(stride=1, dilation=dilation, padding=padding, inference=inference)
    with platforms.lowering_for(platform):
      jaxpr = jax.make_jaxpr(lambda x, k: layers.conv(x, k, **options))(x, k)
    return {(len(e.invars[0].aval.shape), e.primitive.name) for e in jaxpr.jaxpr.eqns} >= {(3, 'dot_general')}

  assert multiplies() and multiplies(dilation=12)
  assert not multiplies(dilation=60)  # next to nothing is left but the centre
  assert not multiplies('gpu') and not multiplies(channels=64) and not multiplies(width=30)
  assert not multiplies(dtype=jnp.bfloat16) and not multiplies(inference=False)


def test_gradients_of_the_tap_form():
  x, k = normal(0, 2, 20, 11, 3), normal(1, 3, 3, 3, 4)
  padding = layers.symmetric_padding((3, 3), 9)
  weight = normal(2, 2, 20, 11, 4)

  def gradients(function):
    return jax.jit(jax.grad(lambda x, k: (function(x, k) * weight).sum(), (0, 1)))(x, k)

  found = gradients(lambda x, k: convolutions.taps(x, k, dilation=9, padding=padding))
  expected = gradients(lambda x, k: reference_conv(x, k, 1, 9, padding))
  for one, other in zip(found, expected, strict=True):
    assert_close(one, other)


@pytest.mark.parametrize('by_taps', [False, True])
@pytest.mark.parametrize(('size', 'dilation'), [((20, 11), 2), ((7, 9), 4), ((5, 6), 12)])
def test_gradients_of_a_dilated_convolution_on_a_gpu(size, dilation, by_taps):
  x, k, weight = normal(0, 2, *size, 3), normal(1, 3, 3, 3, 4), normal(2, 2, *size, 4)
  padding = layers.symmetric_padding((3, 3), dilation)

  def values_and_gradients(function):
    return function(x, k), *jax.jit(jax.grad(lambda x, k: (function(x, k) * weight).sum(), (0, 1)))(x, k)

  found = values_and_gradients(lambda x, k: convolutions.dilated(x, k, dilation, padding, by_taps))
  expected = values_and_gradients(lambda x, k: reference_conv(x, k, 1, dilation, padding))
  for one, other in zip(found, expected, strict=True):
    assert_close(one, other)


def test_no_convolution_on_a_gpu_has_a_window_of_the_whole_map():
  """What XLA makes of the gradient of a dilated convolution's kernel, for which cuDNN has nothing fast."""
  x, k = jnp.zeros((2, 30, 31, 4), jnp.bfloat16), jnp.zeros((3, 3, 4, 4), jnp.bfloat16)

  def largest_kernel(platform, dilation):
    padding = layers.symmetric_padding((3, 3), dilation)

    def total(x, k):
      return layers.conv(x, k, stride=1, dilation=dilation, padding=padding).astype(jnp.float32).sum()

    with platforms.lowering_for(platform):
      text = jax.jit(jax.grad(total, 1)).lower(x, k).as_text()
    strides = re.findall(r'stablehlo.convolution.*window = {stride = \[(\d+), \d+\]', text)
    return max(map(int, strides), default=1)

  assert largest_kernel('tpu', 2) == 2, 'the window is the map, its stride the dilation'
  assert largest_kernel('gpu', 2) == largest_kernel('gpu', 12) == 1


@pytest.mark.parametrize('dilation', [2, 12])
def test_no_frame_of_a_dilated_convolution_leaves_its_gpu(dilation):
  mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
  rows, everywhere = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (('data',), ()))
  x = jax.ShapeDtypeStruct((8, 33, 33, 4), jnp.float32, sharding=rows)
  k = jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32, sharding=everywhere)
  padding = layers.symmetric_padding((3, 3), dilation)

  def total(x, k):
    return jnp.square(layers.conv(x, k, stride=1, dilation=dilation, padding=padding)).sum()

  with platforms.lowering_for('gpu'), jax.set_mesh(mesh):
    text = jax.jit(jax.grad(total, (0, 1))).lower(x, k).compile().as_text()
  assert 'all-reduce' in text, "the kernel's gradient is summed"
  assert not any(operation in text for operation in ('all-gather', 'all-to-all', 'collective-permute'))


def test_a_1x1_convolution_on_a_gpu_is_a_product_where_cublas_need_not_pad():
  def is_product(shape, dtype=jnp.bfloat16, stride=1):
    x, k = jnp.zeros(shape, dtype), jnp.zeros((1, 1, 4, 4), dtype)
    options = dict(stride=stride, dilation=1, padding=((0, 0), (0, 0)))
    with platforms.lowering_for('gpu'):
      jaxpr = str(jax.make_jaxpr(lambda x, k: layers.conv(x, k, **options))(x, k))
    assert ('dot_general' in jaxpr) != ('conv_general_dilated' in jaxpr)
    return 'dot_general' in jaxpr

  assert is_product((2, 4, 5, 4)) and is_product((1, 3, 5, 4), jnp.float32) and is_product((1, 7, 3, 4), stride=2)
  assert not is_product((1, 3, 5, 4)) and not is_product((1, 6, 5, 4), stride=2)
  x, k = normal(0, 1, 6, 5, 4), normal(1, 1, 1, 4, 3)
  with platforms.lowering_for('gpu'):
    found = layers.conv(x.astype(jnp.bfloat16), k.astype(jnp.bfloat16), stride=2, dilation=1, padding=((0, 0), (0, 0)))
  np.testing.assert_allclose(np.float32(found), x[:, ::2, ::2] @ k[0, 0], atol=0.05)


def test_dilated_convolutions_become_matrix_products_on_a_cpu_only():
  x, k = normal(0, 1, 9, 9, 2), normal(1, 3, 3, 2, 2)

  def primitives(platform, dilation):
    with platforms.lowering_for(platform):
      padding = layers.symmetric_padding((3, 3), dilation)
      return str(jax.make_jaxpr(lambda x, k: layers.conv(x, k, stride=1, dilation=dilation, padding=padding))(x, k))

  assert 'conv_general_dilated' not in primitives('cpu', 12)
  assert 'conv_general_dilated' in primitives('cpu', 2)
  assert 'conv_general_dilated' in primitives('gpu', 12)
  assert platforms.target_platform() == jax.default_backend()  # the choice ends with its context


# Depthwise convolutions ----------------------------------------------------------------------------------------------

DEPTHWISE = [
  ((9, 8), 3, 1, 1),
  ((9, 8), 3, 2, 1),
  ((7, 12), 5, 2, 1),
  ((6, 7), 5, 1, 2),
  ((5, 40), 3, 1, 4),  # a row of more than one run of pixels
  ((3, 70), 5, 2, 1),
  ((1, 1), 5, 1, 1),
  ((2, 1), 3, 2, 1),
]


@pytest.mark.parametrize('same', [False, True])
@pytest.mark.parametrize(('size', 'kernel', 'stride', 'dilation'), DEPTHWISE)
def test_depthwise_by_shifts(size, kernel, stride, dilation, same):
  """Values and both gradients of the form for CPUs are those of XLA's grouped convolution."""
  x, k = normal(0, 2, *size, 6), normal(1, kernel, kernel, 1, 6)
  if same:
    padding = layers.tensorflow_same_padding(size, (kernel, kernel), stride, dilation)
  else:
    padding = layers.symmetric_padding((kernel, kernel), dilation)

  def ours(x, k):
    with platforms.lowering_for('cpu'):
      return layers.depthwise_conv(x, k, stride=stride, dilation=dilation, padding=padding)

  def reference(x, k):
    with platforms.lowering_for('gpu'):
      return layers.depthwise_conv(x, k, stride=stride, dilation=dilation, padding=padding)

  @jax.jit
  def both(x, k, weight):
    result = []
    for function in (ours, reference):
      value, pull = jax.vjp(function, x, k)
      result.append((value, *pull(weight)))
    return result

  weight = normal(2, *jax.eval_shape(reference, x, k).shape)
  found, expected = both(x, k, weight)
  assert_close(expected[0], reference_conv(x, k, stride, dilation, padding, 6))
  for one, other in zip(found, expected, strict=True):
    assert_close(one, other)


def test_depthwise_kernel_gradient_adds_up_in_float32():
  x = jnp.ones((1, 64, 64, 2), jnp.bfloat16)
  k = jnp.ones((3, 3, 1, 2), jnp.bfloat16)
  padding = layers.symmetric_padding((3, 3), 1)
  _, pull = jax.vjp(lambda k: layers._depthwise_by_shifts(x, k, 1, 1, padding), k)
  (gradient,) = pull(jnp.ones((1, 64, 64, 2), jnp.bfloat16))
  assert gradient.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(gradient[1, 1, 0]), 64 * 64, rtol=1e-2)  # a bfloat16 sum would stop at 256


# Padding, pooling, resizing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('n', 'k', 'stride', 'dilation', 'expected'),
  [
    (8, 3, 1, 1, (1, 1)),
    (8, 3, 2, 1, (0, 1)),  # the odd pixel goes to the far edge
    (9, 3, 2, 1, (1, 1)),
    (8, 5, 2, 1, (1, 2)),
    (8, 5, 1, 2, (4, 4)),
    (7, 1, 2, 1, (0, 0)),
    (1, 3, 2, 1, (1, 1)),
  ],
)
def test_tensorflow_padding(n, k, stride, dilation, expected):
  assert layers.tensorflow_same_padding((n, n), (k, k), stride, dilation) == (expected, expected)


@given(n=st.integers(1, 99), k=st.sampled_from([1, 3, 5]), stride=st.integers(1, 3), dilation=st.integers(1, 4))
def test_tensorflow_padding_keeps_ceil_of_the_size(n, k, stride, dilation):
  (before, after), _ = layers.tensorflow_same_padding((n, 1), (k, k), stride, dilation)
  assert 0 <= after - before <= 1
  assert (n + before + after - dilation * (k - 1) - 1) // stride + 1 == -(-n // stride)


def pool_row(values, ceil_mode):
  row = layers.max_pool(jnp.asarray(values, jnp.float32)[None, None, :, None], ceil_mode=ceil_mode)
  return np.asarray(row[0, 0, :, 0]).tolist()


def test_max_pool_by_hand():
  # Windows of three around positions 0, 2, 4, ...; with ceil_mode a window around n joins where n is even.
  assert pool_row([5, 1, 2, 9], False) == [5, 9]
  assert pool_row([5, 1, 2, 9], True) == [5, 9, 9]
  assert pool_row([5, 1, 2, 9, 3], False) == pool_row([5, 1, 2, 9, 3], True) == [5, 9, 9]
  assert pool_row([-7], True) == pool_row([-7], False) == [-7]
  assert pool_row([-7, -8], False) == [-7]
  assert pool_row([-7, -8], True) == [-7, -8]


@pytest.mark.parametrize('ceil_mode', [False, True])
def test_max_pool_is_that_of_pytorch(ceil_mode):
  torch = pytest.importorskip('torch')
  for height in range(1, 10):
    x = np.random.default_rng(height).standard_normal((2, height, 12 - height, 3), np.float32)
    expected = torch.nn.functional.max_pool2d(torch.from_numpy(x).permute(0, 3, 1, 2), 3, 2, 1, ceil_mode=ceil_mode)
    found = layers.max_pool(jnp.asarray(x), ceil_mode=ceil_mode)
    np.testing.assert_array_equal(found, expected.permute(0, 2, 3, 1).numpy())


def test_max_pool_has_a_gradient_within_a_compiled_program():
  x = jnp.asarray([5.0, 1, 2, 9])[None, None, :, None]
  gradient = jax.jit(jax.grad(lambda x: layers.max_pool(x, ceil_mode=True).sum()))(x)
  np.testing.assert_array_equal(gradient[0, 0, :, 0], [1, 0, 0, 2])


@pytest.mark.parametrize('ceil_mode', [False, True])
@pytest.mark.parametrize('size', [(7, 8), (2, 5), (1, 1), (6, 9)])
def test_gradient_of_max_pool_on_a_gpu_goes_to_the_first_largest(size, ceil_mode):
  """Where many are equal, as zeros after a ReLU are."""
  x = jnp.round(jnp.maximum(normal(3, 2, *size, 3), 0))

  def gradient(platform):
    with platforms.lowering_for(platform):
      y, backwards = jax.vjp(lambda x: layers.max_pool(x, ceil_mode=ceil_mode), x)
      return np.asarray(y), np.asarray(backwards(normal(4, *y.shape))[0])

  for found, expected in zip(gradient('gpu'), gradient('cpu'), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_max_pool_of_half_precision():
  assert layers.max_pool(jnp.full((1, 2, 2, 1), -3, jnp.bfloat16), ceil_mode=True).dtype == jnp.bfloat16


def test_resize_by_hand():
  x = jnp.asarray([[0.0, 3.0], [6.0, 9.0]])[None, :, :, None]
  found = np.asarray(layers.resize_align_corners(x, (3, 4))[0, :, :, 0])
  np.testing.assert_allclose(found, [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]], rtol=1e-6)


def test_resize_keeps_corners_and_constants():
  x = normal(0, 1, 5, 7, 2)
  y = layers.resize_align_corners(x, (33, 18))
  for (a, b), (c, d) in zip([(0, 0), (0, 6), (4, 0), (4, 6)], [(0, 0), (0, 17), (32, 0), (32, 17)], strict=True):
    np.testing.assert_allclose(y[0, c, d], x[0, a, b], rtol=1e-6)
  np.testing.assert_allclose(layers.resize_align_corners(jnp.full((1, 3, 4, 1), 2.5), (50, 9)), 2.5, rtol=1e-6)
  assert layers.resize_align_corners(x.astype(jnp.bfloat16), (6, 8)).dtype == jnp.float32


@settings(max_examples=25, deadline=None)
@given(inputs=st.integers(1, 40), outputs=st.integers(1, 90))
def test_resize_matrix_is_linear_interpolation(inputs, outputs):
  matrix = layers.align_corners_matrix(outputs, inputs)
  np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
  assert (matrix >= 0).all() and ((matrix > 0).sum(1) <= 2).all()
  position = np.linspace(0, inputs - 1, outputs) if outputs > 1 else np.zeros(1)
  np.testing.assert_allclose(matrix @ np.arange(inputs), position, atol=1e-4)


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (31, 50), (8, 3)])
def test_resize_is_that_of_pytorch(size):
  torch = pytest.importorskip('torch')
  for shape in ((5, 7), (1, 4), (1, 1)):
    x = np.random.default_rng(0).standard_normal((2, *shape, 3), np.float32)
    expected = torch.nn.functional.interpolate(
      torch.from_numpy(x).permute(0, 3, 1, 2), size, mode='bilinear', align_corners=True
    )
    found = layers.resize_align_corners(jnp.asarray(x), size)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1).numpy(), atol=2e-6)


# Activations and dropout ---------------------------------------------------------------------------------------------


def test_activations():
  x = jnp.asarray([-200.0, -1.0, 0.0, 3.0, 7.0])
  np.testing.assert_allclose(layers.leaky_relu(x), [-2, -0.01, 0, 3, 7], rtol=1e-6)
  np.testing.assert_allclose(layers.relu(x), [0, 0, 0, 3, 7])
  np.testing.assert_allclose(layers.relu6(x), [0, 0, 0, 3, 6])
  np.testing.assert_allclose(jax.vmap(jax.grad(layers.relu))(x), [0, 0, 0, 1, 1])
  edges = jnp.asarray([-1.0, 0.0, 6.0, 5.0])
  np.testing.assert_allclose(jax.vmap(jax.grad(layers.relu6))(edges), [0, 0, 0, 1])
  np.testing.assert_allclose(jax.vmap(jax.grad(layers.leaky_relu))(x), [0.01, 0.01, 1, 1, 1], rtol=1e-6)


def test_a_gradient_keeps_the_output_of_an_activation_not_its_input():
  """The next convolution keeps that anyway: a sixth of a training's memory on a GPU."""
  x = jnp.asarray([-1.0, 2.0, 7.0])
  for activation in (layers.relu, layers.relu6, layers.leaky_relu):
    output, backwards = jax.vjp(activation, x)
    kept = [leaf for leaf in jax.tree.leaves(backwards) if getattr(leaf, 'shape', None) == x.shape]
    assert len(kept) == 1 and np.array_equal(kept[0], output)


def test_channel_dropout():
  x = jnp.ones((40, 3, 5, 50), jnp.bfloat16)
  assert layers.channel_dropout(x, None) is x
  y = np.asarray(layers.channel_dropout(x, jax.random.key(0)), np.float32)
  assert ((y == y[:, :1, :1]).all(axis=(1, 2))).all()  # whole channels
  np.testing.assert_allclose(np.unique(y), [0, 1 / 0.9], rtol=1e-2)
  assert abs((y == 0).mean() - 0.1) < 0.03
  assert layers.channel_dropout(x, jax.random.key(0)).dtype == jnp.bfloat16


# The module ----------------------------------------------------------------------------------------------------------


def random_conv(**options):
  conv = layers.Conv(3, 4, 3, rngs=nnx.Rngs(0), **options)
  if conv.scale is not None:
    for i, variable in enumerate((conv.scale, conv.bias, conv.mean)):
      variable[...] = normal(i, 4)
    conv.var[...] = jnp.abs(normal(9, 4)) + 0.5
  return conv


def test_batch_norm_of_inference():
  conv, x = random_conv(), normal(5, 2, 6, 7, 3)
  y = reference_conv(x, conv.kernel[...], 1, 1, ((1, 1), (1, 1)))
  y, mean, var, scale, bias = (np.asarray(v[...]) for v in (y, conv.mean, conv.var, conv.scale, conv.bias))
  expected = (y - mean) / np.sqrt(var + 1e-5)
  np.testing.assert_allclose(conv(x), expected * scale + bias, atol=2e-5)


@pytest.mark.parametrize('depthwise', [False, True])
def test_folding_is_the_same_function(depthwise):
  conv = layers.Conv(4, 4, 3, depthwise=depthwise, epsilon=1e-3, rngs=nnx.Rngs(0))
  for i, variable in enumerate((conv.scale, conv.bias, conv.mean)):
    variable[...] = normal(i, 4)
  conv.var[...] = jnp.abs(normal(9, 4)) + 0.1
  x = normal(5, 2, 6, 7, 4)
  before = conv(x)
  conv.fold()
  assert conv.scale is None and conv.mean is None and conv.var is None
  assert_close(conv(x), before)
  kernel = conv.kernel[...]
  conv.fold()  # again: nothing
  np.testing.assert_array_equal(conv.kernel[...], kernel)


def test_batch_norm_of_training():
  conv, x = random_conv(momentum=0.1), normal(5, 2, 6, 7, 3)
  mean, var = np.asarray(conv.mean[...]), np.asarray(conv.var[...])
  scale, bias = np.asarray(conv.scale[...]), np.asarray(conv.bias[...])
  y = np.asarray(reference_conv(x, conv.kernel[...], 1, 1, ((1, 1), (1, 1))), np.float64)
  found = conv(x, True)
  expected = (y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 1e-5)  # normalises by the biased variance,
  np.testing.assert_allclose(found, expected * scale + bias, atol=2e-5)
  np.testing.assert_allclose(conv.mean[...], 0.9 * mean + 0.1 * y.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
  unbiased = y.var((0, 1, 2), ddof=1)  # and keeps the unbiased one, as PyTorch does
  np.testing.assert_allclose(conv.var[...], 0.9 * var + 0.1 * unbiased, rtol=1e-5)


def test_running_statistics_carry_no_gradient():
  conv, x = random_conv(), normal(5, 2, 6, 7, 3)
  graph, params, statistics = nnx.split(conv, nnx.Param, nnx.BatchStat)

  def moved(params):
    module = nnx.merge(graph, params, statistics, copy=True)
    module(x, True)
    return module.mean[...].sum() + module.var[...].sum()

  for leaf in jax.tree.leaves(jax.grad(moved)(params)):
    assert not np.asarray(leaf).any()


def test_one_value_a_channel_does_not_divide_by_zero():
  conv = random_conv()
  assert np.isfinite(np.asarray(conv(normal(0, 1, 1, 1, 3), True))).all()
  assert np.isfinite(np.asarray(conv.var[...])).all()


def test_bfloat16_computes_in_bfloat16_and_keeps_statistics_in_float32():
  conv = random_conv(dtype=jnp.bfloat16)
  x = normal(5, 2, 6, 7, 3)
  assert conv(x).dtype == jnp.bfloat16
  assert conv(x, True).dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(conv))} == {np.dtype('float32')}
  exact = random_conv()
  error = np.abs(np.asarray(random_conv(dtype=jnp.bfloat16)(x), np.float32) - exact(x)).max()
  assert 0 < error < 0.02 * np.abs(exact(x)).max()


def test_convolution_with_its_own_bias():
  conv = layers.Conv(3, 4, norm=False, rngs=nnx.Rngs(1))
  assert conv.scale is None and conv.mean is None
  x = normal(0, 1, 2, 2, 3)
  expected = np.asarray(x) @ np.asarray(conv.kernel[0, 0]) + np.asarray(conv.bias[...])
  np.testing.assert_allclose(conv(x), expected, atol=1e-6)
  conv.fold()
  np.testing.assert_allclose(conv(x), expected, atol=1e-6)


def test_initialiser_is_that_of_pytorch():
  kernel = layers.Conv(64, 64, 3, norm=False, rngs=nnx.Rngs(2))
  bound = 1 / np.sqrt(64 * 9)
  for values in (kernel.kernel[...], kernel.bias[...]):
    assert 0.9 * bound < float(jnp.abs(values).max()) <= bound
  assert float(kernel.kernel[...].std()) == pytest.approx(bound / np.sqrt(3), rel=0.02)
