from __future__ import annotations

import numpy as np
import pytest
from made_clips import SHAPE, disk, write, write_clip

from adnet_jax.errors import DataError
from adnet_jax.evaluate import score_masks
from adnet_jax.metrics import clip_statistics
from adnet_jax.scores import scores_table


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
