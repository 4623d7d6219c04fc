"""Section `input`: training pairs, read, decoded and augmented, against what the training step needs."""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tools.benchmarks import train_step
from tools.benchmarks.measuring import ROOT, Row


def add_options(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--data', help="input: data set in DAVIS' layout; default: the bundled clip")
  add('--stills', help='input: folder of photographs')
  add('--samples', type=int, default=64, help='input: pairs read')
  add('--step-seconds', type=float, metavar='S', help='input: of the training step; default: measured here')


def run(options: argparse.Namespace) -> list[Row]:
  """Training pairs a second with one thread and with `data.workers`, decoded each time and once; then the need."""
  import cv2

  from adnet_jax import config as config_lib
  from adnet_jax.data import cache, datasets, input_pipeline

  config = config_lib.load(options.config, options.config_key)
  root = Path(options.data or ROOT / 'adnet_jax/assets/sample')
  clips = datasets.read_clips(root, datasets.split(root, 'train'), need_masks=True)
  photographs = datasets.read_photographs(Path(options.stills)) if options.stills else []
  source = input_pipeline.pair_source(config, clips, photographs)
  cv2.setNumThreads(1)
  workers = input_pipeline.worker_count(config.data.workers)
  rows = []
  for title, kept in (('decoded each time', None), ('kept in memory', cache.open_cache('memory'))):
    tried = dataclasses.replace(source, cache=kept)
    if kept is not None:
      _read(tried, options.samples, workers)
    for threads in sorted({1, workers}):
      name = f'pairs of {config.data.crop}, {title}, {threads} worker{"s" * (threads > 1)}'
      rows.append({'what': name, **_read(tried, options.samples, threads)})
  step_seconds = options.step_seconds
  if step_seconds is None:
    ours, *_ = train_step.run(argparse.Namespace(**{**vars(options), 'crop': None, 'oracle': ()}))
    step_seconds = ours['best s']
  slow, fast = (row for row in rows if str(row['what']).endswith(f', {workers} worker{"s" * (workers > 1)}'))
  return [*rows, *_need(config.batch, step_seconds, workers, slow, fast)]


def _read(source: Any, samples: int, threads: int) -> dict[str, float]:
  with ThreadPoolExecutor(threads) as pool:
    list(pool.map(source.__getitem__, range(threads)))
    wall, cpu = time.perf_counter(), time.process_time()
    list(pool.map(source.__getitem__, range(samples)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  return {'pairs/s': samples / wall, 'a worker': samples / wall / threads, 'CPU s a pair': cpu / samples}


def _need(batch: int, step_seconds: float, workers: int, slow: Row, fast: Row) -> list[Row]:
  """What the step needs, which of the two limits, and how many workers would do."""
  need = batch / step_seconds
  rows: list[Row] = [{'what': f'needed: {batch} pairs every {step_seconds:.3g} s', 'pairs/s': need}]
  for title, row in (('decoded each time', slow), ('kept in memory', fast)):
    limits = 'the step limits' if row['pairs/s'] >= need else 'the input limits'
    enough = math.ceil(need * row['CPU s a pair'])
    share = row['pairs/s'] / need
    rows.append({'what': f'{title}: {limits}, {workers} workers give {share:.3g} of the need, {enough} would do'})
  return rows
