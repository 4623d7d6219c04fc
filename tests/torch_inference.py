"""The oracle's inference: input conventions, scales, mirror and what is averaged, from arrays to arrays."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_adnet import NEEDS_ANCHOR

NORMALIZATIONS = ('released', 'torchvision', 'efficientnet')
PROTOCOLS = ('paper', 'released')


def normalize(rgb: np.ndarray, convention: str) -> np.ndarray:
  """Network input of an RGB image, values 0..255: float32 (..., h, w, 3) of the same shape.

  'released': channel order BGR, 0..255 less the released mean. 'torchvision': RGB, 0..1, standardised by ImageNet's
  mean and deviation. 'efficientnet': RGB, (x - 127) / 128.
  """
  x = np.asarray(rgb, np.float32)
  if convention == 'released':
    return x[..., ::-1] - np.array([104.00698793, 116.66876762, 122.67891434], np.float32)
  if convention == 'torchvision':
    return (x / 255 - np.array([0.485, 0.456, 0.406], np.float32)) / np.array([0.229, 0.224, 0.225], np.float32)
  if convention == 'efficientnet':
    return (x - 127) / 128
  raise ValueError(f'normalization is one of {NORMALIZATIONS}, not {convention}')


def upsample(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
  """(b, c, h, w) -> (b, c, *size), bilinear, corners aligned."""
  return F.interpolate(logits, size, mode='bilinear', align_corners=True)


def to_torch(images: np.ndarray) -> torch.Tensor:
  """(b, h, w, c) float -> (b, c, h, w) float32."""
  return torch.from_numpy(np.ascontiguousarray(images, np.float32)).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def logits(model: nn.Module, anchor: np.ndarray | None, frame: np.ndarray) -> np.ndarray:
  """Normalised (b, h, w, 3) -> logits (b, h', w', 1) before up-sampling, as the library's `model.logits`."""
  output = model(None if anchor is None else to_torch(anchor), to_torch(frame))
  return output.permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def predict(
  model: nn.Module,
  anchor: np.ndarray | None,
  frame: np.ndarray,
  *,
  sizes: tuple[tuple[int, int], ...],
  mirror: bool = False,
  protocol: str = 'paper',
  normalization: str = 'released',
) -> np.ndarray:
  """Multi-scale, mirrored prediction of one frame, before any gate or threshold.

  Args:
    model: from `torch_adnet.build`.
    anchor: uint8 RGB (h, w, 3) of any size, None for variants without one.
    frame: uint8 RGB (h, w, 3).
    sizes: (width, height) of the inputs, one a scale.
    mirror: adds the mirror image of each scale; the anchor is mirrored too.
    protocol: 'paper' averages probabilities, 'released' raw logits.
    normalization: see `normalize`.

  Returns:
    float32 (h, w) of the frame's size: probabilities for 'paper', logits for 'released'.
  """
  if protocol not in PROTOCOLS:
    raise ValueError(f'protocol is one of {PROTOCOLS}, not {protocol}')

  def prepare(image, size):
    return to_torch(normalize(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), normalization)[None])

  total, count = torch.zeros(frame.shape[:2]), 0
  for size in sizes:
    pair = [prepare(frame, size)]
    if model.variant in NEEDS_ANCHOR:
      pair.append(prepare(anchor, size))
    for flip in (False, True) if mirror else (False,):
      images = [image.flip(3) if flip else image for image in pair]
      output = upsample(model(images[-1], images[0]), frame.shape[:2])
      output = (output.flip(3) if flip else output)[0, 0]
      total += output.sigmoid() if protocol == 'paper' else output
      count += 1
  return (total / count).numpy()
