"""AD-Net in plain PyTorch, the oracle of the parity tests; knows nothing of the library that it judges.

Written from the paper (arXiv 1910.10895, section 3) and the names in the released weights, which its modules have.
Letters in shapes: b batch, c channels, h and w the feature map's sides, n = h * w. Modules are NCHW as PyTorch is.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch_trunks import BatchNorm, EfficientNetLite, Encoder, ResNet

VARIANTS = ('baseline', 'intra_frame', 'anchor', 'anchor_diffusion', 'full')
RELEASED_NAMES = {
  'base': 'baseline',
  'intra': 'intra_frame',
  'concat': 'anchor',
  'inter': 'anchor_diffusion',
  'ad': 'full',
}
NEEDS_ANCHOR = ('anchor', 'anchor_diffusion', 'full')
LEAKY_SLOPE = 0.01


class ASPP(nn.Module):
  """Atrous spatial pyramid pooling: 1x1, three dilated 3x3, image pooling; joined in that order."""

  def __init__(self, inputs: int, width: int, rates: tuple[int, int, int], norm, dropout: float):
    super().__init__()
    self.conv1 = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), norm(width))
    for i, rate in enumerate(rates):
      branch = nn.Sequential(nn.Conv2d(inputs, width, 3, 1, rate, rate, bias=False), norm(width))
      setattr(self, f'conv{i + 2}', branch)
    self.image_pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, width, 1, bias=False), norm(width))
    self.conv_bn_dropout = nn.Sequential(nn.Conv2d(5 * width, width, 1, bias=False), norm(width), nn.Dropout2d(dropout))

  def forward(self, x):
    pooled = self.image_pooling(x).expand(-1, -1, x.shape[2], x.shape[3])
    branches = [self.conv1(x), self.conv2(x), self.conv3(x), self.conv4(x), pooled]
    return self.conv_bn_dropout(torch.cat(branches, 1))


def diffuse(queries, current):
  """softmax(Q Xt^T / sqrt(c)) Xt over the current frame's pixels: Eq. 1 and 2; (b, c, h, w) each -> (b, c, h, w)."""
  b, c = current.shape[:2]
  x = current.flatten(2)  # (b, c, n)
  scores = queries.flatten(2).transpose(1, 2) @ x / math.sqrt(c)  # (b, n of queries, n)
  return (x @ scores.softmax(-1).transpose(1, 2)).view(b, c, *queries.shape[2:])


class AdNet(nn.Module):
  """Encoder, branches and classifier of every variant that has more than the encoder."""

  def __init__(self, features: Encoder, variant: str, embedding: int, norm, dropout: float):
    super().__init__()
    self.features, self.variant = features, variant
    branches = 3 if variant == 'full' else 2
    self.cls = nn.Sequential(
      nn.Conv2d(branches * embedding, embedding, 1),
      norm(embedding),
      nn.Dropout2d(dropout),
      nn.Conv2d(embedding, 1, 1),
    )

  def encode(self, x, auxiliary: bool = False):
    """(b, 3, H, W) -> (b, embedding, h, w), followed by the auxiliary head's output where asked for."""
    return self.features.encode(x, auxiliary)

  def branches(self, anchor, current):
    """What the classifier reads, (b, branches * embedding, h, w); `anchor` may be None where the variant has none."""
    if self.variant == 'intra_frame':
      parts = [diffuse(current, current)]
    elif self.variant == 'anchor':
      parts = [anchor]
    elif self.variant == 'anchor_diffusion':
      parts = [diffuse(anchor, current)]
    else:
      parts = [diffuse(anchor, current), diffuse(current, current)]
    return torch.cat([*parts, current], 1)

  def decode(self, anchor, current):
    """Embeddings (b, embedding, h, w) -> logits (b, 1, h, w)."""
    return self.cls(self.branches(anchor, current))

  def forward(self, anchor, frame):
    """Normalised images (b, 3, H, W) -> logits (b, 1, h, w) of the frame before up-sampling."""
    return self.decode(self.encode(anchor) if self.variant in NEEDS_ANCHOR else None, self.encode(frame))


def build(
  variant: str = 'full',
  backbone: str = 'resnet101',
  stem: str = 'deep',
  output_stride: int = 8,
  multi_grid: tuple[int, ...] = (1, 2, 4),
  aspp_width: int = 512,
  embedding: int = 128,
  batch_norm: str = 'abs',
  dropout: float = 0.1,
  auxiliary: int | None = None,
  auxiliary_width: int = 512,
) -> nn.Module:
  """The network of one variant, in evaluation mode; the defaults are the released files' architecture.

  Args:
    variant: one of VARIANTS.
    backbone: 'resnet18' .. 'resnet152', 'efficientnet_lite0' or 'efficientnet_lite2'.
    stem: 'deep' or '7x7'; EfficientNet has its own.
    output_stride: 8 or 16.
    multi_grid: of the ResNet's last stage.
    aspp_width: channels of the ASPP and of each of its branches.
    embedding: channels of the embedding and of the classifier.
    batch_norm: 'abs' or 'plain'; an EfficientNet trunk is plain (eps 1e-3), its heads follow this.
    dropout: rate of the channel dropout in training mode.
    auxiliary: outputs of the auxiliary head, None for no such head.
    auxiliary_width: channels of the auxiliary head's hidden layer.
  """
  if variant not in VARIANTS:
    raise ValueError(f'variant is one of {VARIANTS}, not {variant}')

  def norm(channels):
    return BatchNorm(channels, batch_norm, slope=LEAKY_SLOPE)

  if backbone.startswith('efficientnet_lite'):
    features = EfficientNetLite(int(backbone.removeprefix('efficientnet_lite')), output_stride)
  else:
    features = ResNet(int(backbone.removeprefix('resnet')), stem, output_stride, multi_grid, batch_norm)
  before, last = features.channels
  rates = {8: (12, 24, 36), 16: (6, 12, 18)}[output_stride]
  features.head = nn.Sequential(
    ASPP(last, aspp_width, rates, norm, dropout),
    nn.Conv2d(aspp_width, 1 if variant == 'baseline' else embedding, 1),
  )
  if auxiliary is not None:
    features.dsn = nn.Sequential(
      nn.Conv2d(before, auxiliary_width, 3, 1, 1, bias=False),
      norm(auxiliary_width),
      nn.Dropout2d(dropout),
      nn.Conv2d(auxiliary_width, auxiliary, 1),
    )
  model = features if variant == 'baseline' else AdNet(features, variant, embedding, norm, dropout)
  return model.eval()


def released(name: str, backbone: str = 'resnet101', **options) -> nn.Module:
  """The network of a released file ('base', 'intra', 'concat', 'inter', 'ad'), its auxiliary head included."""
  variant = RELEASED_NAMES[name]
  return build(variant, backbone, auxiliary=1 if variant == 'baseline' else options.get('embedding', 128), **options)
