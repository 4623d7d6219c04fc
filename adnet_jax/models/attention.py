"""Non-local and anchor-diffusion operations of the paper (Eq. 1 and 2) as pure functions of arrays.

Both attend over the pixels of the *current* frame: its embeddings are keys and values, so that one pass with the
queries [X0; Xt] serves both branches. Knows nothing of modules or images.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from adnet_jax.models import per_frame, platforms

# Above this many bytes of float32 scores a frame, `attend` works blockwise: the full model at 857 x 481 needs 350 MB.
EXACT_BYTES = 64 * 2**20
BLOCK = 512
# The TPU kernel's tiles: lengths are padded to them (1 % at 857 x 481), channels to the 128 lanes of a register.
TPU_BLOCK = 512
TPU_LANES = 128

_blockwise_only: contextvars.ContextVar[bool] = contextvars.ContextVar('blockwise_only', default=False)
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar('mesh', default=None)


@contextlib.contextmanager
def blockwise_only() -> Iterator[None]:
  """Makes programs traced inside attend blockwise at any size: the last resort where memory is short."""
  token = _blockwise_only.set(True)
  try:
    yield
  finally:
    _blockwise_only.reset(token)


@contextlib.contextmanager
def kernels(mesh: Mesh) -> Iterator[None]:
  """Lets programs traced inside use the platform's own attention, batches split over the axis `data` of `mesh`.

  For inference: training keeps the forms of this module, whose gradients are known to hold on every platform.
  """
  token = _mesh.set(mesh)
  try:
    yield
  finally:
    _mesh.reset(token)


@jax.custom_vjp
def attend_exact(queries: jax.Array, context: jax.Array) -> jax.Array:
  """softmax(Q K^T / sqrt(c)) K with the whole matrix in memory.

  Args:
    queries: (b, n, c), X0 (anchor diffusion), Xt (intra-frame), or both, one after the other.
    context: (b, m, c), Xt: keys and values.

  Returns:
    (b, n, c) in the dtype of `context`; the softmax is float32.
  """
  return _exact_forward(queries, context)[0]


def _exact_forward(queries, context):
  scores = jnp.einsum('bnc,bmc->bnm', queries, context, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(scores / math.sqrt(context.shape[-1]), axis=-1)
  return jnp.einsum('bnm,bmc->bnc', weights.astype(context.dtype), context), (queries, context, weights)


def _exact_backward(saved, gradient):
  """Written out: differentiated by JAX, its last bits depend on how many frames a device has."""
  queries, context, weights = saved
  einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  of_weights = einsum('bnc,bmc->bnm', gradient, context)
  of_scores = weights * (of_weights - per_frame.over_channels(of_weights * weights)[..., None])
  of_scores = (of_scores / math.sqrt(context.shape[-1])).astype(context.dtype)
  as_value = einsum('bnm,bnc->bmc', weights.astype(context.dtype), gradient)
  as_key = einsum('bnm,bnc->bmc', of_scores, queries)
  of_queries = einsum('bnm,bmc->bnc', of_scores, context)
  return of_queries.astype(queries.dtype), (as_value + as_key).astype(context.dtype)


attend_exact.defvjp(_exact_forward, _exact_backward)


def attend_blockwise(queries: jax.Array, context: jax.Array, block: int = BLOCK) -> jax.Array:
  """The values and gradients of `attend_exact` from (n, block) pieces of the matrix: memory O((n + m) c + n block).

  Args:
    queries: (b, n, c).
    context: (b, m, c).
    block: number of context pixels at a time.

  Returns:
    (b, n, c) in the dtype of `context`.
  """
  return _blockwise(queries, context, min(block, context.shape[1]))


def attend_cudnn(queries: jax.Array, context: jax.Array) -> jax.Array:
  """`attend_exact` by cuDNN's flash attention, for 16-bit types on a GPU: (b, n, c), (b, m, c) -> (b, n, c)."""
  q, k = queries[:, :, None], context[:, :, None]  # one head
  scale = 1 / math.sqrt(context.shape[-1])
  return jax.nn.dot_product_attention(q, k, k, scale=scale, implementation='cudnn')[:, :, 0]


def attend_tpu(queries: jax.Array, context: jax.Array) -> jax.Array:
  """`attend_exact` by the Pallas flash attention that JAX ships for TPUs: (b, n, c), (b, m, c) -> (b, n, c)."""
  from jax.experimental.pallas.ops.tpu import flash_attention as flash  # imports what only a TPU needs

  (_, n, c), m = queries.shape, context.shape[1]
  # Short sequences in one block of whole tiles.
  block_q, block_k = (min(TPU_BLOCK, _up(length, TPU_LANES)) for length in (n, m))
  q = _padded(queries.astype(context.dtype), block_q)
  k = _padded(context, block_k)
  segments = flash.SegmentIds(
    jnp.zeros(q.shape[:2], jnp.int32), jnp.broadcast_to((jnp.arange(k.shape[1]) >= m).astype(jnp.int32), k.shape[:2])
  )
  sizes = flash.BlockSizes(block_q=block_q, block_k_major=block_k, block_k=block_k, block_b=1)
  q, k = q[:, None], k[:, None]
  scale = 1 / math.sqrt(c)
  return flash.flash_attention(q, k, k, segment_ids=segments, sm_scale=scale, block_sizes=sizes)[:, 0, :n, :c]


def attend(queries: jax.Array, context: jax.Array) -> jax.Array:
  """The fastest form: the one place of that choice.

  Where `kernels` allows it, cuDNN's on a GPU that has it and the Pallas kernel on a TPU, both for 16-bit types;
  otherwise `attend_exact` where its matrix is small and `attend_blockwise` where it is not.
  """
  if _blockwise_only.get():
    return attend_blockwise(queries, context)
  mesh, platform = _mesh.get(), platforms.target_platform()
  if mesh is not None and context.dtype.itemsize == 2:
    if platform == 'gpu' and context.shape[-1] % 8 == 0 and context.shape[-1] <= 128 and _has_cudnn_attention():
      return attend_cudnn(queries, context)
    if platform == 'tpu':
      if mesh.size == 1:
        return attend_tpu(queries, context)
      # XLA cannot split a kernel over devices by itself.
      rows = PartitionSpec('data')
      return jax.shard_map(attend_tpu, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(queries, context)
  if 4 * queries.shape[1] * context.shape[1] <= EXACT_BYTES:
    return attend_exact(queries, context)
  return attend_blockwise(queries, context)


def anchor_diffusion(anchor: jax.Array, current: jax.Array) -> jax.Array:
  """X~t = P Xt with P = softmax(X0 Xt^T / sqrt(c)), Eq. 1 and 2: (b, n, c), (b, m, c) -> (b, n, c)."""
  return attend(anchor, current)


def intra_frame(current: jax.Array) -> jax.Array:
  """The non-local operation of the current frame with itself: (b, m, c) -> (b, m, c)."""
  return attend(current, current)


def anchor_diffusion_and_intra_frame(anchor: jax.Array, current: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Both branches in one pass over the current frame's pixels: (b, n, c), (b, m, c) -> (b, n, c), (b, m, c)."""
  both = attend(jnp.concatenate([anchor, current], axis=1), current)
  return both[:, : anchor.shape[1]], both[:, anchor.shape[1] :]


@functools.cache
def _has_cudnn_attention() -> bool:
  """Whether the GPU of this machine is an NVIDIA one from Ampere on; a program exported elsewhere does without."""
  try:
    capability = getattr(jax.local_devices(backend='gpu')[0], 'compute_capability', '0')
    return float(capability) >= 8
  except (RuntimeError, ValueError):  # no GPU; 'gfx90a'
    return False


def _up(length: int, multiple: int) -> int:
  return -(-length // multiple) * multiple


def _padded(x: jax.Array, block: int) -> jax.Array:
  """(b, n, c) with zeros up to whole blocks of pixels and whole registers of channels."""
  return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, -x.shape[2] % TPU_LANES)))


def _blocks(context: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
  """(b, m, c) -> (blocks, b, block, c) zero-padded, and (blocks, block) True where a pixel is real."""
  b, m, c = context.shape
  count = -(-m // block)
  padded = jnp.pad(context, ((0, 0), (0, count * block - m), (0, 0)))
  valid = (jnp.arange(count * block) < m).reshape(count, block)
  return jnp.moveaxis(padded.reshape(b, count, block, c), 1, 0), valid


def _scores(queries: jax.Array, keys: jax.Array, valid: jax.Array) -> jax.Array:
  scores = jnp.einsum('bnc,bmc->bnm', queries, keys, preferred_element_type=jnp.float32)
  return jnp.where(valid[None, None], scores / math.sqrt(keys.shape[-1]), -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _blockwise(queries: jax.Array, context: jax.Array, block: int) -> jax.Array:
  return _blockwise_forward(queries, context, block)[0]


def _blockwise_forward(queries, context, block):
  """A running maximum and sum over the blocks of keys (Milakov and Gimelshein 2018)."""
  b, n, c = queries.shape

  def step(carry, item):
    highest, total, weighted = carry
    keys, valid = item
    scores = _scores(queries, keys, valid)  # (b, n, block)
    new_highest = jnp.maximum(highest, scores.max(-1))
    rescale = jnp.exp(highest - new_highest)
    weights = jnp.exp(scores - new_highest[..., None])
    weighted = weighted * rescale[..., None] + jnp.einsum(
      'bnm,bmc->bnc', weights.astype(keys.dtype), keys, preferred_element_type=jnp.float32
    )
    return (new_highest, total * rescale + weights.sum(-1), weighted), None

  start = (jnp.full((b, n), -jnp.inf), jnp.zeros((b, n)), jnp.zeros((b, n, c)))
  (highest, total, weighted), _ = jax.lax.scan(step, start, _blocks(context, block))
  result = (weighted / total[..., None]).astype(context.dtype)
  return result, (queries, context, result, highest, total)


def _blockwise_backward(block, saved, gradient):
  """Recomputes each block's weights; context is both key and value, so it gets both parts.

  The maximum and the sum are kept apart: where scores are large, the logarithm of the sum would round off the sum.
  """
  queries, context, result, highest, total = saved
  gradient = gradient.astype(jnp.float32)
  scale = 1 / math.sqrt(context.shape[-1])
  inner = per_frame.over_channels(gradient * result.astype(jnp.float32))

  def step(queries_gradient, item):
    keys, valid = item
    weights = jnp.exp(_scores(queries, keys, valid) - highest[..., None]) / total[..., None]
    keys = keys.astype(jnp.float32)
    towards = weights * (jnp.einsum('bnc,bmc->bnm', gradient, keys) - inner[..., None]) * scale
    queries_gradient += jnp.einsum('bnm,bmc->bnc', towards, keys)
    as_value = jnp.einsum('bnm,bnc->bmc', weights, gradient)
    as_key = jnp.einsum('bnm,bnc->bmc', towards, queries.astype(jnp.float32))
    return queries_gradient, as_value + as_key

  queries_gradient, blocks = jax.lax.scan(step, jnp.zeros(queries.shape), _blocks(context, block))
  b, m, c = context.shape
  context_gradient = jnp.moveaxis(blocks, 0, 1).reshape(b, -1, c)[:, :m]
  return queries_gradient.astype(queries.dtype), context_gradient.astype(context.dtype)


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)
