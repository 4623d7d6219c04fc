"""Section `input`: training pairs, read, decoded and augmented."""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.benchmarks.measuring import ROOT, Row, cores


def add_options(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--data', help="input: data set in DAVIS' layout; default: the bundled clip")
  add('--stills', help='input: folder of photographs')
  add('--samples', type=int, default=64, help='input: pairs read')


def run(options: argparse.Namespace) -> list[Row]:
  """Training pairs a second, read, decoded and augmented, with one thread and with one a core."""
  import cv2

  from adnet_jax import config as config_lib
  from adnet_jax.data import datasets, input_pipeline

  config = config_lib.load(options.config, options.config_key)
  root = Path(options.data or ROOT / 'adnet_jax/assets/sample')
  clips = datasets.read_clips(root, datasets.split(root, 'train'), need_masks=True)
  photographs = datasets.read_photographs(Path(options.stills)) if options.stills else []
  source = input_pipeline.pair_source(config, clips, photographs)
  cv2.setNumThreads(1)
  rows = []
  for threads in sorted({1, cores()}):
    with ThreadPoolExecutor(threads) as pool:
      list(pool.map(source.__getitem__, range(threads)))
      wall, cpu = time.perf_counter(), time.process_time()
      list(pool.map(source.__getitem__, range(options.samples)))
      wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    name, rate = f'pairs of {config.data.crop}, {threads} thread{"s" * (threads > 1)}', options.samples / wall
    rows.append({'what': name, 'pairs/s': rate, 'a thread': rate / threads, 'CPU s a pair': cpu / options.samples})
  return rows
