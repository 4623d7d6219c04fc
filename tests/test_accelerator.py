"""Rehearses tools/accelerator.sh on the CPU: stopped in the middle, then finished from what it had packed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / 'tools' / 'accelerator.sh'
TRAINING = 'compact-481'

pytestmark = [
  pytest.mark.usefixtures('compiled_hastily'),
  pytest.mark.skipif(
    not all(map(shutil.which, ('bash', 'timeout', 'tar', 'gzip', 'split'))), reason='needs bash and the usual tools'
  ),
]


def start(folder: Path, **variables: object) -> subprocess.Popen:
  environment = {name: value for name, value in os.environ.items() if name not in ('DATA', 'STILLS', 'TRUNKS', 'STEPS')}
  environment |= {
    'PYTHON': sys.executable,
    'JAX_PLATFORMS': 'cpu',
    'TINY': '1',
    'XDG_CACHE_HOME': str(folder / 'cache'),
  }
  environment |= {name: str(value) for name, value in variables.items()}
  return subprocess.Popen(
    ['bash', SCRIPT], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )


def finish(process: subprocess.Popen) -> tuple[int, str]:
  output, _ = process.communicate(timeout=500)
  return process.returncode, output


def logged_steps(workdir: Path) -> list[int]:
  log = workdir / 'train.jsonl'
  lines = log.read_text().splitlines() if log.exists() else []
  return [json.loads(line)['step'] for line in lines if line.endswith('}')]


def unpack(out: Path, into: Path) -> Path:
  whole = into / 'whole.tar.gz'
  whole.write_bytes(b''.join(part.read_bytes() for part in sorted(out.glob(f'{TRAINING}.tar.gz.*'))))
  with tarfile.open(whole) as archive:
    archive.extractall(into, filter='data')
  return into / TRAINING


@pytest.mark.slow
def test_rehearsal_stopped_and_resumed_elsewhere(tmp_path):
  first, second = tmp_path / 'first', tmp_path / 'second'
  process = start(tmp_path, OUT=first / 'out', WORK=first / 'work', STEPS=900)
  waited = time.monotonic()
  while process.poll() is None and not logged_steps(first / 'work' / TRAINING):
    assert time.monotonic() - waited < 500, 'no training step was done'
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  status, output = finish(process)
  assert status == 75, output
  assert f'{TRAINING}: training: not finished' in output
  assert (first / 'out' / 'status.txt').read_text() == 'unfinished: call again\n'
  packed = unpack(first / 'out', tmp_path)
  done = logged_steps(packed)
  assert done == list(range(len(done)))
  assert [path.name for path in (packed / 'checkpoints').iterdir()] == [str(len(done))]

  # On a machine that has nothing but what was carried: one step more, and the evaluation.
  steps = len(done) + 1
  status, output = finish(start(tmp_path, OUT=second / 'out', WORK=second / 'work', RESTORE=first / 'out', STEPS=steps))
  assert status == 0, output
  assert 'parity tests: done' in output
  assert 'benchmark, input: done' in output
  assert list(json.loads((second / 'out' / 'benchmark.json').read_text())['sections']) == ['input']
  assert f'{TRAINING}: restored' in output
  assert logged_steps(second / 'work' / TRAINING) == list(range(steps))
  scores = json.loads((second / 'work' / TRAINING / 'evaluation' / 'scores.json').read_text())
  assert list(scores['clips']) == ['astronaut']
  files = list((second / 'out').iterdir())
  assert len(files) <= 8
  assert all(path.is_file() and path.stat().st_size <= 16_000_000 for path in files)
  assert (second / 'out' / 'status.txt').read_text() == 'complete\n'
  result = unpack(second / 'out', second)
  assert (result / 'final.safetensors').exists()
  assert (result / 'evaluation' / 'scores.json').exists()
  assert not (result / 'checkpoints').exists()

  # All is there: nothing is started again.
  status, output = finish(start(tmp_path, OUT=second / 'out', WORK=second / 'work', PYTHON='/nonexistent'))
  assert status == 0, output
  assert f'{TRAINING}: done' in output


def prepared(folder: Path) -> Path:
  """A work folder in which tests and benchmark are done."""
  work = folder / 'work'
  work.mkdir()
  (work / 'parity.txt').write_text('12 passed\n')
  (work / 'benchmark.json').write_text(json.dumps({'sections': {'input': []}}, indent=2))
  return work


def test_without_time_nothing_is_begun(tmp_path):
  status, output = finish(start(tmp_path, OUT=tmp_path / 'out', WORK=prepared(tmp_path), SLICE_SECONDS=1))
  assert status == 75, output
  assert f'{TRAINING}: training: left for the next call' in output


def test_a_failed_step_is_named_and_its_log_shown(tmp_path):
  broken = tmp_path / 'python'
  broken.write_text('#!/bin/sh\necho out of luck\nexit 3\n')
  broken.chmod(0o755)
  status, output = finish(start(tmp_path, OUT=tmp_path / 'out', WORK=prepared(tmp_path), PYTHON=broken))
  assert status == 1
  assert 'FAILED with status 3' in output
  assert 'out of luck' in output
  assert (tmp_path / 'out' / 'status.txt').read_text() == f'failed: {TRAINING}: training (status 3)\n'


def test_packs_are_split_and_restored(tmp_path):
  work = prepared(tmp_path)
  noise = os.urandom(16_000_000)
  (work / TRAINING / 'evaluation').mkdir(parents=True)
  (work / TRAINING / 'final.safetensors').write_bytes(noise)
  (work / TRAINING / 'evaluation' / 'scores.json').write_text('{}')
  status, output = finish(start(tmp_path, OUT=tmp_path / 'out', WORK=work))
  assert status == 0, output
  parts = sorted((tmp_path / 'out').glob('*.tar.gz.*'))
  assert [part.name[-3:] for part in parts] == ['.00', '.01']
  again = tmp_path / 'again'
  status, output = finish(start(tmp_path, OUT=tmp_path / 'out2', WORK=again, RESTORE=tmp_path / 'out'))
  assert status == 0, output
  assert (again / TRAINING / 'final.safetensors').read_bytes() == noise


def test_wheels_are_installed_without_network(tmp_path):
  pytest.importorskip('pip')
  wheels = tmp_path / 'wheels'
  wheels.mkdir()
  info = 'carried-1.0.dist-info'
  with zipfile.ZipFile(wheels / 'carried-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('carried.py', 'VALUE = 1\n')
    wheel.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n')
    wheel.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    wheel.writestr(f'{info}/RECORD', f'carried.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n')
  work = prepared(tmp_path)
  status, output = finish(start(tmp_path, OUT=tmp_path / 'out', WORK=work, WHEELS=wheels, SLICE_SECONDS=1))
  assert status == 75, output
  assert (work / 'site' / 'carried.py').exists()
  assert 'installing 1 wheels' in output
