"""Each rule from files to the score file: which frames count, what is read as what, what is averaged over what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_clips import SHAPE, disk, write, write_clip

from adnet_jax import rules
from adnet_jax.errors import DataError, UsageError
from adnet_jax.evaluate import score_masks
from adnet_jax.metrics import fbms, jaccard, saliency, stability
from adnet_jax.scores import scores_table, write_scores

COUNTS = {'cat': 6, 'dog': 9}


def soft(clip: str, frame: int) -> np.ndarray:
  """A map of 16-bit levels: bright where the object of two frames later is, with noise."""
  rng = np.random.default_rng([len(clip), ord(clip[0]), frame])
  return np.clip(disk(frame + 2) * 40_000 + rng.integers(0, 30_000, SHAPE), 0, 65535)


@pytest.fixture
def maps(folders, tmp_path: Path) -> tuple[Path, Path]:
  """Heat maps of the clips of `folders`, and their annotations."""
  for clip, count in COUNTS.items():
    for frame in range(count):
      write(tmp_path / 'maps' / clip / f'{frame:05}.png', soft(clip, frame))
  return tmp_path / 'maps', folders[1]


def frame_scores(clip: str, frames: range, rule: str) -> list[saliency.FrameSaliency]:
  return [
    saliency.frame_saliency((soft(clip, frame) / np.float32(65535)).astype(np.float32), disk(frame), rule)
    for frame in frames
  ]


# Saliency.


def test_davsod_averages_frames_then_clips_without_the_ends(maps):
  scores = score_masks(*maps, rule='davsod')
  clips = [saliency.mean_saliency(frame_scores(clip, range(1, count - 1), 'davsod')) for clip, count in COUNTS.items()]
  assert scores['dataset'] == saliency.saliency_scores(saliency.mean_saliency(clips))
  assert scores['clips']['dog']['F_max'] == saliency.saliency_scores(clips[1])['F_max']
  assert scores['clips']['dog']['frames'] == [f'{frame:05}' for frame in range(1, 8)]


def test_pysod_averages_all_images_the_ends_too(maps):
  scores = score_masks(*maps, rule='pysod')
  images = [one for clip, count in COUNTS.items() for one in frame_scores(clip, range(count), 'pysod')]
  assert scores['dataset'] == saliency.saliency_scores(saliency.mean_saliency(images))
  dropped = score_masks(*maps, rule='pysod', ends='drop')
  assert dropped['clips']['cat']['frames'] == ['00001', '00002', '00003', '00004'] and dropped['ends'] == 'drop'
  assert dropped['dataset'] != scores['dataset'] and 'ends' not in scores
  assert len(score_masks(*maps, rule='davsod', ends='keep')['clips']['cat']['frames']) == 6


def test_adnet_saliency_pools_the_pixels_of_all_clips(maps):
  scores = score_masks(*maps, rule='adnet-saliency')
  pooled = saliency.PooledScores()
  for clip, count in COUNTS.items():
    for frame in range(1, count - 1):
      pooled.add((soft(clip, frame) / np.float32(65535)).astype(np.float32), disk(frame))
  assert scores['dataset'] == pooled.result()
  assert set(scores['clips']['cat']) == {'frames', 'MAE', 'F_max'}
  assert scores['clips']['cat']['MAE'] != scores['clips']['dog']['MAE']


@pytest.mark.parametrize('rule', ['adnet-saliency', 'davsod', 'pysod'])
def test_maps_of_8_bits_16_bits_and_npz_score_alike(maps, tmp_path, rule):
  for clip, count in COUNTS.items():
    for frame in range(count):
      levels = np.round(soft(clip, frame) / 257)
      write(tmp_path / '8' / clip / f'{frame:05}.png', levels)
      write(tmp_path / '16' / clip / f'{frame:05}.png', levels * 257)
      (tmp_path / 'npz' / clip).mkdir(parents=True, exist_ok=True)
      np.savez(tmp_path / 'npz' / clip / f'{frame:05}.npz', probability=(levels / 255).astype(np.float32))
  eight, sixteen, floats = (score_masks(tmp_path / kind, maps[1], rule=rule)['dataset'] for kind in ('8', '16', 'npz'))
  for name in rules.RULES[rule].metrics:
    assert eight[name] == pytest.approx(sixteen[name], abs=1e-7) == pytest.approx(floats[name], abs=1e-7)


def test_masks_are_maps_of_0_and_1_however_they_are_stored(folders, tmp_path):
  masks, truth = folders
  for clip, count in COUNTS.items():
    for frame in range(count):
      write(tmp_path / 'ones' / clip / f'{frame:05}.png', disk(frame + 2))
  expected = score_masks(masks, truth, rule='adnet-saliency')
  ones = score_masks(tmp_path / 'ones', truth, rule='adnet-saliency')
  assert ones['dataset'] == expected['dataset'] and 'taken as masks' in ones['warnings'][0]
  wrong = np.mean([(disk(frame + 2) != disk(frame)).mean() for clip, n in COUNTS.items() for frame in range(1, n - 1)])
  assert expected['dataset']['MAE'] == pytest.approx(wrong)


def test_a_faint_map_among_others_is_no_mask(maps):
  write(maps[0] / 'cat' / '00002.png', disk(2))  # levels 0 and 1 of a map of 8 bits
  scores = score_masks(*maps, rule='adnet-saliency')
  assert not scores['warnings']


def test_the_half_of_grey_annotations_is_what_saliency_benchmarks_read(maps):
  masks, truth = maps
  expected = score_masks(masks, truth, rule='davsod')
  for frame in range(6):
    write(truth / 'cat' / f'{frame:05}.png', disk(frame) * 255 + (disk(frame + 1) & ~disk(frame)) * 128)
  assert score_masks(masks, truth, rule='davsod')['dataset'] == expected['dataset']


def test_a_threshold_makes_no_sense_for_maps(maps):
  with pytest.raises(UsageError, match=r'--threshold, --rule'):
    score_masks(*maps, rule='pysod', threshold=0.5)


@pytest.mark.parametrize('rule', list(rules.RULES))
def test_a_clip_without_a_counted_frame_has_null_and_is_left_out(folders, tmp_path, rule):
  masks, truth = folders
  expected = score_masks(masks, truth, rule=rule)
  (truth / 'bird').mkdir()
  (masks / 'bird').mkdir()
  if not rules.RULES[rule].ends:
    write_clip(truth / 'bird', range(2))
    write_clip(masks / 'bird', range(2))
  scores = score_masks(masks, truth, rule=rule)
  entry = scores['clips']['bird']
  assert entry.pop('frames') == [] and 'no counted frame' in scores['warnings'][0]
  flat = [
    number for value in entry.values() for number in (value.values() if isinstance(value, dict) else [value])
  ]  # fmt: skip
  assert all(number in (None, []) for number in flat)
  assert scores['dataset'] == expected['dataset']


# FBMS.


def test_fbms_rules_count_all_annotated_frames_and_differ_in_what_they_average(folders):
  masks, truth = folders
  for frame in (*range(1, 5), 6, 7):  # a sparse annotation
    (truth / 'dog' / f'{frame:05}.png').unlink()
  pooled, means, index = (score_masks(masks, truth, rule=f'fbms-{name}') for name in ('pooled', 'mean-pr', 'jaccard'))
  frames = {'cat': range(6), 'dog': (0, 5, 8)}
  assert pooled['clips']['dog']['frames'] == ['00000', '00005', '00008'] and 'subset' not in pooled
  clips = {
    clip: fbms.pooled_prf([fbms.binary_counts(disk(frame + 2), disk(frame)) for frame in numbers])
    for clip, numbers in frames.items()
  }
  assert {key: pooled['clips']['dog'][key] for key in 'PRF'} == clips['dog']
  assert pooled['dataset']['F'] == pytest.approx(np.mean([clip['F'] for clip in clips.values()]))
  p, r = (np.mean([clip[key] for clip in clips.values()]) for key in 'PR')
  assert means['dataset'] == pytest.approx({'P': p, 'R': r, 'F': 2 * p * r / (p + r)})
  j = [np.mean([jaccard(disk(frame + 2), disk(frame)) for frame in numbers]) for numbers in frames.values()]
  assert index['dataset'] == {'J': pytest.approx(np.mean(j))}


def test_fbms_official_pairs_clusters_with_regions(folders):
  masks, truth = folders
  for clip, count in COUNTS.items():
    for frame in range(count):
      regions = disk(frame) * 100
      regions[:, :8] = 200
      write(truth / clip / f'{frame:05}.png', regions)
      write(masks / clip / f'{frame:05}.png', (regions == 200) * 3 + (regions == 100) * 9)
  perfect = score_masks(masks, truth, rule='fbms-official')
  assert perfect['dataset'] == {'P': 1, 'R': 1, 'F': 1, 'objects': 4, 'visible': 4}
  assert perfect['warnings'] == []
  rng = np.random.default_rng(0)
  write(masks / 'cat' / '00003.png', rng.integers(0, 256, SHAPE))
  with pytest.raises(DataError, match=r'map of objects is wanted.*cat.00003'):
    score_masks(masks, truth, rule='fbms-official')


# T.


@pytest.mark.parametrize('program', rules.STABILITIES)
def test_t_of_consecutive_masks_begins_as_the_program_does(folders, program):
  scores = score_masks(*folders, metrics=['T'], stability=program)
  before = stability.describe(disk(0), program)
  expected = []
  for frame in range(1, 5):
    now = stability.describe(disk(frame + 2), program)
    expected.append(stability.instability(before, now))
    before = now
  if program != 'davis-matlab-master':
    expected[0] = None
  entry = scores['clips']['cat']['T']
  assert entry['per_frame'] == expected and scores['stability'] == program
  assert entry['mean'] == pytest.approx(np.mean([one for one in expected if one is not None]))
  assert f'T by {program}' in scores_table(scores)


def test_t_of_the_data_set_is_that_of_the_stable_clips(folders):
  masks, truth = folders
  alone = score_masks(masks, truth, metrics=['T'])
  assert alone['dataset']['T']['clips'] == ['cat', 'dog']
  for folder in folders:
    (folder / 'cat').rename(folder / 'cows')
  scores = score_masks(masks, truth, metrics=['J', 'T'])
  assert scores['dataset']['T'] == {'mean': scores['clips']['cows']['T']['mean'], 'clips': ['cows']}


def test_t_does_not_reach_over_frames_that_are_not_there(folders):
  (folders[0] / 'dog' / '00004.png').unlink()
  scores = score_masks(*folders, metrics=['T'], frames='given')
  assert scores['clips']['dog']['frames'][3] == '00005'
  values = scores['clips']['dog']['T']['per_frame']
  assert [value is None for value in values] == [False, False, False, True, False, False]


def test_every_score_file_is_json_without_nan(maps, folders, tmp_path):
  for rule in rules.RULES:
    masks = maps[0] if rules.RULES[rule].wants == 'maps' else folders[0]
    path = tmp_path / 'scores' / f'{rule}.json'
    write_scores(score_masks(masks, maps[1], rule=rule, metrics=None), path)
    assert json.loads(path.read_text())['rule'] == rule
    assert rule in scores_table(json.loads(path.read_text()))
