"""What others hang into the pipeline: writers beside the masks, filters over them, frames that stand still."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

from adnet_jax import background, pipeline, reuse, video
from adnet_jax.errors import DataError
from adnet_jax.masks import read_mask
from adnet_jax.pipeline import Outputs, segment_clip
from adnet_jax.segmenter import Segmenter


@pytest.fixture
def clip(tmp_path) -> Path:
  return tiny.write_frames(tmp_path / 'clip', tiny.frames(7, (150, 80)))


@pytest.fixture
def segmenter(model) -> Segmenter:
  return Segmenter(model, size=tiny.SIZE, batch=2)


class Writer:
  def __init__(self, fails_at: int | None = None):
    self.warnings, self.calls, self.ended, self.fails_at = ['said by a writer'], [], '', fails_at

  def write(self, frame, mask, probability, name, time):
    if len(self.calls) == self.fails_at:
      raise DataError('cannot be written', name)
    self.calls.append((threading.current_thread().name, frame.shape, mask.dtype, probability is not None, name, time))

  def close(self):
    self.ended += 'closed'

  def abort(self):
    self.ended += 'aborted'


@dataclasses.dataclass(frozen=True)
class Form:
  writer: Writer
  stage: str = 'mine'
  soft: bool = False

  def open(self, out, source):
    return self.writer

  def files(self, out):
    return [path for path in (out / 'mine.bin',) if path.exists()]


def masks_in(folder: Path) -> dict[str, np.ndarray]:
  return {path.stem: read_mask(path) for path in sorted((folder / 'masks').glob('*.png'))}


# ------------------------------------------------------------------------------------------------------ writers


def test_writers_get_frames_in_order_each_in_a_thread_of_its_own(segmenter, clip, tmp_path):
  forms = Form(Writer()), Form(Writer(), 'other', soft=True)
  summary = segment_clip(segmenter, video.open_source(clip), tmp_path / 'out', Outputs(overlay=False, forms=forms))
  assert {'mine', 'other'} <= set(summary['seconds']) and summary['warnings'].count('said by a writer') == 2
  threads = []
  for form in forms:
    names = [call[4] for call in form.writer.calls]
    assert names == [f'{k:05d}' for k in range(7)] and form.writer.ended == 'closed'
    assert form.writer.calls[0][1:4] == ((80, 150, 3), np.dtype(bool), True)
    threads += {call[0] for call in form.writer.calls}
  assert len(threads) == 2
  assert not (tmp_path / 'out' / 'heatmaps').exists(), 'probabilities for a writer are no heat maps'


def test_a_writer_that_fails_is_dropped_and_the_others_are_closed(segmenter, clip, tmp_path):
  forms = Form(Writer(fails_at=2)), Form(Writer(), 'other')
  with pytest.raises(DataError, match='cannot be written'):
    segment_clip(segmenter, video.open_source(clip), tmp_path / 'out', Outputs(overlay=False, forms=forms))
  assert len(forms[0].writer.calls) == 2 and forms[0].writer.ended == 'aborted'
  assert forms[1].writer.ended == 'closed'


def test_a_clip_that_breaks_off_closes_its_writers(segmenter, clip, tmp_path):
  (clip / '00004.png').write_bytes(b'')
  form = Form(Writer())
  with pytest.raises(DataError, match='00004'):
    segment_clip(segmenter, video.open_source(clip), tmp_path / 'out', Outputs(forms=(form,)))
  assert len(form.writer.calls) == 4 and form.writer.ended == 'closed'


def test_a_resumed_run_computes_again_what_a_writer_of_probabilities_needs(segmenter, clip, tmp_path):
  out = tmp_path / 'out'
  segment_clip(segmenter, video.open_source(clip), out, Outputs(overlay=False))
  for soft in (False, True):
    form = Form(Writer(), soft=soft)
    segment_clip(segmenter, video.open_source(clip), out, Outputs(overlay=False, resume=True, forms=(form,)))
    assert [call[3] for call in form.writer.calls] == [soft] * 7


# ------------------------------------------------------------------------------------------------------ filters


def invert(items):
  for item in items:
    yield item if item.exists else item._replace(mask=~item.mask)


def delay(items):
  """Holds three items back, as a filter that looks ahead does."""
  held = collections.deque()
  for item in items:
    held.append(item)
    if len(held) > 3:
      yield held.popleft()
  yield from held


def test_masks_pass_through_filters_in_order(segmenter, clip, tmp_path):
  plain = segment_clip(segmenter, video.open_source(clip), tmp_path / 'a', Outputs(overlay=False))
  assert 'filter' not in plain['seconds']
  summary = segment_clip(
    segmenter, video.open_source(clip), tmp_path / 'b', Outputs(overlay=False), filters=[invert, delay]
  )
  assert summary['frames'] == 7 and 'filter' in summary['seconds']
  expected = masks_in(tmp_path / 'a')
  for name, mask in masks_in(tmp_path / 'b').items():
    np.testing.assert_array_equal(mask, ~expected[name])


def test_filters_lose_nothing_where_a_clip_breaks_off_and_leave_alone_what_exists(segmenter, clip, tmp_path):
  (clip / '00005.png').write_bytes(b'')
  with pytest.raises(DataError, match='00005'):
    segment_clip(segmenter, video.open_source(clip), tmp_path / 'out', Outputs(), filters=[delay])
  before = masks_in(tmp_path / 'out')
  assert len(before) == 5
  options = Outputs(overlay=False, resume=True)
  segment_clip(segmenter, video.open_source(clip, skip_bad=True), tmp_path / 'out', options, filters=[invert])
  after = masks_in(tmp_path / 'out')
  assert len(after) == 6 and all(np.array_equal(after[name], before[name]) for name in before)


# -------------------------------------------------------------------------------------------------- standing still


def test_frames_that_hardly_changed_take_the_result_before(segmenter, tmp_path):
  one, other = tiny.frames(2, (150, 80))
  noisy = np.clip(one.astype(int) + np.random.default_rng(0).integers(-9, 10, one.shape), 0, 255).astype(np.uint8)
  clip = tiny.write_frames(tmp_path / 'clip', [one, one, noisy, other, other, one])
  source = video.open_source(clip)
  plain = segment_clip(segmenter, source, tmp_path / 'plain', Outputs())
  exact = segment_clip(segmenter, source, tmp_path / 'exact', Outputs(), still=0)
  loose = segment_clip(segmenter, source, tmp_path / 'loose', Outputs(), still=8)
  assert [run['reused'] for run in (plain, exact, loose)] == [0, 2, 3] and loose['frames'] == 6
  plain_masks, exact_masks, loose_masks = (
    list(masks_in(tmp_path / name).values()) for name in ('plain', 'exact', 'loose')
  )
  np.testing.assert_array_equal(exact_masks, plain_masks)
  np.testing.assert_array_equal(loose_masks[2], plain_masks[0])


def test_small_changes_add_up():
  grey = np.full((90, 160, 3), 100, np.uint8)
  stillness = reuse.Stillness(3)
  assert [stillness.same(grey + k) for k in range(8)] == [False, True, True, True, False, True, True, True]
  assert not stillness.same(grey[:80])
  moved = grey[:80].copy()
  moved[10:16, 20:26] = 255  # a bird in front of a still sky
  assert not stillness.same(moved)


def test_a_clip_that_stands_still_does_not_fill_the_memory(segmenter, tmp_path, monkeypatch):
  monkeypatch.setattr(pipeline, 'WAITING_BYTES', 4 * 80 * 150 * 3)
  (image,) = tiny.frames(1, (150, 80))
  source = video.open_source(tiny.write_frames(tmp_path / 'clip', [image] * 30))
  summary = segment_clip(segmenter, source, tmp_path / 'out', Outputs(overlay=False), still=0)
  assert summary['frames'] == 30 and 0 < summary['reused'] < 29


# ---------------------------------------------------------------------------------------------------- what limits


@pytest.mark.parametrize('slow', ['read', 'network', 'mine'])
def test_the_summary_names_the_stage_that_limits(segmenter, clip, tmp_path, monkeypatch, slow):
  def slowly(function):
    def call(*arguments, **options):
      time.sleep(0.05)
      return function(*arguments, **options)

    return call

  class Fast:
    protocol, scales, mirror = 'paper', (1.0,), False
    base_size, refine_radius = segmenter.base_size, segmenter.refine_radius

    def anchored_results(self, pairs, **_):
      for frame, _anchor in pairs:
        time.sleep(0.05 * (slow == 'network'))
        yield tiny_result(frame)

  form = Form(Writer())
  if slow == 'mine':
    monkeypatch.setattr(form.writer, 'write', slowly(form.writer.write))
  if slow == 'read':
    monkeypatch.setattr('adnet_jax.sources.read_image', slowly(video.read_image))
  source = video.open_source(clip)
  summary = segment_clip(Fast(), source, tmp_path / 'out', Outputs(overlay=False, forms=(form,)))
  assert summary['limited_by'] == slow and summary['seconds'][slow] > 0.05


def tiny_result(frame):
  from adnet_jax.session import Result

  return Result(np.ones(frame.shape[:2], bool))


def test_waiting_is_counted_for_the_stage_that_is_waited_for():
  waits: background.Clock = collections.defaultdict(float)
  clock: background.Clock = collections.defaultdict(float)
  slow = (time.sleep(0.02) or k for k in itertools.count())
  with background.read_ahead(slow, depth=1, budget=9, weigh=lambda _: 1, waits=waits) as items:
    assert [next(items) for _ in range(3)] == [0, 1, 2]
  with background.WriteBehind(depth=1, budget=9, clock=clock, waits=waits) as writer:
    for _ in range(4):
      writer.submit_in_order('slow', 1, time.sleep, 0.05)
      writer.submit_in_order('quick', 1, time.sleep, 0)
  assert waits['read'] > 0.01 and waits['slow'] > max(0.05, waits['quick'])
