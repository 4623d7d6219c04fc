"""Masks and heat maps on disk, overlays as videos, and what is left behind when writing fails."""

from __future__ import annotations

import errno
import os
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from adnet_jax import writers
from adnet_jax.errors import DataError, UsageError
from adnet_jax.outputs import encoders
from adnet_jax.outputs.movies import OverlayWriter
from adnet_jax.writers import draw_overlay, write_heatmap, write_mask


def scene(h: int, w: int, shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
  y, x = np.mgrid[:h, :w]
  rgb = np.stack([(x + shift) % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8)
  return rgb, (x > w // 4) & (x < 3 * w // 4) & (y > h // 4) & (y < 3 * h // 4)


def full_disk(*_: object, **__: object) -> None:
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def decode(path: Path) -> list:
  with av.open(str(path)) as container:
    return list(container.decode(video=0))


@pytest.mark.parametrize('shape', [(1, 1), (5, 9), (48, 64)])
def test_mask_is_8_bit_0_and_255(tmp_path: Path, shape: tuple[int, int]) -> None:
  mask = np.random.default_rng(0).random(shape) > 0.5
  path = tmp_path / 'new' / 'Ä 50% -x.001.png'
  write_mask(path, mask)
  data = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
  assert data.dtype == np.uint8 and data.shape == shape
  np.testing.assert_array_equal(data, np.where(mask, 255, 0))
  assert os.listdir(path.parent) == [path.name]


def test_heatmap_is_16_bit_of_the_probability(tmp_path: Path) -> None:
  probability = np.linspace(-0.1, 1.1, 300, dtype=np.float32).reshape(10, 30)
  write_heatmap(tmp_path / '00000.png', probability)
  data = cv2.imread(str(tmp_path / '00000.png'), cv2.IMREAD_UNCHANGED)
  assert data.dtype == np.uint16
  np.testing.assert_allclose(data / 65535, np.clip(probability, 0, 1), atol=0.5 / 65535)


def test_wrong_types_are_refused(tmp_path: Path) -> None:
  with pytest.raises(ValueError, match='bool'):
    write_mask(tmp_path / 'a.png', np.zeros((2, 2), np.uint8))
  with pytest.raises(ValueError, match='float'):
    write_heatmap(tmp_path / 'a.png', np.zeros((2, 2), np.uint8))
  with pytest.raises(ValueError, match='bool'):
    draw_overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3), bool))
  assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.name == 'nt', reason='file modes of POSIX')
def test_mask_has_the_usual_permissions(tmp_path: Path) -> None:
  write_mask(tmp_path / 'a.png', np.zeros((2, 2), bool))
  (tmp_path / 'b').touch()
  assert (tmp_path / 'a.png').stat().st_mode == (tmp_path / 'b').stat().st_mode


def test_full_disk_names_the_last_mask_and_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  mask = np.zeros((4, 4), bool)
  for name in ('00002.png', '00000.png', '00001.png'):
    write_mask(tmp_path / name, mask)
  before = (tmp_path / '00002.png').read_bytes()
  os.utime(tmp_path / '00002.png', (1, 1))  # from an earlier run
  monkeypatch.setattr(os, 'replace', full_disk)
  with pytest.raises(DataError, match=r'No space left.*00002\.png.*last one written is 00001\.png'):
    write_mask(tmp_path / '00002.png', ~mask)
  assert sorted(os.listdir(tmp_path)) == ['00000.png', '00001.png', '00002.png']
  assert (tmp_path / '00002.png').read_bytes() == before


def test_output_that_is_a_file_is_a_data_error(tmp_path: Path) -> None:
  (tmp_path / 'masks').write_text('')
  with pytest.raises(DataError, match='none was written'):
    write_mask(tmp_path / 'masks' / '00000.png', np.zeros((4, 4), bool))
  overlay = OverlayWriter(tmp_path / 'masks' / 'overlay.mp4')
  with pytest.raises(DataError, match='cannot be written'):
    overlay.write(*scene(8, 8))


def test_overlay_tints_inside_and_outlines_outside() -> None:
  rgb, mask = scene(40, 60)
  kept = rgb.copy()
  drawn = draw_overlay(rgb, mask)
  np.testing.assert_array_equal(rgb, kept)
  expected = rgb[mask] * (1 - writers.TINT_SHARE) + np.array(writers.TINT) * writers.TINT_SHARE
  np.testing.assert_allclose(drawn[mask], expected, atol=1)
  ring = cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))).astype(bool) & ~mask
  assert (drawn[ring] == writers.OUTLINE).all()
  np.testing.assert_array_equal(drawn[~mask & ~ring], rgb[~mask & ~ring])
  np.testing.assert_array_equal(draw_overlay(rgb, np.zeros_like(mask)), rgb)
  assert draw_overlay(rgb[:, ::-1], mask).shape == rgb.shape  # arrays that are not contiguous
  assert draw_overlay(rgb[:1, :1], np.ones((1, 1), bool)).shape == (1, 1, 3)


@pytest.mark.parametrize(
  ('shape', 'picture'),
  [((1, 1), (2, 2)), ((8, 1000), (8, 1000)), ((47, 63), (48, 64)), ((16, 16), (16, 16)), ((1080, 8192), (540, 4096))],
)
def test_overlay_video_of_any_size_plays_in_browsers(tmp_path: Path, shape: tuple, picture: tuple) -> None:
  path = tmp_path / 'overlay.mp4'
  rgb, mask = scene(*shape)
  with OverlayWriter(path, 25) as overlay:
    for _ in range(3):
      overlay.write(rgb, mask)
    assert not path.exists()
  assert os.listdir(tmp_path) == ['overlay.mp4']
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ('h264', 'yuv420p')
    assert (stream.height, stream.width, stream.frames) == (*picture, 3)
  data = path.read_bytes()
  assert data.index(b'moov') < data.index(b'mdat')  # plays before it is loaded whole


def test_overlay_shows_the_colours_given(tmp_path: Path) -> None:
  colour = np.full((64, 64, 3), (200, 40, 90), np.uint8)
  with OverlayWriter(tmp_path / 'o.mp4') as overlay:
    overlay.write(colour, np.zeros((64, 64), bool))
  frame = decode(tmp_path / 'o.mp4')[0]
  assert int(frame.colorspace) == 1  # labelled BT.709
  np.testing.assert_allclose(frame.to_ndarray(format='rgb24'), colour, atol=6)


@pytest.mark.parametrize('rate', [Fraction(24000, 1001), Fraction(30), Fraction(8), 12.5, Fraction(25, 3)])
def test_constant_rate_is_kept(tmp_path: Path, rate: Fraction | float) -> None:
  with OverlayWriter(tmp_path / 'o.mp4', rate) as overlay:
    for _ in range(10):
      overlay.write(*scene(32, 32))
  with av.open(str(tmp_path / 'o.mp4')) as container:
    stream = container.streams.video[0]
    assert float(stream.average_rate) == pytest.approx(float(rate), rel=1e-4)
    assert float(stream.duration * stream.time_base) == pytest.approx(10 / float(rate), rel=1e-3)


def test_variable_times_are_kept_and_faulty_ones_mended(tmp_path: Path) -> None:
  times = [Fraction(k, 1000) for k in (5000, 5040, 5500, 5500, 5400, 6000)]
  with OverlayWriter(tmp_path / 'o.mp4', 25) as overlay:
    for time in times:
      overlay.write(*scene(32, 32), time)
    overlay.write(*scene(32, 32))
  shown = [float(frame.pts * frame.time_base) for frame in decode(tmp_path / 'o.mp4')]
  np.testing.assert_allclose(shown, [0, 0.04, 0.5, 0.5, 0.5, 1, 1.04], atol=1e-4)
  assert (np.diff(shown) > 0).all()


def test_frames_of_other_sizes_are_fitted_in(tmp_path: Path) -> None:
  with OverlayWriter(tmp_path / 'o.mp4') as overlay:
    for h, w in ((48, 64), (64, 48), (1, 1), (100, 1)):
      overlay.write(np.full((h, w, 3), 200, np.uint8), np.zeros((h, w), bool))
  frames = [frame.to_ndarray(format='rgb24') for frame in decode(tmp_path / 'o.mp4')]
  assert {frame.shape for frame in frames} == {(48, 64, 3)}
  assert frames[1][24, 32].min() > 180 and frames[1][24, 2].max() < 30  # upright in the middle, black beside it


def test_overlay_keeps_to_its_bit_rate(tmp_path: Path) -> None:
  rng = np.random.default_rng(0)
  mask = np.zeros((120, 160), bool)
  for path, limit in ((tmp_path / 'free.mp4', None), (tmp_path / 'held.mp4', 200_000)):
    with OverlayWriter(path, 25, bit_rate=limit) as overlay:
      for _ in range(75):
        overlay.write(rng.integers(0, 255, (120, 160, 3), np.uint8), mask)
  assert (tmp_path / 'free.mp4').stat().st_size > 200_000
  assert (tmp_path / 'held.mp4').stat().st_size < 1.2 * 3 * 200_000 / 8


def test_an_exception_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
  path = tmp_path / 'overlay.mp4'
  path.write_bytes(b'before')
  with pytest.raises(RuntimeError), OverlayWriter(path) as overlay:
    overlay.write(*scene(32, 32))
    raise RuntimeError
  with OverlayWriter(path):
    pass  # not one frame: nothing to show, nothing replaced
  assert os.listdir(tmp_path) == ['overlay.mp4'] and path.read_bytes() == b'before'


def test_full_disk_in_an_overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  overlay = OverlayWriter(tmp_path / 'overlay.mp4')
  overlay.write(*scene(32, 32))
  monkeypatch.setattr(os, 'replace', full_disk)
  with pytest.raises(DataError, match='No space left'):
    overlay.close()
  assert not os.listdir(tmp_path)


@pytest.mark.skipif(sys.platform != 'linux', reason='limits of a process')
def test_a_file_system_that_refuses_more_bytes(tmp_path: Path) -> None:
  import resource
  import signal

  rng = np.random.default_rng(0)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    with pytest.raises(DataError, match=r'overlay\.mp4'), OverlayWriter(tmp_path / 'overlay.mp4') as overlay:
      resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
      for _ in range(60):
        overlay.write(rng.integers(0, 255, (64, 64, 3), np.uint8), np.zeros((64, 64), bool))
    with pytest.raises(DataError, match=r'a\.png'):
      write_mask(tmp_path / 'a.png', rng.random((800, 800)) > 0.5)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)
  assert not os.listdir(tmp_path)


def test_falls_back_to_the_encoders_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(encoders, 'H264', ('no-such-encoder', 'mpeg4'))
  with OverlayWriter(tmp_path / 'o.mp4') as overlay:
    overlay.write(*scene(32, 32))
  assert 'browsers' in overlay.warnings[0] and len(decode(tmp_path / 'o.mp4')) == 1


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setitem(sys.modules, 'av', None)
  with pytest.raises(UsageError, match=r"pip install 'adnet-jax\[video\]'"):
    OverlayWriter(tmp_path / 'o.mp4')


def test_a_bit_rate_beyond_ffmpegs_range_is_no_limit(tmp_path):
  # As of short clips of large, hardly compressible frames.
  with OverlayWriter(tmp_path / 'o.mp4', bit_rate=4_000_000_000) as writer:
    writer.write(np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), bool))
  assert (tmp_path / 'o.mp4').stat().st_size
