"""The stream of training pairs: a function of (seed, index) alone, however it is read."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import threading
import time

import cv2
import numpy as np
import pytest

from adnet_jax import config as config_lib
from adnet_jax import errors
from adnet_jax.data import cache as cache_lib
from adnet_jax.data import datasets, input_pipeline, transforms

BATCH, STEPS = 4, 5
CLIPS = {'one': 1, 'three': 3, 'seven': 7}  # name: frames
STILLS = ('bird', 'boat')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Clips and photographs of one colour each: the colour says which frame of which clip an image is."""
  folder = tmp_path_factory.mktemp('data')
  mask = np.zeros((24, 30), np.uint8)
  mask[8:14, 10:18] = 255
  for folders in ('JPEGImages/480p', 'Annotations/480p', 'images', 'masks'):
    (folder / folders).mkdir(parents=True)
  for number, (clip, frames) in enumerate(CLIPS.items()):
    for kind in ('JPEGImages', 'Annotations'):
      (folder / kind / '480p' / clip).mkdir()
    for frame in range(frames):
      image = np.full((24, 30, 3), colour(number, frame), np.uint8)
      cv2.imwrite(str(folder / f'JPEGImages/480p/{clip}/{frame:05d}.png'), image[..., ::-1])
      cv2.imwrite(str(folder / f'Annotations/480p/{clip}/{frame:05d}.png'), mask)
  for number, name in enumerate(STILLS):
    cv2.imwrite(str(folder / f'images/{name}.png'), np.full((24, 30, 3), colour(20 + number, 0), np.uint8)[..., ::-1])
    cv2.imwrite(str(folder / f'masks/{name}.png'), mask)
  return folder


def colour(clip, frame):
  return 10 * clip + 5, 10 * frame + 5, 200


@pytest.fixture
def source(root):
  return make_source(root)


def make_source(root, seed=3, stills_fraction=0.3):
  clips = datasets.read_clips(root, datasets.split(root, 'train'), need_masks=True)
  augmentation = transforms.Augmentation(17, rotation=0.5, flip=0.5)
  return input_pipeline.PairSource(
    clips, datasets.read_photographs(root), stills_fraction, augmentation, seed, BATCH * STEPS
  )


def stream(source, **options):
  options = {'batch': BATCH, 'first_step': 0, 'workers': 1, **options}
  return list(input_pipeline.batches(source, **options))


def assert_same(found, expected):
  assert len(found) == len(expected)
  for one, other in zip(found, expected, strict=True):
    assert one.keys() == other.keys() == {'images', 'masks', 'attempts'}
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


def test_shapes_and_values(source):
  whole = stream(source)
  assert len(whole) == STEPS
  for batch in whole:
    assert batch['images'].shape == (BATCH, 2, 17, 17, 3) and batch['images'].dtype == np.uint8
    assert batch['masks'].shape == (BATCH, 2, 17, 17) and batch['masks'].dtype == np.uint8
    assert set(np.unique(batch['masks'])) <= {0, 1}


def test_stream_is_the_source_in_order(source):
  rows = [sample for batch in stream(source) for sample in batch['images']]
  for index in range(len(source)):
    np.testing.assert_array_equal(rows[index], source[index]['images'])


@pytest.mark.parametrize('first', [0, 1, STEPS - 1, STEPS])
def test_any_first_step_goes_on_where_the_stream_was(source, first):
  assert_same(stream(source, first_step=first), stream(source)[first:])


@pytest.mark.parametrize('workers', [0, 4, -1])
def test_threads_change_nothing(source, workers):
  assert_same(stream(source, workers=workers), stream(source))


@pytest.mark.parametrize('first', [0, 2])
def test_two_processes_share_each_global_batch(source, first):
  halves = [stream(source, process=process, processes=2, first_step=first) for process in (0, 1)]
  together = [
    {name: np.concatenate([one[name], other[name]]) for name in one} for one, other in zip(*halves, strict=True)
  ]
  assert_same(together, stream(source)[first:])


def test_batch_must_be_divisible_by_the_processes(source):
  with pytest.raises(errors.UsageError, match='batch=4 is not divisible by 3'):
    stream(source, processes=3)


def test_a_sample_depends_on_seed_and_index_only(root, source):
  longer = dataclasses.replace(source, length=10**6)
  other_order = [source[index] for index in (7, 2, 7)]
  np.testing.assert_array_equal(other_order[0]['images'], other_order[2]['images'])
  np.testing.assert_array_equal(source[7]['images'], longer[7]['images'])
  assert longer.sample_id(999_999) == longer.sample_id(999_999)
  ids = [source.sample_id(index) for index in range(len(source))]
  assert ids != [make_source(root, seed=4).sample_id(index) for index in range(len(source))]


def test_sample_ids_say_what_is_in_the_images(root, source):
  seen = set()
  for index in range(len(source)):
    kind, rest = source.sample_id(index).split('/')
    if kind == 'still':
      expected = [colour(20 + STILLS.index(rest), 0)] * 2
    else:
      expected = [colour(list(CLIPS).index(kind), int(frame)) for frame in rest.split('+')]
    sample = source[index]
    for image, mask, wanted in zip(sample['images'], sample['masks'], expected, strict=True):
      # The foreground lies inside the frame, where no interpolation mixes other colours in.
      assert (image[mask > 0] == wanted).all()
      assert mask.any()
    seen.add(kind)
  assert seen == {'still', *CLIPS}


def test_the_anchor_is_the_first_frame_and_the_other_frame_any_later_one(root):
  source = make_source(root, stills_fraction=0.0)
  pairs = {clip: set() for clip in CLIPS}
  for index in range(300):
    clip, frames = source.sample_id(index).split('/')
    anchor, frame = map(int, frames.split('+'))
    assert anchor == 0
    pairs[clip].add(frame)
  # A clip of one frame pairs with itself (fault 26).
  assert pairs == {'one': {0}, 'three': {1, 2}, 'seven': set(range(1, 7))}


def test_with_a_random_anchor_both_frames_are_any_two_annotated_ones(root):
  clips = datasets.read_clips(root, datasets.split(root, 'train'), need_masks=True)
  sparse = [dataclasses.replace(clip, masks=(None, *clip.masks[1:])) for clip in clips if clip.name == 'seven']
  config = config_lib.default()
  config.data.anchor = 'random'
  source = input_pipeline.pair_source(config, [clip for clip in clips if clip.name != 'seven'] + sparse, [])
  pairs = {clip: set() for clip in CLIPS}
  for index in range(1000):
    clip, frames = source.sample_id(index).split('/')
    pairs[clip].add(tuple(map(int, frames.split('+'))))
  assert pairs == {
    'one': {(0, 0)},
    'three': set(itertools.permutations(range(3), 2)),
    'seven': set(itertools.permutations(range(1, 7), 2)),
  }


def test_share_of_photographs(root):
  source = make_source(root, stills_fraction=0.5)
  share = np.mean([source.sample_id(index).startswith('still/') for index in range(2000)])
  assert abs(share - 0.5) < 4 * np.sqrt(0.25 / 2000)


def test_source_of_a_configuration(root):
  config = config_lib.default()
  config.data.root = str(root)
  clips = datasets.read_clips(root, ['three'], need_masks=True)
  source = input_pipeline.pair_source(config, clips, [])
  assert len(source) == config.steps * config.batch
  assert source.augmentation == transforms.Augmentation(481, 0.51, 0.0, 0.0)
  lost = [dataclasses.replace(clip, masks=(None, *clip.masks[1:])) for clip in clips]
  with pytest.raises(errors.DataError, match='mask of its first frame'):
    input_pipeline.pair_source(config, lost, [])


def test_reading_starts_no_more_than_a_little_ahead(source, monkeypatch):
  read = []
  original = input_pipeline.PairSource.__getitem__
  monkeypatch.setattr(
    input_pipeline.PairSource, '__getitem__', lambda self, index: read.append(index) or original(self, index)
  )
  endless = dataclasses.replace(source, length=10**6)
  batches = input_pipeline.batches(endless, batch=BATCH, first_step=0, workers=1)
  list(itertools.islice(batches, 2))
  batches.close()
  assert len(read) < 10 * BATCH


def kill(thread):
  """Ends a thread from outside at its next line of Python."""
  ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(SystemExit))


def test_a_worker_that_dies_over_a_sample_ends_the_stream_with_its_error(source, monkeypatch):
  original = input_pipeline.PairSource.__getitem__

  def read(self, index):
    if index == 9:
      kill(threading.get_ident())
    return original(self, index)

  monkeypatch.setattr(input_pipeline.PairSource, '__getitem__', read)
  found = input_pipeline.batches(source, batch=BATCH, first_step=0, workers=2)
  with pytest.raises(errors.DataError, match='a data worker died: SystemExit') as caught:
    list(found)
  assert caught.value.where == source.sample_id(9)


def test_a_stuck_worker_ends_the_stream(source, monkeypatch):
  monkeypatch.setattr(input_pipeline, 'STALLED', 1)
  original, answer = input_pipeline.PairSource.__getitem__, threading.Event()
  monkeypatch.setattr(
    input_pipeline.PairSource, '__getitem__', lambda self, i: (i < 9 or answer.wait(60)) and original(self, i)
  )
  found = input_pipeline.batches(source, batch=BATCH, first_step=0, workers=2)
  assert len(list(itertools.islice(found, 2))) == 2
  with pytest.raises(errors.DataError, match='the data workers gave no sample for'):
    next(found)
  answer.set()


def test_workers_that_died_between_two_samples_end_the_stream(source, monkeypatch):
  monkeypatch.setattr(input_pipeline, 'STALLED', 1)
  endless, before = dataclasses.replace(source, length=10**6), set(threading.enumerate())
  found = input_pipeline.batches(endless, batch=BATCH, first_step=0, workers=2)
  next(found)
  time.sleep(0.5)  # until they have nothing to do
  workers = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith('grain-prefetch')]
  assert len(workers) == 2
  for worker in workers:
    kill(worker.ident)
  with pytest.raises(errors.DataError, match='the data workers gave no sample for'):
    list(found)


def test_what_is_kept_in_memory_changes_no_sample(source, monkeypatch):
  whole, reads = stream(source), []
  original = datasets.read_pair
  monkeypatch.setattr(datasets, 'read_pair', lambda image, mask: reads.append(image) or original(image, mask))
  kept = dataclasses.replace(source, cache=cache_lib.open_cache('memory'))
  assert_same(stream(kept), whole)
  assert_same(stream(kept), whole)
  assert len(reads) == len(set(reads)) <= sum(CLIPS.values()) + len(STILLS)
  assert kept.cache.held == len(reads) * 24 * 30 * 4


def test_no_more_is_kept_than_there_is_room_for(source):
  kept = dataclasses.replace(source, cache=cache_lib.Decoded(2.5 * 24 * 30 * 4))
  assert_same(stream(kept, workers=4), stream(source))
  assert kept.cache.held == 2 * 24 * 30 * 4


def test_room_is_shared_with_other_processes_and_what_else_runs():
  assert cache_lib.open_cache('none') is None
  free = cache_lib.free_memory()
  assert 0 < free < 2**50
  assert cache_lib.open_cache('auto', 4).limit < 0.1 * free


def test_workers_by_default_are_the_cores_that_may_be_used(monkeypatch):
  monkeypatch.setattr(input_pipeline.os, 'sched_getaffinity', lambda _: {1, 2, 5}, raising=False)
  assert [input_pipeline.worker_count(n) for n in (-1, 0, 7)] == [3, 1, 7]
  monkeypatch.setattr(input_pipeline.os, 'sched_getaffinity', lambda _: set(range(200)))
  assert input_pipeline.worker_count(-1) == input_pipeline.MAX_WORKERS
