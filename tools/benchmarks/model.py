"""Section `model`: the network alone, anchor cached, beside the PyTorch oracle and the chip's matrix products."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any
from unittest import mock

from tools.benchmarks import oracle as oracles
from tools.benchmarks.measuring import Row, measure, size


def add_options(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--variant', default='full', help='model: row of Table 1')
  add('--backbone', default='resnet101', help='model')
  add('--stem', help="model; default: 'deep', an EfficientNet's own")
  add('--output-stride', type=int, choices=(8, 16), default=8, help='model')
  add('--size', type=size, default=(857, 481), metavar='WxH', help="model: the network's input")
  add('--frames-at-a-time', type=int, default=1, metavar='N', help='model: of ours and of the oracle')
  add(
    '--oracle',
    nargs='*',
    choices=tuple(oracles.WAYS),
    default=['eager'],
    help='model and train-step: ways to run PyTorch',
  )


def run(options: argparse.Namespace) -> list[Row]:
  """Time a batch of our network and the oracle's with the same weights: uint8 frames in, logits out."""
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
  frames = np.repeat(frame, options.frames_at_a_time, axis=0)
  oracle, absent = oracles.build(options.variant, options.backbone, options.stem, options.output_stride, kind)
  module, metadata = oracles.network(options, oracle, dtype)
  model = pretrained.Model(module, metadata, devices)
  embedding = jax.block_until_ready(model.embed(anchor)) if model.uses_anchor else None

  outputs: dict[str, Any] = {}

  def ours() -> None:
    outputs['ours'] = jax.block_until_ready(model.predict(embedding, frames))

  functions: dict[str, Callable[[], Any]] = {f'ours, {dtype}': ours}
  if oracle is not None:
    ways = oracles.frame_functions(oracle, options.oracle, dtype, kind, anchor, frames, outputs)
    functions |= {f'PyTorch {way}, {dtype}': function for way, function in ways.items()}
  product, product_flop = _matrix_product(devices[0], dtype)
  functions[f'matrix product, {dtype}'] = product
  timings = measure(functions, options.repeats)
  title = f'{options.variant} {options.backbone} {"x".join(map(str, options.size))}'
  if len(frames) > 1:
    title += f', {len(frames)} frames'
  rows = [timing.row(f'{title}: {what}') for what, timing in timings.items()]
  mine, *others, matrices = rows
  rate = product_flop / matrices['best s']
  matrices['TFLOP/s'] = rate / 1e12
  flop = _flop(module, metadata.normalization, embedding, frames)
  if flop is not None:
    mine['TFLOP/s'] = flop / mine['best s'] / 1e12
    mine['of product'] = flop / mine['best s'] / rate
  if oracle is None:
    return [*rows, {'what': f'PyTorch: not measured, {absent}'}]
  for way, theirs in zip(options.oracle, others, strict=True):
    ratio = {column: mine[column] / theirs[column] for column in theirs if column != 'what'}
    rows.append({'what': f'ratio, ours to PyTorch {way}', **ratio})
  for way in options.oracle[:1]:
    reference = np.moveaxis(outputs[way], 1, -1)
    difference = np.abs(np.asarray(outputs['ours'], np.float32) - reference).max() / np.abs(reference).max()
    rows.append({'what': f'largest difference of the logits: {difference:.1e} of their largest magnitude'})
  return rows


def _matrix_product(device: Any, dtype: str) -> tuple[Callable[[], None], float]:
  """A large matrix product on the device, and its operations."""
  import jax
  import jax.numpy as jnp

  n = 2048 if device.platform == 'cpu' else 8192
  # Not of equal numbers: chips multiply those with less power, and so faster than any real ones.
  matrix = jax.device_put(jax.random.normal(jax.random.key(0), (n, n), dtype), device)
  product = jax.jit(jnp.matmul)
  return lambda: jax.block_until_ready(product(matrix, matrix)), 2.0 * n**3


def _flop(module: Any, normalization: str, embedding: Any, frames: Any) -> float | None:
  """Operations of a batch by the definition of its convolutions and products, whatever forms compute them."""
  import flax.nnx as nnx
  import jax

  from adnet_jax import utilization
  from adnet_jax.models import attention, platforms
  from adnet_jax.normalization import normalize

  graph, state = nnx.split(module)

  def predict(state: Any, embedding: Any, images: Any) -> Any:
    # An accelerator's convolutions are those of the definition; a loop's body would be counted once.
    with platforms.lowering_for('gpu'), mock.patch.object(attention, 'EXACT_BYTES', 2**60):
      network = nnx.merge(graph, state)
      return network.classify(embedding, network.encode(normalize(images, normalization)))

  return utilization.operations(jax.jit(predict).lower(state, embedding, frames))
