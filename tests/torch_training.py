"""The oracle's training step: loss, gradients, momentum, parameters and batch norm statistics as NumPy dicts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_adnet import NEEDS_ANCHOR
from torch_inference import to_torch, upsample
from torch_trunks import BatchNorm


@dataclass(frozen=True)
class Step:
  """What one step gave; the dicts have state-dict names and PyTorch's layouts.

  Attributes:
    loss: the total, before the update.
    auxiliary_loss: the auxiliary part, not yet weighted; None without.
    gradients: of the loss alone, without weight decay.
    momentum: SGD's buffers after the step.
    parameters: after the step.
    statistics: running means and variances after the step.
  """

  loss: float
  auxiliary_loss: float | None
  gradients: dict[str, np.ndarray]
  momentum: dict[str, np.ndarray]
  parameters: dict[str, np.ndarray]
  statistics: dict[str, np.ndarray]


def bce(logits: torch.Tensor, mask: np.ndarray) -> torch.Tensor:
  """Mean binary cross-entropy of (b, 1, h, w) logits, up-sampled to the masks (b, H, W) of 0 and 1."""
  target = torch.from_numpy(np.asarray(mask, np.float32)).to(logits.dtype)
  return F.binary_cross_entropy_with_logits(upsample(logits, target.shape[1:])[:, 0], target)


def training_step(
  model: nn.Module,
  anchor: np.ndarray | None,
  frame: np.ndarray,
  mask: np.ndarray,
  anchor_mask: np.ndarray | None = None,
  *,
  lr: float,
  momentum: float = 0.9,
  weight_decay: float = 5e-4,
  auxiliary_weight: float = 0.4,
  dropout: float | None = 0.0,
  frozen_batch_norm: bool = False,
  buffers: dict[str, np.ndarray] | None = None,
) -> Step:
  """One step of PyTorch's SGD; the model is changed and left in evaluation mode.

  Anchors and frames go through the encoder as one batch [anchors; frames], so that they share batch norm statistics;
  the variants without an anchor encode the frames alone. The loss is on the frames' prediction. A model with an
  auxiliary head (of one output) adds that head's loss on the frames or, given `anchor_mask`, on [anchors; frames].

  In float32 the gradients of two implementations differ by up to 1 % on small maps, because a value near the kink of a
  ReLU falls on either side; in float64 they do not. A bias in front of a batch norm has gradient 0 but for
  rounding.

  Args:
    model: from `torch_adnet.build`; a model in float64 (`.double()`) computes in it.
    anchor: normalised float32 (b, h, w, 3), None for variants without one.
    frame: normalised float32 (b, h, w, 3).
    mask: (b, H, W) of 0 and 1.
    anchor_mask: (b, H, W) of 0 and 1, read by the auxiliary loss only.
    lr: learning rate.
    momentum: of SGD, without dampening or Nesterov.
    weight_decay: added to every gradient, of biases and batch norms too.
    auxiliary_weight: factor of the auxiliary loss.
    dropout: rate of all dropout layers; None leaves them as built.
    frozen_batch_norm: normalise by the running statistics, which then stay; scales and biases still learn.
    buffers: momentum of the step before, None for the first step.
  """
  model.train()
  for module in model.modules():
    if isinstance(module, nn.Dropout2d) and dropout is not None:
      module.p = dropout
    if isinstance(module, BatchNorm) and frozen_batch_norm:
      module.eval()
  features = getattr(model, 'features', model)
  auxiliary = hasattr(features, 'dsn') and auxiliary_weight > 0

  paired = model.variant in NEEDS_ANCHOR
  images = to_torch(np.concatenate([anchor, frame]) if paired else frame).to(next(model.parameters()).dtype)
  encoded = model.encode(images, auxiliary)
  embedding, side = encoded if auxiliary else (encoded, None)
  first, current = embedding.chunk(2) if paired else (None, embedding)
  loss, auxiliary_loss = bce(model.decode(first, current), mask), None
  if auxiliary:
    if not paired:
      auxiliary_loss = bce(side, mask)
    elif anchor_mask is None:
      auxiliary_loss = bce(side.chunk(2)[1], mask)
    else:
      auxiliary_loss = bce(side, np.concatenate([anchor_mask, mask]))
    loss = loss + auxiliary_weight * auxiliary_loss

  named = dict(model.named_parameters())
  optimizer = torch.optim.SGD(named.values(), lr, momentum, weight_decay=weight_decay)
  for name, value in (buffers or {}).items():
    optimizer.state[named[name]]['momentum_buffer'] = torch.from_numpy(value.copy())
  optimizer.zero_grad()
  loss.backward()
  gradients = {name: to_numpy(value.grad) for name, value in named.items() if value.grad is not None}
  optimizer.step()
  model.zero_grad()
  model.eval()
  return Step(
    loss=loss.item(),
    auxiliary_loss=None if auxiliary_loss is None else auxiliary_loss.item(),
    gradients=gradients,
    momentum={name: to_numpy(optimizer.state[named[name]]['momentum_buffer']) for name in gradients},
    parameters={name: to_numpy(value) for name, value in named.items()},
    statistics={name: to_numpy(value) for name, value in model.named_buffers()},
  )


def to_numpy(value: torch.Tensor) -> np.ndarray:
  return value.detach().numpy().copy()
