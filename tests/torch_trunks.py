"""The oracle's trunks in plain PyTorch, ResNet and EfficientNet-Lite; knows nothing of the library that it judges.

Modules are NCHW as PyTorch is; their state-dict names are those of the released, torchvision's and ImageNet files.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

RESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# Kernel, stride, expansion, channels, blocks: the seven stages of EfficientNet-B0, which the Lite networks keep.
EFFICIENTNET_STAGES = (
  (3, 1, 1, 16, 1),
  (3, 2, 6, 24, 2),
  (5, 2, 6, 40, 2),
  (3, 2, 6, 80, 3),
  (5, 1, 6, 112, 3),
  (5, 2, 6, 192, 4),
  (3, 1, 6, 320, 1),
)
EFFICIENTNET_FACTORS = {0: (1.0, 1.0), 2: (1.1, 1.2)}  # width, depth


class BatchNorm(nn.Module):
  """Batch normalisation with an optional LeakyReLU behind it.

  Args:
    channels: number of channels.
    kind: 'abs' scales by |weight| + eps, as in-place activated batch norm does; 'plain' by the weight.
    slope: negative slope of the LeakyReLU, None for no activation.
    eps: added to the variance and, for 'abs', to the scale.
  """

  def __init__(self, channels: int, kind: str = 'plain', slope: float | None = None, eps: float = 1e-5):
    super().__init__()
    if kind not in ('abs', 'plain'):
      raise ValueError(f'batch norm is abs or plain, not {kind}')
    self.kind, self.slope, self.eps, self.momentum = kind, slope, eps, 0.1
    self.weight = nn.Parameter(torch.ones(channels))
    self.bias = nn.Parameter(torch.zeros(channels))
    self.register_buffer('running_mean', torch.zeros(channels))
    self.register_buffer('running_var', torch.ones(channels))

  def forward(self, x):
    scale = self.weight.abs() + self.eps if self.kind == 'abs' else self.weight
    y = F.batch_norm(x, self.running_mean, self.running_var, scale, self.bias, self.training, self.momentum, self.eps)
    return y if self.slope is None else F.leaky_relu(y, self.slope)


# Residual networks ---------------------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
  expansion = 1

  def __init__(self, inputs: int, width: int, stride: int, dilation: int, norm):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, width, 3, stride, dilation, dilation, bias=False)
    self.bn1 = norm(width)
    self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
    self.bn2 = norm(width)
    self.downsample = shortcut(inputs, width, stride, norm)

  def forward(self, x):
    y = F.relu(self.bn1(self.conv1(x)))
    y = self.bn2(self.conv2(y))
    return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
  expansion = 4

  def __init__(self, inputs: int, width: int, stride: int, dilation: int, norm):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
    self.bn1 = norm(width)
    self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
    self.bn2 = norm(width)
    self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
    self.bn3 = norm(4 * width)
    self.downsample = shortcut(inputs, 4 * width, stride, norm)

  def forward(self, x):
    y = F.relu(self.bn1(self.conv1(x)))
    y = F.relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def shortcut(inputs: int, outputs: int, stride: int, norm):
  """Projection of a residual block, None where the identity fits."""
  if stride == 1 and inputs == outputs:
    return None
  return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))


class Encoder(nn.Module):
  """A trunk that carries the segmentation head (`head`) and the auxiliary head (`dsn`) under the released names."""

  variant = 'baseline'

  def stages(self, x):
    """(b, 3, H, W) -> outputs of the last stage but one and of the last stage."""
    raise NotImplementedError

  def encode(self, x, auxiliary: bool = False):
    """(b, 3, H, W) -> (b, embedding, h, w), followed by the auxiliary head's output where asked for."""
    before, last = self.stages(x)
    embedding = self.head(last)
    return (embedding, self.dsn(before)) if auxiliary else embedding

  def decode(self, anchor, current):
    """The `baseline`: its head's one channel is the logit already."""
    return current

  def forward(self, anchor, frame):
    """Logits (b, 1, h, w) of the frame before up-sampling; a trunk alone is the `baseline`, the anchor may be None."""
    return self.encode(frame)


class ResNet(Encoder):
  """Dilated ResNet under torchvision's names (stem '7x7') or with three 3x3 convolutions as stem ('deep').

  Args:
    depth: 18, 34, 50, 101 or 152.
    stem: 'deep' or '7x7'.
    output_stride: 8, 16, or 32 (no dilation).
    multi_grid: factors of the dilation of the last stage's blocks, used in turn.
    batch_norm: 'abs' or 'plain'.
    eps: of the batch norms.
    classes: outputs of the classifier `fc`, None for no classifier.
  """

  def __init__(
    self, depth, stem='deep', output_stride=8, multi_grid=(1, 2, 4), batch_norm='abs', eps=1e-5, classes=None
  ):
    super().__init__()
    if output_stride not in (8, 16, 32):
      raise ValueError(f'output stride is 8, 16 or 32, not {output_stride}')

    def norm(channels):
      return BatchNorm(channels, batch_norm, eps=eps)

    self.stem = stem
    if stem == 'deep':
      self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False), norm(64)
      self.conv2, self.bn2 = nn.Conv2d(64, 64, 3, 1, 1, bias=False), norm(64)
      self.conv3, self.bn3 = nn.Conv2d(64, 128, 3, 1, 1, bias=False), norm(128)
      channels = 128
    elif stem == '7x7':
      self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64)
      channels = 64
    else:
      raise ValueError(f'stem is deep or 7x7, not {stem}')

    block = Bottleneck if depth >= 50 else BasicBlock
    strides = {8: (1, 2, 1, 1), 16: (1, 2, 2, 1), 32: (1, 2, 2, 2)}[output_stride]
    dilations = {8: (1, 1, 2, 4), 16: (1, 1, 1, 2), 32: (1, 1, 1, 1)}[output_stride]
    for stage, blocks in enumerate(RESNET_BLOCKS[depth]):
      # Undilated, the network is the classifier that was trained on ImageNet: there is no grid to multiply.
      grid = multi_grid if stage == 3 and output_stride < 32 else (1,)
      layers = []
      for i in range(blocks):
        stride = strides[stage] if i == 0 else 1
        layers.append(block(channels, 64 << stage, stride, dilations[stage] * grid[i % len(grid)], norm))
        channels = (64 << stage) * block.expansion
      setattr(self, f'layer{stage + 1}', nn.Sequential(*layers))
    self.channels = (channels // 2, channels)
    if classes is not None:
      self.fc = nn.Linear(channels, classes)

  def stages(self, x):
    x = F.relu(self.bn1(self.conv1(x)))
    if self.stem == 'deep':
      x = F.relu(self.bn2(self.conv2(x)))
      x = F.relu(self.bn3(self.conv3(x)))
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=self.stem == 'deep')
    before = self.layer3(self.layer2(self.layer1(x)))
    return before, self.layer4(before)

  def classify(self, x):
    """(b, 3, H, W) -> (b, classes) logits."""
    return self.fc(self.stages(x)[1].mean((2, 3)))


# EfficientNet-Lite ---------------------------------------------------------------------------------------------------


class SameConv2d(nn.Conv2d):
  """Convolution with TensorFlow's SAME padding: output side ceil(side / stride), an odd pixel goes to the far end."""

  def forward(self, x):
    pads = []
    for axis in (1, 0):
      size, stride = x.shape[2 + axis], self.stride[axis]
      reach = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
      total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
      pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class InvertedResidual(nn.Module):
  """Expansion 1x1, depthwise k x k, linear projection 1x1; no squeeze-and-excitation, no stochastic depth."""

  def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, dilation: int):
    super().__init__()
    width = inputs * expansion
    if expansion != 1:
      self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
      self._bn0 = BatchNorm(width, eps=1e-3)
    self._depthwise_conv = SameConv2d(width, width, kernel, stride, 0, dilation, width, bias=False)
    self._bn1 = BatchNorm(width, eps=1e-3)
    self._project_conv = nn.Conv2d(width, outputs, 1, bias=False)
    self._bn2 = BatchNorm(outputs, eps=1e-3)
    self.skip = stride == 1 and inputs == outputs

  def forward(self, x):
    y = x
    if hasattr(self, '_expand_conv'):
      y = F.relu6(self._bn0(self._expand_conv(y)))
    y = F.relu6(self._bn1(self._depthwise_conv(y)))
    y = self._bn2(self._project_conv(y))
    return x + y if self.skip else y


def efficientnet_layout(number: int, output_stride: int):
  """Rows (inputs, outputs, kernel, stride, expansion, dilation, stage), one a block.

  A stage that no longer strides dilates its depthwise convolutions instead, its first block too: as the ResNet does,
  not as networks that leave the formerly strided block undilated.
  """
  width, depth = EFFICIENTNET_FACTORS[number]
  rows, inputs, reached, dilation = [], 32, 2, 1
  for stage, (kernel, stride, expansion, channels, repeats) in enumerate(EFFICIENTNET_STAGES):
    outputs = max(8, int(channels * width + 4) // 8 * 8)
    if outputs < 0.9 * channels * width:
      outputs += 8
    if stage not in (0, len(EFFICIENTNET_STAGES) - 1):  # Lite networks do not deepen the first and the last stage
      repeats = math.ceil(repeats * depth)
    if reached * stride > output_stride:
      dilation, stride = dilation * stride, 1
    reached *= stride
    for i in range(repeats):
      rows.append((inputs, outputs, kernel, stride if i == 0 else 1, expansion, dilation, stage))
      inputs = outputs
  return rows


class EfficientNetLite(Encoder):
  """EfficientNet-Lite0 or 2 under the names of the ImageNet files; ReLU6, batch norm eps 1e-3, SAME padding.

  As an encoder its features are the last block's output (320 or 352 channels), without the 1x1 convolution to 1280.

  Args:
    number: 0 or 2.
    output_stride: 8, 16, or 32 (no dilation).
    classes: outputs of the classifier (`_conv_head`, `_bn1`, `_fc`), None for no classifier.
  """

  def __init__(self, number: int, output_stride: int = 16, classes: int | None = None):
    super().__init__()
    rows = efficientnet_layout(number, output_stride)
    self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
    self._bn0 = BatchNorm(32, eps=1e-3)
    self._blocks = nn.ModuleList(InvertedResidual(*row[:-1]) for row in rows)
    self.last_stage = next(i for i, row in enumerate(rows) if row[-1] == len(EFFICIENTNET_STAGES) - 1)
    self.channels = (rows[self.last_stage - 1][1], rows[-1][1])
    if classes is not None:
      self._conv_head = nn.Conv2d(self.channels[1], 1280, 1, bias=False)
      self._bn1 = BatchNorm(1280, eps=1e-3)
      self._fc = nn.Linear(1280, classes)

  def stages(self, x):
    x = F.relu6(self._bn0(self._conv_stem(x)))
    for i, block in enumerate(self._blocks):
      if i == self.last_stage:
        before = x
      x = block(x)
    return before, x

  def classify(self, x):
    """(b, 3, H, W) -> (b, classes) logits."""
    x = F.relu6(self._bn1(self._conv_head(self.stages(x)[1])))
    return self._fc(x.mean((2, 3)))
