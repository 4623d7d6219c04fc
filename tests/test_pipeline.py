"""A clip to its files: what is written, what faults leave behind, going on after a break, memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import tiny

from adnet_jax import background, pipeline, video
from adnet_jax.errors import DataError, UsageError
from adnet_jax.masks import read_mask
from adnet_jax.pipeline import Outputs, check_free, segment_clip
from adnet_jax.segmenter import Segmenter

SIZE = tiny.SIZE


@pytest.fixture
def clip(tmp_path) -> Path:
  return tiny.write_frames(tmp_path / 'clip', tiny.frames(9, (150, 80)))


@pytest.fixture
def segmenter(model) -> Segmenter:
  return Segmenter(model, size=SIZE, batch=4)


def read_masks(folder: Path) -> dict[str, np.ndarray]:
  return {path.stem: read_mask(path) for path in sorted(folder.glob('*.png'))}


def names(folder: Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


def overlay_frames(path: Path) -> int:
  with av.open(str(path)) as container:
    return sum(1 for _ in container.decode(video=0))


def write_video(path: Path, count: int, size: tuple[int, int] = (160, 80)) -> Path:
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('mpeg4', rate=25)
    stream.width, stream.height, stream.pix_fmt = *size, 'yuv420p'
    stream.bit_rate = 4_000_000
    for image in tiny.frames(count, size):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, 'rgb24')))
    container.mux(stream.encode())
  return path


def test_files_and_summary_of_a_clip(segmenter, clip, tmp_path):
  out, calls = tmp_path / 'out', []
  outputs = Outputs(heatmaps=True)
  summary = segment_clip(
    segmenter, video.open_source(clip), out, outputs, model_name='tiny', progress=lambda: calls.append(1)
  )
  assert names(out) == ['heatmaps', 'masks', 'overlay.mp4', 'summary.json']
  assert names(out / 'masks') == names(out / 'heatmaps') == [f'{k:05d}.png' for k in range(9)]
  assert len(calls) == 9 == overlay_frames(out / 'overlay.mp4')
  assert json.loads((out / 'summary.json').read_text()) == summary
  assert list(summary) == [
    'model', 'protocol', 'scales', 'mirror', 'size', 'refine', 'frames', 'reused', 'anchor', 'shots', 'seconds',
    'limited_by', 'files', 'warnings',
  ]  # fmt: skip
  assert summary['size'] == list(SIZE) and summary['frames'] == 9 and summary['anchor'] == 0
  assert {'total', 'read', 'network', 'write', 'overlay'} == set(summary['seconds'])
  assert summary['limited_by'] in summary['seconds'] and summary['reused'] == 0
  soft = list(segmenter.segment(tiny.frames(9, (150, 80)), soft=True))
  for probability, (name, mask) in zip(soft, read_masks(out / 'masks').items(), strict=True):
    np.testing.assert_array_equal(mask, probability > 0.5)
    stored = cv2.imread(str(out / 'heatmaps' / f'{name}.png'), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    np.testing.assert_allclose(stored / 65535, probability, atol=1e-5)


def test_files_go_where_they_are_told(segmenter, clip, tmp_path):
  out, masks, heatmaps = (tmp_path / name for name in ('out', 'masks', 'heatmaps'))
  folders = {'masks_in': masks / 'clip', 'heatmaps_in': heatmaps / 'clip'}
  outputs = Outputs(heatmaps=True, overlay=False)
  segment_clip(segmenter, video.open_source(clip), out, outputs, **folders)
  assert names(masks / 'clip') == names(heatmaps / 'clip') == [f'{k:05d}.png' for k in range(9)]
  assert names(out) == ['summary.json']
  kept = (masks / 'clip' / '00000.png').stat().st_mtime_ns
  (heatmaps / 'clip' / '00008.png').unlink()
  segment_clip(segmenter, video.open_source(clip), out, Outputs(heatmaps=True, overlay=False, resume=True), **folders)
  assert len(names(heatmaps / 'clip')) == 9 and (masks / 'clip' / '00000.png').stat().st_mtime_ns == kept
  segment_clip(segmenter, video.open_source(clip), out, Outputs(overlay=False, overwrite=True), **folders)
  assert not names(heatmaps / 'clip') and len(names(masks / 'clip')) == 9


def test_earlier_results_are_refused_kept_or_replaced(segmenter, clip, tmp_path):
  out = tmp_path / 'out'
  (out / 'masks').mkdir(parents=True)
  check_free(out, Outputs())  # empty folders are no results
  tiny.write_frames(out / 'masks', tiny.frames(1), first=99)
  (out / 'masks' / 'notes.txt').write_text('mine')
  (out / 'masks' / '.adnet-1-2.tmp').write_text('of a killed run')
  with pytest.raises(UsageError, match=r'already holds results.*--overwrite or --resume'):
    check_free(out, Outputs())
  check_free(out, Outputs(overwrite=True))
  assert (out / 'masks' / '00099.png').exists(), 'nothing is removed before frames can be read'
  segment_clip(segmenter, video.open_source(clip), out, Outputs(overwrite=True, overlay=False))
  assert names(out / 'masks') == [f'{k:05d}.png' for k in range(9)] + ['notes.txt']


def test_overwrite_loses_nothing_where_no_frame_can_be_read(segmenter, tmp_path):
  out = tiny.write_frames(tmp_path / 'out' / 'masks', tiny.frames(2)).parent
  (tmp_path / 'clip').mkdir()
  (tmp_path / 'clip' / 'a.png').write_bytes(b'not an image')
  with pytest.raises(DataError):
    segment_clip(segmenter, video.open_source(tmp_path / 'clip'), out, Outputs(overwrite=True))
  assert names(out) == ['masks'] and len(names(out / 'masks')) == 2


@pytest.mark.parametrize('protocol', ['paper', 'released'])
@pytest.mark.parametrize('first_missing', [0, 1, 5, 9])
def test_a_resumed_run_gives_the_masks_of_an_uninterrupted_one(model, tmp_path, protocol, first_missing):
  segmenter = Segmenter(model, protocol, size=SIZE, batch=4)
  clip = tiny.write_frames(tmp_path / 'clip', tiny.frames(9, (300, 150), seed=3))
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  segment_clip(segmenter, video.open_source(clip), whole, Outputs())
  for k in range(first_missing):
    (broken / 'masks').mkdir(parents=True, exist_ok=True)
    path = broken / 'masks' / f'{k:05d}.png'
    path.write_bytes((whole / 'masks' / path.name).read_bytes())
  if first_missing == 5:
    # One of later frames, which the writing threads may have finished first; it is made again.
    video.write_mask(broken / 'masks' / '00007.png', np.zeros((150, 300), bool))
  check_free(broken, Outputs(resume=True))
  summary = segment_clip(segmenter, video.open_source(clip), broken, Outputs(resume=True))
  assert summary['frames'] == 9 == overlay_frames(broken / 'overlay.mp4')
  expected = read_masks(whole / 'masks')
  # A frame's place in its batch moves the last bits of its probabilities, and a resumed run has other batches: of this
  # network's 45,000 near-random pixels one or two may lie just there.
  for name, mask in read_masks(broken / 'masks').items():
    assert np.count_nonzero(mask != expected[name]) <= 3, name
  assert len(expected) == 9


def test_resume_also_makes_missing_heat_maps_and_refuses_masks_of_another_clip(segmenter, clip, tmp_path):
  out = tmp_path / 'out'
  segment_clip(segmenter, video.open_source(clip), out, Outputs(overlay=False))
  segment_clip(segmenter, video.open_source(clip), out, Outputs(overlay=False, resume=True, heatmaps=True))
  assert len(names(out / 'heatmaps')) == 9
  video.write_mask(out / 'masks' / '00000.png', np.zeros((5, 5), bool))
  with pytest.raises(UsageError, match=r'00000.png.*--overwrite'):
    segment_clip(segmenter, video.open_source(clip), out, Outputs(resume=True))


def test_the_anchor_may_be_any_frame(segmenter, clip, tmp_path):
  frames = tiny.frames(9, (150, 80))
  source = video.open_source(clip, start=2, end=8, every=2)
  summary = segment_clip(segmenter, source, tmp_path / 'a', Outputs(overlay=False), anchor=5)
  expected = list(segmenter.segment(frames[2:8:2], anchor=frames[5]))
  found = read_masks(tmp_path / 'a' / 'masks')
  assert list(found) == ['00002', '00004', '00006'] and summary['anchor'] == 5
  np.testing.assert_array_equal(list(found.values()), expected)
  assert segment_clip(segmenter, source, tmp_path / 'b', Outputs(overlay=False))['anchor'] == 2
  with pytest.raises(DataError, match='no frame 9, the clip has 9'):
    segment_clip(segmenter, source, tmp_path / 'c', Outputs(), anchor=9)
  assert not (tmp_path / 'c').exists()


def test_the_anchor_of_a_video(segmenter, tmp_path):
  source = video.open_source(write_video(tmp_path / 'v.mp4', 6))
  frames = [frame.image for frame in source]
  segment_clip(segmenter, source, tmp_path / 'out', Outputs(overlay=False), anchor=3)
  found = list(read_masks(tmp_path / 'out' / 'masks').values())
  np.testing.assert_array_equal(found, list(segmenter.segment(frames, anchor=frames[3])))
  with pytest.raises(DataError, match='no frame from 6 on'):
    segment_clip(segmenter, source, tmp_path / 'none', Outputs(), anchor=6)


@pytest.mark.parametrize('bad', [2, 6])
def test_a_damaged_frame_ends_the_clip_and_what_came_before_is_kept(segmenter, clip, tmp_path, bad):
  (clip / f'{bad:05d}.png').write_bytes((clip / '00000.png').read_bytes()[:300])
  out = tmp_path / 'out'
  with pytest.raises(DataError, match=f'{bad:05d}.png'):
    segment_clip(segmenter, video.open_source(clip), out, Outputs(heatmaps=True))
  assert names(out / 'masks') == names(out / 'heatmaps') == [f'{k:05d}.png' for k in range(bad)]
  assert overlay_frames(out / 'overlay.mp4') == bad
  summary = json.loads((out / 'summary.json').read_text())
  assert summary['frames'] == bad and f'{bad:05d}.png' in summary['warnings'][-1]
  skipped = segment_clip(segmenter, video.open_source(clip, skip_bad=True), tmp_path / 'skip', Outputs())
  assert skipped['frames'] == 8 and any('left out' in text for text in skipped['warnings'])


def test_a_video_cut_in_the_middle(segmenter, tmp_path):
  path = write_video(tmp_path / 'v.avi', 30)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  out = tmp_path / 'out'
  with pytest.raises(DataError, match='breaks off at frame'):
    segment_clip(segmenter, video.open_source(path), out, Outputs())
  count = len(names(out / 'masks'))
  assert 5 < count < 30 and overlay_frames(out / 'overlay.mp4') == count
  assert f'breaks off at frame {count}' in json.loads((out / 'summary.json').read_text())['warnings'][-1]


def test_a_full_disk_names_the_last_mask(segmenter, clip, tmp_path, monkeypatch):
  write = Path.write_bytes

  def full(path, data):
    if len(list((tmp_path / 'out' / 'masks').glob('*.png'))) >= 3:
      raise OSError(28, 'No space left on device')
    return write(path, data)

  monkeypatch.setattr(Path, 'write_bytes', full)
  with pytest.raises(DataError, match=r'No space left on device.*the last one written is'):
    segment_clip(segmenter, video.open_source(clip), tmp_path / 'out', Outputs())
  assert all(name.endswith('.png') for name in names(tmp_path / 'out' / 'masks'))


def test_an_overlay_that_cannot_be_written_is_not_begun_again(segmenter, clip, tmp_path, monkeypatch):
  write, calls = video.OverlayWriter.write, []

  def failing(self, *arguments):
    calls.append(1)
    if len(calls) == 3:
      self.abort()
      raise DataError('cannot be written: disk full', self.path)
    write(self, *arguments)

  monkeypatch.setattr(video.OverlayWriter, 'write', failing)
  with pytest.raises(DataError, match='disk full'):
    segment_clip(segmenter, video.open_source(clip), tmp_path / 'out', Outputs())
  assert len(calls) == 3 and 'overlay.mp4' not in names(tmp_path / 'out')


def test_ctrl_c_between_the_files_of_a_frame_leaves_it_whole(segmenter, clip, tmp_path, monkeypatch):
  submit = background.WriteBehind.submit

  def interrupted(self, stage, size, function, *arguments):
    submit(self, stage, size, function, *arguments)
    if function is video.write_mask and arguments[0].stem == '00003':
      signal.raise_signal(signal.SIGINT)

  monkeypatch.setattr(background.WriteBehind, 'submit', interrupted)
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with pytest.raises(KeyboardInterrupt):
      segment_clip(segmenter, video.open_source(clip), tmp_path / 'out', Outputs(heatmaps=True))
  finally:
    signal.signal(signal.SIGINT, before)
  assert len(names(tmp_path / 'out' / 'masks')) == len(names(tmp_path / 'out' / 'heatmaps')) == 4
  assert overlay_frames(tmp_path / 'out' / 'overlay.mp4') == 4


def test_without_pyav_there_is_no_overlay_and_it_is_said(segmenter, clip, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'av', None)
  summary = segment_clip(segmenter, video.open_source(clip), tmp_path / 'out', Outputs())
  assert 'adnet-jax[video]' in summary['warnings'][0] and summary['frames'] == 9


def test_empty_masks_are_written_and_said(model, clip, tmp_path):
  empty = Segmenter(model, size=SIZE, threshold=1.0, batch=4)
  summary = segment_clip(empty, video.open_source(clip), tmp_path / 'out', Outputs(overlay=False))
  assert len(names(tmp_path / 'out' / 'masks')) == 9
  assert summary['warnings'] == ['no foreground was found: every mask is empty']


def test_frames_of_different_sizes(segmenter, tmp_path):
  sizes = [(96, 48), (50, 60), (96, 48), (1, 1)]
  clip = tiny.write_frames(tmp_path / 'clip', [tiny.frames(1, size)[0] for size in sizes])
  segment_clip(segmenter, video.open_source(clip), tmp_path / 'out', Outputs())
  assert [mask.shape[::-1] for mask in read_masks(tmp_path / 'out' / 'masks').values()] == sizes


MEMORY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import tiny
from adnet_jax import pipeline
from adnet_jax.segmenter import Segmenter
from adnet_jax.sources import Frame, Source

class Clip(Source):
  def __iter__(self):
    images = tiny.frames(20, (320, 180))
    for k in range(1000):
      yield Frame(f'{{k:05d}}', k, images[k % 20].copy())

peaks = []
def note():
  peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

segmenter = Segmenter.from_pretrained({model!r})
source = Clip('clip', [Path({model!r})], None, None, 1, False)
pipeline.segment_clip(segmenter, source, Path({out!r}), pipeline.Outputs(), progress=note)
print(peaks[99], peaks[999])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(tiny_model, tmp_path):
  script = MEMORY.format(tests=str(Path(__file__).parent), model=str(tiny_model), out=str(tmp_path / 'out'))
  run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
  after_100, after_1000 = (int(word) for word in run.stdout.split())
  assert len(names(tmp_path / 'out' / 'masks')) == 1000
  assert after_1000 < 1.05 * after_100


def test_reading_ahead_holds_few_large_frames():
  assert pipeline.WAITING_BYTES // (4096 * 2160 * 3) < 6
