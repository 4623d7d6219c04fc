"""The PyTorch oracle of the tests with random weights, our network with the same ones, and how its users run it."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tools.benchmarks.measuring import cores

# Name of a way to run the oracle: (compiled, channels last).
WAYS = {'eager': (False, False), 'channels-last': (False, True), 'compiled': (True, True)}


def build(variant: str, backbone: str, stem: str, output_stride: int, kind: str, **sizes: Any) -> tuple[Any, str]:
  """The oracle with random weights, or None and the reason; `kind` is the platform that it is to run on."""
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
  oracle = torch_adnet.build(variant, backbone, {'conv7x7': '7x7'}.get(stem, stem), output_stride, **sizes)
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


def frame_functions(
  oracle: Any, ways: list[str], dtype: str, kind: str, anchor: Any, frames: Any, outputs: dict[str, Any]
) -> Mapping[str, Callable[[], None]]:
  """What the oracle does for a batch of frames whose anchor is cached, in each of `ways`; logits go to `outputs`."""
  import copy

  import torch

  torch_inference = importlib.import_module('torch_inference')
  device, precision = 'cuda' if kind == 'gpu' else 'cpu', getattr(torch, dtype)

  def function(way: str) -> Callable[[], None]:
    compiled, channels_last = WAYS[way]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = copy.deepcopy(oracle).to(device, precision, memory_format=layout)
    paired = hasattr(model, 'decode')

    def compute(embedding: Any, images: Any) -> Any:
      return model.decode(embedding, model.encode(images)) if paired else model(None, images)

    run = torch.compile(compute) if compiled else compute

    def prepare(image: Any) -> Any:
      normalized = torch_inference.to_torch(torch_inference.normalize(image, 'released'))
      return normalized.to(device, precision, memory_format=layout)

    with torch.no_grad():
      embedding = model.encode(prepare(anchor)).expand(len(frames), -1, -1, -1) if paired else None

    @torch.no_grad()
    def frame() -> None:
      outputs[way] = run(embedding, prepare(frames)).float().cpu().numpy()  # waits for the device

    return frame

  return {way: function(way) for way in ways}


def of_architecture(a: Any, kind: str) -> tuple[Any, str]:
  """The oracle of a model's architecture, with random weights, or None and the reason."""
  sizes = {'multi_grid': a.multi_grid, 'aspp_width': a.aspp_width, 'embedding': a.embedding}
  return build(a.variant, a.backbone, a.stem, a.output_stride, kind, **sizes)


def clip_function(oracle: Any, kind: str, normalization: str, source: Any, size: tuple[int, int], out: Path) -> Any:
  """The loop that a user of the oracle writes: read, resize, compute, up-sample, write, a frame at a time."""
  import cv2
  import torch

  from adnet_jax import writers

  torch_inference = importlib.import_module('torch_inference')
  device = 'cuda' if kind == 'gpu' else 'cpu'
  oracle = oracle.to(device)
  paired = hasattr(oracle, 'decode')

  @torch.no_grad()
  def loop() -> None:
    anchor = None
    for frame in source:
      image = cv2.resize(frame.image, size, interpolation=cv2.INTER_LINEAR)[None]
      images = torch_inference.to_torch(torch_inference.normalize(image, normalization)).to(device)
      if paired:
        current = oracle.encode(images)
        anchor = current if anchor is None else anchor
        logits = oracle.decode(anchor, current)
      else:
        logits = oracle(None, images)
      mask = torch_inference.upsample(logits, frame.image.shape[:2])[0, 0] > 0
      writers.write_mask(out / f'{frame.name}.png', mask.cpu().numpy())

  return loop


def step_function(
  oracle: Any, way: str, dtype: str, kind: str, images: Any, masks: Any, lr: float
) -> Callable[[], None]:
  """A training step of the oracle from a batch on the device; in bfloat16 by PyTorch's automatic casts."""
  import torch
  import torch.nn.functional as F

  torch_inference = importlib.import_module('torch_inference')
  device = 'cuda' if kind == 'gpu' else 'cpu'
  compiled, channels_last = WAYS[way]
  layout = torch.channels_last if channels_last else torch.contiguous_format
  model = oracle.to(device, memory_format=layout).train()
  run = torch.compile(model) if compiled else model
  optimizer = torch.optim.SGD(model.parameters(), lr, 0.9, weight_decay=5e-4)
  anchor, frame = (
    torch_inference.to_torch(torch_inference.normalize(images[:, k], 'released')).to(device, memory_format=layout)
    for k in (0, 1)
  )
  truth = torch.from_numpy(masks[:, 1]).float().to(device)

  def step() -> None:
    with torch.autocast(device, getattr(torch, dtype), enabled=dtype != 'float32'):
      logits = run(anchor, frame)
    logits = torch_inference.upsample(logits.float(), truth.shape[1:])[:, 0]
    loss = F.binary_cross_entropy_with_logits(logits, truth)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item()  # waits for the device

  return step
