"""Reads an image file as a viewer shows it; knows nothing of clips and videos."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from adnet_jax.errors import DataError
from adnet_jax.writers import reason

IMAGE_ENDINGS = (
  '.bmp', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pgm', '.png', '.pnm', '.ppm', '.tif', '.tiff', '.webp',
)  # fmt: skip
# Four times an 8K picture; beyond it a small file can claim all of the memory.
MAX_PIXELS = 2**27

_ADVICE = 'repair or remove it, or leave out damaged frames with --skip-bad'
# Values of EXIF's orientation tag that turn an image by a quarter.
_ORIENTATION, _FIRST_QUARTER_TURN = 0x0112, 5
_filters_lock = threading.Lock()


class File(Protocol):
  """What readers ask of a file: a Path has it all, and so have files that lie in records of a prepared data set."""

  @property
  def name(self) -> str: ...

  @property
  def stem(self) -> str: ...

  @property
  def suffix(self) -> str: ...

  def read_bytes(self) -> bytes: ...


def read_image(path: str | File) -> np.ndarray:
  """Reads an image as a viewer shows it: upright by its EXIF tag, transparency over white, 8 bits a channel.

  Greyscale, palette, CMYK and 16-bit images become RGB; colour profiles are not applied.

  Args:
    path: of the file, or the file; its content decides the format, not its ending.

  Returns:
    uint8 (h, w, 3), RGB.

  Raises:
    DataError: missing, damaged, cut off, or larger than MAX_PIXELS by its own header, which is read first.
  """
  # Pillow, not OpenCV: the same pixels from a JPEG, but files cut in the middle are errors in every version, the
  # size is known before anything is decoded, and colours hidden under full transparency do not show.
  with _opened(path) as image:
    image.load()
    with contextlib.suppress(Exception):  # a broken tag does not break the picture
      image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I'):
      deep = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
      return np.repeat(((deep + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == 'F':
      raise DataError('holds floating-point values, whose range is not known', path, 'convert it to 8 or 16 bit')
    if image.has_transparency_data:
      return over_white(np.asarray(image.convert('RGBA')))
    return np.array(image.convert('RGB'))


def read_shape(path: str | File) -> tuple[int, int]:
  """Height and width of the picture that `read_image` returns, from the file's header alone; raises as that does."""
  with _opened(path) as image:
    w, h = image.size
    turned = False
    with contextlib.suppress(Exception):
      turned = image.getexif().get(_ORIENTATION, 1) >= _FIRST_QUARTER_TURN
    return (w, h) if turned else (h, w)


@contextlib.contextmanager
def _opened(path: str | File) -> Iterator[Image.Image]:
  try:
    with _open_image(path) as image:
      w, h = image.size
      if w * h > MAX_PIXELS:
        raise too_large(path, w, h)
      yield image
  except DataError:
    raise
  except Image.DecompressionBombError as error:
    raise DataError('image is too large', path, f'at most {MAX_PIXELS:,} pixels are read') from error
  except MemoryError:
    raise
  except Exception as error:  # Pillow's readers raise whatever they trip over in a damaged file
    why = 'no image format is recognised' if isinstance(error, Image.UnidentifiedImageError) else reason(error)
    if isinstance(path, str | os.PathLike) and os.path.isfile(path) and not os.path.getsize(path):
      why = 'the file is empty'
    raise DataError(f'image cannot be read: {why}', path, _ADVICE) from error


def over_white(rgba: np.ndarray) -> np.ndarray:
  """Lays uint8 (h, w, 4) RGBA over white: uint8 (h, w, 3) RGB."""
  alpha = rgba[..., 3:].astype(np.uint16)
  return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _open_image(path: str | File) -> Image.Image:
  source = path if isinstance(path, str | os.PathLike) else io.BytesIO(path.read_bytes())
  # Pillow warns of large images before it refuses larger ones; our own limit says it once. Filters are global: a lock.
  with _filters_lock, warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return Image.open(source)


def too_large(path: object, w: int, h: int) -> DataError:
  """The error for a picture beyond MAX_PIXELS."""
  advice = f'at most {MAX_PIXELS:,} pixels are read: scale it down'
  return DataError(f'a picture of {w} x {h} pixels is too large', path, advice)
