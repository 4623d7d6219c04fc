"""Dilated ResNets (He et al. 2016; DeepLabv3's dilation, Chen et al. 2017); knows nothing of what is built on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from adnet_jax.models import layers

BLOCKS = {
  'resnet10': ('basic', (1, 1, 1, 1)),
  'resnet18': ('basic', (2, 2, 2, 2)),
  'resnet34': ('basic', (3, 4, 6, 3)),
  'resnet50': ('bottleneck', (3, 4, 6, 3)),
  'resnet101': ('bottleneck', (3, 4, 23, 3)),
  'resnet152': ('bottleneck', (3, 8, 36, 3)),
}
WIDTHS = (64, 128, 256, 512)
EXPANSION = {'basic': 1, 'bottleneck': 4}
# (stride, dilation) of layer1..4 by output stride; layer4's dilation is multiplied by the multi-grid.
STRIDES = {8: ((1, 1), (2, 1), (1, 2), (1, 4)), 16: ((1, 1), (2, 1), (2, 1), (1, 2))}


class ResNet(nnx.Module):
  """Trunk: (b, h, w, 3) normalised image -> layer4's and layer3's features at the output stride.

  Attributes:
    channels: number of channels of the two outputs, (last, last but one).
  """

  def __init__(
    self,
    name: str,
    *,
    stem: str,
    output_stride: int,
    multi_grid: Sequence[int],
    epsilon: float,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    kind, repeats = BLOCKS[name]
    expansion = EXPANSION[kind]
    block = Bottleneck if kind == 'bottleneck' else BasicBlock
    options: dict[str, Any] = dict(epsilon=epsilon, dtype=dtype, rngs=rngs)
    self.deep_stem = stem == 'deep'
    if self.deep_stem:
      self.conv1 = layers.Conv(3, 64, 3, stride=2, **options)
      self.conv2 = layers.Conv(64, 64, 3, **options)
      self.conv3 = layers.Conv(64, 128, 3, **options)
    else:
      self.conv1 = layers.Conv(3, 64, 7, stride=2, **options)
    inputs = 128 if self.deep_stem else 64
    for index, (width, count) in enumerate(zip(WIDTHS, repeats, strict=True)):
      stride, dilation = STRIDES[output_stride][index]
      blocks = []
      for i in range(count):
        grid = multi_grid[i % len(multi_grid)] if index == 3 else 1
        blocks.append(block(inputs, width, stride=stride if i == 0 else 1, dilation=dilation * grid, **options))
        inputs = width * expansion
      setattr(self, f'layer{index + 1}', nnx.List(blocks))
    self.channels = (WIDTHS[3] * expansion, WIDTHS[2] * expansion)

  def __call__(
    self, x: jax.Array, *, batch_statistics: bool = False, frozen_stages: int = 0, remat: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Features of layer4 and layer3; no gradient flows into the first `frozen_stages` stages (stem and layer1: 1).

    `remat`: of each block its input alone is kept for the gradient, which computes the rest again.
    """
    x = layers.relu(self.conv1(x, batch_statistics and frozen_stages < 1))
    if self.deep_stem:
      x = layers.relu(self.conv2(x, batch_statistics and frozen_stages < 1))
      x = layers.relu(self.conv3(x, batch_statistics and frozen_stages < 1))
    x = layers.max_pool(x, ceil_mode=self.deep_stem)
    previous = x
    for index in range(1, 5):
      previous = x
      for block in getattr(self, f'layer{index}'):
        x = layers.run_block(block, x, batch_statistics and index > frozen_stages, remat and index > frozen_stages)
      if index == frozen_stages:
        x = jax.lax.stop_gradient(x)
    return x, previous


class BasicBlock(nnx.Module):
  """Two 3x3 convolutions and a shortcut (ResNet-18 and 34); both dilate."""

  def __init__(self, inputs: int, width: int, *, stride: int, dilation: int, **options):
    self.conv1 = layers.Conv(inputs, width, 3, stride=stride, dilation=dilation, **options)
    self.conv2 = layers.Conv(width, width, 3, dilation=dilation, **options)
    self.downsample = layers.Conv(inputs, width, 1, stride=stride, **options) if stride > 1 or inputs != width else None

  def __call__(self, x: jax.Array, batch_statistics: bool) -> jax.Array:
    y = layers.relu(self.conv1(x, batch_statistics))
    y = self.conv2(y, batch_statistics)
    shortcut = x if self.downsample is None else self.downsample(x, batch_statistics)
    return layers.relu(y + shortcut)


class Bottleneck(nnx.Module):
  """1x1, 3x3 (which strides and dilates), 1x1 to four times the width, and a shortcut."""

  def __init__(self, inputs: int, width: int, *, stride: int, dilation: int, **options):
    outputs = width * EXPANSION['bottleneck']
    self.conv1 = layers.Conv(inputs, width, **options)
    self.conv2 = layers.Conv(width, width, 3, stride=stride, dilation=dilation, **options)
    self.conv3 = layers.Conv(width, outputs, **options)
    self.downsample = (
      layers.Conv(inputs, outputs, 1, stride=stride, **options) if stride > 1 or inputs != outputs else None
    )

  def __call__(self, x: jax.Array, batch_statistics: bool) -> jax.Array:
    y = layers.relu(self.conv1(x, batch_statistics))
    y = layers.relu(self.conv2(y, batch_statistics))
    y = self.conv3(y, batch_statistics)
    shortcut = x if self.downsample is None else self.downsample(x, batch_statistics)
    return layers.relu(y + shortcut)
