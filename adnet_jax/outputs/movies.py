"""Writes pictures with their times and their source's sound as videos, whole or not at all; knows no clips."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from adnet_jax.outputs import encoders
from adnet_jax.outputs import sound as sound_lib
from adnet_jax.outputs.media import Media
from adnet_jax.writers import cannot_write, draw_overlay, import_av, temporary

MAX_SIDE = 4096
# What the sound may last longer than the pictures where nothing says that these are all.
_TAIL = Fraction(1)
_JITTER = Fraction(1, 1000)


class MovieWriter:
  """A video that grows under a temporary name and gets its own one when it is closed.

  The picture has the first frame's size, scaled down to `max_side` and, where the encoder needs it, padded by a pixel
  where a side is odd; frames of another size are fitted into it. An exception inside the `with` block removes the file;
  no frame, no file. What was there before under that name stays until a new video is whole.

  Attributes:
    path: the video's.
    warnings: sentences for the user, for instance that the video will not play in a browser.
  """

  def __init__(
    self,
    path: str | Path,
    rate: Fraction | float = Fraction(24),
    *,
    media: Media | None = None,
    bit_rate: int | None = None,
    max_side: int = MAX_SIDE,
    to_end: bool = True,
    length: int | None = None,
  ):
    """Args:
      path: of the video, ending in `.mp4` (H.264), `.webm` (VP9 with alpha) or `.mov` (ProRes 4444 with alpha).
      rate: frames per second, where `add` is given no time.
      media: colours and sound of the source (see `media.describe`).
      bit_rate: bits per second not to exceed, sound included (see `Source.overlay_bit_rate`); None: as the quality
        needs. Without meaning for ProRes.
      max_side: longest side in pixels.
      to_end: whether the frames go to the source's end: the last one then lasts, and the sound goes on, as there.
      length: number of frames that will come, where it is known; with fewer, the source broke off.

    Raises:
      UsageError: PyAV is not installed.
    """
    self.path = Path(path)
    self.warnings: list[str] = []
    self._av = import_av()
    self._media = media or Media()
    self._form = self.path.suffix[1:]
    self._rate = Fraction(rate).limit_denominator(1001 * 1000)
    if self._rate <= 0:
      raise ValueError(f'rate: expected more than 0, got {rate}')
    if bit_rate is not None:
      bit_rate = max(bit_rate // 4, bit_rate - sound_lib.bit_rate(self._media.sound, self._form))
    # FFmpeg's options end at 2^31 - 1; a limit beyond it limits nothing.
    self._bit_rate = bit_rate if bit_rate is not None and bit_rate < 2**31 else None
    self._max_side, self._to_end, self._missing = max_side, to_end, length
    self._part = temporary(self.path)
    self._container: Any = None
    self._encoder: encoders.Encoder
    self._sound: sound_lib.SoundTrack | None = None
    self._first = self._clock = Fraction(0)
    self._tick = -1
    # The newest picture waits for the next one's time, which says how long it is shown.
    self._waiting: np.ndarray | None = None
    self._shown: dict[int, int] = {}

  def __enter__(self) -> MovieWriter:
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    if kind is None:
      self.close()
    else:
      self.abort()

  def add(self, image: np.ndarray, time: Fraction | None = None) -> None:
    """Adds a picture.

    Args:
      image: uint8 (h, w, 3), RGB; for `.webm` and `.mov` (h, w, 4) with straight alpha.
      time: of the frame in the source's clock, in seconds; None: one frame after the one before.

    Raises:
      DataError: it cannot be written (disk full, no permission).
    """
    try:
      self._clock = self._clock + 1 / self._rate if time is None else Fraction(time)
      image = self._squared(image)
      if self._container is None:
        self._first = self._clock
        self._open(image.shape)
      time = self._clock - self._first
      # Clocks of milliseconds make a constant rate look like a variable one.
      even = round(time * self._rate) / self._rate
      time = even if abs(even - time) <= _JITTER else time
      # Broken sources have equal or falling times, which a video may not.
      tick = max(self._tick + 1, round(time * self._encoder.ticks))
      if self._waiting is not None:
        self._encode(tick)
      self._tick, self._waiting = tick, self._fit(image)
      self._missing = None if self._missing is None else self._missing - 1
    except (OSError, self._av.FFmpegError) as error:
      self.abort()
      raise cannot_write(self.path, error) from error

  def close(self) -> None:
    """Ends the video and gives it its name; a second call does nothing."""
    if self._container is None:
      return
    try:
      end, whole, all_seen = self._clock + 1 / self._rate, self._to_end, self._missing == 0
      if whole and self._media.end is not None and self._media.end > self._clock:
        whole = all_seen or self._media.end - end < _TAIL
        # One that lasts about as long as all others does so: clocks are not that exact.
        end = self._media.end if whole and 2 * abs(self._media.end - end) * self._rate > 1 else end
      end -= self._first
      self._encode(max(self._tick + 1, round(end * self._encoder.ticks)))
      self._mux(self._encoder.flush())
      if self._sound is not None:
        self._sound.finish((None if all_seen else end + _TAIL) if whole else end)
        self.warnings += self._sound.warnings
      self._container.close()
      os.replace(self._part, self.path)
    except (OSError, self._av.FFmpegError) as error:
      self.abort()
      raise cannot_write(self.path, error) from error
    self._container = None

  def abort(self) -> None:
    """Drops the video, its temporary file too."""
    container, self._container = self._container, None
    # The reason why it is dropped is the error to be told, not one in dropping it.
    with contextlib.suppress(OSError, self._av.FFmpegError):
      if self._sound is not None:
        self._sound.close()
    if container is not None:
      with contextlib.suppress(OSError, self._av.FFmpegError):
        container.close()
    with contextlib.suppress(OSError):
      self._part.unlink(missing_ok=True)

  def _encode(self, until: int) -> None:
    assert self._waiting is not None
    self._shown[self._tick] = until - self._tick
    self._mux(self._encoder.encode(self._waiting, self._tick, until - self._tick))
    if self._sound is not None:
      self._sound.write_until(Fraction(until, self._encoder.ticks))

  def _mux(self, packets: list[Any]) -> None:
    for packet in packets:
      packet.duration = self._shown.pop(packet.pts, packet.duration)  # not every encoder passes it on
      self._container.mux(packet)

  def _open(self, shape: tuple[int, ...]) -> None:
    encoder = encoders.ENCODERS[self._form]
    h, w = shape[:2]
    shrink = min(1, self._max_side / max(h, w))
    self._inner = max(1, round(h * shrink)), max(1, round(w * shrink))
    self._size = self._inner
    if encoder.even:
      self._size = self._inner[0] + self._inner[0] % 2, self._inner[1] + self._inner[1] % 2
    self.path.parent.mkdir(parents=True, exist_ok=True)
    options = {} if self._form == 'webm' else {'movflags': '+faststart'}
    # An absolute path, so that no name is taken for an address or an option.
    self._container = self._av.open(str(self._part.absolute()), 'w', format=self._form, options=options)
    request = encoders.Request(self._size, self._rate, self._media.colour, self._bit_rate, self._media.aspect)
    self._encoder = encoder(self._container, request)
    self.warnings += self._encoder.warnings
    if self._media.sound is not None:
      offset = self._media.origin + self._first
      try:
        self._sound = sound_lib.SoundTrack(self._media.sound, self._container, self._form, offset)
      except (OSError, self._av.FFmpegError, ValueError) as error:
        self.warnings.append(f'no sound in {self.path.name}: {error}')

  def _squared(self, image: np.ndarray) -> np.ndarray:
    """Stretches an image's short side to square pixels where the encoder needs them."""
    aspect = self._media.aspect
    if aspect == 1 or not encoders.ENCODERS[self._form].square:
      return image
    h, w = image.shape[:2]
    return cv2.resize(image, (round(w * max(aspect, 1)), round(h / min(aspect, 1))), interpolation=cv2.INTER_LINEAR)

  def _fit(self, image: np.ndarray) -> np.ndarray:
    """Fits an image uint8 (h, w, c) into the picture: scaled, centred on black, odd sides padded by their edge."""
    height, width = self._inner
    scale = min(height / image.shape[0], width / image.shape[1])
    h, w = (min(limit, max(1, round(side * scale))) for limit, side in zip(self._inner, image.shape, strict=False))
    if (h, w) != image.shape[:2]:
      image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (height - h) // 2, (width - w) // 2
    if (h, w) != self._inner:
      image = cv2.copyMakeBorder(image, top, height - h - top, left, width - w - left, cv2.BORDER_CONSTANT)
    if self._size != self._inner:
      down, right = self._size[0] - height, self._size[1] - width
      image = cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(image)


class OverlayWriter(MovieWriter):
  """A video of frames with their masks drawn in."""

  def write(self, rgb: np.ndarray, mask: np.ndarray, time: Fraction | None = None) -> None:
    """Adds a frame uint8 (h, w, 3), RGB, with its mask, bool (h, w); `time` and errors as of `add`."""
    self.add(draw_overlay(rgb, mask), time)
