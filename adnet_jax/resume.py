"""What a training run needs to stop and to go on: signals, the fingerprint of what must not change, the log's end."""

from __future__ import annotations

import json
import signal
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import ml_collections
from absl import logging

from adnet_jax import config as config_lib
from adnet_jax.data import datasets
from adnet_jax.errors import AdnetError, UsageError


class Stopped(AdnetError):
  """Training that was stopped by a signal after everything was saved."""

  def __init__(self, signal_number: int, step: int):
    super().__init__(
      f'stopped by {signal.Signals(signal_number).name} at step {step}, everything is saved',
      None,
      'the same command goes on',
    )
    self.exit_code = 130 if signal_number == signal.SIGINT else 75


class Signals:
  """While entered, SIGTERM and the first Ctrl-C are noted in `received`; a second Ctrl-C stops at once."""

  def __init__(self):
    self.received = 0
    self._before: dict[int, Any] = {}

  def _note(self, number: int, _frame: object) -> None:
    if self.received == signal.SIGINT == number:
      raise KeyboardInterrupt
    self.received = number

  def __enter__(self) -> Signals:
    try:
      self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:
      logging.info('not the main thread: signals are left alone')
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)


def fingerprint(
  config: ml_collections.ConfigDict, clips: Sequence[datasets.Clip], photographs: Sequence[datasets.Photograph]
) -> dict[str, Any]:
  """What must not change between a run and its resumption: architecture, augmentation, and which samples there are.

  Not where they lie: a run may move to another machine.
  """
  names = [(clip.name, [clip.frames[index].stem for index in clip.annotated]) for clip in clips]
  content = json.dumps([names, [photograph.name for photograph in photographs]])
  elsewhere = ('data.root', 'data.stills', 'data.workers')
  kept = {
    name: value
    for name, value in config_lib.flatten(config).items()
    if name.startswith(('model.', 'data.')) and name not in elsewhere
  }
  return {**kept, 'data set': f'{len(clips)} clips, {len(photographs)} photographs, {zlib.crc32(content.encode()):08x}'}


def check_resume(before: dict[str, Any], now: dict[str, Any]) -> None:
  """Refuses another architecture or data (fault 18); says what else changed (fault 19)."""
  for name in sorted(set(before['fingerprint']) | set(now['fingerprint'])):
    old, new = before['fingerprint'].get(name), now['fingerprint'].get(name)
    if old != new:
      raise UsageError(
        f'the checkpoint was made with {old!r}, the configuration says {new!r}',
        name,
        'use another --workdir, or the old value',
      )
  for name in sorted(now['config']):
    if before['config'].get(name) != now['config'][name]:
      logging.warning('resuming with %s = %r instead of %r', name, now['config'][name], before['config'].get(name))


def open_log(path: Path, first: int) -> TextIO:
  """train.jsonl for appending, without lines of steps that are about to be done again."""
  lines = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        if json.loads(line)['step'] < first:
          lines.append(line)
      except (ValueError, KeyError):
        break  # cut off in the middle of a write
  path.write_text(''.join(line + '\n' for line in lines))
  return path.open('a')
