"""The queue: jobs of many users, one at a time on the device, each in a folder of its own; knows no request.

A job whose user has gone is cancelled after a grace time, and whatever was cancelled leaves nothing on the disk.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adnet_jax.errors import AdnetError
from adnet_jax.server.refused import Refused, is_full
from adnet_jax.server.uploads import Clip

UPLOAD, PREVIEWS = 'upload', 'previews'
QUEUED, RUNNING, DONE, FAILED, CANCELLED = 'queued', 'running', 'done', 'failed', 'cancelled'


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds after which things end; a job is looked at while its events are open or its state is asked for.

  Attributes:
    grace: that a job waits or runs without anybody looking.
    kept: that the results of one that ended are kept without anybody looking.
    remembered: that the state of a cancelled one can still be asked for.
  """

  grace: float = 120.0
  kept: float = 3600.0
  remembered: float = 600.0


class Stopped(BaseException):
  """Raised where a run is to end: cancelled, or replaced by one from another anchor. No fault, so no Exception."""


class Run:
  """One pass over a job's clip, from one anchor; all that the worker sees of it.

  Attributes:
    number: of the run in its job, from 1.
    upload: the video.
    folder: for its results; does not exist yet.
    previews: folder of the job's small pictures.
    anchor: number of the anchor frame.
    auto: each shot has an anchor of its own, its first frame.
    anchors: numbers of the anchors so far, ascending: with `auto` one for each shot that was found.
    clip: what the video declares.
    also: names of the forms that are wanted beside masks and overlay.
    read: frames whose small pictures are there.
    done: frames whose masks are on the disk.
    warnings: sentences for the user.
  """

  def __init__(
    self,
    job_folder: Path,
    number: int,
    anchor: int,
    clip: Clip,
    read: int = 0,
    also: tuple[str, ...] = (),
    auto: bool = False,
  ):
    self.number, self.anchor, self.clip, self.also = number, anchor, clip, also
    self.auto, self.anchors = auto, [anchor]
    self.upload, self.previews = job_folder / UPLOAD, job_folder / PREVIEWS
    self.folder = job_folder / f'run-{number}'
    self.read, self.done = read, 0
    self.warnings: list[str] = []
    self._stop = threading.Event()
    self._first: tuple[float, int] | None = None

  def stop(self) -> None:
    """Asks the worker to end this run."""
    self._stop.set()

  def check(self) -> None:
    """Raises Stopped where the run is to end."""
    if self._stop.is_set():
      raise Stopped

  def anchor_of(self, frame: int) -> int:
    """The anchor of a frame: the last one up to it, or the only one."""
    return max((one for one in self.anchors if one <= frame), default=self.anchor)

  def advance(self, done: int) -> None:
    """Says how many masks are there."""
    if done > 0 and self._first is None:
      self._first = time.monotonic(), done
    self.done = done

  @property
  def seconds_left(self) -> float | None:
    """By the pace since the first mask, so that compiling does not count; None before there is one."""
    if self._first is None or self.clip.frames is None:
      return None
    since, first = self._first
    if self.done <= first:
      return None
    pace = (time.monotonic() - since) / (self.done - first)
    return max(0.0, pace * (self.clip.frames - self.done))


@dataclasses.dataclass
class Job:
  """A user's video and what became of it; changed under the queue's lock only.

  Attributes:
    id: unguessable: who knows it may see and remove the job.
    name: of the user's file, text.
    watchers: open event streams.
    seen: when somebody last looked.
  """

  id: str
  folder: Path
  name: str
  clip: Clip
  run: Run
  state: str = QUEUED
  error: str | None = None
  watchers: int = 0
  seen: float = 0.0
  seconds: float | None = None


class Jobs:
  """All jobs of a server, and the thread that works on them one after the other."""

  def __init__(
    self,
    root: Path,
    work: Callable[[Run], None],
    *,
    times: Times = Times(),
    most: int = 50,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Args:
    root: existing folder for the jobs' own.
    work: makes a run's files; raises Stopped when `Run.check` does, AdnetError with a reason for the user.
    times: after which jobs are cancelled and removed.
    most: jobs that are kept at a time, whatever their state.
    clock: seconds, for `times`.
    """
    self._root, self._work, self._times, self._most, self._clock = root, work, times, most, clock
    self._jobs: dict[str, Job] = {}
    self._queue: collections.deque[Job] = collections.deque()
    self._changed = threading.Condition()
    self._stopping = threading.Event()
    self._threads = [
      threading.Thread(target=self._work_off, name='jobs', daemon=True),
      threading.Thread(target=self._sweep_now_and_then, name='sweep', daemon=True),
    ]
    for thread in self._threads:
      thread.start()

  def close(self) -> None:
    """Ends the event streams, and the worker at its next frame."""
    with self._changed:
      self._stopping.set()
      for job in self._jobs.values():
        job.run.stop()
      self._changed.notify_all()

  def stop(self, timeout: float = 10.0) -> bool:
    """As `close`, waits for the worker and removes every file; gives whether the worker has ended."""
    self.close()
    for thread in self._threads:
      thread.join(timeout)
    shutil.rmtree(self._root, ignore_errors=True)
    return not any(thread.is_alive() for thread in self._threads)

  @property
  def stopping(self) -> bool:
    """Whether the server ends."""
    return self._stopping.is_set()

  def check_room(self) -> None:
    """Refused (503) where no further job is taken."""
    with self._changed:
      if self.stopping or len(self._jobs) >= self._most:
        raise Refused(503, 'Too many jobs wait here already: try again in a few minutes.', {'Retry-After': '120'})

  @contextlib.contextmanager
  def new_folder(self) -> Iterator[tuple[str, Path]]:
    """A generated id and a folder of that name for an upload; removed where the upload fails."""
    self.check_room()
    job_id = secrets.token_urlsafe(16)
    folder = self._root / job_id
    folder.mkdir(mode=0o700)
    try:
      yield job_id, folder
    except BaseException:
      shutil.rmtree(folder, ignore_errors=True)
      raise

  def add(
    self,
    job_id: str,
    folder: Path,
    name: str,
    clip: Clip,
    read: int = 0,
    also: tuple[str, ...] = (),
    auto: bool = False,
  ) -> Job:
    """Queues a job for the file UPLOAD in its folder, of which the first `read` frames can be looked at already.

    Raises:
      Refused: 503, there is no room any more.
    """
    self.check_room()
    job = Job(job_id, folder, name, clip, Run(folder, 1, 0, clip, read, also, auto), seen=self._clock())
    with self._changed:
      self._jobs[job_id] = job
      self._queue.append(job)
      self._changed.notify_all()
    return job

  def get(self, job_id: str) -> Job:
    """The job, which counts as looked at; Refused (404) where there is none of that id."""
    with self._changed:
      job = self._jobs.get(job_id)
      if job is None:
        raise Refused(404, 'There is no such job, or it was removed.')
      if job.state != CANCELLED:
        job.seen = self._clock()
      return job

  @contextlib.contextmanager
  def watching(self, job: Job) -> Iterator[None]:
    """Counts as looking at the job, as long as it is entered."""
    with self._changed:
      job.watchers += 1
    try:
      yield
    finally:
      with self._changed:
        job.watchers -= 1
        job.seen = self._clock()

  def cancel(self, job: Job) -> None:
    """Ends a job, whatever it does, and removes its files."""
    with self._changed:
      job.run.stop()
      job.state, job.seen, job.error = CANCELLED, self._clock(), None
      with contextlib.suppress(ValueError):
        self._queue.remove(job)
    # A running one is swept again by its worker, which may write until it notices.
    shutil.rmtree(job.folder, ignore_errors=True)

  def run_again(self, job: Job, anchor: int) -> None:
    """Queues the job again, from another anchor; what it has is replaced.

    Raises:
      Refused: 409 it was cancelled; 422 no such frame, or one that has not been read yet.
    """
    with self._changed:
      if job.state == CANCELLED:
        raise Refused(409, 'The job was cancelled.')
      if not preview_path(job.run.previews, anchor).is_file():
        raise Refused(422, f'Frame {anchor} cannot be the anchor: it is not there, or was not read yet.')
      job.run.stop()
      before = job.run
      job.run = Run(job.folder, before.number + 1, anchor, job.clip, before.read, before.also)
      if job not in self._queue:
        self._queue.append(job)
      job.state, job.error, job.seconds, job.seen = QUEUED, None, None, self._clock()
      self._changed.notify_all()
    shutil.rmtree(before.folder, ignore_errors=True)

  def describe(self, job: Job) -> dict[str, Any]:
    """What a user is told of a job (docs/web_page.md)."""
    with self._changed:
      run = job.run
      place = self._queue.index(job) + 1 if job in self._queue else None
      left = run.seconds_left if job.state == RUNNING else None
      return {
        'id': job.id,
        'name': job.name,
        'state': job.state,
        'place': place,
        'run': run.number,
        'anchor': run.anchor,
        'anchors': list(run.anchors),
        'also': list(run.also),
        'width': job.clip.width,
        'height': job.clip.height,
        'rate': round(job.clip.rate, 3),
        'frames': job.clip.frames,
        'read': run.read,
        'done': run.done,
        'seconds_left': None if left is None else round(left, 1),
        'seconds': None if job.seconds is None else round(job.seconds, 1),
        'error': job.error,
        'warnings': list(run.warnings),
        'files': [{'name': path.name, 'size': path.stat().st_size} for path in offered(job)],
      }

  def sweep(self) -> None:
    """Cancels and forgets jobs that nobody looks at any more."""
    now = self._clock()
    with self._changed:
      alone = [(job, now - job.seen) for job in self._jobs.values() if not job.watchers]
    for job, seconds in alone:
      if job.state in (QUEUED, RUNNING):
        if seconds > self._times.grace:
          self.cancel(job)
      elif seconds > (self._times.remembered if job.state == CANCELLED else self._times.kept):
        self._forget(job)

  def _forget(self, job: Job) -> None:
    with self._changed:
      self._jobs.pop(job.id, None)
    shutil.rmtree(job.folder, ignore_errors=True)

  def _sweep_now_and_then(self) -> None:
    while not self._stopping.wait(min(2.0, self._times.grace / 4)):
      self.sweep()

  def _work_off(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._queue or self.stopping)
        if self.stopping:
          return
        job = self._queue.popleft()
        run, job.state = job.run, RUNNING
      started, state, failure = time.monotonic(), DONE, None
      try:
        run.check()
        self._work(run)
      except Stopped:
        state = CANCELLED
      except Exception as error:
        state, failure = FAILED, error
        if is_full(error):  # what it wrote is in everybody's way
          shutil.rmtree(run.folder, ignore_errors=True)
      with self._changed:
        current = job.run is run and job.state == RUNNING
        if current:
          job.state, job.seconds = state, time.monotonic() - started
          job.error = None if failure is None else _sentence(failure)
          job.clip = run.clip
      if not current:
        shutil.rmtree(run.folder if job.state != CANCELLED else job.folder, ignore_errors=True)


def _sentence(failure: Exception) -> str:
  """A failure without this machine's paths."""
  if is_full(failure):
    return 'The disk of the machine is full: the results of this job were removed.'
  if isinstance(failure, AdnetError):
    return f'{failure.what[0].upper()}{failure.what[1:]}.'
  logging.getLogger(__name__).error('a job failed', exc_info=failure)
  return 'The program failed at this video: the terminal where it was started says how.'


def preview_path(previews: Path, index: int) -> Path:
  """Where the small picture of a frame lies."""
  return previews / f'{index:05d}.jpg'


def mask_path(folder: Path, index: int) -> Path:
  """Where the mask of a frame lies in a run's folder."""
  return folder / 'masks' / f'{index:05d}.png'


def offered(job: Job) -> list[Path]:
  """Files of a job that can be fetched: those of a run that has ended, each whole."""
  if job.state not in (DONE, FAILED):
    return []
  try:
    return sorted(path for path in job.run.folder.iterdir() if path.is_file() and not path.name.startswith('.'))
  except OSError:
    return []
