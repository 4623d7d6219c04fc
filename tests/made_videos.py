"""Small made videos of every odd kind, of a red disk that moves to the right over a gradient; what is in such files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np


def frame(index: int, h: int, w: int) -> np.ndarray:
  """Upright picture: the disk in the upper half, the ground brighter to the right."""
  y, x = np.mgrid[:h, :w]
  image = np.repeat((40 + 100 * x / w)[..., None], 3, axis=2).astype(np.uint8)
  image[(x - 0.25 * w - 0.03 * w * index) ** 2 + (y - h / 3) ** 2 < (min(h, w) / 5) ** 2] = (230, 20, 20)
  return image


def mask_of(image: np.ndarray) -> np.ndarray:
  return image[..., 0].astype(int) - image[..., 1] > 80


def write(
  path: Path, count: int = 12, size: tuple[int, int] = (96, 64), *, rate: Fraction | int = 25, codec: str = 'libx264',
  pixels: str = 'yuv420p', rotation: int | None = None, times: list[int] | None = None, sound: str | None = None,
  colour: tuple[int, int, int, int] | None = None, options: dict | None = None, start: float = 0, beyond: float = 0,
  aspect: Fraction | None = None,
) -> Path:  # fmt: skip
  """A video; `size` is (width, height) as shown.

  Args:
    path: of it, whose ending decides the container.
    count: of frames.
    size: as shown, before it is stored turned by `rotation`.
    rate: frames a second.
    codec: of the pictures.
    pixels: their format.
    rotation: by which players turn.
    times: of the frames in milliseconds, the last but one as long as the last.
    sound: its codec: a beep of 50 ms from each whole tenth of a second on, for 100 ms silence and so on.
    colour: primaries, transfer, matrix, range.
    options: of the encoder.
    start: when the pictures begin after the sound, in seconds.
    beyond: by how much the sound is longer, in seconds.
    aspect: of a stored pixel.
  """
  w, h = size
  turned = rotation in (90, 270)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=rate, options=options or {})
    stream.width, stream.height, stream.pix_fmt = *((h, w) if turned else (w, h)), pixels
    if times:
      stream.codec_context.time_base = Fraction(1, 1000)
    if aspect is not None:
      stream.codec_context.sample_aspect_ratio = aspect
    if rotation is not None:
      stream.set_display_rotation(rotation)
    if colour is not None:
      context = stream.codec_context
      context.color_primaries, context.color_trc, context.colorspace, context.color_range = colour
    seconds = float(count / Fraction(rate)) if not times else (2 * times[-1] - times[-2]) / 1000
    track = _sound(container, sound, seconds + start + beyond) if sound else []
    for k in range(count):
      image = np.ascontiguousarray(np.rot90(frame(k, h, w), -(rotation or 0) // 90))
      picture = av.VideoFrame.from_ndarray(image, 'rgb24')
      picture.time_base = Fraction(1, 1000)
      picture.pts = round(1000 * start) + (times[k] if times else round(1000 * k / rate))
      if not times:
        picture.time_base, picture.pts = 1 / Fraction(rate), k + round(start * rate)
      if colour is not None:
        picture = picture.reformat(format=pixels, dst_colorspace={9: 'BT2020'}.get(colour[2], 'ITU709'))
      container.mux(stream.encode(picture))
    container.mux(stream.encode())
    for packet in track:
      container.mux(packet)
  return path


def _sound(container, codec: str, seconds: float) -> list:
  rate = 48_000
  stream = container.add_stream(codec, rate=rate, layout='mono')
  t = np.arange(int(seconds * rate)) / rate
  wave = np.where((10 * t).astype(int) % 2 == 0, 0.4 * np.sin(2 * np.pi * 1000 * t), 0).astype(np.float32)
  packets = []
  for first in range(0, len(wave), 960):
    piece = av.AudioFrame.from_ndarray(wave[None, first : first + 960], format='fltp', layout='mono')
    piece.sample_rate, piece.pts, piece.time_base = rate, first, Fraction(1, rate)
    packets += stream.encode(piece)
  return packets + stream.encode()


def loudness(path: Path) -> np.ndarray:
  """Mean power of the sound in each 20 ms on the clock of the pictures."""
  with av.open(str(path)) as container:
    rate = 8000
    resampler = av.AudioResampler('flt', 'mono', rate)
    wave = np.zeros(rate * 60, np.float32)
    for coded in container.decode(audio=0):
      for piece in resampler.resample(coded):
        values = piece.to_ndarray()[0]
        first = round(float(piece.pts * piece.time_base) * rate)
        values = values[max(0, -first) :]
        first = max(0, first)
        wave[first : first + len(values)] = values[: len(wave) - first]
  return (wave.reshape(-1, rate // 50) ** 2).mean(axis=1)


def facts(path: Path) -> SimpleNamespace:
  """Size, rate, number, times, end and colours of a video's pictures, codec of its sound, length of both."""
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    track = container.streams.best('audio')
    frames = list(container.decode(stream))
    start = frames[0].pts
    times = [float((frame.pts - start) * stream.time_base) for frame in frames]
    context = stream.codec_context
    last = frames[-1]
    seconds = stream.duration or last.pts - start + last.duration
    return SimpleNamespace(
      size=(frames[0].height, frames[0].width),
      rate=float(stream.average_rate),
      times=times,
      seconds=float(seconds * stream.time_base),
      length=container.duration / 1e6,
      colour=(context.color_primaries, context.color_trc, int(context.colorspace), int(context.color_range)),
      sound=None if track is None else track.codec_context.name,
      images=[frame.to_ndarray(format='rgb24') for frame in frames],
    )


def alphas(path: Path) -> list[np.ndarray]:
  """The alpha plane of each frame of a WebM, which only libvpx's own decoder reads."""
  decoder, frames = av.CodecContext.create('libvpx-vp9', 'r'), []
  with av.open(str(path)) as container:
    for packet in container.demux(video=0):
      frames += decoder.decode(packet) if packet.size else []
  frames += decoder.decode(None)
  planes = []
  for one in frames:
    assert one.format.name == 'yuva420p'
    plane = one.planes[3]
    planes.append(np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: one.height, : one.width])
  return planes
