"""The configuration: defaults of the paper, and every way in which a file or override can be wrong."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import adnet_jax
from adnet_jax import config as config_lib
from adnet_jax import weights
from adnet_jax.errors import UsageError

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


def load(tmp_path: Path, body: str, *overrides: str):
  path = tmp_path / 'c.py'
  path.write_text(f'from adnet_jax import config\ndef get_config():\n  c = config.default()\n  {body}\n  return c\n')
  return config_lib.load(path, overrides)


def test_the_default_is_the_papers_recipe():
  config = config_lib.validate(config_lib.default())
  assert (config.optim.lr, config.optim.power, config.optim.horizon) == (0.005, 0.9, 40_000)
  assert (config.steps, config.batch, config.optim.weight_decay, config.data.rotation) == (30_000, 8, 0.0005, 0.51)
  assert (config.model.backbone, config.model.output_stride, config.model.variant) == ('resnet101', 8, 'full')
  assert config_lib.load(CONFIGS / 'davis.py') == config


def test_every_key_has_a_range_and_a_source():
  for name, key in config_lib.KEYS.items():
    assert key.range and key.source and key.allowed(key.default), name


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.stem)
def test_the_configurations_that_ship(path):
  config = config_lib.load(path, ['data.stills=photographs'])
  assert runpy.run_path(str(path))['__doc__'].count('python -m adnet_jax.main')
  assert config.steps <= config.optim.horizon


def test_sample_trains_the_bundled_network():
  config = config_lib.load(CONFIGS / 'sample.py')
  assert (Path(config.data.root) / 'JPEGImages' / '480p').is_dir()
  bundled = weights.ASSETS / 'models' / f'{adnet_jax.DEFAULT_MODEL}.safetensors'
  if not bundled.exists():
    pytest.skip('no bundled model yet')
  architecture = weights.load(bundled)[1].architecture
  for name in ('variant', 'backbone', 'stem', 'output_stride', 'multi_grid', 'aspp_width', 'embedding'):
    assert getattr(architecture, name) == config.model[name], name


@pytest.mark.parametrize(
  ('body', 'text'),
  [
    ('c.optim.lrr = 1', r'unknown configuration key \(optim.lrr\): did you mean optim.lr\?'),
    ('c.optim.lr = c.optim.lrr', r"unknown configuration key 'lrr' \(.*c.py, line 4\): did you mean optim.lr\?"),
    ('c.learning = 1', r'unknown configuration key \(learning\)'),
    ('c.bach = 1', r'unknown configuration key \(bach\): did you mean batch\?'),
    ('c.data.crop_size = 1', r'unknown configuration key \(data.crop_size\): did you mean data.crop\?'),
    ('c.weight_decay = 1', r'unknown configuration key \(weight_decay\): did you mean optim.weight_decay\?'),
    ('c.optim.learning_rate = 1', r'unknown configuration key \(optim.learning_rate\): known keys: .*optim.lr,'),
    ('c.optim = 3', r'unknown configuration key \(optim\)'),
    ('c.batch = "x"', r"'x' is no whole number \(batch\): allowed: at least 1"),
    ('c.batch = True', r'True is no whole number \(batch\)'),
    ('c.batch = 0', r'0 is out of range \(batch\): allowed: at least 1'),
    ('c.optim.lr = 0', r'0.0 is out of range \(optim.lr\): allowed: above 0'),
    ('c.optim.lr = float("nan")', r'nan is out of range \(optim.lr\)'),
    ('c.model.output_stride = 5', r'5 is out of range \(model.output_stride\): allowed: 8 or 16'),
    ('c.data.rotation = 1.5', r'1.5 is out of range \(data.rotation\): allowed: 0 to 1'),
    ('c.evaluate.size = (641,)', r'out of range \(evaluate.size\)'),
    ('c.evaluate.scales = ("a",)', r'out of range \(evaluate.scales\)'),
    ('c.evaluate.scales = ()', r'\(evaluate.scales, evaluate.protocol\)'),
    ('c.steps = 50_000', r'\(steps, optim.horizon\)'),
    ('c.devices = 3', r'\(batch, devices\)'),
    ('c.accumulate = 3', r'\(batch, accumulate\)'),
    ('c.model.stem = "efficientnet"', r'\(model.stem, model.backbone\)'),
    ('1 / 0', r'ZeroDivisionError in the configuration: division by zero \(.*c.py, line 4\)'),
    ('def (', r'Python error in the configuration: .* \(.*c.py, line 4\)'),
    ('return 3', r'get_config\(\) does not return a ConfigDict'),
  ],
)
def test_what_is_wrong_is_named(tmp_path, body, text):
  with pytest.raises(UsageError, match=text):
    load(tmp_path, body)


def test_photographs_are_asked_for_by_trainings_alone(tmp_path):
  config = load(tmp_path, 'c.data.stills_fraction = .5')
  with pytest.raises(UsageError, match=r'no data set to train on \(data.root\)'):
    config_lib.check_training(config)
  config.data.root = 'DAVIS'
  with pytest.raises(UsageError, match=r'\(data.stills_fraction, data.stills\)'):
    config_lib.check_training(config)
  config.data.stills = 'photographs'
  config_lib.check_training(config)


def test_files_that_are_no_configuration(tmp_path, monkeypatch):
  with pytest.raises(UsageError, match='configuration file not found'):
    config_lib.load(tmp_path / 'none.py')
  (tmp_path / 'empty.py').write_text('')
  with pytest.raises(UsageError, match='get_config'):
    config_lib.load(tmp_path / 'empty.py')
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'r.py').write_text('1 / 0\n')
  with pytest.raises(UsageError, match=r'r.py, line 1\)'):
    config_lib.load('r.py')


def test_overrides(tmp_path):
  config = load(
    tmp_path, 'pass', 'optim.lr=.02', 'batch=4', 'evaluate.scales=.75,1,1.5', 'evaluate.size=641x353',
    'evaluate.mirror=true', 'init.weights=', 'data.root=a b=c', 'model.multi_grid=(1,1,1)',
  )  # fmt: skip
  assert (config.optim.lr, config.batch, config.evaluate.scales) == (0.02, 4, (0.75, 1.0, 1.5))
  assert (config.evaluate.size, config.evaluate.mirror, config.init.weights) == ((641, 353), True, '')
  assert (config.data.root, config.model.multi_grid) == ('a b=c', (1, 1, 1))
  assert load(tmp_path, 'c.evaluate.scales = [1, 2]').evaluate.scales == (1.0, 2.0)
  assert '"optim.lr": 0.02' in config_lib.to_json(config)


@pytest.mark.parametrize(
  ('override', 'text'),
  [
    ('optim.lrr=1', r'unknown configuration key \(optim.lrr\): did you mean optim.lr\?'),
    ('batch=x', r"'x' is no whole number \(batch\)"),
    ('batch=', r"'' is no whole number \(batch\)"),
    ('evaluate.mirror=maybe', r"'maybe' is no True or False \(evaluate.mirror\)"),
    ('evaluate.scales=a', r"'a' is no list \(evaluate.scales\)"),
    ('batch', r'override without a value \(batch\): write --config.batch=VALUE'),
    ('batch=-1', r'-1 is out of range \(batch\)'),
  ],
)
def test_wrong_overrides(tmp_path, override, text):
  with pytest.raises(UsageError, match=text):
    load(tmp_path, 'pass', override)
