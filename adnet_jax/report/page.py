"""One HTML page from score files that opens from disk and asks nobody for anything; measures nothing itself."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from adnet_jax import __version__
from adnet_jax.errors import DataError, UsageError
from adnet_jax.report import compare, grid, html, tables
from adnet_jax.report.contents import describe_group
from adnet_jax.report.entries import Entry, group, read_entries
from adnet_jax.report.pictures import Picture, strips
from adnet_jax.writers import reason

_COLOURS = 8


def write_report(
  score_files: Sequence[str | Path],
  output: str | Path,
  *,
  frames: str | Path | None = None,
  truth: str | Path | None = None,
  masks: Mapping[str, str | Path] | None = None,
  overwrite: bool = False,
) -> None:
  """Writes a page that shows score files side by side: tables, comparisons, charts, and the worst frames of each clip.

  Files of one rule and data set are compared, the first with each of the others; those of different rules never are.

  Args:
    score_files: in the order in which they are shown; see `entries.read_entries` for their names.
    output: the page, one file.
    frames: folder with CLIP/NNNNN.jpg, for the pictures of the worst frames. Pictures need `frames`, `truth` and
      `masks`; without these the numbers are shown alone.
    truth: folder of annotations with CLIP/NNNNN.png.
    masks: {name of a score file: folder that it is the score of}; a file without one has no pictures.
    overwrite: replace an earlier page.

  Raises:
    UsageError: no score file, the page exists, masks for a name that no score file has, part of what pictures need,
      or jinja2 is not installed.
    DataError: what is no score file, two of one name and rule, frames or masks that are not there or are others than
      those scored, or a place that cannot be written.
  """
  output = Path(output)
  if not score_files:
    raise UsageError('no score file', None, 'give files that adnet score wrote')
  # Before the check of `overwrite`, which must not lose what took minutes to measure.
  if any(Path(path).resolve() == output.resolve() for path in score_files):
    raise UsageError('the page would replace a score file', output, 'give another -o')
  if output.exists() and not overwrite:
    raise UsageError('output exists', output, 'remove it or add --overwrite')
  if output.is_dir():
    raise UsageError('the page must be a file, not a folder', output, 'give -o PAGE.html')
  given = {'--frames': frames, '--truth': truth, '--masks': masks}
  absent = [option for option, value in given.items() if not value]
  if 0 < len(absent) < len(given):
    raise UsageError('pictures need frames, truth and masks', f'without {", ".join(absent)}', 'give all three or none')
  entries = read_entries(score_files)
  folders = _folders(entries, masks or {})
  pictures: dict[Entry, dict[str, list[Picture]]] = {}
  if frames and truth:
    pictures = {entry: strips(entry, Path(frames), Path(truth), folder) for entry, folder in folders.items()}
  _write(output, _page(entries, pictures))


def _folders(entries: Sequence[Entry], masks: Mapping[str, str | Path]) -> dict[Entry, Path]:
  """Which score file each folder of masks belongs to: by the file's stem, else by the name it is shown under."""
  folders = {}
  for name, folder in masks.items():
    named = [entry for entry in entries if entry.path.stem == name] or [
      entry for entry in entries if entry.name == name
    ]
    if not named:
      known = ', '.join(dict.fromkeys(entry.name for entry in entries))
      raise UsageError('masks for a name that no score file has', name, f'one of {known}')
    fitting = [entry for entry in named if any(entry.per_frame('J', clip) for clip in entry.clips)]
    if not fitting:
      raise UsageError('no J of each frame to find the worst by', name, 'score by davis2016, or leave out its masks')
    if len(fitting) > 1:
      files = ', '.join(str(entry.path) for entry in fitting)
      raise UsageError(
        'masks for a name of several score files', f'{name}: {files}', "give the file's name without .json"
      )
    folders[fitting[0]] = Path(folder)
  return folders


def _page(entries: Sequence[Entry], pictures: Mapping[Entry, Mapping[str, list[Picture]]]) -> str:
  names = dict.fromkeys(entry.name for entry in entries)
  colours = {name: index % _COLOURS for index, name in enumerate(names)}
  groups = [
    describe_group(f'g{index}', members, colours, pictures) for index, members in enumerate(group(entries).values(), 1)
  ]  # fmt: skip
  paper = [
    (table, any(cell.kind == 'measured' for row in table.rows for cell in row))
    for table in tables.paper_tables(entries)
  ]
  style, script = html.part('style.css'), html.part('sort.js')
  return html.render(
    'page.html.j2',
    title='Scores of ' + ', '.join(names),
    version=__version__,
    colours=colours,
    groups=groups,
    paper=paper,
    unplaced=tables.unplaced(entries),
    table_html=grid.to_html,
    style=style,
    script=script,
    policy=_policy(style, script),
    resamples=f'{compare.RESAMPLES:,}',
    fewest=compare.FEWEST_CLIPS,
  )


def _policy(style: str, script: str) -> str:
  """What the page may do: show pictures that lie in it, and run its own style sheet and script, known by their hash."""

  def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

  return (
    f"default-src 'none'; img-src data:; style-src {digest(style)}; script-src {digest(script)}; "
    "base-uri 'none'; form-action 'none'"
  )


def _write(path: Path, text: str) -> None:
  temporary = path.with_name(f'.report-{os.getpid()}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Names may hold what no encoding can write, such as half of a surrogate pair.
    temporary.write_bytes(text.encode('utf-8', errors='replace'))
    os.replace(temporary, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise DataError(f'the page cannot be written: {reason(error)}', path, 'give another -o') from error
