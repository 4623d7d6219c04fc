"""Segmenter and Session against a slow plain reimplementation; batches, sizes, devices, threads, too little memory."""

from __future__ import annotations

import itertools
import logging
import threading

import cv2
import jax
import numpy as np
import pytest
import tiny

from adnet_jax import pretrained, weights
from adnet_jax.errors import DeviceError, UsageError
from adnet_jax.geometry import RELEASED_SIZE, eight_k_plus_one, network_size, scaled
from adnet_jax.segmenter import Segmenter

OUT_OF_MEMORY = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.')


# ------------------------------------------------------------------------------------- plain reimplementation


def upsample(z: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """(h', w') -> (h, w), bilinear, corners aligned, a pixel at a time."""
  rows, columns = (np.linspace(0, n - 1, m) for n, m in zip(z.shape, size, strict=True))
  result = np.zeros(size)
  for i, y in enumerate(rows):
    for j, x in enumerate(columns):
      y0, x0 = min(int(y), max(z.shape[0] - 2, 0)), min(int(x), max(z.shape[1] - 2, 0))
      y1, x1 = min(y0 + 1, z.shape[0] - 1), min(x0 + 1, z.shape[1] - 1)
      upper = z[y0, x0] * (1 - (x - x0)) + z[y0, x1] * (x - x0)
      lower = z[y1, x0] * (1 - (x - x0)) + z[y1, x1] * (x - x0)
      result[i, j] = upper * (1 - (y - y0)) + lower * (y - y0)
  return result


def plain_outputs(model, frames, *, protocol, sizes, mirror):
  """Mean logits (`released`) or probabilities (`paper`) of each frame, one frame, scale and mirror image at a time."""
  for frame in frames:
    outputs = []
    for size, flip in itertools.product(sizes, (1, -1) if mirror else (1,)):
      pair = [model.normalize(cv2.resize(image, size)[:, ::flip])[None] for image in (frames[0], frame)]
      z = upsample(np.asarray(model.logits(*pair), np.float64)[0, :, ::flip, 0], frame.shape[:2])
      outputs.append(z if protocol == 'released' else 1 / (1 + np.exp(-z)))
    yield np.mean(outputs, 0)


def plain_gate(reference: np.ndarray) -> np.ndarray:
  """Opening with 15 x 15, dilation with 101 x 101, by sliding windows; outside counts as neither."""

  def slide(mask, side, function, outside):
    padded = np.pad(mask, side // 2, constant_values=outside)
    return function(np.lib.stride_tricks.sliding_window_view(padded, (side, side)), axis=(2, 3))

  return slide(slide(slide(reference, 15, np.all, True), 15, np.any, False), 101, np.any, False)


def plain_masks(outputs, protocol):
  reference = None
  for output in outputs:
    if protocol == 'paper':
      yield output > 0.5
      continue
    foreground = output > 0.5
    gated = reference is not None and 5000 < reference.sum() < 100_000
    yield foreground & plain_gate(reference) if gated else foreground
    reference = foreground


def assert_masks(masks, expected, outputs, least: float = 1e-3):
  """Equal wherever the output is not within rounding of the threshold."""
  for mask, wanted, output in zip(masks, expected, outputs, strict=True):
    assert mask.dtype == np.bool_ and mask.shape == wanted.shape
    assert (mask == wanted)[np.abs(output - 0.5) > least].all()


@pytest.mark.parametrize('protocol', ['paper', 'released'])
@pytest.mark.parametrize(('scales', 'mirror'), [((1.0,), False), ((0.5, 1.0), True)])
def test_masks_equal_those_of_a_plain_reimplementation(model, protocol, scales, mirror):
  frames = tiny.frames(5, (150, 80))
  sizes = [(57, 33), tiny.SIZE] if len(scales) > 1 else [tiny.SIZE]
  outputs = list(plain_outputs(model, frames, protocol=protocol, sizes=sizes, mirror=mirror))
  expected = list(plain_masks(outputs, protocol))
  segmenter = Segmenter(model, protocol, scales, mirror, tiny.SIZE, batch=2)
  assert_masks(list(segmenter.segment(frames)), expected, outputs)
  assert 0.02 < np.mean(expected) < 0.98
  soft = list(segmenter.segment(frames, soft=True))
  assert all(one.dtype == np.float32 and one.min() >= 0 and one.max() <= 1 for one in soft)
  probabilities = outputs if protocol == 'paper' else [1 / (1 + np.exp(-z)) for z in outputs]
  np.testing.assert_allclose(np.stack(soft), np.stack(probabilities), atol=1e-4)


def test_the_gate_acts_and_does_not_depend_on_batches(model):
  frames = tiny.frames(4, (700, 100))
  whole = list(Segmenter(model, 'released', size=tiny.SIZE, batch=4).segment(frames))
  single = list(Segmenter(model, 'released', size=tiny.SIZE, batch=1).segment(frames))
  outputs = list(plain_outputs(model, frames, protocol='released', sizes=[tiny.SIZE], mirror=False))
  expected = np.stack(list(plain_masks(outputs, 'released')))
  # A share, since a pixel that rounding turns over moves the edge of the gate.
  assert np.mean(np.stack(whole) != expected) < 1e-3
  assert np.mean(np.stack(single) != expected) < 1e-3
  assert np.mean((np.stack(outputs) > 0.5) != expected) > 5e-3, 'the gate did nothing'


def test_threshold_is_of_the_probability(model):
  frames = tiny.frames(3)
  soft = np.stack(list(Segmenter(model).segment(frames, soft=True)))
  masks = np.stack(list(Segmenter(model, threshold=0.8).segment(frames)))
  np.testing.assert_array_equal(masks, soft > np.float32(0.8))


# --------------------------------------------------------------------------------------------------- geometry


def test_sizes_are_8k_plus_1_as_the_released_ones():
  assert [scaled(RELEASED_SIZE, scale) for scale in (0.75, 1, 1.5)] == [(641, 353), (857, 481), (1281, 721)]
  assert eight_k_plus_one(5) == 33


@pytest.mark.parametrize(
  ('frame', 'expected'),
  [
    ((854, 480), (641, 353)),
    ((480, 270), (641, 353)),
    ((1000, 600), (641, 353)),
    ((640, 480), (553, 409)),
    ((480, 854), (353, 633)),
    ((1, 1), (473, 473)),
  ],
)
def test_default_geometry(frame, expected):
  assert network_size(frame, (641, 353)) == expected


@pytest.mark.parametrize('frame', [(1000, 8), (8, 1000), (100_000, 1)])
def test_long_strips_keep_the_area(frame):
  width, height = network_size(frame, (641, 353))
  assert min(width, height) >= 33 and width % 8 == height % 8 == 1
  assert width * height < 1.3 * 641 * 353


def test_protocol_and_size_choose_the_network_size(model):
  frame = np.zeros((48, 96, 3), np.uint8)
  assert Segmenter(model).base_size(frame) == tiny.SIZE
  assert Segmenter(model, 'released').base_size(frame) == RELEASED_SIZE
  assert Segmenter(model, 'released', size=(100, 50)).base_size(frame) == (100, 50)


# ------------------------------------------------------------------------------------------ batches and anchor


def test_anchor_is_encoded_once_for_each_scale_and_mirror_image(model, monkeypatch):
  calls = []
  embed = pretrained.Model.embed

  def counted(self, images, *, mirror=False):
    calls.append((images.shape, mirror))
    return embed(self, images, mirror=mirror)

  monkeypatch.setattr(pretrained.Model, 'embed', counted)
  list(Segmenter(model, scales=(0.5, 1.0), mirror=True, batch=2).segment(tiny.frames(7)))
  assert sorted(calls) == [((1, h, w, 3), mirror) for h, w in ((33, 57), (65, 129)) for mirror in (False, True)]


def test_short_batches_other_clips_and_other_frame_sizes_do_not_compile_the_network_again(model):
  segmenter = Segmenter(model, size=tiny.SIZE, batch=4)
  first = list(segmenter.segment(tiny.frames(4)))
  programs = model._classify._cache_size(), model._embed._cache_size()
  again = list(segmenter.segment(tiny.frames(4) + tiny.frames(2)))
  assert len(again) == 6
  np.testing.assert_array_equal(again[:4], first)
  assert [mask.shape for mask in segmenter.segment(tiny.frames(3, (70, 40)))] == [(40, 70)] * 3
  assert (model._classify._cache_size(), model._embed._cache_size()) == programs


def test_segment_is_lazy_and_memory_bounded(model):
  read = 0

  def frames():
    nonlocal read
    for frame in itertools.cycle(tiny.frames(4)):
      read += 1
      yield frame

  masks = Segmenter(model, batch=2).segment(frames())
  assert read == 0
  for done, _ in enumerate(itertools.islice(masks, 9), 1):
    assert read <= done + 5  # two batches, and the frame that shows that the second is full
  masks.close()


@pytest.mark.parametrize('count', [0, 1, 2])
def test_few_frames(model, count):
  assert len(list(Segmenter(model).segment(tiny.frames(count)))) == count


@pytest.mark.parametrize('size', [(1, 1), (16, 16), (1000, 8)])
def test_odd_frames_get_masks_of_their_size(model, size):
  frame = np.full((size[1], size[0], 3), 90, np.uint8)
  (mask,) = Segmenter(model, size=tiny.SIZE, batch=4).segment([frame])
  assert mask.shape == size[::-1]


def test_frames_of_different_sizes_in_one_clip(model):
  sizes = [(96, 48), (96, 48), (50, 60), (96, 48)]
  frames = [tiny.frames(1, size)[0] for size in sizes]
  for protocol in ('paper', 'released'):
    masks = list(Segmenter(model, protocol, size=tiny.SIZE, batch=4).segment(frames))
    assert [mask.shape for mask in masks] == [size[::-1] for size in sizes]
    np.testing.assert_array_equal(masks[0], masks[3])


def test_a_session_steps_as_segment_does_and_takes_another_anchor(model):
  frames = tiny.frames(4)
  segmenter = Segmenter(model)
  session = segmenter.session(frames[0])
  soft = np.stack(list(segmenter.segment(frames, soft=True)))
  np.testing.assert_allclose(np.stack([session.step(frame, soft=True) for frame in frames]), soft, atol=1e-4)
  session.set_anchor(frames[2])
  other = np.stack(list(segmenter.segment(frames, soft=True, anchor=frames[2])))
  np.testing.assert_allclose(np.stack([session.step(frame, soft=True) for frame in frames]), other, atol=1e-4)
  assert np.abs(other - soft).max() > 0.01
  assert session.step(frames[0]).dtype == np.bool_


def test_a_variant_without_anchor(tmp_path):
  segmenter = Segmenter.from_pretrained(tiny.write_model(tmp_path / 'intra.safetensors', 'intra_frame'), batch=4)
  frames = tiny.frames(3)
  soft = list(segmenter.segment(frames, soft=True))
  again = list(segmenter.segment(frames, soft=True, anchor=frames[2]))
  np.testing.assert_array_equal(soft, again)
  assert np.asarray(segmenter.model.logits(None, segmenter.model.normalize(frames[0])[None])).shape == (1, 3, 6, 1)


def test_eight_devices_give_the_same_masks(tiny_model, model):
  module, metadata = weights.load(tiny_model)
  eight = pretrained.Model(module, metadata, jax.devices('cpu'))
  frames = tiny.frames(11)
  segmenter = Segmenter(eight, mirror=True, size=tiny.SIZE)
  assert segmenter.batch_for(tiny.SIZE, frames[0]) == 8 == len(eight.devices)
  assert Segmenter(eight, batch=3).batch_for(tiny.SIZE, frames[0]) == 8
  one = np.stack(list(Segmenter(model, mirror=True, size=tiny.SIZE, batch=4).segment(frames, soft=True)))
  np.testing.assert_allclose(np.stack(list(segmenter.segment(frames, soft=True))), one, atol=1e-4)
  np.testing.assert_allclose(segmenter.session(frames[0]).step(frames[3], soft=True), one[3], atol=1e-4)


def test_threads_share_a_segmenter(model):
  segmenter = Segmenter(model, 'released', size=tiny.SIZE, batch=2)
  clips = [tiny.frames(6, seed=seed) for seed in (0, 1)]
  expected = [np.stack(list(segmenter.segment(clip))) for clip in clips]
  found: dict[int, list] = {0: [], 1: []}

  def work(k):
    for _ in range(3):
      found[k].append(np.stack(list(segmenter.segment(clips[k]))))

  threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for k in (0, 1):
    assert len(found[k]) == 3 and all((masks == expected[k]).all() for masks in found[k])


# -------------------------------------------------------------------------------------------- memory that is short


def scarce(monkeypatch, fits):
  """Makes batches that `fits(frames, blockwise)` denies run out of memory; returns the attempts."""
  attempts = []
  predict = pretrained.Model.predict

  def limited(self, anchor, images, *, mirror=False, blockwise=False):
    attempts.append((len(images), blockwise))
    if not fits(len(images), blockwise):
      raise OUT_OF_MEMORY
    return predict(self, anchor, images, mirror=mirror, blockwise=blockwise)

  monkeypatch.setattr(pretrained.Model, 'predict', limited)
  return attempts


def test_a_batch_that_does_not_fit_is_halved_once_for_the_whole_clip(model, monkeypatch, caplog):
  frames = tiny.frames(11)
  expected = list(Segmenter(model, batch=2).segment(frames))
  attempts = scarce(monkeypatch, lambda frames, _: frames <= 2)
  with caplog.at_level(logging.WARNING, 'absl'):
    masks = list(Segmenter(model, batch=8).segment(frames))
  np.testing.assert_array_equal(masks, expected)
  # Two batches were under way when the first one failed; what came later was small from the start.
  assert [size for size, _ in attempts].count(8) <= 2
  said = [record.getMessage() for record in caplog.records if 'out of device memory' in record.getMessage()]
  assert len(said) == 2 and '8 frame(s)' in said[0] and '129x65' in said[0] and '2 frame(s) at a time' in said[1]


def test_blockwise_attention_is_the_last_resort(model, monkeypatch, caplog):
  frames = tiny.frames(3)
  expected = list(Segmenter(model, batch=1).segment(frames, soft=True))
  attempts = scarce(monkeypatch, lambda _, blockwise: blockwise)
  with caplog.at_level(logging.WARNING, 'absl'):
    soft = list(Segmenter(model, batch=2).segment(frames, soft=True))
  np.testing.assert_allclose(soft, expected, atol=1e-4)
  assert (1, True) in attempts and 'attention in blocks' in caplog.text


def test_no_memory_for_one_frame_is_a_typed_error_that_says_what_to_try(model, monkeypatch):
  scarce(monkeypatch, lambda *_: False)
  with pytest.raises(DeviceError, match=r'129x65 with 1 frame\(s\).*--size 89x41'):
    list(Segmenter(model, batch=2).segment(tiny.frames(3)))


def test_no_memory_for_the_anchor_and_other_failures_of_the_device(model, monkeypatch):
  def fail(error):
    def embed(*_, **__):
      raise error

    monkeypatch.setattr(pretrained.Model, 'embed', embed)

  fail(OUT_OF_MEMORY)
  with pytest.raises(DeviceError, match='out of device memory'):
    Segmenter(model).session(tiny.frames(1)[0])
  fail(jax.errors.JaxRuntimeError('INTERNAL: cable pulled\nmore'))
  with pytest.raises(DeviceError, match='the device failed: INTERNAL: cable pulled'):
    Segmenter(model).session(tiny.frames(1)[0])


# -------------------------------------------------------------------------------------------------- wrong use


@pytest.mark.parametrize(
  'options',
  [
    {'protocol': 'papers'},
    {'scales': ()},
    {'scales': (0.0,)},
    {'size': (4, 65)},
    {'size': (65,)},
    {'threshold': 1.5},
    {'protocol': 'released', 'threshold': 0.3},
    {'batch': 0},
  ],
)
def test_options_out_of_range_are_refused_before_the_model_is_loaded(options):
  with pytest.raises(UsageError):
    Segmenter.from_pretrained('no such model', **options)


@pytest.mark.parametrize('frame', [None, np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_frames_of_another_kind_are_refused(model, frame):
  for frames in ([frame], [tiny.frames(1)[0], frame]):
    with pytest.raises(ValueError, match='frame'):
      list(Segmenter(model).segment(frames))
