from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_scenes import SHAPE, SMALL, detections, rectangle, rle, scene, union, write_json, write_masks
from PIL import Image

from adnet_jax.errors import DataError, UsageError
from adnet_jax.masks import read_mask
from adnet_jax.pruning import prune_folder
from adnet_jax.writers import write_heatmap

DAVIS = 480, 854


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
  """Masks of a clip with a small static object and of one without, and where to write."""
  write_masks(tmp_path / 'masks' / 'cat', scene())
  write_masks(tmp_path / 'masks' / 'dog', scene(10, small=None))
  return tmp_path / 'masks', tmp_path / 'out'


def detected(tmp_path: Path, **clips) -> Path:
  return write_json(tmp_path / 'found.json', detections(clips or {'cat': scene(), 'dog': scene(10, small=None)}))


def read_all(folder: Path) -> dict[str, np.ndarray]:
  return {f'{path.parent.name}/{path.stem}': read_mask(path) for path in sorted(folder.glob('*/*.png'))}


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
  assert one.keys() == other.keys()
  assert [name for name in one if not np.array_equal(one[name], other[name])] == []


@pytest.mark.parametrize('source', ['detections', 'components'])
def test_the_small_static_object_goes_and_the_large_one_stays(folders, tmp_path, source):
  given = {'components': True} if source == 'components' else {'detections': detected(tmp_path)}
  summary = prune_folder(*folders, **given)
  expected = {f'cat/{n:05d}': union(one[:1]) for n, one in enumerate(scene())}
  expected |= {f'dog/{n:05d}': union(one) for n, one in enumerate(scene(10, small=None))}
  assert_equal(read_all(folders[1]), expected)
  assert set(np.unique(np.array(Image.open(folders[1] / 'cat' / '00000.png')))) == {0, 255}
  assert summary == json.loads((folders[1] / 'summary.json').read_text())
  assert (summary['protocol'], summary['source'], summary['frames']) == ('paper', source, 34)
  assert summary['warnings'] == [] and summary['parameters']['static_iou'] == 0.6
  (gone,) = summary['clips']['cat']['removed']
  assert gone['reason'] == 'static' and list(gone['frames']) == [f'{n:05d}' for n in range(24)]
  annotation = {} if source == 'components' else {'annotation': 1}
  assert gone['frames']['00000'] == {'pixels': 14 * 12, **annotation}
  assert summary['clips']['dog']['removed'] == [] and summary['clips']['cat']['instances'] == 48


@pytest.mark.parametrize('given', ['nothing', 'no annotations', 'no images'])
def test_without_instances_the_papers_masks_are_those_given(folders, tmp_path, given):
  content = detections({'cat': scene(), 'dog': scene(10)})
  content |= {'annotations': []} if given != 'nothing' else {}
  content |= {'images': []} if given == 'no images' else {}
  path = None if given == 'nothing' else write_json(tmp_path / 'found.json', content)
  summary = prune_folder(*folders, detections=path)
  assert_equal(read_all(folders[1]), read_all(folders[0]))
  assert all(clip['removed'] == [] for clip in summary['clips'].values())
  assert len(summary['warnings']) == {'nothing': 1, 'no annotations': 0, 'no images': 2}[given]


def test_detections_remove_only_what_the_prediction_holds_and_not_the_target(folders, tmp_path):
  content = detections({'cat': scene(), 'dog': scene(10, small=None)})
  wide = rectangle((40, 60, 158, 42))  # the large object passes in front of it
  for entry in content['annotations'][1:48:2]:
    entry['segmentation'] = rle(wide & rectangle((168, 88, 20, 20)) | rectangle((60, 60, 10, 10)))
  prune_folder(*folders, detections=write_json(tmp_path / 'found.json', content))
  assert_equal(
    {name: mask for name, mask in read_all(folders[1]).items() if name.startswith('cat')},
    {f'cat/{n:05d}': union(one[:1]) for n, one in enumerate(scene())},
  )


def test_soft_maps_are_thresholded_as_the_protocol_does_it(tmp_path):
  # Between the thresholds of both: .5, and the logit .5, which is .622.
  probability = np.where(rectangle((5, 5, 40, 40)), 0.9, np.where(rectangle((60, 5, 40, 40)), 0.6, 0.1))
  write_heatmap(tmp_path / 'maps' / 'cat' / '00000.png', probability)
  write_heatmap(tmp_path / 'maps' / 'cat' / '00001.png', np.full(SHAPE, 20 / 65535))  # no object: one value
  for protocol, least in (('paper', 0.5), ('released', 0.62)):
    summary = prune_folder(tmp_path / 'maps', tmp_path / protocol, protocol=protocol)
    expected = {'cat/00000': probability > least, 'cat/00001': np.zeros(SHAPE, bool)}
    assert_equal(read_all(tmp_path / protocol), expected)
    assert any(text.startswith('soft maps') and text.endswith(': cat') for text in summary['warnings'])


def released_clip(frames: int = 30):
  """Beside a large object that moves, one that stands and two specks that fly past; in absolute pixels."""
  return [
    [(100 + 10 * n, 100, 150, 150), (20, 400, 60, 40), (750 - 20 * n, 30, 12, 12), (750 - 20 * n, 60, 12, 12)]
    for n in range(frames)
  ]


def test_the_released_programs_order_of_operations(tmp_path):
  boxes = released_clip()
  write_masks(tmp_path / 'masks' / 'cat', boxes, DAVIS)
  path = write_json(tmp_path / 'found.json', detections({'cat': boxes}, DAVIS, category=9))
  summary = prune_folder(tmp_path / 'masks', tmp_path / 'out', detections=path, protocol='released')
  entry = summary['clips']['cat']
  assert {one['reason'] for one in entry['removed']} == {'static'} and len(entry['removed']) == 30
  assert entry['removed'][0] == {
    'reason': 'static',
    'box': [20, 400, 80, 440],
    'frames': {'00000': {'pixels': 2400, 'annotation': 1}},
  }
  assert entry['box_filter'] == [] and entry['no_pruning_mask_from'] is None
  # The first frame has no gate; then the specks are outside of it until the large object comes near.
  masks = read_all(tmp_path / 'out')
  np.testing.assert_array_equal(masks['cat/00000'], union([boxes[0][0], *boxes[0][2:]], DAVIS))
  np.testing.assert_array_equal(masks['cat/00001'], union(boxes[1][:1], DAVIS))
  assert entry['gate'][0] == '00001' and summary['target_categories'] == [1, 3]


def test_the_box_filter_works_without_detections_and_before_the_gate(tmp_path):
  boxes = [[(100, 100, 250, 200), (600, 300, 100, 100)]] * 2 + [[(600, 300, 100, 100)]]
  write_masks(tmp_path / 'masks' / 'cat', boxes, DAVIS)
  summary = prune_folder(tmp_path / 'masks', tmp_path / 'out', protocol='released')
  masks = read_all(tmp_path / 'out')
  for frame in ('00000', '00001'):
    np.testing.assert_array_equal(masks[f'cat/{frame}'], union(boxes[0][:1], DAVIS))
  # The gate is that of the box-filtered frame before.
  assert not masks['cat/00002'].any()
  assert summary['clips']['cat']['box_filter'] == ['00000', '00001']
  assert summary['clips']['cat']['gate'] == ['00002'] and summary['source'] is None


def test_heat_maps_of_segment_are_taken_where_both_are_there(tmp_path):
  clip = tmp_path / 'segmented'
  write_masks(clip / 'masks', scene(2, small=None))
  for name in ('00000', '00001'):
    write_heatmap(clip / 'heatmaps' / f'{name}.png', np.where(rectangle(SMALL), 0.7, 0.01))
  (tmp_path / 'several').mkdir()
  clip.rename(tmp_path / 'several' / 'cat')
  for source in (tmp_path / 'several', tmp_path / 'several' / 'cat'):
    prune_folder(source, tmp_path / 'out', protocol='released', overwrite=True)
    assert_equal(read_all(tmp_path / 'out'), {f'cat/{n}': rectangle(SMALL) for n in ('00000', '00001')})
  prune_folder(tmp_path / 'several' / 'cat', tmp_path / 'hard', components=True)
  assert_equal(read_all(tmp_path / 'hard'), {f'cat/{n:05d}': union(one) for n, one in enumerate(scene(2, small=None))})


def test_a_clips_own_folder_goes_with_detections_of_any_name(tmp_path):
  write_masks(tmp_path / 'masks', scene())
  prune_folder(tmp_path / 'masks', tmp_path / 'out', detections=detected(tmp_path, cat=scene()))
  assert_equal(read_all(tmp_path / 'out'), {f'masks/{n:05d}': union(one[:1]) for n, one in enumerate(scene())})


def test_faulty_detections_write_nothing(folders, tmp_path):
  content = detections({'cat': scene(), 'dog': scene(10, small=None)})
  content['annotations'][3]['score'] = float('nan')
  content['images'][2]['file_name'] = 'cat/99999.jpg'
  with pytest.raises(DataError, match=r'images\[2\] .*annotations\[3\] score is nan'):
    prune_folder(*folders, detections=write_json(tmp_path / 'found.json', content))
  assert not folders[1].exists()


def test_all_faulty_masks_are_named_and_nothing_is_written(folders):
  (folders[0] / 'cat' / '00003.png').write_bytes(b'no picture')
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SHAPE, 3), np.uint8)).save(folders[0] / 'dog/00001.png')
  with pytest.raises(DataError, match=r'2 faults in the masks.*cat.00003\.png.*dog.00001\.png'):
    prune_folder(*folders, components=True)
  assert not folders[1].exists()


def test_two_methods_in_one_folder_are_refused(folders):
  Image.fromarray(np.zeros(SHAPE, np.uint8)).save(folders[0] / 'dog' / '00001.bmp')
  with pytest.raises(DataError, match='two masks of one frame'):
    prune_folder(*folders, components=True)
  (folders[0] / 'dog' / '00001.bmp').unlink()
  write_heatmap(folders[0] / 'dog' / '00001.png', np.linspace(0, 1, 50)[None].repeat(9, 0))
  palette = Image.fromarray(np.zeros(SHAPE, np.uint8)).convert('P')
  palette.save(folders[0] / 'dog' / '00002.png')
  with pytest.raises(DataError, match='masks and soft maps in one clip'):
    prune_folder(*folders, components=True)


def test_results_are_replaced_only_when_told_and_only_results_go(folders):
  prune_folder(*folders, components=True)
  with pytest.raises(UsageError, match=r'already holds results.*--overwrite'):
    prune_folder(*folders, components=True)
  (folders[1] / 'notes.txt').write_text('mine')
  (folders[0] / 'dog').rename(folders[0] / 'cow')
  (folders[0] / 'cat' / '00023.png').unlink()
  prune_folder(*folders, components=True, overwrite=True)
  names = read_all(folders[1])
  assert {name.split('/')[0] for name in names} == {'cat', 'cow'} and 'cat/00023' not in names
  assert (folders[1] / 'notes.txt').read_text() == 'mine'


def test_faults_found_with_overwrite_leave_the_earlier_results(folders, tmp_path):
  prune_folder(*folders, components=True)
  before = read_all(folders[1])
  (tmp_path / 'found.json').write_text('{')
  with pytest.raises(DataError, match='not JSON'):
    prune_folder(*folders, detections=tmp_path / 'found.json', overwrite=True)
  assert_equal(read_all(folders[1]), before)
  assert (folders[1] / 'summary.json').exists()


@pytest.mark.parametrize('place', ['.', 'out', 'cat', 'cat/out', '../masks'])
def test_an_output_in_the_input_is_refused(folders, place):
  with pytest.raises(UsageError, match='is or lies in the folder of masks'):
    prune_folder(folders[0], folders[0] / place, components=True)


def test_an_output_that_would_replace_the_input_is_refused(tmp_path):
  write_masks(tmp_path / 'masks', scene(2))
  with pytest.raises(UsageError, match='written over those read'):
    prune_folder(tmp_path / 'masks', tmp_path, components=True)
  (tmp_path / 'file').write_text('')
  with pytest.raises(UsageError, match='no folder'):
    prune_folder(tmp_path / 'masks', tmp_path / 'file', components=True)


def test_other_misuse(folders, tmp_path):
  with pytest.raises(UsageError, match='give one'):
    prune_folder(*folders, components=True, detections=tmp_path / 'found.json')
  with pytest.raises(UsageError, match='unknown protocol'):
    prune_folder(*folders, components=True, protocol='best')
  with pytest.raises(DataError, match='not found'):
    prune_folder(tmp_path / 'none', folders[1], components=True)
  (folders[0] / 'empty').mkdir()
  with pytest.raises(DataError, match=r'clips without masks.*empty'):
    prune_folder(*folders, components=True)


def test_progress_counts_to_its_total(folders):
  told = []
  prune_folder(*folders, components=True, progress=lambda done, total: told.append((done, total)))
  assert told == [(n + 1, 68) for n in range(68)]
