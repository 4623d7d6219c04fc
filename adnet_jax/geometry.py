"""Which size the network sees a clip at, and bringing frames to it; knows neither models nor protocols."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

# The released program's base size, whatever the model (docs/evaluation.md).
RELEASED_SIZE = (857, 481)
# Relative difference of aspect up to which a clip is squeezed to the model's own size.
ASPECT_TOLERANCE = 0.10
SMALLEST_SIDE = 33
Size = tuple[int, int]  # (width, height)


def eight_k_plus_one(length: float) -> int:
  """The largest 8k + 1 not above `length`: .75, 1 and 1.5 of 857 x 481 give the released 641 x 353 and 1281 x 721."""
  return max(SMALLEST_SIDE, int(length - 1) // 8 * 8 + 1)


def scaled(size: Size, scale: float) -> Size:
  """A network size times `scale`, each side 8k + 1; at scale 1 the size itself, whatever it is."""
  return size if scale == 1 else (eight_k_plus_one(size[0] * scale), eight_k_plus_one(size[1] * scale))


def network_size(frame: Size, recommended: Size) -> Size:
  """(width, height) at which the network sees a clip by default.

  A clip whose aspect is within 10 % of the recommended size's uses that size, another one the same area at its own
  aspect, each side 8k + 1 (at least 33).

  Args:
    frame: (width, height) of the clip's anchor.
    recommended: (width, height) of the model's metadata.
  """
  aspect, usual = frame[0] / frame[1], recommended[0] / recommended[1]
  if abs(aspect / usual - 1) <= ASPECT_TOLERANCE:
    return recommended
  area = recommended[0] * recommended[1]
  # Very long strips: the short side's lower limit must not multiply the area.
  longest = area / SMALLEST_SIDE
  width, height = min(math.sqrt(area * aspect), longest), min(math.sqrt(area / aspect), longest)
  # Rounded to the nearest here: nothing published has to be met, and the aspect is kept better.
  return eight_k_plus_one(width + 4), eight_k_plus_one(height + 4)


def resize_frames(frames: Sequence[np.ndarray], size: Size) -> np.ndarray:
  """(b, height, width, 3) uint8: OpenCV's bilinear resizing, as the released program's."""
  return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in frames])


def check_frame(frame: np.ndarray) -> None:
  if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
    found = f'{frame.dtype} {frame.shape}' if isinstance(frame, np.ndarray) else type(frame).__name__
    raise ValueError(f'frames are (h, w, 3) uint8 RGB arrays, got {found}')
  if 0 in frame.shape:
    raise ValueError(f'frame without pixels: {frame.shape}')
