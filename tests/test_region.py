from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adnet_jax.metrics import jaccard

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape)))


@given(PAIRS)
def test_jaccard_is_the_ratio_of_pixel_sets(pair):
  prediction, truth = pair
  ours = {tuple(pixel) for pixel in np.argwhere(prediction)}
  theirs = {tuple(pixel) for pixel in np.argwhere(truth)}
  expected = len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0
  assert jaccard(prediction, truth) == expected


@given(PAIRS)
def test_jaccard_is_symmetric_in_range_and_one_only_for_equal_masks(pair):
  score = jaccard(*pair)
  assert 0 <= score <= 1
  assert score == jaccard(*reversed(pair))
  assert (score == 1) == np.array_equal(*pair)


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (7, 1), (5, 6)])
def test_empty_and_full_masks(shape):
  empty, full = np.zeros(shape, bool), np.ones(shape, bool)
  assert jaccard(empty, empty) == 1
  assert jaccard(full, full) == 1
  assert jaccard(empty, full) == 0
  assert jaccard(full, empty) == 0


def test_masks_of_labels_or_of_unlike_shapes_are_refused():
  mask = np.zeros((3, 4), bool)
  with pytest.raises(ValueError, match='bool'):
    jaccard(mask.astype(np.uint8), mask)
  with pytest.raises(ValueError, match='shape'):
    jaccard(mask, mask.T)
  with pytest.raises(ValueError, match='shape'):
    jaccard(mask[0], mask[0])
