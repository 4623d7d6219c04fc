from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_scenes import instances, rectangle

from adnet_jax.released_filter import filter_instances, keep_largest_box, step

SHAPE = 480, 854
TARGETS = {0, 2}
N = 40

# Beside a large moving object three small ones, one of which stands: three boxes a frame on average are too few.
STANDS = (20, 400, 40, 40)


def clip(frames: int = N, stands=STANDS, others: int = 3, standing: int | None = None):
  boxes = []
  for n in range(frames):
    one = [(100 + 5 * n, 100, 150, 200 + n % 2)]
    one += [stands] if standing is None or n < standing else [(700 - 9 * n, 10, 20, 20)]
    one += [(700 - 8 * n, 30 * k, 20, 20) for k in range(others - 1)]
    boxes.append(one)
  return boxes


def reasons(boxes, classes=None, targets=TARGETS):
  classes = [[9] * len(one) for one in boxes] if classes is None else classes
  found, unmasked = filter_instances(instances(boxes, classes), targets)
  return [found[rows] for rows in instances(boxes).by_frame()], unmasked


def test_a_static_instance_goes_and_nothing_else():
  found, unmasked = reasons(clip())
  assert found == [[None, 'static', None, None]] * N and unmasked is None


def test_three_boxes_a_frame_are_too_few():
  assert reasons(clip(others=2))[0] == [[None] * 3] * N
  one_more = clip(others=2)
  one_more[7].append((500, 5, 10, 10))
  assert reasons(one_more)[0][0] == [None, 'static', None]


@pytest.mark.parametrize(('standing', 'static'), [(28, True), (27, False)])
def test_static_is_more_than_two_fifths_of_a_training_clip_itself_counted(standing, static):
  # .4 x 69.3 = 27.72 boxes, however long the clip is.
  assert (reasons(clip(standing=standing))[0][0][1] == 'static') == static


@pytest.mark.parametrize(('width', 'static'), [(188, True), (188.01, False)])
def test_a_static_instance_has_at_most_47000_pixels_and_is_not_the_largest(width, static):
  boxes = clip(stands=(20, 200, width, 250))
  assert reasons(boxes)[0][5][1] is None  # larger than the moving one
  boxes = [[(100 + 5 * n, 0, 400, 400), *one[1:]] for n, one in enumerate(boxes)]
  assert (reasons(boxes)[0][5][1] == 'static') == static


def suppression(target_class=0, small_class=0, small=(700, 10, 20, 20), frames=N, begins=0):
  """A target that grows, and small ones that jump about so that none of them is static."""
  boxes, classes = [], []
  for n in range(frames):
    width = 150 + n if n >= begins else 30
    jumping = [(300 + 80 * (n % 3) + 11 * k, 400 + 7 * (n % 5), 12, 12) for k in range(2)]
    boxes.append([(310, 100, width, 200), (small[0] + 40 * (n % 3), *small[1:]), *jumping])
    classes.append([target_class, small_class, 5, 5])
  found, unmasked = reasons(boxes, classes)
  return [one[1] for one in found], unmasked


def test_small_ones_of_the_targets_class_are_suppressed():
  found, unmasked = suppression()
  # In the first frame the target is not larger than the N-th largest box of the clip, which is itself.
  assert found == [None] + ['suppressed'] * (N - 1) and unmasked is None
  assert suppression(2, 2)[0] == found


@pytest.mark.parametrize(
  'changes',
  [
    {'target_class': 1, 'small_class': 1},
    {'small_class': 2},
    {'small': (315, 110, 66, 66)},
    {'small': (330, 310, 70, 200)},
  ],
  ids=['neither a person nor a car', 'another class', 'overlaps the target', 'central, and not so small'],
)
def test_what_is_not_suppressed(changes):
  assert set(suppression(**changes)[0]) == {None}


def test_not_so_small_ones_are_suppressed_where_they_are_outlying():
  # As large as in the case before, but right of the middle and far from the target.
  assert suppression(small=(620, 100, 70, 200))[0][1:] == ['suppressed'] * (N - 1)


@pytest.mark.parametrize(('begins', 'unmasked'), [(20, None), (21, 21)])
def test_suppression_that_starts_late_ends_all_pruning(begins, unmasked):
  found, ended = suppression(begins=begins)
  assert ended == unmasked
  assert set(found[begins + 1 :]) == ({'suppressed'} if unmasked is None else {None})


def test_a_frame_of_one_box_or_none_keeps_the_flag():
  boxes = [[(310, 100, 150 + n, 200), (700 + n, 10, 20, 20), *[(3 * n + 50 * k, 450, 9, 9) for k in range(4)]]
           for n in range(N)]  # fmt: skip
  boxes[5], boxes[6] = [], [(310, 100, 150, 200)]
  found, _ = reasons(boxes, [[0] * len(one) for one in boxes])
  assert [len(one) for one in found[5:7]] == [0, 1] and found[6] == [None] and found[7][1] == 'suppressed'


@settings(max_examples=25)
@given(st.data())
def test_the_frames_largest_is_never_removed_and_classless_instances_are_never_suppressed(data):
  box = st.tuples(st.integers(0, 700), st.integers(0, 300), st.integers(1, 150), st.integers(1, 150))
  boxes = data.draw(st.lists(st.lists(box, min_size=3, max_size=6), min_size=1, max_size=6)) * 10
  found, _ = reasons(boxes, [[0] * len(one) for one in boxes])
  for one, why in zip(boxes, found, strict=True):
    sizes = [w * h for _, _, w, h in one]
    assert all(reason is None for reason, size in zip(why, sizes, strict=True) if size == max(sizes))
  classless = filter_instances(instances(boxes), ())[0]
  assert 'suppressed' not in classless


def blobs(*boxes) -> np.ndarray:
  return np.any([rectangle(box, SHAPE) for box in boxes], axis=0)


LARGE, OTHER = (100, 100, 250, 200), (600, 300, 60, 60)


def test_only_the_largest_box_is_kept():
  np.testing.assert_array_equal(keep_largest_box(blobs(LARGE, OTHER), None), blobs(LARGE))


def test_the_box_is_that_of_the_dilated_outline():
  # Too thin to survive the opening; inside the box of the large one, grown by 15 pixels, it stays.
  thin = [(70, 80, 14, 300), (351, 200, 13, 50)]
  expected = blobs(LARGE, (85, 85, 0, 0), thin[1])
  kept = keep_largest_box(blobs(LARGE, OTHER, *thin), None)
  np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize(
  ('boxes', 'kept'),
  [
    ([(0, 0, 200, 182), OTHER], False),  # exactly 40,000 pixels
    ([(0, 0, 200, 182), OTHER, (300, 0, 1, 1)], True),
    ([(0, 0, 400, 241), OTHER], False),  # exactly 100,000
    ([LARGE], False),  # one outline
    ([LARGE, (600, 300, 14, 60)], False),  # the other one falls to the opening
    ([(0, 0, 140, 160), (300, 0, 140, 160), (600, 0, 30, 30)], False),  # the largest has 30,000 or fewer
  ],
)
def test_when_the_box_filter_works(boxes, kept):
  mask = blobs(*boxes)
  assert (np.count_nonzero(keep_largest_box(mask, None)) < np.count_nonzero(mask)) == kept


def test_the_box_has_to_overlap_the_frame_before():
  mask = blobs(LARGE, OTHER)
  apart = blobs((500, 300, 200, 150))
  np.testing.assert_array_equal(keep_largest_box(mask, apart), mask)
  np.testing.assert_array_equal(keep_largest_box(mask, blobs(LARGE)), blobs(LARGE))
  np.testing.assert_array_equal(keep_largest_box(mask, np.ones((9, 9), bool)), blobs(LARGE))


def test_the_gate_follows_the_box_filter_and_its_reference_is_not_gated():
  first, reference = step(blobs(LARGE, OTHER), None)
  np.testing.assert_array_equal(first, blobs(LARGE))
  np.testing.assert_array_equal(reference, blobs(LARGE))
  far = (600, 300, 100, 100)
  mask, reference = step(blobs((100, 100, 100, 100), far), reference)
  np.testing.assert_array_equal(mask, blobs((100, 100, 100, 100)))
  np.testing.assert_array_equal(reference, blobs((100, 100, 100, 100), far))
  mask, _ = step(blobs(far), reference)
  np.testing.assert_array_equal(mask, blobs(far))
