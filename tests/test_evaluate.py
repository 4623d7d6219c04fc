from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_clips import SHAPE, disk, write

from adnet_jax.errors import DataError, DeviceError, UsageError
from adnet_jax.evaluate import score_masks
from adnet_jax.metrics import clip_statistics, contour_accuracy, jaccard
from adnet_jax.scores import scores_table


def test_values_frames_and_keys_of_the_score_file(folders):
  scores = score_masks(*folders, protocol='paper')
  assert [scores[key] for key in ('format', 'rule', 'protocol', 'warnings')] == [1, 'davis2016', 'paper', []]
  assert list(scores['clips']) == ['cat', 'dog']
  assert scores['clips']['cat']['frames'] == ['00001', '00002', '00003', '00004']
  for metric, function in (('J', jaccard), ('F', contour_accuracy)):
    for clip, count in (('cat', 6), ('dog', 9)):
      expected = [function(disk(frame + 2), disk(frame)) for frame in range(1, count - 1)]
      assert scores['clips'][clip][metric] == {**clip_statistics(expected), 'per_frame': expected}
    for statistic in ('mean', 'recall', 'decay'):
      both = [scores['clips'][clip][metric][statistic] for clip in ('cat', 'dog')]
      assert scores['dataset'][metric][statistic] == pytest.approx(sum(both) / 2)
  assert not {'subset', 'missing', 'resized', 'threshold'} & set(scores)


def test_processes_give_the_same_scores(folders):
  assert score_masks(*folders, jobs=2) == score_masks(*folders, jobs=1)


def test_errors_come_whole_out_of_a_process(folders):
  write(folders[0] / 'dog' / '00003.png', disk(3, (20, 20)) * 255)
  with pytest.raises(DataError, match=r'\(dog: 00003 20x20 not 32x24\)') as caught:
    score_masks(*folders, jobs=2)
  copy = pickle.loads(pickle.dumps(caught.value))
  assert (str(copy), copy.where) == (str(caught.value), caught.value.where)


def test_a_lost_process_is_a_device_error(folders, monkeypatch):
  import adnet_jax.evaluate as module

  # What a worker cannot even unpickle ends it as the kernel would.
  class Fatal(module.ClipTask):
    def __reduce__(self):
      return (__import__('os')._exit, (9,))

  monkeypatch.setattr(module, 'ClipTask', Fatal)
  with pytest.raises(DeviceError, match='process was lost'):
    score_masks(*folders, jobs=2)


def test_a_script_without_a_guard_and_one_from_a_pipe_can_score(folders, tmp_path):
  code = (
    f'from adnet_jax import evaluate\nprint(evaluate.score_masks(*{[str(one) for one in folders]}, jobs=2)["rule"])\n'
  )
  script = tmp_path / 'unguarded.py'
  script.write_text(code)
  root = Path(__file__).resolve().parents[1]
  for command, given_code in (([str(script)], None), (['-'], code)):
    run = [sys.executable, *command]
    done = subprocess.run(
      run, input=given_code, capture_output=True, text=True, timeout=60, env={'PYTHONPATH': str(root)}, check=False
    )
    assert done.returncode == 0 and 'davis2016' in done.stdout, done.stderr


def test_metrics_can_be_chosen(folders):
  scores = score_masks(*folders, metrics=['J'])
  assert list(scores['dataset']) == ['J'] and set(scores['clips']['cat']) == {'frames', 'J'}


@pytest.mark.parametrize(
  ('option', 'words'),
  [
    ({'rule': 'davis'}, 'davis2016'),
    ({'metrics': ['J', 'X']}, 'unknown metric .X.'),
    ({'metrics': []}, 'no metric'),
    ({'frames': 'some'}, 'all or given'),
    ({'threshold': 1.5}, 'threshold'),
    ({'threshold': math.nan}, 'threshold'),
    ({'jobs': 0}, 'jobs'),
  ],
)
def test_options_out_of_range_are_usage_errors(folders, option, words):
  with pytest.raises(UsageError, match=words):
    score_masks(*folders, **option)


# Files.


def test_masks_of_another_size_are_named_or_resized(folders):
  masks, truth = folders
  for frame in (1, 3):
    write(masks / 'cat' / f'{frame:05}.png', np.kron(disk(frame), np.ones((2, 2))) * 255)
  with pytest.raises(DataError, match=r'cat: 00001 64x48 not 32x24, 00003 64x48 not 32x24.*--resize'):
    score_masks(masks, truth)
  scores = score_masks(masks, truth, resize=True)
  assert scores['resized'] == {'cat': ['00001', '00003']}
  assert scores['clips']['cat']['J']['per_frame'][0] == 1


def test_soft_maps_need_a_threshold_which_is_recorded(folders):
  masks, truth = folders
  rng = np.random.default_rng(0)
  expected = []
  for frame in range(6):
    soft = disk(frame) * 200 + rng.integers(0, 50, SHAPE)
    write(masks / 'cat' / f'{frame:05}.png', soft)
    expected.append(jaccard(soft > 76.5, disk(frame)))
  with pytest.raises(DataError, match=r'soft maps.*cat: 00001\.\.00004.*--threshold'):
    score_masks(masks, truth)
  scores = score_masks(masks, truth, threshold=0.3)
  assert scores['threshold'] == 0.3 and 'threshold 0.3' in scores_table(scores)
  assert scores['clips']['cat']['J']['per_frame'] == expected[1:-1]
  dog = [jaccard(disk(frame + 2), disk(frame)) for frame in range(1, 8)]
  assert scores['clips']['dog']['J']['per_frame'] == dog  # masks of 0 and 255 are maps as well


def test_a_threshold_for_masks_of_0_and_1_is_refused(folders):
  masks, truth = folders
  for frame in range(6):
    write(masks / 'cat' / f'{frame:05}.png', disk(frame))
  assert score_masks(masks, truth)['clips']['cat']['J']['mean'] == 1
  with pytest.raises(DataError, match=r'hold 0 and 1 \(cat\): leave out --threshold'):
    score_masks(masks, truth, threshold=0.5)


def test_annotations_of_several_objects_are_merged_and_that_is_said_once(folders):
  masks, truth = folders
  for clip, frames in (('cat', range(6)), ('dog', range(9))):
    for frame in frames:
      mask = disk(frame)
      write(truth / clip / f'{frame:05}.png', mask * 38 + (mask & disk(frame + 3)) * 37)
  scores = score_masks(masks, truth)
  assert [warning for warning in scores['warnings'] if 'merged' in warning] == scores['warnings']
  assert len(scores['warnings']) == 1
  assert scores['clips']['cat']['J']['per_frame'][0] == jaccard(disk(3), disk(1))


def test_frames_in_the_place_of_annotations_are_refused(folders):
  masks, truth = folders
  rng = np.random.default_rng(0)
  for frame in range(6):
    (truth / 'cat' / f'{frame:05}.png').unlink()
    write(truth / 'cat' / f'{frame:05}.jpg', rng.integers(0, 255, (*SHAPE, 3)))
  with pytest.raises(DataError, match=r'annotation is wanted.*00001\.jpg'):
    score_masks(masks, truth)


def test_damaged_masks_are_named(folders):
  path = folders[0] / 'dog' / '00004.png'
  path.write_bytes(path.read_bytes()[:60])
  with pytest.raises(DataError, match=r'dog.00004\.png'):
    score_masks(*folders)


@pytest.mark.parametrize(
  ('prediction', 'truth', 'j', 'f'),
  [(0, 0, 1, 1), (1, 0, 0, 1), (0, 1, 0, 1), (1, 1, 1, 1), (2, 0, 0, 0), (2, 1, 0.125, 0)],
)
def test_empty_and_full_masks_have_the_values_of_the_rule(tmp_path, prediction, truth, j, f):
  pictures = [np.zeros((8, 8)), np.full((8, 8), 255), np.kron([[0, 1, 0, 0], *[[0] * 4] * 3], np.full((2, 2), 255))]
  pictures[2][2:4, 2:4] = 255
  for frame in range(3):
    write(tmp_path / 'masks' / 'clip' / f'{frame}.png', pictures[prediction])
    write(tmp_path / 'truth' / 'clip' / f'{frame}.png', pictures[truth])
  clip = score_masks(tmp_path / 'masks', tmp_path / 'truth')['clips']['clip']
  assert (clip['J']['mean'], clip['F']['mean']) == (j, f)


def test_a_progress_bar_stays_off_stdout(folders, capsys):
  score_masks(*folders, progress=True)
  assert capsys.readouterr().out == ''


# The official numbers.


@pytest.mark.shared_data
def test_values_of_the_official_program(shared):
  names = ['bmx-trees', 'car-shadow', 'kite-surf']  # empty masks, near-perfect ones, thin ones with recall of .5
  official = json.loads((shared / 'official' / 'motadapt.json').read_text())
  masks, truth = shared / 'results' / 'motadapt', shared / 'data' / 'DAVIS' / 'Annotations' / '480p'
  scores = score_masks(masks, truth, clips=names)
  for clip in names:
    entry = scores['clips'][clip]
    for metric in ('J', 'F'):
      published = official['official']['frames'][clip][metric]
      np.testing.assert_allclose(entry[metric]['per_frame'], published, rtol=0, atol=0.0005)
      recomputed = official['recomputed']['frames'][clip][metric]
      np.testing.assert_allclose(entry[metric]['per_frame'], recomputed, rtol=0, atol=1e-9)
      for statistic, value in official['recomputed']['per_clip'][clip][metric].items():
        assert entry[metric][statistic] == pytest.approx(value, abs=1e-9)


@pytest.mark.shared_data
def test_statistics_of_the_whole_official_list(shared):
  official = json.loads((shared / 'official' / 'motadapt.json').read_text())['recomputed']
  for metric in ('J', 'F'):
    per_clip = {clip: clip_statistics(frames[metric]) for clip, frames in official['frames'].items()}
    for statistic in ('mean', 'recall', 'decay'):
      for clip, result in per_clip.items():
        assert result[statistic] == pytest.approx(official['per_clip'][clip][metric][statistic], abs=1e-9)
      mean = np.mean([result[statistic] for result in per_clip.values()])
      assert mean == pytest.approx(official['dataset'][metric][statistic], abs=1e-9)
