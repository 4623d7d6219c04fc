"""What all tests share: strict JAX switches on eight fake devices, the optional data sets, and when GPU tests run."""

from __future__ import annotations

import os
from pathlib import Path

# Both are read when JAX first starts a backend; several test processes must fit on one GPU.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')  # a missing axis must not broadcast in silence

SHARED = Path(__file__).resolve().parents[2] / 'shared'


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  marked = [item for item in items if item.get_closest_marker('gpu')]
  # Asking for the backend starts it, so only where a test depends on the answer.
  if marked and jax.default_backend() != 'gpu':
    for item in marked:
      item.add_marker(pytest.mark.skip(reason='needs a GPU'))


@pytest.fixture(scope='session')
def shared() -> Path:
  """Folder with the data sets of the tests marked `shared_data`; such a test is skipped where it is absent."""
  if not (SHARED / 'data').is_dir():
    pytest.skip('the shared data sets are not here')
  return SHARED
