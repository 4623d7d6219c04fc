"""EfficientNet-Lite trunks (Tan and Le 2019, Lite release 2020) with dilated last stages; no head, no attention."""

from __future__ import annotations

import math
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from adnet_jax.models import layers

# (repeats, kernel size, stride, expansion, output channels) of the seven stages of Lite0.
STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)
WIDTH_DEPTH = {'efficientnet_lite0': (1.0, 1.0), 'efficientnet_lite2': (1.1, 1.2)}
STEM = 32
EPSILON = 1e-3
CLASSIFIER_WIDTH = 1280


def scaled_stages(name: str) -> list[tuple[int, int, int, int, int]]:
  """The stages of `name`: widths rounded to multiples of 8, repeats up, the first and last stage never repeated."""
  width, depth = WIDTH_DEPTH[name]
  stages = []
  for index, (repeats, size, stride, expansion, outputs) in enumerate(STAGES):
    if 0 < index < len(STAGES) - 1:
      repeats = math.ceil(repeats * depth)
    scaled = outputs * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    stages.append((repeats, size, stride, expansion, rounded + 8 if rounded < 0.9 * scaled else rounded))
  return stages


class EfficientNetLite(nnx.Module):
  """Trunk: (b, h, w, 3) normalised image -> features of the last stage and of the one before.

  A stage that would pass the output stride keeps its resolution, and it and those after it dilate instead, its first
  block included. Padding is TensorFlow's 'same', as the ImageNet weights expect.

  Attributes:
    channels: number of channels of the two outputs, (last, last but one).
  """

  def __init__(self, name: str, *, output_stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
    options: dict[str, Any] = dict(epsilon=EPSILON, momentum=0.01, tensorflow_padding=True, dtype=dtype, rngs=rngs)
    self.stem = layers.Conv(3, STEM, 3, stride=2, **options)
    inputs, reached, dilation = STEM, 2, 1
    stages = []
    for repeats, size, stride, expansion, outputs in scaled_stages(name):
      if reached * stride > output_stride:
        dilation, stride = dilation * stride, 1
      reached *= stride
      blocks = []
      for i in range(repeats):
        blocks.append(
          InvertedResidual(
            inputs, outputs, size, expansion, stride=stride if i == 0 else 1, dilation=dilation, **options
          )
        )
        inputs = outputs
      stages.append(nnx.List(blocks))
    self.stages = nnx.List(stages)
    widths = [stage[-1] for stage in scaled_stages(name)]
    self.channels = (widths[-1], widths[-2])

  def __call__(
    self, x: jax.Array, *, batch_statistics: bool = False, frozen_stages: int = 0, remat: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Features of the last stage and the one before; no gradient flows into the first `frozen_stages` (stem with 1).

    `remat`: of each block its input alone is kept for the gradient, which computes the rest again.
    """
    x = layers.relu6(self.stem(x, batch_statistics and frozen_stages < 1))
    previous = x
    for index, stage in enumerate(self.stages, 1):
      previous = x
      for block in stage:
        x = layers.run_block(block, x, batch_statistics and index > frozen_stages, remat and index > frozen_stages)
      if index == frozen_stages:
        x = jax.lax.stop_gradient(x)
    return x, previous


class InvertedResidual(nnx.Module):
  """1x1 expansion, depthwise convolution, linear 1x1 projection, and a shortcut where shapes allow."""

  def __init__(self, inputs: int, outputs: int, size: int, expansion: int, *, stride: int, dilation: int, **options):
    width = inputs * expansion
    self.expand = layers.Conv(inputs, width, **options) if expansion > 1 else None
    self.depthwise = layers.Conv(width, width, size, stride=stride, dilation=dilation, depthwise=True, **options)
    self.project = layers.Conv(width, outputs, **options)
    self.shortcut = stride == 1 and inputs == outputs

  def __call__(self, x: jax.Array, batch_statistics: bool) -> jax.Array:
    y = x if self.expand is None else layers.relu6(self.expand(x, batch_statistics))
    y = layers.relu6(self.depthwise(y, batch_statistics))
    y = self.project(y, batch_statistics)
    return y + x if self.shortcut else y
