"""Sums over a batch whose bits do not depend on how many devices share its frames; knows no modules.

A sum in another order differs in its last bits, and a training multiplies them: a value near 0 comes to lie on the
other side of an activation's kink. So each frame is summed by itself, and then the frames are added in one order.
On a CPU a frame's sum is a matrix product of its own: XLA's reductions there, its products with a vector, and what it
joins in one loop depend on how many frames a program has. On other platforms the usual forms are kept.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from adnet_jax.models import platforms

# Up to how many pixels a frame its product with a kernel is one of its own: how a CPU splits a product of all frames,
# and with it the order of its sums, depends on how many rows there are if these are few.
FEW_PIXELS = 64


def over_frames(values: jax.Array) -> jax.Array:
  """(b, ...) -> (...): vectors by one product, larger arrays pair by pair, first those that one device holds."""
  if values.ndim <= 2:
    values = _on_every_device(values)
    return jnp.einsum('b,b...->...', jnp.ones(len(values), values.dtype), values, precision='highest')
  return _tree(values)


@jax.custom_vjp
def _tree(values):
  mesh = jax.sharding.get_abstract_mesh()
  devices = 1 if mesh.empty else mesh.size
  while (count := len(values)) > 1:
    if devices > 1 and count % (2 * devices):
      values, devices = _on_every_device(values), 1
    pairs = values[: count - count % 2].reshape(count // 2, 2, *values.shape[1:])
    # A last one without a neighbour waits.
    values = jnp.concatenate([pairs[:, 0] + pairs[:, 1], values[count - count % 2 :]])
  return _on_every_device(values)[0]


_tree.defvjp(
  lambda values: (_tree(values), len(values)),
  lambda count, gradient: (jnp.broadcast_to(gradient, (count, *gradient.shape)),),
)


def _on_every_device(values: jax.Array) -> jax.Array:
  """The whole array, and of its gradient too, on each device of the mesh that is set; without one, as it is."""
  if jax.sharding.get_abstract_mesh().empty:
    return values
  return jax.lax.with_sharding_constraint(values, PartitionSpec())


def over_positions(values: jax.Array) -> jax.Array:
  """(b, h, w, c) float32 -> (b, c)."""
  if platforms.target_platform() != 'cpu':
    return values.sum((1, 2))
  b, h, w, c = values.shape
  if c == 1:  # a product of two vectors
    values = _on_every_device(values)
  return jnp.einsum('bp,bpc->bc', jnp.ones((b, h * w), values.dtype), values.reshape(b, h * w, c))


def over_channels(values: jax.Array) -> jax.Array:
  """(b, n, c) float32 -> (b, n)."""
  if platforms.target_platform() != 'cpu':
    return values.sum(-1)
  return jnp.einsum('bnc,bc->bn', values, jnp.ones((len(values), values.shape[2]), values.dtype))


def per_channel(values: jax.Array) -> jax.Array:
  """(c,) -> (1, 1, 1, c), to be combined with (b, h, w, c)."""
  return values[None, None, None]


@jax.custom_vjp
def affine(values: jax.Array, gain: jax.Array, offset: jax.Array) -> jax.Array:
  """values * gain + offset of (b, h, w, c), (c,) and (c,), all float32."""
  return values * per_channel(gain) + per_channel(offset)


def _affine_backward(saved, gradient):
  values, gain = saved
  of_gain, of_offset = (over_frames(over_positions(x)) for x in (gradient * values, gradient))
  return gradient * per_channel(gain), of_gain, of_offset


affine.defvjp(lambda values, gain, offset: (affine(values, gain, offset), (values, gain)), _affine_backward)


@jax.custom_vjp
def shifted(values: jax.Array, offset: jax.Array) -> jax.Array:
  """values + offset of (b, h, w, c) and (c,), both of one floating dtype."""
  return values + per_channel(offset)


def _shifted_backward(_, gradient):
  return gradient, over_frames(over_positions(gradient.astype(_accumulator(gradient)))).astype(gradient.dtype)


shifted.defvjp(lambda values, offset: (shifted(values, offset), None), _shifted_backward)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """(b, h, w, i) times (i, o): (b, h, w, o), all of one floating dtype."""
  if platforms.target_platform() != 'cpu':
    return jax.lax.dot_general(x, kernel, _LAST_AND_FIRST)
  return _product(x, kernel)


_LAST_AND_FIRST = (((3,), (0,)), ((), ()))


@jax.custom_vjp
def _product(x, kernel):
  return _times(x, kernel)


def _times(x, kernel):
  if x.shape[1] * x.shape[2] <= FEW_PIXELS or 1 in kernel.shape:
    kernels = jnp.broadcast_to(kernel, (len(x), *kernel.shape))
    return jnp.einsum('bpi,bio->bpo', x.reshape(len(x), -1, x.shape[3]), kernels).reshape(*x.shape[:3], -1)
  return jax.lax.dot_general(x, kernel, _LAST_AND_FIRST)


def _product_backward(saved, gradient):
  x, kernel = saved
  return _times(gradient, kernel.T), kernel_gradient(x, gradient).astype(kernel.dtype)


_product.defvjp(lambda x, kernel: (_times(x, kernel), (x, kernel)), _product_backward)


def kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """(b, h, w, i) and (b, h, w, o) -> (i, o) in float32 or wider."""
  if x.shape[1] * x.shape[2] > 1:
    return over_frames(kernel_gradients(x, gradient))
  # No product but multiplications, which a CPU joins with the additions.
  one, other = (_on_every_device(values[:, 0, 0]) for values in (x, gradient))
  return jnp.einsum('bi,bo->io', one, other, preferred_element_type=_accumulator(x))


def kernel_gradients(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """(b, h, w, i) and (b, h, w, o) -> (b, i, o) in float32 or wider, a frame's each; `over_frames` adds them."""
  pixels, of_pixels = (values.reshape(len(values), -1, values.shape[3]) for values in (x, gradient))
  return jnp.einsum('bpi,bpo->bio', pixels, of_pixels, preferred_element_type=_accumulator(x))


def _accumulator(x: jax.Array) -> jnp.dtype:
  return jnp.promote_types(x.dtype, jnp.float32)
