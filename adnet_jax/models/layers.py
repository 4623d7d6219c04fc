"""Convolutions, normalisation and resizing as pure functions, and the one module that holds a convolution's parameters.

Knows nothing of networks, weights files or training. Arrays are (b, h, w, c); kernels are (kh, kw, in, out).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np

from adnet_jax.models import convolutions, per_frame
from adnet_jax.models.convolutions import Padding
from adnet_jax.models.platforms import target_platform

# Dilation from which a convolution on a CPU is done as matrix products over each tap's valid region: XLA's own
# multiplies the padding too. CPU milliseconds of plain and taps, one core, 61 x 108 x 512 -> 512: dilation 4 253 and
# 299, 8 272 and 277, 16 311 and 242 (docs/performance.md, "CPU convolutions", has the machine and the other forms).
TAPS_FROM_DILATION = 8
# From how many channels in and pixels of the map, and up to which share of the other forms' products, Winograd's form
# is used in inference on a CPU: with fewer its transforms cost what it saves, and they are many programs to compile.
# Milliseconds of plain and Winograd, two cores, 256 -> 256: 13 x 23 3.3 and 4.1, 19 x 33 6.7 and 7.7, 28 x 49 13 and 6.
WINOGRAD_CHANNELS = 128
WINOGRAD_PIXELS = 1000
WINOGRAD_SHARE = 0.6
# Up to which share of the products of `space_to_batch` a kernel's gradient on a GPU is that of `taps`, which copies
# what lies under each tap.
TAPS_SHARE = 0.6
# Rows of a matrix of 16-bit numbers that cuBLAS wants a multiple of: XLA copies others to pad them.
CUBLAS_ROWS = 8
# How many random numbers are drawn at once (`uniform_fan_in`).
DRAWS = (1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22, 1 << 24)


def symmetric_padding(size: Sequence[int], dilation: int) -> Padding:
  """PyTorch's padding = dilation * (k - 1) / 2 for a kernel of `size` (kh, kw), both odd."""
  vertical, horizontal = (dilation * (k - 1) // 2 for k in size)
  return (vertical, vertical), (horizontal, horizontal)


def tensorflow_same_padding(shape: Sequence[int], size: Sequence[int], stride: int, dilation: int) -> Padding:
  """TensorFlow's 'same' padding of an (h, w) `shape`: output ceil(n / stride), the odd pixel at the far edge."""
  pads = []
  for n, k in zip(shape, size, strict=True):
    total = max((math.ceil(n / stride) - 1) * stride + dilation * (k - 1) + 1 - n, 0)
    pads.append((total // 2, total - total // 2))
  return pads[0], pads[1]


def conv(
  x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int, padding: Padding, inference: bool = False
) -> jax.Array:
  """Dense convolution (b, h, w, i) * (kh, kw, i, o) -> (b, h', w', o) in the fastest exact form for the platform.

  `inference`: forms whose gradients are slow may be chosen.
  """
  platform = target_platform()
  if kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
    if stride > 1:
      x = x[:, ::stride, ::stride]
    if platform != 'gpu' or x.dtype.itemsize > 2 or math.prod(x.shape[:3]) % CUBLAS_ROWS == 0:
      return per_frame.product(x, kernel[0, 0])
    stride = 1
  if platform == 'gpu' and dilation > 1 and stride == 1 and not inference:
    size = x.shape[1], x.shape[2]
    by_taps = convolutions.taps_products(size, dilation) <= TAPS_SHARE * convolutions.phases_products(size, dilation)
    return convolutions.dilated(x, kernel, dilation, padding, by_taps)
  if platform != 'cpu':
    return convolutions.plain(x, kernel, stride=stride, dilation=dilation, padding=padding)
  if stride == 1:
    tile = _winograd_tile(x, kernel, dilation, padding) if inference else None
    if tile is not None:
      return convolutions.winograd(x, kernel, dilation=dilation, padding=padding, tile=tile)
    if dilation >= TAPS_FROM_DILATION:
      return convolutions.taps(x, kernel, dilation=dilation, padding=padding)
  return convolutions.by_frame(x, kernel, stride, dilation, padding)


def _winograd_tile(x: jax.Array, kernel: jax.Array, dilation: int, padding: Padding) -> tuple[int, int] | None:
  """The cheapest tile of `convolutions.winograd` where it is to be used, else None."""
  wide = kernel.shape[:2] == (3, 3) and kernel.shape[2] >= WINOGRAD_CHANNELS
  if not wide or x.dtype != jnp.float32 or padding != symmetric_padding((3, 3), dilation):
    return None
  size = x.shape[1], x.shape[2]
  if math.prod(size) < WINOGRAD_PIXELS:
    return None

  def cheapest(outputs: int) -> int:
    return min(convolutions.POINTS, key=lambda m: convolutions.winograd_products((outputs, 1), dilation, (m, 1)))

  tile = cheapest(size[0]), cheapest(size[1])
  usual = convolutions.taps_products(size, dilation) if dilation >= TAPS_FROM_DILATION else 9
  return tile if convolutions.winograd_products(size, dilation, tile) <= WINOGRAD_SHARE * usual else None


def depthwise_conv(x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int, padding: Padding) -> jax.Array:
  """Depthwise convolution (b, h, w, c) * (kh, kw, 1, c) -> (b, h', w', c) in the fastest exact form."""
  if target_platform() == 'cpu':
    return _depthwise_by_shifts(x, kernel, stride, dilation, padding)
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise_by_shifts(x: jax.Array, kernel: jax.Array, stride: int, dilation: int, padding: Padding) -> jax.Array:
  """Sum of kh * kw shifted products, which XLA fuses into one loop (its grouped convolution is 20 times slower)."""
  return _sum_of_shifts(x, kernel, stride, dilation, padding)


# A program of its own and without NumPy's indexing: many blocks are traced once, in a tenth of the time.
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _sum_of_shifts(x: jax.Array, kernel: jax.Array, stride: int, dilation: int, padding: Padding) -> jax.Array:
  kh, kw = kernel.shape[:2]

  def tap(under: jax.Array, i: int, j: int) -> jax.Array:
    weight = jax.lax.slice(kernel, (i, j, 0, 0), (i + 1, j + 1, 1, x.shape[-1]))
    return jax.lax.mul(under, jax.lax.broadcast_in_dim(weight, under.shape, (0, 1, 2, 3)))

  under = convolutions.under_taps(x, (kh, kw), stride, dilation, padding)
  return functools.reduce(jax.lax.add, (tap(pixels, *divmod(k, kw)) for k, pixels in enumerate(under)))


def _depthwise_forward(x, kernel, stride, dilation, padding):
  return _depthwise_by_shifts(x, kernel, stride, dilation, padding), (x, kernel)


def _depthwise_backward(stride, dilation, padding, saved, gradient):
  x, kernel = saved
  return (
    _depthwise_input_gradient(gradient, kernel, x.shape, stride, dilation, padding),
    _depthwise_kernel_gradient(gradient, x, kernel.shape, stride, dilation, padding).astype(kernel.dtype),
  )


def _depthwise_input_gradient(gradient, kernel, shape, stride, dilation, padding):
  """The convolution of the gradient, spread out by the stride, with the kernel turned round."""
  pads = []
  for axis in (0, 1):
    reach = dilation * (kernel.shape[axis] - 1)
    spread = (gradient.shape[1 + axis] - 1) * stride + 1
    before = reach - padding[axis][0]
    pads.append((before, shape[1 + axis] + reach - spread - before, stride - 1))
  gradient = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
  return _depthwise_by_shifts(gradient, kernel[::-1, ::-1], 1, dilation, ((0, 0), (0, 0)))


def _depthwise_kernel_gradient(gradient, x, shape, stride, dilation, padding, longest_run: int = 32):
  """Adds up, a run of pixels at a time, the (kh, kw, c) products of a gradient pixel and the pixels under the kernel.

  As kh * kw reductions over whole images (what differentiation gives) this took ten times as long, and runs of 8
  pixels four times as long as runs of 21.
  """
  kh, kw, _, channels = shape
  b, rows, columns, _ = gradient.shape
  runs = -(-columns // longest_run)
  run = -(-columns // runs)
  gradient = jnp.pad(gradient, ((0, 0), (0, 0), (0, runs * run - columns), (0, 0)))
  width = (run - 1) * stride + dilation * (kw - 1) + 1
  needed = (runs - 1) * run * stride + width
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  x = jnp.pad(x, ((0, 0), (0, 0), (0, max(0, needed - x.shape[2])), (0, 0)))

  def add(total, item):
    image, row, start = item
    pixels = jax.lax.dynamic_slice(
      x, (image, row * stride, start * stride, 0), (1, dilation * (kh - 1) + 1, width, channels)
    )[0, ::dilation]
    values = jax.lax.dynamic_slice(gradient, (image, row, start, 0), (1, 1, run, channels))[0, 0]
    for k in range(run):
      at = k * stride
      total = total + (pixels[:, at : at + dilation * (kw - 1) + 1 : dilation] * values[k : k + 1, None]).astype(
        jnp.float32
      )
    return total, None

  where = jnp.meshgrid(jnp.arange(b), jnp.arange(rows), jnp.arange(runs) * run, indexing='ij')
  total, _ = jax.lax.scan(add, jnp.zeros((kh, kw, channels)), tuple(axis.ravel() for axis in where))
  return total[:, :, None]


_depthwise_by_shifts.defvjp(_depthwise_forward, _depthwise_backward)


def max_pool(x: jax.Array, *, ceil_mode: bool) -> jax.Array:
  """3x3 max pooling, stride 2, padding 1; `ceil_mode` keeps a last partial window as PyTorch does."""
  pads = []
  for n in x.shape[1:3]:
    windows = (n - 1) // 2 + 1
    # PyTorch drops a window that would start in the far padding.
    if ceil_mode and (n - 1) % 2 and 2 * windows < n + 1:
      windows += 1
    pads.append((1, max(0, 2 * (windows - 1) + 3 - 1 - n)))
  pool = _max_pool_by_taps if target_platform() == 'gpu' else _max_pool
  return pool(x, (pads[0], pads[1]))


def _max_pool(x: jax.Array, pads: Padding) -> jax.Array:
  # A NumPy value: a traced one would hide from JAX which reduction this is, and that has a gradient.
  return jax.lax.reduce_window(x, _lowest(x), jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), *pads, (0, 0)))


def _lowest(x: jax.Array) -> np.ndarray:
  return np.asarray(-np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min, x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool_by_taps(x: jax.Array, pads: Padding) -> jax.Array:
  """`_max_pool`, whose gradient adds up in one order; XLA's scatters it on a GPU, in whatever order threads come."""
  return _max_pool(x, pads)


def _max_pool_backward(pads, saved, gradient):
  """A window's gradient goes to its first largest value, row by row, as PyTorch's does."""
  x, y = saved
  x = jax.lax.pad(x, _lowest(x), ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)))
  first = jnp.full(y.shape, 9, jnp.int8)
  for tap, pixels in reversed(list(enumerate(convolutions.under_taps(x, (3, 3), 2, 1, ((0, 0), (0, 0)))))):
    first = jnp.where(pixels == y, jnp.int8(tap), first)
  total = jnp.zeros_like(x)
  for tap in range(9):
    part = jnp.where(first == tap, gradient, 0)
    spread = [(at, n - at - 2 * m + 1, 1) for at, n, m in zip(divmod(tap, 3), x.shape[1:3], y.shape[1:3])]
    total += jax.lax.pad(part, jnp.zeros((), x.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
  (top, bottom), (left, right) = pads
  return (total[:, top : x.shape[1] - bottom, left : x.shape[2] - right],)


_max_pool_by_taps.defvjp(lambda x, pads: ((y := _max_pool(x, pads)), (x, y)), _max_pool_backward)


def linear_matrix(positions: np.ndarray, inputs: int) -> np.ndarray:
  """(outputs, inputs) float32 weights of linear interpolation at positions in units of samples; ends are repeated."""
  position = np.clip(positions, 0, inputs - 1)
  low = np.minimum(position.astype(np.int64), max(inputs - 2, 0))
  fraction = position - low
  rows = np.arange(len(position))
  matrix = np.zeros((len(position), inputs))
  matrix[rows, low] = 1 - fraction
  matrix[rows, np.minimum(low + 1, inputs - 1)] += fraction
  return matrix.astype(np.float32)


def align_corners_matrix(outputs: int, inputs: int) -> np.ndarray:
  """(outputs, inputs) float32 weights of linear interpolation that maps the first and last sample onto each other."""
  # The product first: so the last position is the last sample exactly, and no fraction exceeds 1.
  return linear_matrix(np.arange(outputs) * (inputs - 1) / max(outputs - 1, 1), inputs)


def resize_align_corners(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Bilinear up-sampling with align_corners=True of (b, h, w, c) to (b, *size, c), float32 whatever the input is."""
  rows, columns = (align_corners_matrix(*sizes) for sizes in zip(size, x.shape[1:3], strict=True))
  y = x.astype(jnp.float32)
  if target_platform() != 'cpu':
    y = jnp.einsum('Hh,bhwc->bHwc', rows, y, precision='highest')
    return jnp.einsum('Ww,bHwc->bHWc', columns, y, precision='highest')
  # A matrix for each frame, as in `per_frame`.
  of_rows, of_columns = (jnp.broadcast_to(matrix, (len(x), *matrix.shape)) for matrix in (rows, columns))
  y = jnp.einsum('bHh,bhwc->bHwc', of_rows, y, precision='highest')
  return jnp.einsum('bWw,bHwc->bHWc', of_columns, y, precision='highest')


# The gradient of an activation by its output: the next convolution keeps that anyway, and the input need not be kept.


def _with_output(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
  return lambda x: (function(x),) * 2


@jax.custom_vjp
def leaky_relu(x: jax.Array) -> jax.Array:
  """max(x, 0.01 x): the slope of the released networks."""
  return jnp.where(x >= 0, x, 0.01 * x)


leaky_relu.defvjp(_with_output(leaky_relu), lambda y, gradient: (jnp.where(y >= 0, gradient, 0.01 * gradient),))


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
  """max(x, 0) with gradient 0 at 0, as PyTorch's."""
  return jnp.maximum(x, 0)


relu.defvjp(_with_output(relu), lambda y, gradient: (jnp.where(y != 0, gradient, 0),))


@jax.custom_vjp
def relu6(x: jax.Array) -> jax.Array:
  """min(max(x, 0), 6) with gradient 0 at 0 and at 6, as PyTorch's."""
  return jnp.clip(x, 0, 6)


relu6.defvjp(_with_output(relu6), lambda y, gradient: (jnp.where((y != 0) & (y != 6), gradient, 0),))


def channel_dropout(x: jax.Array, key: jax.Array | None, rate: float = 0.1) -> jax.Array:
  """Zeroes whole channels of (b, h, w, c) with probability `rate`, scaling the rest; the identity without a key."""
  if key is None:
    return x
  keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, 1, x.shape[3]))
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


_shapes_only: contextvars.ContextVar[bool] = contextvars.ContextVar('shapes_only', default=False)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
  """Networks built meanwhile have the shapes of their arrays instead of values: no key is needed, nothing traced."""
  token = _shapes_only.set(True)
  try:
    yield
  finally:
    _shapes_only.reset(token)


def _initial(make: Callable[[], jax.Array], shape: tuple[int, ...]) -> Any:
  return jax.ShapeDtypeStruct(shape, jnp.float32) if _shapes_only.get() else make()


def uniform_fan_in(key: jax.Array, shape: Sequence[int], fan_in: int) -> jax.Array:
  """PyTorch's default initialiser of convolutions and their biases: U(-1, 1) / sqrt(fan_in)."""
  bound = 1 / math.sqrt(fan_in)
  # Each length of a draw is a program to compile: one of a few lengths is drawn, and what is too much cut off.
  count = math.prod(shape)
  length = next((length for length in DRAWS if length >= count), count)
  return _first(jax.random.uniform(key, (length,), jnp.float32, -bound, bound), tuple(shape))


@functools.partial(jax.jit, static_argnums=1)
def _first(drawn: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return drawn[: math.prod(shape)].reshape(shape)


def folded(
  kernel: np.ndarray, bias: np.ndarray, statistics: Iterable[np.ndarray], epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
  """Kernel and bias that do what a kernel and BatchNorm do; `statistics`: scale, mean, variance; all float32."""
  scale, mean, var = statistics
  gain = scale / np.sqrt(var + np.float32(epsilon))
  return kernel * gain, bias - mean * gain


class Conv(nnx.Module):
  """A convolution followed by BatchNorm, or by a bias.

  Attributes:
    kernel: (kh, kw, in / groups, out) float32.
    bias: (out,) float32: BatchNorm's, or the convolution's own where there is no BatchNorm.
    scale, mean, var: (out,) float32, BatchNorm's; None where there is none (and after `fold`).
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: int = 1,
    *,
    stride: int = 1,
    dilation: int = 1,
    depthwise: bool = False,
    norm: bool = True,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    tensorflow_padding: bool = False,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    fan_in = size * size * (1 if depthwise else inputs)
    kernel, each = (size, size, 1 if depthwise else inputs, outputs), (outputs,)
    self.kernel = nnx.Param(_initial(lambda: uniform_fan_in(rngs.params(), kernel, fan_in), kernel))
    self.bias = nnx.Param(
      _initial(lambda: jnp.zeros(outputs) if norm else uniform_fan_in(rngs.params(), each, fan_in), each)
    )
    self.scale: Any = nnx.Param(_initial(lambda: jnp.ones(outputs), each)) if norm else None
    self.mean: Any = nnx.BatchStat(_initial(lambda: jnp.zeros(outputs), each)) if norm else None
    self.var: Any = nnx.BatchStat(_initial(lambda: jnp.ones(outputs), each)) if norm else None
    self.stride, self.dilation, self.depthwise = stride, dilation, depthwise
    self.epsilon, self.momentum = epsilon, momentum
    self.tensorflow_padding = tensorflow_padding
    self.dtype = dtype

  def __call__(self, x: jax.Array, batch_statistics: bool = False) -> jax.Array:
    """(b, h, w, in) -> (b, h', w', out) in the compute dtype.

    Args:
      x: any floating dtype; cast to the compute dtype.
      batch_statistics: normalise by this batch's mean and variance and move the running ones (training mode).
    """
    size = self.kernel.shape[:2]
    padding = (
      tensorflow_same_padding(x.shape[1:3], size, self.stride, self.dilation)
      if self.tensorflow_padding
      else symmetric_padding(size, self.dilation)
    )
    # Only inference folds BatchNorm.
    function = depthwise_conv if self.depthwise else functools.partial(conv, inference=self.scale is None)
    y = function(
      x.astype(self.dtype),
      self.kernel[...].astype(self.dtype),
      stride=self.stride,
      dilation=self.dilation,
      padding=padding,
    )
    if self.scale is None:
      return per_frame.shifted(y, self.bias[...].astype(self.dtype))
    mean, var = self._move_statistics(y) if batch_statistics else (self.mean[...], self.var[...])
    gain = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
    offset = self.bias[...] - mean * gain
    return per_frame.affine(y.astype(jnp.float32), gain, offset).astype(self.dtype)

  def _move_statistics(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the batch's biased mean and variance; the running variance takes the unbiased one, as PyTorch's."""
    y = y.astype(jnp.float32)
    count = y.size // y.shape[-1]
    mean = per_frame.over_frames(per_frame.over_positions(y)) / count
    # Moving the mean changes the variance by the sum of deviations, which is 0.
    deviation = y - jax.lax.stop_gradient(per_frame.per_channel(mean))
    var = per_frame.over_frames(per_frame.over_positions(jnp.square(deviation))) / count
    self.mean[...] += self.momentum * (jax.lax.stop_gradient(mean) - self.mean[...])
    unbiased = jax.lax.stop_gradient(var) * (count / max(count - 1, 1))
    self.var[...] += self.momentum * (unbiased - self.var[...])
    return mean, var

  def fold(self) -> None:
    """Folds the running statistics into kernel and bias, in place: the same function for inference, one pass less."""
    if self.scale is None:
      return
    # In NumPy: a hundred shapes, each of which JAX would compile.
    statistics = (np.asarray(v[...]) for v in (self.scale, self.mean, self.var))
    kernel, bias = folded(np.asarray(self.kernel[...]), np.asarray(self.bias[...]), statistics, self.epsilon)
    self.kernel[...], self.bias[...] = jax.device_put((kernel, bias))
    self.scale = self.mean = self.var = None


def epsilons(module: nnx.Module) -> dict[str, float]:
  """Name of each convolution with BatchNorm, such as 'backbone/layer1/0/conv1', and the epsilon of its variance."""
  parts = ((path, part) for path, part in nnx.iter_modules(module) if isinstance(part, Conv))
  return {'/'.join(map(str, path)): part.epsilon for path, part in parts if part.scale is not None}


def run_block(block: Any, x: jax.Array, batch_statistics: bool, remat: bool) -> jax.Array:
  """`block(x, batch_statistics)`; with `remat` its gradient keeps x alone and computes the block again."""
  if not remat:
    return block(x, batch_statistics)
  return nnx.remat(lambda block, x: block(x, batch_statistics))(block, x)
