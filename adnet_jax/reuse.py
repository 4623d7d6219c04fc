"""Which frames show what an earlier one showed, so that its result serves again; knows neither clips nor networks."""

from __future__ import annotations

import cv2
import numpy as np

# Cells of the pictures that are compared: averages over them do not see the noise of a camera.
CELLS = (64, 36)


class Stillness:
  """Tells whether frames show what the last one did that was not the same, so that small changes add up."""

  def __init__(self, threshold: float):
    """Args:
    threshold: change of a cell's mean colour above which a frame is another one, in steps of 255.
    """
    self.threshold = threshold
    self._shape: tuple[int, ...] = ()
    self._cells: np.ndarray | None = None

  def same(self, frame: np.ndarray) -> bool:
    """Whether no cell of `frame`, (h, w, 3) uint8, has changed; if one has, later frames are compared with this one."""
    cells = cv2.resize(frame, CELLS, interpolation=cv2.INTER_AREA)
    if self._cells is not None and frame.shape == self._shape and change(cells, self._cells) <= self.threshold:
      return True
    self._shape, self._cells = frame.shape, cells
    return False


def change(one: np.ndarray, other: np.ndarray) -> int:
  """Largest difference of two uint8 pictures of one shape, over cells and colours."""
  return int(cv2.absdiff(one, other).max())
