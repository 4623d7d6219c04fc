"""The main program's command line: modes, overrides, and faults that it finds before anything heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_predict import write_clip

from adnet_jax import main, resume, train
from adnet_jax.errors import DivergedError


@pytest.fixture
def config(tmp_path, tiny_model) -> Path:
  write_clip(tmp_path / 'set', 'one', 4)
  path = tmp_path / 'config.py'
  path.write_text(
    'from adnet_jax import config\ndef get_config():\n  c = config.default()\n'
    f'  c.data.root = {str(tmp_path / "set")!r}\n  c.init.weights = {str(tiny_model)!r}\n  return c\n'
  )
  return path


def test_evaluate_prints_and_writes_scores(commands, config, tmp_path, capsys):
  command = ['--config', config, '--workdir', 'work', '--mode', 'evaluate']
  assert commands(*command, '--config.evaluate.size=129x65', '--config.evaluate.mirror', 'true', main=True) == 0
  printed = capsys.readouterr().out
  assert 'rule davis2016, protocol paper' in printed and 'J mean' in printed
  assert json.loads(Path('work/evaluation/scores.json').read_text())['clips']['one']['frames'] == ['00001', '00002']
  assert commands(*command, main=True) == 2
  assert 'already holds an evaluation' in capsys.readouterr().err
  assert commands(*command, '--resume', main=True) == 0
  assert commands(*command, '--overwrite', main=True) == 0
  assert commands(*command, '--overwrite', '--resume', main=True) == 2


def test_train_and_evaluate_evaluates_what_was_trained(commands, config, tiny_model, monkeypatch, capsys):
  def fake(config, workdir, progress, validate):
    progress(0, {'loss': 0.5, 'lr': 0.1, 'seconds': 1.0})
    return Path(workdir / 'final.safetensors').write_bytes(tiny_model.read_bytes()) and workdir / 'final.safetensors'

  monkeypatch.setattr(train, 'train', fake)
  assert commands('--config', config, '--workdir', 'work', '--config.steps=1', main=True) == 0
  printed, said = capsys.readouterr()
  assert 'model: work/final.safetensors' in printed and 'J mean' in printed
  assert 'step 1 of 1, loss 0.5000 lr 0.1 1.00 s/step, 0:00:00 left\n' in said  # there is no terminal for a bar


@pytest.mark.parametrize(
  ('error', 'code'), [(resume.Stopped(15, 3), 75), (resume.Stopped(2, 3), 130), (DivergedError('x'), 5)]
)
def test_how_training_ends_is_the_exit_code(commands, config, monkeypatch, capsys, error, code):
  def fake(*_):
    raise error

  monkeypatch.setattr(train, 'train', fake)
  assert commands('--config', config, '--workdir', 'work', '--mode', 'train', main=True) == code
  assert capsys.readouterr().err.count('error: ') == 1


@pytest.mark.parametrize(
  ('arguments', 'text'),
  [
    ('--config none.py --workdir work', 'configuration file not found (none.py)'),
    ('--config {config} --workdir file', 'work folder cannot be written'),
    ('--config {config} --workdir file/work', 'work folder cannot be written'),
    ('--config {config} --workdir work --config.optim.lrr=1', 'did you mean optim.lr?'),
    ('--config {config} --workdir work --config.batch', "'' is no whole number (batch)"),
    ('--config {config} --workdir work --config.evaluate.scales=', 'evaluate.scales, evaluate.protocol'),
    ('--config {config} --workdir work --config.init.weights= --mode evaluate', 'nothing to evaluate'),
  ],
)
def test_faults_of_configuration_and_work_folder(commands, config, capsys, arguments, text):
  Path('file').touch()
  assert commands(*arguments.format(config=config).split(), main=True) == 2
  error = capsys.readouterr().err
  assert text in error and error.startswith('error: ') and error.count('\n') == 1


@pytest.mark.parametrize(
  'arguments', ['', '--config x.py', '--config x.py --workdir w --mode dream', '--config x --wordir w']
)
def test_wrong_flags_show_the_usage(capsys, arguments):
  assert main.main(arguments.split()) == 2
  assert capsys.readouterr().err.startswith('usage: python -m adnet_jax.main')


def test_faults_are_found_before_jax_is_imported(config, tmp_path):
  workdir = tmp_path / 'w'
  script = (
    'import sys; from adnet_jax import main\n'
    f'code = main.main(["--config", {str(config)!r}, "--workdir", {str(workdir)!r}, "--config.batch=0", "--debug"])\n'
    'assert "jax" not in sys.modules; sys.exit(code)'
  )
  run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=False)
  assert run.returncode == 2 and 'Traceback' in run.stderr and '(batch)' in run.stderr.splitlines()[-1]
  assert not workdir.exists()
