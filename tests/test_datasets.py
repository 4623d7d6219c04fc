"""Finding clips, photographs and masks on disk, and every fault that is named before training starts."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest
from PIL import Image

from adnet_jax import errors
from adnet_jax.data import datasets, davis

SIZE = (12, 20)  # height, width


def add_clip(root, name, frames=3, masks=None, below='480p'):
  """Writes a clip with JPEG frames and masks of a square; `masks` lists those that exist."""
  image, mask = np.full((*SIZE, 3), 90, np.uint8), np.zeros(SIZE, np.uint8)
  mask[2:8, 3:9] = 255
  for kind in ('JPEGImages', 'Annotations'):
    (root / kind / below / name).mkdir(parents=True)
  for frame in range(frames):
    cv2.imwrite(str(root / 'JPEGImages' / below / name / f'{frame:05d}.jpg'), image)
    if masks is None or frame in masks:
      cv2.imwrite(str(root / 'Annotations' / below / name / f'{frame:05d}.png'), mask)
  return root / 'Annotations' / below / name


def add_photograph(root, name, mask=True):
  for folder in ('images', 'masks'):
    (root / folder).mkdir(exist_ok=True, parents=True)
  cv2.imwrite(str(root / 'images' / f'{name}.jpg'), np.zeros((*SIZE, 3), np.uint8))
  if mask:
    cv2.imwrite(str(root / 'masks' / f'{name}.png'), np.zeros(SIZE, np.uint8))


def read(root, split='train'):
  return datasets.read_clips(root, datasets.split(root, split), need_masks=True)


@pytest.mark.parametrize('below', ['480p', '.'])
def test_clips_with_and_without_the_folder_480p(tmp_path, below):
  add_clip(tmp_path, 'mine', below=below)
  (clip,) = read(tmp_path)
  assert clip.name == 'mine'
  assert [path.name for path in clip.frames] == ['00000.jpg', '00001.jpg', '00002.jpg']
  assert [path.name for path in clip.masks] == ['00000.png', '00001.png', '00002.png']
  image, mask = datasets.read_pair(clip.frames[0], clip.masks[0])
  assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
  assert mask.shape == SIZE and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}


def test_frames_are_in_natural_order_and_masks_belong_to_them_by_name(tmp_path):
  frames, masks = tmp_path / 'JPEGImages' / '480p' / 'a', tmp_path / 'Annotations' / '480p' / 'a'
  frames.mkdir(parents=True)
  masks.mkdir(parents=True)
  for name in ('10', '2', '1'):
    cv2.imwrite(str(frames / f'{name}.jpg'), np.zeros((*SIZE, 3), np.uint8))
  for name in ('10', '1'):
    cv2.imwrite(str(masks / f'{name}.png'), np.zeros(SIZE, np.uint8))
  (clip,) = read(tmp_path)
  assert [path.stem for path in clip.frames] == ['1', '2', '10']
  assert [mask and mask.stem for mask in clip.masks] == ['1', None, '10']
  assert clip.annotated == [0, 2]


def test_official_split(tmp_path):
  assert len(davis.TRAIN) == 30 and len(davis.VALIDATION) == 20
  assert not set(davis.TRAIN) & set(davis.VALIDATION)
  for name in ('bear', 'camel', 'cows'):
    add_clip(tmp_path, name)
  assert datasets.split(tmp_path, 'train') == ['bear']
  assert datasets.split(tmp_path, 'val') == ['camel', 'cows']


def test_clips_of_another_data_set_belong_to_both_splits(tmp_path):
  add_clip(tmp_path, 'mine')
  assert datasets.split(tmp_path, 'train') == datasets.split(tmp_path, 'val') == ['mine']


@pytest.mark.parametrize('form', ['/JPEGImages/480p/{0}/00000.jpg /Annotations/480p/{0}/00000.png\n', '{0}\n\n'])
def test_lists_of_the_data_set_come_first(tmp_path, form):
  for name in ('b', 'a', 'c'):
    add_clip(tmp_path, name)
  lists = tmp_path / 'ImageSets' / '480p'
  lists.mkdir(parents=True)
  (lists / 'train.txt').write_text(''.join(form.format(name) for name in ('b', 'b', 'a')))
  (lists / 'val.txt').write_text(form.format('c'))
  assert datasets.split(tmp_path, 'train') == ['b', 'a']
  assert datasets.split(tmp_path, 'val') == ['c']


def test_clips_in_the_list_but_not_on_disk_are_all_named(tmp_path):  # fault 59
  add_clip(tmp_path, 'here')
  lists = tmp_path / 'ImageSets' / '480p'
  lists.mkdir(parents=True)
  (lists / 'train.txt').write_text('here\ngone\nlost\n')
  with pytest.raises(errors.DataError, match=r'gone, lost.*train\.txt'):
    datasets.split(tmp_path, 'train')


@pytest.mark.parametrize('with_list', [True, False])
def test_clips_on_disk_but_in_no_list_are_all_named(tmp_path, caplog, with_list):  # fault 59
  for name in ('bear', 'extra', 'more'):
    add_clip(tmp_path, name)
  if with_list:
    lists = tmp_path / 'ImageSets' / '480p'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('bear\n')
  with caplog.at_level(logging.WARNING):
    assert datasets.split(tmp_path, 'train') == ['bear']
  assert 'extra, more' in caplog.text


def test_a_level_too_many_or_another_layout_is_described(tmp_path):  # fault 57
  add_clip(tmp_path / 'outer' / 'DAVIS', 'bear')
  with pytest.raises(errors.DataError, match=r'found DAVIS; expected JPEGImages/480p/CLIP'):
    datasets.split(tmp_path / 'outer', 'train')
  with pytest.raises(errors.DataError, match='not found'):
    datasets.split(tmp_path / 'nowhere', 'train')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.DataError, match='found nothing'):
    datasets.split(tmp_path / 'empty', 'train')
  add_clip(tmp_path / 'deep', 'bear', below='480p/480p')
  with pytest.raises(errors.DataError, match=r'without frames \(.*480p'):
    read(tmp_path / 'deep')


def test_empty_sets_and_clips_are_refused(tmp_path):  # fault 26
  add_clip(tmp_path, 'camel')
  with pytest.raises(errors.DataError, match='no clips'):
    read(tmp_path, 'train')
  add_clip(tmp_path, 'bear', frames=0)
  with pytest.raises(errors.DataError, match=r'without frames \(.*bear'):
    read(tmp_path, 'train')
  (tmp_path / 'stills' / 'images').mkdir(parents=True)
  with pytest.raises(errors.DataError, match='images/ and masks/'):
    datasets.read_photographs(tmp_path / 'stills')
  (tmp_path / 'stills' / 'masks').mkdir()
  with pytest.raises(errors.DataError, match='no photographs'):
    datasets.read_photographs(tmp_path / 'stills')


def test_missing_masks_are_named_before_training(tmp_path):  # fault 24
  add_clip(tmp_path, 'bear', masks=[])
  with pytest.raises(errors.DataError, match=r'without masks \(.*bear'):
    read(tmp_path)
  add_clip(tmp_path, 'boat', frames=14, masks=[0])
  clips = datasets.read_clips(tmp_path, ['boat'], need_masks=True)
  with pytest.raises(errors.DataError, match=r'13 training frames without a mask: .*00001\.jpg, .*00010\.jpg, \.\.\.'):
    datasets.check_pairs(clips)
  add_photograph(tmp_path / 'stills', 'bird', mask=False)
  with pytest.raises(errors.DataError, match='without a mask: bird'):
    datasets.read_photographs(tmp_path / 'stills')


def test_masks_of_another_size_or_with_more_values_are_all_named_before_training(tmp_path):  # fault 24
  folder = add_clip(tmp_path, 'bear', frames=4)
  cv2.imwrite(str(folder / '00001.png'), np.zeros((5, 7), np.uint8))
  cv2.imwrite(str(folder / '00002.png'), np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(SIZE))
  (folder / '00003.png').write_bytes(b'no image')
  clips = read(tmp_path)
  with pytest.raises(errors.DataError) as raised:
    datasets.check_pairs(clips)
  text = str(raised.value)
  assert '3 training frames or masks' in text
  assert '00001.png, frame is 20x12 but its mask is 7x5' in text
  assert all(name in text for name in ('00002.png', '00003.png'))
  with pytest.raises(errors.DataError, match=r'frame is 20x12 but its mask is 7x5 \(.*00001\.png'):
    datasets.read_pair(clips[0].frames[1], clips[0].masks[1])


def test_unreadable_frames_are_named_before_training(tmp_path):
  add_clip(tmp_path, 'bear')
  clips = read(tmp_path)
  clips[0].frames[2].write_bytes(b'')
  with pytest.raises(errors.DataError, match=r'00002\.jpg'):
    datasets.check_pairs(clips)


def test_masks_of_every_binary_kind_and_turned_photographs_pass(tmp_path):
  folder = add_clip(tmp_path, 'bear', frames=5)
  square = np.zeros(SIZE, np.uint8)
  square[3:6, 3:6] = 1
  Image.fromarray(square).save(folder / '00000.png')  # 0 and 1
  Image.fromarray(square.astype(bool)).save(folder / '00001.png')  # one bit
  palette = Image.fromarray(square, 'P')
  palette.putpalette([0, 0, 0, 128, 0, 0])
  palette.save(folder / '00002.png')
  Image.fromarray(0 * square).save(folder / '00003.png')  # all background, fault 25
  frame = folder.parents[2] / 'JPEGImages' / '480p' / 'bear' / '00004.jpg'
  exif = Image.Exif()
  exif[0x0112] = 6  # a quarter turn: stored 12 x 20, shown 20 x 12
  Image.fromarray(np.zeros((SIZE[1], SIZE[0], 3), np.uint8)).save(frame, exif=exif)
  add_photograph(tmp_path / 'stills', 'bird')
  clips = read(tmp_path)
  datasets.check_pairs(clips, datasets.read_photographs(tmp_path / 'stills'))
  for frame, mask in zip(clips[0].frames, clips[0].masks, strict=True):
    image, foreground = datasets.read_pair(frame, mask)
    assert image.shape[:2] == foreground.shape == SIZE
    assert set(np.unique(foreground)) <= {0, 1}


@pytest.mark.shared_data
def test_davis_as_it_is(shared):
  root = shared / 'data' / 'DAVIS'
  clips = read(root)
  assert sorted(clip.name for clip in clips) == sorted(davis.TRAIN)
  assert sorted(datasets.split(root, 'val')) == sorted(davis.VALIDATION)
  datasets.check_pairs(clips[:2])


def test_clips_of_the_official_list_that_are_absent_are_all_named(tmp_path, caplog):  # fault 59
  for name in davis.VALIDATION[1:]:
    add_clip(tmp_path, name, frames=1)
  with caplog.at_level(logging.WARNING):
    assert datasets.split(tmp_path, 'val') == sorted(davis.VALIDATION[1:])
  assert 'not on disk: blackswan' in caplog.text


def test_where_a_layout_with_a_level_too_many_is(tmp_path):  # fault 57
  add_clip(tmp_path / 'outer' / 'DAVIS', 'bear')
  with pytest.raises(errors.DataError, match=r'found DAVIS; expected JPEGImages.*; give .*outer/DAVIS'):
    datasets.read_clips(tmp_path / 'outer', ['bear'], need_masks=True)
  add_clip(tmp_path / 'deep', 'bear', below='480p/480p')
  with pytest.raises(errors.DataError, match=r'found folders in it, bear, a level too many; expected JPEGImages/480p'):
    datasets.read_clips(tmp_path / 'deep', datasets.split(tmp_path / 'deep', 'train'), need_masks=True)


def test_several_objects_are_merged_and_it_is_said_once(tmp_path, caplog):  # fault 58
  folder = add_clip(tmp_path, 'bear', frames=4)
  for k in range(4):
    objects = np.zeros(SIZE, np.uint8)
    objects[2:5, 3:9], objects[6:9, 3:9] = 1, 2
    image = Image.fromarray(objects, 'P')
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(folder / f'{k:05d}.png')
  clips = datasets.read_clips(tmp_path, ['bear'], need_masks=True)
  with caplog.at_level(logging.WARNING):
    datasets.check_pairs(clips)
  assert caplog.text.count('merged to one foreground') == 1 and 'bear/00000.png' in caplog.text
  assert datasets.read_pair(clips[0].frames[0], clips[0].masks[0])[1].sum() == 36
