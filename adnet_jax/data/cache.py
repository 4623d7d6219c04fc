"""Training frames and masks decoded once and kept in memory while there is room; knows nothing of pairs."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
from absl import logging

from adnet_jax.data import datasets
from adnet_jax.data.clip import Annotation
from adnet_jax.images import File

# Share of the memory free at the start that 'auto' takes: the network, checkpoints and other programs have the rest.
AUTO_SHARE = 0.25
_MEMORY, _GROUP = Path('/proc/meminfo'), Path('/sys/fs/cgroup')


class Decoded:
  """`datasets.read_pair` that remembers; all threads of a process share what it holds.

  Attributes:
    limit: bytes that it may hold; what comes later is decoded each time.
    held: bytes that it holds.
  """

  def __init__(self, limit: float):
    self.limit = limit
    self.held = 0
    self._pairs: dict[File, tuple[np.ndarray, np.ndarray]] = {}
    self._lock = threading.Lock()

  def read_pair(self, image: File, mask: File | Annotation) -> tuple[np.ndarray, np.ndarray]:
    """A frame and its mask as `datasets.read_pair` gives them, but not to be written to."""
    if (known := self._pairs.get(image)) is not None:
      return known
    pair = datasets.read_pair(image, mask)
    for array in pair:
      array.setflags(write=False)
    size = sum(array.nbytes for array in pair)
    with self._lock:
      if image not in self._pairs and self.held + size <= self.limit:
        self._pairs[image] = pair
        self.held += size
    return pair


def open_cache(choice: str, processes: int = 1) -> Decoded | None:
  """What `data.cache` asks for.

  Args:
    choice: 'none', 'memory' (as much as there is) or 'auto' (AUTO_SHARE of what is free now).
    processes: of the training, which are taken to share one machine.
  """
  if choice == 'none':
    return None
  limit = float('inf') if choice == 'memory' else AUTO_SHARE * free_memory() / processes
  logging.info('up to %.1f GB of decoded frames stay in memory', limit / 1e9)
  return Decoded(limit)


def free_memory() -> int:
  """Bytes that this process could still take, by the kernel and by the limit of its control group; 0 if unknown."""
  found = []
  if _MEMORY.exists():
    lines = dict(line.split(':', 1) for line in _MEMORY.read_text().splitlines())
    found.append(int(lines['MemAvailable'].split()[0]) * 1024)
  elif 'SC_PHYS_PAGES' in os.sysconf_names:  # no number of free pages: on macOS half of all
    found.append(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 2)
  try:
    limit, used = (_GROUP / name for name in ('memory.max', 'memory.current'))
    found.append(int(limit.read_text()) - int(used.read_text()))
  except (OSError, ValueError):  # no such group, or 'max'
    pass
  return max(0, min(found, default=0))
