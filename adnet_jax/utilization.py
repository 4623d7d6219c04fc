"""How much of a device's arithmetic a training step uses: its operations and the device's rate; knows no models."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Dense bfloat16 (V100, T4: float16) operations a second of one JAX device, from the makers' data sheets; the first
# name that is part of `device_kind` counts.
PEAKS = {
  'H100 PCIe': 756e12,
  'H100 NVL': 835e12,
  'H100': 989e12,
  'H200': 989e12,
  'B200': 2250e12,
  'A100': 312e12,
  'L40S': 362e12,
  'L4': 121e12,
  'V100': 125e12,
  'T4': 65e12,
  'TPU v2': 22.5e12,
  'TPU v3': 61.5e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v6': 918e12,
}


def peak(devices: Sequence[jax.Device], dtype: jnp.dtype) -> tuple[float, str]:
  """Operations a second of all devices together, and where that number is from.

  Args:
    devices: all of one kind.
    dtype: of the matrix product that is timed where the kind is not in the table.
  """
  kind = devices[0].device_kind
  for name, rate in PEAKS.items():
    if name in kind:
      return rate * len(devices), f"{rate / 1e12:g} TFLOP/s of a {kind} by its maker's table, times {len(devices)}"
  # Fake devices of a CPU share its cores, all of which the product uses.
  count = 1 if devices[0].platform == 'cpu' else len(devices)
  rate = _matrix_product_rate(next(d for d in devices if d.process_index == jax.process_index()), dtype)
  return rate * count, f'{rate / 1e9:.0f} GFLOP/s of a {kind}, measured with a {dtype} matrix product, times {count}'


def _matrix_product_rate(device: jax.Device, dtype: jnp.dtype) -> float:
  n = 1024 if device.platform == 'cpu' else 8192
  matrix = jax.device_put(jnp.ones((n, n), dtype), device)
  product = jax.jit(jnp.matmul)
  product(matrix, matrix).block_until_ready()
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    product(matrix, matrix).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * n**3 / min(seconds)


def operations(lowered: Any, parts: int = 1) -> float | None:
  """Floating-point operations of a lowered step, by XLA's cost analysis of the program before compilation.

  Afterwards cuDNN's convolutions would be calls that cost nothing. The body of a loop is counted once, hence `parts`.

  Args:
    lowered: of `jax.jit(...).lower(...)`.
    parts: times that its one large loop, that over the parts of a batch, runs.

  Returns:
    None where the backend has no such analysis.
  """
  try:
    return float(lowered.cost_analysis()['flops']) * parts
  except (NotImplementedError, RuntimeError, AttributeError, KeyError, TypeError):
    return None
