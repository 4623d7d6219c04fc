"""What a training run needs to stop and to go on: signals, and a checkpoint's record with what must not change."""

from __future__ import annotations

import contextlib
import json
import signal
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from adnet_jax import config as config_lib
from adnet_jax.data import datasets
from adnet_jax.errors import AdnetError, UsageError
from adnet_jax.metadata import Metadata


class Stopped(AdnetError):
  """Training that was stopped by a signal after everything was saved."""

  def __init__(self, signal_number: int, step: int):
    super().__init__(
      f'stopped by {signal.Signals(signal_number).name} at step {step}, everything is saved',
      None,
      'the same command goes on',
    )
    self.exit_code = 130 if signal_number == signal.SIGINT else 75


class Interrupted(BaseException):
  """A signal during what may be broken off; like KeyboardInterrupt not an Exception, so that nothing goes on."""


class Signals:
  """While entered, SIGTERM and the first Ctrl-C are noted in `received`; a second Ctrl-C stops at once."""

  def __init__(self):
    self.received = 0
    self._breakable = False
    self._before: dict[int, Any] = {}

  def _note(self, number: int, _frame: object) -> None:
    if self.received == signal.SIGINT == number:
      raise KeyboardInterrupt
    self.received = number
    if self._breakable:
      self._breakable = False
      raise Interrupted

  @contextlib.contextmanager
  def breakable(self) -> Iterator[None]:
    """What runs inside takes longer than a preempted machine waits: a signal raises `Interrupted` in it."""
    self._breakable = True
    try:
      if self.received:
        raise Interrupted
      yield
    finally:
      self._breakable = False

  def __enter__(self) -> Signals:
    try:
      self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:
      logging.info('not the main thread: signals are left alone')
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)


def make_record(
  config: ml_collections.ConfigDict,
  clips: Sequence[datasets.Clip],
  photographs: Sequence[datasets.Photograph],
  metadata: Metadata,
) -> dict[str, Any]:
  """What stands beside the state in every checkpoint of a run, as JSON gives it back; `at` adds the position."""
  record = {
    'fingerprint': fingerprint(config, clips, photographs),
    'config': json.loads(config_lib.to_json(config)),
    'seed': config.seed,
    'metadata': metadata.to_strings(),
  }
  return json.loads(json.dumps(record))


def at(record: dict[str, Any], step: int, unvalidated: Sequence[Any] | None = None) -> dict[str, Any]:
  """The record after `step` steps; `unvalidated` is the last step's log entry, where its validation is still due."""
  position = {'step': step, 'sample': step * record['config']['batch']}
  return {**record, 'position': position, 'unvalidated': unvalidated}


def fingerprint(
  config: ml_collections.ConfigDict, clips: Sequence[datasets.Clip], photographs: Sequence[datasets.Photograph]
) -> dict[str, Any]:
  """What must not change between a run and its resumption: architecture, augmentation, and which samples there are.

  Not where they lie: a run may move to another machine.
  """
  names = [(clip.name, [clip.frames[index].stem for index in clip.annotated]) for clip in clips]
  content = json.dumps([names, [photograph.name for photograph in photographs]])
  flat = config_lib.flatten(config)
  kept = {name: value for name, value in flat.items() if _is_kept(name)}
  # The state has other parts with other values of these.
  kept |= {'optim.frozen_stages': config.optim.frozen_stages, _AVERAGED: config.optim.ema > 0}
  return {**kept, 'data set': f'{len(clips)} clips, {len(photographs)} photographs, {zlib.crc32(content.encode()):08x}'}


_AVERAGED = 'optim.ema above 0'
_ELSEWHERE = ('data.root', 'data.stills', 'data.workers', 'data.cache', 'data.max_unreadable', 'model.remat')


def _is_kept(name: str) -> bool:
  return name.startswith(('model.', 'data.')) and name not in _ELSEWHERE


def check_processes(
  config: ml_collections.ConfigDict, clips: Sequence[datasets.Clip], photographs: Sequence[datasets.Photograph]
) -> None:
  """Refuses processes of one training that were given different configurations or data (UsageError in all of them)."""
  values = {**config_lib.flatten(config), **fingerprint(config, clips, photographs)}
  names = sorted(name for name in values if name not in (*_ELSEWHERE, 'init.weights'))
  digests = np.array([zlib.crc32(repr(values[name]).encode()) for name in names], np.uint32)
  for process, theirs in enumerate(multihost_utils.process_allgather(digests)):
    other = [name for name, differs in zip(names, theirs != digests, strict=True) if differs]
    if other:
      raise UsageError(
        f'process {process} has other values than process {jax.process_index()}',
        ', '.join(other),
        'start all processes with the same configuration and data',
      )


def check_resume(before: dict[str, Any], now: dict[str, Any]) -> None:
  """Refuses another architecture or data (fault 18); says what else changed (fault 19)."""
  old_config = {**_DEFAULTS, **before['config']}  # an older checkpoint does not know the newest keys
  for name, new in sorted(now['fingerprint'].items()):
    old = before['fingerprint'].get(name, old_config.get(name, new))
    if old != new:
      raise UsageError(
        f'the checkpoint was made with {old!r}, the configuration says {new!r}',
        name,
        'use another --workdir, or the old value',
      )
  for name, new in sorted(now['config'].items()):
    if old_config.get(name) != new:
      logging.warning('resuming with %s = %r instead of %r', name, new, old_config.get(name))


_DEFAULTS = json.loads(json.dumps({name: key.default for name, key in config_lib.KEYS.items()}))
