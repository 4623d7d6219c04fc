from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_scenes import rle

from adnet_jax.errors import UsageError
from adnet_jax.run_lengths import BrokenMask, decode_counts, import_pycocotools, read_segmentation

MASK = np.zeros((6, 8), bool)
MASK[1:4, 2:7] = True


def runs_of(mask: np.ndarray) -> list[int]:
  """Runs down the columns, background first."""
  flat = mask.ravel(order='F')
  edges = np.flatnonzero(np.diff(flat)) + 1
  runs = np.diff([0, *edges, flat.size]).tolist()
  return [0, *runs] if flat[0] else runs


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.5, 0.99]))
def test_every_mask_comes_back(h, w, seed, share):
  mask = np.random.default_rng(seed).random((h, w)) < share
  mask[0, -1] = True
  assert decode_counts(rle(mask)['counts']).tolist() == runs_of(mask)
  for segmentation in (rle(mask), {'size': [h, w], 'counts': runs_of(mask)}):
    read = read_segmentation(segmentation, (h, w))
    np.testing.assert_array_equal(read.mask(), mask)
    assert read.area == np.count_nonzero(mask) and read.mask().dtype == np.bool_


@given(st.data())
def test_a_damaged_text_is_refused_or_still_covers_the_image(data):
  # What passes goes to compiled code, which checks nothing.
  text = list(rle(np.random.default_rng(0).random((12, 16)) < 0.3)['counts'])
  for _ in range(data.draw(st.integers(1, 3))):
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] = data.draw(st.characters(min_codepoint=48, max_codepoint=111) | st.characters())
  text = ''.join(text)[: data.draw(st.integers(1, len(text)))]
  try:
    read = read_segmentation({'size': [12, 16], 'counts': text}, (12, 16))
  except BrokenMask:
    return
  assert np.count_nonzero(read.mask()) == read.area == decode_counts(text)[1::2].sum()


@pytest.mark.parametrize(
  ('segmentation', 'said'),
  [
    (None, 'neither'),
    ('abc', 'neither'),
    ({}, 'without size'),
    ({'size': [6, 8]}, 'neither a text nor a list'),
    ({'size': [6], 'counts': '0'}, 'without size'),
    ({'size': [True, 8], 'counts': '0'}, 'without size'),
    ({'size': [8, 6], 'counts': rle(MASK.T)['counts']}, 'mask of 6x8 for an image of 8x6'),
    ({'size': [6, 8], 'counts': ''}, 'or nothing'),
    ({'size': [6, 8], 'counts': '\x00'}, 'none of its code'),
    ({'size': [6, 8], 'counts': 'é'}, 'none of its code'),
    ({'size': [6, 8], 'counts': rle(MASK)['counts'] + 'o'}, 'cut off'),
    ({'size': [6, 8], 'counts': rle(MASK)['counts'][:-1]}, 'broken RLE'),
    ({'size': [6, 8], 'counts': 'oooooooooo0'}, 'more than 29 bits'),
    ({'size': [6, 8], 'counts': '@0'}, 'negative run'),
    ({'size': [6, 8], 'counts': [49]}, 'cover 49 of 48'),
    ({'size': [6, 8], 'counts': []}, 'cover 0 of 48'),
    ({'size': [6, 8], 'counts': [-1, 49]}, 'neither a text nor'),
    ({'size': [6, 8], 'counts': [True, 47]}, 'neither a text nor'),
    ({'size': [6, 8], 'counts': [48.0]}, 'neither a text nor'),
    ({'size': [6, 8], 'counts': [2**70]}, 'neither a text nor'),
    ({'size': [6, 8], 'counts': [48]}, 'area 0'),
    ([], 'empty'),
    ([[1, 1, 5, 1]], 'fewer than three corners'),
    ([[1, 1, 5, 1, 5, 4, 2]], 'odd number'),
    ([[1, 1, 5, 1, 5, float('nan')]], 'no number'),
    ([[1, 1, 5, 1, 5, '4']], 'no number'),
    ([[1, 1, 1e9, 1, 5, 4]], 'outside of the image of 8x6'),
    ([[1, 1, 1, 1, 1, 1]], 'area 0'),
  ],
)  # fmt: skip
def test_every_fault_is_said(segmentation, said):
  with pytest.raises(BrokenMask, match=said):
    read_segmentation(segmentation, (6, 8))


def test_polygons_are_drawn_and_merged():
  read = read_segmentation([[2, 1, 7, 1, 7, 4, 2, 4], [0, 5, 1, 5, 1, 6, 0, 6]], (6, 8))
  expected = MASK.copy()
  expected[5, 0] = True
  np.testing.assert_array_equal(read.mask(), expected)


def test_without_pycocotools_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'pycocotools', None)
  with pytest.raises(UsageError, match=r"pip install 'adnet-jax\[prune\]'"):
    import_pycocotools()
