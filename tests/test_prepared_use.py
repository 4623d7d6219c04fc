"""Training and `--mode evaluate` on data sets of every layout, raw and prepared."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sets

from adnet_jax import config as config_lib
from adnet_jax import predict, train
from adnet_jax.data import datasets, input_pipeline, prepare
from adnet_jax.masks import read_mask

pytestmark = pytest.mark.usefixtures('compiled_hastily')


def write_raw(kind, root):
  if kind == 'davis2016':
    return sets.write_davis(root, clips=('mine', 'yours'), masks=6)  # the last two frames are not at hand
  if kind == 'visal':
    return sets.write_visal(root, frames=16)
  sets.write_bms(root / 'cars1', labelled=(0, 1, 3))
  sets.write_fbms(root / 'ducks09')
  return root


@pytest.fixture(params=['davis2016', 'fbms59', 'visal'])
def kind(request):
  return request.param


@pytest.fixture
def roots(kind, tmp_path):
  """The raw data set, and the same one prepared."""
  pytest.importorskip('tensorflow_datasets')
  raw = write_raw(kind, tmp_path / 'raw')
  prepare.prepare(kind, raw, tmp_path / 'prepared')
  return raw, tmp_path / 'prepared'


def test_evaluation(kind, roots, tiny_model, commands, tmp_path):
  found = []
  for root in roots:
    config = config_lib.default()
    config.data.root, config.init.weights = str(root), str(tiny_model)
    work = tmp_path / f'work {root.name}'
    scores = predict.evaluate(config_lib.validate(config), work)
    files = sorted((work / 'evaluation' / 'masks').rglob('*.png'))
    names = [str(path.relative_to(work)) for path in files]
    found.append((json.loads(json.dumps(scores)), names, [read_mask(path) for path in files]))
  (scores, names, masks), (again, same_names, same_masks) = found
  assert scores == again and names == same_names
  assert all(np.array_equal(mask, same) for mask, same in zip(masks, same_masks, strict=True))
  frames = {name: clip['frames'] for name, clip in scores['clips'].items()}
  assert (
    frames
    == {  # annotated, neither first nor last annotation
      'davis2016': {name: ['00001', '00002', '00003'] for name in ('mine', 'yours')},
      'fbms59': {'cars1': ['cars1_02'], 'ducks09': ['ducks09_03']},
      'visal': {
        name: [f'{name[:5]}{k}_frame0006', f'{name[:5]}{k}_frame0011'] for k, name in ((2, 'horse'), (3, 'horse2'))
      },
    }[kind]
  )
  # Every frame on disk is predicted, also where it has no truth.
  assert len(names) == {'davis2016': 8, 'fbms59': 9, 'visal': 32}[kind]
  assert scores['dataset']['J']['mean'] is not None


def test_training_pairs(roots):
  pairs, names = [], []
  for root in roots:
    config = config_lib.default()
    config.data.root, config.data.crop, config.steps, config.batch = str(root), 33, 3, 4
    clips = datasets.read_clips(root, datasets.split(root, 'train'), need_masks=True)
    datasets.check_pairs(clips)
    source = input_pipeline.pair_source(config, clips, [])
    pairs.append([source[k] for k in range(len(source))])
    names.append([source.sample_id(k) for k in range(len(source))])
  assert names[0] == names[1] and len(set(names[0])) >= 3
  for pair, same in zip(*pairs, strict=True):
    np.testing.assert_array_equal(pair['images'], same['images'])
    np.testing.assert_array_equal(pair['masks'], same['masks'])


@pytest.mark.slow
def test_a_training_step(tmp_path):
  """Of FBMS, in which most frames have no mask."""
  pytest.importorskip('tensorflow_datasets')
  prepare.prepare('fbms59', write_raw('fbms59', tmp_path / 'raw'), tmp_path / 'prepared')
  overrides = {
    'data.root': tmp_path / 'prepared', 'data.crop': 17, 'model.variant': 'baseline', 'model.backbone': 'resnet18',
    'model.stem': 'conv7x7', 'model.output_stride': 16, 'model.aspp_width': 4, 'model.embedding': 4,
    'steps': 1, 'batch': 1, 'devices': 1,
  }  # fmt: skip
  config = config_lib.load('configs/davis.py', [f'{key}={value}' for key, value in overrides.items()])
  assert train.train(config, tmp_path / 'work').is_file()
  assert 'cars1_01+' in (log := (tmp_path / 'work' / 'train.jsonl').read_text()) or 'ducks09_01+' in log
