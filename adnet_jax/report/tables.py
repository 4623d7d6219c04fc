"""Tables 1 to 4 of the paper with measured numbers beside the printed ones, from score files alone.

A score file fills cells by its rule and data set, and a row by its name. The rows of the paper go by their printed
names (`MotAdapt`, `Baseline + anchor`), in any spelling of capitals, spaces and signs; those of AD-Net also by the
names in VARIANTS, MULTI_SCALE and PRUNED. Files of other names get rows of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adnet_jax.report.entries import DAVIS, FBMS, VISAL, Entry, is_partial, remarks
from adnet_jax.report.grid import Cell, Column, Table, number, words

# Names of the rows of Table 1, ours first, then that of the authors' released file.
VARIANTS = {
  'baseline': ('baseline', 'base'),
  'intra_frame': ('intra_frame', 'intra'),
  'anchor': ('anchor', 'concat'),
  'anchor_diffusion': ('anchor_diffusion', 'inter'),
  'full': ('full', 'ad'),
}
# The variant that the paper speaks of without a number: a row of Table 1 only where there is a file of this name.
BOTH_RANDOM = 'both_frames_random'
MULTI_SCALE = ('adnet-multiscale', 'full-multiscale', 'ad-multiscale')
PRUNED = ('adnet-pruned', 'full-pruned', 'ad-pruned')
# Printed names -> further names, the best fit first. Table 4's AD-Net is the one with instance pruning.
_TABLE2_NAMES = {'AD-Net (multiple scales)': MULTI_SCALE, 'AD-Net + instance pruning': PRUNED}
_TABLE3_NAMES = {'AD-Net': ('AD-Net', *MULTI_SCALE)}
_TABLE4_NAMES = {'AD-Net': (*PRUNED, 'AD-Net', 'AD-Net + instance pruning')}

_SETTINGS = {'semi': 'first mask given', 'unsup': 'unsupervised'}
_FBMS_RULES = ('fbms-pooled', 'fbms-mean-pr', 'fbms-official')
_ABSENT = Cell('\N{EN DASH}')


@functools.cache
def printed() -> Mapping[str, Any]:
  """The figures of the paper's tables, in percent, MAE from 0 to 1."""
  return json.loads((Path(__file__).parents[1] / 'assets' / 'paper_tables.json').read_text(encoding='utf-8'))


def paper_tables(entries: Sequence[Entry]) -> tuple[Table, Table, Table, Table]:
  """Tables 1 to 4 with measured numbers where these score files have some, and `not measured` in the other cells."""
  return table1(entries), table2(entries), table3(entries), table4(entries)


def table1(entries: Sequence[Entry]) -> Table:
  """Ablation on DAVIS-2016: J and F of the five variants and their gain over the baseline, in percent.

  A file named BOTH_RANDOM makes a sixth row, for which the paper prints no number.
  """
  measured = {entry.name: entry for entry in entries if _slot(entry) == 'davis'}
  rows_printed = list(printed()['table1_davis_ablation'])
  names = {row['label']: VARIANTS[row['variant']] for row in rows_printed}
  if BOTH_RANDOM in measured:
    rows_printed.append({'label': 'Both frames random', 'J': None, 'F': None, 'J_gain': None, 'F_gain': None})
  found, _ = _match([row['label'] for row in rows_printed], names, list(measured))
  baseline = measured.get(found.get(rows_printed[0]['label'], ''))
  columns = [Column('variant', text=True)]
  for metric in 'JF':
    columns += _pair(metric, False)
    columns += _pair(f'{metric} over baseline', False)
  rows = []
  for row in rows_printed:
    entry = measured.get(found.get(row['label'], ''))
    cells = [words(row['label'])]
    for metric in 'JF':
      value, start = (one.number(f'{metric} mean') if one else None for one in (entry, baseline))
      gain = None if value is None or start is None else value - start
      cells += [_printed(row, metric, 2), _marked(number(value, 2, 'measured', scale=100), entry)]
      cells += [_printed(row, f'{metric}_gain', 2, sign=True)]
      cells += [number(gain, 2, 'measured', scale=100, sign=True)]
    rows.append(tuple(cells))
  title = 'Table 1. Ablation study on DAVIS-2016, percent'
  return Table(
    title, tuple(columns), tuple(rows), notes=_notes((label, [measured[name]]) for label, name in found.items())
  )


def table2(entries: Sequence[Entry]) -> Table:
  """Methods on DAVIS-2016 (J, F) and FBMS (F under each rule that may be meant), in percent."""
  slots = ['fbms-pooled', 'fbms-mean-pr']
  if any(_slot(entry) == 'fbms-official' for entry in entries):
    slots.append('fbms-official')
  used = _by_slot(entries, ('davis', *slots))
  columns = (
    Column('method', text=True),
    Column('setting', text=True),
    *_pair('DAVIS J', False),
    *_pair('DAVIS F', False),
    Column('printed', 'FBMS F', False),
    *(Column(slot, 'FBMS F', False) for slot in slots),
  )
  placed = list(_rows(printed()['table2_davis_fbms'], _TABLE2_NAMES, used))
  rows = []
  for name, row, have in placed:
    cells = [words(name), words(_SETTINGS[row['setting']]) if row else _ABSENT]
    for metric in 'JF':
      cells += [_printed(row, f'davis_{metric}', 1), _measured(have.get('davis'), f'{metric} mean')]
    cells += [_printed(row, 'fbms_F', 1), *(_measured(have.get(slot), 'F') for slot in slots)]
    rows.append(tuple(cells))
  note = (
    'No published program tells the rule behind the F of FBMS that the paper prints: the candidates stand side by side.'
  )
  return Table(
    'Table 2. DAVIS-2016 and FBMS, percent',
    columns,
    tuple(rows),
    notes=(note, *_notes((name, have.values()) for name, _, have in placed)),
  )


def table3(entries: Sequence[Entry]) -> Table:
  """Saliency on DAVIS-2016, FBMS and ViSal: MAE from 0 to 1, F in percent, by the rule adnet-saliency."""
  sets = {DAVIS: 'davis', FBMS: 'fbms', VISAL: 'visal'}
  used = _by_slot(entries, tuple(f'saliency {dataset}' for dataset in sets))
  columns = [Column('method', text=True), Column('kind', text=True)]
  for dataset in sets:
    columns += [*_pair(f'{dataset} MAE', True), *_pair(f'{dataset} F', False)]
  placed = list(_rows(printed()['table3_saliency'], _TABLE3_NAMES, used))
  rows = []
  for name, row, have in placed:
    cells = [words(name), words(row['kind']) if row else _ABSENT]
    for dataset, short in sets.items():
      entry = have.get(f'saliency {dataset}')
      cells += [_printed(row, f'{short}_mae', 3), _measured(entry, 'MAE', 3, 1)]
      cells += [_printed(row, f'{short}_F', 1), _measured(entry, 'F_max')]
    rows.append(tuple(cells))
  note = (
    'Measured: rule adnet-saliency, all pixels of all clips pooled, beta^2 = 1. Other papers take beta^2 = .3 and mean '
    'over frames: their F is another number.'
  )
  title = 'Table 3. Saliency, MAE and F in percent'
  return Table(
    title, tuple(columns), tuple(rows), notes=(note, *_notes((name, have.values()) for name, _, have in placed))
  )


def table4(entries: Sequence[Entry]) -> Table:
  """All measures of DAVIS-2016: mean, recall and decay of J and F, and T, in percent."""
  used = _by_slot(entries, ('davis',))
  measures = [(f'{metric} {key}', key == 'decay') for metric in 'JF' for key in ('mean', 'recall', 'decay')]
  columns = [Column('method', text=True)]
  for measure, lower in (*measures, ('T', True)):
    columns += _pair(measure, lower)
  placed = list(_rows(printed()['table4_davis_global']['rows'], _TABLE4_NAMES, used))
  rows = []
  for name, row, have in placed:
    cells = [words(name)]
    for measure, _ in measures:
      cells += [_printed(row, measure.replace(' ', '_'), 1), _measured(have.get('davis'), measure)]
    rows.append((*cells, _printed(row, 'T', 1), _measured(have.get('davis'), 'T mean')))
  truth = printed()['table4_davis_global']['ground_truth_T']
  notes = (
    'T: the paper prints 36.9 for AD-Net, where the site of DAVIS has .214 for its masks, by the program that the rule '
    'davis-matlab-master follows. Ties between polygons, which that program leaves open, move T by about .01 and do '
    f'not explain it. T of the ground truth is printed as {truth}.',
    'T is the mean over the ten clips of DAVIS-2016 whose objects keep their shape; J and F are means over all clips.',
    'The printed row of AD-Net is with instance pruning.',
  )
  title = 'Table 4. All measures of DAVIS-2016, percent'
  return Table(
    title, tuple(columns), tuple(rows), notes=(*notes, *_notes((name, have.values()) for name, _, have in placed))
  )


def unplaced(entries: Sequence[Entry]) -> list[str]:
  """For each score file that no table has a cell for, why."""
  reasons = []
  for entry in entries:
    if _slot(entry) is None:
      where = entry.dataset or 'an unknown data set'
      reasons.append(f'{entry.name}: no table of the paper has numbers by the rule {entry.rule} on {where}')
  return reasons


def _slot(entry: Entry) -> str | None:
  """The kind of cells that a file fills."""
  if entry.rule == 'davis2016':
    return 'davis' if entry.dataset == DAVIS else None
  if entry.rule == 'adnet-saliency':
    return f'saliency {entry.dataset}' if entry.dataset in (DAVIS, FBMS, VISAL) else None
  return entry.rule if entry.rule in _FBMS_RULES and entry.dataset == FBMS else None


def _by_slot(entries: Sequence[Entry], slots: Sequence[str]) -> dict[str, dict[str, Entry]]:
  """{name: {slot: entry}} of the files that fill these cells; ablations stay in Table 1."""
  ablations = {_letters(name) for variant, names in VARIANTS.items() if variant != 'full' for name in names}
  ablations |= {_letters(BOTH_RANDOM)} | {_letters(row['label']) for row in printed()['table1_davis_ablation'][:-1]}
  found: dict[str, dict[str, Entry]] = {}
  for entry in entries:
    slot = _slot(entry)
    if slot is not None and slot in slots and _letters(entry.name) not in ablations:
      found.setdefault(entry.name, {})[slot] = entry
  return found


def _rows(
  rows: Sequence[Mapping[str, Any]], further: Mapping[str, Sequence[str]], used: Mapping[str, Mapping[str, Entry]]
) -> Iterator[tuple[str, Mapping[str, Any] | None, Mapping[str, Entry]]]:
  """Printed rows with the files of each, then rows of our own: (name, printed row, {slot: entry})."""
  found, rest = _match([row['method'] for row in rows], further, list(used))
  for row in rows:
    yield row['method'], row, used.get(found.get(row['method'], ''), {})
  for name in rest:
    yield name, None, used[name]


def _match(
  labels: Sequence[str], further: Mapping[str, Sequence[str]], names: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
  """{printed label: name of a file} and the names without a printed row."""
  found, rest = {}, list(names)
  for label in labels:
    wanted = [_letters(one) for one in (*further.get(label, ()), label)]
    fitting = [name for name in rest if _letters(name) in wanted]
    if fitting:
      found[label] = min(fitting, key=lambda name: wanted.index(_letters(name)))
      rest.remove(found[label])
  return found, rest


def _letters(name: str) -> str:
  return re.sub(r'[\W_]', '', name).casefold()


def _pair(group: str, lower_is_better: bool) -> tuple[Column, Column]:
  return Column('printed', group, lower_is_better), Column('measured', group, lower_is_better)


def _printed(row: Mapping[str, Any] | None, key: str, digits: int, *, sign: bool = False) -> Cell:
  return _ABSENT if row is None or row[key] is None else number(row[key], digits, 'printed', sign=sign)


def _measured(entry: Entry | None, key: str, digits: int = 1, scale: float = 100) -> Cell:
  return _marked(number(entry.number(key) if entry else None, digits, 'measured', scale=scale), entry)


def _marked(cell: Cell, entry: Entry | None) -> Cell:
  # A number over other clips or frames must not pass as the printed one's twin.
  partial = entry is not None and cell.value is not None and is_partial(entry)
  return dataclasses.replace(cell, text=f'{cell.text}*') if partial else cell


def _notes(rows: Iterable[tuple[str, Iterable[Entry]]]) -> tuple[str, ...]:
  """Where the measured numbers of each row come from, a line a file."""
  lines = []
  for label, entries in rows:
    for entry in entries:
      facts = [f'rule {entry.rule}', f'protocol {entry.scores.get("protocol") or "unknown"}']
      facts.append(f'{len(entry.clips)} clips')
      if entry.scores.get('stability'):
        facts.append(f'T by {entry.scores["stability"]}')
      mark = '* ' if is_partial(entry) else ''
      place = '' if _letters(entry.name) == _letters(label) else f' in the row {label}'
      lines.append(f'{mark}{entry.name}{place}: {", ".join([*facts, *remarks(entry)])}')
  return tuple(lines)
