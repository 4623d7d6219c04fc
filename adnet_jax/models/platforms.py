"""Which platform the program being traced will run on; the forms of an operation are chosen by it.

What holds for GPUs below was read off programs compiled for an H200 (tools/compiled.py; docs/performance.md, "GPU").
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What XLA is told when it compiles for a platform and a purpose.
_OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
  # cuBLAS adds bias, shortcut and ReLU to a product as it writes it; XLA's own products, which it would try first,
  # leave them to a pass of their own: a third of a ResNet-101's bytes.
  ('gpu', 'inference'): {'xla_gpu_enable_triton_gemm': False},
  # No sums in whatever order threads come: a resumed training has the bits of one that was not interrupted.
  ('gpu', 'training'): {'xla_gpu_exclude_nondeterministic_ops': True},
}

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar('platform', default=None)


@contextlib.contextmanager
def lowering_for(platform: str) -> Iterator[None]:
  """Chooses the forms for `platform` ('cpu', 'gpu', 'tpu') instead of JAX's default backend."""
  token = _platform.set(platform)
  try:
    yield
  finally:
    _platform.reset(token)


def target_platform() -> str:
  """The platform that the program being traced will run on: 'cpu', 'gpu' or 'tpu'."""
  return _platform.get() or jax.default_backend()


@functools.cache
def compiler_options(platform: str, purpose: str) -> dict[str, Any]:
  """Options of `jax.jit` for 'inference' or 'training' on `platform`; none where this XLA does not know them."""
  options = _OPTIONS.get((platform, purpose), {})
  if options:
    try:
      jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:
      return {}
  return options


def stored(array: np.ndarray, dtype: jnp.dtype, platform: str) -> np.ndarray:
  """A kernel, (kh, kw, i, o), or bias, (o,), of inference as a device holds it: cast and ordered once, not every time.

  On a GPU kernels are (o, kh, kw, i), the order in which cuDNN reads them.
  """
  array = np.asarray(array).astype(dtype)
  return np.ascontiguousarray(array.transpose(3, 0, 1, 2)) if array.ndim == 4 and platform == 'gpu' else array


def from_stored(array: jax.Array, platform: str) -> jax.Array:
  """A kernel, (kh, kw, i, o), or bias from what `stored` made of it: no work in a compiled program."""
  return array.transpose(1, 2, 3, 0) if array.ndim == 4 and platform == 'gpu' else array
