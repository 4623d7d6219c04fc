"""The process that segments clips for a fleet: it writes aside and renames, so that a folder appears whole, and once.

Knows nothing of Ray, of other workers and of what they do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging as std_logging
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from adnet_jax import clip_files
from adnet_jax.errors import DataError
from adnet_jax.fleet.job import FAILURE, Fault, Job, Outcome, fault_of, is_complete, make_segmenter, segment_into
from adnet_jax.manifest import Clip

if TYPE_CHECKING:
  from adnet_jax.segmenter import Segmenter

# In the hidden folder: clips that are worked on, NAME~HOST~PROCESS~ATTEMPT each.
PARTS = 'parts'


class Worker:
  """Segments one clip after the other; each of its calls answers with values, never with an exception of ours."""

  def __init__(self, job: Job, run: str):
    """Args:
    job: the run.
    run: name of a file in the hidden folder that whoever started the run has made.
    """
    self._job, self._run = job, run
    self._segmenter: Segmenter | None = None
    self._notes: list[str] = []

  def start(self) -> tuple[Fault | None, tuple[str, ...]]:
    """Sets the process up and loads the model: its fault, if any, and what it had to say."""
    # A worker that takes a lost one's place may meet memory that is not free yet, and takes what it needs as it goes.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    if self._job.device == 'cpu':
      import jax

      jax.config.update('jax_platforms', 'cpu')  # or it would look for the accelerators that this worker was not given
    std_logging.getLogger().addHandler(_Notes(self._notes))
    try:
      if not (self._job.hidden / self._run).exists():
        advice = 'the output folder must be one and the same on all machines of the cluster'
        raise DataError(f'the output folder is not there on {socket.gethostname()}', self._job.out, advice)
      self._segmenter = make_segmenter(self._job)
    except Exception as error:
      return fault_of(error), self._said()
    return None, self._said()

  def segment(self, clip: Clip, attempt: int) -> Outcome:
    """Segments a clip; its folder appears with everything in it, or with what came before a fault in the clip."""
    assert self._segmenter is not None
    job, final = self._job, self._job.out / clip.name
    token = f'{clip.name}~{socket.gethostname()[:40]}~{os.getpid()}~{attempt}'
    part = job.hidden / PARTS / token
    alone = dataclasses.replace(job.outputs, resume=False, overwrite=False)
    outcome = segment_into(part, self._segmenter, job, clip, alone)
    try:
      if outcome.fault is None and not is_complete(part, job.outputs):
        # Somebody cleared it away, for instance a run that took this worker for lost.
        outcome = Outcome(clip, fault=Fault('worker', 3, 'its files vanished while they were written'))
      elif outcome.fault is None or (part / FAILURE).exists():
        put_in_place(part, final, job)
    except DataError as error:
      outcome = Outcome(clip, fault=fault_of(error))
    except OSError as error:
      failure = DataError(f'cannot be written: {error.strerror}', final, 'free space or choose another folder')
      failure.__cause__ = error
      outcome = Outcome(clip, fault=fault_of(failure))
    finally:
      shutil.rmtree(part, ignore_errors=True)
    return Outcome(clip, outcome.summary, outcome.fault, self._said())

  def _said(self) -> tuple[str, ...]:
    said = tuple(self._notes)
    self._notes.clear()
    return said


class _Notes(std_logging.Handler):
  """Keeps log lines as `adnet` prints them, for whoever started the run."""

  def __init__(self, notes: list[str]):
    super().__init__(std_logging.WARNING)
    self._notes = notes

  def emit(self, record: std_logging.LogRecord) -> None:
    kind = 'note' if getattr(record, 'note', False) else record.levelname.lower()
    self._notes.append(f'{kind}: {record.getMessage()}')


def put_in_place(part: Path, final: Path, job: Job) -> None:
  """Gives a finished folder its name; what it replaces are incomplete results, or any where `overwrite` says so.

  Args:
    part: the finished folder; gone in the end.
    final: its place, on the same file system. Where complete results are there already, they stay.
    job: the run.

  Raises:
    OSError: it cannot be renamed.
    DataError: what it replaces cannot be removed; it lies in the hidden folder.
  """
  with contextlib.suppress(OSError):
    os.rename(part, final)  # succeeds if nothing is there, or an empty folder
    return
  if not final.exists():
    os.rename(part, final)  # says why not
    return
  if is_complete(final, job.outputs) and not job.outputs.overwrite:
    return  # of a worker that was taken for lost and was not
  aside = part.with_name(f'{part.name}~old')
  os.rename(final, aside)
  try:
    os.rename(part, final)
  except OSError:
    os.rename(aside, final)
    raise
  (aside / FAILURE).unlink(missing_ok=True)
  clip_files.remove_results(aside, aside / 'masks', aside / 'heatmaps', job.outputs)
  _bring_back(aside, final)


def _bring_back(aside: Path, final: Path) -> None:
  """Moves files that are not ours to where they were."""
  for path in sorted(aside.rglob('*')):
    target = final / path.relative_to(aside)
    if not path.is_dir() and not target.exists():
      target.parent.mkdir(parents=True, exist_ok=True)
      os.rename(path, target)
  shutil.rmtree(aside, ignore_errors=True)
