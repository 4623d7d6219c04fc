"""Both forms of attention agree in values and gradients; the blockwise one never holds the whole matrix."""

from __future__ import annotations

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adnet_jax.models import attention, platforms


@pytest.fixture(autouse=True, scope='module')
def full_precision():
  with jax.default_matmul_precision('highest'):
    yield


def normal(seed, *shape, dtype=np.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def by_hand(queries, context):
  """softmax(Q K^T / sqrt(c)) K in float64."""
  queries, context = np.asarray(queries, np.float64), np.asarray(context, np.float64)
  scores = queries @ context.transpose(0, 2, 1) / math.sqrt(context.shape[-1])
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return (weights / weights.sum(-1, keepdims=True)) @ context


def difference(found, expected):
  """Largest difference, relative to the largest magnitude."""
  found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
  assert found.shape == expected.shape
  return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)


def gradients(function, queries, context, weight):
  return jax.jit(jax.grad(lambda q, k: (function(q, k) * weight).sum(), (0, 1)))(queries, context)


def test_diffusion_is_the_weighted_mean_of_the_current_frame():
  """Eq. 1 and 2 by hand: one anchor pixel, two current pixels."""
  anchor, current = jnp.asarray([[[2.0, 0, 0, 0]]]), jnp.asarray([[[1.0, 0, 0, 0], [0, 3.0, 0, 0]]])
  first = math.exp(2 / 2) / (math.exp(2 / 2) + 1)  # scores 2 and 0, over sqrt(4)
  expected = [[[first, 3 * (1 - first), 0, 0]]]
  for form in (attention.attend_exact, attention.attend_blockwise):
    np.testing.assert_allclose(form(anchor, current), expected, rtol=1e-6)
  np.testing.assert_allclose(attention.anchor_diffusion(anchor, current), expected, rtol=1e-6)


@pytest.mark.parametrize(
  ('n', 'm', 'block'),
  [(35, 35, 8), (7, 33, 33), (64, 65, 64), (1, 1, 512), (3, 40, 1)],
)
@pytest.mark.parametrize('size', [1.0, 4.0])
def test_blockwise_agrees_in_values_and_gradients(n, m, block, size):
  """Sizes that blocks do not divide; attention that is spread out, and that picks a pixel or two."""
  queries, context, weight = size * normal(0, 2, n, 16), size * normal(1, 2, m, 16), normal(2, 2, n, 16)
  exact = jax.jit(attention.attend_exact)(queries, context)
  blockwise = jax.jit(attention.attend_blockwise, static_argnums=2)(queries, context, block)
  assert difference(exact, by_hand(queries, context)) < 1e-5
  assert difference(blockwise, exact) < 1e-5
  expected = gradients(attention.attend_exact, queries, context, weight)
  found = gradients(lambda q, k: attention.attend_blockwise(q, k, block), queries, context, weight)
  largest = max(float(jnp.abs(g).max()) for g in expected)
  for one, other in zip(found, expected, strict=True):
    assert float(jnp.abs(one - other).max()) < 1e-5 * largest


@settings(max_examples=6, deadline=None)
@given(n=st.integers(1, 20), m=st.integers(1, 30), block=st.integers(1, 40), shift=st.floats(-30, 30))
def test_any_size_and_block(n, m, block, shift):
  """Also where scores are far from zero: the running maximum keeps exponentials in range."""
  queries, context = normal(n, 1, n, 8) + shift, normal(m, 1, m, 8) + abs(shift)
  found = attention.attend_blockwise(queries, context, block)
  assert np.isfinite(np.asarray(found)).all()
  assert difference(found, by_hand(queries, context)) < 1e-4  # float32 scores of thousands keep four digits


def test_gradient_in_which_queries_and_keys_are_the_same_array():
  x, weight = normal(0, 1, 27, 8), normal(1, 1, 27, 8)

  def gradient(form):
    return jax.jit(jax.grad(lambda x: (form(x, x) * weight).sum()))(x)

  found = gradient(lambda q, k: attention.attend_blockwise(q, k, 10))
  assert difference(found, gradient(attention.attend_exact)) < 1e-5


def arrays_of(jaxpr):
  """Shapes of every array that a program computes, those of its loops and functions included."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield tuple(variable.aval.shape)
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
      if is_jaxpr(inner):
        yield from arrays_of(getattr(inner, 'jaxpr', inner))


def is_jaxpr(value):
  return hasattr(value, 'eqns') or hasattr(value, 'jaxpr')


@pytest.mark.parametrize('with_gradient', [False, True])
def test_blockwise_holds_no_whole_matrix(with_gradient):
  n = m = 2000

  def program(form):
    def run(anchor, current):
      return (form(jnp.concatenate([anchor, current], 1), current) ** 2).sum()

    function = jax.grad(run, (0, 1)) if with_gradient else run
    x = jax.ShapeDtypeStruct((1, n, 16), jnp.float32)
    return list(arrays_of(jax.make_jaxpr(function)(x, x).jaxpr))

  blockwise = program(lambda q, k: attention.attend_blockwise(q, k, 128))
  assert max(map(math.prod, blockwise)) == 2 * n * 128  # a strip of the scores
  assert not any(sum(side >= n for side in shape) > 1 for shape in blockwise)
  assert (1, 2 * n, m) in program(attention.attend_exact)  # the walk does see it where it is


def test_choice_by_size(monkeypatch):
  taken = []
  monkeypatch.setattr(attention, 'attend_exact', lambda q, k: taken.append('exact'))
  monkeypatch.setattr(attention, 'attend_blockwise', lambda q, k: taken.append('blockwise'))
  small, large = jnp.zeros((1, 100, 4)), jnp.zeros((1, 6588, 4))  # 857 x 481 at stride 8
  attention.attend(small, small)
  attention.attend(jnp.concatenate([large, large], 1), large)
  assert taken == ['exact', 'blockwise']
  assert attention.EXACT_BYTES < 4 * 2 * 6588 * 6588


def test_both_branches_share_one_pass(monkeypatch):
  """One call over the current frame's keys, with the queries of both branches, and the values of two calls."""
  anchor, current = normal(0, 2, 12, 8), normal(1, 2, 15, 8)
  calls = []
  attend = attention.attend
  monkeypatch.setattr(attention, 'attend', lambda q, k: calls.append((q.shape, k.shape)) or attend(q, k))
  diffused, intra = attention.anchor_diffusion_and_intra_frame(anchor, current)
  assert calls == [((2, 27, 8), (2, 15, 8))]
  assert diffused.shape == (2, 12, 8) and intra.shape == (2, 15, 8)
  assert difference(diffused, by_hand(anchor, current)) < 1e-5
  assert difference(intra, by_hand(current, current)) < 1e-5
  assert difference(attention.intra_frame(current), intra) < 1e-6
  assert difference(attention.anchor_diffusion(anchor, current), diffused) < 1e-6


def test_network_makes_one_scan_for_both_branches(monkeypatch):
  from adnet_jax.models import adnet

  monkeypatch.setattr(attention, 'EXACT_BYTES', 0)
  x = jax.ShapeDtypeStruct((1, 9, 7, 8), jnp.float32)
  jaxpr = jax.make_jaxpr(lambda a, c: adnet._branches(adnet.VARIANTS['full'], a, c))(x, x)
  assert str(jaxpr).count('scan[') == 1


@pytest.mark.parametrize('form', [attention.attend_exact, lambda q, k: attention.attend_blockwise(q, k, 16)])
def test_bfloat16_keeps_the_softmax_in_float32(form):
  queries, context = 3 * normal(0, 1, 20, 64, dtype=jnp.bfloat16), 3 * normal(1, 1, 50, 64, dtype=jnp.bfloat16)
  found = form(queries, context)
  assert found.dtype == jnp.bfloat16
  expected = by_hand(queries.astype(jnp.float32), context.astype(jnp.float32))
  assert difference(found.astype(jnp.float32), expected) < 0.01  # scores of about 10 in bfloat16 would be off by .03
  jaxpr = jax.make_jaxpr(form)(queries, context)
  exponentials = [e.outvars[0].aval.dtype for e in equations(jaxpr.jaxpr) if e.primitive.name == 'exp']
  assert exponentials and set(exponentials) == {jnp.dtype('float32')}


def equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
      if is_jaxpr(inner):
        yield from equations(getattr(inner, 'jaxpr', inner))


def test_bfloat16_gradients():
  queries, context = normal(0, 1, 20, 16), normal(1, 1, 50, 16)
  weight = normal(2, 1, 20, 16)
  expected = gradients(attention.attend_exact, queries, context, weight)
  small = [x.astype(jnp.bfloat16) for x in (queries, context, weight)]
  found = gradients(lambda q, k: attention.attend_blockwise(q, k, 16), *small)
  for one, other in zip(found, expected, strict=True):
    assert one.dtype == jnp.bfloat16
    assert difference(one.astype(jnp.float32), other) < 0.05


# The platforms' own kernels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('n', 'm', 'c'), [(300, 150, 16), (130, 257, 128)])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_tpu_kernel_agrees_with_the_exact_form(n, m, c, dtype):
  """Interpreted on the CPU; lengths and channels that its blocks do not divide."""
  from jax.experimental.pallas import tpu

  queries, context = 2 * normal(0, 2, n, c, dtype=dtype), 2 * normal(1, 2, m, c, dtype=dtype)
  with tpu.force_tpu_interpret_mode():
    found = jax.jit(attention.attend_tpu)(queries, context)
  assert found.dtype == queries.dtype
  expected = by_hand(queries.astype(jnp.float32), context.astype(jnp.float32))
  assert difference(found.astype(jnp.float32), expected) < (1e-5 if dtype == 'float32' else 0.01)


@pytest.mark.parametrize(
  ('platform', 'dtype', 'allowed', 'expected'),
  [
    ('gpu', 'bfloat16', True, 'cudnn'),
    ('gpu', 'float32', True, 'exact'),
    ('gpu', 'bfloat16', False, 'exact'),
    ('tpu', 'bfloat16', True, 'tpu'),
    ('cpu', 'bfloat16', True, 'exact'),
  ],
)
def test_kernels_are_for_inference_in_16_bits_on_accelerators(monkeypatch, platform, dtype, allowed, expected):
  taken = []
  for form in ('exact', 'blockwise', 'cudnn', 'tpu'):
    monkeypatch.setattr(attention, f'attend_{form}', lambda q, k, form=form: taken.append(form) or q)
  monkeypatch.setattr(attention, '_has_cudnn_attention', lambda: True)
  x = jnp.zeros((1, 40, 16), dtype)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ('data',))
  with platforms.lowering_for(platform), attention.kernels(mesh) if allowed else contextlib.nullcontext():
    attention.attend(x, x)
    with attention.blockwise_only():
      attention.attend(x, x)
  assert taken == [expected, 'blockwise']
