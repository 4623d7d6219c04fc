"""Training on several devices and in several processes: the same samples and losses, and one end for all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_training

from adnet_jax import config as config_lib
from adnet_jax import distributed, errors, train

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / 'adnet_jax' / 'assets' / 'sample'
# What is the same sum in another order must stay that far apart (relative) over a whole training.
TOLERANCE = 1e-5
STEPS = 4
SECONDS = 300  # that anything may take on a busy machine, compilation included


def adjusted(config):
  """Two pairs or more a device and no fewer channels: with less, a CPU's products depend on the size of the batch."""
  config.data.crop, config.batch, config.steps = 97, 16, STEPS
  config.model.aspp_width = config.model.embedding = 32
  config.optim.frozen_stages, config.optim.lr = 3, 0.005
  return config


@pytest.fixture
def config(training_config):
  return adjusted(training_config)


def read_log(workdir):
  """Losses and gradients' norms, both (steps,), and sample ids of a training."""
  lines = [json.loads(line) for line in (workdir / 'train.jsonl').read_text().splitlines()]
  losses, norms = (np.array([line[key] for line in lines]) for key in ('loss', 'grad_norm'))
  return losses, norms, [line['sample_ids'] for line in lines]


@pytest.fixture(scope='module')
def one_device(training_root, tmp_path_factory):
  """`read_log` of a training on one device."""
  workdir = tmp_path_factory.mktemp('one device')
  train.train(adjusted(config_lib.load('configs/davis.py', tiny_training.overrides(training_root))), workdir)
  return read_log(workdir)


def assert_same(found, expected):
  assert found[2] == expected[2]
  np.testing.assert_allclose(found[0], expected[0], rtol=TOLERANCE)
  np.testing.assert_allclose(found[1], expected[1], rtol=100 * TOLERANCE)


@pytest.mark.parametrize('devices', [2, 4, 8])
def test_more_devices_see_the_same_samples_and_losses(config, one_device, tmp_path, devices):
  config.devices = devices
  train.train(config, tmp_path)
  assert_same(read_log(tmp_path), one_device)


def test_another_number_of_devices_goes_on_with_the_same_samples(config, one_device, tmp_path):
  for config.devices, config.steps in ((8, 3), (1, STEPS)):
    train.train(config, tmp_path)
  assert_same(read_log(tmp_path), one_device)


@pytest.mark.slow
def test_the_bundled_models_training_is_the_same_on_eight_devices(tmp_path):
  """At its own rate, with the one pair a device whose sums may differ in their last bits."""
  values = [
    f'data.root={SAMPLE}',
    'data.stills=',
    'data.stills_fraction=0',
    'data.crop=97',
    'init.weights=adnet-compact',
    'optim.frozen_stages=5',  # of seven: most of compiling is gradients
  ]
  config = config_lib.load('configs/compact.py', [*values, 'steps=3', 'batch=8', 'observe.images_every=0'])
  for config.devices in (1, 8):
    train.train(config, tmp_path / str(config.devices))
  assert_same(read_log(tmp_path / '8'), read_log(tmp_path / '1'))


# ------------------------------------------------------------------------------------------- real processes


@pytest.fixture
def start(config, compiled, tmp_path):
  """Starts both processes of a training in tmp_path / 'two'; the changes of keys are those of process 1 alone."""
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
  settings = {
    'JAX_NUM_CPU_DEVICES': 1,
    'JAX_COMPILATION_CACHE_DIR': compiled,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': 0.1,
    'ADNET_COMPILATION_CACHE': 0,
  }
  environment = {**os.environ, **{name: str(value) for name, value in settings.items()}, 'PYTHONPATH': str(ROOT)}
  path = tmp_path / 'config.py'
  started = []

  def start(*changes, timeout=60):
    config.devices = 0
    path.write_text(f'import json\n{CONFIGURATION}\nVALUES = json.loads({json.dumps(config_lib.to_json(config))!r})\n')
    for process in (0, 1):
      command = [sys.executable, '-m', 'adnet_jax.main', '--config', path, '--workdir', tmp_path / 'two']
      command += ['--mode', 'train', '--coordinator', f'127.0.0.1:{port}', '--processes', 2, '--process', process]
      command += ['--timeout', timeout, *(changes if process else ())]
      started.append(
        subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
      )
    return started

  yield start
  for process in started:
    process.kill()
    process.communicate()


CONFIGURATION = """
from adnet_jax import config as config_lib

def get_config():
  config = config_lib.default()
  for name, value in json.loads(VALUES).items():
    config_lib._set(config, name, value)
  return config
"""


def await_steps(workdir, count, processes):
  limit = time.monotonic() + SECONDS
  log = workdir / 'train.jsonl'
  while not log.exists() or len(log.read_text().splitlines()) < count:
    assert all(process.poll() is None for process in processes), [end(process) for process in processes]
    assert time.monotonic() < limit, 'training does not start'
    time.sleep(0.2)


def end(process):
  """Exit code and the lines of stderr that are ours."""
  _, text = process.communicate(timeout=SECONDS)
  return process.returncode, [line for line in text.splitlines() if line.startswith('error: ')]


def test_two_processes_see_the_same_samples_and_losses_and_one_goes_on(config, one_device, start, tmp_path):
  config.steps = 3
  assert [end(process) for process in start()] == [(0, []), (0, [])]
  assert (tmp_path / 'two' / 'final.safetensors').is_file()
  assert_same(read_log(tmp_path / 'two'), [part[:3] for part in one_device])
  config.steps, config.devices = STEPS, 1
  train.train(config, tmp_path / 'two')
  assert_same(read_log(tmp_path / 'two'), one_device)


def test_processes_that_were_given_different_things_refuse_them(start, tmp_path):
  ends = [end(process) for process in start('--config.seed=5', '--config.optim.lr=.1')]
  assert [code for code, _ in ends] == [errors.UsageError.exit_code] * 2
  assert all('has other values than process' in line and '(optim.lr, seed)' in line for _, (line,) in ends)


@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_process_ends_the_other_which_names_it(config, start, tmp_path, victim):
  config.steps = 10_000
  processes = start()
  await_steps(tmp_path / 'two', 2, processes)
  processes[victim].send_signal(signal.SIGKILL)
  killed = time.monotonic()
  code, (line,) = end(processes[1 - victim])
  assert code == errors.DeviceError.exit_code
  assert line.startswith(f'error: process {victim} ({socket.gethostname()}) was lost')
  assert time.monotonic() - killed < 30


def test_sigterm_to_one_process_saves_and_ends_both_at_the_same_step(config, start, tmp_path):
  config.steps, config.checkpoint.every = 10_000, 10_000
  processes = start()
  await_steps(tmp_path / 'two', 2, processes)
  processes[1].send_signal(signal.SIGTERM)
  (code, lines), other = (end(process) for process in processes)
  assert code == 75 and (code, lines) == other
  (step,) = (path.name for path in (tmp_path / 'two' / 'checkpoints').iterdir() if path.is_dir())
  assert lines == [f'error: stopped by SIGTERM at step {step}, everything is saved: the same command goes on']
  assert len(read_log(tmp_path / 'two')[0]) == int(step)


def test_an_error_of_one_process_ends_the_other_with_its_words(config, start, tmp_path):
  one, other = start(f'--config.data.root={tmp_path}')
  code, (line,) = end(other)
  assert code == errors.DataError.exit_code
  ended, (told,) = end(one)
  assert ended == errors.DeviceError.exit_code
  assert told.startswith(f'error: process 1 ({socket.gethostname()}) ended with {line.removeprefix("error: ")}; ')


def test_a_process_alone_gives_up(config, start):
  one, other = start(timeout=4)
  other.kill()
  code, lines = end(one)
  assert code == errors.DeviceError.exit_code
  assert len(lines) == 1 and 'the processes did not find each other' in lines[0]


def test_an_abort_of_the_runtime_becomes_an_exit_code():
  """It comes from one of the runtime's own threads, while Python waits."""
  code = """
import ctypes, os, threading, time
from adnet_jax import distributed
distributed._call_on_abort(lambda: os._exit(6))
threading.Thread(target=ctypes.CDLL(None).abort).start()
time.sleep(20)
"""
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  assert subprocess.run([sys.executable, '-c', code], env=environment, timeout=SECONDS).returncode == 6


# --------------------------------------------------------------------------------------------- command line


def test_without_flags_there_is_no_place_and_with_all_there_is():
  assert distributed.place(None, None, None) is None
  assert distributed.place('host:123', 4, 3) == ('host:123', 4, 3)


@pytest.mark.parametrize(
  'arguments', [('host:123', None, None), ('host:123', 2, 2), ('host:123', 2, -1), ('host', 2, 0), (None, 2, 0)]
)
def test_a_place_that_cannot_be_is_refused(arguments):
  with pytest.raises(errors.UsageError):
    distributed.place(*arguments)


def test_no_cluster_says_nothing_and_evaluation_needs_none(config, tmp_path):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  command = [sys.executable, '-m', 'adnet_jax.main', '--config', 'configs/davis.py', '--workdir', str(tmp_path)]
  command.append('--config.data.root=DAVIS')
  for mode, expected in (('train', 'nothing says which process this is'), ('evaluate', 'evaluation runs in one')):
    done = subprocess.run(
      [*command, '--distributed', '--mode', mode], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == errors.UsageError.exit_code and f'error: {expected}' in done.stderr
