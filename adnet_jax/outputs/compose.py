"""Puts frames and masks together to pictures: transparency, backgrounds, pairs; pure functions that know no files."""

from __future__ import annotations

import cv2
import numpy as np

# A pixel's alpha depends on the mask up to two pixels away: edges are smooth, and beyond them alpha is the mask.
_EDGE = 5
# Where nothing shows, colours stay for some pixels: an editor's own smoothing and chroma at half size look there.
_RIM = 8
# The blurred background is computed in a picture of about this many pixels a side.
_BLUR_SIDE = 160
_BLUR_SIGMA = 4.0


def alpha(mask: np.ndarray) -> np.ndarray:
  """Opacity with a smooth edge: uint8 (h, w), equal to 255 times the mask further than 2 pixels from the outline.

  Args:
    mask: bool (h, w).
  """
  return cv2.GaussianBlur(mask.astype(np.uint8) * 255, (_EDGE, _EDGE), 0, borderType=cv2.BORDER_REPLICATE)


def cut_out(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """The foreground with straight (not premultiplied) alpha; black further than 8 pixels outside of it.

  Args:
    rgb: uint8 (h, w, 3), RGB.
    mask: bool (h, w).

  Returns:
    uint8 (h, w, 4), RGBA.
  """
  disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _RIM + 1, 2 * _RIM + 1))
  near = cv2.dilate(mask.astype(np.uint8), disc)
  return np.dstack([rgb * near[..., None], alpha(mask)])


def over(rgb: np.ndarray, mask: np.ndarray, background: np.ndarray) -> np.ndarray:
  """The foreground before a background, with a smooth edge.

  Args:
    rgb: uint8 (h, w, 3), RGB.
    mask: bool (h, w).
    background: uint8 (h, w, 3), or a colour (3,).

  Returns:
    uint8 (h, w, 3), RGB.
  """
  share = alpha(mask)[..., None].astype(np.uint16)
  mixed = rgb * share + background.astype(np.uint16) * (255 - share)
  return ((mixed + 127) // 255).astype(np.uint8)


def blurred(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """The frame out of focus, without the foreground's colours spreading into what surrounds it.

  Args:
    rgb: uint8 (h, w, 3), RGB.
    mask: bool (h, w).

  Returns:
    uint8 (h, w, 3), RGB; where the foreground hides everything near, the frame's own colours, blurred.
  """
  h, w = mask.shape
  scale = min(1.0, _BLUR_SIDE / max(h, w))
  size = max(1, round(w * scale)), max(1, round(h * scale))
  small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.float32)
  # Pixels with any foreground in them count nothing, the faintest share of everything aside.
  away = (cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) == 0).astype(np.float32) + 1e-4
  sigma = max(0.5, _BLUR_SIGMA * max(size) / _BLUR_SIDE)
  weight = cv2.GaussianBlur(away, (0, 0), sigma)
  small = cv2.GaussianBlur(small * away[..., None], (0, 0), sigma).reshape(*away.shape, 3) / weight[..., None]
  large = cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR).reshape(h, w, 3)
  return np.clip(np.rint(large), 0, 255).astype(np.uint8)


def cover(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """A picture scaled to fill (height, width) without gaps, what is too much cut off on both sides.

  Args:
    image: uint8 (h, w, 3).
    shape: (height, width).

  Returns:
    uint8 (height, width, 3).
  """
  height, width = shape
  h, w = image.shape[:2]
  scale = max(height / h, width / w)
  size = max(width, round(w * scale)), max(height, round(h * scale))
  image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
  top, left = (size[1] - height) // 2, (size[0] - width) // 2
  return image[top : top + height, left : left + width]
