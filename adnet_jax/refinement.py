"""Edge-aware refinement of coarse probabilities by the frame they are of: the fast guided filter, for arrays alone.

The network answers in cells of its output stride, 8 or 16 pixels, which bilinear up-sampling only blurs. Here every
neighbourhood's probabilities are fitted by a linear function of its colours, at a quarter of the network's resolution,
and the fits are applied to the frame at full resolution. Everything is products with small matrices, so it runs where
the network does. The paper has no such step: protocol `paper` without refinement is its rule.

Source: K. He, J. Sun, X. Tang, "Guided Image Filtering" (TPAMI 2013), equations 19 to 21 (colour guide);
K. He, J. Sun, "Fast Guided Filter" (2015).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from adnet_jax.models import layers

# Pixels of the network's input in a cell of the grid that is fitted on.
STEP = 4
# What is added to the variance of colours, which go from 0 to 1: smaller edges count as noise.
EPSILON = 1e-5


def grid_of(network: tuple[int, int]) -> tuple[int, int]:
  """(h, w) cells of the grid for a network's input of (width, height) pixels."""
  return -(-network[1] // STEP), -(-network[0] // STEP)


def sample(values: jax.Array, size: tuple[int, int], grid: tuple[int, int]) -> jax.Array:
  """Values of network outputs at the centres of the grid's cells.

  Args:
    values: (b, h, w, c); their first and last rows and columns are those of the frame, as of `resize_align_corners`.
    size: (h, w) of the frame in pixels.
    grid: (h, w) cells over it.

  Returns:
    (b, *grid, c) float32.
  """
  matrices = [
    layers.linear_matrix(_centres(cells, n) * (outputs - 1) / max(n - 1, 1), outputs)
    for cells, n, outputs in zip(grid, size, values.shape[1:3], strict=True)
  ]
  return jnp.moveaxis(_products(matrices, jnp.moveaxis(values, 3, 1)), 1, 3)


def refine(probabilities: jax.Array, frames: jax.Array, radius: int) -> jax.Array:
  """Probabilities of a coarse grid, brought to the frames' size along their edges.

  Args:
    probabilities: (b, h, w) float32 in [0, 1] at the grid's cells.
    frames: (b, H, W, 3) uint8 RGB.
    radius: of the square neighbourhoods, in cells: 2 radius + 1 to a side.

  Returns:
    (b, H, W) float32 in [0, 1].
  """
  grid, size = probabilities.shape[1:3], frames.shape[1:3]
  # Around 0: products of float32 then lose less. Planes, not pixels, are rows of matrices: what the products want.
  colours = jnp.moveaxis(frames, 3, 1).astype(jnp.float32) / 255 - 0.5
  guide = _products([area_matrix(cells, n) for cells, n in zip(grid, size, strict=True)], colours)
  target = probabilities[:, None]
  boxes = [box_matrix(cells, radius) for cells in grid]
  red, green, blue = (guide[:, c : c + 1] for c in range(3))
  squares = [red * red, red * green, red * blue, green * green, green * blue, blue * blue]
  moments = _products(boxes, jnp.concatenate([guide, target, guide * target, *squares], 1))
  r, g, b, p, rp, gp, bp, rr, rg, rb, gg, gb, bb = jnp.unstack(moments, axis=1)
  slopes = _solve(
    (rr - r * r + EPSILON, rg - r * g, rb - r * b, gg - g * g + EPSILON, gb - g * b, bb - b * b + EPSILON),
    (rp - r * p, gp - g * p, bp - b * p),
  )
  offset = p - slopes[0] * r - slopes[1] * g - slopes[2] * b
  # The mean over all neighbourhoods that a cell is in, and the way to the frame's size, are one product.
  up = [layers.linear_matrix(_centres(n, cells), cells) @ box for n, cells, box in zip(size, grid, boxes, strict=True)]
  fit = _products(up, jnp.stack([*slopes, offset], 1))
  # Written out: XLA's sum over planes takes 60 times as long on a CPU.
  fitted = sum((fit[:, c] * colours[:, c] for c in range(3)), start=fit[:, 3])
  return jnp.clip(fitted, 0, 1)


def _centres(cells: int, samples: int) -> np.ndarray:
  """Where the centres of cells lie among samples of the same extent, in units of samples."""
  return (np.arange(cells) + 0.5) * samples / cells - 0.5


def area_matrix(outputs: int, inputs: int) -> np.ndarray:
  """(outputs, inputs) float32: mean over each output's share of the inputs, the ends counted in part."""
  edges = np.arange(outputs + 1) * inputs / outputs
  low, high = edges[:-1, None], edges[1:, None]
  pixels = np.arange(inputs)
  covered = np.clip(np.minimum(high, pixels + 1) - np.maximum(low, pixels), 0, None)
  return (covered / covered.sum(1, keepdims=True)).astype(np.float32)


def box_matrix(cells: int, radius: int) -> np.ndarray:
  """(cells, cells) float32: mean over the neighbours up to `radius` away that exist."""
  near = np.abs(np.subtract.outer(np.arange(cells), np.arange(cells))) <= radius
  return (near / near.sum(1, keepdims=True)).astype(np.float32)


def _products(matrices: Sequence[np.ndarray], x: jax.Array) -> jax.Array:
  """(b, c, h, w) with rows, then columns, multiplied by a matrix; float32 whatever it is."""
  rows, columns = matrices
  y = jnp.einsum('Hh,bchw->bcHw', rows, x.astype(jnp.float32), precision='highest')
  return jnp.einsum('Ww,bcHw->bcHW', columns, y, precision='highest')


def _solve(matrix: tuple[jax.Array, ...], values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
  """x of M x = v for symmetric positive M, upper triangle row by row, by L D L^T: grey scenes are nearly singular."""
  m11, m12, m13, m22, m23, m33 = matrix
  l21, l31 = m12 / m11, m13 / m11
  d2 = jnp.maximum(m22 - l21 * m12, EPSILON)
  rest = m23 - l31 * m12
  l32 = rest / d2
  d3 = jnp.maximum(m33 - l31 * m13 - l32 * rest, EPSILON)
  y1, y2 = values[0], values[1] - l21 * values[0]
  y3 = values[2] - l31 * y1 - l32 * y2
  x3 = y3 / d3
  x2 = y2 / d2 - l32 * x3
  return y1 / m11 - l21 * x2 - l31 * x3, x2, x3
