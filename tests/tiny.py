"""A tiny network with random weights as a model file, and clips to try it on: what tests of inference share."""

from __future__ import annotations

from pathlib import Path

import cv2
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np

from adnet_jax import weights
from adnet_jax.metadata import Metadata
from adnet_jax.models import adnet, layers
from adnet_jax.normalization import normalize

SIZE = (129, 65)
TERMS = 'terms of a test'


def architecture(variant: str = 'full') -> adnet.Architecture:
  return adnet.Architecture(
    variant=variant, backbone='resnet10', stem='conv7x7', output_stride=16, aspp_width=16, embedding=16
  )


def write_model(path: Path, variant: str = 'full', seed: int = 5) -> Path:
  """A model file whose masks of `frames` hold both values: random, its BatchNorm set to what such frames make."""
  rng = np.random.default_rng(seed)
  arrays = {}
  for name, shape in weights.shapes(architecture(variant)).items():
    deviation = np.sqrt(2 / np.prod(shape[:-1])) if name.endswith('kernel') else 0
    arrays[name] = np.float32(rng.normal(float(name.endswith(('scale', 'var'))), deviation, shape))
  module = weights.build(architecture(variant), arrays)
  for _, part in nnx.iter_modules(module):
    if isinstance(part, layers.Conv):
      part.momentum = 1.0  # the running statistics become those of the one batch that follows
  images = np.stack([cv2.resize(image, SIZE) for image in frames(4)])
  graph, state = nnx.split(module)

  @jax.jit
  def calibrate(state):
    module = nnx.merge(graph, state)
    x = normalize(jnp.asarray(images), 'torchvision')
    training = adnet.Training(None)
    current = module.encode(x, training)
    return module.classify(current[:1], current, training), nnx.state(module)

  logits, state = jax.device_get(calibrate(state))
  arrays = {name: np.array(array) for name, array in weights.flatten(nnx.merge(graph, state)).items()}
  last = 'embedding' if variant == 'baseline' else 'classifier/logits'
  gain = 3 / logits.std()
  arrays[f'{last}/bias'] = (arrays[f'{last}/bias'] - np.median(logits)) * gain
  arrays[f'{last}/kernel'] = arrays[f'{last}/kernel'] * gain
  weights.save(path, arrays, Metadata(architecture(variant), 'torchvision', SIZE, 'random weights', TERMS, 'a test'))
  return path


def frames(count: int, size: tuple[int, int] = (96, 48), seed: int = 0) -> list[np.ndarray]:
  """(h, w, 3) uint8 RGB pictures of a bright disc that moves over noise; `size` is (width, height)."""
  rng, (width, height) = np.random.default_rng(seed), size
  noise = rng.integers(0, 90, (height, width, 3), np.uint8)
  found = []
  for k in range(count):
    image = np.roll(noise, 2 * k, 1).copy()
    centre = (int(width * (0.2 + 0.6 * k / max(count - 1, 1))), height // 2)
    cv2.circle(image, centre, max(1, height // 4), (250, 120 + 5 * (k % 20), 40), -1)
    found.append(image)
  return found


def write_frames(folder: Path, images: list[np.ndarray], first: int = 0) -> Path:
  folder.mkdir(parents=True, exist_ok=True)
  for k, image in enumerate(images, first):
    cv2.imwrite(str(folder / f'{k:05d}.png'), image[..., ::-1])
  return folder
