"""Draws what embeddings find alike, Figs. 1, 3 and 10 of the paper, from arrays; knows no model and no data set."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adnet_jax.report.figures import COLOURS, new_figure, style
from adnet_jax.similarity import Place

# What a map shows, as its figure says.
MAPS = {
  'product': 'scaled product $X_0X_t^\\top/\\sqrt{c}$',
  'softmax': "softmax of $X_0X_t^\\top/\\sqrt{c}$ over the current frame's pixels ($P$, Eq. 2)",
}
# Of chosen pixels and the frames of their maps; the first three are the paper's.
PIXEL_COLOURS = ('#e6194b', '#1a9850', '#7b3fb5', '#e08214', '#1f78b4')


def draw_drift(drifts: Mapping[str, Sequence[tuple[int, float, int]]], note: str = '') -> Any:
  """Fig. 3: mean cosine distance to the anchor's foreground against frame distance, a line a model.

  Args:
    drifts: `similarity.mean_over_clips` by the line's label, ours first.
    note: said in the figure, such as that no baseline was given.
  """
  most = max(point[2] for points in drifts.values() for point in points)
  with style():
    figure, panels = new_figure(6.4, 4.4, 2)
    axes, below = panels[:, 0]
    axes.get_gridspec().set_height_ratios((5, 1))
    below.sharex(axes)
    axes.tick_params(labelbottom=False)
    for (label, points), colour in zip(drifts.items(), itertools.cycle(COLOURS)):
      x, y, counts = (np.array(values) for values in zip(*points))
      # Where half of the clips have ended, the mean follows which are left rather than what the model does.
      ended = np.flatnonzero(2 * counts < most)
      steady = ended[0] if ended.size else len(x)
      axes.plot(x[:steady], y[:steady], color=colour, label=label)
      axes.plot(x[max(steady - 1, 0) :], y[max(steady - 1, 0) :], color=colour, linewidth=1, linestyle=':')
      below.step(x, counts, where='mid', color=colour, linewidth=1)
    axes.set(ylabel="mean cosine distance\nto the anchor's foreground", ylim=(0, None))
    axes.legend(loc='upper left')
    below.set(ylabel='clips', ylim=(0, most * 1.15), xlabel='frame distance from the anchor')
    for each in (axes, below):
      each.margins(x=0)
    text = 'dotted: from where fewer than half of the clips count'
    axes.set_title('; '.join(filter(None, (note, text))), loc='right', fontsize=7, fontweight='normal', color='0.4')
  return figure


def draw_anchor_pixels(
  clip: str,
  names: tuple[str, str],
  frames: tuple[np.ndarray, np.ndarray],
  points: Sequence[Place],
  maps: np.ndarray,
  kind: str,
) -> Any:
  """Fig. 1: chosen pixels of the anchor, the current frame, and a map over it for each, framed in its pixel's colour.

  Args:
    clip: its name.
    names: of the anchor and the current frame.
    frames: these two, (H, W, 3) uint8 RGB.
    points: n pixels of the anchor.
    maps: (n, h, w) over the current frame.
    kind: a key of MAPS.
  """
  anchor, current = frames
  count = 2 + len(points)
  with style():
    figure, axes = new_figure(3.2 * count, 3.2 * anchor.shape[0] / anchor.shape[1] + 0.75, 1, count)
    panels = axes[0]
    show(panels[0], anchor, f'anchor frame {names[0]}')
    show(panels[1], current, f'current frame {names[1]}')
    for point, panel, found, colour in zip(points, panels[2:], maps, itertools.cycle(PIXEL_COLOURS)):
      panels[0].plot(point.x, point.y, 's', color=colour, markersize=8, markeredgecolor='white')
      show_map(panel, found, current.shape[:2])
      panel.set_title(_range_of(found), fontsize=9, fontweight='normal')
      panel.spines[:].set(visible=True, color=colour, linewidth=4)
    title = f'{verbatim(clip)}: similarity of anchor pixels to the current frame, {MAPS[kind]}'
    figure.suptitle(title, fontsize=11)
  return figure


class Correspondence(NamedTuple):
  """A panel group of Fig. 10.

  Attributes:
    clip: its name.
    frame: name of the distant frame.
    anchor: (H, W, 3) uint8 RGB.
    distant: (H, W, 3) uint8 RGB.
    pixel: chosen in the distant frame.
    map: (h, w) over the anchor.
  """

  clip: str
  frame: str
  anchor: np.ndarray
  distant: np.ndarray
  pixel: Place
  map: np.ndarray


def draw_correspondences(found: Sequence[Correspondence], kind: str, seed: int, columns: int = 2) -> Any:
  """Fig. 10: distant frame with its pixel, anchor, and the map over the anchor, side by side, so many clips a row.

  Args:
    found: at least one.
    kind: a key of MAPS.
    seed: that the pixels were drawn with.
    columns: clips a row.
  """
  columns = min(columns, len(found))
  rows = -(-len(found) // columns)
  aspect = max(one.anchor.shape[0] / one.anchor.shape[1] for one in found)
  with style():
    figure, axes = new_figure(7.2 * columns, (2.4 * aspect + 0.22) * rows + 0.6, rows, 3 * columns)
    panels = axes.reshape(-1, 3)
    for panel in panels[len(found) :].ravel():
      panel.set_axis_off()
    for (left, middle, right), one in zip(panels, found):
      show(left, one.distant, verbatim(f'{one.clip}, frame {one.frame}'))
      for colour, width in (('white', 3.5), ('#1f4fff', 2)):
        left.plot(one.pixel.x, one.pixel.y, '+', color=colour, markersize=13, markeredgewidth=width)
      show(middle, one.anchor, 'anchor')
      show(right, one.anchor, _range_of(one.map))
      show_map(right, one.map, one.anchor.shape[:2], alpha=0.6)
    where = f'a foreground pixel of a distant frame (cross, drawn with seed {seed}) to the anchor'
    figure.suptitle(f'Similarity of {where}:\n{MAPS[kind]}', fontsize=11)
  return figure


def show(axes: Any, image: np.ndarray, title: str) -> None:
  """A picture without ticks."""
  axes.imshow(image)
  axes.set_title(title, fontsize=9, fontweight='normal')
  axes.set(xticks=[], yticks=[])
  axes.spines[:].set_visible(False)


def show_map(axes: Any, found: np.ndarray, frame: tuple[int, int], alpha: float = 1.0) -> None:
  """A map (h, w) over a frame (H, W), corner pixels on corner pixels, from its own least to its own largest value."""
  steps = [(length - 1) / max(count - 1, 1) for count, length in zip(found.shape, frame)]
  x, y = steps[1] / 2, steps[0] / 2
  extent = (-x, frame[1] - 1 + x, frame[0] - 1 + y, -y)
  axes.imshow(found, cmap='inferno', alpha=alpha, extent=extent, interpolation='bilinear')
  axes.set(xticks=[], yticks=[], xlim=(-0.5, frame[1] - 0.5), ylim=(frame[0] - 0.5, -0.5))


def verbatim(text: str) -> str:
  # matplotlib reads $...$ as mathematics.
  return text.replace('$', r'\$')


def _range_of(found: np.ndarray) -> str:
  return f'{found.min():.3g} (dark) to {found.max():.3g} (bright)'
