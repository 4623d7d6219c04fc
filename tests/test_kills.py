"""A real training in processes of its own, killed again and again: the same parameters in the end.

ADNET_KILLS=20 python -m pytest tests/test_kills.py

kills it twenty times instead of a few.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tiny_training

pytestmark = pytest.mark.usefixtures('compiled_hastily')

ROOT = Path(__file__).resolve().parents[1]
KILLS = int(os.environ.get('ADNET_KILLS', '3'))
STEPS = 3 * KILLS + 6
DEADLINE = 900.0


@pytest.fixture
def start(training_root, compiled, tmp_path):
  """Starts the main program on a work folder."""
  options = [*tiny_training.overrides(training_root), f'steps={STEPS}', 'optim.ema=0.9']
  command = [sys.executable, '-m', 'adnet_jax.main', '--config', 'configs/davis.py', '--mode', 'train']
  command += [f'--config.{option}' for option in options]
  environment = {
    **os.environ, 'XDG_CACHE_HOME': str(compiled.parent / 'cache'), 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)
  }  # fmt: skip

  def call(workdir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
      [*command, '--workdir', str(workdir)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )

  return call


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
  deadline = time.monotonic() + DEADLINE
  while not condition() and process.poll() is None:
    assert time.monotonic() < deadline, 'nothing happens'
    time.sleep(0.001)


def lines(workdir: Path) -> list[str]:
  path = workdir / 'train.jsonl'
  return path.read_text().splitlines() if path.exists() else []


def new_lines(workdir: Path, count: int) -> Callable[[], bool]:
  before = {}

  def condition() -> bool:
    size = (workdir / 'train.jsonl').stat().st_size if (workdir / 'train.jsonl').exists() else 0
    if before.get('size') == size:
      return False
    now = len(lines(workdir))
    # It shrinks first: steps after the checkpoint are done again.
    before['lowest'] = min(before.get('lowest', now), now)
    before['size'] = size
    return now >= before['lowest'] + count

  return condition


def is_saving(workdir: Path) -> bool:
  return any((workdir / 'checkpoints').glob('*.orbax-checkpoint-tmp*'))


def newest(workdir: Path) -> int:
  return max((int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdigit()), default=0)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(start, tmp_path):
  rng = random.Random(1)
  whole = start(tmp_path / 'whole')
  _, error = whole.communicate(timeout=DEADLINE)
  assert whole.returncode == 0, error

  workdir, moments = tmp_path / 'killed', []
  for kill in range(KILLS):
    process = start(workdir)
    moment = ('saving', 'training', 'any')[kill % 3]
    if moment == 'saving':
      wait_until(new_lines(workdir, 1), process)  # by then what the last kill left has been cleared away
      wait_until(lambda: is_saving(workdir), process)
      time.sleep(rng.random() * 0.05)
    elif moment == 'training':
      wait_until(new_lines(workdir, rng.randint(1, 4)), process)
      time.sleep(rng.random() * 0.3)
    else:
      time.sleep(rng.random() * 10)
    saving = is_saving(workdir)
    process.kill()
    _, error = process.communicate(timeout=DEADLINE)
    if process.returncode == 0:
      break  # it was faster than the signal
    assert process.returncode == -signal.SIGKILL and 'Traceback' not in error, error
    moments.append((moment, saving, newest(workdir), len(lines(workdir))))
  print('moment, while saving, newest checkpoint, lines:', *moments, sep='\n')
  assert len(moments) >= KILLS // 2 and any(saving for _, saving, _, _ in moments)

  last = start(workdir)
  _, error = last.communicate(timeout=DEADLINE)
  assert last.returncode == 0, error
  assert lines(workdir) == lines(tmp_path / 'whole')
  steps = [json.loads(line)['step'] for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert steps == list(range(STEPS))
  one, other = (safetensors.numpy.load_file(folder / 'final.safetensors') for folder in (tmp_path / 'whole', workdir))
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)
  assert len({(folder / 'final.safetensors').read_bytes() for folder in (tmp_path / 'whole', workdir)}) == 1


@pytest.mark.slow
def test_a_second_run_is_refused_while_the_first_one_lives(start, tmp_path):
  first = start(tmp_path)
  wait_until(lambda: (tmp_path / 'lock').exists() and bool((tmp_path / 'lock').read_text()), first)
  second = start(tmp_path)
  _, error = second.communicate(timeout=DEADLINE)
  first.send_signal(signal.SIGKILL)
  first.communicate()
  assert second.returncode == 2
  assert f'another run uses this work folder: process {first.pid} on' in error and error.count('\n') == 1
