"""Many clips by Ray actors: who does what when workers are lost, and a real cluster whose workers are killed.

ADNET_KILLS=10 python -m pytest tests/test_fleet_ray.py

kills ten workers in a job of forty clips instead of one in ten.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_fleet import failures, files, make_job, times, write_manifest

from adnet_jax.errors import DataError, DeviceError
from adnet_jax.fleet import ray_engine
from adnet_jax.fleet.job import Fault, Outcome
from adnet_jax.fleet.report import Report
from adnet_jax.manifest import Clip

ROOT = Path(__file__).resolve().parents[1]
KILLS = int(os.environ.get('ADNET_KILLS', '1'))
CLIPS = 10 if KILLS == 1 else 4 * KILLS
DEADLINE = 120.0 + 60 * KILLS


class Lost(Exception):
  pass


class FakeRay:
  """As much of Ray as the engine uses: calls are answered at once, in order, by `start` and `segment`."""

  class exceptions:
    RayError = RayActorError = Lost

  def __init__(self, segment, start=lambda: (None, ())):
    self.answers = {'segment': segment, 'start': start}
    self.actors, self.alive, self.calls = 0, 0, 0

  def remote(self, **options):
    assert options['max_restarts'] == 0
    return lambda kind: self

  def __getattr__(self, name):
    if name not in self.answers:
      raise AttributeError(name)

    class Method:
      @staticmethod
      def remote(*arguments):
        self.calls += 1
        return self.calls, name, arguments

    return Method

  def wait(self, references, timeout):
    return [references[0]], references[1:]

  def get(self, reference):
    _, name, arguments = reference
    return self.answers[name](*arguments)

  def kill(self, actor):
    self.alive -= 1


def run_fleet(ray: FakeRay, tmp_path: Path, count: int = 4, size: int = 2) -> Report:
  report = Report(tmp_path, count, 0)
  actor = ray.remote

  def remote(**options):
    actor(**options)

    class Factory:
      @staticmethod
      def remote(*_):
        ray.actors, ray.alive = ray.actors + 1, ray.alive + 1
        assert ray.alive <= size
        return ray

    return lambda kind: Factory

  ray.remote = remote
  fleet = ray_engine._Fleet(ray, make_job(tmp_path), 'run', report, size, local=False)
  try:
    fleet.segment([Clip(str(k), str(k), k) for k in range(count)])
  finally:
    fleet.end()
  return report


def done(clip: Clip) -> Outcome:
  return Outcome(clip, {'frames': 3, 'size': [9, 9], 'seconds': {'total': 1.0}, 'warnings': []})


def test_a_lost_worker_is_replaced_and_its_clip_begun_again(tmp_path, capsys):
  order = []

  def segment(clip, attempt):
    order.append((clip.name, attempt))
    if clip.name == '1' and attempt < 2:
      raise Lost
    return done(clip)

  ray = FakeRay(segment)
  report = run_fleet(ray, tmp_path)
  assert (report.done, report.failures, ray.actors, ray.alive) == (4, [], 4, 0)
  assert [name for name, _ in order if name != '1'] == ['0', '2', '3'] and order[-1] == ('1', 2)
  assert 'another one begins it again (2)' in capsys.readouterr().err


@pytest.mark.parametrize('lost', [True, False])
def test_a_clip_that_kills_its_workers_is_given_up(tmp_path, lost):
  def segment(clip, attempt):
    if clip.name != '1':
      return done(clip)
    if lost:
      raise Lost('killed by the memory monitor')
    return Outcome(clip, fault=Fault('worker', 6, 'killed by the device'))

  report = run_fleet(FakeRay(segment), tmp_path)
  (failure,) = report.failures
  assert report.done == 3 and failure['name'] == '1' and 'killed by' in failure['error']
  assert failure['attempts'] == ray_engine.MAX_LOSSES and failures(tmp_path) == report.failures
  with pytest.raises(DataError, match='1 of 4 clips failed'):
    report.finish()


def test_a_full_disk_stops_all_workers(tmp_path):
  ray = FakeRay(lambda clip, attempt: done(clip) if clip.name == '0' else Outcome(clip, fault=Fault('run', 3, 'full')))
  with pytest.raises(DataError, match='1: full; 3 of 4 clips are left'):
    run_fleet(ray, tmp_path)
  assert ray.alive == 0 and not failures(tmp_path)


def test_a_signal_inside_of_rays_code_ends_the_run(tmp_path):
  def interrupted(clip, attempt):
    raise SystemError('returned a result with an exception set') from KeyboardInterrupt()

  ray = FakeRay(interrupted)
  with pytest.raises(KeyboardInterrupt):
    run_fleet(ray, tmp_path)


@pytest.mark.parametrize('address', ['127.0.0.1:1', '[::1]:1', '127.0.0.1:99999'])
def test_a_cluster_that_is_not_there(address):
  with pytest.raises(DeviceError, match='no Ray cluster can be reached at'):
    ray_engine._check_reachable(address)


@pytest.fixture
def no_pause(monkeypatch):
  monkeypatch.setattr(ray_engine, 'PAUSE', 0.0)


def test_workers_that_cannot_start(tmp_path, no_pause, capsys):
  def dies():
    raise Lost('a table\n  and a traceback\n  no library')

  with pytest.raises(DeviceError, match='no worker survives its start: no library; 4 of 4 clips are left'):
    run_fleet(FakeRay(done, dies), tmp_path)
  assert capsys.readouterr().err == 'note: a worker was lost at its start: no library\n'
  with pytest.raises(DeviceError, match='no gpu'):
    run_fleet(FakeRay(done, lambda: (Fault('worker', 6, 'no gpu'), ())), tmp_path)


@pytest.mark.parametrize('dies', [True, False])
def test_a_machine_where_no_worker_starts_leaves_the_clips_to_the_others(tmp_path, no_pause, dies):
  starts = 0

  def start():
    nonlocal starts
    starts += 1
    if starts > 1 and dies:
      raise Lost('no library')
    return (None if starts == 1 else Fault('worker', 6, 'no gpu')), ()

  ray = FakeRay(lambda clip, attempt: done(clip), start)
  report = run_fleet(ray, tmp_path, count=30)
  assert (report.done, report.failures, ray.alive) == (30, [], 0)
  assert starts <= 1 + 30  # tried again after each clip, not all the time


def test_when_the_last_machine_that_could_is_lost(tmp_path, no_pause):
  starts = 0

  def start():
    nonlocal starts
    starts += 1
    if starts > 1:
      raise Lost('no library')
    return None, ()

  def segment(clip, attempt):
    if clip.name == '2':
      raise Lost('preempted')
    return done(clip)

  with pytest.raises(DeviceError, match='no library; 2 of 4 clips are left, --resume goes on'):
    run_fleet(FakeRay(segment, start), tmp_path)


@pytest.mark.parametrize('wakes', [True, False])
def test_ray_of_this_machine_is_started_again_after_a_sleep(tmp_path, monkeypatch, capsys, wakes):
  asleep, clusters, tried = False, 0, []

  def segment(clip, attempt):
    nonlocal asleep
    if asleep:
      raise Lost('no heartbeats')
    tried.append(clip.name)
    asleep = clip.name == '1'
    return done(clip)

  @contextlib.contextmanager
  def cluster(*_):
    nonlocal asleep, clusters
    clusters, asleep = clusters + 1, asleep and not wakes
    yield

  class Factory:
    remote = staticmethod(lambda *_: ray)

  ray = FakeRay(segment)
  ray.remote = lambda **options: lambda kind: Factory
  ray.nodes = lambda: [{'Alive': not asleep}]
  ray.wait = lambda references, timeout: ([r for r in references if r[1] == 'segment' or not asleep], [])
  for name, value in {'import_ray': lambda: ray, '_cluster': cluster, '_devices': lambda *_: ('cpu', 1)}.items():
    monkeypatch.setattr(ray_engine, name, value)
  (tmp_path / '.adnet').mkdir()
  report, clips = Report(tmp_path, 4, 0), [Clip(str(k), str(k), k) for k in range(4)]
  expected = contextlib.nullcontext() if wakes else pytest.raises(DeviceError, match='again; 2 of 4 clips are left')
  with expected:
    ray_engine.run(make_job(tmp_path), clips, report, workers=1, address=None)
  assert (report.done, clusters, sorted(tried)) == ((4, 2, list('0123')) if wakes else (2, 4, list('01')))
  assert (
    'note: Ray on this machine has ended; it is started again for the 2 clips that are left' in capsys.readouterr().err
  )
  assert not list((tmp_path / '.adnet').iterdir()), 'workers that are left behind see that nobody waits for them'


# ------------------------------------------------------------------------------------------- a real cluster


@pytest.fixture
def start(tiny_model, monkeypatch, tmp_path, tmp_path_factory):
  """Starts `adnet segment` on the manifest of `tmp_path` in a process of its own."""
  for name, value in {
    'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'ADNET_MODELS': str(tiny_model.parent),
    'XDG_CACHE_HOME': str(tmp_path_factory.getbasetemp() / 'fleet'),
    'RAY_worker_niceness': '0',  # or a busy machine leaves the workers nothing
  }.items():  # fmt: skip
    monkeypatch.setenv(name, value)
  command = [sys.executable, '-m', 'adnet_jax.cli', 'segment', 'list.jsonl', '--model', 'tiny', '--batch', '2']

  def call(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
      [*command, *options], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

  return call


def finish(process: subprocess.Popen[str], code: int) -> tuple[list[str], str]:
  """Names of the clips that it did, and what it said of errors."""
  out, error = process.communicate(timeout=DEADLINE)
  assert process.returncode == code, error
  return re.findall(r'^\[\d+/\d+\] (.*): \d+ masks', out, re.MULTILINE), error


def descendants(process: int) -> dict[int, str]:
  """Processes below one, and their titles."""
  children: dict[int, list[int]] = {}
  titles: dict[int, str] = {}
  for entry in Path('/proc').iterdir():
    try:
      number = int(entry.name)
      children.setdefault(int((entry / 'stat').read_text().rpartition(')')[2].split()[1]), []).append(number)
      titles[number] = (entry / 'cmdline').read_text()
    except (ValueError, OSError):
      continue
  found, open_ = {}, [process]
  while open_:
    below = children.get(open_.pop(), [])
    open_ += below
    found |= {number: titles.get(number, '') for number in below}
  return found


def workers_of(driver: int) -> list[int]:
  """Processes of our workers, whatever they are at."""
  return [number for number, title in descendants(driver).items() if title.startswith('ray::Worker')]


def wait_until(condition, process: subprocess.Popen[str]) -> None:
  deadline = time.monotonic() + DEADLINE
  while not condition() and process.poll() is None:
    assert time.monotonic() < deadline, 'nothing happens'
    time.sleep(0.01)


@pytest.mark.slow
def test_killed_workers_lose_and_repeat_nothing(start, tmp_path):
  pytest.importorskip('ray')
  rng = random.Random(KILLS)
  counts = {f'clip {k:02d}': rng.randint(2, 9) if KILLS == 1 else rng.randint(6, 24) for k in range(CLIPS)}
  write_manifest(tmp_path, counts, {'input': 'list.jsonl', 'name': 'no video'})
  finish(start('-o', 'plain'), 3)

  out, process = tmp_path / 'out', start('-o', 'out', '--engine', 'ray', '--workers', '2')
  kills, moments = 0, []
  while kills < KILLS and process.poll() is None:
    # Spread over the job, however fast the machine is: while clips are worked on, after some have been done.
    wait_until(lambda due=kills * CLIPS // (KILLS + 1): len(list(out.glob('clip*'))) >= due, process)
    wait_until(lambda: any((out / '.adnet' / 'parts').glob('*')), process)
    time.sleep(rng.random() if kills else 0)
    targets = workers_of(process.pid)
    at = dict(reversed(path.name.split('~')[:3:2]) for path in (out / '.adnet' / 'parts').glob('*'))
    busy = [number for number in targets if str(number) in at]
    if targets if kills else busy:
      target = rng.choice(targets if kills else busy)
      os.kill(target, signal.SIGKILL)
      kills += 1
      moments.append((len(list(out.glob('clip*'))), at.get(str(target), 'at none')))
  names, error = finish(process, 3)
  print(f'{kills} kills, {error.count("its worker was lost")} clips begun again; done before, at:', *moments, sep='\n')
  assert kills == KILLS and 'its worker was lost' in error, error
  assert sorted(names) == sorted(counts), 'every clip once'
  assert [line['name'] for line in failures(out)] == ['no video'] and 'Traceback' not in error
  assert files(out) == files(tmp_path / 'plain') and not (out / '.adnet' / 'parts').exists()


@pytest.mark.slow
def test_a_stopped_run_goes_on(start, tmp_path):
  pytest.importorskip('ray')
  counts = {f'clip {k:02d}': 12 for k in range(6)}
  write_manifest(tmp_path, counts)
  out, options = tmp_path / 'out', ('-o', 'out', '--no-overlay', '--engine', 'ray', '--workers', '1')
  process = start(*options)
  wait_until(lambda: (out / 'clip 01').exists(), process)
  process.send_signal(signal.SIGTERM)
  first, error = finish(process, 75)
  assert 0 < len(first) < 6 and 'SIGTERM' in error and '--resume' in error and not workers_of(process.pid)
  # The last one may have got its place before anybody was told.
  there, before = {path.name for path in out.iterdir() if path.name in counts}, times(out)
  assert set(first) <= there
  second, _ = finish(start(*options, '--resume'), 0)
  assert sorted(second) == sorted(set(counts) - there) and before.items() <= times(out).items()
  assert all(len(list((out / name / 'masks').iterdir())) == 12 for name in counts)


@pytest.fixture
def cluster(start, monkeypatch):
  """Address of a cluster that wants a token, and a function that adds a machine of one processor, a process, to it."""
  pytest.importorskip('ray')
  monkeypatch.setenv('RAY_AUTH_MODE', 'token')
  monkeypatch.setenv('RAY_AUTH_TOKEN', 'f' * 40)
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{listener.getsockname()[1]}'
  machines = []

  def add(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, '-m', 'ray.scripts.scripts', 'start', '--block', *options]
    command.append(f'--object-store-memory={ray_engine.OBJECT_STORE_BYTES}')
    machines.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for line in machines[-1].stdout:
      if 'Ray runtime started' in line:
        return machines[-1]
    raise AssertionError('no machine could be started')

  # The head only keeps the books.
  add('--head', f'--port={address.rpartition(":")[2]}', '--include-dashboard=false', '--num-cpus=0')
  yield address, lambda: add(f'--address={address}', '--num-cpus=1')
  for machine in reversed(machines):
    machine.terminate()
    machine.communicate(timeout=DEADLINE)


@pytest.mark.slow
def test_a_cluster_that_runs_already_loses_a_machine(start, cluster, tmp_path):
  address, add_machine = cluster
  machines = [add_machine(), add_machine()]
  counts = {f'clip {k:02d}': 9 for k in range(8)}
  write_manifest(tmp_path, counts)
  finish(start('-o', 'plain'), 0)
  out, process = tmp_path / 'out', start('-o', 'out', '--engine', 'ray', '--address', address)
  parts = out / '.adnet' / 'parts'
  wait_until(lambda: any(parts.glob('*')), process)
  busy = {int(path.name.split('~')[2]) for path in parts.glob('*')}
  # Whichever began first: the other may still be at its start when all clips are done.
  lost = next(machine for machine in machines if busy & descendants(machine.pid).keys())
  for number in [lost.pid, *descendants(lost.pid)]:
    with contextlib.suppress(ProcessLookupError):
      os.kill(number, signal.SIGKILL)
  names, error = finish(process, 0)
  assert sorted(names) == sorted(counts) and 'its worker was lost' in error, error
  assert files(out) == files(tmp_path / 'plain')
