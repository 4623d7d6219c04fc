"""Encoders of the videos that are written: H.264, transparent VP9, transparent ProRes; they know no files."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np

from adnet_jax.outputs.media import MATRICES, Colour
from adnet_jax.writers import import_av

# A clock in which the frames of 24, 25, 30, 50, 60 and their 1000/1001 variants last a whole number of ticks.
TICKS = 120_000
# The best first; the last one is in every build but does not play in browsers.
H264 = ('libx264', 'libopenh264', 'mpeg4')
_KEY_SECONDS = 2
# FFmpeg's number of the data that Matroska stores beside a packet, and Matroska's own number of alpha in there.
_BLOCK_ADDITIONAL, _ALPHA_ID = 15, (1).to_bytes(8, 'big')


class Request(NamedTuple):
  """What a video shall be: (height, width), frames per second, colours, bits per second at most, aspect of a pixel."""

  size: tuple[int, int]
  rate: Fraction
  colour: Colour
  bit_rate: int | None
  aspect: Fraction = Fraction(1)


class Encoder(Protocol):
  """Pictures in, packets of one stream out.

  Attributes:
    even: whether sides must be even.
    square: whether pixels must be square, since another aspect cannot be named.
    ticks: of its clock, a second.
    warnings: sentences for the user.
  """

  even: bool
  square: bool
  ticks: int
  warnings: list[str]

  def encode(self, image: np.ndarray, tick: int, duration: int) -> list[Any]:
    """Packets that are ready after this picture: uint8 (h, w, 3) RGB, or (h, w, 4) with straight alpha; in order."""

  def flush(self) -> list[Any]:
    """The packets that are left."""


class H264Encoder:
  """H.264 for browsers and everything else; MPEG-4 part 2 where a build has none."""

  even, square = True, False

  def __init__(self, container: Any, request: Request):
    self.ticks, self.warnings = TICKS, list[str]()
    name = next(name for name in H264 if _has(name))
    (h, w), bit_rate = request.size, request.bit_rate
    options = {'g': str(max(1, round(_KEY_SECONDS * request.rate)))}
    if name == 'libx264':
      # Without B-frames: with variable times the container would get their length wrong.
      options |= {'preset': 'veryfast', 'crf': '23', 'bf': '0'}
      if bit_rate:
        options |= {'maxrate': str(bit_rate), 'bufsize': str(bit_rate)}
    if name == 'mpeg4':
      self.ticks = TICKS // 2  # its clock has 16 bits
      self.warnings.append('this PyAV has no H.264 encoder: videos are MPEG-4 part 2, which browsers do not play')
    self._stream = _add_stream(container, name, request, 'yuv420p', self.ticks, options)
    if name != 'libx264':
      self._stream.codec_context.bit_rate = bit_rate or 4 * w * h
    self._colour = request.colour

  def encode(self, image: np.ndarray, tick: int, duration: int) -> list[Any]:
    frame = _frame(image, 'yuv420p', self._colour)
    return self._stream.encode(_timed(frame, tick, duration, self.ticks))

  def flush(self) -> list[Any]:
    return self._stream.encode(None)


class AlphaVp9Encoder:
  """VP9 with transparency as WebM has it: a second VP9 stream of the alpha alone, beside each packet.

  That one is lossless, which costs little of a mask: FFmpeg's own two streams share a quality, whose ringing would show
  as a haze around the foreground.
  """

  even, square = False, True  # PyAV sets an aspect of codecs, Matroska's is one of streams
  ticks = 1000  # Matroska's clock

  def __init__(self, container: Any, request: Request):
    self._av = import_av()
    self.warnings: list[str] = []
    # No frame looks ahead, so that each picture gives one packet in both.
    options = {'deadline': 'good', 'cpu-used': '5', 'row-mt': '1', 'auto-alt-ref': '0', 'lag-in-frames': '0'}
    options['g'] = '9999'
    coded = {'crf': '31', 'b': str(request.bit_rate or 0)}
    self._stream = _add_stream(container, 'libvpx-vp9', request, 'yuv420p', self.ticks, options | coded)
    self._stream.metadata['alpha_mode'] = '1'
    self._stream.codec_context.thread_count = 0
    self._alpha = self._av.CodecContext.create('libvpx-vp9', 'w')
    self._alpha.height, self._alpha.width = request.size
    self._alpha.pix_fmt, self._alpha.framerate = 'yuv420p', request.rate
    self._alpha.time_base, self._alpha.options = Fraction(1, self.ticks), options | {'lossless': '1', 'b': '0'}
    self._alpha.thread_count = 0
    self._colour, self._next_key = request.colour, 0

  def encode(self, image: np.ndarray, tick: int, duration: int) -> list[Any]:
    colour = _frame(np.ascontiguousarray(image[..., :3]), 'yuv420p', self._colour)
    frames = [_timed(frame, tick, duration, self.ticks) for frame in (colour, self._grey(image[..., 3]))]
    if tick >= self._next_key:
      # Both at the same pictures, or a player that jumps there finds no alpha.
      for frame in frames:
        frame.pict_type = self._av.video.frame.PictureType.I
      self._next_key = tick + _KEY_SECONDS * self.ticks
    return self._joined(self._stream.encode(frames[0]), self._alpha.encode(frames[1]))

  def flush(self) -> list[Any]:
    return self._joined(self._stream.encode(None), self._alpha.encode(None))

  def _grey(self, values: np.ndarray) -> Any:
    h, w = values.shape
    frame = self._av.VideoFrame(w, h, 'yuv420p')
    for plane in frame.planes:
      np.frombuffer(plane, np.uint8)[:] = 128
    np.frombuffer(frame.planes[0], np.uint8).reshape(-1, frame.planes[0].line_size)[:h, :w] = values
    return frame

  def _joined(self, packets: list[Any], alphas: list[Any]) -> list[Any]:
    for packet, alpha in zip(packets, alphas, strict=True):
      data = _ALPHA_ID + bytes(alpha)
      beside = self._av.packet.PacketSideData(_BLOCK_ADDITIONAL, len(data))
      beside.update(data)
      packet.set_sidedata(beside)
    return packets


class ProresEncoder:
  """ProRes 4444: large files of independent frames with lossless alpha, for editing."""

  even, square = False, False

  def __init__(self, container: Any, request: Request):
    self.ticks, self.warnings = TICKS, list[str]()
    options = {'profile': '4444', 'vendor': 'apl0', 'alpha_bits': '16'}
    # Its range is always the limited one.
    self._colour = dataclasses.replace(request.colour, full=False)
    self._stream = _add_stream(
      container, 'prores_ks', request._replace(colour=self._colour), 'yuva444p10le', self.ticks, options
    )

  def encode(self, image: np.ndarray, tick: int, duration: int) -> list[Any]:
    return self._stream.encode(_timed(_frame(image, 'yuva444p10le', self._colour), tick, duration, self.ticks))

  def flush(self) -> list[Any]:
    return self._stream.encode(None)


# By container, whose name is that of FFmpeg's format.
ENCODERS: dict[str, type[H264Encoder] | type[AlphaVp9Encoder] | type[ProresEncoder]] = {
  'mp4': H264Encoder,
  'webm': AlphaVp9Encoder,
  'mov': ProresEncoder,
}


def _has(encoder: str) -> bool:
  try:
    import_av().codec.Codec(encoder, 'w')
  except ValueError:  # PyAV's UnknownCodecError is one
    return False
  return True


def _add_stream(container: Any, name: str, request: Request, pixels: str, ticks: int, options: dict[str, str]) -> Any:
  stream = container.add_stream(name, rate=request.rate, options=options)
  (stream.height, stream.width), stream.pix_fmt = request.size, pixels
  stream.time_base = stream.codec_context.time_base = Fraction(1, ticks)
  # Players guess where nothing is said, by the size of the picture and each in its own way.
  context, colour = stream.codec_context, request.colour
  context.color_primaries, context.color_trc, context.colorspace = colour.primaries, colour.transfer, colour.matrix
  context.color_range = 2 if colour.full else 1
  context.sample_aspect_ratio = request.aspect
  return stream


def _frame(image: np.ndarray, pixels: str, colour: Colour) -> Any:
  frame = import_av().VideoFrame.from_ndarray(image, format='rgba' if image.shape[2] == 4 else 'rgb24')
  # In one thread: several write beyond the end of their rows, into the next thread's, where the width is no 16-fold.
  frame = frame.reformat(
    format=pixels,
    dst_colorspace=MATRICES[colour.matrix],
    dst_color_range='JPEG' if colour.full else 'MPEG',
    threads=1,
  )
  # Named in the frame too: ProRes takes them from there.
  frame.color_primaries, frame.color_trc, frame.colorspace = colour.primaries, colour.transfer, colour.matrix
  return frame


def _timed(frame: Any, tick: int, duration: int, ticks: int) -> Any:
  frame.pts, frame.duration, frame.time_base = tick, duration, Fraction(1, ticks)
  return frame
