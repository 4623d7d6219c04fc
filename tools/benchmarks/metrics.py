"""Section `metrics`: processor time a frame of what the score rules measure."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

from tools.benchmarks.measuring import ROOT, Row, measure

FRAMES = 8


def run(options: argparse.Namespace) -> list[Row]:
  """Region, contour, stability and saliency of masks of the bundled clip, each against those of the frame before."""
  import numpy as np

  from adnet_jax import masks
  from adnet_jax.metrics import contour_accuracy, jaccard, saliency, stability

  folder = ROOT / 'adnet_jax/assets/sample/Annotations/480p/astronaut'
  found = [masks.read_mask(path) for path in sorted(folder.glob('*.png'))[: options.frames or FRAMES]]
  pairs = list(itertools.pairwise(found))

  def each(function: Callable[[Any, Any], Any]) -> Callable[[], Any]:
    return lambda: [function(one, other) for one, other in pairs]

  def soft(one: Any, other: Any) -> Any:
    return saliency.frame_saliency(one.astype(np.float64), other, 'davsod')

  functions = {
    'J, region': each(jaccard),
    'F, contour': each(contour_accuracy),
    'T, stability': each(lambda one, other: stability.instability(stability.describe(one), stability.describe(other))),
    'saliency: MAE, F, S, E': each(soft),
  }
  height, width = found[0].shape
  return [
    {'what': f'{what}, {width}x{height}', 'CPU ms a frame': 1000 * min(timing.cpu) / len(pairs)}
    for what, timing in measure(functions, options.repeats).items()
  ]
