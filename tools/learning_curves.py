r"""Learning curves of one or several trainings as one picture: the loss, and validation scores where there are any.

  python tools/learning_curves.py runs/compact -o curves.svg
  python tools/learning_curves.py baseline=DIR/seed-0/baseline full=DIR/seed-0/full -o curves.png

Reads the train.jsonl of each work folder, which every training writes; a run that is still going on is drawn so far.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package as it stands here

from adnet_jax import exits, options  # noqa: E402
from adnet_jax.errors import DataError  # noqa: E402
from adnet_jax.report import figures  # noqa: E402

# The share of a run that a point of the loss is the mean of: single steps see other samples each.
SMOOTHED = 0.1


class Run(NamedTuple):
  """What a training left: steps done and losses, arrays of one length; {'J': [(steps done, score), ...], 'F': ...}."""

  name: str
  steps: np.ndarray
  losses: np.ndarray
  scores: dict[str, list[tuple[int, float]]]


def read_run(name: str, workdir: Path) -> Run:
  """Reads WORKDIR/train.jsonl; steps that a resumed run did again count once, as they were done last.

  Raises:
    DataError: no such file, nothing in it, or something else.
  """
  path = workdir / 'train.jsonl'
  try:
    lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
    of_step = {int(line['step']): line for line in lines}
  except OSError as error:
    raise DataError('no training here', path, "give a training's work folder") from error
  except (ValueError, KeyError, TypeError) as error:
    raise DataError('not the lines of a training', path, "give a training's work folder") from error
  if not of_step:
    raise DataError('no step was done yet', path, 'wait for the first one')
  steps = sorted(of_step)
  scores: dict[str, list[tuple[int, float]]] = {}
  for step in steps:
    for metric, value in (of_step[step].get('validation') or {}).items():
      if value is not None:
        scores.setdefault(metric, []).append((step + 1, float(value)))
  # A skipped step has no finite loss.
  losses = np.array([np.nan if of_step[step].get('loss') is None else of_step[step]['loss'] for step in steps], float)
  finite = np.isfinite(losses)
  return Run(name, np.array(steps)[finite] + 1, losses[finite], scores)


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
  """Means over the last `window` values, over fewer at the beginning; of the same length."""
  sums = np.concatenate([[0.0], np.cumsum(values)])
  end = np.arange(1, len(values) + 1)
  start = np.maximum(0, end - window)
  return (sums[end] - sums[start]) / (end - start)


def draw(runs: Sequence[Run]) -> Any:
  """A figure with the losses and one panel more for each validation score."""
  metrics = sorted({metric for run in runs for metric in run.scores}, key=lambda metric: (metric != 'J', metric))
  with figures.style():
    figure, axes = figures.new_figure(4.2 * (1 + len(metrics)) + 0.4, 3.4, 1, 1 + len(metrics))
    panels = axes[0]
    for run, colour in _coloured(runs):
      window = max(1, round(SMOOTHED * len(run.losses)))
      panels[0].plot(run.steps, smoothed(run.losses, window), color=colour, label=run.name)
      for panel, metric in zip(panels[1:], metrics, strict=True):
        if metric in run.scores:
          panel.plot(*zip(*run.scores[metric], strict=True), color=colour, marker='o', markersize=3, label=run.name)
    panels[0].set(title=f'loss (mean over {SMOOTHED:.0%} of the steps)', xlabel='steps', ylim=(0, None))
    for panel, metric in zip(panels[1:], metrics, strict=True):
      panel.set(title=f'validation {metric}', xlabel='steps')
    panels[0].legend(loc='upper right')
  return figure


def _coloured(runs: Sequence[Run]) -> Iterator[tuple[Run, str]]:
  return zip(runs, itertools.cycle(figures.COLOURS))


def _run(a: argparse.Namespace) -> None:
  runs = [read_run(*(options.named(text) if '=' in text else (Path(text).name, Path(text)))) for text in a.runs]
  print(figures.save(draw(runs), a.output))
  for run in runs:
    scores = ''.join(f', {metric} {values[-1][1]:.3f}' for metric, values in run.scores.items())
    last = smoothed(run.losses, max(1, round(SMOOTHED * len(run.losses))))[-1:]
    print(f'{run.name}: {len(run.steps)} steps{"".join(f", loss {value:.4f}" for value in last)}{scores}')


def main(argv: list[str] | None = None) -> int:
  """Runs the tool and returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('runs', nargs='+', metavar='[NAME=]WORKDIR', help='of a training; the name defaults to its own')
  parser.add_argument('-o', '--output', type=Path, required=True, metavar='FILE', help='.svg, .png or .pdf')
  parser.add_argument('--debug', action='store_true', help='print the traceback of an error')
  arguments = parser.parse_args(argv)
  return exits.guarded(lambda: _run(arguments), debug=arguments.debug)


if __name__ == '__main__':
  sys.exit(main())
