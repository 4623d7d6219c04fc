from __future__ import annotations

import json

import numpy as np
import pytest
from made_scenes import SHAPE, SMALL, detections, rectangle, rle, scene, write_json

from adnet_jax.detections import read
from adnet_jax.errors import DataError

CLIPS = {'cat': {f'{n:05d}': SHAPE for n in range(3)}, 'dog': {f'{n:05d}': SHAPE for n in range(2)}}


@pytest.fixture
def content() -> dict:
  return detections({'cat': scene(3), 'dog': scene(2, small=None)})


def mistakes(tmp_path, content) -> str:
  with pytest.raises(DataError) as caught:
    read(write_json(tmp_path / 'found.json', content), CLIPS)
  text = str(caught.value)
  assert '\n' not in text and 'found.json' in text
  return text


def test_instances_lie_under_their_clip_and_frame(tmp_path, content):
  found = read(write_json(tmp_path / 'found.json', content), CLIPS)
  assert {clip: [len(one) for one in frames.values()] for clip, frames in found.clips.items()} == {
    'cat': [2, 2, 2],
    'dog': [1, 1],
  }
  small = found.clips['cat']['00002'][1]
  assert (small.id, small.box, small.score, small.category) == (5, (170, 90, 184, 102), 0.9, 1)
  np.testing.assert_array_equal(small.segmentation.mask(), rectangle(SMALL))
  assert small.segmentation.area == 14 * 12 and found.unlisted == {}


def test_ten_planted_mistakes_are_each_named_with_their_index(tmp_path, content):
  content['images'].append({'id': 77, 'file_name': 'ghost/00000.jpg', 'width': 200, 'height': 120})
  content['images'].append({**content['images'][0], 'file_name': 'dog/00009.jpg'})
  entries = content['annotations']
  entries[0]['image_id'] = 99
  entries[1]['bbox'] = [180, 90, 40, 12]
  entries[2]['segmentation'] = rle(np.ones((60, 100), bool))
  entries[3]['segmentation']['counts'] = entries[3]['segmentation']['counts'][:-1]
  entries[4]['score'] = float('nan')
  entries[5]['bbox'] = [10, 10, 0, 5]
  entries[6]['id'] = 2
  del entries[7]['category_id']
  text = mistakes(tmp_path, content)
  assert text.startswith('11 mistakes in the detections')
  for said in (
    'images[5] file_name "ghost/00000.jpg" is no frame of these masks',
    'images[6] file_name "dog/00009.jpg" is no frame of these masks',
    'images[6] id 0 is that of images[0] too',
    'annotations[0] image_id 99 is none of the images',
    'annotations[1] bbox [180, 90, 40, 12] lies outside of the image of 200x120',
    'annotations[2] mask of 100x60 for an image of 200x120',
    'annotations[3] broken RLE',
    'annotations[4] score is nan',
    'annotations[5] bbox of width 0 and height 5 has no area',
    'annotations[6] id 2 is that of annotations[2] too',
    'annotations[7] category_id is missing',
  ):
    assert said in text


@pytest.mark.parametrize(
  ('key', 'value', 'said'),
  [
    ('id', None, 'id is missing'),
    ('id', True, 'id true is not a whole number'),
    ('id', -1, 'id -1 is not a whole number from 0'),
    ('id', '3', 'id "3" is not a whole number'),
    ('image_id', 1.0, 'image_id 1.0 is not a whole number'),
    ('category_id', 'person', 'category_id "person" is not a whole number'),
    ('score', True, 'score true is not a number'),
    ('score', '0.5', 'score "0.5" is not a number'),
    ('score', float('inf'), 'score is inf'),
    ('score', 10**400, 'score is too large'),
    ('score', 1.5, 'score 1.5 is not within 0 and 1'),
    ('bbox', [1, 2, 3], 'bbox is not four numbers'),
    ('bbox', 7, 'bbox is not four numbers'),
    ('bbox', [1, 2, 3, '4'], 'bbox is not four numbers'),
    ('bbox', [1, 2, 3, False], 'bbox is not four numbers'),
    ('bbox', [1, 2, float('nan'), 4], 'bbox has a number that is not finite'),
    ('bbox', [1, 2, -3, 4], 'bbox of width -3 and height 4 has no area'),
    ('bbox', [-2, 2, 3, 4], 'bbox [-2, 2, 3, 4] lies outside'),
    ('bbox', [1, 118, 3, 4], 'bbox [1, 118, 3, 4] lies outside'),
    ('area', 0, 'area 0 is not above 0'),
    ('area', 'big', 'area "big" is not a number'),
    ('segmentation', None, 'segmentation is missing'),
    ('segmentation', {'size': list(SHAPE), 'counts': [SHAPE[0] * SHAPE[1]]}, 'area 0'),
  ],
)
def test_a_wrong_field_of_an_annotation_is_named(tmp_path, content, key, value, said):
  content['annotations'][4][key] = value
  text = mistakes(tmp_path, content)
  assert f'1 mistake in the detections ({tmp_path / "found.json"}: annotations[4] {said}' in text


@pytest.mark.parametrize(
  ('key', 'value', 'said'),
  [
    ('file_name', 'cat/00009.jpg', 'file_name "cat/00009.jpg" is no frame of these masks'),
    ('file_name', '00001.jpg', 'is no frame of these masks'),
    ('file_name', 5, 'file_name 5 is not a text'),
    ('file_name', 'cat/00000.png', 'the frame of file_name "cat/00000.png" is that of images[0] too'),
    ('width', 100, 'width and height are 100x120, the mask is 200x120'),
    ('height', 0, 'height 0 is not a whole number from 1'),
    ('id', 0, 'id 0 is that of images[0] too'),
  ],
)
def test_a_wrong_field_of_an_image_is_named_and_its_annotations_are_not_blamed(tmp_path, content, key, value, said):
  content['images'][1][key] = value
  text = mistakes(tmp_path, content)
  assert f'images[1] {said}' in text or said in text
  if key != 'id':
    assert text.startswith('1 mistake ') and 'annotations[' not in text


def test_mistakes_of_a_faulty_images_annotations_are_named_too(tmp_path, content):
  content['images'][1]['file_name'] = 'ghost/00000.jpg'
  content['annotations'][2]['segmentation']['counts'] = '0'
  assert 'annotations[2] broken RLE' in mistakes(tmp_path, content)


def test_what_is_no_object_is_named(tmp_path, content):
  content['annotations'][1] = 'x'
  content['images'][2] = []
  text = mistakes(tmp_path, content)
  assert 'images[2] is not an object' in text and 'annotations[1] is not an object' in text


def test_very_many_mistakes_alike_are_named_together(tmp_path):
  content = detections({'cat': scene(3), 'dog': scene(2)})
  content['annotations'] = [{**content['annotations'][0], 'id': n, 'score': None} for n in range(150)]
  assert 'annotations[0..149] score is missing' in mistakes(tmp_path, content)


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('', 'not JSON, line 1'),
    ('{"images": [', 'not JSON, line 1'),
    ('\xff', 'unreadable text'),
    ('[' * 100_000, 'unreadable text'),
    ('[]', 'no JSON object'),
    ('{"images": []}', 'annotations is missing'),
    ('{"images": {}, "annotations": []}', 'images is not a list'),
  ],
)
def test_files_that_hold_no_detections(tmp_path, text, said):
  path = tmp_path / 'found.json'
  path.write_bytes(text.encode('latin-1'))
  with pytest.raises(DataError, match=said):
    read(path, CLIPS)


def test_a_missing_file_and_a_folder(tmp_path):
  for path in (tmp_path / 'none.json', tmp_path):
    with pytest.raises(DataError, match='cannot be read'):
      read(path, CLIPS)


def test_frames_that_are_not_listed_have_no_instances_and_are_told(tmp_path, content):
  content['images'] = content['images'][:2]
  content['annotations'] = content['annotations'][:4]
  found = read(write_json(tmp_path / 'found.json', content), CLIPS)
  assert found.unlisted == {'cat': ['00002'], 'dog': ['00000', '00001']}
  assert found.clips['dog'] == {'00000': (), '00001': ()}


def test_boxes_may_end_a_pixel_beyond_the_image_and_masks_may_have_any_of_cocos_forms(tmp_path, content):
  content['annotations'][0]['bbox'] = [-0.5, 0.0, 201.0, 120.9]
  content['annotations'][1]['segmentation'] = [[170, 90, 184, 90, 184, 102, 170, 102]]
  found = read(write_json(tmp_path / 'found.json', content), CLIPS)
  assert found.clips['cat']['00000'][1].segmentation.area == 14 * 12


@pytest.mark.parametrize(
  ('used', 'categories', 'targets'),
  [
    (1, None, {1, 3}),
    (0, None, {0, 2}),
    (5, [{'id': 5, 'name': 'person'}, {'id': 8, 'name': 'car'}, {'id': 1, 'name': 'dog'}], {5, 8}),
    (0, [{'id': 0, 'name': 'thing'}], set()),
  ],
)
def test_numbers_of_persons_and_cars(tmp_path, used, categories, targets):
  content = detections({'cat': scene(3), 'dog': scene(2)}, category=used)
  if categories is not None:
    content['categories'] = categories
  assert read(write_json(tmp_path / 'found.json', content), CLIPS).target_categories == targets


def test_a_single_clip_may_go_by_any_name_but_only_one(tmp_path, content):
  content = detections({'cat': scene(3)})
  path = write_json(tmp_path / 'found.json', content)
  found = read(path, {'masks': CLIPS['cat']}, any_clip=True)
  assert len(found.clips['masks']['00002']) == 2
  content['images'][2]['file_name'] = 'dog/00002.jpg'
  with pytest.raises(DataError, match=r'images\[2\]'):
    read(write_json(path, content), {'masks': CLIPS['cat']}, any_clip=True)


def test_names_of_clips_and_frames_are_told_on_one_line(tmp_path, content):
  content['images'][0]['file_name'] = 'a\nb/' + 'x' * 500
  text = mistakes(tmp_path, content)
  assert json.dumps('a\nb/')[:-1] in text and len(text) < 500
