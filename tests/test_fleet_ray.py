"""Many clips by Ray actors: who does what when workers are lost, and a real cluster whose workers are killed.

ADNET_KILLS=10 python -m pytest tests/test_fleet_ray.py

kills ten workers in a job of forty clips instead of one in ten.
"""

from __future__ import annotations

import os
import random
import re
import signal
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
  fleet = ray_engine._Fleet(ray, make_job(tmp_path), 'run', report, size)
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


def test_workers_that_cannot_start(tmp_path):
  def dies():
    raise Lost('no library')

  with pytest.raises(DeviceError, match='no worker survives its start: no library'):
    run_fleet(FakeRay(done, dies), tmp_path)
  with pytest.raises(DeviceError, match='no gpu'):
    run_fleet(FakeRay(done, lambda: (Fault('worker', 6, 'no gpu'), ())), tmp_path)


# ------------------------------------------------------------------------------------------- a real cluster


@pytest.fixture
def start(tiny_model, tmp_path, tmp_path_factory):
  """Starts `adnet segment` on the manifest of `tmp_path` in a process of its own."""
  environment = {
    **os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'ADNET_MODELS': str(tiny_model.parent),
    'XDG_CACHE_HOME': str(tmp_path_factory.getbasetemp() / 'fleet'),
    'RAY_worker_niceness': '0',  # or a busy machine leaves the workers nothing
  }  # fmt: skip
  command = [sys.executable, '-m', 'adnet_jax.cli', 'segment', 'list.jsonl', '--model', 'tiny', '--batch', '2']

  def call(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
      [*command, *options], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

  return call


def finish(process: subprocess.Popen[str], code: int) -> tuple[list[str], str]:
  """Names of the clips that it did, and what it said of errors."""
  out, error = process.communicate(timeout=DEADLINE)
  assert process.returncode == code, error
  return re.findall(r'^\[\d+/\d+\] (.*): \d+ masks', out, re.MULTILINE), error


def workers_of(driver: int) -> list[int]:
  """Processes of our workers among the driver's descendants, whatever they are at."""
  children: dict[int, list[int]] = {}
  titles: dict[int, str] = {}
  for entry in Path('/proc').iterdir():
    try:
      number = int(entry.name)
      children.setdefault(int((entry / 'stat').read_text().rpartition(')')[2].split()[1]), []).append(number)
      titles[number] = (entry / 'cmdline').read_text()
    except (ValueError, OSError):
      continue
  found, open_ = [], [driver]
  while open_:
    number = open_.pop()
    open_ += children.get(number, [])
    if titles.get(number, '').startswith('ray::Worker'):
      found.append(number)
  return found


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
