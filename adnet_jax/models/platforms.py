"""Which platform the program being traced will run on; the forms of an operation are chosen by it."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

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
