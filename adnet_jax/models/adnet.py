"""AD-Net: encoder, attention branches and classifier, one network for the five rows of the paper's Table 1.

Knows nothing of files, images on disk, losses or optimisers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from adnet_jax.models import attention, deeplab, efficientnet, layers, resnet

# What the classifier sees, in order, for each row of Table 1: 'diffused' (Eq. 1), 'intra' (non-local), 'anchor' (X0),
# 'current' (Xt). The baseline has no classifier: its encoder ends in one logit.
VARIANTS: dict[str, tuple[str, ...]] = {
  'baseline': (),
  'intra_frame': ('intra', 'current'),
  'anchor': ('anchor', 'current'),
  'anchor_diffusion': ('diffused', 'current'),
  'full': ('diffused', 'intra', 'current'),
}
BACKBONES = (*resnet.BLOCKS, *efficientnet.WIDTH_DEPTH)
STEMS = ('deep', 'conv7x7', 'efficientnet')


@dataclasses.dataclass(frozen=True)
class Architecture:
  """Everything that the network's shape depends on; the fields of a model file's metadata.

  Attributes:
    variant: a key of VARIANTS.
    backbone: one of BACKBONES.
    stem: 'deep' (three 3x3) or 'conv7x7' for a ResNet, 'efficientnet' for an EfficientNet-Lite.
    output_stride: 8 or 16.
    multi_grid: factors of the dilation of layer4's blocks (ResNets; the EfficientNets have none).
    aspp_width: channels of each ASPP branch and of its output; 512 in the released files.
    embedding: channels c of X0 and Xt; 128 in the paper.
    batch_norm_eps: of ResNet, ASPP and heads (the EfficientNet trunks have their own, 1e-3).
    activation: of ASPP and classifier; 'leaky_relu' with slope .01.
    auxiliary: outputs of the auxiliary head; 0 for none.
  """

  variant: str = 'full'
  backbone: str = 'resnet101'
  stem: str = 'deep'
  output_stride: int = 8
  multi_grid: tuple[int, ...] = (1, 2, 4)
  aspp_width: int = 512
  embedding: int = 128
  batch_norm_eps: float = 1e-5
  activation: str = 'leaky_relu'
  auxiliary: int = 0

  def __post_init__(self):
    for field, value, allowed in (
      ('variant', self.variant, tuple(VARIANTS)),
      ('backbone', self.backbone, BACKBONES),
      ('stem', self.stem, STEMS),
      ('output_stride', self.output_stride, (8, 16)),
      ('activation', self.activation, ('leaky_relu',)),
    ):
      if value not in allowed:
        raise ValueError(f'{field} is {value!r}, expected one of {", ".join(map(str, allowed))}')
    if (self.stem == 'efficientnet') != (self.backbone in efficientnet.WIDTH_DEPTH):
      raise ValueError(f'stem {self.stem!r} does not go with backbone {self.backbone!r}')
    if min(self.aspp_width, self.embedding, *self.multi_grid) < 1 or self.auxiliary < 0:
      raise ValueError('aspp_width, embedding and multi_grid must be positive')

  @property
  def uses_anchor(self) -> bool:
    """Whether the variant looks at the anchor frame at all."""
    return bool({'diffused', 'anchor'} & set(VARIANTS[self.variant]))


@dataclasses.dataclass(frozen=True)
class Training:
  """How a training pass differs from inference.

  Attributes:
    dropout_key: PRNG key of the channel dropout; None leaves dropout out.
    backbone_statistics: whether the trunk's BatchNorm normalises by the batch (and moves its running statistics);
      ASPP, auxiliary head and classifier always do.
    frozen_stages: leading trunk stages without gradient (and with frozen statistics).
    remat: whether the gradient of a trunk block computes the block again instead of keeping what is in it.
  """

  dropout_key: jax.Array | None
  backbone_statistics: bool = True
  frozen_stages: int = 0
  remat: bool = False

  def key(self, site: int) -> jax.Array | None:
    return None if self.dropout_key is None else jax.random.fold_in(self.dropout_key, site)


class ADNet(nnx.Module):
  """The network of the paper's Fig. 2.

  Attributes:
    architecture: its shape.
    dtype: compute dtype, float32 or bfloat16; parameters, statistics and softmax are float32 whatever it is.
  """

  def __init__(self, architecture: Architecture, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
    a = self.architecture = architecture
    self.dtype = dtype
    self.backbone: resnet.ResNet | efficientnet.EfficientNetLite
    if a.backbone in resnet.BLOCKS:
      self.backbone = resnet.ResNet(
        a.backbone,
        stem=a.stem,
        output_stride=a.output_stride,
        multi_grid=a.multi_grid,
        epsilon=a.batch_norm_eps,
        dtype=dtype,
        rngs=rngs,
      )
    else:
      self.backbone = efficientnet.EfficientNetLite(a.backbone, output_stride=a.output_stride, dtype=dtype, rngs=rngs)
    options: dict[str, Any] = dict(epsilon=a.batch_norm_eps, dtype=dtype, rngs=rngs)
    last, last_but_one = self.backbone.channels
    self.aspp = deeplab.ASPP(last, a.aspp_width, output_stride=a.output_stride, **options)
    inputs = VARIANTS[a.variant]
    self.embedding = layers.Conv(a.aspp_width, a.embedding if inputs else 1, norm=False, dtype=dtype, rngs=rngs)
    self.auxiliary = deeplab.AuxiliaryHead(last_but_one, a.auxiliary, **options) if a.auxiliary else None
    self.classifier = Classifier(len(inputs) * a.embedding, a.embedding, **options) if inputs else None

  def encode(self, images: jax.Array, training: Training | None = None) -> jax.Array:
    """Embeddings of normalised images.

    Args:
      images: (b, H, W, 3) floating, normalised as the weights expect.
      training: None for inference.

    Returns:
      X, (b, h, w, embedding) in the compute dtype, h and w about H and W over the output stride. The baseline's is
      the ASPP output, (b, h, w, aspp_width): it has no other.
    """
    return self.encode_with_auxiliary(images, training)[0]

  def encode_with_auxiliary(
    self, images: jax.Array, training: Training | None = None
  ) -> tuple[jax.Array, jax.Array | None]:
    """`encode`, and the auxiliary head's logits (b, h, w, auxiliary), None outside training or without the head."""
    statistics = training is not None
    if training is None:
      features, previous = self.backbone(images)
    else:
      features, previous = self.backbone(
        images,
        batch_statistics=training.backbone_statistics,
        frozen_stages=training.frozen_stages,
        remat=training.remat,
      )
    x = self.aspp(features, batch_statistics=statistics, dropout_key=training.key(0) if training else None)
    if self.classifier is not None:
      x = self.embedding(x)
    auxiliary = None
    if training is not None and self.auxiliary is not None:
      auxiliary = self.auxiliary(previous, batch_statistics=True, dropout_key=training.key(1)).astype(jnp.float32)
    return x, auxiliary

  def classify(self, anchor: jax.Array | None, current: jax.Array, training: Training | None = None) -> jax.Array:
    """Logits from embeddings.

    Args:
      anchor: X0, (b, h, w, c), or (1, h, w, c) for all; None for a variant without an anchor.
      current: Xt, (b, h, w, c).
      training: None for inference.

    Returns:
      (b, h, w, 1) float32 logits at the embeddings' size.
    """
    if self.classifier is None:
      return self.embedding(current).astype(jnp.float32)
    parts = _branches(VARIANTS[self.architecture.variant], anchor, current)
    return self.classifier(
      parts, batch_statistics=training is not None, dropout_key=training.key(2) if training else None
    )

  def __call__(self, anchor: jax.Array | None, frame: jax.Array) -> jax.Array:
    """Inference on normalised images: (b, H, W, 3), (b, H, W, 3) -> (b, h, w, 1) float32 logits before up-sampling."""
    if not self.architecture.uses_anchor:
      return self.classify(None, self.encode(frame))
    if anchor is None:
      raise ValueError(f'variant {self.architecture.variant} needs an anchor')
    return self.classify(self.encode(anchor), self.encode(frame))


def _branches(names: tuple[str, ...], anchor: jax.Array | None, current: jax.Array) -> jax.Array:
  """The classifier's input (b, h, w, len(names) * c): what VARIANTS names, concatenated in its order."""
  b, h, w, c = current.shape
  pixels = current.reshape(b, h * w, c)
  found = {'current': pixels}
  if anchor is not None:
    found['anchor'] = jnp.broadcast_to(anchor, (b, *anchor.shape[1:])).reshape(b, -1, c)
  if {'diffused', 'intra'} <= set(names):
    found['diffused'], found['intra'] = attention.anchor_diffusion_and_intra_frame(found['anchor'], pixels)
  elif 'diffused' in names:
    found['diffused'] = attention.anchor_diffusion(found['anchor'], pixels)
  elif 'intra' in names:
    found['intra'] = attention.intra_frame(pixels)
  return jnp.concatenate([found[name] for name in names], -1).reshape(b, h, w, len(names) * c)


class Classifier(nnx.Module):
  """1x1 with bias, BatchNorm, LeakyReLU, channel dropout, 1x1 with bias to one logit."""

  def __init__(self, inputs: int, width: int, *, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.hidden = layers.Conv(inputs, width, norm=True, epsilon=epsilon, dtype=dtype, rngs=rngs)
    self.logits = layers.Conv(width, 1, norm=False, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: jax.Array, *, batch_statistics: bool = False, dropout_key: jax.Array | None = None
  ) -> jax.Array:
    x = layers.channel_dropout(layers.leaky_relu(self.hidden(x, batch_statistics)), dropout_key)
    return self.logits(x).astype(jnp.float32)
