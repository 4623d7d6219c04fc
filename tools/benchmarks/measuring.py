"""Timings in turns, tables of them, and the machine that they were taken on; knows nothing of what is measured."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Timing:
  """Repeated measurements of one thing, in seconds.

  Attributes:
    wall: of each repetition.
    cpu: processor time of each repetition, all threads of this process.
  """

  wall: tuple[float, ...]
  cpu: tuple[float, ...]

  def row(self, what: str) -> Row:
    return {
      'what': what,
      'median s': statistics.median(self.wall),
      'best s': min(self.wall),
      'best CPU s': min(self.cpu),
    }


def measure(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
  """Times functions in turns, each called once before (compilation); they return when their work is done."""
  for function in functions.values():
    function()
  taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
  for _ in range(repeats):
    for name, function in functions.items():
      wall, cpu = time.perf_counter(), time.process_time()
      function()
      taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
  return {name: Timing(*zip(*pairs)) for name, pairs in taken.items()}


def table(rows: list[Row]) -> str:
  """Rows with some of the same columns as aligned text; 'what' comes first."""
  columns = list(dict.fromkeys(column for row in rows for column in row if column != 'what'))
  # A line without numbers may be as long as it likes.
  widest = max((len(row['what']) for row in rows if len(row) > 1), default=0)
  lines = [' ' * widest + ''.join(f'  {column:>10}' for column in columns)]
  for row in rows:
    cells = (f'{row[column]:.4g}' if column in row else '' for column in columns)
    widths = (max(10, len(column)) for column in columns)
    lines.append(row['what'].ljust(widest) + ''.join(f'  {cell:>{width}}' for cell, width in zip(cells, widths)))
  return '\n'.join(line.rstrip() for line in lines)


def machine(platform_name: str | None) -> dict[str, Any]:
  """Processor, cores that this process may use, and the device, on which everything runs from now on."""
  import jax

  from adnet_jax import pretrained

  model, cpuinfo = platform.processor(), Path('/proc/cpuinfo')
  if cpuinfo.exists():
    lines = cpuinfo.read_text().splitlines()
    model = next((line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')), model)
  device = pretrained.find_devices(platform_name)[0]
  if platform_name:
    jax.config.update('jax_default_device', device)
  return {'cpu': model, 'cores': cores(), 'device': device.device_kind}


def versions() -> dict[str, str]:
  found = {'python': platform.python_version()}
  for package in ('adnet-jax', 'jax', 'jaxlib', 'flax', 'numpy', 'opencv-python-headless', 'torch'):
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def cores() -> int:
  """Cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def size(text: str) -> tuple[int, int]:
  """WIDTHxHEIGHT, for argparse."""
  width, height = text.lower().split('x')
  return int(width), int(height)


def add_config_options(parser: argparse.ArgumentParser) -> None:
  """Options of the sections that measure a training."""
  parser.add_argument('--config', default=str(ROOT / 'configs/compact.py'), help='train-step and input')
  parser.add_argument('--config-key', action='append', default=[], metavar='KEY=VALUE', help='changed key of --config')
