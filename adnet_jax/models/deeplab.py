"""DeepLabv3's atrous spatial pyramid pooling and its auxiliary head (Chen et al. 2017); knows nothing of the trunk."""

from __future__ import annotations

import math
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from adnet_jax.models import layers, per_frame

# Dilations of the three 3x3 branches by output stride.
DILATIONS = {8: (12, 24, 36), 16: (6, 12, 18)}


class ASPP(nnx.Module):
  """1x1, three dilated 3x3 and image pooling, concatenated in that order, projected by 1x1 to `width` channels."""

  def __init__(self, inputs: int, width: int, *, output_stride: int, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs):
    options: dict[str, Any] = dict(epsilon=epsilon, dtype=dtype, rngs=rngs)
    self.conv1 = layers.Conv(inputs, width, **options)
    self.conv2, self.conv3, self.conv4 = (
      layers.Conv(inputs, width, 3, dilation=dilation, **options) for dilation in DILATIONS[output_stride]
    )
    self.image_pooling = layers.Conv(inputs, width, **options)
    self.projection = layers.Conv(5 * width, width, **options)

  def __call__(
    self, x: jax.Array, *, batch_statistics: bool = False, dropout_key: jax.Array | None = None
  ) -> jax.Array:
    pooled = per_frame.over_positions(x.astype(jnp.float32))[:, None, None] / math.prod(x.shape[1:3])
    pooled = layers.leaky_relu(self.image_pooling(pooled, batch_statistics))
    branches = [
      layers.leaky_relu(branch(x, batch_statistics)) for branch in (self.conv1, self.conv2, self.conv3, self.conv4)
    ]
    branches.append(jnp.broadcast_to(pooled, branches[0].shape))
    y = layers.leaky_relu(self.projection(jnp.concatenate(branches, -1), batch_statistics))
    return layers.channel_dropout(y, dropout_key)


class AuxiliaryHead(nnx.Module):
  """3x3 to 512 and 1x1 with bias on the last-but-one stage's features; only training looks at it."""

  def __init__(self, inputs: int, outputs: int, *, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs, width: int = 512):
    self.conv = layers.Conv(inputs, width, 3, epsilon=epsilon, dtype=dtype, rngs=rngs)
    self.logits = layers.Conv(width, outputs, norm=False, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: jax.Array, *, batch_statistics: bool = False, dropout_key: jax.Array | None = None
  ) -> jax.Array:
    x = layers.channel_dropout(layers.leaky_relu(self.conv(x, batch_statistics)), dropout_key)
    return self.logits(x)
