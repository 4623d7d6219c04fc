"""Geometry of the page's charts, in shares of their width and height; knows nothing of HTML and of pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adnet_jax.report.compare import Comparison
from adnet_jax.report.entries import Entry, lower_is_better

# The charts stretch with the page, so both axes go from 0 to 1000 whatever they show.
_SPAN = 1000


@dataclass(frozen=True)
class Dot:
  """A point with a text to read at it.

  Attributes:
    x: 0 is left, 1000 right.
    y: 0 is the top, 1000 the bottom.
    text: shown at the point.
  """

  x: float
  y: float
  text: str


@dataclass(frozen=True)
class Line:
  """What is drawn of one file: a path of SVG and points on it."""

  name: str
  colour: int
  path: str
  dots: tuple[Dot, ...] = ()


@dataclass(frozen=True)
class Chart:
  """Lines between labelled ends.

  Attributes:
    lines: one a file.
    left: label of the left end.
    right: label of the right end.
    text: the chart in words.
  """

  lines: tuple[Line, ...]
  left: str
  right: str
  text: str


@dataclass(frozen=True)
class Rows:
  """A chart with a row for each clip.

  Attributes:
    title: above it.
    clips: names of the rows.
    lines: one a file; the first is the one that the rows are sorted by.
    ticks: labels below, evenly spread.
    text: the chart in words.
  """

  title: str
  clips: tuple[str, ...]
  lines: tuple[Line, ...]
  ticks: tuple[str, ...]
  text: str


@dataclass(frozen=True)
class Bar:
  """A clip's difference: a bar from the middle to the left or right.

  Attributes:
    clip: its name.
    x: left end, in 0..1000.
    width: of the bar.
    better: whether the first file is the better one.
    text: the difference.
  """

  clip: str
  x: float
  width: float
  better: bool
  text: str


def over_time(
  entries: Sequence[Entry], colours: Mapping[str, int], clip: str, marked: Mapping[str, Sequence[tuple[int, float]]]
) -> Chart:
  """J of each counted frame of a clip, from 0 to 1.

  Args:
    entries: of one rule; those without the clip are left out.
    colours: number of each name's colour.
    clip: its name.
    marked: {name: (position, J) of the frames that get a point}.
  """
  have = {entry: entry.per_frame('J', clip) or [] for entry in entries}
  have = {entry: values for entry, values in have.items() if values}
  places = _places([entry.clips[clip]['frames'] for entry in have])
  lines, words = [], []
  for entry, values in have.items():
    frames = entry.clips[clip]['frames']
    points = [
      None if value is None else (places[frame], _SPAN * (1 - _clamped(value)))
      for frame, value in zip(frames, values, strict=True)
    ]
    dots = []
    for index, j in marked.get(entry.name, ()):
      if point := points[index]:
        dots.append(Dot(*point, f'{entry.name}, frame {frames[index]}: J {j:.3f}'))
    lines.append(Line(entry.name, colours[entry.name], _path(points), tuple(dots)))
    if dots:
      words.append(f'lowest of {dots[0].text}')
  ends = list(places)
  return Chart(tuple(lines), ends[0], ends[-1], f'J over time of {clip}; ' + '; '.join(words))


def by_clip(entries: Sequence[Entry], colours: Mapping[str, int], key: str) -> Rows | None:
  """One number of each clip of the first file, sorted by it, the best on top; None where it has none."""
  first = entries[0]
  numbers = {clip: first.number(key, clip) for clip in first.clips}
  defined = {clip: value for clip, value in numbers.items() if value is not None}
  if not defined:
    return None
  clips = sorted(defined, key=lambda clip: defined[clip], reverse=not lower_is_better(key))
  values = {entry: [entry.number(key, clip) for clip in clips] for entry in entries}
  top = 1.0 if key.split()[0] not in ('T', 'MAE') else _round_up([one for row in values.values() for one in row])
  lines = []
  for entry, row in values.items():
    points = [
      None if value is None else (_SPAN * _clamped(value / top), _SPAN * (index + 0.5) / len(clips))
      for index, value in enumerate(row)
    ]
    dots = [
      Dot(*point, f'{clip}, {entry.name}: {key} {value:.3f}')
      for clip, value, point in zip(clips, row, points, strict=True)
      if point and value is not None
    ]
    lines.append(Line(entry.name, colours[entry.name], _path(points), tuple(dots)))
  ticks = tuple(f'{top * share:.3g}' for share in (0, 0.25, 0.5, 0.75, 1))
  text = f'{key} of each clip, sorted by {first.name}: {defined[clips[0]]:.3f} to {defined[clips[-1]]:.3f}'
  return Rows(f'{key} of each clip', tuple(clips), tuple(lines), ticks, text)


def differences(comparison: Comparison) -> tuple[tuple[Bar, ...], float]:
  """Bars of the clips' differences, the largest first, and the difference that fills half of the width."""
  sign = -1 if lower_is_better(comparison.key) else 1
  rows = [
    (clip, one - other)
    for clip, one, other in zip(comparison.clips, comparison.one, comparison.other, strict=True)
  ]  # fmt: skip
  rows.sort(key=lambda row: -sign * row[1])
  reach = max(abs(difference) for _, difference in rows) or 1.0
  bars = []
  for clip, difference in rows:
    width = _SPAN / 2 * abs(difference) / reach
    x = _SPAN / 2 - (width if difference < 0 else 0)
    bars.append(Bar(clip, round(x, 1), round(width, 1), sign * difference > 0, f'{difference:+.3f}'))
  return tuple(bars), reach


def precision_recall(entries: Sequence[Entry], colours: Mapping[str, int]) -> Chart | None:
  """Curves of the files that have one; None where none has."""
  lines = []
  for entry in entries:
    curve = entry.scores['dataset'].get('curve')
    if isinstance(curve, Mapping) and curve.get('recall') and curve.get('precision'):
      points = [
        None if recall is None or precision is None else (_SPAN * _clamped(recall), _SPAN * (1 - _clamped(precision)))
        for recall, precision in zip(curve['recall'], curve['precision'])
      ]
      lines.append(Line(entry.name, colours[entry.name], _path(points)))
  names = ', '.join(line.name for line in lines)
  return Chart(tuple(lines), '0', '1', f'Precision over recall of {names}') if lines else None


def _places(lists: Sequence[Sequence[str]]) -> dict[str, float]:
  """Where each frame lies from left to right: by its number, or by its order where names are no numbers."""
  frames = list(dict.fromkeys(frame for frames in lists for frame in frames))
  if all(map(str.isdecimal, frames)):
    frames.sort(key=int)
    numbers = [int(frame) for frame in frames]
  else:
    numbers = list(range(len(frames)))
  reach = numbers[-1] - numbers[0] or 1
  return {frame: _SPAN * (one - numbers[0]) / reach for frame, one in zip(frames, numbers, strict=True)}


def _path(points: Sequence[tuple[float, float] | None]) -> str:
  """An SVG path through the points, with a gap where there is none; a point between gaps is a line of no length."""
  parts, drawn = [], False
  for index, point in enumerate(points):
    if point is not None:
      alone = not drawn and (index + 1 == len(points) or points[index + 1] is None)
      parts.append(f'{"L" if drawn else "M"}{point[0]:.1f} {point[1]:.1f}{"h0" if alone else ""}')
    drawn = point is not None
  return ''.join(parts)


def _clamped(value: float) -> float:
  return min(1.0, max(0.0, value))


def _round_up(values: Sequence[float | None]) -> float:
  """The next number of 1, 2, 5, 10, ... from the largest on, so that an axis ends at a round one."""
  largest = max((value for value in values if value is not None), default=1.0)
  if largest <= 0:
    return 1.0
  power = 10.0 ** math.floor(math.log10(largest))
  return next(step * power for step in (1, 2, 5, 10) if step * power >= largest)
