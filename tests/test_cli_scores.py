"""The commands of evaluation as a user meets them: what reaches the library, what is printed, exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from made_clips import disk, write, write_clip

from adnet_jax import evaluate


@pytest.fixture
def frames(folders) -> Path:
  """Frames beside the annotations of `folders`, so that all of it is a data set."""
  root = folders[1].parents[1]
  for clip, count in (('cat', 6), ('dog', 9)):
    for frame in range(count):
      write(root / 'JPEGImages' / '480p' / clip / f'{frame:05}.jpg', np.stack([disk(frame) * 200 + 20] * 3, -1))
  return root / 'JPEGImages' / '480p'


def test_options_of_score_reach_the_rule(commands, folders, capsys):
  masks, truth = folders
  options = ['--metrics', 'J,T', '--stability', 'python', '--ends', 'keep', '-o', 'scores.json']
  assert commands('score', masks, '--truth', truth, *options) == 0
  expected = evaluate.score_masks(masks, truth, metrics=['J', 'T'], stability='python', ends='keep')
  assert json.loads(Path('scores.json').read_text()) == json.loads(json.dumps(expected))
  assert 'T by python' in capsys.readouterr().out
  assert commands('score', masks, '--truth', truth, '--rule', 'fbms-pooled', '-o', 'fbms.json') == 0
  assert set(json.loads(Path('fbms.json').read_text())['dataset']) == {'P', 'R', 'F'}
  assert commands('score', masks, '--truth', truth, '--rule', 'davis') == 2
  assert 'adnet-saliency' in capsys.readouterr().err
  assert commands('score', masks, '--truth', truth, '--rule', 'pysod', '--metrics', 'J') == 2


def test_prepared_data_sets_are_truth_like_raw_ones(commands, folders, frames, capsys):
  masks, _ = folders
  assert commands('prepare', 'folder', frames.parents[1], '-o', 'prepared') == 0
  assert 'prepared: 15 frames of 2 clips, 15 with annotation' in capsys.readouterr().out
  assert commands('prepare', 'folder', frames.parents[1], '-o', 'prepared') == 2
  assert '--resume' in capsys.readouterr().err
  assert commands('prepare', 'folder', frames.parents[1], '-o', 'prepared', '--resume') == 0
  assert commands('score', masks, '--truth', 'prepared', '-o', 'scores.json') == 0
  assert json.loads(Path('scores.json').read_text())['dataset'] == evaluate.score_masks(*folders)['dataset']
  assert commands('prepare', 'fbms59', frames, '-o', 'other') == 3


def test_prune_writes_masks_that_can_be_scored(commands, folders, capsys):
  masks, truth = folders
  assert commands('prune', masks, '-o', 'pruned', '--components') == 0
  assert 'summary.json' in capsys.readouterr().out
  assert commands('score', 'pruned', '--truth', truth) == 0
  assert commands('prune', masks, '-o', 'pruned', '--components') == 2
  assert commands('prune', masks, '-o', 'pruned', '--components', '--detections', 'x.json') == 2
  Path('x.json').write_text('{"images": 1}')
  assert commands('prune', masks, '-o', 'pruned', '--overwrite', '--detections', 'x.json') == 3
  assert 'x.json' in capsys.readouterr().err


def test_report_of_two_files_with_pictures(commands, folders, frames, tmp_path, capsys):
  masks, truth = folders
  write_clip(tmp_path / 'others' / 'cat', range(6), shift=1)
  write_clip(tmp_path / 'others' / 'dog', range(9), shift=3)
  for name, folder in (('ours', masks), ('others', tmp_path / 'others')):
    assert commands('score', folder, '--truth', truth, '-o', f'{name}.json') == 0
  pictures = ['--frames', frames, '--truth', truth, '--masks', f'ours={masks}', '--masks', f'others={tmp_path}/others']
  assert commands('report', 'ours.json', 'others.json', '-o', 'page.html', *pictures) == 0
  page = Path('page.html').read_text()
  assert 'data:image/' in page and 'others' in page
  capsys.readouterr()
  for arguments, code, word in (
    (['ours.json', '-o', 'page.html'], 2, '--overwrite'),
    (['ours.json', '-o', 'new.html', '--masks', 'ours'], 2, 'NAME=DIR'),
    (['ours.json', '-o', 'new.html', '--masks', 'ours=a', '--masks', 'ours=b'], 2, 'named twice'),
    (['absent.json', '-o', 'new.html'], 3, 'absent.json'),
    (['page.html', '-o', 'new.html'], 3, 'not a score file'),
  ):
    assert commands('report', *arguments) == code
    assert word in capsys.readouterr().err


def test_an_extra_that_is_missing_is_named(commands, frames, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  assert commands('prepare', 'folder', frames.parents[1], '-o', 'prepared') == 2
  assert "pip install 'adnet-jax[tfds]'" in capsys.readouterr().err
