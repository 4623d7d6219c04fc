"""The training loop on a tiny data set: what it writes, what it resumes, and what does not depend on the machine."""

from __future__ import annotations

import json
import os
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from adnet_jax import errors, resume, train, weights
from adnet_jax.models import adnet

pytestmark = pytest.mark.usefixtures('compiled_hastily')


@pytest.fixture
def root(training_root):
  return training_root


@pytest.fixture
def config(training_config):
  return training_config


def lines(workdir):
  return [json.loads(line) for line in (workdir / 'train.jsonl').read_text().splitlines()]


def test_training_writes_a_model_a_log_and_learns(config, tmp_path):
  config.steps = 30
  final = train.train(config, tmp_path)
  log = lines(tmp_path)
  assert [line['step'] for line in log] == list(range(30))
  assert set(log[0]) == {'step', 'loss', 'lr', 'grad_norm', 'sample_ids'}
  assert len(log[0]['sample_ids']) == config.batch
  assert log[0]['lr'] == pytest.approx(config.optim.lr)
  assert log[29]['lr'] == pytest.approx(config.optim.lr * (1 - 29 / 40_000) ** 0.9)
  assert np.mean([line['loss'] for line in log[-5:]]) < 0.85 * np.mean([line['loss'] for line in log[:5]])
  model, metadata = weights.load(final)
  assert metadata.architecture == adnet.Architecture(
    backbone='resnet10', stem='conv7x7', output_stride=16, aspp_width=8, embedding=8
  )
  assert metadata.normalization == 'torchvision'
  assert model(jnp.zeros((1, 33, 33, 3)), jnp.zeros((1, 33, 33, 3))).shape == (1, 3, 3, 1)


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(config, tmp_path):
  whole = train.train(config, tmp_path / 'whole')

  def stop_after_first(step, _):
    if step == 0:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(resume.Stopped) as stopped:
    train.train(config, tmp_path / 'parts', stop_after_first)
  assert stopped.value.exit_code == 75
  assert not (tmp_path / 'parts' / 'final.safetensors').exists()
  parts = train.train(config, tmp_path / 'parts')
  assert lines(tmp_path / 'parts') == lines(tmp_path / 'whole')
  one, other = (safetensors.numpy.load_file(path) for path in (whole, parts))
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_another_architecture_is_refused_and_another_rate_is_not(config, tmp_path):
  train.train(config, tmp_path)
  config.steps, config.optim.lr = 5, 0.01
  train.train(config, tmp_path)
  assert [line['step'] for line in lines(tmp_path)] == list(range(5))
  config.model.variant = 'anchor_diffusion'
  with pytest.raises(errors.UsageError, match=r'model\.variant'):
    train.train(config, tmp_path)


def test_a_missing_data_set_is_said_before_anything_is_built(config, tmp_path):
  config.data.root = str(tmp_path / 'nowhere')
  with pytest.raises(errors.DataError, match='not found'):
    train.train(config, tmp_path / 'work')


def test_photographs_without_a_share_of_them_are_not_read(config, tmp_path, caplog):
  config.data.stills, config.steps = str(tmp_path / 'nowhere'), 1
  train.train(config, tmp_path / 'work')
  assert 'data.stills is not used: data.stills_fraction is 0' in caplog.messages


def test_the_model_with_the_highest_validation_score_is_kept(config, tmp_path):
  config.evaluate.every, config.steps, config.checkpoint.keep = 1, 3, 1
  scores = iter([{'J': 0.3, 'F': 0.1}, {'J': 0.5, 'F': 0.2}, {'J': 0.4, 'F': 0.9}])
  seen = []

  def validate(path):
    seen.append(safetensors.numpy.load_file(path)['embedding/kernel'])
    return next(scores)

  train.train(config, tmp_path, validate=validate)
  assert json.loads((tmp_path / 'best.json').read_text()) == {'step': 2, 'J': 0.5, 'F': 0.2}
  np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / 'best.safetensors')['embedding/kernel'], seen[1])
  assert [line['validation']['J'] for line in lines(tmp_path)] == [0.3, 0.5, 0.4]
  assert not (tmp_path / 'candidate.safetensors').exists()
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2', '3']  # the best, and the last


def test_a_run_may_move_but_not_change_its_samples(config, root, tmp_path):
  shutil.copytree(root, tmp_path / 'moved')
  train.train(config, tmp_path / 'work')
  config.data.root, config.steps = str(tmp_path / 'moved'), 5
  train.train(config, tmp_path / 'work')
  assert len(lines(tmp_path / 'work')) == 5
  for file in ('Annotations/480p/two/00002.png', 'JPEGImages/480p/two/00002.jpg'):
    (tmp_path / 'moved' / file).unlink()
  config.steps = 6
  with pytest.raises(errors.UsageError, match='data set'):
    train.train(config, tmp_path / 'work')
