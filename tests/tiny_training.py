"""A training that compiles in seconds: its data set and its configuration, for the tests of the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np


def write_data(folder: Path) -> Path:
  """Two clips of three frames in DAVIS' layout: a bright square that moves over noise."""
  rng = np.random.default_rng(0)
  for clip in ('one', 'two'):
    for kind in ('JPEGImages', 'Annotations'):
      (folder / kind / '480p' / clip).mkdir(parents=True)
    for frame in range(3):
      image = rng.integers(0, 80, (40, 60, 3), np.uint8)
      mask = np.zeros((40, 60), np.uint8)
      mask[10:30, 5 + 8 * frame : 25 + 8 * frame] = 255
      image[mask > 0] += 150
      cv2.imwrite(str(folder / f'JPEGImages/480p/{clip}/{frame:05d}.jpg'), image)
      cv2.imwrite(str(folder / f'Annotations/480p/{clip}/{frame:05d}.png'), mask)
  return folder


def overrides(root: Path) -> list[str]:
  """KEY=VALUE for configs/davis.py: all is as small as it goes, and one stage of the trunk learns."""
  values: dict[str, Any] = {
    'data.root': root,
    'data.crop': 33,
    'data.workers': 2,
    'model.backbone': 'resnet10',
    'model.stem': 'conv7x7',
    'model.output_stride': 16,
    'model.aspp_width': 8,
    'model.embedding': 8,
    'steps': 4,
    'batch': 4,
    'devices': 1,
    'checkpoint.every': 2,
    'observe.images_every': 0,
    'optim.lr': 0.02,
    'optim.frozen_stages': 3,
  }
  return [f'{key}={value}' for key, value in values.items()]
