from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_scenes import SHAPE, SMALL, instances, rectangle, scene, union

from adnet_jax.instances import components, find_target, prune, pruning_mask


def removed_frames(boxes, which: int = 1) -> list[int]:
  """Frames in which the frame's instance `which` is removed; all others have to be kept."""
  pruned = prune(instances(boxes))
  rows = list(instances(boxes).by_frame())
  assert not any(pruned.removed[r.start + k] for r in rows for k in range(r.stop - r.start) if k != which)
  return [n for n, r in enumerate(rows) if r.stop - r.start > which and pruned.removed[r.start + which]]


def jittered(boxes, seed: int = 0):
  shift = np.random.default_rng(seed)
  return [[tuple(int(value) for value in np.array(box) + shift.integers(-1, 2, 4)) for box in one] for one in boxes]


@pytest.mark.parametrize(
  'boxes',
  [
    scene(),
    jittered(scene()),
    jittered(scene(), 1),
    scene(speed=0),
    scene(pan=0.2),
    [[(x - 2 * n, y, w + 2 * n, h) for x, y, w, h in one[:1]] + one[1:] for n, one in enumerate(scene())],
  ],
  ids=['plain', 'jitter', 'another jitter', 'the large one stands too', 'slow pan', 'the large one grows'],
)
def test_a_small_static_instance_goes_in_every_frame_and_the_large_one_stays(boxes):
  assert removed_frames(boxes) == list(range(24))
  pruned = prune(instances(boxes))
  assert set(pruned.reasons.values()) == {'static'}


def test_what_a_fast_pan_leaves_behind_is_brief():
  boxes = scene(pan=14, small=(160, 90, 30, 12))
  assert removed_frames(boxes) == [n for n, one in enumerate(boxes) if len(one) == 2]
  assert list(prune(instances(boxes)).reasons.values()) == ['brief']


def test_a_small_one_that_drifts_through_the_view_for_most_of_the_clip_counts_as_moving():
  assert removed_frames(scene(pan=5)) == []


def test_a_small_instance_that_moves_through_the_whole_clip_stays():
  boxes = [[one[0], (150 - 5 * n, 90, 14, 12)] for n, one in enumerate(scene())]
  assert prune(instances(boxes)).reasons == {} and removed_frames(boxes) == []


def test_the_large_one_may_be_missed_in_some_frames():
  missed = (3, 11, 12)
  boxes = [one[1:] if n in missed else one for n, one in enumerate(scene())]
  pruned = prune(instances(boxes))
  assert pruned.size_low == 40 * 50
  rows = list(instances(boxes).by_frame())
  # Without the large one there is nothing that the small one could be compared with.
  assert [pruned.removed[r].tolist() for r in rows] == [[False] if n in missed else [False, True] for n in range(24)]


def test_nothing_goes_beside_two_large_instances_or_a_target_not_three_times_as_large():
  rival = [[*one, (150, 0, 40, 40)] for one in scene()]
  assert not prune(instances(rival)).removed.any()
  third = [[one[0], (160, 80, 27, 25)] for one in scene()]
  assert not prune(instances(third)).removed.any()
  assert prune(instances([[one[0], (160, 80, 25, 25)] for one in scene()])).removed.any()


def test_more_than_half_of_the_frames_make_an_instance_static_no_more_than_half_a_brief_one():
  def reasons(frames: int):
    return set(prune(instances([one if n < frames else one[:1] for n, one in enumerate(scene())])).reasons.values())

  assert reasons(13) == {'static'} and reasons(12) == {'brief'}


def test_a_foreground_that_is_hidden_for_a_moment_does_not_end_the_pruning():
  hidden = 7
  boxes = [[(one[0][0], 20, 40, 3 if n == hidden else 50), one[1]] for n, one in enumerate(scene())]
  assert removed_frames(boxes) == [n for n in range(24) if n != hidden]


def test_a_clip_without_instances_and_one_of_a_single_frame():
  empty = prune(instances([[], [], []]))
  assert (empty.size_low, empty.reasons, empty.removed.size, empty.target.tolist()) == (0, {}, 0, [-1] * 3)
  assert prune(instances([[(0, 0, 50, 50)]])).removed.tolist() == [False]


@pytest.mark.parametrize(
  ('areas', 'row'),
  [([], None), ([5], 0), ([4], None), ([5, 2], 0), ([5, 2.5], None), ([1, 9, 4], 1), ([9, 9], None)],
)
def test_the_target_of_a_frame(areas, row):
  assert find_target(np.array(areas, np.float64), 5) == row


def test_the_pruning_mask_is_the_complement_and_spares_the_target():
  small, large = rectangle((0, 0, 4, 4), (8, 8)), rectangle((2, 0, 6, 8), (8, 8))
  np.testing.assert_array_equal(pruning_mask((8, 8), [small], large), ~rectangle((0, 0, 2, 4), (8, 8)))
  np.testing.assert_array_equal(pruning_mask((8, 8), [small]), ~small)
  assert pruning_mask((8, 8), []).all()


def test_components_are_found_with_their_boxes_and_areas():
  labels, boxes, areas = components(union([SMALL, (0, 0, 3, 2), (3, 2, 1, 1)]))
  assert areas.tolist() == [7, 14 * 12]  # what touches at a corner is one
  assert boxes.tolist() == [[0, 0, 4, 3], [170, 90, 184, 102]]
  np.testing.assert_array_equal(labels == 2, rectangle(SMALL))
  assert components(np.zeros(SHAPE, bool))[1].shape == (0, 4)


sides = st.integers(1, 40)


@given(st.lists(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), sides, sides), max_size=5), max_size=10))
def test_no_frame_loses_its_largest_instance_or_one_a_third_as_large(boxes):
  clip = instances(boxes)
  pruned = prune(clip)
  for number, rows in enumerate(clip.by_frame()):
    gone = clip.areas[rows][pruned.removed[rows]]
    assert not len(gone) or (3 * gone < clip.areas[rows].max()).all()
    assert not len(gone) or clip.areas[pruned.target[number]] == clip.areas[rows].max()
  assert all(track in pruned.reasons for track in pruned.track[pruned.removed])
