"""Reading masks, annotations and heat maps as anybody stores them; knows nothing of scores or of how masks are made."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from adnet_jax.errors import DataError
from adnet_jax.images import File

ENDINGS = ('.png', '.bmp', '.pgm', '.tif', '.tiff', '.jpg', '.jpeg', '.npz')
_MOST_LABELS = 256
_MOST_GREY_LABELS = 64  # a soft map has more levels
_DAMAGE = (
  OSError,
  SyntaxError,
  ValueError,
  KeyError,
  EOFError,
  Image.DecompressionBombError,
  zipfile.BadZipFile,
  zlib.error,
  struct.error,
)


@dataclass(frozen=True)
class MaskImage:
  """A stored mask, annotation or heat map before anybody decided what is foreground.

  Attributes:
    path: the file, on disk or in a record of a prepared data set.
    values: (h, w), of an unsigned integer type, bool or float32.
    kind: 'grey' (values are levels from 0 to `top`), 'labels' (numbers of objects, 0 is background) or 'colour'
      (24-bit RGB, black is background).
    top: the level that stands for 1; 1 for labels and colours.
  """

  path: File
  values: np.ndarray
  kind: str
  top: float

  @property
  def binary(self) -> bool:
    """Whether there are at most two values, one of them 0 where there are two."""
    return bool(((self.values == 0) | (self.values == self.values.max())).all())

  @property
  def zero_one(self) -> bool:
    """Whether the levels are 0 and 1 of a file that could hold more, which a probability never is."""
    return self.kind == 'grey' and self.top > 1 and self.values.max() == 1

  def mask(self, threshold: float | None = None) -> np.ndarray:
    """Foreground of a result, (h, w) bool.

    Args:
      threshold: None for masks; for soft maps a probability in [0, 1], foreground is strictly above. Labels need none.

    Raises:
      DataError: more than two values and no threshold, or a colour picture.
    """
    if self.kind == 'labels' or (self.binary and (threshold is None or self.kind == 'colour')):
      return self.values > 0
    if self.kind == 'colour':
      raise DataError('a colour picture where a mask is wanted', self.path, 'write masks of 0 and 255')
    if threshold is None:
      raise DataError('soft map where a mask is wanted', self.path, 'give --threshold P, or write masks of 0 and 255')
    return self.values > threshold * self.top

  def probability(self, *, hard: bool) -> np.ndarray:
    """Foreground of a result as (h, w) float32 in [0, 1]: 8 bit = v/255, 16 bit = v/65535; masks are 0 and 1.

    Args:
      hard: whether levels of 0 and 1 alone are a mask stored so, and not the two faintest levels of a map.

    Raises:
      DataError: a colour picture.
    """
    if self.kind == 'grey' and not (hard and self.zero_one):
      return (self.values / np.float32(self.top)).astype(np.float32)
    return self.mask().astype(np.float32)

  def labels(self) -> np.ndarray:
    """Numbers of the objects or clusters of a result or annotation as stored, (h, w) int32, 0 is background.

    Raises:
      DataError: more levels than objects can be: a photograph or a soft map.
    """
    if np.unique(self.values).size > (_MOST_GREY_LABELS if self.kind == 'grey' else _MOST_LABELS):
      raise DataError('a picture where a map of objects is wanted', self.path, 'write masks with a value an object')
    return self.values.astype(np.int32)

  def truth(self, *, half: bool = False) -> np.ndarray:
    """Foreground of an annotation, (h, w) bool: everything that is not 0, several objects merged.

    Args:
      half: of grey levels, only those above 128 of 255 are foreground, as the saliency benchmarks read them.

    Raises:
      DataError: a photograph.
    """
    if self.kind == 'colour' and np.unique(self.values).size > _MOST_LABELS:
      raise DataError('a colour picture where an annotation is wanted', self.path, 'give the folder of annotations')
    if half and self.kind == 'grey' and not self.zero_one:
      return self.values > self.top * (128 / 255)
    return self.values > 0


def read_mask(path: str | File, threshold: float | None = None) -> np.ndarray:
  """Reads a mask stored as 0/1, 0/255, 1 bit, palette or two colours with black; or, with a threshold, a heat map.

  Args:
    path: of the file, or the file: an image, or an .npz file with the key `probability`.
    threshold: for heat maps (8 bit = v/255, 16 bit = v/65535): foreground is strictly above it.

  Returns:
    (h, w) bool. A palette's index 0 is background; its other indices are merged.

  Raises:
    DataError: the file is missing or damaged, or holds more than two values and no threshold is given.
  """
  return load_mask_image(path).mask(threshold)


def load_mask_image(path: str | File) -> MaskImage:
  """Decodes one file whole, with its checksums; raises DataError where it is missing, damaged or of another kind."""
  path = Path(path) if isinstance(path, str) else path
  try:
    data = path.read_bytes()
    return _load_npz(path, data) if path.suffix.lower() == '.npz' else _load_image(path, data)
  except _DAMAGE as error:
    reason = 'file missing' if isinstance(error, FileNotFoundError) else 'cannot be read as a mask'
    raise DataError(reason, path, 'write it again') from error


def list_masks(folder: Path) -> dict[str, Path]:
  """Files of a folder that may be masks, by stem, in natural order (2 before 10).

  Raises:
    DataError: two files have one stem, as where the results of two methods lie in one folder.
  """
  found: dict[str, Path] = {}
  for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
    if path.suffix.lower() in ENDINGS and not path.name.startswith('.'):
      if path.stem in found:
        names = f'{folder}: {found[path.stem].name}, {path.name}'
        raise DataError('two masks of one frame', names, 'keep the results of one method')
      found[path.stem] = path
  return found


def natural_key(name: str) -> list:
  """Sort key that orders the numbers in a name by value; the name itself decides between 1 and 01."""
  return [(int(part), '') if part.isdecimal() else (-1, part) for part in re.split(r'(\d+)', name)] + [(-1, name)]


def _load_npz(path: File, data: bytes) -> MaskImage:
  with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
    values = arrays['probability'].astype(np.float32)
  if values.ndim != 2 or not ((values >= 0) & (values <= 1)).all():  # also false for nan
    raise ValueError('not an (h, w) array of probabilities')
  return MaskImage(path, values, 'grey', 1.0)


def _load_image(path: File, data: bytes) -> MaskImage:
  # Without this, damage that still inflates passes as other pixels.
  with Image.open(io.BytesIO(data)) as image:
    image.verify()
  with Image.open(io.BytesIO(data)) as image:
    if image.mode == '1':
      return MaskImage(path, np.array(image), 'labels', 1.0)
    if image.mode == 'L':
      return MaskImage(path, np.array(image), 'grey', 255.0)
    if image.mode.startswith('I'):
      levels = np.array(image)
      if levels.min() < 0 or levels.max() > 65535:
        raise ValueError('more than 16 bits')
      return MaskImage(path, levels.astype(np.uint16), 'grey', 65535.0)
    if image.mode == 'P':
      return _load_palette(path, image)
    if image.mode in ('LA', 'RGBA', 'PA') and image.getchannel('A').getextrema() != (255, 255):
      raise DataError('a mask with transparency', path, 'write it without an alpha channel')
    colours = np.array(image.convert('RGB'))
  red, green, blue = (colours[..., channel].astype(np.uint32) for channel in range(3))
  if (red == green).all() and (green == blue).all():
    return MaskImage(path, colours[..., 0], 'grey', 255.0)
  return MaskImage(path, red << 16 | green << 8 | blue, 'colour', 1.0)


def _load_palette(path: File, image: Image.Image) -> MaskImage:
  indices = np.array(image)
  used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
  palette = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
  if used.size > 2 and (palette[used] == palette[used, :1]).all():
    # A grey ramp of many levels is a picture that was saved with a palette, not a map of objects.
    return MaskImage(path, palette[:, 0][indices], 'grey', 255.0)
  return MaskImage(path, indices, 'labels', 1.0)
