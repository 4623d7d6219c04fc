"""Carries a clip's sound into a video made of it, packet by packet where the container takes it; knows no pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from adnet_jax.outputs import media
from adnet_jax.writers import import_av, reason

# What each container takes as it is and Chromium plays (of MOV: editors); first the encoder for everything else.
TAKEN = {
  'mp4': ('aac', ('aac', 'mp3', 'mp3float', 'opus', 'libopus', 'flac')),
  'webm': ('libopus', ('opus', 'libopus', 'vorbis')),
  'mov': ('aac', ('aac', 'alac', 'mp3', 'mp3float', 'pcm_s16le', 'pcm_s16be', 'pcm_s24le', 'pcm_s24be')),
}
ENCODED_RATE = 128_000
_UNKNOWN_RATE, _LEAST_RATE = 320_000, 32_000
# Far into a file its index is asked for the place; decoders need a little of what comes before.
_SEEK_BEYOND = 10
_FILLED = Fraction(1, 200)


def bit_rate(sound: media.Sound | None, container: str) -> int:
  """Bits per second that a sound will take in a container, not less where the file does not say."""
  if sound is None:
    return 0
  if sound.codec in TAKEN[container][1]:
    return sound.bit_rate or _UNKNOWN_RATE
  return encoded_rate(sound)


def encoded_rate(sound: media.Sound) -> int:
  """Bits per second where a sound is encoded anew: not much more than it had."""
  return min(ENCODED_RATE, max(_LEAST_RATE, 2 * (sound.bit_rate or ENCODED_RATE)))


class _Piece(NamedTuple):
  """Packets that are ready after a piece of the source from `start` to `end`."""

  start: Fraction
  end: Fraction
  packets: list[Any]


class SoundTrack:
  """A sound track on its way into an open container; times are seconds of the new video.

  Damage in the source ends the sound, not the video.

  Attributes:
    warnings: sentences for the user.
  """

  def __init__(self, sound: media.Sound, container: Any, form: str, offset: Fraction):
    """Args:
      sound: which.
      container: PyAV container to write to; gets a stream.
      form: 'mp4', 'webm' or 'mov'.
      offset: time on the source's clock at which the new video begins.

    Raises:
      OSError, FFmpegError: the sound cannot be opened.
    """
    self.warnings: list[str] = []
    self._av = import_av()
    self._container, self._offset = container, offset
    self._end = None if sound.end is None else sound.end - offset
    self._heard = Fraction(0)
    self._files = contextlib.ExitStack()
    try:
      self._source = self._files.enter_context(media.open_media(sound.path))
      self._track = self._source.streams[sound.index]
      encoder, taken = TAKEN[form]
      self._copies = sound.codec in taken
      if self._copies:
        self._stream = container.add_stream_from_template(self._track)
        # A tag of another container, such as AVI's, means nothing here.
        self._stream.codec_context.codec_tag = '\0\0\0\0'
        # Before the first picture: what a decoder needs to start with, which players leave out.
        early = Fraction(0) if form == 'webm' else None
        self._pieces = self._copied(early)
      else:
        rate = 48_000 if encoder == 'libopus' else min(48_000, max(8_000, self._track.rate or 48_000))
        layout = 'mono' if self._track.channels == 1 else 'stereo'
        self._stream = container.add_stream(encoder, rate=rate, layout=layout)
        self._stream.bit_rate = encoded_rate(sound)
        self._pieces = self._encoded()
    except BaseException:
      self._files.close()
      raise
    self._next = next(self._pieces, None)

  def write_until(self, time: Fraction) -> None:
    """Writes what begins before `time`; an error in writing is raised as it is."""
    while self._next is not None and self._next.start < time:
      self._container.mux(self._next.packets)
      self._next = next(self._pieces, None)

  def close(self) -> None:
    """Closes the source; a second call does nothing."""
    self._pieces.close()
    self._files.close()

  def finish(self, end: Fraction | None) -> None:
    """Writes what lies before `end` by the greater part, what an encoder still holds too, and closes the source.

    Args:
      end: None for all there is.
    """
    while self._next is not None and (end is None or self._next.start + self._next.end < 2 * end):
      self._container.mux(self._fitting(self._next.packets, end))
      self._next = next(self._pieces, None)
    if not self._copies and self._stream.codec_context.is_open:
      self._container.mux(
        self._fitting(self._stream.encode(None), self._heard if end is None else min(end, self._heard))
      )
    self.close()

  def _fitting(self, packets: list[Any], end: Fraction | None) -> list[Any]:
    """Without those that an encoder has filled up beyond the end: a video must not get longer by them."""
    if self._copies:
      return packets
    ends = [one for one in (end, self._end) if one is not None]
    if not ends:
      return packets
    end = min(ends)
    return [packet for packet in packets if (packet.pts + packet.duration) * packet.time_base <= end + _FILLED]

  def _demuxed(self) -> Iterator[Any]:
    """Packets of the track, from shortly before the offset on; damage ends them with a warning."""
    if self._offset > _SEEK_BEYOND:
      with contextlib.suppress(self._av.FFmpegError):
        self._source.seek(int((self._offset - 2) / self._track.time_base), stream=self._track)
    try:
      yield from (packet for packet in self._source.demux(self._track) if packet.size)
    except (self._av.FFmpegError, OSError) as error:
      self.warnings.append(f'the sound breaks off, as the source does: {reason(error)}')

  def _copied(self, early: Fraction | None) -> Generator[_Piece, None, None]:
    unit, last = self._track.time_base, None
    shift = round(self._offset / unit)
    for packet in self._demuxed():
      pts = packet.pts if packet.pts is not None else packet.dts
      if pts is None or packet.is_corrupt:
        continue
      pts -= shift
      length = packet.duration or 0
      starts_early = pts + length < 0 if early is None else pts < early
      if starts_early or (last is not None and pts <= last):
        continue
      last = packet.pts = packet.dts = pts
      packet.stream = self._stream
      yield _Piece(pts * unit, (pts + length) * unit, [packet])

  def _encoded(self) -> Generator[_Piece, None, None]:
    for packet in self._demuxed():
      try:
        frames = packet.decode()
      except self._av.FFmpegError:
        continue  # a damaged piece is silence
      for frame in frames:
        if frame.pts is None:
          continue
        time = frame.pts * frame.time_base - self._offset
        if 2 * time * frame.sample_rate < -frame.samples:
          continue
        frame.pts = max(0, round(time / frame.time_base))
        self._heard = time + Fraction(frame.samples, frame.sample_rate)
        yield _Piece(time, self._heard, self._stream.encode(frame))
