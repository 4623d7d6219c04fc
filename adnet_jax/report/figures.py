"""The paper's figures that show scores and masks, drawn for print; knows nothing of pages and models."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from adnet_jax.clips import find_clips, name_list
from adnet_jax.errors import DataError, UsageError
from adnet_jax.images import read_image
from adnet_jax.masks import load_mask_image
from adnet_jax.report.entries import Entry, group, lower_is_better
from adnet_jax.report.pictures import find_frames
from adnet_jax.writers import draw_overlay, reason

# Ours first; colours that also differ for colour-blind readers and in grey (Okabe and Ito).
COLOURS = ('#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#8c8c8c', '#6f4e9c')
_STYLE = {
  'axes.edgecolor': '#777777',
  'axes.grid': True,
  'axes.axisbelow': True,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlesize': 11,
  'axes.titleweight': 'bold',
  'figure.dpi': 150,
  'font.size': 9,
  'grid.color': '#e4e4e4',
  'grid.linewidth': 0.7,
  'legend.frameon': False,
  'legend.fontsize': 8,
  'lines.linewidth': 1.8,
  'savefig.dpi': 150,
  'svg.hashsalt': 'adnet-jax',  # the same figure gives the same file
}


@contextlib.contextmanager
def style() -> Iterator[None]:
  """The look that all figures of the project have; drawing and saving belong inside of it.

  Raises:
    UsageError: matplotlib is not installed.
  """
  matplotlib = _matplotlib()
  with matplotlib.rc_context({**matplotlib.rcParamsDefault, 'backend': 'agg', **_STYLE}):
    yield


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, np.ndarray]:
  """A figure of `width` x `height` inches and its axes, an array (rows, columns); keeps no state behind."""
  _matplotlib()
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, path: str | Path) -> Path:
  """Writes a figure whole or not at all; the ending decides between png, svg and pdf.

  Raises:
    UsageError: another ending.
    DataError: the place cannot be written.
  """
  path = Path(path)
  kind = path.suffix.lower().removeprefix('.')
  if kind not in ('png', 'svg', 'pdf'):
    raise UsageError('unknown format of a figure', path, 'png, svg or pdf')
  buffer = io.BytesIO()
  with style():
    # Without the date, the same figure gives the same file.
    dates = {'svg': {'Date': None}, 'pdf': {'CreationDate': None}}
    figure.savefig(buffer, format=kind, metadata=dates.get(kind))
  temporary = path.with_name(f'.figure-{os.getpid()}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise DataError(f'figure cannot be written: {reason(error)}', path, 'give another place') from error
  return path


def precision_recall(entries: Sequence[Entry]) -> Any:
  """Fig. 4: precision over recall of heat maps, a panel for each data set and rule.

  Raises:
    DataError: none of the files has a curve, which the saliency rules give.
  """
  panels = {key: [entry for entry in entries if _curve(entry)] for key, entries in group(entries).items()}
  panels = {key: entries for key, entries in panels.items() if entries}
  if not panels:
    raise DataError('no score file with a curve', None, 'score heat maps with --rule adnet-saliency')
  with style():
    figure, axes = new_figure(3.6 * len(panels) + 0.4, 3.6, 1, len(panels))
    for ax, ((rule, dataset), members) in zip(axes[0], panels.items(), strict=True):
      for entry, colour in zip(members, itertools.cycle(COLOURS)):
        curve = _curve(entry) or {}
        best = entry.number('F_max')
        label = entry.name if best is None else f'{entry.name} (F {best:.3f})'
        ax.plot(curve['recall'], curve['precision'], color=colour, label=_verbatim(label))
      ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel='recall', ylabel='precision', aspect='equal')
      ax.set_title(_verbatim(f'{dataset or "unknown data set"}, {rule}'))
      ax.legend(loc='lower left')
  return figure


def per_sequence(entries: Sequence[Entry], key: str = 'J mean', ours: str | None = None) -> Any:
  """Figs. 6 and 7: one number of each clip, bars for the others and a line for ours, clips sorted by ours.

  Args:
    entries: of one rule.
    key: the number's name, such as 'J mean' or 'F mean'.
    ours: name of the file that is the line; None for the first.

  Raises:
    UsageError: no file of that name, or files of different rules.
    DataError: ours has no such number.
  """
  line, others = _ours(entries, ours)
  numbers = {clip: line.number(key, clip) for clip in line.clips}
  defined = {clip: value for clip, value in numbers.items() if value is not None}
  if not defined:
    raise DataError(f'no {key} of clips', line.path, 'score with that metric')
  clips = sorted(defined, key=lambda clip: defined[clip], reverse=not lower_is_better(key))
  with style():
    figure, axes = new_figure(max(5, 0.45 * len(clips) + 1.2), 3.4)
    ax, places = axes[0, 0], np.arange(len(clips))
    width = 0.8 / max(1, len(others))
    for index, (entry, colour) in enumerate(zip(others, itertools.cycle(COLOURS[1:]))):
      heights = [np.nan if value is None else value for value in (entry.number(key, clip) for clip in clips)]
      offset = (index - (len(others) - 1) / 2) * width
      ax.bar(places + offset, heights, width * 0.92, color=colour, label=_verbatim(entry.name))
    values = [defined[clip] for clip in clips]
    ax.plot(places, values, color=COLOURS[0], marker='o', markersize=4, label=_verbatim(line.name))
    ax.set_xticks(places, [_verbatim(clip) for clip in clips], rotation=40, ha='right', rotation_mode='anchor')
    ax.set(ylabel=key, xlim=(-0.7, len(clips) - 0.3))
    ax.set_title(f'{key} of each clip, rule {line.rule}')
    ax.grid(axis='x', visible=False)
    figure.legend(loc='outside lower center', ncols=min(8, len(entries)))
  return figure


def over_time(entries: Sequence[Entry], clip: str, metric: str = 'J') -> Any:
  """One clip's J, or F or T, of each counted frame.

  Raises:
    DataError: none of the files has it.
  """
  _ours(entries, None)
  lines = [(entry, entry.per_frame(metric, clip)) for entry in entries]
  if not any(values for _, values in lines):
    raise DataError(f'no {metric} of frames', clip, 'score with that metric')
  with style():
    figure, axes = new_figure(7, 2.4)
    for (entry, values), colour in zip(lines, itertools.cycle(COLOURS)):
      if values:
        heights = [np.nan if value is None else value for value in values]
        places = positions(entry.clips[clip]['frames'])
        axes[0, 0].plot(places, heights, color=colour, label=_verbatim(entry.name))
    axes[0, 0].set(xlabel='frame', ylabel=metric, title=_verbatim(clip))
    if metric != 'T':
      axes[0, 0].set_ylim(0, 1.02)
    figure.legend(loc='outside right upper')
  return figure


def positions(frames: Sequence[str]) -> list[int]:
  """Where frames lie on an axis of time: their numbers, or their order where names are no numbers."""
  return [int(frame) for frame in frames] if all(map(str.isdecimal, frames)) else list(range(len(frames)))


def overlays(rows: Mapping[str, Sequence[tuple[str, np.ndarray, np.ndarray]]]) -> Any:
  """Figs. 5, 8, 9: a row for each clip, its frames with the mask tinted and outlined.

  Args:
    rows: {clip: [(frame's name, rgb uint8 (h, w, 3), mask bool (h, w))]}.
  """
  columns = max(len(frames) for frames in rows.values())
  shapes = [rgb.shape for frames in rows.values() for _, rgb, _ in frames]
  height = float(np.median([h / w for h, w, _ in shapes]))
  with style():
    figure, axes = new_figure(2.3 * columns, (2.3 * height + 0.22) * len(rows), len(rows), columns)
    for line, (clip, frames) in zip(axes, rows.items(), strict=True):
      for ax in line:
        ax.axis('off')
      for ax, (name, rgb, mask) in zip(line, frames):
        ax.imshow(draw_overlay(rgb, mask))
        ax.set_title(_verbatim(name), fontsize=7, fontweight='normal', pad=2)
      line[0].set_title(_verbatim(f'{clip}  {frames[0][0]}'), fontsize=7, fontweight='normal', pad=2)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
  return figure


def overlay_rows(
  frames: str | Path, masks: str | Path, clips: Sequence[str] | None = None, *, count: int = 5, width: int = 480
) -> dict[str, list[tuple[str, np.ndarray, np.ndarray]]]:
  """Reads what `overlays` draws: of each clip `count` frames, evenly spread over those with a picture and a mask.

  Args:
    frames: folder with CLIP/NNNNN.jpg.
    masks: folder with CLIP/NNNNN.png.
    clips: in this order; None for all that have masks.
    count: frames of a clip.
    width: pictures are scaled down to it, in pixels.

  Raises:
    DataError: clips without frames or masks, or damaged files.
  """
  pictures, predictions = find_frames(Path(frames)), find_clips(Path(masks), 'masks')
  wanted = list(predictions) if clips is None else list(clips)
  common = {clip: [stem for stem in predictions.get(clip, {}) if stem in pictures.get(clip, {})] for clip in wanted}
  bare = [clip for clip, stems in common.items() if not stems]
  if bare:
    raise DataError('no frame with both a picture and a mask', name_list(bare), f'look into {frames} and {masks}')
  rows = {}
  for clip, stems in common.items():
    chosen = dict.fromkeys(stems[round(place)] for place in np.linspace(0, len(stems) - 1, count))
    rows[clip] = [(stem, *_small(pictures[clip][stem], predictions[clip][stem], width)) for stem in chosen]
  return rows


def _small(picture: Path, mask: Path, width: int) -> tuple[np.ndarray, np.ndarray]:
  rgb, image = read_image(picture), load_mask_image(mask)
  found = image.mask(None if image.binary else 0.5)
  h, w = rgb.shape[:2]
  size = (min(w, width), max(1, round(h * min(w, width) / w)))
  small = cv2.resize(found.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
  return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), small


def _ours(entries: Sequence[Entry], ours: str | None) -> tuple[Entry, list[Entry]]:
  if len({entry.rule for entry in entries}) != 1:
    raise UsageError('files of different rules in one figure', None, 'give score files of one rule')
  line = entries[0] if ours is None else next((entry for entry in entries if entry.name == ours), None)
  if line is None:
    raise UsageError('no score file of this name', ours, f'one of {", ".join(entry.name for entry in entries)}')
  return line, [entry for entry in entries if entry is not line]


def _curve(entry: Entry) -> Mapping[str, Sequence[float]] | None:
  curve = entry.scores['dataset'].get('curve')
  return curve if isinstance(curve, Mapping) and curve.get('recall') and curve.get('precision') else None


def _verbatim(text: str) -> str:
  # matplotlib reads $...$ as mathematics.
  return text.replace('$', r'\$')


def _matplotlib() -> Any:
  try:
    import matplotlib
  except ImportError as error:
    advice = "pip install 'adnet-jax[report]'"
    raise UsageError('figures need matplotlib, which is not installed', advice=advice) from error
  return matplotlib
