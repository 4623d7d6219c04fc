"""Small made clips of masks: a disk that moves."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

SHAPE = (24, 32)


def disk(index: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
  y, x = np.mgrid[: shape[0], : shape[1]]
  return (y - 12) ** 2 + (x - 8 - index % 16) ** 2 < 40


def write(path: Path, values: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  assert cv2.imwrite(str(path), values.astype(np.uint16 if values.max(initial=0) > 255 else np.uint8))


def write_clip(folder: Path, frames=range(6), shift: int = 0, shape=SHAPE) -> None:
  for frame in frames:
    write(folder / f'{frame:05}.png', disk(frame + shift, shape) * 255)
