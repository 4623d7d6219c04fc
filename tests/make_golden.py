"""Writes tests/data/golden_*.npz: what the PyTorch oracle says of networks that anyone can build again without it.

    PYTHONPATH=tests python tests/make_golden.py

A file holds names and shapes of all tensors, the running statistics and the last layers (calibrated by the oracle, in
half precision), frames, and the oracle's logits. Everything else is drawn by tests/golden.py from the seed. Needs
PyTorch; run it when the oracle changes, which test_golden.py notices where PyTorch is installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import golden
import numpy as np
import torch
import torch_adnet
import torch_inference
import torch_weights

from adnet_jax.models.adnet import VARIANTS

# Name of the released file, backbone, stem, output stride, height, width.
CASES = (
  ('base', 'resnet18', '7x7', 16, 65, 81),
  ('intra', 'efficientnet_lite0', 'deep', 16, 62, 90),
  ('concat', 'resnet18', 'deep', 8, 41, 50),
  ('inter', 'resnet18', '7x7', 8, 50, 41),
  ('ad', 'resnet50', 'deep', 8, 65, 81),
)


def calibrated(name: str, backbone: str, stem: str, output_stride: int) -> torch.nn.Module:
  """The oracle with the seed's kernels and scales and with statistics that fit them, as half precision holds them."""
  variant = torch_adnet.RELEASED_NAMES[name]
  normalization = 'efficientnet' if backbone.startswith('efficientnet') else 'released'
  model = torch_adnet.build(variant, backbone, stem, output_stride, aspp_width=24, embedding=16)
  shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}

  def draw(module: torch.nn.Module, _: torch.Generator) -> None:
    drawn = {key: torch.from_numpy(golden.drawn(key, shape)) for key, shape in shapes.items()}
    module.load_state_dict(drawn)

  with mock.patch.object(torch_weights, 'draw', draw):
    torch_weights.random_weights(model, 1, normalization)
  state = model.state_dict()
  model.load_state_dict({key: value.half().float() if golden.is_stored(key) else value for key, value in state.items()})
  return model


def make(name: str, backbone: str, stem: str, output_stride: int, height: int, width: int) -> dict[str, np.ndarray]:
  """The arrays of one file."""
  model = calibrated(name, backbone, stem, output_stride)
  state = {key: value.numpy() for key, value in model.state_dict().items()}
  normalization = 'efficientnet' if backbone.startswith('efficientnet') else 'released'
  frames = torch_weights.random_images(2, 3, height, width)
  anchor, current = (torch_inference.normalize(part, normalization) for part in (frames[:1], frames[1:]))
  about = {
    'name': name,
    'normalization': normalization,
    'output_stride': output_stride,
    'shapes': {key: value.shape for key, value in state.items()},
  }
  stored = {f'tensor/{key}': value.astype(np.float16) for key, value in state.items() if golden.is_stored(key)}
  logits = torch_inference.logits(model, np.repeat(anchor, 2, axis=0), current)
  assert torch_adnet.RELEASED_NAMES[name] in VARIANTS
  return {'about': np.array(json.dumps(about)), 'frames': frames, 'logits': logits, **stored}


def main() -> None:
  folder = Path(golden.FOLDER)
  folder.mkdir(exist_ok=True)
  for case in CASES:
    np.savez_compressed(folder / f'golden_{case[0]}.npz', **make(*case))


if __name__ == '__main__':
  main()
