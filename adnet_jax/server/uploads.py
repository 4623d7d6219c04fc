"""A video from a request's body to a file, and what it declares itself to be; decodes nothing before that is checked.

A user's file name is text to show. Nothing on the disk is ever called after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from adnet_jax.errors import DataError
from adnet_jax.images import read_shape
from adnet_jax.server.refused import Refused, is_full
from adnet_jax.sources import VideoFile
from adnet_jax.writers import import_av

# Of a multipart body beside its file: boundaries and headers.
WRAPPING = 64 * 1024
LONGEST_NAME = 120
LONGEST_TEXT = 500
# That is waited for the rest of a file that is refused.
DRAIN_SECONDS = 5.0
# Where a video's first bytes say so, it is a damaged video; anything else that FFmpeg cannot read is none.
MAGIC = (
  (4, b'ftyp'), (4, b'moov'), (4, b'mdat'), (4, b'free'), (4, b'wide'), (0, b'\x1aE\xdf\xa3'), (0, b'RIFF'),
  (0, b'GIF8'), (0, b'FLV\x01'), (0, b'\x00\x00\x01\xba'), (0, b'\x00\x00\x01\xb3'), (0, b'OggS'), (0, b'0&\xb2u'),
  (0, b'\x89PNG'), (0, b'\xff\xd8\xff'),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a video may have at most.

  Attributes:
    bytes: of the file.
    pixels: of a frame, width x height.
    frames: of the video.
    total: width x height x frames.
    reserve: bytes of the disk that stay free.
  """

  bytes: int = 2 * 10**9
  pixels: int = 8192 * 4320
  frames: int = 60_000
  total: int = 150 * 10**9
  reserve: int = 200 * 10**6


@dataclasses.dataclass(frozen=True)
class Clip:
  """What a video declares: `width` x `height` as shown, `frames` (None where it does not say), frames per second."""

  width: int
  height: int
  frames: int | None
  rate: float


@dataclasses.dataclass(frozen=True)
class Sent:
  """What a form held: the name that the user's file has, to be shown, and the texts of `also` and `anchor`."""

  name: str
  also: str
  anchor: str


async def receive(request: Request, path: Path, limits: Limits) -> Sent:
  """Writes the form field `file` of a multipart request to `path` as it comes in.

  Args:
    request: whose body has not been read.
    path: of a file that does not exist; after an error it does not exist either.
    limits: of which the size is watched while it comes in, and before, where the request declares it.

  Raises:
    Refused: 413 too large, 415 no such form, 422 cut off or without a file, 507 the disk is full.
  """
  kind, options = parse_options_header(request.headers.get('content-type'))
  boundary = options.get(b'boundary')
  if kind != b'multipart/form-data' or not boundary:
    raise Refused(415, 'Send the video as the field "file" of a multipart form.')
  declared = _declared_length(request)
  if declared is not None and declared > limits.bytes + WRAPPING:
    if 'expect' not in request.headers:
      await _drain(request)
    raise too_large(limits)
  check_space(path.parent, declared or 0, limits)
  try:
    with path.open('xb') as file:
      form = _Form(boundary, file, limits)
      await _read(request.stream(), form)
    if not form.ended:
      raise Refused(422, 'The upload was cut off before its end.')
    if form.name is None:
      raise Refused(422, 'The form has no field "file" with a file in it.')
    if not form.size:
      raise Refused(422, 'The file is empty.')
    also, anchor = (form.texts[field].decode('utf-8', 'replace') for field in (b'also', b'anchor'))
    return Sent(form.name, also, anchor)
  except BaseException as error:
    with contextlib.suppress(OSError):
      path.unlink(missing_ok=True)
    if isinstance(error, Refused) and error.status == 413:
      await _drain(request)
    if isinstance(error, ClientDisconnect):
      raise Refused(422, 'The upload was cut off before its end.') from error
    if isinstance(error, FormParserError):
      raise Refused(422, 'The form cannot be read.') from error
    if is_full(error):
      raise disk_full() from error
    raise


async def _drain(request: Request) -> None:
  """Lets a client that sends first and reads afterwards come to the answer, within bounds."""
  with contextlib.suppress(Exception):
    async with asyncio.timeout(DRAIN_SECONDS):
      async for _ in request.stream():
        pass


async def _read(chunks: AsyncIterator[bytes], form: _Form) -> None:
  async for chunk in chunks:
    if chunk:
      # The disk may be slow, and other users wait for their events.
      await run_in_threadpool(form.write, chunk)


class _Form:
  """The callbacks of a streaming multipart parser: the first `file` goes to a file, `texts` are kept, others not."""

  def __init__(self, boundary: bytes, file: IO[bytes], limits: Limits):
    self.name: str | None = None
    self.texts = {b'also': b'', b'anchor': b''}
    self.size, self.ended = 0, False
    self._file, self._limits = file, limits
    self._field, self._value = b'', b''
    self._headers: dict[bytes, bytes] = {}
    self._part = b''
    self._parser = MultipartParser(
      boundary,
      {
        'on_part_begin': self._begin,
        'on_header_field': self._header_field,
        'on_header_value': self._header_value,
        'on_header_end': self._header_end,
        'on_headers_finished': self._headers_finished,
        'on_part_data': self._data,
        'on_end': self._end,
      },
    )
    self._read = 0

  def write(self, chunk: bytes) -> None:
    self._read += len(chunk)
    if self._read > self._limits.bytes + WRAPPING:
      raise too_large(self._limits)
    self._parser.write(chunk)

  def _begin(self) -> None:
    self._headers, self._part = {}, b''

  def _header_field(self, data: bytes, start: int, end: int) -> None:
    self._field += data[start:end]

  def _header_value(self, data: bytes, start: int, end: int) -> None:
    self._value += data[start:end]

  def _header_end(self) -> None:
    self._headers[self._field.lower()] = self._value
    self._field, self._value = b'', b''

  def _headers_finished(self) -> None:
    _, options = parse_options_header(self._headers.get(b'content-disposition'))
    if self.name is None and options.get(b'name') == b'file' and b'filename' in options:
      # Browsers write a quotation mark in a name so, and nothing else but line breaks.
      self.name = shown_name(options[b'filename'].decode('utf-8', 'replace').replace('%22', '"'))
      self._part = b'file'
    elif options.get(b'name') in self.texts and b'filename' not in options:
      self._part = options[b'name']

  def _data(self, data: bytes, start: int, end: int) -> None:
    if self._part in self.texts:
      self.texts[self._part] += data[start:end]
      if len(self.texts[self._part]) > LONGEST_TEXT:
        raise Refused(422, f'The field "{self._part.decode()}" is too long.')
    elif self._part == b'file':
      self.size += end - start
      if self.size > self._limits.bytes:
        raise too_large(self._limits)
      self._file.write(data[start:end])

  def _end(self) -> None:
    self.ended = True


def shown_name(name: str) -> str:
  """A user's file name as text for one line: without folders, control signs and signs that turn the text around."""
  name = name.replace('\\', '/').rsplit('/', 1)[-1]
  name = ''.join(sign for sign in name if unicodedata.category(sign) not in ('Cc', 'Cf', 'Cs', 'Zl', 'Zp')).strip()
  if len(name) > LONGEST_NAME:
    name = f'{name[: LONGEST_NAME - 12]}…{name[-11:]}'
  return name or 'video'


def check(path: Path, limits: Limits) -> tuple[Clip, np.ndarray]:
  """Reads what an uploaded file declares, and only then its first frame.

  Args:
    path: of the file.
    limits: of frames and their pixels.

  Returns:
    The clip, and its first frame: (h, w, 3) uint8 RGB.

  Raises:
    Refused: 413 larger than the limits, 415 not a video, 422 a video that is damaged or cut off.
  """
  with path.open('rb') as file:
    start = file.read(64)
  _check_picture(path, limits)
  try:
    width, height, frames = _declared_by_container(path)
  except DataError as error:
    raise _unreadable(start, error) from error
  _check_size(width, height, frames, limits)
  try:
    video = VideoFile('clip', path)
    image = next(iter(video)).image
  except DataError as error:
    raise _unreadable(start, error) from error
  return Clip(image.shape[1], image.shape[0], video.length, float(video.rate)), image


def _check_picture(path: Path, limits: Limits) -> None:
  # Pillow reads headers alone, where FFmpeg may decode a picture to find out what it is.
  try:
    height, width = read_shape(path)
  except DataError as error:
    if 'too large' in error.what:
      raise Refused(413, 'Its frames are too large.') from error
    return  # no picture, or a damaged one: the decoder says which
  _check_size(width, height, None, limits)


def _declared_by_container(path: Path) -> tuple[int, int, int | None]:
  """Width, height and number of frames as the container says; raises DataError where it cannot be opened or is cut."""
  av = import_av()
  try:
    with path.open('rb') as file, av.open(file, options={'protocol_whitelist': 'none'}, metadata_errors='ignore') as c:
      stream = next((s for s in c.streams.video if s.codec_context is not None), None)
      if stream is None:
        raise DataError('it holds no moving picture')
      entries = stream.index_entries
      if len(entries) and entries[-1].pos + entries[-1].size > path.stat().st_size:
        raise DataError('the video is cut off')
      frames = stream.frames or None
      if frames is None and stream.average_rate:
        seconds = stream.duration * stream.time_base if stream.duration else (c.duration or 0) / 1_000_000
        frames = round(seconds * stream.average_rate) or None
      return stream.codec_context.width, stream.codec_context.height, frames
  except (av.FFmpegError, OSError, ValueError) as error:
    raise DataError('it cannot be read') from error


def _check_size(width: int, height: int, frames: int | None, limits: Limits) -> None:
  if width * height > limits.pixels:
    raise Refused(413, f'Its frames of {width:,} x {height:,} pixels are too large.')
  if frames is not None and frames > limits.frames:
    raise Refused(413, f'Its {frames:,} frames are too many: at most {limits.frames:,} are taken.')
  if width * height * (frames or 1) > limits.total:
    raise Refused(413, f'{frames:,} frames of {width:,} x {height:,} pixels are too many: scale it down or cut it.')


def _unreadable(start: bytes, error: DataError) -> Refused:
  # Sound in a video's container is whole, and yet no video.
  if 'it holds' not in error.what and any(start[at : at + len(magic)] == magic for at, magic in MAGIC):
    return Refused(422, 'The video is damaged or cut off: it cannot be read to its end.')
  return Refused(415, 'This is not a video that can be read: give an MP4, MOV, WebM, MKV, AVI or GIF file.')


def check_space(folder: Path, wanted: int, limits: Limits) -> None:
  """Refused (507) where `wanted` bytes would not leave the reserve free."""
  if shutil.disk_usage(folder).free - wanted < limits.reserve:
    raise disk_full()


def disk_full() -> Refused:
  """The answer where nothing more can be stored."""
  return Refused(507, 'The disk of the machine is full: free some space, or remove a job.')


def too_large(limits: Limits) -> Refused:
  """The answer to a file over the limit."""
  return Refused(413, f'The file is too large: at most {limits.bytes / 1e6:,.0f} MB are taken.')


def _declared_length(request: Request) -> int | None:
  try:
    return int(request.headers['content-length'])
  except (KeyError, ValueError):
    return None
