"""Which devices train: on one process with eight fake ones."""

from __future__ import annotations

import jax
import pytest

from adnet_jax import errors, mesh


@pytest.mark.parametrize(
  ('devices', 'batch', 'accumulate', 'expected'),
  [(0, 8, 1, 8), (0, 6, 1, 6), (0, 12, 1, 6), (0, 7, 1, 7), (0, 11, 1, 1), (0, 8, 4, 2), (2, 8, 4, 2), (4, 8, 1, 4)],
)
def test_devices_that_share_a_batch_evenly(devices, batch, accumulate, expected):
  made = mesh.make_mesh(devices, batch, accumulate)
  assert list(made.devices) == jax.devices()[:expected] and made.axis_names == ('data',)


def test_more_devices_than_there_are_names_those_that_are():
  with pytest.raises(errors.DeviceError, match='9 devices asked for, 8 present: '):
    mesh.make_mesh(9, 9)


@pytest.mark.parametrize(('devices', 'batch', 'accumulate'), [(8, 6, 1), (4, 8, 4), (0, 9, 2)])
def test_a_batch_that_cannot_be_shared_is_refused(devices, batch, accumulate):
  with pytest.raises(errors.UsageError, match='is not divisible by'):
    mesh.make_mesh(devices, batch, accumulate)
