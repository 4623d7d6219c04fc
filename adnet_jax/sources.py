"""Reads a clip one upright RGB frame at a time, from image files or a video; knows nothing of folders and patterns."""

from __future__ import annotations

import abc
import collections
import contextlib
import copy
import dataclasses
import itertools
import os
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from adnet_jax.errors import DataError, UsageError
from adnet_jax.images import MAX_PIXELS, over_white, read_image, too_large
from adnet_jax.writers import import_av, reason

FRAME_FILES_RATE = Fraction(24)
# Image files at a time: one core decodes some 200 frames of 480p a second, an accelerator takes more.
DECODERS = min(4, os.cpu_count() or 1)
# What FFmpeg makes of any text or binary file with the right ending.
TEXT_CODECS = ('ansi', 'bintext', 'idf', 'xbin')


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
  """A frame of a clip.

  Attributes:
    name: stem of the files written for it: the image file's own, or the number in five digits for a video.
    index: number of the frame in its clip, from 0, counting also frames that `start` and `every` leave out.
    image: uint8 (h, w, 3), RGB, upright.
    time: seconds since the video's first frame; None where nothing is known (image files).
  """

  name: str
  index: int
  image: np.ndarray
  time: Fraction | None = None


class Source(abc.ABC):
  """A clip: an iterable of `Frame`, which may be iterated again and holds one frame at a time.

  Attributes:
    name: folder's name, or the stem of a video or single image: the clip's name among several.
    kind: 'frames' or 'video'.
    paths: the files read, in order; of a video its one file.
    folder: the folder that was given as a whole or by a pattern, else None.
    rate: frames per second of what is yielded (after `every`): 24 for image files.
    length: number of frames that will be yielded as far as the files or the video's header say; None: not known.
    warnings: sentences for the user.
    skipped: frames left out in the last iteration because they could not be read (only with `skip_bad`).
  """

  kind = 'frames'

  def __init__(self, name: str, paths: list[Path], start: int | None, end: int | None, every: int, skip_bad: bool):
    for key, value, least in (('start', start, 0), ('end', end, 1), ('every', every, 1)):
      if value is not None and value < least:
        raise UsageError(f'{key} is {value}', advice=f'it must be at least {least}')
    if end is not None and end <= (start or 0):
      what = f'start {start or 0} and end {end} leave no frame'
      raise UsageError(what, advice='end is exclusive, choose a greater one')
    self.name, self.paths = name, paths
    self.folder: Path | None = None
    self.start, self.end, self.every, self.skip_bad = start or 0, end, every, skip_bad
    self.rate = FRAME_FILES_RATE / every
    self.length: int | None = None
    self.warnings: list[str] = []
    self.skipped: list[str] = []
    self._seconds: Fraction | None = None  # of the whole clip
    self._only: frozenset[int] | None = None

  @abc.abstractmethod
  def __iter__(self) -> Iterator[Frame]:
    """Reads the clip from its start. Raises DataError where a frame cannot be read and `skip_bad` is not set."""

  def copy(self) -> Source:
    """The same clip, to be read beside this one: with warnings and skipped frames of its own."""
    other = copy.copy(self)
    other.warnings, other.skipped = [], []
    return other

  def only(self, numbers: Collection[int]) -> Source:
    """A copy that yields, of the frames that this one does, those of these numbers; at least one is given."""
    other = self.copy()
    other._only = frozenset(numbers)
    last = max(numbers) + 1
    other.end = last if self.end is None else min(last, self.end)
    return other

  @property
  def overlay_bit_rate(self) -> int | None:
    """Bits per second that keep an overlay under twice the source's size, or 1 MB if that is more; None: not known."""
    if not self._seconds:
      return None
    seconds = self.length / self.rate if self.length else self._seconds
    size = sum(path.stat().st_size for path in self.paths)
    # The encoder's rate control and the container's tables take the rest.
    return max(1, int(8 * 0.9 * max(2 * size / self._seconds, 1_000_000 / seconds)))

  def _selects(self, index: int) -> bool:
    inside = index >= self.start and (self.end is None or index < self.end)
    return inside and (index - self.start) % self.every == 0 and (self._only is None or index in self._only)

  def _set_total(self, total: int) -> None:
    self.length = len(range(self.start, total if self.end is None else min(total, self.end), self.every))

  def _nothing(self, total: int) -> DataError:
    advice = 'frames count from 0: choose a smaller start'
    return DataError(f'no frame from {self.start} on, the clip has {total}', self.name, advice)


class FrameFiles(Source):
  """A clip of image files."""

  def __init__(self, name: str, paths: list[Path], start=None, end=None, every=1, skip_bad=False):
    super().__init__(name, paths, start, end, every, skip_bad)
    stems: dict[str, Path] = {}
    for path in paths:
      if path.stem in stems:
        raise UsageError(
          f'two frames would be written as {path.stem}.png',
          f'{stems[path.stem]} and {path}',
          'rename or remove one, or give each folder as an input of its own',
        )
      stems[path.stem] = path
    self._seconds = len(paths) / FRAME_FILES_RATE
    self._set_total(len(paths))
    if not self.length:
      raise self._nothing(len(paths))

  def __iter__(self) -> Iterator[Frame]:
    self.skipped = []
    found = False
    for index, path, image in self._decoded():
      try:
        frame = Frame(path.stem, index, image.result())
      except DataError:
        if not self.skip_bad:
          raise
        self.skipped.append(str(path))
        continue
      found = True
      yield frame
      del frame
    if not found:
      raise DataError('no readable image in it', self.name, f'all {len(self.skipped)} of them are damaged')

  def _decoded(self) -> Iterator[tuple[int, Path, Future[np.ndarray]]]:
    """Number, file and image of each frame, decoded in threads as FFmpeg decodes a video."""
    selected = ((index, path) for index, path in enumerate(self.paths) if self._selects(index))
    waiting: collections.deque[tuple[int, Path, Future[np.ndarray]]] = collections.deque()
    pool = ThreadPoolExecutor(DECODERS, 'decode')
    ahead = 1  # of who wants but the first frame, no other one is decoded
    try:
      while True:
        for index, path in itertools.islice(selected, ahead - len(waiting)):
          waiting.append((index, path, pool.submit(read_image, path)))
        if not waiting:
          return
        yield waiting.popleft()
        ahead = DECODERS
    finally:
      pool.shutdown(cancel_futures=True)


@dataclasses.dataclass
class _Seen:
  """What one pass over a video has met: frames, damage, the end of the last frame in seconds; `tick` of its clock."""

  tick: Fraction
  count: int = 0
  damaged: int = 0
  end: Fraction | None = None
  cut: bool = False
  reason: str = 'no frame in it can be decoded'

  def count_frames(self, frames: list) -> Iterator:
    for frame in frames:
      self.count += 1
      self.damaged += bool(frame.is_corrupt)
      if frame.pts is not None:
        self.end = (frame.pts + (frame.duration or 0)) * self.tick
      yield frame


class VideoFile(Source):
  """A clip in a video file."""

  kind = 'video'

  def __init__(self, name: str, path: Path, start=None, end=None, every=1, skip_bad=False):
    super().__init__(name, [path], start, end, every, skip_bad)
    self._av = import_av()
    with self._open() as container:
      stream = self._stream(container)
      self.rate = (stream.average_rate or stream.guessed_rate or Fraction(25)) / every
      self._seconds = _seconds(stream, container)
      if stream.frames:
        self._set_total(stream.frames)
        if not self.length:
          raise self._nothing(stream.frames)
      next(self._decode(container, stream))  # raises where not one frame can be decoded

  def __iter__(self) -> Iterator[Frame]:
    self.skipped = []
    first = turned = matrix = None
    index = -1
    with self._open() as container:
      stream = self._stream(container)
      for index, raw in enumerate(self._decode(container, stream)):
        first = raw.pts if first is None else first
        # Not of every frame: asking for side data ties a frame into a cycle, and dozens wait for the collector.
        if turned != raw.rotation:
          turned, matrix = raw.rotation, _display_matrix(raw)
        if self._selects(index):
          known = raw.pts is not None and first is not None
          time = (raw.pts - first) * stream.time_base if known else None
          yield Frame(f'{index:05d}', index, _upright_rgb(raw, matrix), time)
        # Not one frame further: what comes after the end may be what the end is there to avoid.
        if self.end is not None and index + 1 >= self.end:
          return
    if index < self.start:
      raise self._nothing(index + 1)

  @contextlib.contextmanager
  def _open(self) -> Iterator:
    path = self.paths[0]
    # As an open file and without protocols: neither its name nor a play list in it leads anywhere else.
    options = {'protocol_whitelist': 'none'}
    try:
      file = path.open('rb')
    except OSError as error:
      raise DataError(f'cannot be read: {reason(error)}', path, 'check the file and its permissions') from error
    with file:
      if not path.stat().st_size:
        raise self._not_a_video('the file is empty')
      try:
        container = self._av.open(file, options=options, metadata_errors='ignore', buffer_size=1 << 18)
      except (self._av.FFmpegError, OSError, ValueError) as error:
        raise self._not_a_video(self._logged(options) or reason(error)) from error
      with container:
        yield container

  def _logged(self, options: dict[str, str]) -> str | None:
    """What the decoder logs when the file is opened again: more than its error code says."""
    logging = self._av.logging
    level, skips = logging.get_level(), logging.get_skip_repeated()
    logging.set_level(logging.ERROR)
    logging.set_skip_repeated(False)  # the same reason may be that of another file, too
    try:
      ignored = contextlib.suppress(self._av.FFmpegError, OSError, ValueError)
      with self.paths[0].open('rb') as file, logging.Capture() as lines, ignored:
        self._av.open(file, options=options, metadata_errors='ignore').close()
    finally:
      logging.set_level(level)
      logging.set_skip_repeated(skips)
    return ' '.join(lines[-1][2].split()) if lines else None

  def _stream(self, container):
    """The video stream; raises DataError where there is none, or one too large."""
    cover = self._av.stream.Disposition.attached_pic  # of an audio file
    streams = [s for s in container.streams.video if not s.disposition & cover]
    streams = [s for s in streams if s.codec_context is not None and s.codec_context.name not in TEXT_CODECS]
    if not streams:
      kinds = {s.type for s in container.streams if s.type != 'video'}
      raise self._not_a_video(f'it holds {" and ".join(sorted(kinds))} only' if kinds else 'it holds no moving picture')
    best = container.streams.best('video')
    stream = next((s for s in streams if best is not None and s.index == best.index), streams[0])
    w, h = stream.codec_context.width, stream.codec_context.height
    if w * h > MAX_PIXELS:
      raise too_large(self.paths[0], w, h)
    stream.thread_type = 'AUTO'
    return stream

  def _decode(self, container, stream) -> Iterator:
    """Yields every frame that can be decoded, then raises DataError where the file breaks off."""
    seen, broken = _Seen(stream.time_base), None
    try:
      for packet in self._packets(container, stream, seen):
        try:
          yield from seen.count_frames(stream.decode(packet))
        except self._av.FFmpegError as error:
          # Recordings may begin between two key frames: what comes before the first whole frame is not missed.
          seen.reason = reason(error)
          if seen.count and not self.skip_bad:
            raise
          if seen.count:
            self.skipped.append(f'{self.paths[0]}: near frame {seen.count}')
    except self._av.FFmpegError as error:
      broken = reason(error)
    try:
      yield from seen.count_frames(stream.decode(None))
    except self._av.FFmpegError as error:
      broken = broken or reason(error)
    if not seen.count:
      raise self._not_a_video(broken or seen.reason)
    if seen.damaged:
      self._warn(f'{seen.damaged} damaged frame(s) in {self.paths[0].name}; the decoder has filled them in')
    broken = broken or self._cut(container, stream, seen)
    if broken and self.skip_bad:
      self._warn(f'{self.paths[0].name} breaks off at frame {seen.count}: {broken}')
    elif broken:
      advice = f'the frames before it were read; get the whole file, or stop there with --end {seen.count}'
      raise DataError(f'the video breaks off at frame {seen.count}: {broken}', self.paths[0], advice)

  def _packets(self, container, stream, seen: _Seen) -> Iterator:
    """Yields packets to decode; a damaged one only if another follows, as the last it is where the file was cut."""
    held = None
    for packet in container.demux(stream):
      if not packet.size:  # a frame that an AVI file drops, or the demuxer's own end mark
        continue
      if held is not None:
        yield held
      held = packet if packet.is_corrupt else None
      if held is None:
        yield packet
    seen.cut = held is not None

  def _cut(self, container, stream, seen: _Seen) -> str | None:
    """Why the file seems cut off, or None: many containers end quietly when their data does."""
    if seen.cut:
      return 'its last packet is incomplete'
    entries = stream.index_entries
    if len(entries) and entries[-1].pos + entries[-1].size > self.paths[0].stat().st_size:
      return 'its index points beyond the end of the file'
    # Matroska and WebM declare how long they are; where several streams share a number, it may be another one's.
    declared = _duration_tag(stream.metadata)
    if declared is None and len(container.streams) == 1 and 'matroska' in container.format.name and container.duration:
      declared = Fraction(container.duration, 1_000_000)
    rate = stream.average_rate or Fraction(25)
    if declared is not None and seen.end is not None and declared - seen.end > max(Fraction(1, 2), 2 / rate):
      return f'it ends at {float(seen.end):.1f} s of {float(declared):.1f} s'
    return None

  def _warn(self, text: str) -> None:
    if text not in self.warnings:
      self.warnings.append(text)

  def _not_a_video(self, why: str) -> DataError:
    return DataError(f'not a video: {why}', self.paths[0], 'give a video file, an image or a folder of images')


def _display_matrix(frame) -> list[int] | None:
  """The first five numbers of a PyAV frame's display matrix: a, b, u, c, d."""
  for data in frame.side_data:
    if data.type.name == 'DISPLAYMATRIX':
      return np.frombuffer(bytes(data), np.int32)[:5].tolist()
  return None


def _upright_rgb(frame, matrix: list[int] | None) -> np.ndarray:
  """A PyAV frame as uint8 (h, w, 3) RGB, turned and mirrored by its display matrix, transparency over white."""
  options: dict[str, Any] = {'threads': 1}  # as in outputs/encoders.py, where several spoil rows
  # Unlabelled colours: players take large pictures for BT.709, small ones for BT.601 (FFmpeg's own default).
  if int(frame.colorspace) == 2 and not frame.format.is_rgb and (frame.width >= 1280 or frame.height > 576):
    options['src_colorspace'] = 'ITU709'
  if frame.format.name == 'yuva420p':
    # Straight to RGBA, FFmpeg leaves the last columns of some widths as the memory was.
    alpha = frame.planes[3]
    opacity = np.frombuffer(alpha, np.uint8).reshape(-1, alpha.line_size)[: frame.height, : frame.width, None]
    image = over_white(np.concatenate([frame.to_ndarray(format='rgb24', **options), opacity], axis=2))
  elif frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
    image = over_white(frame.to_ndarray(format='rgba', **options))
  else:
    image = frame.to_ndarray(format='rgb24', **options)
  if matrix is not None:
    # A pixel (x, y) is shown at (a x + c y, b x + d y), in a picture that has x >= 0 and y >= 0.
    a, b, _, right, down = matrix
    if abs(b) > abs(a):
      image, right, down = image.transpose(1, 0, 2), right, b
    else:
      right = a
    image = image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
  return np.ascontiguousarray(image)


def _seconds(stream, container) -> Fraction | None:
  if stream.duration and stream.time_base:
    return stream.duration * stream.time_base
  return Fraction(container.duration, 1_000_000) if container.duration else None


def _duration_tag(metadata: dict[str, str]) -> Fraction | None:
  """Seconds in Matroska's tag, such as 00:00:02.400000000."""
  try:
    h, m, s = metadata['DURATION'].split(':')
    return int(h) * 3600 + int(m) * 60 + Fraction(s)
  except (KeyError, ValueError):
    return None
