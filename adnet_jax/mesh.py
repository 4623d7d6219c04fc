"""Which devices share a batch, on one machine or several; knows nothing of what they compute."""

from __future__ import annotations

import jax
from absl import logging

from adnet_jax.errors import DeviceError, UsageError


def make_mesh(devices: int, batch: int, accumulate: int = 1) -> jax.sharding.Mesh:
  """A mesh of one axis, 'data': as many devices of each process, the processes one after the other.

  Args:
    devices: of all processes together; 0 for all, but no more than the parts of a batch can be shared among.
    batch: pairs of a step.
    accumulate: parts of a batch, one after the other; each is shared among all devices.

  Raises:
    DeviceError: there are fewer.
    UsageError: batch, devices and processes do not go together.
  """
  chosen = getattr(jax.config, 'jax_default_device', None)
  present = jax.devices(chosen.platform) if isinstance(chosen, jax.Device) else jax.devices()
  processes = jax.process_count()
  if devices > len(present):
    raise DeviceError(
      f'{devices} devices asked for, {len(present)} present: {", ".join(map(str, present))}', 'devices', 'lower devices'
    )
  if batch % processes or devices % processes:
    what = f'batch={batch}' if batch % processes else f'devices={devices}'
    raise UsageError(f'{what} is not divisible by {processes} processes', 'batch, devices', 'choose a multiple')
  own = [[device for device in present if device.process_index == process] for process in range(processes)]
  fewest = min(map(len, own))
  count = devices // processes or max(
    n for n in range(1, fewest + 1) if not batch % (processes * n * accumulate) or n == 1
  )
  if count > fewest:
    raise DeviceError(
      f'{count} devices of each process asked for, one process has {fewest}', 'devices', f'at most {fewest * processes}'
    )
  if batch % (count * processes * accumulate):
    raise UsageError(
      f'batch={batch} is not divisible by devices={count * processes} times accumulate={accumulate}',
      'batch, devices, accumulate',
      'choose a multiple',
    )
  if count * processes < len(present) and not devices:
    logging.warning('%d of %d devices train: batch=%d has no more equal parts', count * processes, len(present), batch)
  mesh_devices = [device for devices_of_one in own for device in devices_of_one[:count]]
  return jax.make_mesh((len(mesh_devices),), ('data',), axis_types=(jax.sharding.AxisType.Auto,), devices=mesh_devices)
