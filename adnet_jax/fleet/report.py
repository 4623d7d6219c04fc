"""What is said of many clips: a line each, the failures as a file, an error in the end; decides nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from adnet_jax import appending
from adnet_jax.errors import AdnetError, DataError
from adnet_jax.fleet.job import Outcome

FAILURES = 'failures.jsonl'


class Report:
  """Counts and tells outcomes; OUT/failures.jsonl has a line for each clip that failed, as soon as it has.

  Attributes:
    path: of the failures' file; there is none where nothing failed.
    total: clips of the manifest.
    done, kept, frames: clips done now and before, frames done now.
    failures: the lines.
  """

  def __init__(self, out: Path, total: int, kept: int):
    self.path = out / FAILURES
    self.total, self.kept, self.done, self.frames = total, kept, 0, 0
    self.failures: list[dict[str, Any]] = []
    self._said: set[str] = set()
    self._out, self._started = out, time.perf_counter()
    self._appender = appending.Appender(self.path)
    with contextlib.suppress(OSError):
      self.path.unlink(missing_ok=True)  # of an earlier run: what failed then is tried again

  def add(self, outcome: Outcome, attempts: int = 1) -> None:
    """Tells a clip's outcome; `attempts` counts the workers that tried."""
    self.say(outcome.notes)
    clip, summary = outcome.clip, outcome.summary
    if outcome.fault is not None:
      fault = {'code': outcome.fault.code, 'error': outcome.fault.text, 'attempts': attempts}
      line = {'name': clip.name, 'input': clip.input, 'line': clip.line, **fault}
      self.failures.append(line)
      self._appender.append(_json(line).encode())
      print(f'warning: {clip.name}: {outcome.fault.text}', file=sys.stderr, flush=True)
    if summary is not None:
      self.done += 1
      self.frames += summary['frames']
      for warning in summary['warnings']:
        print(f'warning: {clip.name}: {warning}', file=sys.stderr)
      width, height = summary['size']
      seconds = f'{summary["seconds"]["total"]:.1f} s, network at {width}x{height}'
      place = f'{summary["frames"]} masks in {self._out / clip.name / "masks"}'
      print(f'[{self._count()}/{self.total}] {clip.name}: {place}, {seconds}', flush=True)

  def say(self, notes: tuple[str, ...]) -> None:
    """Prints what processes had to say, the same from several of them once."""
    for note in notes:
      if note not in self._said:
        self._said.add(note)
        print(note, file=sys.stderr, flush=True)

  def finish(self) -> None:
    """Writes the failures in the manifest's order and says how many there are.

    Raises:
      DataError: a clip failed.
    """
    kept = f', {self.kept} were there' if self.kept else ''
    failed = f', {len(self.failures)} failed' if self.failures else ''
    seconds = time.perf_counter() - self._started
    print(f'{self.done} of {self.total} clips done{kept}{failed}: {self.frames} frames in {seconds:.1f} s')
    if self.failures:
      self.failures.sort(key=lambda line: line['line'])
      appending.write_whole(self.path, ''.join(map(_json, self.failures)))
      what = f'{len(self.failures)} of {self.total} clips failed'
      raise DataError(what, self.path, 'mend or leave out what it names and go on with --resume')

  def stopped(self, outcome: Outcome) -> AdnetError:
    """The error for an outcome that ends the whole run."""
    assert outcome.fault is not None
    return dataclasses.replace(outcome.fault, text=f'{outcome.clip.name}: {outcome.fault.text}').as_error(self.left())

  def left(self) -> str:
    """The end of an error's text where a run ends early."""
    return f'; {self.total - self._count()} of {self.total} clips are left, --resume goes on with them'

  def _count(self) -> int:
    return self.done + self.kept + len(self.failures)


def _json(line: dict[str, Any]) -> str:
  return json.dumps(line, ensure_ascii=False) + '\n'
