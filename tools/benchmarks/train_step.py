"""Section `train-step`: one step of a configuration."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.benchmarks import oracle as oracles
from tools.benchmarks.measuring import Row, measure


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--crop', type=int, nargs='+', help="train-step: sizes; default: the configuration's")


def run(options: argparse.Namespace) -> list[Row]:
  """One step of a configuration at each crop, from a batch that lies on the device, and the oracle's; random weights.

  The oracle's step is of the same network and images but has every BatchNorm in training mode and no frozen layers.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from adnet_jax import config as config_lib
  from adnet_jax import pretrained, utilization
  from adnet_jax import step as step_lib
  from adnet_jax.models import platforms

  devices, rows = pretrained.find_devices(options.device), []
  for crop in options.crop or [None]:
    keys = ['init.weights=', *options.config_key, *([f'data.crop={crop}'] if crop else [])]
    config = config_lib.load(options.config, keys)
    trainer, state = step_lib.initialize(config)
    rng = np.random.default_rng(0)
    shape = (config.batch, 2, config.data.crop, config.data.crop)
    images, masks = rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, 2, shape, np.uint8)
    batch = jax.device_put({'images': images, 'masks': masks})
    step = jax.jit(
      lambda state, batch, trainer=trainer: step_lib.train_step(trainer, state, batch),
      donate_argnums=0,
      compiler_options=platforms.compiler_options(devices[0].platform, 'training'),
    )
    lowered = step.lower(state, batch)
    current = [state]

    def advance(step=step, batch=batch, current=current) -> None:
      current[0], metrics = step(current[0], batch)
      jax.block_until_ready(metrics['loss'])

    name = f'{Path(options.config).stem}: {config.model.backbone}, {config.batch} pairs of {config.data.crop}'
    functions: dict[str, Callable[[], Any]] = {f'{name}, {config.model.dtype}': advance}
    oracle, absent = None, ''
    if options.oracle:
      oracle, absent = oracles.of_architecture(trainer.metadata.architecture, devices[0].platform)
    for way in options.oracle if oracle is not None else ():
      arguments = way, config.model.dtype, devices[0].platform, images, masks, config.optim.lr
      functions[f'PyTorch {way}'] = oracles.step_function(copy.deepcopy(oracle), *arguments)
    timings = measure(functions, options.repeats)
    found = [{**timing.row(what), 'images/s': 2 * config.batch / min(timing.wall)} for what, timing in timings.items()]
    flop = utilization.operations(lowered, config.accumulate)
    if flop is not None:
      rate, _ = utilization.peak(devices, jnp.dtype(config.model.dtype))
      found[0] |= {'TFLOP/s': flop / min(timings[found[0]['what']].wall) / 1e12}
      found[0] |= {'of peak': found[0]['TFLOP/s'] * 1e12 / rate}
    for row in found[1:].copy():
      ratio = {column: found[0][column] / row[column] for column in ('best s', 'best CPU s')}
      found.append({'what': f'ratio, ours to {row["what"]}', **ratio})
    rows += [*found, *([{'what': f'PyTorch: not measured, {absent}'}] if absent else [])]
  return rows
