"""Videos made of odd videos: upright, in step, of the source's size, rate, length, colours and sound, transparent."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import made_videos
import numpy as np
import pytest
from PIL import Image

from adnet_jax import video
from adnet_jax.clip_files import OverlayForm
from adnet_jax.errors import DataError
from adnet_jax.outputs import forms, media
from adnet_jax.outputs import sound as sound_track

TIMES = [0, 40, 80, 300, 340, 720, 760, 1000]
HLG = (9, 18, 9, 1)
ODD = {
  'rotated.mp4': {'rotation': 90, 'sound': 'aac'},
  'upside.mov': {'rotation': 180, 'sound': 'pcm_s16le'},
  'variable.mkv': {'count': len(TIMES), 'times': TIMES, 'sound': 'ac3'},
  'deep.mkv': {'pixels': 'yuv420p10le', 'colour': HLG, 'rate': Fraction(30000, 1001)},
  'silent.mp4': {'rate': 60},
  'odd.webm': {'codec': 'libvpx-vp9', 'size': (95, 63), 'sound': 'libopus'},
  'full.mp4': {'pixels': 'yuvj420p', 'colour': (1, 1, 1, 2), 'sound': 'libmp3lame'},
  'one.mp4': {'count': 1},
  'moving.gif': {'codec': 'gif', 'pixels': 'rgb8', 'rate': 10},
}
FILES = ['background.mp4', 'comparison.mp4', 'cutout.mov', 'cutout.webm', 'overlay.mp4']


def segment(path: Path, out: Path, names: str = '', **choice: object) -> tuple[list[np.ndarray], list[str]]:
  """Writes the overlay and other forms as the pipeline does, masks by colour; returns masks and warnings."""
  source = video.open_source(path, **choice)
  writers = [form.open(out, source) for form in (OverlayForm(), *forms.make_forms(names.split()))]
  masks = []
  try:
    for frame in source:
      masks.append(made_videos.mask_of(frame.image))
      for writer in writers:
        writer.write(frame.image, masks[-1], None, frame.name, frame.time)
  finally:
    for writer in writers:
      writer.close()
  return masks, [text for writer in writers for text in writer.warnings]


@pytest.mark.parametrize('name', ODD)
def test_odd_videos(tmp_path: Path, name: str) -> None:
  path = made_videos.write(tmp_path / name, **ODD[name])
  out = tmp_path / 'out'
  masks, warnings = segment(path, out, 'webm prores background comparison')
  assert not warnings and sorted(os.listdir(out)) == FILES
  given = made_videos.facts(path)
  (w, h), count = ODD[name].get('size', (96, 64)), ODD[name].get('count', 12)
  assert len(masks) == count
  for k, mask in enumerate(masks):
    truth = made_videos.mask_of(made_videos.frame(k, h, w))
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9, 'upright and in step'
  one = 1.01 / given.rate
  for file in FILES:
    made = made_videos.facts(out / file)
    even = file.endswith('.mp4')
    width = 2 * w if file == 'comparison.mp4' else w
    assert made.size == ((h + h % 2, width + width % 2) if even else (h, w)), file
    assert len(made.times) == count
    np.testing.assert_allclose(made.times, given.times, atol=0.0015)
    assert made.seconds == pytest.approx(given.seconds, abs=one), file
    if count > 1 and 'times' not in ODD[name]:
      assert made.rate == pytest.approx(given.rate, rel=1e-3), file
    full = given.colour[3] == 2 and file != 'cutout.mov' and 'gif' not in name
    assert made.colour == ((*HLG[:3], 1) if 'deep' in name else (1, 1, 1, 2 if full else 1)), file
    assert (made.sound is None) == (given.sound is None), file
    if given.sound is not None:
      heard = made_videos.loudness(out / file)[: int(50 * given.seconds) - 2] > 0.02
      expected = np.arange(len(heard)) // 5 % 2 == 0
      assert (heard == expected).mean() > 0.9, 'sound in step'
  shown = made_videos.facts(out / 'overlay.mp4').images[-1][:h, :w].astype(int)
  tinted = shown[..., 2] - shown[..., 1] > -60
  inside = cv2.erode(masks[-1].astype(np.uint8), np.ones((7, 7))).astype(bool)
  assert tinted[inside].all() and inside.any()
  assert (out / 'overlay.mp4').stat().st_size <= max(2 * path.stat().st_size, 1_000_000)


def test_4k_keeps_its_size(tmp_path: Path) -> None:
  size = (3840, 2160)
  path = made_videos.write(tmp_path / 'v.mp4', 1, size, options={'preset': 'ultrafast'})
  segment(path, tmp_path / 'out')
  for file in ('overlay.mp4',):
    assert made_videos.facts(tmp_path / 'out' / file).size == size[::-1]


def test_alpha_is_the_mask_away_from_the_outline(tmp_path: Path) -> None:
  rng = np.random.default_rng(0)
  noise = [rng.integers(0, 255, (60, 90, 3), np.uint8).repeat(2, 0).repeat(2, 1) for _ in range(4)]
  masks = [cv2.circle(np.zeros((120, 180), np.uint8), (40 + 20 * k, 50), 30, 1, -1).astype(bool) for k in range(4)]
  for name, image in enumerate(noise):
    cv2.imwrite(str(tmp_path / f'{name}.png'), image)
  source = video.open_source(tmp_path)
  files, warnings = forms.export(source, masks, tmp_path / 'out', forms.make_forms(['webm', 'prores', 'cutouts']))
  assert not warnings and [path.name for path in files[:2]] == ['cutout.webm', 'cutout.mov']
  prores = []
  with av.open(str(tmp_path / 'out' / 'cutout.mov')) as container:
    for frame in container.decode(video=0):
      plane = np.frombuffer(frame.planes[3], np.uint16).reshape(-1, frame.planes[3].line_size // 2)
      prores.append(np.rint(plane[: frame.height, : frame.width] * (255 / 4095)).astype(np.uint8))
  stills = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in files[2:]]
  for made in (made_videos.alphas(tmp_path / 'out' / 'cutout.webm'), prores, [still[..., 3] for still in stills]):
    for alpha, mask in zip(made, masks, strict=True):
      assert np.abs(alpha.astype(int) - 255 * mask)[far_from_outline(mask)].max() <= 2
      assert 0 < alpha[~far_from_outline(mask)].mean() < 255
  for still, image, mask in zip(stills, noise, masks, strict=True):
    np.testing.assert_array_equal(still[mask][:, :3], image[mask])  # straight: colours are not multiplied
    assert not still[0, -1].any()


def far_from_outline(mask: np.ndarray) -> np.ndarray:
  inside, outside = (cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, 5) for side in (mask, ~mask))
  return np.maximum(inside, outside) > 3


def test_alpha_and_colour_have_key_frames_together(tmp_path: Path) -> None:
  for k in range(60):
    cv2.imwrite(str(tmp_path / f'{k}.png'), made_videos.frame(k % 12, 32, 48)[..., ::-1])
  source = video.open_source(tmp_path)
  forms.export(source, (np.eye(32, 48, dtype=bool),) * 60, tmp_path / 'out', forms.make_forms(['webm']))
  with av.open(str(tmp_path / 'out' / 'cutout.webm')) as container:
    packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [float(packet.pts * packet.time_base) for packet in packets if packet.is_keyframe]
  assert keys == [0, 2]
  # Of VP9's uncompressed header: frame marker 2, profile, show_existing 0, then 0 for a key frame.
  alpha_keys = [bytes(packet.get_sidedata('matroska_block_additional'))[8] & 0b100 == 0 for packet in packets]
  assert alpha_keys == [packet.is_keyframe for packet in packets]


@pytest.mark.parametrize(('codec', 'name'), [('aac', 'v.mp4'), ('libopus', 'v.mkv'), ('ac3', 'v.mkv')])
def test_sound_of_a_part(tmp_path: Path, codec: str, name: str) -> None:
  path = made_videos.write(tmp_path / name, 100, sound=codec, options={'preset': 'ultrafast'})
  segment(path, tmp_path / 'out', 'webm', start=30, end=80)
  for file in ('overlay.mp4', 'cutout.webm'):
    made = made_videos.facts(tmp_path / 'out' / file)
    assert made.seconds == pytest.approx(2, abs=0.04)
    heard = made_videos.loudness(tmp_path / 'out' / file)[:98] > 0.02
    assert (heard == ((np.arange(98) + 60) // 5 % 2 == 0)).mean() > 0.9, file


def test_sound_that_begins_before_the_pictures(tmp_path: Path) -> None:
  path = made_videos.write(tmp_path / 'v.mkv', 25, sound='libopus', start=0.28)
  segment(path, tmp_path / 'out')
  heard = made_videos.loudness(tmp_path / 'out' / 'overlay.mp4')[:48] > 0.02
  assert (heard == ((np.arange(48) + 14) // 5 % 2 == 0)).mean() > 0.9


def test_no_sound_where_frames_are_left_out_and_copies_where_it_can(tmp_path: Path) -> None:
  path = made_videos.write(tmp_path / 'v.mp4', sound='aac')
  _, warnings = segment(path, tmp_path / 'few', every=3)
  assert warnings == ['overlay.mp4 has no sound, as frames are left out (--every)']
  assert made_videos.facts(tmp_path / 'few' / 'overlay.mp4').sound is None
  segment(path, tmp_path / 'all')
  packets = []
  for file in (path, tmp_path / 'all' / 'overlay.mp4'):
    with av.open(str(file)) as container:
      packets.append([bytes(packet) for packet in container.demux(audio=0) if packet.size])
  assert packets[0] == packets[1]


def test_the_last_frame_of_a_gif_lasts(tmp_path: Path) -> None:
  pictures = [Image.fromarray(made_videos.frame(k, 64, 96)) for k in range(4)]
  pictures[0].save(tmp_path / 'v.gif', save_all=True, append_images=pictures[1:], duration=[100, 100, 100, 1000])
  segment(tmp_path / 'v.gif', tmp_path / 'out', 'webm')
  for file in ('overlay.mp4', 'cutout.webm'):
    made = made_videos.facts(tmp_path / 'out' / file)
    np.testing.assert_allclose(made.times, [0, 0.1, 0.2, 0.3], atol=0.002)
    assert made.seconds == pytest.approx(1.3, abs=0.01), file


def test_a_video_that_breaks_off_ends_there(tmp_path: Path) -> None:
  path = made_videos.write(tmp_path / 'v.mkv', 100, (320, 240), sound='libopus', options={'preset': 'ultrafast'})
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
  with pytest.raises(DataError, match='breaks off'):
    segment(path, tmp_path / 'out', 'background')
  for file in ('overlay.mp4', 'background.mp4'):
    made = made_videos.facts(tmp_path / 'out' / file)
    assert 20 < len(made.times) < 90 and made.seconds == pytest.approx(len(made.times) / 25, abs=0.05)


@pytest.mark.parametrize('rotation', [None, 90])
def test_pixels_that_are_not_square(tmp_path: Path, rotation: int | None) -> None:
  made_videos.write(tmp_path / 'v.mp4', 2, (96, 64), rotation=rotation, aspect=Fraction(4, 3))
  segment(tmp_path / 'v.mp4', tmp_path / 'out', 'webm prores comparison')
  for file, wide in (('overlay.mp4', 96), ('cutout.mov', 96), ('comparison.mp4', 192)):
    with av.open(str(tmp_path / 'out' / file)) as container:
      stream = container.streams.video[0]
      assert (stream.width, stream.height) == (wide, 64)
      assert stream.sample_aspect_ratio == (Fraction(3, 4) if rotation else Fraction(4, 3)), file
  shape = made_videos.facts(tmp_path / 'out' / 'cutout.webm').size
  assert shape == ((85, 96) if rotation else (64, 128))


def test_sound_longer_than_the_pictures_goes_on(tmp_path: Path) -> None:
  path = made_videos.write(tmp_path / 'v.mp4', 5, sound='aac', beyond=2.5)
  segment(path, tmp_path / 'out', 'webm')
  for file in ('overlay.mp4', 'cutout.webm'):
    made = made_videos.facts(tmp_path / 'out' / file)
    assert made.length == pytest.approx(2.7, abs=0.05) and len(made.times) == 5, file
  segment(path, tmp_path / 'part', end=3)
  assert made_videos.facts(tmp_path / 'part' / 'overlay.mp4').length == pytest.approx(0.12, abs=0.04)


def test_little_sound_does_not_become_much() -> None:
  quiet, unknown = (media.Sound(Path('v.mp4'), 1, 'aac', rate) for rate in (24_000, None))
  assert sound_track.bit_rate(quiet, 'webm') == 48_000 and sound_track.bit_rate(unknown, 'webm') == 128_000


@pytest.mark.parametrize('width', [65, 81, 97])
def test_transparent_pictures_of_odd_widths_are_whole(tmp_path: Path, width: int) -> None:
  with av.open(str(tmp_path / 'v.mkv'), 'w') as container:
    stream = container.add_stream('ffv1', rate=25)
    stream.width, stream.height, stream.pix_fmt = width, 240, 'yuva420p'
    picture = av.VideoFrame(width, 240, 'yuva420p')
    for plane, values in zip(picture.planes, (np.arange(width) + 80, 128, 128, 255), strict=True):
      np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : plane.width] = values
    for packet in stream.encode(picture) + stream.encode():
      container.mux(packet)
  source = video.open_source(tmp_path / 'v.mkv')
  for _ in range(10):
    (frame,) = source
    np.testing.assert_array_equal(frame.image, np.broadcast_to(frame.image[:1], frame.image.shape))
