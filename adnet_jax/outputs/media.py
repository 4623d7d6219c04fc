"""What else the file of a clip says: colours, sound, the first picture's place on its clock; decodes one frame."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from adnet_jax.sources import Source
from adnet_jax.writers import import_av

# Matrices that FFmpeg's scaler can make of RGB: their numbers in H.273, as in all these files, and its names.
MATRICES = {1: 'ITU709', 4: 'FCC', 5: 'ITU601', 6: 'ITU601', 7: 'SMPTE240M', 9: 'BT2020'}
_UNKNOWN = 2
_FULL = 2
# Wider pixels are a fault of the file.
_MAX_ASPECT = Fraction(8)


@dataclasses.dataclass(frozen=True)
class Colour:
  """How a video's numbers are meant: primaries, transfer and matrix by their numbers in H.273; full or limited range.

  What is computed with here is RGB in the source's own primaries and transfer, so that these only need to be named.
  """

  primaries: int = 1
  transfer: int = 1
  matrix: int = 1
  full: bool = False


@dataclasses.dataclass(frozen=True)
class Sound:
  """A sound track: its file, stream number and codec; bits per second and end on its clock where the file says so."""

  path: Path
  index: int
  codec: str
  bit_rate: int | None = None
  end: Fraction | None = None


@dataclasses.dataclass(frozen=True)
class Media:
  """Of a video file; of image files all is as by default.

  Attributes:
    colour: what its own colours are, BT.709 in limited range where it says nothing.
    aspect: width of an upright pixel as it is shown, by its height.
    sound: the sound track that a player would choose, None where there is none.
    origin: time of the first picture on the clock that picture and sound share, in seconds.
    end: end of the last picture, in seconds since the first; None: not known.
  """

  colour: Colour = Colour()
  aspect: Fraction = Fraction(1)
  sound: Sound | None = None
  origin: Fraction = Fraction(0)
  end: Fraction | None = None


def describe(source: Source) -> Media:
  """Reads what a clip's file says beside its pictures; a file that cannot be read says nothing."""
  if source.kind == 'frames':
    return Media()
  av = import_av()
  with contextlib.suppress(av.FFmpegError, OSError, ValueError), open_media(source.paths[0]) as container:
    picture, track = container.streams.best('video'), container.streams.best('audio')
    if picture is None:
      return Media()
    sound = None
    if track is not None and track.codec_context is not None:
      ends = track.duration and track.start_time is not None
      end = (track.start_time + track.duration) * track.time_base if ends else None
      sound = Sound(source.paths[0], track.index, track.codec_context.name, track.codec_context.bit_rate or None, end)
    first = None
    # Recordings may begin between two key frames.
    for packet in container.demux(picture):
      with contextlib.suppress(av.FFmpegError):
        first = next(iter(packet.decode()), None)
      if first is not None:
        break
    if first is None:
      return Media(sound=sound)
    aspect = picture.sample_aspect_ratio or Fraction(1)
    if not 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT:
      aspect = Fraction(1)
    aspect = 1 / aspect if first.rotation % 180 else aspect
    start = first.pts if first.pts is not None else picture.start_time or 0
    end = None
    if picture.duration and picture.start_time is not None:
      end = (picture.start_time + picture.duration - start) * picture.time_base
    elif container.duration and track is None:
      end = Fraction(container.start_time or 0, 1_000_000) + Fraction(container.duration, 1_000_000)
      end -= start * picture.time_base
    return Media(_colour(first), aspect, sound, start * picture.time_base, end)
  return Media()


@contextlib.contextmanager
def open_media(path: Path) -> Iterator[Any]:
  """A PyAV container of a local file, which can name no other file or address."""
  av = import_av()
  with (
    path.open('rb') as file,
    av.open(file, options={'protocol_whitelist': 'none'}, metadata_errors='ignore', buffer_size=1 << 18) as container,
  ):
    yield container


def _colour(frame: Any) -> Colour:
  full = int(frame.color_range) == _FULL or frame.format.name.startswith('yuvj')
  given = int(frame.color_primaries), int(frame.color_trc), int(frame.colorspace)
  if frame.format.is_rgb or frame.format.has_palette:
    given, full = (given[0], given[1], _UNKNOWN), False
  if all(number == _UNKNOWN for number in given):
    return Colour(full=full)
  return Colour(given[0], given[1], given[2] if given[2] in MATRICES else 1, full)
