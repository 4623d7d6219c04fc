"""Section `model`: the network alone, anchor cached."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from tools.benchmarks import oracle as oracles
from tools.benchmarks.measuring import Row, measure, size


def add_options(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--variant', default='full', help='model: row of Table 1')
  add('--backbone', default='resnet101', help='model')
  add('--stem', help="model; default: 'deep', an EfficientNet's own")
  add('--output-stride', type=int, choices=(8, 16), default=8, help='model')
  add('--size', type=size, default=(857, 481), metavar='WxH', help="model: the network's input")


def run(options: argparse.Namespace) -> list[Row]:
  """Time a frame of our network and the oracle's with the same weights: uint8 frame in, logits out, anchor cached."""
  import cv2
  import jax
  import numpy as np

  from adnet_jax import pretrained

  devices = pretrained.find_devices(options.device)[:1]
  kind = devices[0].platform
  dtype = options.dtype or ('float32' if kind == 'cpu' else 'bfloat16')
  # Smooth pictures: on noise, random networks saturate and the outputs of the two could not be compared.
  coarse = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), np.uint8)
  anchor, frame = (cv2.resize(image, options.size, interpolation=cv2.INTER_CUBIC)[None] for image in coarse)
  oracle, absent = oracles.build(options, kind)
  model = pretrained.Model(*oracles.network(options, oracle, dtype), devices)
  embedding = jax.block_until_ready(model.embed(anchor)) if model.uses_anchor else None

  outputs: dict[str, Any] = {}

  def ours() -> None:
    outputs['ours'] = jax.block_until_ready(model.predict(embedding, frame))

  name = f'ours, {dtype}'
  functions: dict[str, Callable[[], Any]] = {name: ours}
  if oracle is not None:
    functions['PyTorch, float32'] = oracles.frame_function(oracle, options, kind, anchor, frame, outputs)
  timings = measure(functions, options.repeats)
  title = f'{options.variant} {options.backbone} {"x".join(map(str, options.size))}'
  rows = [timing.row(f'{title}: {what}') for what, timing in timings.items()]
  if oracle is None:
    return [*rows, {'what': f'PyTorch: not measured, {absent}'}]
  reference = np.moveaxis(outputs['theirs'], 1, -1)
  difference = np.abs(np.asarray(outputs['ours']) - reference).max() / np.abs(reference).max()
  mine, theirs = (timing.row('') for timing in timings.values())
  ratio = {column: mine[column] / theirs[column] for column in mine if column != 'what'}
  rows.append({'what': 'ratio, ours to PyTorch', **ratio})
  return [*rows, {'what': f'largest difference of the logits: {difference:.1e} of their largest magnitude'}]
