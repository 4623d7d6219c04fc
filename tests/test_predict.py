"""`--mode evaluate` on a tiny data set in DAVIS' layout."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny

from adnet_jax import config as config_lib
from adnet_jax import evaluate, predict
from adnet_jax.errors import DataError, UsageError
from adnet_jax.masks import read_mask
from adnet_jax.segmenter import Segmenter

FRAMES = (150, 80)


def write_clip(root: Path, name: str, count: int, seed: int = 0) -> None:
  """A clip in DAVIS' layout; its truth is the tiny model's own mask, less a corner."""
  images = tiny.frames(count, FRAMES, seed)
  tiny.write_frames(root / 'JPEGImages' / '480p' / name, images)
  folder = root / 'Annotations' / '480p' / name
  folder.mkdir(parents=True)
  for k in range(count):
    truth = np.zeros(FRAMES[::-1], np.uint8)
    truth[20:60, 30:90] = 255
    cv2.imwrite(str(folder / f'{k:05d}.png'), truth)


@pytest.fixture
def root(tmp_path) -> Path:
  root = tmp_path / 'set'
  write_clip(root, 'one', 6)
  write_clip(root, 'two', 4, seed=1)
  return root


@pytest.fixture
def config(root, tiny_model, commands):
  config = config_lib.default()
  config.data.root, config.init.weights = str(root), str(tiny_model)
  return config_lib.validate(config)


def test_masks_and_scores(config, model, root, tmp_path):
  scores = predict.evaluate(config, tmp_path / 'work')
  folder = tmp_path / 'work' / 'evaluation'
  assert sorted(path.name for path in folder.iterdir()) == ['masks', 'scores.json']
  assert sorted(path.name for path in (folder / 'masks' / 'one').iterdir()) == [f'{k:05d}.png' for k in range(6)]
  expected = list(Segmenter(model).segment(tiny.frames(6, FRAMES)))
  found = [read_mask(path) for path in sorted((folder / 'masks' / 'one').iterdir())]
  np.testing.assert_array_equal(found, expected)
  stored = json.loads((folder / 'scores.json').read_text())
  assert stored == json.loads(json.dumps(scores)) and stored['protocol'] == 'paper' and 'subset' not in stored
  assert stored['clips']['one']['frames'] == ['00001', '00002', '00003', '00004']
  assert stored['clips']['two']['frames'] == ['00001', '00002']
  again = evaluate.score_masks(folder / 'masks', root / 'Annotations' / '480p', protocol='paper')
  assert again['dataset'] == scores['dataset']


def test_keys_of_the_configuration_reach_the_masks(config, model, tmp_path):
  config.evaluate.protocol, config.evaluate.scales, config.evaluate.mirror = 'released', (0.5, 1.0), True
  config.evaluate.size = tiny.SIZE
  scores = predict.evaluate(config, tmp_path / 'work')
  segmenter = Segmenter(model, 'released', (0.5, 1.0), True, tiny.SIZE)
  expected = list(segmenter.segment(tiny.frames(4, FRAMES, seed=1)))
  found = [read_mask(path) for path in sorted((tmp_path / 'work' / 'evaluation' / 'masks' / 'two').iterdir())]
  np.testing.assert_array_equal(found, expected)
  assert scores['protocol'] == 'released'


def test_missing_frames_make_a_subset(config, root, tmp_path):
  (root / 'JPEGImages' / '480p' / 'one' / '00002.png').unlink()
  scores = predict.evaluate(config, tmp_path / 'work')
  assert scores['subset'] is True and scores['clips']['one']['frames'] == ['00001', '00003', '00004']


def test_earlier_evaluations(config, tmp_path):
  work = tmp_path / 'work'
  predict.evaluate(config, work)
  with pytest.raises(UsageError, match=r'already holds an evaluation.*--overwrite or --resume'):
    predict.evaluate(config, work)
  masks = work / 'evaluation' / 'masks'
  kept = masks / 'one' / '00000.png'
  before = kept.stat().st_mtime_ns
  (masks / 'two' / '00003.png').unlink()
  predict.evaluate(config, work, resume=True)
  assert kept.stat().st_mtime_ns == before and (masks / 'two' / '00003.png').exists()
  tiny.write_frames(masks / 'of another data set', tiny.frames(1))
  predict.evaluate(config, work, overwrite=True)
  assert kept.stat().st_mtime_ns > before and not list((masks / 'of another data set').iterdir())


def test_which_model_is_evaluated(config, tmp_path):
  assert predict.model_to_evaluate(config, tmp_path) == config.init.weights
  for name in ('final', 'best'):
    (tmp_path / f'{name}.safetensors').touch()
    assert predict.model_to_evaluate(config, tmp_path) == tmp_path / f'{name}.safetensors'
  config.init.weights = ''
  with pytest.raises(UsageError, match=r'nothing to evaluate.*--config.init.weights=MODEL'):
    predict.model_to_evaluate(config, tmp_path / 'elsewhere')


def test_a_damaged_frame_is_named_and_earlier_masks_stay(config, root, tmp_path):
  (root / 'JPEGImages' / '480p' / 'two' / '00002.png').write_bytes(b'damaged')
  with pytest.raises(DataError, match=r'00002\.png'):
    predict.evaluate(config, tmp_path / 'work')
  masks = tmp_path / 'work' / 'evaluation' / 'masks'
  assert len(list((masks / 'one').iterdir())) == 6 and len(list((masks / 'two').iterdir())) == 2
