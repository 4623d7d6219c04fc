"""Section `end-to-end`: a clip from its files to masks and overlay."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.benchmarks.measuring import ROOT, Row, size


def add_options(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--model', help='end-to-end: name or file; default: the bundled model')
  add('--input', help='end-to-end: clip; default: the bundled one')
  add('--frames', type=int, help='end-to-end: only the first so many')
  add('--network-size', type=size, metavar='WxH', help='end-to-end; default: by model and clip')


def run(options: argparse.Namespace) -> list[Row]:
  """A clip from its files to masks and overlay, by stage; stages overlap, each in threads of its own."""
  from adnet_jax import errors, pipeline, segmenter, video, weights

  try:
    runner = segmenter.Segmenter.from_pretrained(
      options.model or weights.DEFAULT_MODEL, device=options.device, dtype=options.dtype, size=options.network_size
    )
  except errors.AdnetError as error:
    return [{'what': f'not measured: {error}'}]
  source = video.open_source(
    options.input or ROOT / 'adnet_jax/assets/sample/JPEGImages/480p/astronaut', end=options.frames
  )
  outputs = pipeline.Outputs(overlay=importlib.util.find_spec('av') is not None, overwrite=True)
  best: dict[str, Any] = {}
  for repetition in range(options.repeats + 1):
    with tempfile.TemporaryDirectory() as folder:
      started = time.perf_counter()
      summary = pipeline.segment_clip(runner, source, Path(folder), outputs)
      seconds = time.perf_counter() - started
    # The first one compiles.
    if repetition and (not best or seconds < best['seconds']):
      best = {'seconds': seconds, 'summary': summary}
  (width, height), frames = best['summary']['size'], best['summary']['frames']
  title = f'{frames} frames, network at {width}x{height} on {runner.model.devices[0].platform}'
  stages = {title: best['seconds'], **{f'  {k}': v for k, v in best['summary']['seconds'].items() if k != 'total'}}
  return [{'what': name, 'fps': frames / spent, 'seconds': spent} for name, spent in stages.items() if spent]
