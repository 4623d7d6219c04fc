"""Model files from checkpoints: learnt and averaged weights, the best, and another training that starts from one."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from adnet_jax import errors, resume, step, train, trained, weights
from tools import export_checkpoint

pytestmark = pytest.mark.usefixtures('compiled_hastily')


@pytest.fixture(scope='module')
def workdir(training_root, tmp_path_factory):
  """A finished training of four steps with averaged weights; checkpoints 2 and 4."""
  import tiny_training

  from adnet_jax import config as config_lib

  options = [*tiny_training.overrides(training_root), 'optim.ema=0.9', 'optim.frozen_stages=1']
  workdir = tmp_path_factory.mktemp('trained')
  train.train(config_lib.load('configs/davis.py', options), workdir)
  return workdir


def assert_equal(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_the_newest_checkpoint_is_what_training_exported(workdir, tmp_path, capsys):
  out = tmp_path / 'model.safetensors'
  assert export_checkpoint.main([str(workdir), '-o', str(out)]) == 0
  assert capsys.readouterr().out == f'checkpoint 4 -> {out}\n'
  (arrays, metadata), (expected, wanted) = weights.read_file(out), weights.read_file(workdir / 'final.safetensors')
  assert_equal(arrays, expected)
  assert metadata == wanted  # the checksum too
  model, _ = weights.load(out)
  assert model(jnp.zeros((1, 33, 33, 3)), jnp.zeros((1, 33, 33, 3))).shape == (1, 3, 3, 1)


def test_learnt_averaged_earlier_and_half_precision(workdir, tmp_path):
  found = {}
  for name, options in {
    'averaged': ['--weights', 'averaged'],
    'learnt': ['--weights', 'learnt'],
    'earlier': ['--step', '2'],
    'half': ['--half'],
  }.items():
    path = tmp_path / f'{name}.safetensors'
    assert export_checkpoint.main([str(workdir / 'checkpoints'), '-o', str(path), *options]) == 0
    found[name] = safetensors.numpy.load_file(path)
  assert_equal(found['averaged'], safetensors.numpy.load_file(workdir / 'final.safetensors'))
  kernel, frozen = 'embedding/kernel', 'backbone/conv1/kernel'
  assert (found['learnt'][kernel] != found['averaged'][kernel]).any()
  assert (found['earlier'][kernel] != found['averaged'][kernel]).any()
  np.testing.assert_array_equal(found['learnt'][frozen], found['averaged'][frozen])
  assert found['half'][kernel].dtype == np.float16 and found['half']['aspp/conv1/mean'].dtype == np.float32


@pytest.mark.parametrize(
  ('source', 'options', 'code', 'text'),
  [
    ('', ['--step', '3'], 4, 'no checkpoint 3 '),
    ('', ['--step', '3'], 4, 'those that exist: 2, 4'),
    ('nowhere', [], 4, 'no checkpoints'),
    ('checkpoints/4/state', [], 4, 'no checkpoints'),
  ],
)
def test_what_is_not_there_is_said(workdir, tmp_path, capsys, source, options, code, text):
  assert export_checkpoint.main([str(workdir / source), '-o', str(tmp_path / 'm.safetensors'), *options]) == code
  error = capsys.readouterr().err
  assert text in error and error.count('\n') == 1


def test_an_output_that_exists_is_kept(workdir, tmp_path, capsys):
  (tmp_path / 'm.safetensors').touch()
  assert export_checkpoint.main([str(workdir), '-o', str(tmp_path / 'm.safetensors')]) == 2
  assert 'output exists' in capsys.readouterr().err
  assert export_checkpoint.main([str(workdir), '-o', str(tmp_path / 'm.safetensors'), '--overwrite']) == 0


def test_another_training_starts_from_a_checkpoint(workdir, training_config):
  training_config.init.weights = str(workdir / 'checkpoints' / '2')
  trainer, state = step.initialize(training_config)
  done, found = trained.read_checkpoint(workdir, step=2)
  assert done == 2 and int(state['step']) == 0
  assert_equal({name: np.asarray(array) for name, array in weights.flatten(trainer.merge(state)).items()}, found.arrays)
  assert 'of the initial weights' in trainer.metadata.licence
  training_config.model.embedding = 16
  with pytest.raises(errors.WeightsError, match='misshapen'):
    step.initialize(training_config)


def test_without_averaged_weights_they_are_not_made_up(training_config, tmp_path):
  training_config.steps = 2
  train.train(training_config, tmp_path)
  assert_equal(trained.read_checkpoint(tmp_path)[1].arrays, safetensors.numpy.load_file(tmp_path / 'final.safetensors'))
  with pytest.raises(errors.WeightsError, match=r'no averaged weights .*optim\.ema'):
    trained.read_checkpoint(tmp_path, averaged=True)


def test_a_checkpoint_of_an_earlier_version_has_no_metadata(training_config, tmp_path, monkeypatch):
  training_config.steps = 2
  make = resume.make_record
  monkeypatch.setattr(resume, 'make_record', lambda *a: {k: v for k, v in make(*a).items() if k != 'metadata'})
  train.train(training_config, tmp_path)
  with pytest.raises(errors.WeightsError, match='of an earlier version'):
    trained.read_checkpoint(tmp_path)


def test_the_best_is_the_highest_that_was_ever_seen(tmp_path):
  for done, j in enumerate([None, 0.3, 0.5, 0.5, 0.4], 1):
    candidate = tmp_path / 'candidate.safetensors'
    candidate.write_text(str(done))
    trained.keep_best(candidate, {'J': j, 'F': 0.1}, tmp_path, done)
  assert json.loads((tmp_path / 'best.json').read_text()) == {'step': 3, 'J': 0.5, 'F': 0.1} == trained.best(tmp_path)
  assert (tmp_path / 'best.safetensors').read_text() == '3'
  (tmp_path / 'best.json').write_text('cut o')
  assert trained.best(tmp_path) == {}
