"""Which clips of a manifest are to do, by what is written already; reads summaries and names, no clip."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adnet_jax import clip_files
from adnet_jax.errors import DataError, UsageError
from adnet_jax.fleet.job import Job, is_complete, read_summary
from adnet_jax.manifest import Clip


@dataclasses.dataclass(frozen=True)
class Plan:
  """Clips to do, in the manifest's order, and the number of those that are done already."""

  todo: list[Clip]
  kept: int


def make_plan(clips: Sequence[Clip], job: Job, unfinished: str | None = None) -> Plan:
  """Sorts clips into those to do and those that are done.

  Args:
    clips: of the manifest.
    job: the run; without `resume` and `overwrite` no clip may have results.
    unfinished: name of the clip at which an earlier run was killed: its files count as incomplete.

  Raises:
    UsageError: there are results and nobody said what to do with them; or those to keep were made with other options.
    DataError: the output folder cannot be read.
  """
  # One look into the folder instead of one for each of its clips.
  try:
    there = set(os.listdir(job.out)) if job.out.exists() else set()
  except OSError as error:
    raise DataError(f'cannot be written: {error.strerror}', job.out, 'choose another folder') from error
  todo = []
  for clip in clips:
    folder = job.out / clip.name
    if clip.name in there and not job.outputs.overwrite:
      clip_files.check_free(folder, job.outputs)
      if job.outputs.resume and clip.name != unfinished and is_complete(folder, job.outputs):
        _check_options(folder, job)
        continue
    todo.append(clip)
  return Plan(todo, len(clips) - len(todo))


def _check_options(folder: Path, job: Job) -> None:
  """Refuses results that were made with other options than this run's: one manifest, one kind of masks."""
  summary: dict[str, Any] = read_summary(folder) or {}
  asked = {
    'model': Path(job.model_name).stem,
    'protocol': job.segmenter['protocol'],
    'scales': list(job.segmenter['scales']),
    'mirror': job.segmenter['mirror'],
  }
  if job.segmenter.get('refine') is not None:
    asked['refine'] = job.segmenter['refine']
  found = {**summary, 'model': Path(summary.get('model', '')).stem}
  for key, value in asked.items():
    if found.get(key) != value:
      what = f'made with {key} {found.get(key)}, this run has {value}'
      raise UsageError(what, folder, 'use --overwrite, the same options or another output folder')
