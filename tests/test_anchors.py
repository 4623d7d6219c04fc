"""Shots of made films, and which frame is whose anchor: streaming, planned, renewed, in the library and the command."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest
import tiny

from adnet_jax import anchors, shots, video
from adnet_jax.anchors import Anchor, Numbered, Stretch
from adnet_jax.errors import DataError, UsageError
from adnet_jax.masks import read_mask
from adnet_jax.pipeline import Outputs, segment_clip
from adnet_jax.segmenter import Segmenter

SIZE = (150, 80)


def film(*lengths: int) -> list[np.ndarray]:
  """Clips of these lengths one after the other, each of another colour: a pattern that drifts."""
  rng = np.random.default_rng(3)
  images = []
  for shot, length in enumerate(lengths):
    colour = np.array([(200, 60, 40), (30, 180, 80), (40, 60, 210), (220, 220, 60)][shot % 4])
    texture = rng.integers(-20, 20, (SIZE[1], SIZE[0], 1))
    images += [np.clip(np.roll(texture, k, axis=1) + colour, 0, 255).astype(np.uint8) for k in range(length)]
  return images


def numbered(images) -> list[Numbered]:
  return [Numbered(index, image) for index, image in enumerate(images)]


def of(pairs) -> list[tuple[int, int]]:
  """Shot and anchor of each frame."""
  return [(anchor.shot, anchor.index) for _, anchor in pairs]


@pytest.fixture
def scenedetect():
  return pytest.importorskip('scenedetect')


def test_shots_of_a_film(scenedetect):
  assert [shot for _, shot in shots.split(numbered(film(14, 20, 12)))] == [0] * 14 + [1] * 20 + [2] * 12
  assert list(shots.split([])) == []
  assert [shot for _, shot in shots.split(numbered(film(2)))] == [0, 0]


def test_movement_noise_and_changing_light_are_no_cuts(scenedetect):
  rng = np.random.default_rng(0)
  images = [
    np.clip(np.roll(image.astype(int), 9 * k, axis=1) + 2 * k + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    for k, image in enumerate(film(40))
  ]
  assert {shot for _, shot in shots.split(numbered(images))} == {0}


def test_a_shot_begins_where_the_size_changes(scenedetect):
  images = film(5) + [np.zeros((40, 40, 3), np.uint8)] * 3
  assert [shot for _, shot in shots.split(numbered(images))] == [0] * 5 + [1] * 3


def test_shots_are_found_two_frames_behind_and_frames_before_a_fault_come_out(scenedetect):
  read = []

  def given():
    for frame in numbered(film(12, 12))[:20]:
      read.append(frame.index)
      yield frame
    raise DataError('broken', 'film')

  out = shots.split(given())
  assert next(out)[0].index == 0 and read == list(range(shots.WINDOW + 1))
  rest = []
  with pytest.raises(DataError, match='broken'):
    rest.extend(frame.index for frame, _ in out)
  assert rest == [] or rest == list(range(1, 20))


def test_without_pyscenedetect_it_is_said(monkeypatch):
  monkeypatch.setitem(sys.modules, 'scenedetect.detectors', None)
  with pytest.raises(UsageError, match=r'PySceneDetect.*adnet-jax\[video\]'):
    shots.check_installed()


def test_first_planned_and_renewed_anchors():
  frames = numbered(film(6))
  assert of(anchors.streamed(frames, 'first', None)) == [(0, 0)] * 6
  assert of(anchors.streamed(frames, 'first', 2)) == [(0, 0), (0, 0), (0, 2), (0, 2), (0, 4), (0, 4)]
  plan = [Stretch(0, 2), Stretch(3, 5)]
  images = iter([frames[2].image, frames[5].image])
  pairs = list(anchors.planned(frames, plan, images))
  assert of(pairs) == [(0, 2)] * 3 + [(1, 5)] * 3
  assert pairs[0][1].image is frames[2].image and pairs[0][1] is pairs[2][1]
  assert of(anchors.renewed(pairs, 2)) == [(0, 2), (0, 2), (0, 2), (1, 5), (1, 5), (1, 5)]


def test_clearness_is_the_expected_jaccard_index():
  sure = np.zeros((4, 5), np.float32)
  sure[:2] = 1
  assert anchors.clearness(sure, 0.5) == 1
  assert anchors.clearness(np.zeros((4, 5), np.float32), 0.5) == 0  # an empty scene
  assert anchors.clearness(np.full((4, 5), 0.4, np.float32), 0.5) == 0
  doubtful = np.where(sure > 0, np.float32(0.8), np.float32(0.2))
  assert anchors.clearness(doubtful, 0.5) == pytest.approx((10 * 0.8) / (10 + 10 * 0.2))


class Judge:
  """Stands for a segmenter: how clear a frame is, is how red its first pixel is."""

  threshold = 0.5

  def __init__(self):
    self.seen = []

  def base_size(self, frame):
    return 65, 33

  def session(self, image):
    self.image = image
    return self

  def step(self, image, soft):
    assert soft and image is self.image
    self.seen.append(int(image[0, 0, 0]))
    return np.full((2, 2), image[0, 0, 0] / 255, np.float32)


@pytest.fixture
def judge(monkeypatch):
  one = Judge()
  monkeypatch.setattr(dataclasses, 'replace', lambda _, **changes: one.__dict__.update(changes) or one)
  return one


def grey(*values: int) -> list[np.ndarray]:
  return [np.full((SIZE[1], SIZE[0], 3), value, np.uint8) for value in values]


def test_the_clearest_of_few_candidates_is_the_anchor(judge, tmp_path):
  source = video.open_source(tiny.write_frames(tmp_path / 'clip', grey(*range(20, 200, 3))), every=2)
  plan = anchors.make_plan(judge, source, by_shots=False)
  assert plan == [Stretch(0, 52)] and len(judge.seen) == anchors.CANDIDATES
  judge.seen.clear()
  empty = video.open_source(tiny.write_frames(tmp_path / 'empty', grey(*[7] * 4)))
  assert anchors.make_plan(judge, empty, by_shots=False) == [Stretch(0, 0)] and len(judge.seen) == 4


def test_each_shot_has_a_clearest_frame_of_its_own(judge, tmp_path, scenedetect):
  images = film(16, 16)
  images[4][:12, :12] = images[26][:12, :12] = 255
  source = video.open_source(tiny.write_frames(tmp_path / 'clip', images), skip_bad=True)
  plan = anchors.make_plan(judge, source, by_shots=True)
  assert [stretch.start for stretch in plan] == [0, 16]
  assert plan[0].anchor == 4 and plan[1].anchor == 26


def read_masks(folder) -> list[np.ndarray]:
  return [read_mask(path) for path in sorted((folder / 'masks').glob('*.png'))]


@pytest.fixture
def segmenter(model) -> Segmenter:
  return Segmenter(model, size=tiny.SIZE, batch=4)


@pytest.mark.parametrize('protocol', ['paper', 'released'])
def test_a_film_is_segmented_as_its_shots_one_by_one(segmenter, protocol, tmp_path, scenedetect):
  segmenter = dataclasses.replace(segmenter, protocol=protocol)
  images = film(13, 11)
  images = [image // 5 * 4 + frame // 5 for image, frame in zip(images, tiny.frames(24, SIZE), strict=True)]
  one_by_one = [mask for part in (images[:13], images[13:]) for mask in segmenter.segment(part)]
  clip = video.open_source(tiny.write_frames(tmp_path / 'clip', images))
  summary = segment_clip(segmenter, clip, tmp_path / 'out', Outputs(overlay=False), anchor='auto')
  assert summary['anchor'] == 0
  assert summary['shots'] == [
    {'start': 0, 'frames': 13, 'anchors': [0]},
    {'start': 13, 'frames': 11, 'anchors': [13]},
  ]
  written = [*video.open_source(tmp_path / 'clip')]
  same = all(np.array_equal(frame.image, image) for frame, image in zip(written, images, strict=True))
  assert same  # the frames are stored as they are
  for one, other in zip(read_masks(tmp_path / 'out'), one_by_one, strict=True):
    np.testing.assert_array_equal(one, other)
  for one, other in zip(segmenter.segment(images, anchor='auto'), one_by_one, strict=True):
    np.testing.assert_array_equal(one, other)
  # A run that broke off in the second shot goes on with that shot's anchor.
  for number in range(17, 24):
    (tmp_path / 'out' / 'masks' / f'{number:05d}.png').unlink()
  segment_clip(segmenter, clip, tmp_path / 'out', Outputs(overlay=False, resume=True), anchor='auto')
  for one, other in zip(read_masks(tmp_path / 'out'), one_by_one, strict=True):
    np.testing.assert_array_equal(one, other)


def test_new_anchors_within_a_shot_keep_the_gate(segmenter):
  images = tiny.frames(7, SIZE)
  parts = [image for start in (0, 3, 6) for image in segmenter.segment(images[start : start + 3])]
  for one, other in zip(segmenter.segment(images, reanchor=3), parts, strict=True):
    np.testing.assert_array_equal(one, other)
  released = dataclasses.replace(segmenter, protocol='released')
  pairs = [(image, anchor) for image, anchor in zip(images, [Anchor(0, images[0])] * 7, strict=True)]
  again = [(image, Anchor(0, images[0])) for image in images]  # seven anchors that are equal
  for one, other in zip(released.anchored_results(pairs), released.anchored_results(again), strict=True):
    np.testing.assert_array_equal(one.mask, other.mask)


def test_the_clearest_anchor_through_the_pipeline(segmenter, monkeypatch, tmp_path):
  images = tiny.frames(6, SIZE)
  monkeypatch.setattr(anchors, 'make_plan', lambda *_, by_shots: [Stretch(0, 2), Stretch(4, 5)])
  clip = video.open_source(tiny.write_frames(tmp_path / 'clip', images))
  summary = segment_clip(segmenter, clip, tmp_path / 'out', Outputs(overlay=False), anchor='best', reanchor=3)
  assert [entry['anchors'] for entry in summary['shots']] == [[2, 3], [5]]
  assert 'anchor' in summary['seconds']
  stored = [frame.image for frame in video.open_source(tmp_path / 'clip')]
  expected = [
    *segmenter.segment(stored[:3], anchor=stored[2]), *segmenter.segment(stored[3:4]),
    *segmenter.segment(stored[4:], anchor=stored[5]),
  ]  # fmt: skip
  for one, other in zip(read_masks(tmp_path / 'out'), expected, strict=True):
    np.testing.assert_array_equal(one, other)


def test_unknown_anchors_are_refused(segmenter, tmp_path):
  clip = video.open_source(tiny.write_frames(tmp_path / 'clip', tiny.frames(2, SIZE)))
  for wrong in ('last', -1, 2.5):
    with pytest.raises(UsageError, match='unknown anchor'):
      segment_clip(segmenter, clip, tmp_path / 'out', Outputs(), anchor=wrong)
  with pytest.raises(UsageError, match='unknown anchor'):
    list(segmenter.segment(tiny.frames(2, SIZE), anchor='best'))


def test_options_of_the_command(commands, tmp_path, capsys, scenedetect):
  tiny.write_frames(tmp_path / 'clip', film(12, 12))
  size = 'x'.join(map(str, tiny.SIZE))
  options = ('--anchor', 'auto', '--reanchor', 8, '--min-area', 0.002, '--smooth', 3, '--object', 'largest')
  assert commands('segment', 'clip', '-o', 'out', '--no-overlay', '--size', size, *options) == 0
  assert len(list((tmp_path / 'out' / 'masks').iterdir())) == 24
  summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
  assert [entry['anchors'] for entry in summary['shots']] == [[0, 8], [12, 20]] and 'filter' in summary['seconds']
  assert commands('segment', 'clip', '-o', 'new', '--object', '2', '--resume') == 2
  assert '--object, --resume' in capsys.readouterr().err
  assert commands('segment', 'clip', '-o', 'new', '--smooth', '4') == 2
