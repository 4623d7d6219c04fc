"""Section `train-step`: one step of a configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.benchmarks.measuring import Row, measure


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--crop', type=int, nargs='+', help="train-step: sizes; default: the configuration's")


def run(options: argparse.Namespace) -> list[Row]:
  """One step of a configuration at each crop, from a batch that lies on the device; random weights."""
  import jax
  import numpy as np

  from adnet_jax import config as config_lib
  from adnet_jax import step as step_lib

  rows = []
  for crop in options.crop or [None]:
    keys = ['init.weights=', *options.config_key, *([f'data.crop={crop}'] if crop else [])]
    config = config_lib.load(options.config, keys)
    trainer, state = step_lib.initialize(config)
    rng = np.random.default_rng(0)
    shape = (config.batch, 2, config.data.crop, config.data.crop)
    images, masks = rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, 2, shape, np.uint8)
    batch = jax.device_put({'images': images, 'masks': masks})
    step = jax.jit(lambda state, batch, trainer=trainer: step_lib.train_step(trainer, state, batch), donate_argnums=0)
    current = [state]

    def advance(step=step, batch=batch, current=current) -> None:
      current[0], metrics = step(current[0], batch)
      jax.block_until_ready(metrics['loss'])

    (timing,) = measure({'step': advance}, options.repeats).values()
    model = f'{config.model.backbone} {config.model.dtype}'
    name = f'{Path(options.config).stem}: {model}, {config.batch} pairs of {config.data.crop}'
    rows.append({**timing.row(name), 'images/s': 2 * config.batch / min(timing.wall)})
  return rows
