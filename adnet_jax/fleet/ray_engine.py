"""Many clips by Ray actors, one a device: who does which, what happens when one is lost; knows no clip's content."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import glob
import os
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from adnet_jax import environment
from adnet_jax.errors import DataError, DeviceError, UsageError
from adnet_jax.fleet.job import Fault, Job, Outcome
from adnet_jax.fleet.report import Report
from adnet_jax.fleet.worker import PARTS, Worker
from adnet_jax.manifest import Clip

# Workers that a clip may take with it before it is given up: others are preempted, this one may be what kills them.
MAX_LOSSES = 5
# Workers that may be lost at their start, beyond one a device, with none between them that started or did a clip.
MAX_FALSE_STARTS = 10
# Clusters of this machine that may be lost, one after the other, with no clip done between.
MAX_CLUSTERS = 3
# Seconds until others are started where none is left.
PAUSE = 2.0
# Seconds after which it is said that no worker can be placed, and between looks at whether there still is a cluster.
PATIENCE, LOOK = 60.0, 5.0
RESOURCES = {'gpu': 'GPU', 'tpu': 'TPU', 'cpu': 'CPU'}
# Nothing large passes through Ray: results are files.
OBJECT_STORE_BYTES = 80 * 2**20


def run(job: Job, clips: Sequence[Clip], report: Report, *, workers: int | None, address: str | None) -> None:
  """Segments clips with Ray actors and reports each.

  Args:
    job: the run; its folder is locked.
    clips: to do.
    report: is told every outcome.
    workers: number of actors; None for one a device, on CPUs one a machine.
    address: of a cluster; None to start one on this machine and end it.

  Raises:
    UsageError: Ray is not installed; more workers than this machine has devices.
    DeviceError: no cluster there, no such device in it, workers that die before they have done anything, or
      clusters of this machine that do.
    AdnetError: what every worker would meet: the model cannot be loaded, the disk is full.
  """
  ray = import_ray()
  local, left, lost = address is None, list(clips), 0
  while left:
    with _marked(job) as name, _cluster(ray, address, workers):
      kind, count = _devices(ray, job.device, workers, local)
      fleet = _Fleet(ray, dataclasses.replace(job, device=kind), name, report, count, local=local)
      try:
        before, left = left, fleet.segment(left)
      finally:
        fleet.end()
    lost = lost + 1 if len(left) == len(before) else 0
    if lost == MAX_CLUSTERS:
      raise DeviceError(f'Ray on this machine ends again and again{report.left()}', None, "Ray's log files say more")
    if left:  # as after a machine has slept, whose heartbeats Ray then misses
      report.say((f'note: Ray on this machine has ended; it is started again for the {len(left)} clips that are left',))


@contextlib.contextmanager
def _marked(job: Job) -> Iterator[str]:
  """A file by which workers see that they write where we read; clears away what a run that was killed left."""
  parts = job.hidden / PARTS
  name = f'run-{uuid.uuid4().hex[:12]}'
  try:
    for left in job.hidden.glob('run-*'):
      left.unlink()
    (job.hidden / name).touch()
  except OSError as error:
    raise DataError(f'cannot be written: {error.strerror}', job.hidden, 'choose another folder') from error
  shutil.rmtree(parts, ignore_errors=True)
  try:
    yield name
  finally:
    shutil.rmtree(parts, ignore_errors=True)
    with contextlib.suppress(OSError):
      (job.hidden / name).unlink()


@dataclasses.dataclass(frozen=True)
class _Call:
  """What an actor is at: a clip, or None while it starts."""

  actor: Any
  clip: Clip | None


class _Fleet:
  """The actors and their calls. Each has one call at a time, so a lost actor costs one clip's beginning."""

  def __init__(self, ray: Any, job: Job, name: str, report: Report, size: int, *, local: bool):
    self._local = local
    self._ray, self._job, self._name, self._report, self._size = ray, job, name, report, size
    kind = RESOURCES[job.device or 'cpu']
    devices: dict[str, dict[str, Any]] = {'GPU': {'num_gpus': 1}, 'TPU': {'resources': {'TPU': 1}}}
    # Whoever takes a lost actor's place and clip is decided here: Ray would bind a clip to an actor that cannot return.
    options = {
      'num_cpus': 1,
      'max_restarts': 0,
      'max_task_retries': 0,
      'scheduling_strategy': 'SPREAD',
      **devices.get(kind, {}),
    }
    self._remote = ray.remote(**options)(Worker)
    self._calls: dict[Any, _Call] = {}
    self._queue: collections.deque[Clip] = collections.deque()
    self._lost: collections.Counter[str] = collections.Counter()
    self._started = False
    # Since the last one that started or did a clip; of those, the ones whose places are left empty until the next.
    self._false_starts = self._empty = 0

  def segment(self, clips: Sequence[Clip]) -> list[Clip]:
    """Does all clips; those that are left where a cluster of this machine has ended."""
    self._queue.extend(clips)
    heard = time.monotonic()
    while self._queue or any(call.clip for call in self._calls.values()):
      busy = sum(call.clip is not None for call in self._calls.values())
      for _ in range(min(self._size - self._empty, len(self._queue) + busy) - len(self._calls)):
        actor = self._remote.remote(self._job, self._name)
        self._calls[actor.start.remote()] = _Call(actor, None)
      if not self._calls:
        time.sleep(PAUSE)
        self._empty = 0
        continue
      with _own_exceptions():
        done, _ = self._ray.wait(list(self._calls), timeout=LOOK)
      if done:
        self._take(done[0])
        heard = time.monotonic()
      elif busy:
        continue
      elif self._local and not any(node['Alive'] for node in self._ray.nodes()):
        return list(self._queue)
      elif time.monotonic() - heard > PATIENCE:
        there = _resources(self._ray)
        self._report.say((f'note: no worker could be started yet: {self._size} asked for, the cluster has {there}',))
    return []

  def end(self) -> None:
    """Ends the actors that are left."""
    for call in self._calls.values():
      self._dismiss(call.actor)

  def _take(self, reference: Any) -> None:
    """Takes a call's answer, and gives its actor the next clip."""
    call = self._calls.pop(reference)
    try:
      with _own_exceptions():
        answer = self._ray.get(reference)
    except self._ray.exceptions.RayActorError as error:
      self._replace(call, _reason(error))
      return
    if call.clip is None:
      fault, notes = answer
      self._report.say(notes)
      if fault is not None and self._started:  # others could: it is this one's machine
        self._replace(call, fault.text)
        return
      if fault is not None:
        self._dismiss(call.actor)
        raise fault.as_error()
      self._started = True
    elif answer.fault is not None and answer.fault.scope == 'run':
      self._dismiss(call.actor)
      raise self._report.stopped(answer)
    elif answer.fault is not None and answer.fault.scope == 'worker':
      self._report.say(answer.notes)
      self._replace(call, answer.fault.text)
      return
    else:
      self._report.add(answer, 1 + self._lost[call.clip.name])
    self._false_starts = self._empty = 0
    if self._queue:
      clip = self._queue.popleft()
      self._calls[call.actor.segment.remote(clip, self._lost[clip.name])] = _Call(call.actor, clip)
    else:
      self._dismiss(call.actor)  # its device is free for others

  def _replace(self, call: _Call, reason: str) -> None:
    """Puts a lost actor's clip back into the queue, as the last one: should it be to blame, the others come first."""
    self._dismiss(call.actor)
    if call.clip is None:
      self._false_starts, self._empty = self._false_starts + 1, self._empty + 1
      if self._false_starts >= self._size + MAX_FALSE_STARTS:
        what = f'no worker survives its start: {reason}{self._report.left()}'
        raise DeviceError(what, None, "Ray's log files say more")
      self._report.say((f'note: a worker was lost at its start: {reason}',))
      return
    name = call.clip.name
    for part in (self._job.hidden / PARTS).glob(f'{glob.escape(name)}~*~{self._lost[name]}'):
      shutil.rmtree(part, ignore_errors=True)  # the room that it takes is needed
    self._lost[name] += 1
    if self._lost[name] < MAX_LOSSES:
      self._report.say((f'note: {name}: its worker was lost, another one begins it again ({self._lost[name]})',))
      self._queue.append(call.clip)
    else:
      text = f'{self._lost[name]} workers were lost over it, the last one so: {reason}'
      self._report.add(Outcome(call.clip, fault=Fault('worker', 6, text)), self._lost[name])

  def _dismiss(self, actor: Any) -> None:
    with contextlib.suppress(self._ray.exceptions.RayError):
      self._ray.kill(actor)


def _reason(error: Exception) -> str:
  """What became of an actor: the last line of Ray's account, before which come its tables and a traceback."""
  return ' '.join((str(error).splitlines() or [''])[-1].split())[:300]


@contextlib.contextmanager
def _own_exceptions() -> Iterator[None]:
  """Unwraps what a signal's handler raised while Ray's compiled code ran, which Python takes for a defect there."""
  try:
    yield
  except SystemError as error:
    raise error.__cause__ or error from None


@contextlib.contextmanager
def _cluster(ray: Any, address: str | None, workers: int | None) -> Iterator[None]:
  """Connects to a cluster, or starts one on this machine, which ends here too."""
  options: dict[str, Any] = {'include_dashboard': False, 'object_store_memory': OBJECT_STORE_BYTES}
  # Ray takes processors for slots: two workers on one share it.
  options['num_cpus'] = max(workers or 1, os.cpu_count() or 1)
  if address is not None:
    _check_reachable(address)
  main_thread = threading.current_thread() is threading.main_thread()
  handler = signal.getsignal(signal.SIGTERM)
  try:
    ray.init(address=address or 'local', logging_level='ERROR', log_to_driver=False, **({} if address else options))
  except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
    where = 'Ray could not be started' if address is None else f'no Ray cluster can be reached at {address}'
    what = f'{where}: {" ".join(str(error).split())[:300]}'
    raise DeviceError(
      what, '--address', 'ray status says more; where it asks for a token, set RAY_AUTH_MODE=token'
    ) from error
  try:
    if main_thread:
      signal.signal(signal.SIGTERM, handler)  # Ray's own would end the program with another exit code
    yield
  finally:
    ray.shutdown()


def _check_reachable(address: str) -> None:
  """Refuses HOST:PORT where nobody listens at once; Ray would try for minutes."""
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit() or '/' in host:
    return
  try:
    socket.create_connection((host.strip('[]'), int(port)), timeout=10).close()
  except (OSError, OverflowError) as error:
    what = f'no Ray cluster can be reached at {address}: {error}'
    raise DeviceError(what, '--address', 'ray start --head tells the address of a cluster') from error


def _devices(ray: Any, device: str | None, workers: int | None, local: bool) -> tuple[str, int]:
  """Kind of device and number of workers."""
  there = ray.cluster_resources()
  accelerators = [kind for kind in ('gpu', 'tpu') if there.get(RESOURCES[kind])]
  if device is None and accelerators == ['gpu'] and environment.gpu_without_jax():
    accelerators = []  # the workers say so
  kind = device or (accelerators or ['cpu'])[0]
  nodes = sum(node['Alive'] and node['Resources'].get('CPU', 0) >= 1 for node in ray.nodes())  # not a bare head
  count = nodes if kind == 'cpu' else int(there.get(RESOURCES[kind], 0))
  if not count and (local or workers is None):
    advice = 'adnet doctor says more' if local else 'name --workers if its machines come later'
    raise DeviceError(f'no {kind} in the Ray cluster: it has {_resources(ray)}', '--device', advice)
  if local and kind != 'cpu' and (workers or 0) > count:
    raise UsageError(f'{workers} workers, but {count} devices', '--workers', 'leave it out for one a device')
  return kind, workers or count


def _resources(ray: Any) -> str:
  """What a cluster has, for messages."""
  there = ray.cluster_resources()
  return ', '.join(f'{there.get(name, 0):g} {name}' for name in RESOURCES.values())


def import_ray() -> Any:
  """Ray, without its reports of usage; UsageError where it is not installed."""
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
  try:
    import ray
    import ray.exceptions
  except ImportError as error:
    what = 'the engine ray needs Ray, which is not installed'
    raise UsageError(what, '--engine', "pip install 'adnet-jax[ray]'") from error
  return ray
