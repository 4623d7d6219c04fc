"""Faults planted into a training: numbers, data, disk and packages; what is said, and what goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_training

import adnet_jax
from adnet_jax import errors, train

pytestmark = pytest.mark.usefixtures('compiled_hastily')

ROOT = Path(__file__).resolve().parents[1]
DAVIS = str(ROOT / 'configs' / 'davis.py')


@pytest.fixture
def data(training_root, training_config, tmp_path) -> Path:
  """A copy of the data set, which the configuration names, to be damaged."""
  root = shutil.copytree(training_root, tmp_path / 'data')
  training_config.data.root = str(root)
  return root


def lines(workdir):
  return [json.loads(line) for line in (workdir / 'train.jsonl').read_text().splitlines()]


def steps(workdir):
  return [line['step'] for line in lines(workdir)]


def mask_of(root: Path, clip: str, frame: int) -> Path:
  return root / 'Annotations' / '480p' / clip / f'{frame:05d}.png'


def image_of(root: Path, clip: str, frame: int) -> Path:
  return root / 'JPEGImages' / '480p' / clip / f'{frame:05d}.jpg'


# -------------------------------------------------------------------------------------------------------- numbers


def test_steps_that_are_not_finite_are_skipped_named_and_in_the_end_too_many(training_config, tmp_path, caplog):
  training_config.optim.lr, training_config.max_skipped, training_config.steps = 1e3, 2, 60
  training_config.checkpoint.every = 1
  with pytest.raises(errors.DivergedError, match=r'3 steps in a row were not finite.*lower optim\.lr') as diverged:
    train.train(training_config, tmp_path)
  assert diverged.value.exit_code == 5
  log = lines(tmp_path)
  assert [line['step'] for line in log] == list(range(len(log)))
  for line in log[-3:]:
    assert line['loss'] is None or line['grad_norm'] is None
    assert f'step {line["step"]}: loss or gradient not finite, update skipped; samples {line["sample_ids"][0]}' in (
      caplog.text
    )
  kept = [int(path.name) for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdigit()]
  assert max(kept) == len(log) - 3 and not (tmp_path / 'final.safetensors').exists()
  # The same command meets the same end, from the last good checkpoint on.
  with pytest.raises(errors.DivergedError):
    train.train(training_config, tmp_path)
  assert steps(tmp_path) == list(range(len(log)))


# ----------------------------------------------------------------------------------------------------------- data


def test_background_alone_and_clips_of_one_frame_are_samples(training_config, data, tmp_path):
  for frame in range(3):
    cv2.imwrite(str(mask_of(data, 'one', frame)), np.zeros((40, 60), np.uint8))
  for frame in (1, 2):
    mask_of(data, 'two', frame).unlink()
    image_of(data, 'two', frame).unlink()
  train.train(training_config, tmp_path / 'work')
  log = lines(tmp_path / 'work')
  assert all(line['loss'] is not None for line in log)
  assert {'two/00000+00000'} < {name for line in log for name in line['sample_ids']}


@pytest.mark.parametrize(
  ('damage', 'text'),
  [
    (
      lambda root: cv2.imwrite(str(mask_of(root, 'one', 1)), np.zeros((41, 60), np.uint8)),
      'frame is 60x40 but its mask is 60x41',
    ),
    (lambda root: cv2.imwrite(str(mask_of(root, 'one', 1)), np.mgrid[:40, :60][1].astype(np.uint8)), 'two values'),
    (lambda root: mask_of(root, 'one', 1).unlink(), '1 training frames without a mask'),
    (lambda root: mask_of(root, 'one', 1).write_bytes(b'no picture'), '1 training frames or masks cannot be used'),
    (lambda root: shutil.rmtree(root / 'Annotations' / '480p' / 'one'), 'clip without masks'),
    (lambda root: [shutil.rmtree(path) for path in (root / 'JPEGImages' / '480p').iterdir()], 'clip'),
  ],
)
def test_unusable_masks_are_named_before_training_starts(training_config, data, tmp_path, damage, text):
  damage(data)
  with pytest.raises(errors.DataError, match=text) as error:
    train.train(training_config, tmp_path / 'work')
  assert error.value.exit_code == 3 and ('one' in str(error.value) or str(data) in str(error.value))
  assert sorted(path.name for path in (tmp_path / 'work').iterdir()) == ['lock']


def damage_body(path: Path) -> None:
  """The header stays whole, so that nothing is noticed before the picture is read."""
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])


def test_an_unreadable_frame_is_named_and_others_take_its_place(training_config, data, tmp_path, caplog):
  for frame in range(3):
    damage_body(image_of(data, 'one', frame))
  train.train(training_config, tmp_path / 'work')
  log = lines(tmp_path / 'work')
  assert steps(tmp_path / 'work') == [0, 1, 2, 3]
  # What was trained on is what is logged: no sample of the clip whose anchor cannot be read.
  assert {name.split('/')[0] for line in log for name in line['sample_ids']} == {'two'}
  assert f'training file {image_of(data, "one", 0)} is unreadable' in caplog.text
  training_config.data.max_unreadable = 0
  with pytest.raises(
    errors.DataError, match=r'1 training files are unreadable.*00000\.jpg.*data\.max_unreadable'
  ) as error:
    train.train(training_config, tmp_path / 'limited')
  assert error.value.exit_code == 3


# ----------------------------------------------------------------------------------------------- disk and packages


@pytest.fixture
def small_disk(tmp_path):
  """A folder on a disk of 600 MB; a checkpoint of the tiny network has 85."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=600m', 'tmpfs', str(folder)]
  if sys.platform != 'linux' or subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip('no right to mount a file system')
  yield folder
  subprocess.run(['umount', '-l', str(folder)], check=True)


def fill(disk: Path) -> None:
  with (disk / 'ballast').open('wb', buffering=0) as file:
    try:
      while True:
        file.write(bytes(2**20))
    except OSError:
      pass
  with (disk / 'more ballast').open('wb', buffering=0) as file:
    try:
      while True:
        file.write(b'0')
    except OSError:
      pass


def test_a_full_disk_costs_checkpoints_and_nothing_else(training_config, small_disk, caplog):
  pytest.importorskip('tensorboardX')
  training_config.steps, training_config.checkpoint.every, training_config.checkpoint.keep = 8, 1, 1
  training_config.evaluate.every = 2
  workdir = small_disk / 'work'

  def disturb(step, _):
    if step == 1:
      fill(small_disk)
    if step == 5:
      for path in small_disk.glob('*ballast'):
        path.unlink()

  train.train(training_config, workdir, disturb, lambda path: {'J': 0.5, 'F': 0.5})
  assert steps(workdir) == list(range(8))  # the lines of the full disk were made up for
  assert 'could not be saved, training goes on: RESOURCE_EXHAUSTED' in caplog.text or 'No space left' in caplog.text
  assert 'validation after 4 steps failed, training goes on' in caplog.text
  assert (workdir / 'final.safetensors').exists()
  assert (workdir / 'checkpoints' / '8').is_dir() and not list((workdir / 'checkpoints').glob('*tmp*'))


def test_a_disk_that_stays_full_ends_in_an_error_of_one_line(training_config, small_disk, caplog):
  with pytest.raises(errors.WeightsError) as error:
    train.train(training_config, small_disk / 'work', lambda step, _: fill(small_disk) if step == 0 else None)
  assert error.value.exit_code == 4 and '\n' not in str(error.value)
  assert 'No space left' in str(error.value)
  assert all(record.pathname.endswith(('train.py', 'checkpoint.py', 'appending.py')) for record in caplog.records)
  assert not list((small_disk / 'work').glob('**/*.tmp'))


def test_without_tensorboardx_training_goes_on_and_says_so_once(training_config, tmp_path, monkeypatch, caplog):
  for name in [name for name in sys.modules if name.startswith(('tensorboardX', 'adnet_jax.events'))]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.delattr(adnet_jax, 'events', raising=False)
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  training_config.observe.images_every = 2
  train.train(training_config, tmp_path)
  assert (
    caplog.text.count("TensorBoard files are not written, tensorboardX is missing: pip install 'adnet-jax[train]'") == 1
  )
  assert not (tmp_path / 'tensorboard').exists() or not list((tmp_path / 'tensorboard').iterdir())
  assert steps(tmp_path) == [0, 1, 2, 3]
  assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 4


def test_files_that_never_answer_end_the_run(compiled, data, tmp_path):
  """As where the storage is gone: the worker's thread is stuck for good, and the process ends all the same."""
  path, log = tmp_path / 'config.py', tmp_path / 'work' / 'train.jsonl'
  changes = [*tiny_training.overrides(data), 'data.cache=none', 'steps=10000', 'observe.images_every=0']
  path.write_text(f'from adnet_jax import config\n\ndef get_config():\n  return config.load({DAVIS!r}, {changes!r})\n')
  script = (
    'from adnet_jax import main; from adnet_jax.data import input_pipeline; input_pipeline.STALLED = 3; main.run()'
  )
  command = [sys.executable, '-c', script, '--config', path, '--workdir', log.parent, '--mode', 'train']
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(compiled), 'ADNET_COMPILATION_CACHE': '0'}
  process = subprocess.Popen([*map(str, command)], env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT)
  try:
    limit = time.monotonic() + 300
    while not log.exists() or len(log.read_text().splitlines()) < 2:
      assert process.poll() is None and time.monotonic() < limit
      time.sleep(0.2)
    for image in sorted(data.glob('JPEGImages/480p/*/*.jpg')):
      os.mkfifo(tmp_path / 'pipe')
      os.replace(tmp_path / 'pipe', image)
    _, text = process.communicate(timeout=60)
  finally:
    process.kill()
  assert process.returncode == errors.DataError.exit_code
  assert 'error: the data workers gave no sample for' in text.splitlines()[-1]
