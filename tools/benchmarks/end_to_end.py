"""Section `end-to-end`: a clip from its files to masks, by stage, beside plain loops over its frames."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.benchmarks import oracle as oracles
from tools.benchmarks.measuring import ROOT, Row, measure, size


def add_options(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--model', help='end-to-end: name or file; default: the bundled model')
  add('--input', help='end-to-end: clip; default: the bundled one')
  add('--frames', type=int, help='end-to-end: only the first so many')
  add('--network-size', type=size, metavar='WxH', help='end-to-end; default: by model and clip')
  add('--overlay', action='store_true', help='end-to-end: ours writes the overlay too')
  add('--without-loops', action='store_true', help='end-to-end: ours alone')


def run(options: argparse.Namespace) -> list[Row]:
  """Ours by stage (stages overlap), a plain loop of ours, the oracle's loop, and reading alone, in turns."""
  from adnet_jax import environment, errors, pipeline, segmenter, video, weights

  environment.keep_memory()  # as the command does; the oracle in this process profits too
  try:
    runner = segmenter.Segmenter.from_pretrained(
      options.model or weights.DEFAULT_MODEL, device=options.device, dtype=options.dtype, size=options.network_size
    )
  except errors.AdnetError as error:
    return [{'what': f'not measured: {error}'}]
  source = video.open_source(
    options.input or ROOT / 'adnet_jax/assets/sample/JPEGImages/480p/astronaut', end=options.frames
  )
  overlay = options.overlay and importlib.util.find_spec('av') is not None
  outputs = pipeline.Outputs(overlay=overlay, overwrite=True)
  summaries: list[dict[str, Any]] = []
  base = runner.base_size(next(iter(source)).image)
  kind = runner.model.devices[0].platform
  with tempfile.TemporaryDirectory() as folder:
    out = Path(folder)

    def ours() -> None:
      summaries.append(pipeline.segment_clip(runner, source, out / 'ours', outputs))

    functions: dict[str, Callable[[], Any]] = {'ours': ours}
    absent = ''
    if not options.without_loops:
      functions['a plain loop of ours'] = lambda: _plain_loop(runner, source, out / 'plain')
      oracle, absent = oracles.of_architecture(runner.model.metadata.architecture, kind)
      if oracle is not None:
        functions['a loop of PyTorch, float32'] = oracles.clip_function(
          oracle, kind, runner.model.metadata.normalization, source, base, out / 'oracle'
        )
      functions['reading alone'] = lambda: sum(1 for _ in source)
    timings = measure(functions, options.repeats)
  (width, height), frames = base, summaries[0]['frames']
  title = f'{frames} frames, network at {width}x{height} on {kind}'
  rows = [{**t.row(f'{title}: {what}'), 'fps': frames / min(t.wall)} for what, t in timings.items()]
  best = min(summaries[1:], key=lambda summary: summary['seconds']['total'])
  stages = {stage: spent for stage, spent in best['seconds'].items() if spent and stage != 'total'}
  rows[1:1] = [{'what': f'  {stage}', 'fps': frames / spent, 'best s': spent} for stage, spent in stages.items()]
  rows.insert(1, {'what': f'  limited by {best["limited_by"]}'})
  mine = timings['ours']
  for what, timing in list(timings.items())[1:]:
    ratio = {'best s': min(mine.wall) / min(timing.wall), 'best CPU s': min(mine.cpu) / min(timing.cpu)}
    rows.append({'what': f'ratio, ours to {what}', **ratio})
  return [*rows, *([{'what': f'PyTorch: not measured, {absent}'}] if absent else [])]


def _plain_loop(runner: Any, source: Any, out: Path) -> None:
  from adnet_jax import writers

  session = None
  for frame in source:
    session = session or runner.session(frame.image)
    writers.write_mask(out / f'{frame.name}.png', session.step(frame.image))
