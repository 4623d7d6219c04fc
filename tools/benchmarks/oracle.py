"""The PyTorch oracle of the tests with random weights, and our network with the same ones."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.benchmarks.measuring import cores


def build(options: argparse.Namespace, kind: str) -> tuple[Any, str]:
  """The oracle with random weights, or None and the reason."""
  try:
    import torch

    torch_adnet, torch_weights = map(importlib.import_module, ('torch_adnet', 'torch_weights'))
  except ImportError as error:
    return None, f'{error.name} is not installed' if error.name == 'torch' else str(error)
  if kind not in ('cpu', 'gpu') or (kind == 'gpu' and not torch.cuda.is_available()):
    return None, f'this PyTorch has no {kind}'
  # The CPU backend of JAX takes every core that the process may use.
  torch.set_num_threads(cores())
  torch.manual_seed(0)
  stem = {'conv7x7': '7x7'}.get(options.stem, options.stem)
  oracle = torch_adnet.build(options.variant, options.backbone, stem, options.output_stride)
  return torch_weights.random_weights(oracle, seed=0), ''


def network(options: argparse.Namespace, oracle: Any, dtype: str) -> tuple[Any, Any]:
  """Our network, with the oracle's weights where there is one, and its metadata."""
  import flax.nnx as nnx
  import jax.numpy as jnp

  from adnet_jax import convert, weights
  from adnet_jax.models import adnet

  if oracle is not None:
    state = {name: array.numpy() for name, array in oracle.state_dict().items() if 'num_batches' not in name}
    found = convert.from_foreign(
      state, Path('oracle'), variant=options.variant, normalization='released', output_stride=options.output_stride
    )
    assert isinstance(found.metadata, weights.Metadata)
    return weights.build(found.metadata.architecture, found.arrays, dtype=jnp.dtype(dtype)), found.metadata
  architecture = adnet.Architecture(
    variant=options.variant, backbone=options.backbone, stem=options.stem, output_stride=options.output_stride
  )
  metadata = weights.Metadata(architecture, 'released', options.size, 'random weights', '', 'benchmark')
  return adnet.ADNet(architecture, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)), metadata


def frame_function(oracle, options, kind, anchor, frame, outputs) -> Callable[[], None]:
  """What the oracle does for a frame: eager, as its users run it."""
  import torch

  torch_inference = importlib.import_module('torch_inference')
  device = 'cuda' if kind == 'gpu' else 'cpu'
  oracle = oracle.to(device)

  def prepare(image):
    return torch_inference.to_torch(torch_inference.normalize(image, 'released')).to(device)

  has_anchor = options.variant != 'baseline'
  with torch.no_grad():
    embedding = oracle.encode(prepare(anchor)) if has_anchor else None

  @torch.no_grad()
  def theirs() -> None:
    current = prepare(frame)
    output = oracle.decode(embedding, oracle.encode(current)) if has_anchor else oracle(None, current)
    outputs['theirs'] = output.cpu().numpy()  # waits for the device

  return theirs
