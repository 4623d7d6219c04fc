"""ViSal as it is published and as it goes round, and folders of one's own clips."""

from __future__ import annotations

import logging
import shutil

import cv2
import numpy as np
import pytest
import sets

from adnet_jax.data import datasets, folders, visal
from adnet_jax.errors import DataError


def arrange(root, layout):
  """Brings ViSal as it is published into another layout."""
  moves = []
  for clip in ('horse', 'horse2'):
    frames = sorted((root / 'ViSal' / clip).iterdir())
    stems = {path.stem for path in frames}
    masks = [path for path in (root / 'GroundTruth').iterdir() if path.stem in stems]
    moves += [(path, root / layout[0].format(clip) / path.name) for path in frames]
    moves += [(path, root / layout[1].format(clip) / path.name) for path in masks]
  for path, target in moves:
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
  for folder in ('ViSal', 'GroundTruth'):
    if not any(path.is_file() for path in (root / folder).rglob('*')):
      shutil.rmtree(root / folder)


@pytest.mark.parametrize(
  'layout',
  [
    ('ViSal/{}', 'GroundTruth'),
    ('ViSal/{}', 'GroundTruth/{}'),
    ('Imgs/{}', 'GT/{}'),
    ('{}/Imgs', '{}/ground-truth'),
    ('{}/Frame', '{}/GT_object_level'),
    ('{}', '{}/GroundTruth'),
    ('{}', 'GroundTruth'),
    ('frames/{}', 'masks'),
  ],
)
def test_layouts(tmp_path, layout):
  arrange(sets.write_visal(tmp_path, frames=12), layout)
  assert datasets.kind_of(tmp_path) == 'visal'
  assert datasets.split(tmp_path, 'val') == ['horse', 'horse2']
  clips = datasets.read_clips(tmp_path, ['horse', 'horse2'], need_masks=True)
  assert [clip.annotated for clip in clips] == [[0, 5, 10], [0, 5, 10]] and all(clip.sparse for clip in clips)
  datasets.check_pairs(clips)
  for k, clip in enumerate(clips):
    # By its name, a mask of horse would be one of horse2.
    assert [frame.stem for frame in clip.frames] == [f'horse{k + 2}_frame{number:04d}' for number in range(1, 13)]
    for index in clip.annotated:
      expected = sets.regions(index + 1 + k) > 0
      expected[0, :3] = False, False, True  # above 128 only
      np.testing.assert_array_equal(clip.masks[index].load().truth(), expected)
  truth = datasets.truth_of(tmp_path, 'val')
  assert {name: len(found) for name, found in truth.items()} == {'horse': 3, 'horse2': 3}
  assert clips[0].masks[0].stem == next(iter(truth['horse'])) == 'horse2_frame0001'


def test_training_takes_the_only_split_and_says_so(tmp_path, caplog):
  sets.write_visal(tmp_path)
  with caplog.at_level(logging.WARNING):
    assert datasets.split(tmp_path, 'train') == ['horse', 'horse2']
  assert 'no training split' in caplog.text


@pytest.mark.parametrize('values', ['0 and 1', 'palette', '0 and 255', 'soft'])
def test_masks_of_every_kind(tmp_path, values):
  sets.write_visal(tmp_path)
  path = tmp_path / 'GroundTruth' / 'horse2_frame0001.bmp'
  expected = sets.regions(1) > 0
  path.unlink()
  path = path.with_suffix('.png')
  grey = {'0 and 1': expected, 'palette': expected, '0 and 255': 255 * expected, 'soft': 40 + 160 * expected}[values]
  if values == 'palette':
    from PIL import Image

    image = Image.fromarray(grey.astype(np.uint8), 'P')
    image.putpalette([0, 0, 0, 90, 0, 0])
    image.save(path)
  else:
    cv2.imwrite(str(path), grey.astype(np.uint8))
  np.testing.assert_array_equal(visal.truths(tmp_path)['horse']['horse2_frame0001'].load().mask(), expected)


def test_masks_that_belong_nowhere_or_twice(tmp_path):
  sets.write_visal(tmp_path)
  odd = tmp_path / 'GroundTruth' / 'zebra_frame0001.bmp'
  shutil.copy(tmp_path / 'GroundTruth' / 'horse2_frame0001.bmp', odd)
  with pytest.raises(DataError, match=r'masks that have no frame: zebra_frame0001\.bmp \(.*GroundTruth'):
    datasets.kind_of(tmp_path)
  odd.unlink()
  shutil.copy(tmp_path / 'ViSal' / 'horse' / 'horse2_frame0001.bmp', tmp_path / 'ViSal' / 'horse2')
  with pytest.raises(DataError, match='masks that belong to frames of several clips: horse2_frame0001'):
    folders.find_clips(tmp_path)


def test_what_lies_there_instead(tmp_path):
  (tmp_path / 'videos').mkdir()
  with pytest.raises(DataError, match=r'no clips with masks \(.*: found videos; expected ViSal/CLIP/NAME\.bmp'):
    visal.split(tmp_path, 'test')
  sets.write_visal(tmp_path / 'set')
  for path in (tmp_path / 'set' / 'GroundTruth').glob('horse3*'):
    path.unlink()
  with pytest.raises(DataError, match='clips without masks: horse2'):
    visal.read(tmp_path / 'set', ['horse', 'horse2'])


def test_clips_of_ones_own_beside_their_masks(tmp_path):
  arrange(sets.write_visal(tmp_path), ('frames/my {}', 'masks/my {}'))
  for path in tmp_path.rglob('masks/*/*.bmp'):  # strict: masks hold two values
    cv2.imwrite(str(path), 255 * (cv2.imread(str(path), 0) > 128).astype(np.uint8))
  assert datasets.kind_of(tmp_path) == 'folder'
  assert datasets.split(tmp_path, 'train') == datasets.split(tmp_path, 'val') == ['my horse', 'my horse2']
  clips = datasets.read_clips(tmp_path, ['my horse'], need_masks=True)
  assert clips[0].annotated == [0, 5] and clips[0].sparse
  datasets.check_pairs(clips)  # frames between the annotations are no fault
  assert list(datasets.truth_of(tmp_path)['my horse']) == ['horse2_frame0001', 'horse2_frame0006']


@pytest.mark.parametrize('layout', ['{}', '{}/masks', '480p/{}'])
def test_folders_of_masks_alone_are_no_data_set(tmp_path, layout):
  folder = tmp_path / layout.format('bear')
  folder.mkdir(parents=True)
  cv2.imwrite(str(folder / '00000.png'), np.zeros((4, 5), np.uint8))
  assert datasets.kind_of(tmp_path) is None
