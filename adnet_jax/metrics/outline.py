"""Simplified polygons along the pixel corners of a mask, as DAVIS-2016 codes contours; knows nothing of their use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

TOLERANCES = (0.1, 3.0)  # of the two simplifications, in half pixels
SMALLEST = 4  # points of the smallest polygon that is kept, the start counted twice


class _Piece(NamedTuple):
  """A path from corner to corner (both included) between two junctions, given by number."""

  start: int
  end: int
  path: list[int]


def polygons(mask: np.ndarray, order: Callable[[int], Iterable[int]]) -> list[np.ndarray]:
  """The outlines of a mask's regions and of their holes as simplified polygons.

  The mask is padded with background. Where four outlines meet in a corner (two diagonal pixels of each kind), it is a
  junction, and rings are cut there so that none touches itself. Every ring is simplified twice, first by 0.05 pixels,
  then by 1.5: points nearer than that to the last one kept are dropped, then Douglas and Peucker's rule is applied to
  the rest. A ring's first point always stays: a junction, or the upper left corner of a ring that has none.

  Args:
    mask: (h, w) bool.
    order: given the number n of junctions, the order 0..n-1 in which rings start from them. Junctions are numbered row
      by row; the first corners of rings without one are numbered after them, row by row too. This settles the order of
      the polygons, and the first points of those that pass through junctions.

  Returns:
    One (k, 2) float64 array a polygon: row and column of corners, (0, 0) being the image's own corner, the last point
    equal to the first, foreground on the right hand. A polygon of fewer than four points is left out: specks up to 2x2
    pixels, straight lines one pixel wide, and whatever else simplification makes flat.

  Source: mask2polycont of davisvideochallenge/davis-matlab, with psimpl's simplify_douglas_peucker. Of several points
  at the greatest distance the last one splits. As there, the share of a segment that lies before a point's projection
  is rounded to single precision: it decides between points whose distances are equal but for round-off.
  """
  if not mask.any():
    return []
  pieces = _pieces(mask)
  rings = _rings(pieces, order)
  corners = np.concatenate([np.asarray(ring) for ring in rings])
  lattice = np.stack(np.divmod(corners, mask.shape[1] + 1), axis=1)
  ends = np.cumsum([len(ring) for ring in rings]) - 1
  starts = np.concatenate([[0], ends[:-1] + 1])
  simple, kept_starts, kept_ends = _simplified(2.0 * lattice, starts, ends)
  result = []
  for start, end, first, last in zip(starts, ends, kept_starts, kept_ends):
    if last - first + 1 < SMALLEST:
      continue
    ring, polygon = lattice[start : end + 1], simple[first : last + 1] / 2
    # The outline of a region runs clockwise and that of a hole does not, even if simplification turned its area over.
    outer = _foreground_on_the_right(mask, ring) == _clockwise(ring)
    result.append(polygon if _clockwise(polygon) == outer else polygon[::-1].copy())
  return result


def _pieces(mask: np.ndarray) -> list[_Piece]:
  """All outlines, cut at junctions. A corner's number is row * (w + 1) + column."""
  stride = mask.shape[1] + 1
  padded = np.pad(mask, 1)
  south, east = np.zeros((2, mask.shape[0] + 1, stride), np.int8)
  south[:-1] = padded[1:-1, :-1] ^ padded[1:-1, 1:]
  east[:, :-1] = padded[:-1, 1:-1] ^ padded[1:, 1:-1]
  north, west = np.zeros_like(south), np.zeros_like(east)
  north[1:], west[:, 1:] = south[:-1], east[:, :-1]
  degree = (south + east + north + west).ravel()
  corners = np.flatnonzero(degree)
  # A plain corner has two neighbours: their sum less the one we come from is the one to go to.
  offsets = (east - west).ravel()[corners] + stride * (south - north).ravel()[corners].astype(np.int64)
  sums = dict(zip(corners.tolist(), (degree[corners] * corners + offsets).tolist()))
  junctions = np.flatnonzero(degree == 4).tolist()
  numbers = {corner: number for number, corner in enumerate(junctions)}

  pieces: list[_Piece] = []
  seen: set[int] = set()
  taken: set[tuple[int, int]] = set()
  # The published program's order, from the last junction to the first and from north to west, south and east: pieces
  # with lower numbers are preferred later.
  for start in reversed(junctions):
    for first in (start - stride, start - 1, start + stride, start + 1):
      if (start, first) in taken:
        continue
      path, corner = [start], first
      while corner not in numbers:
        path.append(corner)
        corner = sums[corner] - path[-2]
      taken.add((corner, path[-1]))
      path.append(corner)
      seen.update(path)
      pieces.append(_Piece(numbers[start], numbers[corner], path))
  count = len(junctions)
  for start in np.flatnonzero((degree == 2) & (south & east).ravel().astype(bool)).tolist():
    if start in seen:
      continue
    path, corner = [start], start + stride
    while corner != start:
      path.append(corner)
      corner = sums[corner] - path[-2]
    path.append(start)
    seen.update(path)
    pieces.append(_Piece(count, count, path))
    count += 1
  return pieces


def _rings(pieces: list[_Piece], order: Callable[[int], Iterable[int]]) -> list[list[int]]:
  """Joins pieces to rings that turn left or right at each junction and are cut off where they come back to one."""
  count = 1 + max(max(piece.start, piece.end) for piece in pieces)
  waiting: list[list[int]] = [[] for _ in range(count)]
  for number, piece in enumerate(pieces):
    for junction in {piece.start, piece.end}:
      waiting[junction].append(number)

  rings: list[list[int]] = []
  for first in order(count):
    while waiting[first]:
      junctions, numbers, place = [first], [waiting[first][0]], {first: 0}
      while junctions:
        piece = pieces[numbers[-1]]
        waiting[piece.start].remove(numbers[-1])
        if piece.end != piece.start:
          waiting[piece.end].remove(numbers[-1])
        junction = piece.end if piece.start == junctions[-1] else piece.start
        if junction in place:
          begin = place[junction]
          rings.append(_joined(pieces, junctions[begin:], numbers[begin:]))
          for left in junctions[begin:]:
            del place[left]
          del junctions[begin:], numbers[begin:]
          if not junctions:
            break
        came = _beside(pieces[numbers[-1]], junction)
        corner = _at(pieces[numbers[-1]], junction)
        # Neighbours on opposite sides add up to twice the corner between them.
        number = next(n for n in waiting[junction] if _beside(pieces[n], junction) + came != 2 * corner)
        place[junction] = len(junctions)
        junctions.append(junction)
        numbers.append(number)
  return rings


def _at(piece: _Piece, junction: int) -> int:
  """The corner in which a junction lies where one of its pieces ends."""
  return piece.path[0] if piece.start == junction else piece.path[-1]


def _beside(piece: _Piece, junction: int) -> int:
  """The corner next to a junction on one of its pieces."""
  return piece.path[1] if piece.start == junction else piece.path[-2]


def _joined(pieces: list[_Piece], junctions: list[int], numbers: list[int]) -> list[int]:
  """Corners of the closed ring of pieces that are left from these junctions."""
  ring: list[int] = []
  for junction, number in zip(junctions, numbers):
    path = pieces[number].path
    ring += path[:-1] if pieces[number].start == junction else path[:0:-1]
  return [*ring, ring[0]]


def _simplified(points: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Both simplifications of all rings; each lies between its start and its end, both included."""
  for tolerance in TOLERANCES:
    for thinning in (_far_apart, _douglas_peucker):
      keep = thinning(points, starts, ends, tolerance)
      places = np.cumsum(keep) - 1
      points, starts, ends = points[keep], places[starts], places[ends]
  return points, starts, ends


def _far_apart(points: np.ndarray, starts: np.ndarray, ends: np.ndarray, tolerance: float) -> np.ndarray:
  """Marks each ring's ends, and in between every point that is no nearer to the last marked one than the tolerance."""
  keep = np.zeros(len(points), bool)
  keep[starts] = keep[ends] = True
  if tolerance <= 2:  # corners of pixels are two half pixels apart
    keep[:] = True
    return keep
  rows, columns = points[:, 0].tolist(), points[:, 1].tolist()
  least = tolerance * tolerance
  for start, end in zip(starts.tolist(), ends.tolist()):
    row, column = rows[start], columns[start]
    for place in range(start + 1, end):
      if (rows[place] - row) ** 2 + (columns[place] - column) ** 2 >= least:
        keep[place] = True
        row, column = rows[place], columns[place]
  return keep


def _douglas_peucker(points: np.ndarray, starts: np.ndarray, ends: np.ndarray, tolerance: float) -> np.ndarray:
  """Marks the points that Douglas and Peucker's rule keeps, in all rings at once, one level of splits after another."""
  keep = np.zeros(len(points), bool)
  keep[starts] = keep[ends] = True
  while True:
    inner = ends - starts - 1
    starts, ends, inner = starts[inner > 0], ends[inner > 0], inner[inner > 0]
    if not inner.size:
      return keep
    offsets = np.cumsum(inner) - inner
    segment = np.repeat(np.arange(inner.size), inner)
    places = np.arange(segment.size) + (starts + 1 - offsets)[segment]
    distances = _squared_distances(points[places], points[starts], points[ends], segment)
    farthest = np.maximum.reduceat(distances, offsets)
    keys = np.maximum.reduceat(np.where(distances == farthest[segment], places, -1), offsets)
    split = farthest > tolerance * tolerance
    starts, ends, keys = starts[split], ends[split], keys[split]
    keep[keys] = True
    starts, ends = np.concatenate([starts, keys]), np.concatenate([keys, ends])


def _squared_distances(points: np.ndarray, starts: np.ndarray, ends: np.ndarray, segment: np.ndarray) -> np.ndarray:
  """Squared distance of each point from its segment; `segment` numbers the rows of starts and ends."""
  row, column = points.T
  start_row, start_column = starts.T
  along_row, along_column = (ends - starts).T
  squares = (along_row * along_row + along_column * along_column)[segment]
  start_row, start_column = start_row[segment], start_column[segment]
  along_row, along_column = along_row[segment], along_column[segment]
  products = (row - start_row) * along_row + (column - start_column) * along_column
  inside = (products > 0) & (products < squares)
  fraction = (products >= squares).astype(np.float64)
  fraction[products <= 0] = 0
  fraction[inside] = products[inside].astype(np.float32) / squares[inside].astype(np.float32)
  rows, columns = row - (start_row + fraction * along_row), column - (start_column + fraction * along_column)
  return rows * rows + columns * columns


def _clockwise(ring: np.ndarray) -> bool:
  """Whether a closed ring of (row, column) runs clockwise as seen on the screen."""
  return float(np.sum((ring[1:, 0] - ring[:-1, 0]) * (ring[1:, 1] + ring[:-1, 1]))) > 0


def _foreground_on_the_right(mask: np.ndarray, ring: np.ndarray) -> bool:
  """Whether the pixel on the right of a ring's first step is foreground; the ring runs from corner to corner."""
  (row, column), (next_row, next_column) = ring[:2].tolist()
  if next_row != row:
    row, column = min(row, next_row), column - (next_row > row)
  else:
    row, column = row - (next_column < column), min(column, next_column)
  return 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1] and bool(mask[row, column])
