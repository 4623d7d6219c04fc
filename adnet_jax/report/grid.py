"""Tables of text and numbers, written as Markdown or HTML; knows nothing of what stands in them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from adnet_jax.report.html import render

MISSING = 'not measured'


@dataclass(frozen=True)
class Column:
  """A column; those beside each other with one `group` share a heading.

  Attributes:
    label: heading.
    group: heading over several columns; '' for none.
    lower_is_better: True, False, or None where neither is.
    text: whether it holds words, sorted by the alphabet.
  """

  label: str
  group: str = ''
  lower_is_better: bool | None = None
  text: bool = False

  @property
  def title(self) -> str:
    """Heading with its group, which tells the columns of a table apart."""
    return f'{self.group} {self.label}'.strip()


@dataclass(frozen=True)
class Cell:
  """What stands in a cell.

  Attributes:
    text: as it is read.
    value: by which it is sorted; None comes last.
    kind: of number, for the style: 'printed', 'measured', 'missing', 'best', 'clear', 'name' or ''.
    link: place on the page that the text leads to.
    colour: number of the file whose colour stands before the text.
  """

  text: str
  value: float | str | None = None
  kind: str = ''
  link: str | None = None
  colour: int | None = None


@dataclass(frozen=True)
class Table:
  """A table of which each row has a cell for each column.

  Attributes:
    title: above it.
    columns: in order.
    rows: in order; sorted at will by the reader.
    foot: rows that stay at the end.
    notes: sentences below it.
  """

  title: str
  columns: tuple[Column, ...]
  rows: tuple[tuple[Cell, ...], ...]
  foot: tuple[tuple[Cell, ...], ...] = ()
  notes: tuple[str, ...] = ()

  @property
  def groups(self) -> list[tuple[str, list[tuple[int, Column]]]]:
    """The headings over the columns, each with the numbered columns below it; empty where no column has one."""
    runs = itertools.groupby(enumerate(self.columns), lambda numbered: numbered[1].group)
    found = [(name, list(columns)) for name, columns in runs]
    return found if any(name for name, _ in found) else []


def words(text: str, **rest) -> Cell:
  """A cell of words."""
  return Cell(text, text.casefold(), 'name', **rest)


def number(value: float | None, digits: int, kind: str = '', *, scale: float = 1, sign: bool = False) -> Cell:
  """A cell of a number; MISSING where there is none.

  Args:
    value: to write.
    digits: after the point.
    kind: of number.
    scale: 100 writes a share as percent.
    sign: write a plus too.
  """
  if value is None:
    return Cell(MISSING, None, 'missing')
  text = f'{value * scale:{"+" if sign else ""}.{digits}f}'
  # What is rounded to nothing has no sign.
  text = re.sub(r'^[-+](0(\.0*)?)$', r'\1', text)
  return Cell(text, value * scale, kind)


def to_markdown(tables: Sequence[Table]) -> str:
  """The tables one below the other, as GitHub and others read them; markup in names is shown as text."""
  return '\n\n'.join(_markdown(table) for table in tables) + '\n'


def to_html(table: Table) -> str:
  """The table as an HTML element `table` without its title and notes; `page` has the script that sorts it.

  Raises:
    UsageError: jinja2 is not installed.
  """
  return render('table.html.j2', table=table)


def _markdown(table: Table) -> str:
  lines = [f'### {_plain(table.title)}', '']
  lines.append(_line([column.title for column in table.columns]))
  lines.append(_line(['---' if column.text else '---:' for column in table.columns], escape=False))
  lines += [_line([cell.text for cell in row]) for row in (*table.rows, *table.foot)]
  if table.notes:
    lines += ['', *(f'- {_plain(note)}' for note in table.notes)]
  return '\n'.join(lines)


def _line(cells: Sequence[str], *, escape: bool = True) -> str:
  return '| ' + ' | '.join(_plain(cell) if escape else cell for cell in cells) + ' |'


def _plain(text: str) -> str:
  return re.sub(r'([\\`*_\[\]<>|#&])', r'\\\1', ' '.join(text.split()))
