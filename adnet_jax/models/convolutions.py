"""Forms of one convolution, all with the same values; knows no modules. `layers.conv` chooses between them.

Arrays are (b, h, w, c); kernels are (kh, kw, in, out); all forms but `plain` have stride 1.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from adnet_jax.models import per_frame

Padding = tuple[tuple[int, int], tuple[int, int]]

# Up to how many values under a kernel they are gathered for one product a frame instead of one a tap.
PATCH_CHANNELS = 256

# Finite points of the Winograd forms by outputs a tile and axis. Multiples of 3/4 are exact in float32 and, with four
# outputs, round off 3.5 times less than the usual 0, +-1, +-2: 1.4e-6 of the largest value where `plain` does 5e-7.
POINTS = {3: (0, 0.75, -0.75, 1.5), 4: (0, 0.75, -0.75, 1.5, -1.5)}


def plain(x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int, padding: Padding) -> jax.Array:
  """XLA's own convolution."""
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, rhs_dilation=(dilation, dilation), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def by_frame(x: jax.Array, kernel: jax.Array, stride: int, dilation: int, padding: Padding) -> jax.Array:
  """`plain`, whose kernel's gradient is summed frame by frame (per_frame.py)."""
  return plain(x, kernel, stride=stride, dilation=dilation, padding=padding)


def _by_frame_backward(stride, dilation, padding, saved, gradient):
  x, kernel = saved
  _, of_input = jax.vjp(lambda x: plain(x, kernel, stride=stride, dilation=dilation, padding=padding), x)
  under = under_taps(x, kernel.shape[:2], stride, dilation, padding)
  if math.prod(kernel.shape[:3]) <= PATCH_CHANNELS:
    of_kernel = per_frame.kernel_gradient(jnp.concatenate(under, -1), gradient)
  else:
    of_kernel = per_frame.over_frames(jnp.stack([per_frame.kernel_gradients(tap, gradient) for tap in under], 1))
  return *of_input(gradient), of_kernel.reshape(kernel.shape).astype(kernel.dtype)


by_frame.defvjp(
  lambda x, kernel, stride, dilation, padding: (by_frame(x, kernel, stride, dilation, padding), (x, kernel)),
  _by_frame_backward,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def dilated(x: jax.Array, kernel: jax.Array, dilation: int, padding: Padding, by_taps: bool) -> jax.Array:
  """`plain` of stride 1, whose kernel's gradient is that of `taps` or of `space_to_batch`.

  XLA knows cuDNN's kernel gradients of undilated convolutions only. It makes any other a convolution whose window is
  the whole map, strided by the dilation: few blocks of work with long sums, and both operands reordered for it.
  """
  return plain(x, kernel, stride=1, dilation=dilation, padding=padding)


def _dilated_backward(dilation, padding, by_taps, saved, gradient):
  x, kernel = saved
  form = taps if by_taps else space_to_batch
  _, of_input = jax.vjp(lambda x: plain(x, kernel, stride=1, dilation=dilation, padding=padding), x)
  _, of_kernel = jax.vjp(lambda kernel: form(x, kernel, dilation=dilation, padding=padding), kernel)
  return *of_input(gradient), *of_kernel(gradient)


dilated.defvjp(
  lambda x, kernel, dilation, padding, by_taps: (dilated(x, kernel, dilation, padding, by_taps), (x, kernel)),
  _dilated_backward,
)


def under_taps(x: jax.Array, size: tuple[int, int], stride: int, dilation: int, padding: Padding) -> list[jax.Array]:
  """What lies under each of the kh * kw taps of a kernel of `size`, row by row: (b, h', w', c) each."""
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  b, h, w, channels = x.shape
  rows, columns = ((n - dilation * (k - 1) - 1) // stride * stride for n, k in zip((h, w), size, strict=True))

  def under(i: int, j: int) -> jax.Array:
    top, left = i * dilation, j * dilation
    end = (b, top + rows + 1, left + columns + 1, channels)
    return jax.lax.slice(x, (0, top, left, 0), end, (1, stride, stride, 1))

  return [under(i, j) for i in range(size[0]) for j in range(size[1])]


def taps(x: jax.Array, kernel: jax.Array, *, dilation: int, padding: Padding) -> jax.Array:
  """One matrix product a tap over the region where the tap meets the image, summed in place."""
  b, h, w, _ = x.shape
  kh, kw, _, out = kernel.shape
  (top, _), (left, _) = padding
  rows, columns = _output_size(x.shape, kernel.shape, dilation, padding)
  y = jnp.zeros((b, rows, columns, out), x.dtype)
  for i in range(kh):
    for j in range(kw):
      # Output row r reads input row r + dy.
      dy, dx = i * dilation - top, j * dilation - left
      r0, r1 = max(0, -dy), min(rows, h - dy)
      c0, c1 = max(0, -dx), min(columns, w - dx)
      if r0 >= r1 or c0 >= c1:
        continue
      part = per_frame.product(x[:, r0 + dy : r1 + dy, c0 + dx : c1 + dx], kernel[i, j])
      y = y + jnp.pad(part, ((0, 0), (r0, rows - r1), (c0, columns - c1), (0, 0)))
  return y


def space_to_batch(x: jax.Array, kernel: jax.Array, *, dilation: int, padding: Padding) -> jax.Array:
  """Each of the dilation x dilation phases of the image moves into the batch, where the convolution does not dilate."""
  b, _, _, c = x.shape
  rows, columns = _output_size(x.shape, kernel.shape, dilation, padding)
  steps = [-(-n // dilation) for n in (rows, columns)]  # outputs of a phase
  x = _phases(x, [n + k - 1 for n, k in zip(steps, kernel.shape[:2], strict=True)], dilation, padding)
  # Frame by frame, so that where frames are shared among devices none leaves its own.
  x = x.transpose(0, 2, 4, 1, 3, 5)
  x = x.reshape(-1, *x.shape[3:5], c)
  y = plain(x, kernel, stride=1, dilation=1, padding=((0, 0), (0, 0)))
  y = y.reshape(b, dilation, dilation, *steps, -1).transpose(0, 3, 1, 4, 2, 5)
  return y.reshape(b, steps[0] * dilation, steps[1] * dilation, -1)[:, :rows, :columns]


def winograd(
  x: jax.Array, kernel: jax.Array, *, dilation: int, padding: Padding, tile: tuple[int, int] = (4, 4)
) -> jax.Array:
  """A 3x3 convolution as (tile + 2)^2 matrix products over tiles of each phase, 2.25 products an output instead of 9.

  Args:
    x: (b, h, w, i) float32; 16-bit types lose too much.
    kernel: (3, 3, i, o).
    dilation: of the kernel; the phases of the image are tiled each by itself.
    padding: any.
    tile: outputs a tile, rows and columns, keys of POINTS.

  Returns:
    (b, h', w', o), equal to `plain` to 5e-6 of the largest value.

  Source: Lavin and Gray 2016; the matrices are Toom and Cook's for POINTS.
  """
  b, _, _, c = x.shape
  rows, columns = _output_size(x.shape, kernel.shape, dilation, padding)
  down, across = (-(-n // (dilation * m)) for n, m in zip((rows, columns), tile, strict=True))  # tiles of a phase
  vertical, horizontal = map(_matrices, tile)
  into, of_kernel, out_of = (np.kron(one, other) for one, other in zip(vertical, horizontal, strict=True))
  x = _phases(x, [down * tile[0] + 2, across * tile[1] + 2], dilation, padding)
  pixels = [
    x[:, i : i + (down - 1) * tile[0] + 1 : tile[0], :, j : j + (across - 1) * tile[1] + 1 : tile[1]]
    for i in range(tile[0] + 2)
    for j in range(tile[1] + 2)
  ]
  # The barrier: XLA would gather the pixels while it multiplies, a third slower.
  stacked = jax.lax.optimization_barrier(jnp.stack(pixels).reshape(len(pixels), -1))
  image = jax.lax.dot(into, stacked).reshape(len(pixels), -1, c)
  weights = jax.lax.dot(of_kernel, kernel.reshape(9, -1)).reshape(len(pixels), *kernel.shape[2:])
  products = jax.lax.dot_general(image, weights, (((2,), (1,)), ((0,), (0,))))
  y = jax.lax.dot(out_of, products.reshape(len(pixels), -1))
  y = y.reshape(*tile, b, down, dilation, across, dilation, -1).transpose(2, 3, 0, 4, 5, 1, 6, 7)
  return y.reshape(b, down * tile[0] * dilation, across * tile[1] * dilation, -1)[:, :rows, :columns]


def winograd_products(size: tuple[int, int], dilation: int, tile: tuple[int, int]) -> float:
  """Products an output value of `winograd` for (h, w) outputs: what is padded to whole tiles counts."""
  share = 1.0
  for n, m in zip(size, tile, strict=True):
    share *= -(-n // (dilation * m)) * (m + 2) * dilation / n
  return share


def taps_products(size: tuple[int, int], dilation: int) -> float:
  """Products an output value of `taps` for (h, w) outputs, 3x3 and as much padding as the kernel reaches."""
  return math.prod(1 + 2 * max(0, n - dilation) / n for n in size)


def phases_products(size: tuple[int, int], dilation: int) -> float:
  """Products an output value of `space_to_batch` for (h, w) outputs and a 3x3 kernel: each phase is padded alike."""
  return 9 * math.prod(-(-n // dilation) * dilation / n for n in size)


def _output_size(shape, kernel, dilation: int, padding: Padding) -> tuple[int, int]:
  rows, columns = (n + sum(p) - dilation * (k - 1) for n, p, k in zip(shape[1:3], padding, kernel[:2], strict=True))
  return rows, columns


def _phases(x: jax.Array, sizes: list[int], dilation: int, padding: Padding) -> jax.Array:
  """(b, h, w, c), padded or cropped at the far edges -> (b, sizes[0], dilation, sizes[1], dilation, c)."""
  pads = []
  for n, size, (before, _) in zip(x.shape[1:3], sizes, padding, strict=True):
    pads.append((before, size * dilation - before - n, 0))
  x = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
  return x.reshape(x.shape[0], sizes[0], dilation, sizes[1], dilation, x.shape[3])


@functools.cache
def _matrices(outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(n, n), (n, 3) and (outputs, n) float32 for pixels, kernel and products of F(outputs, 3), n = outputs + 2."""
  points = np.array(POINTS[outputs], np.float64)
  n = len(points) + 1
  into, of_kernel, out_of = np.zeros((n, n)), np.zeros((n, 3)), np.zeros((outputs, n))
  for j, point in enumerate(points):
    others = np.delete(points, j)
    into[j, : n - 1] = np.polynomial.polynomial.polyfromroots(others)
    of_kernel[j] = point ** np.arange(3) / np.prod(point - others)
    out_of[:, j] = point ** np.arange(outputs)
    # Both matrices' rows of a like magnitude, by powers of two.
    scale = 2.0 ** np.round(np.log2(np.abs(of_kernel[j]).sum()))
    into[j], of_kernel[j] = into[j] * scale, of_kernel[j] / scale
  into[-1], of_kernel[-1, 2], out_of[-1, -1] = np.polynomial.polynomial.polyfromroots(points), 1, 1
  return into.astype(np.float32), of_kernel.astype(np.float32), out_of.astype(np.float32)
