"""Clips from all that a user may name: folders, patterns, images of all kinds, videos whole, turned and broken."""

from __future__ import annotations

import gc
import os
import sys
import threading
import tracemalloc
import wave
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from adnet_jax import images, sources
from adnet_jax.errors import DataError, UsageError
from adnet_jax.outputs.movies import OverlayWriter
from adnet_jax.video import check_output, open_source, output_names, read_image, resolve_inputs

CORNERS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))  # top left, top right, bottom left, bottom right


def quadrants(h: int, w: int) -> np.ndarray:
  image = np.zeros((h, w, 3), np.uint8)
  for k, colour in enumerate(CORNERS):
    image[h // 2 * (k // 2) : h if k // 2 else h // 2, w // 2 * (k % 2) : w if k % 2 else w // 2] = colour
  return image


def corners(image: np.ndarray) -> list[int]:
  """Which of CORNERS is nearest to each corner's colour, a little inside."""
  h, w = image.shape[:2]
  points = [image[y, x].astype(int) for y in (h // 4, h - 1 - h // 4) for x in (w // 4, w - 1 - w // 4)]
  return [int(np.argmin([np.abs(point - colour).sum() for colour in CORNERS])) for point in points]


def save(path: Path, value: int = 0, size: tuple[int, int] = (8, 6), **options: object) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path, **options)
  return path


def make_video(
  path: Path, count: int = 10, size: tuple[int, int] = (64, 48), *, codec: str = 'libx264', pixels: str = 'yuv420p',
  rotation: float | None = None, mirror: bool = False, times: list[int] | None = None, image: np.ndarray | None = None,
  options: dict | None = None, container_options: dict | None = None,
) -> Path:  # fmt: skip
  """A video whose frame k is grey of value 20 k (or `image`), at 25 frames a second or at `times` in milliseconds."""
  with av.open(str(path), 'w', options=container_options or {}) as container:
    stream = container.add_stream(codec, rate=25, options=options or {})
    stream.width, stream.height, stream.pix_fmt = *size, pixels
    if times:
      stream.codec_context.time_base = Fraction(1, 1000)
    if rotation is not None:
      if not hasattr(stream, 'set_display_rotation'):
        pytest.skip('this PyAV writes no rotation')
      stream.set_display_rotation(rotation, hflip=mirror)
    for k in range(count):
      picture = np.full((size[1], size[0], 3), 20 * k % 256, np.uint8) if image is None else image
      frame = av.VideoFrame.from_ndarray(picture, 'rgb24' if picture.shape[2] == 3 else 'rgba')
      if times:
        frame.pts, frame.time_base = times[k], Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def noisy_video(path: Path, codec: str = 'libx264') -> Path:
  """60 frames with enough bytes in each that a cut falls into the picture data."""
  picture = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8).repeat(8, 0).repeat(8, 1)
  with av.open(str(path), 'w', options={'movflags': 'faststart'} if path.suffix == '.mp4' else {}) as container:
    stream = container.add_stream(codec, rate=25, options={'g': '12'})
    stream.width, stream.height, stream.pix_fmt = 320, 240, 'yuv420p'
    for k in range(60):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, 3 * k, 1), 'rgb24')))
    container.mux(stream.encode())
  return path


def names(source: object) -> list[str]:
  return [frame.name for frame in source]


# Folders, patterns, names.


def test_folder_in_natural_order_with_its_own_names(tmp_path: Path) -> None:
  for name in ('10.jpg', '2.jpg', '1.PNG', 'a b 50%.png', 'Äöü.webp', '-x.bmp'):
    save(tmp_path / 'clip' / name)
  for name in ('notes.txt', '.DS_Store', '._1.jpg', 'thumbs.db'):
    (tmp_path / 'clip' / name).write_text('no image')
  (tmp_path / 'clip' / 'folder.png').mkdir()
  source = open_source(tmp_path / 'clip')
  assert (source.kind, source.name, source.rate, source.length) == ('frames', 'clip', 24, 6)
  assert names(source) == names(source) == output_names(source)  # iterated twice
  assert set(names(source)) == {'10', '2', '1', 'a b 50%', 'Äöü', '-x'}
  assert [name for name in names(source) if name.isdigit()] == ['1', '2', '10']
  frame = next(iter(source))
  assert (frame.image.shape, frame.image.dtype, frame.time) == ((6, 8, 3), np.uint8, None)


def test_relative_names_with_a_leading_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  save(tmp_path / '-clip' / '-0.png')
  make_video(tmp_path / '-v %d.mp4', 2)
  monkeypatch.chdir(tmp_path)
  assert names(open_source('-clip')) == ['-0'] and names(open_source('-clip/-0.png')) == ['-0']
  monkeypatch.chdir(tmp_path / '-clip')
  assert open_source('.').name == '-clip'
  monkeypatch.chdir(tmp_path)
  assert (open_source('-v %d.mp4').name, names(open_source('-v %d.mp4'))) == ('-v %d', ['00000', '00001'])


def test_start_end_every_count_all_frames_from_0(tmp_path: Path) -> None:
  for k in range(12):
    save(tmp_path / f'{k}.png', k)
  source = open_source(tmp_path, start=2, end=9, every=3)
  assert [(f.name, f.index, f.image[0, 0, 0]) for f in source] == [('2', 2, 2), ('5', 5, 5), ('8', 8, 8)]
  assert (source.length, source.rate, output_names(source)) == (3, 8, ['2', '5', '8'])
  video = make_video(tmp_path / 'v.mp4', 12)
  source = open_source(video, start=2, end=9, every=3)
  assert [(f.name, f.index, f.time) for f in source] == [
    ('00002', 2, Fraction(2, 25)), ('00005', 5, Fraction(5, 25)), ('00008', 8, Fraction(8, 25)),
  ]  # fmt: skip
  assert (source.length, source.rate, output_names(source)) == (3, Fraction(25, 3), ['00002', '00005', '00008'])
  for options in ({'start': -1}, {'every': 0}, {'end': 0}, {'start': 5, 'end': 5}):
    with pytest.raises(UsageError):
      open_source(tmp_path, **options)
  for path in (tmp_path, video):
    with pytest.raises(DataError, match='the clip has 12'):
      open_source(path, start=12)


def test_pattern_but_a_literal_name_wins(tmp_path: Path) -> None:
  for name in ('a1.png', 'a2.png', 'b1.png', 'a3.txt'):
    (save(tmp_path / 'in' / name) if name.endswith('png') else tmp_path / 'in' / name).touch()
  source = open_source(str(tmp_path / 'in' / 'a*'))
  assert names(source) == ['a1', 'a2'] and source.name == 'in'
  save(tmp_path / '[ab]1' / '7.png')
  assert names(open_source(str(tmp_path / '[ab]1'))) == ['7']
  save(tmp_path / 'in' / 'a[12].png', 9)
  assert names(open_source(tmp_path / 'in' / 'a[12].png')) == ['a[12]']
  with pytest.raises(DataError, match='no file matches'):
    open_source(str(tmp_path / 'in' / 'z*'))


def test_several_images_are_one_clip_in_natural_order(tmp_path: Path) -> None:
  paths = [save(tmp_path / f'{k}.jpg') for k in (10, 9, 1)]
  assert names(open_source(paths)) == ['1', '9', '10']
  assert open_source(paths).name == tmp_path.name and open_source(paths[0]).name == '10'
  with pytest.raises(UsageError, match='2 clips'):
    open_source([make_video(tmp_path / 'a.mp4', 1), make_video(tmp_path / 'b.mp4', 1)])
  with pytest.raises(UsageError, match='no input'):
    open_source([])


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
  with pytest.raises(DataError, match=r'no such file.*missing.*\.jpg'):
    open_source(tmp_path / 'missing')
  with pytest.raises(DataError, match=r'empty.*\.png'):
    open_source(tmp_path)
  (tmp_path / 'notes.txt').touch()
  with pytest.raises(DataError, match='no image in it'):
    open_source(tmp_path)
  for clip in ('bear', 'bus'):
    save(tmp_path / '480p' / clip / '0.jpg')
  with pytest.raises(DataError, match=r'only folders: bear, bus .*480p.bear'):
    open_source(tmp_path / '480p')
  (tmp_path / 'videos').mkdir()
  make_video(tmp_path / 'videos' / 'v.mp4', 1)
  with pytest.raises(DataError, match=r'but videos: v\.mp4'):
    open_source(tmp_path / 'videos')


def test_equal_stems_are_refused_by_name(tmp_path: Path) -> None:
  save(tmp_path / 'a.jpg'), save(tmp_path / 'a.png')
  with pytest.raises(UsageError, match=r'a\.jpg and .*a\.png'):
    open_source(tmp_path)


# Several inputs and their output folders.


def test_several_inputs_have_places_of_their_own(tmp_path: Path) -> None:
  for clip in ('bear', 'bus'):
    for k in range(2):
      save(tmp_path / 'set' / clip / f'{k}.jpg')
  video = make_video(tmp_path / 'bear.mp4', 2)
  for pattern in ('set/*', 'set/*/*.jpg', 'set/**/*.jpg'):
    assert [source.name for source in resolve_inputs([str(tmp_path / pattern)])] == ['bear', 'bus']
  found = resolve_inputs([video, tmp_path / 'set' / 'bus'], every=2)
  assert [(s.name, s.kind, s.length) for s in found] == [('bear', 'video', 1), ('bus', 'frames', 1)]
  for pair in ([video, tmp_path / 'set' / 'bear'], [video, video]):
    with pytest.raises(UsageError, match=r"'bear' .*bear\.mp4"):
      resolve_inputs(pair)
  given = [tmp_path / 'set' / name for name in ('bus/1.jpg', 'bear/1.jpg', 'bus/0.jpg')]
  assert [output_names(source) for source in resolve_inputs(given)] == [['0', '1'], ['1']]


def test_output_inside_the_input_is_refused(tmp_path: Path) -> None:
  clip, out = tmp_path / 'clip', tmp_path / 'out'
  save(clip / '0.png')
  save(out / 'masks' / '0.png')
  video = make_video(tmp_path / 'v.mp4', 1)
  os.symlink(clip, tmp_path / 'link')
  for bad in (clip, clip / 'new' / 'deep', tmp_path / 'link', tmp_path / 'link' / 'new', clip / '..' / 'clip'):
    for item in (clip, str(clip / '*.png')):
      with pytest.raises(UsageError, match='input folder'):
        check_output([item], bad)
  check_output([clip, video], out)
  check_output([clip], tmp_path)  # beside the frames, not among them
  check_output([clip / '0.png'], clip)
  check_output(resolve_inputs([clip]), str(out))
  with pytest.raises(UsageError, match='over the input'):
    check_output([out / 'masks' / '0.png'], out)
  with pytest.raises(UsageError, match='input folder'):
    check_output([clip, video], tmp_path)  # OUT/clip is the input
  make_video(out / 'overlay.mp4', 1)
  with pytest.raises(UsageError, match='overlay'):
    check_output([out / 'overlay.mp4'], out)


# Images.


def test_images_are_read_as_a_viewer_shows_them(tmp_path: Path) -> None:
  rgb = quadrants(16, 24) // 2 + 60
  grey = np.tile(np.linspace(0, 255, 24).astype(np.uint8), (16, 1))
  as_rgb = np.repeat(grey[..., None], 3, axis=2)
  Image.fromarray(grey).save(tmp_path / 'grey.png')
  Image.fromarray(grey).save(tmp_path / 'grey.pgm')
  cv2.imwrite(str(tmp_path / 'grey16.png'), grey.astype(np.uint16) * 257)
  cv2.imwrite(str(tmp_path / 'grey16.tif'), grey.astype(np.uint16) * 257)
  (tmp_path / 'grey16.pgm').write_bytes(b'P5 24 16 65535\n' + (grey.astype('>u2') * 257).tobytes())
  for name in ('grey.png', 'grey.pgm', 'grey16.png', 'grey16.tif', 'grey16.pgm'):
    np.testing.assert_array_equal(read_image(tmp_path / name), as_rgb, err_msg=name)
  cv2.imwrite(str(tmp_path / 'rgb16.png'), rgb[..., ::-1].astype(np.uint16) * 257)
  Image.fromarray(rgb).save(tmp_path / 'rgb.webp', lossless=True)
  Image.fromarray(rgb).quantize(8).save(tmp_path / 'palette.png')
  for name in ('rgb16.png', 'rgb.webp', 'palette.png'):
    np.testing.assert_array_equal(read_image(tmp_path / name), rgb, err_msg=name)
  Image.fromarray(grey > 99).save(tmp_path / 'bit.png')
  np.testing.assert_array_equal(read_image(tmp_path / 'bit.png')[..., 1], (grey > 99) * 255)
  Image.fromarray(rgb).convert('CMYK').save(tmp_path / 'cmyk.jpg', quality=100)
  np.testing.assert_allclose(read_image(tmp_path / 'cmyk.jpg').astype(int), rgb, atol=40)
  assert np.median(np.abs(read_image(tmp_path / 'cmyk.jpg').astype(int) - rgb)) <= 2
  Image.fromarray(rgb).save(tmp_path / 'rgb.jpg')
  np.testing.assert_array_equal(read_image(tmp_path / 'rgb.jpg'), cv2.imread(str(tmp_path / 'rgb.jpg'))[..., ::-1])


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
  rgba = np.zeros((4, 6, 4), np.uint8)
  rgba[:, :, 0], rgba[:, :2, 3], rgba[:, 2:4, 3] = 200, 255, 128
  expected = np.array([[200, 0, 0], [200, 0, 0], [227, 127, 127], [227, 127, 127], [255, 255, 255], [255, 255, 255]])
  Image.fromarray(rgba).save(tmp_path / 'rgba.png')
  cv2.imwrite(str(tmp_path / 'rgba16.png'), rgba[..., [2, 1, 0, 3]].astype(np.uint16) * 257)
  for name in ('rgba.png', 'rgba16.png'):
    np.testing.assert_allclose(read_image(tmp_path / name), np.tile(expected, (4, 1, 1)), atol=1)
  palette = Image.new('P', (2, 2), 1)
  palette.putpalette([0, 0, 0, 9, 9, 9])
  palette.save(tmp_path / 'p.png', transparency=1)
  assert (read_image(tmp_path / 'p.png') == 255).all()
  Image.fromarray(rgba).convert('LA').save(tmp_path / 'la.png')
  assert (read_image(tmp_path / 'la.png')[:, 4:] == 255).all()


@pytest.mark.parametrize('ending', ['jpg', 'png', 'webp'])
def test_exif_orientation(tmp_path: Path, ending: str) -> None:
  upright = quadrants(32, 48)
  stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
            6: np.rot90(upright, 1), 7: np.rot90(upright, 2).transpose(1, 0, 2), 8: np.rot90(upright, -1)}  # fmt: skip
  for tag, image in stored.items():
    exif = Image.Exif()
    exif[0x112] = tag
    Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / f'{tag}.{ending}', exif=exif, quality=95)
    read = read_image(tmp_path / f'{tag}.{ending}')
    assert read.shape == (32, 48, 3) and corners(read) == [0, 1, 2, 3], tag


def test_damaged_images_are_named(tmp_path: Path) -> None:
  data = save(tmp_path / 'whole.jpg', size=(200, 200)).read_bytes()
  rng = np.random.default_rng(0)
  Image.fromarray(rng.integers(0, 255, (50, 50, 3), np.uint8)).save(tmp_path / 'whole.png')
  cases = {'empty.jpg': b'', 'text.png': b'hello', 'cut.jpg': data[: len(data) * 2 // 3],
           'cut.png': (tmp_path / 'whole.png').read_bytes()[:4000]}  # fmt: skip
  for name, content in cases.items():
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f'cannot be read.*{name}'):
      read_image(tmp_path / name)
  with pytest.raises(DataError, match='No such file'):
    read_image(tmp_path / 'gone.png')
  cv2.imwrite(str(tmp_path / 'float.tif'), np.zeros((4, 4), np.float32))
  with pytest.raises(DataError, match='float'):
    read_image(tmp_path / 'float.tif')


def test_damaged_frame_in_a_folder(tmp_path: Path) -> None:
  for k in range(5):
    save(tmp_path / f'{k}.png', k)
  (tmp_path / '2.png').write_bytes((tmp_path / '2.png').read_bytes()[:40])
  read = []
  with pytest.raises(DataError, match=r'2\.png.*skip'):
    for frame in open_source(tmp_path):
      read.append(frame.name)
  assert read == ['0', '1']
  source = open_source(tmp_path, skip_bad=True)
  for _ in range(2):
    assert names(source) == ['0', '1', '3', '4'] and source.skipped == [str(tmp_path / '2.png')]
  assert [frame.index for frame in source] == [0, 1, 3, 4]
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'bad' / '0.png').touch()
  with pytest.raises(DataError, match='no readable image'):
    list(open_source(tmp_path / 'bad', skip_bad=True))


def test_bombs_are_refused_by_their_declared_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  for h, w in ((100_000, 100_000), (12_000, 12_000)):
    (tmp_path / 'bomb.pgm').write_bytes(f'P5 {w} {h} 255\n'.encode() + bytes(100))
    with pytest.raises(DataError, match='too large'):
      read_image(tmp_path / 'bomb.pgm')
  monkeypatch.setattr(images, 'MAX_PIXELS', 100)
  monkeypatch.setattr(sources, 'MAX_PIXELS', 100)
  with pytest.raises(DataError, match=r'64 x 48.*too large.*v\.mp4'):
    open_source(make_video(tmp_path / 'v.mp4', 1))


def test_sizes_may_change_and_be_extreme(tmp_path: Path) -> None:
  for k, size in enumerate(((1, 1), (1000, 8), (4096, 2160), (16, 16))):
    save(tmp_path / f'{k}.png', size=size)
  shapes = [frame.image.shape for frame in open_source(tmp_path)]
  assert shapes == [(1, 1, 3), (8, 1000, 3), (2160, 4096, 3), (16, 16, 3)]


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
  save(tmp_path / '0.png', size=(320, 240))
  for k in range(1, 300):
    os.link(tmp_path / '0.png', tmp_path / f'{k}.png')

  def peak(source: object) -> int:
    tracemalloc.start()
    for _ in source:
      pass
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most

  next(iter(open_source(tmp_path)))
  # A frame has 230 kB; how many are being decoded at a time differs a little.
  assert peak(open_source(tmp_path)) < peak(open_source(tmp_path, end=30)) + 1_000_000


# Videos.


def test_video_frames_are_numbered_and_timed(tmp_path: Path) -> None:
  source = open_source(make_video(tmp_path / 'my clip.mp4', 12))
  assert (source.name, source.kind, source.rate, source.length, source.warnings) == ('my clip', 'video', 25, 12, [])
  frames = list(source)
  assert [f.name for f in frames] == [f'{k:05d}' for k in range(12)] == output_names(source) == names(source)
  assert [f.time for f in frames] == [Fraction(k, 25) for k in range(12)]
  np.testing.assert_allclose([f.image.mean() for f in frames], [20 * k for k in range(12)], atol=4)
  iterator = iter(source)
  next(iterator)
  iterator.close()  # an iteration given up halfway frees the file


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_decoded_pictures_are_freed_without_the_garbage_collector(tmp_path: Path) -> None:
  def resident() -> int:
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')

  source = open_source(make_video(tmp_path / 'v.mp4', 100, (1280, 720), rotation=90, options={'preset': 'ultrafast'}))
  gc.disable()
  try:
    sizes = [resident() for _ in source]
  finally:
    gc.enable()
  assert sizes[-1] - sizes[30] < 30_000_000  # each picture is 1.4 MB in the decoder and 2.8 MB as RGB


@pytest.mark.parametrize('rotation', [0, 90, 180, 270])
@pytest.mark.parametrize('mirror', [False, True])
def test_rotated_video_is_upright(tmp_path: Path, rotation: int, mirror: bool) -> None:
  upright = quadrants(48, 64)
  stored = np.ascontiguousarray(np.rot90(upright[:, ::-1] if mirror else upright, -rotation // 90))
  size = stored.shape[1], stored.shape[0]
  path = make_video(tmp_path / 'v.mp4', 2, size, rotation=rotation, mirror=mirror, image=stored)
  for frame in open_source(path):
    assert frame.image.shape == (48, 64, 3) and corners(frame.image) == [0, 1, 2, 3]
    assert frame.image.flags.c_contiguous


def test_variable_rate_gives_a_frame_each_and_the_right_speed(tmp_path: Path) -> None:
  times = [0, 40, 80, 500, 540, 1200, 1240, 2000]
  for ending in ('mp4', 'mkv'):
    source = open_source(make_video(tmp_path / f'v.{ending}', len(times), times=times))
    frames = list(source)
    assert [float(frame.time) for frame in frames] == pytest.approx([time / 1000 for time in times])
    with OverlayWriter(tmp_path / 'o.mp4', source.rate, bit_rate=source.overlay_bit_rate) as overlay:
      for frame in frames:
        overlay.write(frame.image, frame.image[..., 0] > 100, frame.time)
    shown = list(open_source(tmp_path / 'o.mp4'))
    assert [float(frame.time) for frame in shown] == pytest.approx([time / 1000 for time in times], abs=1e-4)


def test_odd_sizes_deep_colour_and_alpha(tmp_path: Path) -> None:
  odd = quadrants(47, 63)
  for name, options in {
    'odd.mkv': {'codec': 'ffv1', 'pixels': 'yuv444p'},
    'odd.mp4': {'codec': 'libx264', 'pixels': 'yuv444p'},
    'deep.mkv': {'codec': 'ffv1', 'pixels': 'yuv420p10le'},
    'deep.mp4': {'codec': 'libx264', 'pixels': 'yuv444p10le'},
    'grey.mkv': {'codec': 'ffv1', 'pixels': 'gray'},
  }.items():
    frames = list(open_source(make_video(tmp_path / name, 2, (63, 47), image=odd, **options)))
    assert [frame.image.shape for frame in frames] == [(47, 63, 3)] * 2
    if 'grey' not in name:
      assert corners(frames[1].image) == [0, 1, 2, 3], name
  rgba = np.dstack([odd, np.full((47, 63), 255, np.uint8)])
  rgba[:24, :, 3] = 0
  for name, codec, pixels in (('a.mov', 'qtrle', 'argb'), ('a.mkv', 'ffv1', 'yuva444p')):
    path = make_video(tmp_path / name, 2, (63, 47), image=rgba, codec=codec, pixels=pixels)
    frame = next(iter(open_source(path)))
    assert corners(frame.image) == [3, 3, 2, 3], name
  assert len(list(open_source(make_video(tmp_path / 'a.gif', 3, codec='gif', pixels='rgb8')))) == 3


def test_large_pictures_without_a_label_are_bt709(tmp_path: Path) -> None:
  colour = np.full((720, 1280, 3), (200, 30, 60), np.uint8)
  for size in ((1280, 720), (64, 48)):
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(colour[: size[1], : size[0]]), 'rgb24')
    large = size[0] > 64
    with av.open(str(tmp_path / 'v.mkv'), 'w') as container:
      stream = container.add_stream('ffv1', rate=25)
      stream.width, stream.height, stream.pix_fmt = *size, 'yuv444p'
      frame = picture.reformat(format='yuv444p', dst_colorspace='ITU709' if large else 'ITU601')
      container.mux(stream.encode(frame))
      container.mux(stream.encode())
    read = next(iter(open_source(tmp_path / 'v.mkv')))
    np.testing.assert_allclose(read.image.mean((0, 1)), (200, 30, 60), atol=3)


@pytest.mark.parametrize(('name', 'codec'), [
  ('v.mp4', 'libx264'), ('v.mkv', 'libx264'), ('v.webm', 'libvpx'), ('v.avi', 'mpeg4'),
])  # fmt: skip
def test_video_cut_off_in_the_middle(tmp_path: Path, name: str, codec: str) -> None:
  data = noisy_video(tmp_path / name, codec).read_bytes()
  assert len(list(open_source(tmp_path / name))) == 60
  (tmp_path / name).write_bytes(data[: len(data) * 6 // 10])
  read = []
  with pytest.raises(DataError) as caught:
    for frame in open_source(tmp_path / name):
      read.append(frame.index)
  assert 15 < len(read) < 50 and read == list(range(len(read)))
  assert f'breaks off at frame {len(read)}' in str(caught.value) and name in str(caught.value)
  assert len(list(open_source(tmp_path / name, end=len(read)))) == len(read)  # the advice given
  source = open_source(tmp_path / name, skip_bad=True)
  assert names(source) == names(source) and len(source.warnings) == 1 and 'breaks off' in source.warnings[0]


def test_video_cut_between_two_packets(tmp_path: Path) -> None:
  data = noisy_video(tmp_path / 'v.mp4').read_bytes()
  with av.open(str(tmp_path / 'v.mp4')) as container:
    entry = container.streams.video[0].index_entries[30]
    cut = entry.pos
  (tmp_path / 'v.mp4').write_bytes(data[:cut])
  with pytest.raises(DataError, match='breaks off at frame 30'):
    list(open_source(tmp_path / 'v.mp4'))


def test_damage_in_the_middle_is_concealed_and_said(tmp_path: Path) -> None:
  path = noisy_video(tmp_path / 'v.mp4')
  data = bytearray(path.read_bytes())
  data[len(data) // 2 : len(data) // 2 + 1500] = bytes(1500)
  path.write_bytes(data)
  source = open_source(path)
  assert len(list(source)) == 60
  assert 'damaged' in source.warnings[0]


def test_what_is_not_a_video_is_said_with_the_reason(tmp_path: Path) -> None:
  (tmp_path / 'empty.mp4').touch()
  for name in ('text.mp4', 'text.txt', 'text.bin'):
    (tmp_path / name).write_text('hello world\n' * 500)
  with wave.open(str(tmp_path / 'sound.wav'), 'w') as sound:
    sound.setnchannels(1), sound.setsampwidth(2), sound.setframerate(8000)
    sound.writeframes(bytes(16000))
  whole = make_video(tmp_path / 'whole.mp4').read_bytes()
  (tmp_path / 'no-index.mp4').write_bytes(whole[: whole.index(b'moov') - 4])
  make_video(tmp_path / 'other.ts')
  (tmp_path / 'list.m3u8').write_text('#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nother.ts\n#EXT-X-ENDLIST\n')
  (tmp_path / 'list.ffconcat').write_text('ffconcat version 1.0\nfile other.ts\n')
  expected = {'empty.mp4': 'empty', 'text.mp4': 'moov atom not found', 'text.txt': '', 'text.bin': '',
              'sound.wav': 'audio only', 'no-index.mp4': 'moov atom not found', 'list.m3u8': '',
              'list.ffconcat': ''}  # fmt: skip
  for name, why in expected.items():
    with pytest.raises(DataError, match=f'not a video: .*{why}.*{name}'):
      open_source(tmp_path / name)
  assert av.logging.get_level() is None


def test_cover_of_a_song_is_no_video(tmp_path: Path) -> None:
  with av.open(str(tmp_path / 'song.flac'), 'w') as container:
    song = container.add_stream('flac', rate=44100)
    cover = container.add_stream('mjpeg', rate=1)
    cover.width, cover.height, cover.pix_fmt = 32, 32, 'yuvj420p'
    cover.disposition = av.stream.Disposition.attached_pic.value
    container.mux(cover.encode(av.VideoFrame.from_ndarray(quadrants(32, 32), 'rgb24')))
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 8820), np.int16), 's16', 'stereo')
    sound.rate = 44100
    container.mux(song.encode(sound))
    container.mux(song.encode())
  with av.open(str(tmp_path / 'song.flac')) as container:
    assert len(container.streams.video) == 1
  with pytest.raises(DataError, match='audio only'):
    open_source(tmp_path / 'song.flac')


def test_overlay_is_held_to_twice_its_source_or_a_megabyte(tmp_path: Path) -> None:
  small = open_source(make_video(tmp_path / 'v.mp4', 50))
  assert small.overlay_bit_rate == pytest.approx(0.9 * 8_000_000 / 2, rel=1e-3)
  assert open_source(tmp_path / 'v.mp4', end=25).overlay_bit_rate == pytest.approx(0.9 * 8_000_000, rel=1e-3)
  with (tmp_path / 'v.mp4').open('ab') as file:
    file.write(b'\0\0\0\0free' + bytes(2_000_000))
  size = (tmp_path / 'v.mp4').stat().st_size
  assert open_source(tmp_path / 'v.mp4').overlay_bit_rate == pytest.approx(0.9 * 8 * 2 * size / 2, rel=1e-3)


@pytest.mark.skipif(sys.platform == 'win32', reason='named pipes of POSIX')
def test_video_from_a_pipe(tmp_path: Path) -> None:
  data = make_video(tmp_path / 'v.mp4', 5).read_bytes()
  os.mkfifo(tmp_path / 'pipe')
  thread = threading.Thread(target=(tmp_path / 'pipe').write_bytes, args=(data,))
  thread.start()
  source = open_source(tmp_path / 'pipe')
  thread.join()
  assert (source.name, names(source), names(source)) == ('pipe', output_names(source), output_names(source))
  copy = source.paths[0]
  assert copy.exists()
  del source
  assert not copy.exists()


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  path = make_video(tmp_path / 'v.mp4', 1)
  save(tmp_path / 'clip' / '0.png')
  monkeypatch.setitem(sys.modules, 'av', None)
  with pytest.raises(UsageError, match=r"pip install 'adnet-jax\[video\]'"):
    open_source(path)
  assert names(open_source(tmp_path / 'clip')) == ['0']


@pytest.mark.shared_data
def test_davis_frames_are_those_that_opencv_reads(shared: Path) -> None:
  source = open_source(shared / 'data' / 'DAVIS' / 'JPEGImages' / '480p' / 'bear', end=10)
  for frame, path in zip(source, source.paths, strict=False):
    np.testing.assert_array_equal(frame.image, cv2.imread(str(path))[..., ::-1])
