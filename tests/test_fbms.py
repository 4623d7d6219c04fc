"""FBMS' sequences in both layouts: regions, background, certainty, splits, and every mistake in them by name."""

from __future__ import annotations

import logging
import shutil

import cv2
import numpy as np
import pytest
import sets
from sets import CYAN, RED, WHITE

from adnet_jax.data import datasets, fbms
from adnet_jax.errors import DataError


def truth_of(folder, number):
  return fbms.sequence_truths(folder)[f'{folder.name}_{number + 1:02d}']


def test_colours_with_certainty(tmp_path):
  folder = sets.write_fbms(tmp_path / 'ducks09')
  definition = fbms.read_definition(folder)
  assert definition.name == 'ducks09' and definition.regions == (WHITE, CYAN, RED) and definition.background == 0
  assert [annotation.frame for annotation in definition.frames] == ['ducks09_01', 'ducks09_03', 'ducks09_05']
  for number in (0, 2, 4):
    truth = truth_of(folder, number)
    np.testing.assert_array_equal(truth.regions(), sets.regions(number))
    image = truth.load()
    np.testing.assert_array_equal(image.regions(), sets.regions(number))
    np.testing.assert_array_equal(image.truth(), sets.regions(number) > 0)
    certainty = image.certainty()
    assert certainty.dtype == np.float32 and set(np.unique(certainty)) == {np.float32(0.4), np.float32(1)}
    assert truth.stem == f'ducks09_{number + 1:02d}'


def test_the_older_layout_has_its_background_at_0_and_several_objects_that_are_merged(tmp_path):
  folder = sets.write_bms(tmp_path / 'cars77')
  definition = fbms.read_definition(folder)
  assert definition.regions == (0, 255, 204) and definition.background == 0
  truth = truth_of(folder, 3)
  np.testing.assert_array_equal(truth.regions(), sets.regions(3))
  np.testing.assert_array_equal(truth.load().mask(), sets.regions(3) > 0)
  assert truth.certainty() is None


def test_white_is_background_wherever_it_is_listed(tmp_path):
  folder = sets.write_fbms(tmp_path / 'a', scales=(RED, WHITE, CYAN))
  regions = truth_of(folder, 0).regions()
  np.testing.assert_array_equal(regions, np.array([1, 0, 2])[sets.regions(0)])


@pytest.mark.parametrize('certain', ['{0}_gt.pgm', '{0}.pgm'])
def test_a_pgm_beside_a_ppm_is_its_certainty(tmp_path, certain):
  folder = sets.write_fbms(tmp_path / 'a')
  for path in (folder / 'GroundTruth').glob('*.pgm'):
    path.rename(path.with_name(certain.format(path.stem.removesuffix('_gt'))))
  cv2.imwrite(str(folder / 'GroundTruth' / 'a_01_PROB_gt.ppm'), np.zeros((3, 3, 3), np.uint8))  # as in the published
  assert truth_of(folder, 0).certainty().min() == np.float32(0.4)
  for path in (folder / 'GroundTruth').glob('*.pgm'):
    path.unlink()
  assert truth_of(folder, 0).certainty() is None


def test_clips_are_sparse_and_have_their_frames_in_order(tmp_path):
  sets.write_fbms(tmp_path / 'b', labelled=(0, 4), total=12)
  sets.write_bms(tmp_path / 'a')
  assert datasets.kind_of(tmp_path) == 'fbms59'
  assert datasets.split(tmp_path, 'train') == datasets.split(tmp_path, 'val') == ['a', 'b']
  clips = datasets.read_clips(tmp_path, ['a', 'b'], need_masks=True)
  assert [clip.annotated for clip in clips] == [[0, 3], [0, 4]] and all(clip.sparse for clip in clips)
  assert [frame.stem for frame in clips[1].frames] == [f'b_{k:02d}' for k in range(1, 13)]
  datasets.check_pairs(clips)  # frames without a mask are not missing
  truth = datasets.truth_of(tmp_path)
  assert list(truth) == ['a', 'b'] and list(truth['b']) == ['b_01', 'b_05']
  image, mask = datasets.read_pair(clips[1].frames[4], clips[1].masks[4])
  assert image.shape[:2] == mask.shape and set(np.unique(mask)) == {0, 1}


@pytest.mark.parametrize('train', ['Trainingset', 'TrainSet', 'TrainingSet/Data'])
def test_folders_decide_the_split(tmp_path, train):
  sets.write_fbms(tmp_path / train / 'one')
  sets.write_bms(tmp_path / train.replace('Training', 'Test').replace('Train', 'Test') / 'two')
  assert datasets.split(tmp_path, 'train') == ['one'] and datasets.split(tmp_path, 'val') == ['two']
  assert datasets.split(tmp_path / train, 'train') == ['one']
  assert fbms.find_sequences(tmp_path / train / 'one') == {'one': tmp_path / train / 'one'}
  assert list(datasets.truth_of(tmp_path, 'val')) == ['two']


def test_the_official_lists_decide_where_both_are_there(tmp_path, caplog):
  assert len(fbms.TRAIN) == 29 and len(fbms.TEST) == 30 and not set(fbms.TRAIN) & set(fbms.TEST)
  for name in ('cars5', 'cars10', 'cars2', 'mine'):
    sets.write_bms(tmp_path / name)
  with caplog.at_level(logging.WARNING):
    assert datasets.split(tmp_path, 'val') == ['cars5', 'cars10']
  assert 'neither official list, left out: mine' in caplog.text
  assert datasets.split(tmp_path, 'train') == ['cars2']
  shutil.rmtree(tmp_path / 'cars2')  # as in BMS-26, which has no split
  assert datasets.split(tmp_path, 'train') == datasets.split(tmp_path, 'val') == ['cars5', 'cars10', 'mine']


def test_two_sequences_of_one_name(tmp_path):
  sets.write_bms(tmp_path / 'Testset' / 'a')
  sets.write_bms(tmp_path / 'Trainingset' / 'a')
  with pytest.raises(DataError, match=r'two sequences are called a \(.*Testset/a and .*Trainingset/a'):
    fbms.find_sequences(tmp_path)


def replace(old, new, count=1):
  return lambda text: text.replace(old, new, count)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (replace('regions:\n3', 'regions:\nthree'), r"'three', not a number from 1 to 256"),
    (replace('regions:\n3', 'regions:\n4'), r'expected "Scale of region 3", found \'Confusion penality matrix:\''),
    (replace('regions:\n3', 'regions:\n2'), r'expected "Confusion penality matrix", found \'Scale of region 2:\''),
    (replace(str(RED), str(CYAN)), r'regions 1 and 2 have the same colour \(0, 255, 255\)'),
    (replace(str(RED), '99999999'), r'"Scale of region 2" is \'99999999\''),
    (replace('shot:\n3', 'shot:\n4'), r'expected "Frame number", found the end'),
    (replace('shot:\n3', 'shot:\n2'), r'more than the 2 labelled frames that it announces'),
    (replace('number:\n2', 'number:\n5'), r'"Frame number" is \'5\', not a number from 0 to 4'),
    (replace('number:\n2', 'number:\n0'), r'frame 0 is listed twice'),
    (replace('a_03.ppm', 'a_01.ppm'), r'frames annotated twice: a_01'),
    (replace('a_03_gt.ppm', 'a_33_gt.ppm'), r'ground-truth files missing: a_33_gt\.ppm \(frame 2\)'),
    (lambda text: text[:120], r'has no value'),
    (lambda text: '', r'expected "Total number of regions", found the end'),
  ],
)
def test_mistakes_in_the_definition_are_named(tmp_path, change, message):  # fault 65
  folder = sets.write_fbms(tmp_path / 'a')
  path = folder / 'GroundTruth' / 'aDef.dat'
  path.write_text(change(path.read_text()))
  with pytest.raises(DataError, match=message) as raised:
    fbms.read_definition(folder)
  assert 'aDef.dat' in str(raised.value)


def test_files_that_are_missing_or_too_many(tmp_path):  # fault 65
  folder = sets.write_fbms(tmp_path / 'a')
  for name in ('a_01_gt.ppm', 'a_05_gt.ppm', 'a_03_gt.pgm'):
    (folder / 'GroundTruth' / name).unlink()
  with pytest.raises(DataError, match=r'missing: a_01_gt\.ppm \(frame 0\), a_05_gt\.ppm \(frame 4\)'):
    fbms.read_definition(folder)
  other = sets.write_fbms(tmp_path / 'b')
  (other / 'GroundTruth' / 'b_03_gt.pgm').unlink()
  with pytest.raises(DataError, match=r'missing: the certainty map of b_03_gt\.ppm'):
    fbms.read_definition(other)
  shutil.copy(other / 'GroundTruth' / 'bDef.dat', other / 'cDef.dat')
  with pytest.raises(DataError, match=r'2 definition files .*bDef\.dat, .*cDef\.dat'):
    fbms.read_definition(other)
  for path in other.rglob('*Def.dat'):
    path.unlink()
  assert 'b' in fbms.find_sequences(tmp_path)
  with pytest.raises(DataError, match=r'no definition file \(.*/b\): bDef\.dat'):
    fbms.read_definition(other)


@pytest.mark.parametrize('kind', ['ppm', 'pgm'])
def test_a_colour_of_no_region_is_named_with_file_and_frame(tmp_path, kind):  # fault 65
  folder = sets.write_fbms(tmp_path / 'a') if kind == 'ppm' else sets.write_bms(tmp_path / 'a')
  path = folder / 'GroundTruth' / ('a_01_gt.ppm' if kind == 'ppm' else 'a_01.pgm')
  labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
  labels[0, :2] = (0, 128, 255) if kind == 'ppm' else 7
  cv2.imwrite(str(path), labels)
  colour = r'\(255, 128, 0\)' if kind == 'ppm' else '7'
  with pytest.raises(
    DataError, match=rf'colour of no region: {colour} \(2 pixels\).*{path.name}, frame a_01\)'
  ) as error:
    truth_of(folder, 0).load()
  assert 'aDef.dat are 0: ' in str(error.value)


def test_damaged_and_unfitting_maps_are_named(tmp_path):
  folder = sets.write_fbms(tmp_path / 'a')
  (folder / 'GroundTruth' / 'a_01_gt.ppm').write_bytes(b'P6\n40 24\n255\nshort')
  with pytest.raises(DataError, match=r'ground truth cannot be read: .*a_01_gt\.ppm'):
    truth_of(folder, 0).load()
  cv2.imwrite(str(folder / 'GroundTruth' / 'a_03_gt.ppm'), np.full((5, 6, 3), 255, np.uint8))
  clip = fbms.read(tmp_path, ['a'])[0]
  with pytest.raises(
    DataError, match=r'2 training frames or masks cannot be used: .*a_01.*frame is 40x24 but its mask is 6x5'
  ):
    datasets.check_pairs([clip])


def test_frames_are_found_by_label_or_position_where_the_name_in_the_definition_is_another(tmp_path):
  folder = sets.write_fbms(tmp_path / 'a')
  path = folder / 'GroundTruth' / 'aDef.dat'
  path.write_text(path.read_text().replace('a_03.ppm', 'tennis003.ppm'))
  assert [annotation.frame for annotation in fbms.read_definition(folder).frames] == ['a_01', 'a_03', 'a_05']
  for number in range(5):
    (folder / f'a_{number + 1:02d}.jpg').rename(folder / f'{number:05d}.jpg')
  assert [annotation.frame for annotation in fbms.read_definition(folder).frames] == ['00000', '00002', '00004']


def test_frames_may_be_missing_but_not_all(tmp_path):
  folder = sets.write_fbms(tmp_path / 'a')
  (folder / 'a_03.jpg').unlink()
  (clip,) = fbms.read(tmp_path, ['a'])
  assert clip.annotated == [0, 3] and list(fbms.truths(tmp_path)['a']) == ['a_01', 'a_03', 'a_05']
  for path in folder.glob('*.jpg'):
    path.unlink()
  with pytest.raises(DataError, match='sequence without frames'):
    fbms.read(tmp_path, ['a'])
  with pytest.raises(DataError, match='no FBMS sequence'):
    fbms.split(tmp_path / 'a' / 'GroundTruth' / 'nowhere', 'test')


@pytest.mark.shared_data
def test_background_of_published_sequences_of_the_older_layout(shared):
  truth = datasets.truth_of(shared / 'data' / 'BMS26')
  assert {name: len(frames) for name, frames in truth.items()} == {'cars5': 4, 'marple4': 5}
  cars, marple = truth['cars5']['cars5_36'].load(), truth['marple4']['marple4_343'].load()
  assert set(np.unique(cars.regions())) == {0, 1, 2, 3}
  # Looked at: three moving cars before the street, and a woman who fills the middle of the picture.
  assert cars.truth().mean() == pytest.approx(0.0824, abs=1e-4) and not cars.truth()[:180].any()
  assert (
    marple.truth()[150, 175] and not marple.truth()[0].any() and marple.truth().mean() == pytest.approx(0.295, abs=1e-3)
  )
