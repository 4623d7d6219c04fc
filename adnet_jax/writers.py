"""Writes masks, heat maps and overlays, never half a file under a final name; knows nothing of how masks are made."""

from __future__ import annotations

import contextlib
import itertools
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from adnet_jax.errors import DataError, UsageError

TINT = (28, 148, 255)
OUTLINE = (255, 255, 255)
TINT_SHARE = 0.45
# A clock in which the frames of 24, 25, 30, 50, 60 and their 1000/1001 variants last a whole number of ticks.
TICKS = 120_000
# The best first; the last one is in every build but does not play in browsers.
ENCODERS = ('libx264', 'libopenh264', 'mpeg4')

_numbers = itertools.count()


def write_mask(path: str | Path, mask: np.ndarray) -> None:
  """Writes a mask as an 8-bit PNG of 0 and 255, atomically; folders on the way are made.

  Args:
    path: where to, ending in `.png`.
    mask: bool (h, w).

  Raises:
    DataError: it cannot be written (disk full, no permission); says which was the last one written there.
  """
  if mask.dtype != np.bool_ or mask.ndim != 2:
    raise ValueError(f'mask: expected bool (h, w), got {mask.dtype} {mask.shape}')
  _write_png(Path(path), mask.astype(np.uint8) * 255)


def write_heatmap(path: str | Path, probability: np.ndarray) -> None:
  """Writes a heat map as a 16-bit PNG of probability x 65535, atomically; folders on the way are made.

  Args:
    path: where to, ending in `.png`.
    probability: float (h, w), 0..1; what lies outside is clipped.

  Raises:
    DataError: it cannot be written (disk full, no permission); says which was the last one written there.
  """
  if probability.dtype.kind != 'f' or probability.ndim != 2:
    raise ValueError(f'probability: expected float (h, w), got {probability.dtype} {probability.shape}')
  # In float64: 65535 times a float32 is not always rounded to the nearest step.
  _write_png(Path(path), np.rint(np.clip(probability.astype(np.float64), 0, 1) * 65535).astype(np.uint16))


def draw_overlay(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Tints the foreground and draws a crisp white line around it, outside of it.

  Args:
    rgb: uint8 (h, w, 3), RGB.
    mask: bool (h, w).

  Returns:
    A new uint8 (h, w, 3), RGB; equal to `rgb` away from the foreground.
  """
  if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
    raise ValueError(f'rgb: expected uint8 (h, w, 3), got {rgb.dtype} {rgb.shape}')
  if mask.dtype != np.bool_ or mask.shape != rgb.shape[:2]:
    raise ValueError(f'mask: expected bool {rgb.shape[:2]}, got {mask.dtype} {mask.shape}')
  image = np.ascontiguousarray(rgb)
  tinted = cv2.addWeighted(image, 1 - TINT_SHARE, np.full_like(image, TINT), TINT_SHARE, 0)
  image = np.where(mask[..., None], tinted, image)
  width = max(1, round(min(mask.shape) / 320))
  disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
  image[cv2.dilate(mask.astype(np.uint8), disc).astype(bool) & ~mask] = OUTLINE
  return image


class OverlayWriter:
  """An H.264 mp4 that grows under a temporary name and gets its own one when it is closed.

  The picture has the first frame's size, scaled down to `max_side` and padded by a pixel where a side is odd; frames of
  another size are fitted into it. An exception inside the `with` block removes the file; no frame, no file. What was
  there before under that name stays until a new video is whole.

  Attributes:
    warnings: sentences for the user, for instance that the video will not play in a browser.
  """

  def __init__(
    self, path: str | Path, rate: Fraction | float = Fraction(24), *, bit_rate: int | None = None, max_side: int = 1920
  ):
    """Args:
      path: of the video, ending in `.mp4`.
      rate: frames per second, where `write` is given no time.
      bit_rate: bits per second not to exceed (see `Source.overlay_bit_rate`); None: as the quality needs.
      max_side: longest side in pixels.

    Raises:
      UsageError: PyAV is not installed.
    """
    self.path = Path(path)
    self.warnings: list[str] = []
    self._av = import_av()
    self._rate = Fraction(rate).limit_denominator(1001 * 1000)
    if self._rate <= 0:
      raise ValueError(f'rate: expected more than 0, got {rate}')
    # FFmpeg's options end at 2^31 - 1; a limit beyond it limits nothing.
    self._bit_rate = bit_rate if bit_rate is not None and bit_rate < 2**31 else None
    self._max_side = max_side
    self._part = _temporary(self.path)
    self._container: Any = None
    self._stream: Any = None
    self._first = self._clock = Fraction(0)
    self._ticks, self._tick = TICKS, -1

  def __enter__(self) -> OverlayWriter:
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    if kind is None:
      self.close()
    else:
      self.abort()

  def write(self, rgb: np.ndarray, mask: np.ndarray, time: Fraction | None = None) -> None:
    """Adds a frame with its mask drawn in.

    Args:
      rgb: uint8 (h, w, 3), RGB.
      mask: bool (h, w).
      time: of the frame in the source's clock, in seconds; None: one frame after the one before.

    Raises:
      DataError: it cannot be written (disk full, no permission).
    """
    image = draw_overlay(rgb, mask)
    try:
      if self._container is None:
        self._open(image.shape)
      self._clock = self._clock + 1 / self._rate if time is None else Fraction(time)
      if self._tick < 0:
        self._first = self._clock
      # Broken sources have equal or falling times, which an mp4 may not.
      self._tick = max(self._tick + 1, round((self._clock - self._first) * self._ticks))
      frame = self._av.VideoFrame.from_ndarray(self._fit(image), format='rgb24')
      frame = frame.reformat(format='yuv420p', dst_colorspace='ITU709', dst_color_range='MPEG')
      frame.pts, frame.time_base = self._tick, Fraction(1, self._ticks)
      self._container.mux(self._stream.encode(frame))
    except (OSError, self._av.FFmpegError) as error:
      self.abort()
      raise _cannot_write(self.path, error) from error

  def close(self) -> None:
    """Ends the video and gives it its name; a second call does nothing."""
    if self._container is None:
      return
    try:
      self._container.mux(self._stream.encode())
      self._container.close()
      os.replace(self._part, self.path)
    except (OSError, self._av.FFmpegError) as error:
      self.abort()
      raise _cannot_write(self.path, error) from error
    self._container = None

  def abort(self) -> None:
    """Drops the video, its temporary file too."""
    container, self._container = self._container, None
    if container is not None:
      # The reason why it is dropped is the error to be told, not one in dropping it.
      with contextlib.suppress(OSError, self._av.FFmpegError):
        container.close()
    with contextlib.suppress(OSError):
      self._part.unlink(missing_ok=True)

  def _open(self, shape: tuple[int, ...]) -> None:
    h, w = shape[:2]
    shrink = min(1, self._max_side / max(h, w))
    self._inner = max(1, round(h * shrink)), max(1, round(w * shrink))
    h, w = (side + side % 2 for side in self._inner)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    encoder = next(name for name in ENCODERS if self._has(name))
    options = {'g': str(max(1, round(2 * self._rate)))}
    if encoder == 'libx264':
      options |= {'preset': 'veryfast', 'crf': '23'}
      if self._bit_rate:
        options |= {'maxrate': str(self._bit_rate), 'bufsize': str(self._bit_rate)}
    if encoder == 'mpeg4':
      self._ticks = TICKS // 2  # its clock has 16 bits
      self.warnings.append('this PyAV has no H.264 encoder: the overlay is MPEG-4 part 2, which browsers do not play')
    # An absolute path, so that no name is taken for an address or an option.
    self._container = self._av.open(str(self._part.absolute()), 'w', format='mp4', options={'movflags': '+faststart'})
    stream = self._container.add_stream(encoder, rate=self._rate, options=options)
    stream.width, stream.height, stream.pix_fmt = w, h, 'yuv420p'
    stream.time_base = stream.codec_context.time_base = Fraction(1, self._ticks)
    # Players guess where nothing is said, by the size of the picture and each in its own way: BT.709, limited range.
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
    if encoder != 'libx264':
      context.bit_rate = self._bit_rate or 4 * w * h
    self._stream = stream

  def _has(self, encoder: str) -> bool:
    try:
      self._av.codec.Codec(encoder, 'w')
    except ValueError:  # PyAV's UnknownCodecError is one
      return False
    return True

  def _fit(self, image: np.ndarray) -> np.ndarray:
    """Fits an image uint8 (h, w, 3) into the picture: scaled, centred on black, odd sides padded by their edge."""
    height, width = self._inner
    scale = min(height / image.shape[0], width / image.shape[1])
    h, w = (min(limit, max(1, round(side * scale))) for limit, side in zip(self._inner, image.shape, strict=False))
    if (h, w) != image.shape[:2]:
      image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (height - h) // 2, (width - w) // 2
    image = cv2.copyMakeBorder(image, top, height - h - top, left, width - w - left, cv2.BORDER_CONSTANT)
    return cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)


def import_av():
  """PyAV's module, which only videos need.

  Raises:
    UsageError: it is not installed.
  """
  try:
    import av
    import av.codec
  except ImportError as error:
    raise UsageError('videos need PyAV, which is not installed', advice="pip install 'adnet-jax[video]'") from error
  return av


def reason(error: BaseException) -> str:
  """What an operating system's or decoder's error says, without its numbers and in one line."""
  text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
  return ' '.join(text.split())


def _temporary(path: Path) -> Path:
  # Short and hidden: a long name stays within the file system's limit, and no folder reader takes it for a mask.
  return path.parent / f'.adnet-{os.getpid()}-{next(_numbers)}.tmp'


def _write_png(path: Path, image: np.ndarray) -> None:
  done, data = cv2.imencode('.png', image)
  assert done, 'OpenCV encodes every uint8 and uint16 image'
  part = _temporary(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      part.write_bytes(data.tobytes())
      os.replace(part, path)
    except BaseException:
      part.unlink(missing_ok=True)
      raise
  except OSError as error:
    raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: BaseException) -> DataError:
  advice = 'free some space or choose another folder'
  try:
    written = [entry for entry in os.scandir(path.parent) if entry.name.endswith('.png') and entry.name != path.name]
  except OSError:
    written = []
  if written and path.suffix == '.png':
    advice += f'; the last one written is {max(written, key=lambda e: (e.stat().st_mtime_ns, e.name)).name}'
  elif path.suffix == '.png':
    advice += '; none was written before it'
  return DataError(f'cannot be written: {reason(error)}', path, advice)
