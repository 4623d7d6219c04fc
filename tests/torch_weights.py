"""Random weights for the oracle under which a comparison means something, and weight files as others write them."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch_inference import normalize
from torch_trunks import BasicBlock, BatchNorm, Bottleneck, Encoder, InvertedResidual


def random_images(seed: int, count: int, height: int, width: int) -> np.ndarray:
  """Smooth random RGB images with edges, uint8 (count, height, width, 3), of different brightness and contrast."""
  rng = np.random.default_rng(seed)
  images = np.empty((count, height, width, 3), np.uint8)
  for image in images:
    field = np.zeros((height, width, 3))
    for cells in (3, 7, 17):
      coarse = rng.normal(size=(cells, cells, 3)).astype(np.float32)
      field += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    (x0, y0), (x1, y1) = np.sort(rng.integers(0, (width, height), (2, 2)), axis=0)
    field[y0:y1, x0:x1] *= -1
    image[:] = np.clip(rng.uniform(90, 160) + rng.uniform(25, 60) * field + rng.normal(size=field.shape) * 8, 0, 255)
  return images


def random_weights(model: nn.Module, seed: int, normalization: str = 'released', spread: float = 0.8) -> nn.Module:
  """Draws weights under which a comparison means something; returns the model, in evaluation mode.

  Batch norm scales have both signs. Running statistics are those of a few random images, then moved away from them. The
  embeddings spread by about `spread` over the positions, so that the attention neither saturates nor averages, and the
  logits by about 1.5 around 0.

  Args:
    model: from `torch_adnet.build`.
    seed: of the draw.
    normalization: of the inputs that the model will see, see `torch_inference.normalize`.
    spread: standard deviation of the embeddings over positions, mean over channels.
  """
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    draw(model, generator)
    images = torch.from_numpy(normalize(random_images(seed, 6, 97, 129), normalization)).permute(0, 3, 1, 2)
    features = model if isinstance(model, Encoder) else model.features
    with observed_statistics(features, generator):
      features.encode(images, hasattr(features, 'dsn'))
    output = features.encode(images)
    if features is model:
      rescale(features.head[1], output, 1.5, centre=True)
      return model.eval()
    rescale(features.head[1], output, spread)
    anchor, current = features.encode(images).chunk(2)
    joined = model.branches(anchor, current)
    with observed_statistics(model.cls, generator):
      model.cls(joined)
    rescale(model.cls[3], model.cls(joined), 1.5, centre=True)
  return model.eval()


def draw(model: nn.Module, generator: torch.Generator) -> None:
  """Sets every convolution, batch norm scale and bias."""
  # A residual branch adds little to its sum, or after a hundred layers nothing is left of the image.
  last = {Bottleneck: 'bn3', BasicBlock: 'bn2', InvertedResidual: '_bn2'}
  small = {getattr(module, last[type(module)]) for module in model.modules() if type(module) in last}
  for module in model.modules():
    if isinstance(module, nn.Conv2d):
      gain = math.sqrt(2 / module.weight[0].numel())
      module.weight.normal_(0, gain, generator=generator)
      if module.bias is not None:
        module.bias.normal_(0, 0.1, generator=generator)
    elif isinstance(module, BatchNorm):
      module.weight.uniform_(*((0.1, 0.4) if module in small else (0.6, 1.4)), generator=generator)
      module.weight *= torch.randint(2, module.weight.shape, generator=generator) * 2 - 1
      module.bias.normal_(0, 0.2, generator=generator)


class observed_statistics:
  """Batch norms within normalise by the batch and store its statistics; on leaving these are moved at random."""

  def __init__(self, module: nn.Module, generator: torch.Generator):
    self.module, self.generator = module.eval(), generator
    self.norms = [part for part in module.modules() if isinstance(part, BatchNorm)]

  def __enter__(self):
    for norm in self.norms:
      norm.train()
      norm.momentum = 1.0

  def __exit__(self, *_):
    for norm in self.norms:
      norm.eval()
      norm.momentum = 0.1
      # Image pooling sees as many values as there are images: too few to trust a small variance.
      norm.running_var.clamp_(min=0.02)
      shift = torch.empty_like(norm.running_mean).normal_(0, 0.15, generator=self.generator)
      norm.running_mean += shift * norm.running_var.sqrt()
      norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.5, generator=self.generator)


def rescale(conv: nn.Conv2d, output: torch.Tensor, spread: float, centre: bool = False) -> None:
  """Makes `output`, which the convolution gave, spread by `spread` over positions; `centre` takes its mean away."""
  factor = spread / output.std((2, 3)).mean()
  conv.weight *= factor
  conv.bias *= factor
  if centre:
    conv.bias -= factor * output.mean()


def released_state(model: nn.Module, *, prefix: str = '', tracked: bool = False, dtype=None) -> dict[str, torch.Tensor]:
  """State dict as files have it: `prefix` before each name ('module.'), `num_batches_tracked` entries, a data type."""
  state = {}
  for name, value in model.state_dict().items():
    state[prefix + name] = value.detach().clone() if dtype is None else value.detach().to(dtype)
    if tracked and name.endswith('running_var'):
      state[prefix + name.replace('running_var', 'num_batches_tracked')] = torch.tensor(7)
  return state


def save_released(
  model: nn.Module, path: str | Path, *, prefix: str = '', wrapper: str | None = None, tracked: bool = False, dtype=None
) -> Path:
  """Writes a `.pth`; `wrapper` is the key that holds the state dict ('state_dict', 'model'), None for the bare one."""
  state = released_state(model, prefix=prefix, tracked=tracked, dtype=dtype)
  torch.save(state if wrapper is None else {wrapper: state, 'epoch': 3}, path)
  return Path(path)
