"""How alike a pixel of one frame is to all of another, as a map to look at (Figs. 1 and 10); knows no job."""

from __future__ import annotations

import collections
import io
import threading
from collections.abc import Hashable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from adnet_jax import similarity
from adnet_jax.geometry import resize_frames
from adnet_jax.images import read_image
from adnet_jax.segmenter import Segmenter

# Embeddings that are kept: of an anchor and the frames that somebody moves over.
KEPT = 24


class Maps:
  """Similarity of pixels, by the network's own embeddings; safe to share between threads."""

  def __init__(self, segmenter: Segmenter):
    self._segmenter = segmenter
    self._embeddings: collections.OrderedDict[Hashable, np.ndarray] = collections.OrderedDict()
    # One at a time: the device is busy enough with the queue's job.
    self._lock = threading.Lock()

  @property
  def possible(self) -> bool:
    """Whether the network compares pixels; the variant `baseline` does not."""
    return self._segmenter.model.metadata.architecture.variant != 'baseline'

  def product(self, asked: Path, over: Path, place: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Scaled product (Eq. 2, before its softmax) of a pixel of one frame with all pixels of another.

    Args:
      asked: picture of the frame that the pixel is in.
      over: picture of the frame that the map is of.
      place: (x, y) of the pixel, each a share 0..1 of the way from the first to the last pixel.
      size: (width, height) of the clip's own frames, which decides on the network's size.

    Returns:
      (h, w) float32 on the embeddings' grid.
    """
    # The geometry looks at the shape alone: an array of that shape without its memory.
    base = self._segmenter.base_size(np.broadcast_to(np.uint8(0), (size[1], size[0], 3)))
    queries, context = self._embed(asked, base), self._embed(over, base)
    h, w, _ = queries.shape
    y, x = round(place[1] * (h - 1)), round(place[0] * (w - 1))
    return similarity.scaled_product(queries[y, x][None], context)[0]

  def _embed(self, path: Path, base: tuple[int, int]) -> np.ndarray:
    with self._lock:
      if path in self._embeddings:
        self._embeddings.move_to_end(path)
        return self._embeddings[path]
      images = resize_frames([read_image(path)], base)
      found = np.asarray(self._segmenter.model.embed(images)[0], np.float32)
      self._embeddings[path] = found
      while len(self._embeddings) > KEPT:
        self._embeddings.popitem(last=False)
      return found


def as_shares(values: np.ndarray) -> np.ndarray:
  """A map from its least to its largest value as 0..1; all 0 where it is flat."""
  least, largest = float(values.min()), float(values.max())
  return (values - least) / (largest - least) if largest > least else np.zeros_like(values)


def stretched(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """(h, w) float32 at (width, height), smoothly, with corner pixels on corner pixels as where logits are up-sampled."""
  (h, w), (width, height) = values.shape, size
  steps = [(w - 1) / max(width - 1, 1), (h - 1) / max(height - 1, 1)]
  matrix = np.array([[steps[0], 0, 0], [0, steps[1], 0]], np.float32)
  flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
  return cv2.warpAffine(values.astype(np.float32), matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def encode_map(shares: np.ndarray) -> bytes:
  """A PNG of (h, w) float32 in 0..1: the more alike, the lighter and the less transparent."""
  levels = np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)
  ramp = np.arange(256, dtype=np.uint8)[None]
  picture = Image.fromarray(levels)
  picture.putpalette(cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)[0, :, ::-1].tobytes())
  buffer = io.BytesIO()
  # A palette: a quarter of the bytes, and maps come as fast as a mouse moves.
  picture.save(buffer, 'PNG', transparency=np.linspace(40, 240, 256).astype(np.uint8).tobytes())
  return buffer.getvalue()
