"""Temporal instability T of two masks, by the shapes of their longest polygons; knows nothing of clips or files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np

from adnet_jax.metrics.outline import polygons

STEP = 3  # pixels: the longest side of a resampled polygon
ANGLES, RADII = 12, 5
RADIUS_EDGES = (0.125, 0.25, 0.5, 1.0, 2.0)  # in units of the mean distance
SCALE = 5  # brings T to the range of J and F
EPSILON = float(np.finfo(np.float64).eps)

PI_REST = 1.2246467991473532e-16  # pi less its double
SLOPES = tuple(math.tan(math.pi * k / 2 / (ANGLES // 4)) for k in range(1, ANGLES // 4))
NEAR_AXIS = 1e-9  # rational slopes between points of a polygon are zero or far above this
BLOCK = 1 << 17  # pairs of points that are looked at together, for the processor's cache

# Sizes of a hash table in GCC's C++ library, up to more junctions than a mask of a video has.
# fmt: off
TABLE_SIZES = frozenset((
  2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 103, 109, 113, 127,
  137, 139, 149, 157, 167, 179, 193, 199, 211, 227, 241, 257, 277, 293, 313, 337, 359, 383, 409, 439, 467, 503, 541,
  577, 619, 661, 709, 761, 823, 887, 953, 1031, 1109, 1193, 1289, 1381, 1493, 1613, 1741, 1879, 2029, 2179, 2357, 2549,
  2753, 2971, 3209, 3469, 3739, 4027, 4349, 4703, 5087, 5503, 5953, 6427,
))
# fmt: on


def last_to_first(count: int) -> Iterable[int]:
  """Order of junctions in the published program where a recent GCC builds it: a hash table's latest key comes first."""
  return range(count - 1, -1, -1)


def as_published(count: int) -> Iterable[int]:
  """Order of junctions in the published binary, built with GCC 4.9.

  Its C++ library, too, lists the keys of a hash table from the last to the first, unless their number equals the
  table's size: then the last one made the table grow, which turned the others round. With this order every value of T
  that the program's authors stored for DAVIS-2016's annotations is met within 0.003; with the other one some differ by
  more than 0.1.
  """
  return (count - 1, *range(count - 1)) if count in TABLE_SIZES else last_to_first(count)


@dataclasses.dataclass(frozen=True)
class _Convention:
  """What the published programs do differently.

  Attributes:
    order: order of junctions, see `outline.polygons`.
    last: the last of several longest polygons is taken, not the first.
    matlab: points in double precision, angles from the rows' axis, an angle within round-off of a full turn is zero;
      otherwise points in single precision and angles from the columns' axis.
  """

  order: Callable[[int], Iterable[int]]
  last: bool
  matlab: bool


# The two branches of davis-matlab differ in the first pair alone, which is the caller's.
_CONVENTIONS = {
  'davis-matlab-master': _Convention(as_published, last=False, matlab=True),
  'davis-matlab-2016': _Convention(as_published, last=False, matlab=True),
  'python': _Convention(last_to_first, last=True, matlab=False),
}
RULES = tuple(_CONVENTIONS)


@dataclasses.dataclass(frozen=True)
class Contour:
  """The longest polygon of a mask and the shape context of its resampled points.

  Attributes:
    polygon: (k, 2) float64, row and column of the simplified polygon's corners, the last equal to the first.
    shapes: (n, 60) float64, n >= k: each row is a point's histogram over five radii (the outermost first) of twelve
      angles, summing to one.
  """

  polygon: np.ndarray
  shapes: np.ndarray


def describe(mask: np.ndarray, rule: str = RULES[0]) -> Contour | None:
  """What T compares of a mask: the polygon with most corners after simplification, be it a region's or a hole's.

  Args:
    mask: (h, w) bool.
    rule: one of RULES. `davis-matlab-*` follow the published binary: its order of junctions (`as_published`), the first
      of several longest polygons. `python` follows fperazzi/davis as a recent compiler builds it (`last_to_first`), the
      last of several longest polygons; axes and rounding of its angles differ too.

  Returns:
    None where `outline.polygons` finds none: the mask is empty or holds but specks and straight thin lines.

  Raises:
    ValueError: the mask is not (h, w) bool, or the rule is unknown.

  Source: t_stability of davisvideochallenge/davis-matlab; db_eval_t_stab of fperazzi/davis (CVPR 2016).
  """
  if mask.dtype != bool or mask.ndim != 2:
    raise ValueError(f'a mask must be (h, w) and bool, got {mask.shape} {mask.dtype}')
  if rule not in _CONVENTIONS:
    raise ValueError(f'unknown rule of T {rule!r}: choose one of {", ".join(RULES)}')
  convention = _CONVENTIONS[rule]
  found = polygons(mask, convention.order)
  if not found:
    return None
  polygon = max(reversed(found) if convention.last else found, key=len)
  return Contour(polygon, _shape_contexts(_resampled(polygon, convention.matlab), convention.matlab))


def instability(one: Contour | None, other: Contour | None) -> float | None:
  """T of two consecutive masks: five times the mean cost of matching their polygons point by point.

  Args:
    one: description of the earlier mask, by the same rule as the later one's.
    other: description of the later mask.

  Returns:
    T in [0, 5], 0 for polygons of the same shape wherever they lie; None where either mask has no polygon: such a pair
    does not count. Time and memory (18 bytes) grow with the number of pairs of points, of which an outline has one
    every three pixels or less.

  Source: t_stability of davisvideochallenge/davis-matlab.
  """
  if one is None or other is None:
    return None
  cost = _costs(one.shapes, other.shapes)
  path = _cheapest_path(cost)[:-1]  # from the end back to the start, which is free and not looked at
  shift = path[np.argmin(cost[path[:, 0], path[:, 1]])] + 1
  path = (_cheapest_path(np.roll(cost, -shift, axis=(0, 1))) + shift) % cost.shape
  path = _cheapest_each(_cheapest_each(path, cost, 0), cost, 1)
  return SCALE * float(cost[path[:, 0], path[:, 1]].mean())


def _resampled(polygon: np.ndarray, matlab: bool) -> np.ndarray:
  """Points (n, 2) at most STEP apart; steps are added one by one, whose rounding the angles show."""
  kind = np.dtype(np.float64 if matlab else np.float32)
  corners = polygon.astype(kind)
  sides = np.diff(corners, axis=0)
  lengths = np.sqrt(sides[:, 0] * sides[:, 0] + sides[:, 1] * sides[:, 1])
  parts = np.ceil(lengths / STEP).astype(int).tolist()
  points = []
  for corner, side, count in zip(corners, sides, parts):
    steps = np.concatenate([corner[None], np.broadcast_to(side / count, (count - 1, 2))])
    points.append(np.cumsum(steps, axis=0, dtype=kind))
  return np.concatenate([*points, corners[-1:]]).astype(np.float64)


def _shape_contexts(points: np.ndarray, matlab: bool) -> np.ndarray:
  """Histograms (n, 60) of where all points lie, seen from each; itself counts, points beyond two means do not."""
  x, y = points.T if matlab else points.T[::-1]
  count = len(points)
  rows = max(1, BLOCK // count)
  blocks = [slice(start, start + rows) for start in range(0, count, rows)]
  total = sum(float(np.sqrt((x[b, None] - x) ** 2 + (y[b, None] - y) ** 2).sum()) for b in blocks)
  limits = [(edge * total / count**2) ** 2 for edge in RADIUS_EDGES]
  bins = ANGLES * (RADII + 1)
  counts = np.empty((count, bins))
  for block in blocks:
    right, up = x - x[block, None], y - y[block, None]
    codes = _angle_bins(right, up, matlab)
    distances = right * right + up * up
    for limit in limits:
      codes += np.multiply(distances < limit, ANGLES, dtype=np.int8)
    places = codes + bins * np.arange(len(codes))[:, None]
    counts[block] = np.bincount(places.ravel(), minlength=bins * len(codes)).reshape(-1, bins)
  counts = counts[:, ANGLES:]
  return counts / (counts.sum(axis=1, keepdims=True) + EPSILON)


def _angle_bins(x: np.ndarray, y: np.ndarray, matlab: bool) -> np.ndarray:
  """The twelfth of a turn, int8 0..11, in which each angle from the x axis towards the y axis lies.

  Comparisons give the same on every machine, which an arc tangent does not. On the axes themselves, where a bin ends
  and very many points lie, the last digit of the published programs' angle decides: it is worked out.
  """
  width, height = np.abs(x), np.abs(y)
  bins = np.zeros(x.shape, np.int8)
  for slope in SLOPES:
    bins += height > slope * width
  np.subtract(ANGLES // 2 - 1, bins, out=bins, where=x < 0)
  np.subtract(ANGLES - 1, bins, out=bins, where=y < 0)
  near = np.nonzero(np.minimum(width, height) <= NEAR_AXIS * np.maximum(width, height))
  width, height, x, y = width[near], height[near], x[near], y[near]
  slope = np.minimum(width, height) / np.maximum(np.maximum(width, height), EPSILON)
  steep = math.pi / 2 + (PI_REST / 2 - np.copysign(slope, x))
  angle = np.where(height > width, steep, np.where(x < 0, math.pi + (PI_REST - slope), slope))
  angle = np.where(y < 0, -angle, angle) + 2 * math.pi
  turns = angle / (2 * math.pi)
  angle = np.fmod(angle, 2 * math.pi)
  if matlab:
    angle[np.abs(turns - np.rint(turns)) < EPSILON * turns] = 0
  bins[near] = np.floor(angle / (2 * math.pi / ANGLES))
  return bins


def _costs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Half the chi-square distance (n, m) of every two histograms, in [0, 1].

  A bin holds few different values: each two of them are compared once, and the result looked up.
  """
  cost = np.zeros((len(one), len(other)))
  found = np.empty_like(cost)
  for values, others in zip(one.T, other.T):
    levels, place = np.unique(values, return_inverse=True)
    other_levels, other_place = np.unique(others, return_inverse=True)
    table = (levels[:, None] - other_levels) ** 2 / (levels[:, None] + other_levels + EPSILON)
    if table.any():
      cost += np.take(table[:, other_place], place, axis=0, out=found, mode='clip')
  cost *= 0.5
  return cost


def _cheapest_path(cost: np.ndarray) -> np.ndarray:
  """The path of least cost from the first cell to the last by steps down, right or both, backwards: (k, 2) indices.

  A step costs what the cell costs that it enters. Where ways cost the same, the one along the diagonal is taken, as in
  Dijkstra's search, which the published programs use. Cells of one diagonal do not depend on each other: all of them
  are worked out at once.
  """
  height, width = cost.shape
  flat = cost.ravel()
  # Least costs on the diagonal before the last one, the last one and this one; that of row i is at i + 1.
  before, last, this = np.full((3, height + 1), np.inf)
  last[1] = 0
  oblique, upright = [np.zeros(1, bool)], [np.zeros(1, bool)]
  for diagonal in range(1, height + width - 1):
    low, high = max(0, diagonal - width + 1), min(diagonal, height - 1) + 1
    left, above, corner = last[low + 1 : high + 1], last[low:high], before[low:high]
    least = this[low + 1 : high + 1]
    upright.append(above < left)
    np.minimum(left, above, out=least)
    oblique.append(corner <= least)
    np.minimum(least, corner, out=least)
    first = low * (width - 1) + diagonal
    least += flat[first : first + (high - low - 1) * (width - 1) + 1 : width - 1]
    before, last, this = last, this, before
  row, column = height - 1, width - 1
  path = [(row, column)]
  while row or column:
    diagonal = row + column
    place = row - max(0, diagonal - width + 1)
    both, down = oblique[diagonal][place], upright[diagonal][place]
    row -= both or down
    column -= both or not down
    path.append((row, column))
  return np.array(path)


def _cheapest_each(path: np.ndarray, cost: np.ndarray, axis: int) -> np.ndarray:
  """Of all pairs with one index along an axis the cheapest, the first of equals, sorted by that index."""
  path = path[np.lexsort((cost[path[:, 0], path[:, 1]], path[:, axis]))]
  return path[np.diff(path[:, axis], prepend=-1) > 0]
