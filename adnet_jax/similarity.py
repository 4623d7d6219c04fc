"""How alike pixel embeddings are, within a clip and over time, as pure functions of arrays; knows no model and no file.

Letters: (h, w) the embeddings' grid, c their channels, (H, W) the frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

# Anchor pixels whose whole row of P is in memory at a time, in `received_attention`.
BLOCK = 1024


class Place(NamedTuple):
  """A pixel: row and column, from 0."""

  y: int
  x: int


# Where the grid lies on the frame ------------------------------------------------------------------------------------


def foreground_on_grid(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """A mask as the embeddings' grid sees it: its value under the centre of each grid pixel.

  Corners lie on corners, as where the logits are up-sampled.

  Args:
    mask: (H, W) bool.
    grid: (h, w).

  Returns:
    (h, w) bool.
  """
  rows, columns = (_positions(count, length) for count, length in zip(grid, mask.shape, strict=True))
  return mask[np.ix_(rows, columns)]


def to_grid(place: Place, frame: tuple[int, int], grid: tuple[int, int]) -> Place:
  """The grid pixel nearest to a frame's pixel; `frame` is (H, W), `grid` (h, w)."""
  return Place(*(round(p * (g - 1) / max(f - 1, 1)) for p, f, g in zip(place, frame, grid, strict=True)))


def to_frame(place: Place, grid: tuple[int, int], frame: tuple[int, int]) -> Place:
  """The frame's pixel under the centre of a grid pixel; `grid` is (h, w), `frame` (H, W)."""
  return Place(*(int(_positions(g, f)[p]) for p, g, f in zip(place, grid, frame, strict=True)))


def _positions(count: int, length: int) -> np.ndarray:
  return np.rint(np.linspace(0, length - 1, count)).astype(int)


# Distances over time (Fig. 3) ----------------------------------------------------------------------------------------


def mean_direction(embeddings: np.ndarray, foreground: np.ndarray) -> np.ndarray | None:
  """Mean of the foreground's embeddings, each brought to length 1.

  Args:
    embeddings: (h, w, c) floating.
    foreground: (h, w) bool.

  Returns:
    (c,) float64, None where nothing is foreground. An embedding of length 0 has no direction and counts as 0: its
    cosine with anything is 0.
  """
  vectors = embeddings[foreground].astype(np.float64)  # (n, c)
  if not len(vectors):
    return None
  # Divided by their largest value first, or the squares of very short and very long ones leave float64's range.
  largest = np.abs(vectors).max(axis=1, keepdims=True)
  vectors = np.divide(vectors, largest, out=np.zeros_like(vectors), where=largest > 0)
  lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
  return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0).mean(axis=0)


def mean_cosine_distance(one: np.ndarray, other: np.ndarray) -> float:
  """Mean of 1 - cosine over all pairs of embeddings of two frames, from their `mean_direction`s (c,).

  The mean of all products is the product of the means, so that this is exact and no pair is formed.
  """
  return float(np.clip(1 - one @ other, 0, 2))


def distances_from_anchor(directions: Mapping[int, np.ndarray | None]) -> dict[int, float]:
  """How far a clip's foreground has moved away from the anchor's, by frame distance.

  Args:
    directions: `mean_direction` of each frame by its distance from the anchor, which is 0.

  Returns:
    {distance: mean cosine distance} of the later frames that have foreground, in order; empty where the anchor has
    none.

  Source: paper Sec. 3.1, Fig. 3.
  """
  anchor = directions.get(0)
  if anchor is None:
    return {}
  later = {k: direction for k, direction in sorted(directions.items()) if k > 0 and direction is not None}
  return {k: mean_cosine_distance(anchor, direction) for k, direction in later.items()}


class CurvePoint(NamedTuple):
  """A point of Fig. 3: mean over the clips that have a frame at this distance, and how many these are."""

  distance: int
  mean: float
  clips: int


def mean_over_clips(curves: Sequence[Mapping[int, float]]) -> list[CurvePoint]:
  """The curve of Fig. 3 from each clip's `distances_from_anchor`."""
  points = []
  for distance in sorted({k for curve in curves for k in curve}):
    values = [curve[distance] for curve in curves if distance in curve]
    points.append(CurvePoint(distance, float(np.mean(values)), len(values)))
  return points


# Maps (Figs. 1 and 10) -----------------------------------------------------------------------------------------------


def scaled_product(queries: np.ndarray, context: np.ndarray) -> np.ndarray:
  """Q K^T / sqrt(c), the paper's similarity before its softmax (Eq. 2).

  Args:
    queries: (n, c) floating, embeddings of chosen pixels.
    context: (h, w, c) floating, embeddings of a frame.

  Returns:
    (n, h, w) float32.
  """
  h, w, c = context.shape
  scores = queries.astype(np.float32) @ context.reshape(h * w, c).astype(np.float32).T
  return (scores / np.float32(np.sqrt(c))).reshape(-1, h, w)


def softmax(scores: np.ndarray) -> np.ndarray:
  """exp(s) over its sum over all pixels of a map: (n, h, w) floating -> (n, h, w), each map sums to 1.

  Of `scaled_product(anchor pixels, current frame)` these are rows of the transition matrix P (Eq. 2).
  """
  weights = np.exp(scores - scores.max(axis=(1, 2), keepdims=True))
  return weights / weights.sum(axis=(1, 2), keepdims=True)


def received_attention(anchor: np.ndarray, current: np.ndarray, place: Place) -> np.ndarray:
  """A column of the transition matrix P (Eq. 2): the weight that each anchor pixel gives to one current pixel.

  P is normalised over the *current* frame's pixels, so that the map does not sum to 1.

  Args:
    anchor: X0, (h, w, c) floating.
    current: Xt, (h', w', c) floating.
    place: the current pixel on its grid.

  Returns:
    (h, w) float32 in [0, 1].
  """
  h, w, c = anchor.shape
  pixels = anchor.reshape(h * w, c)
  column = np.empty(h * w, np.float32)
  for start in range(0, h * w, BLOCK):
    column[start : start + BLOCK] = softmax(scaled_product(pixels[start : start + BLOCK], current))[:, place.y, place.x]
  return column.reshape(h, w)


# Pixels to look at ---------------------------------------------------------------------------------------------------


def telling_pixels(foreground: np.ndarray, background: int = 2) -> list[Place]:
  """Pixels of an anchor worth a map where nobody chose any: the object's innermost, then background far from all else.

  Args:
    foreground: (H, W) bool.
    background: number of background pixels.

  Returns:
    The object's pixel (none where there is no foreground), then background pixels, each as far as can be from the
    object, the border and those before it (none where all is foreground).
  """
  found = [_innermost(foreground)] if foreground.any() else []
  free = ~foreground
  for _ in range(background):
    if not free.any():
      break
    place = _innermost(free)
    found.append(place)
    free[place] = False
  return found


def _innermost(region: np.ndarray) -> Place:
  distance = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
  return Place(*map(int, np.unravel_index(np.argmax(distance[1:-1, 1:-1]), region.shape)))


def random_pixel(foreground: np.ndarray, rng: np.random.Generator) -> Place | None:
  """A foreground pixel at random, each as likely: (h, w) bool -> its place, None where nothing is foreground."""
  places = np.argwhere(foreground)
  return Place(*map(int, places[rng.integers(len(places))])) if len(places) else None
