from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adnet_jax.errors import DataError, DeviceError, UsageError
from adnet_jax.evaluate import score_masks, scores_table, write_scores
from adnet_jax.metrics import clip_statistics, contour_accuracy, jaccard

SHAPE = (24, 32)


def disk(index: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
  y, x = np.mgrid[: shape[0], : shape[1]]
  return (y - 12) ** 2 + (x - 8 - index % 16) ** 2 < 40


def write(path: Path, values: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  assert cv2.imwrite(str(path), values.astype(np.uint16 if values.max(initial=0) > 255 else np.uint8))


def write_clip(folder: Path, frames=range(6), shift: int = 0, shape=SHAPE) -> None:
  for frame in frames:
    write(folder / f'{frame:05}.png', disk(frame + shift, shape) * 255)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
  """Masks and annotations of the clips `cat` (6 frames) and `dog` (9 frames)."""
  masks, truth = tmp_path / 'results', tmp_path / 'DAVIS' / 'Annotations' / '480p'
  for clip, count in (('cat', 6), ('dog', 9)):
    write_clip(truth / clip, range(count))
    write_clip(masks / clip, range(count), shift=2)
  return masks, truth


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


# Frames.


def test_missing_masks_are_all_named_or_counted_as_empty(folders):
  masks, truth = folders
  for name in ('cat/00002', 'dog/00003', 'dog/00004', 'dog/00005', 'dog/00006'):
    (masks / f'{name}.png').unlink()
  with pytest.raises(DataError, match=r'cat: 00002; dog: 00003\.\.00006.*--allow-missing'):
    score_masks(masks, truth)
  scores = score_masks(masks, truth, allow_missing=True)
  assert scores['missing'] == {'cat': ['00002'], 'dog': ['00003', '00004', '00005', '00006']}
  assert scores['clips']['cat']['J']['per_frame'][1] == 0 == scores['clips']['cat']['F']['per_frame'][1]
  assert any('counted as empty' in warning for warning in scores['warnings'])
  assert 'subset' not in scores


def test_a_missing_mask_of_an_empty_frame_is_right(folders):
  masks, truth = folders
  write(truth / 'cat' / '00002.png', np.zeros(SHAPE))
  (masks / 'cat' / '00002.png').unlink()
  scores = score_masks(masks, truth, allow_missing=True)
  assert scores['clips']['cat']['J']['per_frame'][1] == 1 == scores['clips']['cat']['F']['per_frame'][1]


def test_a_clip_folder_without_masks_misses_all_of_them(folders):
  masks, truth = folders
  for path in (masks / 'cat').iterdir():
    path.unlink()
  with pytest.raises(DataError, match=r'cat: 00001\.\.00004'):
    score_masks(masks, truth)


@pytest.mark.parametrize('ends', [('00000', '00000'), ('00005', '00008')])
def test_methods_that_leave_out_the_first_or_the_last_frame_are_scored(folders, ends):
  whole = score_masks(*folders)
  for clip, frame in zip(('cat', 'dog'), ends, strict=True):
    (folders[0] / clip / f'{frame}.png').unlink()
  assert score_masks(*folders) == whole


def test_two_methods_mixed_in_one_folder_are_named(folders):
  masks, truth = folders
  whole = score_masks(masks, truth)
  (masks / 'cat' / '00000.png').unlink()
  with pytest.raises(DataError, match=r'two methods mixed.*without the first: cat; with both: dog'):
    score_masks(masks, truth)
  mixed = score_masks(masks, truth, allow_missing=True)
  assert mixed['clips'] == whole['clips'] and 'without the first: cat' in mixed['warnings'][0]


def test_masks_of_frames_that_have_no_annotation_are_named(folders):
  masks, truth = folders
  write_clip(masks / 'cat', [6, 7])
  with pytest.raises(DataError, match=r'no annotation.*cat: 00006, 00007'):
    score_masks(masks, truth)
  assert 'cat: 00006, 00007' in score_masks(masks, truth, allow_missing=True)['warnings'][0]


def test_two_files_of_one_frame_are_named(folders):
  write(folders[0] / 'cat' / '00002.bmp', disk(2) * 255)
  with pytest.raises(DataError, match=r'00002\.bmp, 00002\.png'):
    score_masks(*folders)


def test_sparse_annotations_score_what_is_annotated(folders):
  masks, truth = folders
  for path in (truth / 'dog').iterdir():
    if int(path.stem) % 3:
      path.unlink()
  write_clip(truth / 'dog', [11])
  scores = score_masks(masks, truth)
  assert scores['clips']['dog']['frames'] == ['00003', '00006']  # 00009 is not annotated; 00000 and 00011 are the ends
  assert scores['subset'] is True


def test_given_frames_are_scored_without_the_ends_of_the_annotation(folders):
  masks, truth = folders
  whole = score_masks(masks, truth)
  for path in (masks / 'dog').iterdir():
    if int(path.stem) % 3:
      path.unlink()
  (masks / 'cat' / '00000.png').unlink()
  with pytest.raises(DataError, match='missing'):
    score_masks(masks, truth)
  scores = score_masks(masks, truth, frames='given')
  assert scores['clips']['cat'] == whole['clips']['cat']
  # 00006 is the last given frame, yet not the last annotation.
  assert scores['clips']['dog']['frames'] == ['00003', '00006']
  assert scores['clips']['dog']['F']['per_frame'] == [whole['clips']['dog']['F']['per_frame'][k] for k in (2, 5)]
  assert scores['subset'] is True and 'missing' not in scores


def test_all_frames_given_are_no_subset(folders):
  assert score_masks(*folders, frames='given') == score_masks(*folders)


@pytest.mark.parametrize('count', [1, 2])
def test_clips_of_one_and_two_frames_have_no_counted_frame(folders, count):
  masks, truth = folders
  whole = score_masks(masks, truth)
  write_clip(masks / 'short', range(count))
  write_clip(truth / 'short', range(count))
  scores = score_masks(masks, truth)
  nothing = {'mean': None, 'recall': None, 'decay': None, 'per_frame': []}
  assert scores['clips']['short'] == {'frames': [], 'J': nothing, 'F': nothing}
  assert scores['dataset'] == whole['dataset']
  assert scores['warnings'] == ['short: no counted frame, left out of means']
  alone = score_masks(masks, truth, clips=['short'])
  assert alone['dataset']['J'] == {'mean': None, 'recall': None, 'decay': None}
  assert '-' in scores_table(alone)


def test_a_clip_of_three_frames_counts_one(folders):
  masks, truth = folders
  write_clip(masks / 'three', range(3))
  write_clip(truth / 'three', range(3))
  assert score_masks(masks, truth)['clips']['three']['J'] == {
    'mean': 1.0, 'recall': 1.0, 'decay': 0.0, 'per_frame': [1.0]
  }  # fmt: skip


def test_a_clip_of_more_than_256_frames(tmp_path):
  for frame in range(262):
    write(tmp_path / 'truth' / 'long' / f'{frame:05}.png', disk(0) * 255)
    write(tmp_path / 'masks' / 'long' / f'{frame:05}.png', disk(0) * (255 if frame < 190 else 0))
  entry = score_masks(tmp_path / 'masks', tmp_path / 'truth', jobs=1)['clips']['long']
  assert len(entry['frames']) == 260
  assert entry['J'] == {**clip_statistics([1.0] * 189 + [0.0] * 71), 'per_frame': [1.0] * 189 + [0.0] * 71}
  assert entry['J']['decay'] == 1.0


def test_numbers_without_padding_are_in_natural_order(tmp_path):
  for frame in range(12):
    for side in ('masks', 'truth'):
      write(tmp_path / side / 'clip' / f'frame {frame}.png', disk(frame) * 255)
  scores = score_masks(tmp_path / 'masks', tmp_path / 'truth')
  assert scores['clips']['clip']['frames'] == [f'frame {frame}' for frame in range(1, 11)]
  assert 'subset' not in scores


# Clips and folders.


def test_clips_without_annotations_are_all_named(folders):
  write_clip(folders[0] / 'emu')
  write_clip(folders[0] / 'fox')
  with pytest.raises(DataError, match=r'clips without annotations \(emu, fox\)'):
    score_masks(*folders)


def test_clips_without_masks_are_named_and_the_rest_scored(folders):
  masks, truth = folders
  whole = score_masks(masks, truth)
  write_clip(truth / 'emu')
  write_clip(truth / 'fox')
  scores = score_masks(masks, truth)
  assert scores['clips'] == whole['clips']
  assert scores['warnings'] == ['clips without masks, not scored: emu, fox']


def test_the_list_of_the_data_set_says_which_clips_are_missing(folders):
  masks, truth = folders
  write_clip(truth / 'emu')
  lists = truth.parents[1] / 'ImageSets' / '480p'
  lists.mkdir(parents=True)
  (lists / 'trainval.txt').write_text('cat\ndog\nemu\nfox\n')
  (lists / 'val.txt').write_text('cat\ndog\n')
  assert score_masks(masks, truth)['warnings'] == []
  # The lists of DAVIS-2016 name frames.
  line = '/JPEGImages/480p/{0}/00000.jpg /Annotations/480p/{0}/00000.png\n'
  (lists / 'val.txt').write_text(''.join(line.format(clip) for clip in ('cat', 'dog', 'gnu')))
  assert score_masks(masks, truth)['warnings'] == ['clips without masks, not scored: gnu']


def test_listed_clips_that_are_not_on_disk_are_all_named(folders):
  masks, truth = folders
  write_clip(truth / 'emu')
  with pytest.raises(DataError, match=r'emu \(masks\), fox \(masks\), fox \(annotations\)'):
    score_masks(masks, truth, clips=['cat', 'emu', 'fox'])
  scores = score_masks(masks, truth, clips=['cat'])
  assert list(scores['clips']) == ['cat'] and 'dog' in scores['warnings'][0]


def test_one_clips_own_folders_can_be_scored(folders):
  masks, truth = folders
  whole = score_masks(masks, truth)
  assert score_masks(masks / 'cat', truth)['clips'] == {'cat': whole['clips']['cat']}
  (masks / 'cat').rename(masks / 'masks')
  assert score_masks(masks / 'masks', truth / 'cat')['clips'] == {'cat': whole['clips']['cat']}


def test_masks_as_the_segmenter_lays_out_several_clips(folders):
  masks, truth = folders
  whole = score_masks(masks, truth)
  for clip in ('cat', 'dog'):
    (masks / clip).rename(masks / 'moved')
    (masks / clip).mkdir()
    (masks / 'moved').rename(masks / clip / 'masks')
    (masks / clip / 'summary.json').write_text('{}')
  assert score_masks(masks, truth) == whole


def test_layouts_that_do_not_fit_name_what_is_there(folders):
  masks, truth = folders
  root = truth.parents[1]
  (root / 'ImageSets').mkdir()
  with pytest.raises(DataError, match=r'found Annotations, ImageSets.*Annotations/480p'):
    score_masks(masks, root)
  with pytest.raises(DataError, match='found Annotations, ImageSets'):
    score_masks(root, truth)
  with pytest.raises(DataError, match='not found'):
    score_masks(masks / 'absent', truth)
  (masks / 'file').write_text('')
  with pytest.raises(DataError, match='must be a folder'):
    score_masks(masks / 'file', truth)
  (root / 'empty').mkdir()
  with pytest.raises(DataError, match='it is empty'):
    score_masks(root / 'empty', truth)


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


# The score file and its table.


def test_score_files_are_whole_and_hold_null_for_nan(tmp_path, folders):
  scores = score_masks(*folders)
  path = tmp_path / 'new' / 'scores.json'
  write_scores(scores, path)
  assert json.loads(path.read_text()) == scores
  write_scores({'a': [math.nan, np.float64(math.inf), np.float32(0.5)], 'b': {'c': np.int64(3)}}, path)
  assert json.loads(path.read_text()) == {'a': [None, None, 0.5], 'b': {'c': 3}}
  assert [one.name for one in path.parent.iterdir()] == ['scores.json']


def test_score_files_that_cannot_be_written_leave_what_was_there(tmp_path):
  (tmp_path / 'file').write_text('kept')
  with pytest.raises(DataError, match='cannot be written'):
    write_scores({}, tmp_path / 'file' / 'scores.json')
  assert (tmp_path / 'file').read_text() == 'kept'
  (tmp_path / 'folder').mkdir()
  with pytest.raises(DataError, match='cannot be written'):
    write_scores({}, tmp_path / 'folder')
  assert sorted(one.name for one in tmp_path.iterdir()) == ['file', 'folder']


def test_table_names_rule_protocol_and_every_clip(folders):
  scores = score_masks(*folders, frames='given', protocol='released')
  table = scores_table({**scores, 'subset': True}).splitlines()
  assert table[0] == 'rule davis2016, protocol released, a subset of the frames'
  assert table[1].split()[:6] == ['clip', 'frames', 'J', 'mean', 'J', 'recall']
  assert table[3].split()[:3] == ['cat', '4', f'{scores["clips"]["cat"]["J"]["mean"]:.3f}']
  assert table[-1].startswith('mean over clips') and table[-1].split()[3] == '11'


def test_a_progress_bar_stays_off_stdout(folders, capsys):
  score_masks(*folders, progress=True)
  assert capsys.readouterr().out == ''


@given(st.lists(st.one_of(st.floats(), st.none(), st.text(max_size=3)), max_size=4))
def test_any_number_can_be_written(tmp_path_factory, values):
  path = tmp_path_factory.getbasetemp() / 'any.json'
  write_scores({'values': values}, path)
  expected = [None if isinstance(one, float) and not math.isfinite(one) else one for one in values]
  assert json.loads(path.read_text(encoding='utf-8'))['values'] == expected


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
