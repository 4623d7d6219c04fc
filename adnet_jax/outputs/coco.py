"""Masks as run lengths in COCO's JSON, one annotation a frame; knows nothing of detectors."""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np

from adnet_jax.outputs.growing import GrowingFile
from adnet_jax.run_lengths import import_pycocotools
from adnet_jax.writers import cannot_write

CATEGORY = 1


def annotation(mask: np.ndarray) -> dict[str, Any] | None:
  """What COCO says of a mask: `bbox` [x, y, w, h], `area`, `segmentation` with compressed counts.

  Args:
    mask: bool (h, w).

  Returns:
    The keys above; None of an empty mask, which COCO has no annotation for.

  Raises:
    UsageError: pycocotools is not installed.
  """
  if not mask.any():
    return None
  with warnings.catch_warnings():
    # Of how its 2.0 gives arrays to NumPy 2, which nobody here can mend.
    warnings.simplefilter('ignore', DeprecationWarning)
    counts = import_pycocotools().encode(np.asfortranarray(mask.astype(np.uint8)))['counts'].decode('ascii')
  rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
  x, y = int(columns[0]), int(rows[0])
  return {
    'bbox': [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
    'area': int(mask.sum()),
    'segmentation': {'size': list(mask.shape), 'counts': counts},
  }


class CocoWriter:
  """A clip's masks as one file, of the form that `adnet prune --detections` reads; its memory does not grow."""

  def __init__(self, path: Path, clip: str, files: Mapping[str, str]):
    """Args:
      path: of the file.
      clip: its name, before each file name.
      files: {frame name: file name} where frames have files of their own; others are called NAME.jpg.

    Raises:
      UsageError: pycocotools is not installed.
    """
    import_pycocotools()
    self.warnings: list[str] = []
    self._file, self._clip, self._files = GrowingFile(path), clip, files
    self._images: IO[str] | None = None  # until the annotations are complete
    self._held = contextlib.ExitStack()
    self._count = self._found = 0

  def write(
    self, frame: np.ndarray, mask: np.ndarray, probability: np.ndarray | None, name: str, time: Fraction | None
  ) -> None:
    if self._images is None:
      category = json.dumps([{'id': CATEGORY, 'name': 'foreground'}])
      self._file.write(f'{{"categories": {category},\n"annotations": [')
    self._count += 1
    h, w = mask.shape
    file = f'{self._clip}/{self._files.get(name, name + ".jpg")}'
    image = {'id': self._count, 'file_name': file, 'width': w, 'height': h}
    try:
      if self._images is None:
        self._images = self._held.enter_context(tempfile.TemporaryFile('w+', encoding='utf-8'))  # noqa: SIM115
      self._images.write(f'{"," if self._count > 1 else ""}\n{json.dumps(image)}')
    except OSError as error:
      self.abort()
      raise cannot_write(self._file.path, error) from error
    found = annotation(mask)
    if found is not None:
      self._found += 1
      # The method gives one answer: no other has a share of the certainty.
      entry = {'id': self._found, 'image_id': self._count, 'category_id': CATEGORY, 'score': 1.0, 'iscrowd': 0}
      self._file.write(f'{"," if self._found > 1 else ""}\n{json.dumps(entry | found)}')

  def close(self) -> None:
    if self._images is None:
      return
    self._file.write('\n],\n"images": [')
    try:
      self._images.seek(0)
      while text := self._images.read(1 << 20):
        self._file.write(text)
    except OSError as error:
      self.abort()
      raise cannot_write(self._file.path, error) from error
    self._file.write('\n]}\n')
    self._file.close()
    self._held.close()

  def abort(self) -> None:
    self._file.abort()
    with contextlib.suppress(OSError):
      self._held.close()
