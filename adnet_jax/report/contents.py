"""What the page shows of score files, ready for its template; reads no files and writes no HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adnet_jax.report import charts, compare, grid
from adnet_jax.report.entries import COUNTS, Entry, keys, lower_is_better, remarks
from adnet_jax.report.grid import Cell, Column, Table
from adnet_jax.report.pictures import Picture, worst_frames

_NONE = Cell('\N{EN DASH}', None, 'missing')
_RULES = {
  'davis2016': (
    'J is intersection over union, F how well the contours match within .8 % of the diagonal; the mean over the frames '
    'of a clip but its first and last, then over clips. Recall: share of frames above .5. Decay: the first quarter of '
    'a clip less its last. T: how much the contour of the mask changes from frame to frame.'
  ),
  'adnet-saliency': (
    "Soft maps; the pixels of all frames pooled, but of a clip's first and last. F with beta^2 = 1; F_max is the best "
    'over every threshold.'
  ),
  'davsod': "Soft maps, each stretched to 0..1; the mean over a clip's frames, then over clips. F with beta^2 = .3.",
  'pysod': 'Soft maps, each stretched to 0..1; the plain mean over all images. F with beta^2 = .3.',
  'fbms-pooled': "All objects merged; counts summed over a clip's annotated frames, then the mean of the clips' F.",
  'fbms-mean-pr': 'All objects merged; P and R are means over clips, F is of these two means.',
  'fbms-jaccard': 'All objects merged; J is the mean over annotated frames, then over clips.',
  'fbms-official': (
    'Several labels, each pixel weighted by its certainty; regions, the background too, are matched one to one with '
    'clusters.'
  ),
}


@dataclass(frozen=True)
class File:
  entry: Entry
  colour: int
  frames: int
  facts: list[tuple[str, str]]
  remarks: list[str]


@dataclass(frozen=True)
class Against:
  """The first file against another."""

  other: str
  table: Table
  bars: list[tuple[str, tuple[charts.Bar, ...], str]]
  notes: list[str]


@dataclass(frozen=True)
class Row:
  """One file's numbers and worst frames of a clip."""

  name: str
  colour: int
  numbers: list[tuple[str, str]]
  worst: list[tuple[str, float]]
  pictures: list[Picture]


@dataclass(frozen=True)
class Clip:
  anchor: str
  name: str
  chart: charts.Chart
  rows: list[Row]


@dataclass(frozen=True)
class Group:
  anchor: str
  title: str
  rule: str
  files: list[File]
  summary: Table
  per_clip: Table
  against: list[Against]
  rows: list[charts.Rows]
  curve: charts.Chart | None
  clips: list[Clip]


def describe_group(
  anchor: str, entries: Sequence[Entry], colours: Mapping[str, int], pictures: Mapping[Entry, Mapping[str, list]]
) -> Group:
  rule, dataset = entries[0].rule, entries[0].dataset
  first = entries[0]
  cards = _clip_order(entries)
  anchors = {clip: f'{anchor}-{index}' for index, clip in enumerate(cards, 1)}
  shown = list(dict.fromkeys(key for other in entries for key in compare.comparable_keys(first, other)))
  return Group(
    anchor=anchor,
    title=dataset or 'Data set not named',
    rule=_RULES.get(rule, ''),
    files=[_file(entry, colours) for entry in entries],
    summary=_summary(entries, colours),
    per_clip=_per_clip(entries, colours, shown, anchors),
    against=[_against(first, other) for other in entries[1:]],
    rows=[chart for chart in (charts.by_clip(entries, colours, key) for key in shown) if chart],
    curve=charts.precision_recall(entries, colours),
    clips=[_clip(anchors[clip], clip, entries, colours, pictures) for clip in cards],
  )


def _file(entry: Entry, colours: Mapping[str, int]) -> File:
  counted = sum(len(clip['frames']) for clip in entry.clips.values())
  scores = entry.scores
  facts = [
    ('file', entry.path.name),
    ('data set', entry.dataset or 'not named'),
    ('rule', entry.rule),
    ('protocol', scores.get('protocol') or 'unknown'),
    ('scored by', 'adnet-jax ' + str(scores.get('version') or 'unknown')),
    ('counted', f'{counted:,} frames of {len(entry.clips)} clips'),
  ]
  if compare.stability(entry):
    facts.append(('T by', str(compare.stability(entry))))
  warnings = scores.get('warnings')
  spoken = [str(one) for one in warnings] if isinstance(warnings, list) else []
  return File(entry, colours[entry.name], counted, facts, remarks(entry) + spoken)


def _summary(entries: Sequence[Entry], colours: Mapping[str, int]) -> Table:
  columns = [Column('file', text=True), Column('clips'), Column('frames')]
  shown = keys(entries)
  columns += [_column(key) for key in shown]
  alike = _alike(entries)
  rows = []
  for entry in entries:
    frames = sum(map(len, _counted(entry).values()))
    cells = [grid.words(entry.name, colour=colours[entry.name]), Cell(str(len(entry.clips)), len(entry.clips))]
    cells.append(Cell(f'{frames:,}', frames))
    for key in shown:
      values = [other.number(key) for other in entries]
      # T of two programs, or numbers over other frames, have no best.
      comparable = alike and not (key.startswith('T ') and len({compare.stability(one) for one in entries}) > 1)
      cells.append(_number(entry.number(key), values if comparable else [], key))
    rows.append(tuple(cells))
  notes = () if alike else ('The files count different clips or frames: these numbers do not compare.',)
  return Table('Data set', tuple(columns), tuple(rows), notes=notes)


def _per_clip(
  entries: Sequence[Entry], colours: Mapping[str, int], shown: Sequence[str], anchors: Mapping[str, str]
) -> Table:
  both, alike = len(entries) == 2, _alike(entries)
  columns = [Column('clip', text=True), Column('frames')]
  for key in shown:
    columns += [Column(entry.name, key, lower_is_better(key)) for entry in entries]
    columns += [Column('difference', key, lower_is_better(key))] if both else []
  clips = list(dict.fromkeys(clip for entry in entries for clip in entry.clips))
  rows = []
  for clip in clips:
    counted = max(len(entry.clips[clip]['frames']) for entry in entries if clip in entry.clips)
    link = f'#{anchors[clip]}' if clip in anchors else None
    cells = [grid.words(clip, link=link), Cell(str(counted), counted)]
    for key in shown:
      cells += _compared(key, [entry.number(key, clip) for entry in entries], both)
    rows.append(tuple(cells))
  foot = [Cell('data set', kind='name'), Cell('')]
  for key in shown:
    cells = _compared(key, [entry.number(key) for entry in entries], both)
    # Data sets of other clips or frames have no difference.
    foot += cells if alike or not both else [*cells[:-1], _NONE]
  return Table('Clips', tuple(columns), tuple(rows), (tuple(foot),))


def _compared(key: str, values: list[float | None], difference: bool) -> list[Cell]:
  cells = [_number(value, values, key) for value in values]
  if difference:
    one, other = values
    cells.append(_NONE if one is None or other is None else grid.number(one - other, 3, 'difference', sign=True))
  return cells


def _against(first: Entry, other: Entry) -> Against:
  columns = (
    Column('number', text=True),
    Column(f'{first.name} is', text=True),
    Column('difference'),
    Column('95 % interval'),
    Column('clips'),
    Column('better on'),
    Column('worse on'),
    Column(first.name),
    Column(other.name),
    Column('resamples better'),
    Column('sign test p', lower_is_better=True),
  )
  rows, bars, notes = [], [], []
  for key in compare.comparable_keys(first, other):
    found = compare.compare(first, other, key)
    if found.left_out:
      notes.append(f'{key}: left out, as the files count other frames of them: {", ".join(found.left_out)}')
    if found.common_frames:
      notes.append(f'{key}: over the frames that both files count, of {", ".join(found.common_frames)}')
    paired = found.paired
    if paired is None:
      notes.append(f'{key}: no clip in common')
      continue
    means = [sum(values) / len(values) for values in (found.one, found.other)]
    rows.append((
      grid.words(f'{key}, lower is better' if lower_is_better(key) else key),
      Cell(paired.verdict, paired.verdict, f'verdict {paired.verdict.split()[0]}'),
      grid.number(paired.mean, 3, sign=True),
      Cell(f'{paired.low:+.3f} to {paired.high:+.3f}', paired.low),
      Cell(str(len(found.clips)), len(found.clips)),
      Cell(str(paired.wins), paired.wins),
      Cell(str(paired.losses), paired.losses),
      *(grid.number(mean, 3) for mean in means),
      Cell(f'{paired.share_better:.1%}', paired.share_better),
      Cell(f'{paired.sign_test:.3f}' if paired.sign_test >= 0.001 else '< 0.001', paired.sign_test),
    ))  # fmt: skip
    drawn, reach = charts.differences(found)
    bars.append((key, drawn, f'{reach:.3f}'))
  absent = [
    f'clips of {one.name} alone: {", ".join(clip for clip in one.clips if clip not in two.clips)}'
    for one, two in ((first, other), (other, first))
    if not set(one.clips) <= set(two.clips)
  ]
  programs = [compare.stability(entry) for entry in (first, other) if 'T mean' in keys([entry])]
  if len(set(programs)) > 1:
    notes.append(f'T mean: by different programs ({programs[0]}, {programs[1]}), not compared')
  return Against(other.name, Table(f'Against {other.name}', columns, tuple(rows)), bars, [*notes, *absent])


def _clip_order(entries: Sequence[Entry]) -> list[str]:
  """Clips with a J of each frame, those on which the first file does worst at the front."""
  clips = dict.fromkeys(clip for entry in entries for clip in entry.clips)
  shown = [clip for clip in clips if any(worst_frames(entry.per_frame('J', clip) or []) for entry in entries)]
  first = entries[0]
  means = {clip: first.number('J mean', clip) for clip in shown}
  return sorted(shown, key=lambda clip: (means[clip] is None, means[clip] or 0.0))


def _clip(
  anchor: str,
  clip: str,
  entries: Sequence[Entry],
  colours: Mapping[str, int],
  pictures: Mapping[Entry, Mapping[str, list[Picture]]],
) -> Clip:
  rows, marked = [], {}
  for entry in entries:
    worst = worst_frames(entry.per_frame('J', clip) or [])
    if not worst:
      continue
    marked[entry.name] = worst
    means = [(key, entry.number(key, clip)) for key in keys([entry]) if key.endswith(' mean')]
    spoken = [(key.removesuffix(' mean'), f'{value:.3f}') for key, value in means if value is not None]
    frames = [(entry.clips[clip]['frames'][index], j) for index, j in worst]
    shown = pictures.get(entry, {}).get(clip, [])
    rows.append(Row(entry.name, colours[entry.name], spoken, frames, shown))
  return Clip(anchor, clip, charts.over_time(entries, colours, clip, marked), rows)


def _counted(entry: Entry) -> dict[str, list[str]]:
  return {clip: content['frames'] for clip, content in entry.clips.items()}


def _alike(entries: Sequence[Entry]) -> bool:
  """Whether all of them count the same frames."""
  return all(_counted(entry) == _counted(entries[0]) for entry in entries)


def _column(key: str) -> Column:
  return Column(key, lower_is_better=lower_is_better(key) if key not in COUNTS else None)


def _number(value: float | None, all_values: Sequence[float | None], key: str) -> Cell:
  """A number, marked where it is the best of several."""
  if value is None:
    return _NONE
  defined = [one for one in all_values if one is not None]
  best = (
    key not in COUNTS
    and len(defined) > 1
    and value == (min if lower_is_better(key) else max)(defined)
    and len(set(defined)) > 1
  )
  return grid.number(value, 0 if key in COUNTS else 3, 'best' if best else '')
