"""A manifest's clips to their folders, by one process or by many; knows what is shared, not how a clip is segmented."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from adnet_jax import lock
from adnet_jax.errors import DataError, UsageError
from adnet_jax.fleet.job import Job, make_segmenter, segment_into
from adnet_jax.fleet.plan import make_plan
from adnet_jax.fleet.report import Report
from adnet_jax.manifest import Clip, read_manifest

ENGINES = ('plain', 'ray')
# In the hidden folder: the clip at which the plain engine is, for whoever finds that it was killed there.
CURRENT = 'current'


def segment_manifest(
  manifest: str | Path, job: Job, *, engine: str = 'plain', workers: int | None = None, address: str | None = None
) -> Report:
  """Segments the clips of a manifest, each into OUT/NAME; a clip that cannot be segmented does not stop the others.

  Args:
    manifest: as of `read_manifest`.
    job: how, and where to.
    engine: 'plain': this process, one clip after the other; 'ray': actors, one a device.
    workers: number of actors; None for one a device, on CPUs one a machine. Engine `ray` only.
    address: of a Ray cluster; None for one that is started on this machine. Engine `ray` only.

  Returns:
    Counts; every clip is done.

  Raises:
    DataError: a clip failed: OUT/failures.jsonl has a line for each. Nothing can be written.
    UsageError: also where another run writes into the same folder.
  """
  clips = read_manifest(manifest)
  if not job.outputs.resume:
    make_plan(clips, job)  # what is refused is refused before anything is made
  if engine == 'ray':
    from adnet_jax.fleet import ray_engine

    ray_engine.import_ray()
  with _held(job):
    plan = make_plan(clips, job, _unfinished(job))
    report = Report(job.out, len(clips), plan.kept)
    if engine == 'ray':
      ray_engine.run(job, plan.todo, report, workers=workers, address=address)
    else:
      _run_here(job, plan.todo, report)
    report.finish()
  return report


def _run_here(job: Job, clips: Sequence[Clip], report: Report) -> None:
  segmenter = make_segmenter(job) if clips else None
  for clip in clips:
    assert segmenter is not None
    with contextlib.suppress(OSError):  # where there is no room for it, the clip's own files say so
      (job.hidden / CURRENT).write_text(clip.name, encoding='utf-8')
    outcome = segment_into(job.out / clip.name, segmenter, job, clip, job.outputs)
    if outcome.fault is not None and outcome.fault.scope == 'run':
      raise report.stopped(outcome)
    report.add(outcome)
  with contextlib.suppress(OSError):
    (job.hidden / CURRENT).unlink(missing_ok=True)


def _unfinished(job: Job) -> str | None:
  try:
    return (job.hidden / CURRENT).read_text(encoding='utf-8')
  except (OSError, ValueError):
    return None


@contextlib.contextmanager
def _held(job: Job) -> Iterator[None]:
  """Makes the folders and keeps other runs out of them."""
  try:
    job.hidden.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise DataError(f'cannot be written: {error.strerror}', job.out, 'choose another folder') from error
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(lock.held(job.hidden))
    except UsageError as error:
      raise UsageError(error.what, job.out, 'wait for it, or choose another folder') from error
    yield
