from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from adnet_jax.errors import DataError
from adnet_jax.masks import list_masks, load_mask_image, natural_key, read_mask

MASK = np.zeros((6, 9), bool)
MASK[1:4, 2:7] = True


def palette_image(indices: np.ndarray, colours: list[int]) -> Image.Image:
  image = Image.fromarray(indices.astype(np.uint8))
  image.putpalette(colours)
  return image


STORED = {
  '1 bit': Image.fromarray(MASK),
  '0 and 1': Image.fromarray(MASK.astype(np.uint8)),
  '0 and 255': Image.fromarray(MASK.astype(np.uint8) * 255),
  '0 and 128': Image.fromarray(MASK.astype(np.uint8) * 128),
  '16 bit': Image.fromarray(MASK.astype(np.uint16) * 65535),
  'palette': palette_image(MASK, [0, 0, 0, 128, 0, 0]),
  'palette with a white background': palette_image(MASK, [255, 255, 255, 0, 0, 0]),
  'palette of several objects': palette_image(MASK * 1 + (np.arange(9) > 4) * MASK, [0, 0, 0, 128, 0, 0, 0, 128, 0]),
  'grey as RGB': Image.fromarray(np.repeat(MASK[..., None] * np.uint8(255), 3, 2)),
  'red on black': Image.fromarray(MASK[..., None] * np.array([255, 0, 0], np.uint8)),
  'opaque alpha': Image.fromarray(MASK.astype(np.uint8) * 255).convert('LA'),
}


@pytest.mark.parametrize('form', STORED)
def test_every_way_to_store_a_mask(tmp_path, form):
  path = tmp_path / 'mask.png'
  STORED[form].save(path)
  mask = read_mask(path)
  assert mask.dtype == bool
  np.testing.assert_array_equal(mask, MASK)
  np.testing.assert_array_equal(load_mask_image(path).truth(), MASK)


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)), st.sampled_from([1, 255]))
def test_masks_survive_being_stored(tmp_path_factory, mask, level):
  path = tmp_path_factory.getbasetemp() / 'any.png'
  Image.fromarray(mask.astype(np.uint8) * level).save(path)
  np.testing.assert_array_equal(read_mask(path), mask)


@pytest.mark.parametrize('level', [0, 1, 255])
def test_pictures_of_one_value_are_empty_or_full(tmp_path, level):
  Image.fromarray(np.full((4, 5), level, np.uint8)).save(tmp_path / 'mask.png')
  np.testing.assert_array_equal(read_mask(tmp_path / 'mask.png'), np.full((4, 5), level > 0))


@pytest.mark.parametrize('levels', [[0, 100, 255], [100, 200]])
def test_soft_maps_need_a_threshold(tmp_path, levels):
  values = np.resize(levels, (4, 6)).astype(np.uint8)
  Image.fromarray(values).save(tmp_path / 'soft.png')
  with pytest.raises(DataError, match=r'soft map.*soft\.png.*--threshold'):
    read_mask(tmp_path / 'soft.png')
  np.testing.assert_array_equal(read_mask(tmp_path / 'soft.png', 0.5), values > 127)


def test_a_grey_ramp_in_a_palette_is_a_soft_map(tmp_path):
  ramp = [level for level in range(256) for _ in range(3)]
  values = np.resize([0, 100, 255], (3, 6))
  palette_image(values, ramp).save(tmp_path / 'soft.png')
  with pytest.raises(DataError, match='soft map'):
    read_mask(tmp_path / 'soft.png')
  np.testing.assert_array_equal(read_mask(tmp_path / 'soft.png', 0.5), values == 255)


def test_heat_maps_of_every_kind_agree(tmp_path):
  probability = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
  Image.fromarray(np.round(probability * 255).astype(np.uint8)).save(tmp_path / '8.png')
  Image.fromarray(np.round(probability * 65535).astype(np.uint16)).save(tmp_path / '16.png')
  np.savez(tmp_path / 'float.npz', probability=probability)
  for name in ('8.png', '16.png', 'float.npz'):
    np.testing.assert_array_equal(read_mask(tmp_path / name, 0.7001), probability > 0.7001)


def test_the_threshold_itself_is_background(tmp_path):
  np.savez(tmp_path / 'map.npz', probability=np.array([[0.25, 0.5, 0.75]], np.float32))
  np.testing.assert_array_equal(read_mask(tmp_path / 'map.npz', 0.5), [[False, False, True]])


@pytest.mark.parametrize('values', [[[0.5, np.nan]], [[0.5, 1.5]], [0.5]])
def test_arrays_that_are_no_probabilities_are_refused(tmp_path, values):
  np.savez(tmp_path / 'map.npz', probability=np.array(values, np.float32))
  with pytest.raises(DataError, match=r'map\.npz'):
    read_mask(tmp_path / 'map.npz', 0.5)


def test_arrays_under_another_key_are_refused(tmp_path):
  np.savez(tmp_path / 'map.npz', mask=MASK)
  with pytest.raises(DataError, match=r'map\.npz'):
    read_mask(tmp_path / 'map.npz', 0.5)


def test_photographs_and_transparency_are_refused(tmp_path):
  photograph = np.random.default_rng(0).integers(0, 255, (30, 30, 3), np.uint8)
  Image.fromarray(photograph).save(tmp_path / 'photo.png')
  for read in (read_mask, lambda path: read_mask(path, 0.5), lambda path: load_mask_image(path).truth()):
    with pytest.raises(DataError, match='colour picture'):
      read(tmp_path / 'photo.png')
  Image.fromarray(np.dstack([photograph, photograph[..., :1]])).save(tmp_path / 'clear.png')
  with pytest.raises(DataError, match='transparency'):
    read_mask(tmp_path / 'clear.png')


def test_levels_of_more_than_16_bits_are_refused(tmp_path):
  Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / 'deep.tif')
  with pytest.raises(DataError, match=r'deep\.tif'):
    read_mask(tmp_path / 'deep.tif')


def test_missing_and_damaged_files_are_named(tmp_path):
  with pytest.raises(DataError, match=r'file missing .*none\.png'):
    read_mask(tmp_path / 'none.png')
  Image.fromarray(np.random.default_rng(0).integers(0, 2, (60, 60), np.uint8)).save(tmp_path / 'whole.png')
  data = (tmp_path / 'whole.png').read_bytes()
  flipped = bytearray(data)
  flipped[len(data) // 2] ^= 255
  for damaged in (b'', b'text', data[: len(data) // 2], data[:-20], bytes(flipped)):
    (tmp_path / 'bad.png').write_bytes(damaged)
    with pytest.raises(DataError, match=r'cannot be read.*bad\.png'):
      read_mask(tmp_path / 'bad.png')
  np.savez_compressed(tmp_path / 'whole.npz', probability=np.random.default_rng(0).random((9, 9)))
  data = (tmp_path / 'whole.npz').read_bytes()
  for damaged in (b'', b'PK nothing', *(data[:length] for length in range(1, len(data), 31)), data[:200] + data[210:]):
    (tmp_path / 'bad.npz').write_bytes(damaged)
    with pytest.raises(DataError, match=r'bad\.npz'):
      read_mask(tmp_path / 'bad.npz', 0.5)


def test_folders_list_masks_in_natural_order(tmp_path):
  for name in ('10.png', '2.PNG', '.hidden.png', 'notes.txt', '1.npz'):
    (tmp_path / name).touch()
  assert list(list_masks(tmp_path)) == ['1', '2', '10']


@given(st.lists(st.text(st.sampled_from('ab019_é'), max_size=6), unique=True))
def test_natural_order_is_total(names):
  ordered = sorted(names, key=natural_key)
  assert ordered == sorted(reversed(names), key=natural_key)
  assert sorted(['10', '2', '02', '1a', '1'], key=natural_key) == ['1', '1a', '02', '2', '10']
