"""What stops a run and what it goes on with: signals, records, and what may not change in between."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from adnet_jax import errors, resume, train
from adnet_jax.data import datasets
from adnet_jax.metadata import Metadata
from adnet_jax.models import adnet

pytestmark = pytest.mark.usefixtures('compiled_hastily')

METADATA = Metadata(adnet.Architecture(), 'torchvision', (857, 481), 'made', 'free', 'a test')


def lines(workdir):
  return [json.loads(line) for line in (workdir / 'train.jsonl').read_text().splitlines()]


def record_of(config):
  clips = datasets.read_clips(config.data.root, datasets.split(config.data.root, 'train'), need_masks=True)
  return resume.make_record(config, clips, [], METADATA)


def test_the_record_says_what_made_the_checkpoint(training_config):
  record = resume.at(record_of(training_config), 3)
  assert record['config']['optim.lr'] == training_config.optim.lr and record['seed'] == training_config.seed
  assert record['position'] == {'step': 3, 'sample': 3 * training_config.batch}
  assert record['fingerprint']['data set'].startswith('2 clips, 0 photographs, ')
  assert record['metadata'] == METADATA.to_strings()
  assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
  ('key', 'value', 'named'),
  [
    ('model.backbone', 'resnet34', r'model\.backbone'),
    ('data.crop', 65, r'data\.crop'),
    ('optim.frozen_stages', 1, r'optim\.frozen_stages'),
    ('optim.ema', 0.9, r'optim\.ema above 0'),
  ],
)
def test_what_must_not_change_is_refused_by_name(training_config, key, value, named):
  before = record_of(training_config)
  group, leaf = key.split('.')
  training_config[group][leaf] = value
  with pytest.raises(errors.UsageError, match=rf'{named}\): use another --workdir'):
    resume.check_resume(before, record_of(training_config))


def test_what_may_change_is_said(training_config, caplog):
  before = record_of(training_config)
  training_config.optim.lr, training_config.steps, training_config.data.root = 0.5, 9, training_config.data.root
  resume.check_resume(before, record_of(training_config))
  assert 'resuming with optim.lr = 0.5 instead of 0.02' in caplog.text
  assert 'resuming with steps = 9 instead of 4' in caplog.text and caplog.text.count('resuming') == 2


def test_a_record_from_before_a_key_existed_counts_as_its_default(training_config, caplog):
  before, now = record_of(training_config), record_of(training_config)
  for part, name in (('config', 'data.flip'), ('fingerprint', 'data.flip'), ('fingerprint', 'optim.ema above 0')):
    del before[part][name]
  resume.check_resume(before, now)
  assert not caplog.text
  training_config.data.flip = 0.5
  with pytest.raises(errors.UsageError, match=r'data\.flip'):
    resume.check_resume(before, record_of(training_config))


@pytest.fixture
def own_handler():
  """Python's handler of Ctrl-C, which is not there in a process that a shell started in the background."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('own_handler')
def test_signals_are_noted_and_a_second_ctrl_c_stops_at_once():
  with resume.Signals() as signals:
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.received == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert resume.Stopped(signal.SIGINT, 3).exit_code == 130 and resume.Stopped(signal.SIGTERM, 3).exit_code == 75
  with pytest.raises(KeyboardInterrupt):
    os.kill(os.getpid(), signal.SIGINT)  # Python's own handler is back


def test_a_signal_breaks_off_what_may_be_broken_off():
  with resume.Signals() as signals:
    with pytest.raises(resume.Interrupted), signals.breakable():
      os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(resume.Interrupted), signals.breakable():
      raise AssertionError('not entered after a signal')
    os.kill(os.getpid(), signal.SIGTERM)  # outside it is only noted


def test_a_validation_that_a_signal_broke_off_is_made_up_for(training_config, tmp_path):
  training_config.evaluate.every = 2
  scores = {'J': 0.25, 'F': 0.5}

  def stop(path):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    raise AssertionError('the signal breaks the validation off')

  with pytest.raises(resume.Stopped, match='SIGTERM at step 2, everything is saved'):
    train.train(training_config, tmp_path, validate=stop)
  assert [line['step'] for line in lines(tmp_path)] == [0]
  assert not (tmp_path / 'candidate.safetensors').exists()
  with pytest.raises(resume.Stopped):  # and once more, before anything else
    train.train(training_config, tmp_path, validate=stop)
  train.train(training_config, tmp_path, validate=lambda path: scores)
  assert [line['step'] for line in lines(tmp_path)] == [0, 1, 2, 3]
  assert [line.get('validation') for line in lines(tmp_path)] == [None, scores, None, scores]
  assert json.loads((tmp_path / 'best.json').read_text())['step'] == 2


def test_neither_clock_nor_time_zone_matters(training_config, tmp_path, monkeypatch):
  now, jump = time.time, [0.0]
  monkeypatch.setattr(time, 'time', lambda: now() + jump[0])

  def stop(step, _):
    if step == 0:
      jump[0] = 86_400
      monkeypatch.setenv('TZ', 'Pacific/Kiritimati')
      time.tzset()
      os.kill(os.getpid(), signal.SIGINT)

  with pytest.raises(resume.Stopped):
    train.train(training_config, tmp_path, stop)
  jump[0] = -1e6
  train.train(training_config, tmp_path)
  assert [line['step'] for line in lines(tmp_path)] == [0, 1, 2, 3]
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2', '4']
  monkeypatch.undo()
  time.tzset()
