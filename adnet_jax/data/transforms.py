"""Augmentation of one frame and its mask as pure functions of (arrays, numpy Generator); knows no files and no JAX.

Images are (h, w, 3) uint8 RGB in 0..255; masks are (h, w) uint8 of 0 and 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

# ImageNet's mean colour, RGB in 0..255: what lies outside a frame.
MEAN_COLOUR = (124, 116, 104)


class Augmentation(NamedTuple):
  """What a training frame goes through.

  Attributes:
    crop: side of the square result in pixels.
    rotation: probability of no rotation; the other multiples of 45 degrees share the rest (paper Sec. 4: .51).
    flip: probability of mirroring left to right (the paper mentions none: 0).
    colour: largest relative change of brightness, contrast and saturation; 0 for none (the paper mentions none).
  """

  crop: int
  rotation: float = 0.51
  flip: float = 0.0
  colour: float = 0.0


def augment(
  image: np.ndarray, mask: np.ndarray, how: Augmentation, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """A random square window of the rotated frame that contains the foreground (paper Sec. 4, "Training").

  The frame turns about its centre; the window's side is log-uniform between the longer side of the foreground's box
  (at least half of the frame's shorter side) and the frame's longer side; what lies outside the frame has the mean
  colour and counts as background. A mask without foreground leaves the window free.

  Args:
    image: (h, w, 3) uint8 RGB.
    mask: (h, w) uint8, 0 and 1.
    how: sizes and probabilities.
    rng: source of all randomness.

  Returns:
    (crop, crop, 3) uint8 and (crop, crop) uint8; the image bilinear, the mask nearest.
  """
  turn = rotation_about_centre(image.shape[:2], random_angle(how.rotation, rng), mirror=rng.random() < how.flip)
  x, y, side = random_window(image.shape[:2], foreground_box(mask, turn), rng)
  scale = how.crop / side
  to_crop = np.array([[scale, 0, (0.5 - x) * scale - 0.5], [0, scale, (0.5 - y) * scale - 0.5], [0, 0, 1]]) @ turn
  size = (how.crop, how.crop)
  image = cv2.warpAffine(
    image, to_crop[:2], size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=MEAN_COLOUR
  )
  mask = cv2.warpAffine(mask, to_crop[:2], size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
  return jitter_colour(image, how.colour, rng), mask


def random_angle(none: float, rng: np.random.Generator) -> int:
  """0 degrees with probability `none`, else one of 45, 90, ... 315 with equal probability."""
  if rng.random() < none:
    return 0
  return 45 * int(rng.integers(1, 8))


def rotation_about_centre(shape: tuple[int, int], degrees: float, mirror: bool) -> np.ndarray:
  """(3, 3) float64 map of pixel coordinates (x, y, 1): mirroring, then turning about the centre of (h, w)."""
  centre_x, centre_y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
  cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  to_centre = np.array([[1, 0, -centre_x], [0, 1, -centre_y], [0, 0, 1]])
  flip = np.diag([-1.0 if mirror else 1.0, 1.0, 1.0])
  turn = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
  back = np.array([[1, 0, centre_x], [0, 1, centre_y], [0, 0, 1]])
  return back @ turn @ flip @ to_centre


def foreground_box(mask: np.ndarray, turn: np.ndarray) -> tuple[float, float, float, float] | None:
  """Box (x0, y0, x1, y1) of the foreground after `turn`, in pixel coordinates; None for an empty mask."""
  left, top, width, height = cv2.boundingRect(mask)
  if width == 0:
    return None
  inside = mask[top : top + height, left : left + width] > 0
  rows = np.flatnonzero(inside.any(1))
  # The ends of each row enclose all of it, however it is turned.
  ends = inside[rows].argmax(1), width - 1 - inside[rows, ::-1].argmax(1)
  outline = np.concatenate([np.stack([left + x, top + rows], 1) for x in ends]).astype(np.float64)
  turned = outline @ turn[:2, :2].T + turn[:2, 2]
  (x0, y0), (x1, y1) = turned.min(0), turned.max(0)
  return x0, y0, x1, y1


def random_window(
  shape: tuple[int, int], box: tuple[float, float, float, float] | None, rng: np.random.Generator
) -> tuple[float, float, float]:
  """Upper left corner (x, y) and side of a square that contains `box` and stays in the frame as far as it can."""
  height, width = shape
  smallest, largest = min(shape) / 2, float(max(shape))
  if box is not None:
    smallest = max(smallest, box[2] - box[0] + 1, box[3] - box[1] + 1)
  side = math.exp(rng.uniform(math.log(smallest), math.log(max(smallest, largest))))
  corner = []
  for axis, n in enumerate((width, height)):
    # Inside the frame where the window fits, around the frame where it is larger.
    first, last = min(0.0, n - side), max(0.0, n - side)
    if box is not None:
      leftmost, rightmost = box[axis + 2] + 1 - side, box[axis]
      first, last = (max(first, leftmost), min(last, rightmost))
      if first > last:  # the box reaches out of the frame, or out of it by rounding
        first, last = sorted((leftmost, rightmost))
    corner.append(rng.uniform(first, last))
  return corner[0], corner[1], side


def jitter_colour(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Random brightness, contrast and saturation, each by a factor in 1 +- strength: uint8 -> uint8, clipped."""
  if strength == 0:
    return image
  brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
  values = image.astype(np.float32)
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
  values = grey + (values - grey) * saturation
  values = (values - grey.mean()) * contrast + grey.mean() * brightness
  return np.clip(values, 0, 255).astype(np.uint8)
