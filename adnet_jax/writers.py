"""Writes masks and heat maps, never half a file under a final name, and draws overlays; knows not how they are made."""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from adnet_jax.errors import DataError, UsageError

TINT = (28, 148, 255)
OUTLINE = (255, 255, 255)
TINT_SHARE = 0.45
# How a mask is stored: values of background and foreground, or what is special about the file.
MASK_FORMS = ('0-255', '0-1', 'palette', '1-bit')

_numbers = itertools.count()


def write_mask(path: str | Path, mask: np.ndarray, form: str = '0-255') -> None:
  """Writes a mask as a PNG, atomically; folders on the way are made.

  Args:
    path: where to, ending in `.png`.
    mask: bool (h, w).
    form: '0-255' or '0-1', 8 bits of these values; 'palette', indices 0 and 1 with the palette of DAVIS; '1-bit'.

  Raises:
    DataError: it cannot be written (disk full, no permission); says which was the last one written there.
  """
  write_bytes(path, encode_mask(mask, form))


def encode_mask(mask: np.ndarray, form: str = '0-255') -> bytes:
  """A mask, bool (h, w), as the bytes of a PNG; forms as of `write_mask`."""
  if mask.dtype != np.bool_ or mask.ndim != 2:
    raise ValueError(f'mask: expected bool (h, w), got {mask.dtype} {mask.shape}')
  if form not in MASK_FORMS:
    raise ValueError(f'form: expected one of {MASK_FORMS}, got {form!r}')
  if form.startswith('0-'):
    return _encode_png(mask.astype(np.uint8) * np.uint8(255 if form == '0-255' else 1))
  if form == '1-bit':
    image = Image.fromarray(mask)
  else:
    image = Image.fromarray(mask.astype(np.uint8)).convert('P')
    image.putpalette(davis_palette().tobytes())
  data = io.BytesIO()
  image.save(data, 'PNG', bits=1 if form == '1-bit' else 8)
  return data.getvalue()


def davis_palette() -> np.ndarray:
  """The colours of DAVIS's annotations, which are those of PASCAL VOC: uint8 (256, 3), RGB; 1 is dark red."""
  index = np.arange(256)
  colours = np.zeros((256, 3), np.int64)
  for bit in range(8):
    for channel in range(3):
      colours[:, channel] |= (index >> 3 * bit + channel & 1) << 7 - bit
  return colours.astype(np.uint8)


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
  write_png(path, np.rint(np.clip(probability.astype(np.float64), 0, 1) * 65535).astype(np.uint16))


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


def temporary(path: Path) -> Path:
  """A name beside `path` to write to first: short and hidden, so that no folder reader takes it for a mask."""
  return path.parent / f'.adnet-{os.getpid()}-{next(_numbers)}.tmp'


def write_png(path: str | Path, image: np.ndarray) -> None:
  """Writes uint8 or uint16 (h, w), (h, w, 3) BGR or (h, w, 4) BGRA as a PNG, atomically; errors as of `write_mask`."""
  write_bytes(path, _encode_png(image))


def write_bytes(path: str | Path, data: bytes) -> None:
  """Writes a file, atomically; folders on the way are made.

  Raises:
    DataError: it cannot be written (disk full, no permission).
  """
  path = Path(path)
  part = temporary(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      part.write_bytes(data)
      os.replace(part, path)
    except BaseException:
      part.unlink(missing_ok=True)
      raise
  except OSError as error:
    raise cannot_write(path, error) from error


def cannot_write(path: Path, error: BaseException) -> DataError:
  """The error that says why a file cannot be written and, of images, which was the last one that could."""
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


def _encode_png(image: np.ndarray) -> bytes:
  done, data = cv2.imencode('.png', image)
  assert done, 'OpenCV encodes every uint8 and uint16 image'
  return data.tobytes()
