"""COCO's run-length encoded masks, checked before compiled code sees them; knows nothing of files or clips."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from adnet_jax.errors import UsageError

# Six bits a character from '0' on: five of the number, the sixth if more follow. Compiled code counts in 32 bits.
_FIRST = 48
_LONGEST = 6
# COCO draws polygons in units of a fifth of a pixel, so a far corner costs memory.
_OUTSIDE = 1.0


class BrokenMask(ValueError):
  """A segmentation that is not COCO's, or not of the image; the text says why."""


class RunLengths(NamedTuple):
  """A mask that was checked: its (height, width), COCO's compressed `counts`, and its number of pixels."""

  size: tuple[int, int]
  counts: bytes
  area: int

  def mask(self) -> np.ndarray:
    """(h, w) bool."""
    coco = import_pycocotools()
    with warnings.catch_warnings():
      # Of how its 2.0 gives arrays to NumPy 2, which nobody here can mend.
      warnings.simplefilter('ignore', DeprecationWarning)
      return coco.decode({'size': list(self.size), 'counts': self.counts}).astype(bool)


def read_segmentation(segmentation: Any, size: tuple[int, int]) -> RunLengths:
  """Checks the `segmentation` of an annotation, in any of COCO's forms.

  Args:
    segmentation: {"size": [h, w], "counts": TEXT or list of runs}, or a list of polygons [x, y, x, y, ...].
    size: (height, width) of the image.

  Raises:
    BrokenMask: it is none of these, of another size, does not cover exactly h * w pixels, or has no pixel.
    UsageError: pycocotools is not installed.
  """
  if isinstance(segmentation, list):
    return _from_polygons(segmentation, size)
  if not isinstance(segmentation, dict):
    raise BrokenMask('segmentation is neither an RLE object nor a list of polygons')
  given = segmentation.get('size')
  if not (isinstance(given, list) and len(given) == 2 and all(type(side) is int for side in given)):
    raise BrokenMask('RLE without size [height, width]')
  if tuple(given) != size:
    raise BrokenMask(f'mask of {given[1]}x{given[0]} for an image of {size[1]}x{size[0]}')
  counts = segmentation.get('counts')
  if isinstance(counts, str):
    runs = decode_counts(counts)
  elif isinstance(counts, list) and all(type(run) is int and 0 <= run < 2**31 for run in counts):
    runs = np.array(counts, np.int64)
  else:
    raise BrokenMask('RLE whose counts are neither a text nor a list of runs')
  if runs.sum() != size[0] * size[1]:
    raise BrokenMask(f'broken RLE: its runs cover {runs.sum()} of {size[0] * size[1]} pixels')
  area = int(runs[1::2].sum())
  if not area:
    raise BrokenMask('area 0: the mask has no pixel')
  if isinstance(counts, list):
    h, w = size
    counts = import_pycocotools().frPyObjects({'size': [h, w], 'counts': counts}, h, w)['counts'].decode('ascii')
  return RunLengths(size, counts.encode('ascii'), area)


def decode_counts(text: str) -> np.ndarray:
  """Runs of COCO's compressed text, background first: (n,) int64, none negative.

  Raises:
    BrokenMask: it is not such a text.
  """
  try:
    codes = np.frombuffer(text.encode('ascii'), np.uint8).astype(np.int64) - _FIRST
  except UnicodeEncodeError:
    codes = np.array([-1])
  if not len(codes) or codes.min() < 0 or codes.max() > 63:
    raise BrokenMask('broken RLE: counts hold characters that are none of its code, or nothing')
  ends = np.flatnonzero(codes < 32)
  if not len(ends) or ends[-1] != len(codes) - 1:
    raise BrokenMask('broken RLE: counts are cut off')
  starts = np.concatenate([[0], ends[:-1] + 1])
  lengths = ends - starts + 1
  if lengths.max() > _LONGEST:
    raise BrokenMask('broken RLE: a run of more than 29 bits')
  place = np.arange(len(codes)) - np.repeat(starts, lengths)
  values = np.add.reduceat((codes & 31) << 5 * place, starts)
  values -= np.where(codes[ends] & 16, np.int64(1) << 5 * lengths, 0)
  # From the fourth on, a run is written as the difference to the last but one.
  runs = values.copy()
  runs[1::2] = np.cumsum(values[1::2])
  runs[2::2] = np.cumsum(values[2::2])
  if runs.min() < 0:
    raise BrokenMask('broken RLE: a negative run')
  return runs


def _from_polygons(polygons: list, size: tuple[int, int]) -> RunLengths:
  h, w = size
  for polygon in polygons:
    if not (isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0):
      raise BrokenMask('segmentation has a polygon of fewer than three corners, or of an odd number of coordinates')
    if not all(type(value) in (int, float) and math.isfinite(value) for value in polygon):
      raise BrokenMask('segmentation has a polygon with a coordinate that is no number')
    if not all(
      -_OUTSIDE <= value <= limit + _OUTSIDE
      for values, limit in ((polygon[::2], w), (polygon[1::2], h))
      for value in values
    ):
      raise BrokenMask(f'segmentation has a polygon outside of the image of {w}x{h}')
  if not polygons:
    raise BrokenMask('segmentation is empty')
  coco = import_pycocotools()
  merged = coco.merge(coco.frPyObjects([[float(value) for value in polygon] for polygon in polygons], h, w))
  area = int(coco.area(merged))
  if not area:
    raise BrokenMask('area 0: the polygons have no pixel')
  return RunLengths(size, merged['counts'], area)


def import_pycocotools():
  """The module pycocotools.mask, which only detections need.

  Raises:
    UsageError: it is not installed.
  """
  try:
    from pycocotools import mask
  except ImportError as error:
    raise UsageError(
      'detections need pycocotools, which is not installed', advice="pip install 'adnet-jax[prune]'"
    ) from error
  return mask
