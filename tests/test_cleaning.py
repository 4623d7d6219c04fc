"""Small leftovers, flicker and one object of several: functions of masks, and the pipeline's filters around them."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest

from adnet_jax import cleaning, objects, postprocess, smoothing
from adnet_jax.cleaning import Cleaning
from adnet_jax.errors import DataError, UsageError
from adnet_jax.pipeline import Item, Outputs
from adnet_jax.sources import Frame


def mask(*boxes: tuple[int, int, int, int]) -> np.ndarray:
  """(60, 80) bool, foreground in boxes x1, y1, x2, y2."""
  result = np.zeros((60, 80), bool)
  for x1, y1, x2, y2 in boxes:
    result[y1:y2, x1:x2] = True
  return result


class Clip:
  """A source of grey frames, which counts how often it is read."""

  def __init__(self, count: int):
    self.count, self.reads = count, 0

  def copy(self) -> Clip:
    return self

  def __iter__(self):
    self.reads += 1
    for index in range(self.count):
      yield Frame(f'{index:05d}', index, np.full((60, 80, 3), index, np.uint8))


def items(masks, shots=None, soft=False, exists=()):
  for (index, one), frame in zip(enumerate(masks), Clip(len(masks)), strict=True):
    probability = np.where(one, np.float32(0.9), np.float32(0.1)) if soft else None
    yield Item(frame, one, probability, index in exists, 0 if shots is None else shots[index])


def test_components_below_a_share_of_the_picture_go():
  whole = mask((2, 2, 20, 20), (40, 40, 44, 46))
  kept = postprocess.without_small(whole, 24 / 4800)
  np.testing.assert_array_equal(kept, whole)
  np.testing.assert_array_equal(postprocess.without_small(whole, 25 / 4800), mask((2, 2, 20, 20)))
  assert not postprocess.without_small(mask(), 0.1).any()
  diagonal = np.eye(60, 80, dtype=bool)  # its pixels touch at corners only
  np.testing.assert_array_equal(postprocess.without_small(diagonal, 0.01), diagonal)


def test_what_flashes_up_goes_what_blinks_comes_back_and_outlines_stay():
  body = [(10 + 2 * k, 10, 30 + 2 * k, 30) for k in range(3)]
  second = (60, 40, 70, 50)
  shown = [mask(body[0], second), mask(body[1], (2, 40, 8, 50)), mask(body[2], second)]
  np.testing.assert_array_equal(smoothing.steady(shown, 1), mask(body[1], second))
  # One neighbour cannot tell which of the two is wrong, and what has left the picture must not be drawn on.
  np.testing.assert_array_equal(smoothing.steady(shown[:2], 0), shown[0])
  np.testing.assert_array_equal(smoothing.steady(shown[:1], 0), shown[0])
  left = [mask(body[0], second), mask(body[1], second), mask(body[2])]
  np.testing.assert_array_equal(smoothing.steady(left, 2), left[2])


@pytest.mark.parametrize('window', [3, 5, 9])
@pytest.mark.parametrize('count', [1, 2, 4, 7])
def test_windows_are_centred_and_end_with_shot_and_clip(monkeypatch, window, count):
  seen = []
  monkeypatch.setattr(
    smoothing, 'steady', lambda masks, at: seen.append(([int(m.sum()) for m in masks], at)) or masks[at]
  )
  masks = [mask((0, 0, k + 1, 1)) for k in range(2 * count)]
  shots = [0] * count + [1] * count
  out = list(cleaning.steady(items(masks, shots), window))
  assert [item.frame.index for item in out] == list(range(2 * count))
  half = window // 2
  for k, (sizes, at) in enumerate(seen):
    start = k // count * count
    around = [j for j in range(k - half, k + half + 1) if start <= j < start + count]
    assert [size - 1 for size in sizes] == around and around[at] == k


def test_smoothing_looks_half_a_window_ahead_and_no_further():
  read = []

  def given():
    for item in items([mask((0, 0, 5, 5))] * 9):
      read.append(item.frame.index)
      yield item

  out = cleaning.steady(given(), 3)
  assert next(out).frame.index == 0 and read == [0, 1]
  assert next(out).frame.index == 1 and read == [0, 1, 2]


def test_pieces_that_lie_close_are_one():
  labels, boxes, areas = objects.pieces(mask((10, 10, 20, 20), (21, 10, 30, 20), (50, 40, 54, 44)))
  assert boxes.tolist() == [[10, 10, 30, 20], [50, 40, 54, 44]] and areas.tolist() == [190, 16]
  assert labels.max() == 2 and not labels[:, 20].any()
  assert len(objects.pieces(mask())[1]) == 0


def test_tracks_are_ranked_by_all_of_their_pixels():
  # The second object is larger in one frame, and smaller in the clip.
  big, small = [(2, 2, 22, 22)] * 5, [(40, 30, 50, 40)] * 4 + [(38, 28, 60, 52)]
  found = [objects.pieces(mask(a, b)) for a, b in zip(big, small, strict=True)]
  boxes, areas = [one[1] for one in found], [one[2] for one in found]
  assert objects.choose(boxes, areas, 1) == [0, 0, 0, 0, 1]
  assert objects.choose(boxes, areas, 2) == [1, 1, 1, 1, 0]
  assert objects.choose(boxes, areas, 3) == [-1] * 5
  assert objects.choose([np.zeros((0, 4))], [np.zeros(0)], 1) == [-1]


def test_one_object_of_each_shot_with_frames_read_again_and_nothing_kept():
  large, small = mask((2, 2, 30, 30)), mask((40, 30, 50, 40))
  masks = [large | small] * 3 + [mask((60, 40, 75, 58)) | small] * 2 + [mask()]
  clip = Clip(6)
  out = list(cleaning.one_object(items(masks, [0, 0, 0, 1, 1, 1], soft=True), clip, 1))
  assert clip.reads == 1
  for k, item in enumerate(out):
    expected = [large, large, large, mask((60, 40, 75, 58)), mask((60, 40, 75, 58)), mask()][k]
    np.testing.assert_array_equal(item.mask, expected)
    assert item.frame.index == k and item.frame.image[0, 0, 0] == k and item.mask.dtype == bool
    # Probabilities stay what the network said.
    np.testing.assert_allclose(item.probability, np.where(masks[k], 0.9, 0.1), atol=1e-5)
  (none,) = cleaning.one_object(items([large]), Clip(1), 2)
  assert not none.mask.any()


def test_a_full_disk_below_waiting_masks_is_said(monkeypatch):
  class Full:
    def __enter__(self):
      return self

    def __exit__(self, *_):
      pass

    def tell(self):
      return 0

    def write(self, _):
      raise OSError(28, 'No space left on device')

  monkeypatch.setattr(tempfile, 'TemporaryFile', lambda **_: Full())
  with pytest.raises(DataError, match=r'No space left.*TMPDIR'):
    list(cleaning.one_object(items([mask((1, 1, 5, 5))]), Clip(1), 1))


def test_filters_are_those_asked_for_in_order_and_leave_what_exists():
  speck = (40, 40, 42, 42)
  masks = [mask((2, 2, 20, 20), speck)] * 4
  source = Clip(4)
  assert Cleaning().filters(source, Outputs()) == []
  chain = items(masks, exists=(0, 1))
  for change in Cleaning(min_area=0.01, smooth=3).filters(source, Outputs(resume=True)):
    chain = change(chain)
  out = list(chain)
  assert [bool(item.mask[40, 40]) for item in out] == [True, True, False, False]


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [({'min_area': 1.5}, 'share'), ({'smooth': 4}, 'odd'), ({'smooth': 0}, 'odd'), ({'object': 0}, 'largest')],
)
def test_values_out_of_range_are_refused(arguments, said):
  with pytest.raises(UsageError, match=said):
    Cleaning(**arguments)


def test_one_object_of_a_resumed_clip_is_refused():
  with pytest.raises(UsageError, match='resume'):
    Cleaning(object=1).filters(Clip(1), Outputs(resume=True))
