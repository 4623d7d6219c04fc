"""Network outputs to masks under the two inference protocols, as functions of arrays; knows no models or files."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

PROTOCOLS = ('paper', 'released')

PAPER_THRESHOLD = 0.5  # of a probability
RELEASED_THRESHOLD = 0.5  # of a logit: probability .622

# All three are in pixels of the mask, at whatever size it is: the released program has no relative ones.
GATE_COUNTS = (5_000, 100_000)
OPENING_SIDE = 15
GATE_SIDE = 101


def mean_heatmap(logits: Sequence[np.ndarray]) -> np.ndarray:
  """Averages probabilities over scales and mirror images (protocol `paper`).

  Args:
    logits: at least one (h, w) float32 array, all brought to the size of the mask and mirrored back.

  Returns:
    (h, w) float32 probabilities in [0, 1], the paper's heat map.

  Source: section 3 of the paper.
  """
  # tanh does not overflow for large logits, exp does.
  return mean_logits([0.5 * (1 + np.tanh(0.5 * np.asarray(one, np.float32))) for one in logits])


def mean_logits(logits: Sequence[np.ndarray]) -> np.ndarray:
  """Averages raw logits over scales and mirror images (protocol `released`): (h, w) arrays to one (h, w) float32."""
  return np.stack(logits).mean(axis=0, dtype=np.float32)


def paper_mask(probabilities: np.ndarray, threshold: float = PAPER_THRESHOLD) -> np.ndarray:
  """Foreground of protocol `paper`: (h, w) float32 in [0, 1] to (h, w) bool, true strictly above the threshold."""
  return probabilities > threshold


def released_step(logits: np.ndarray, reference: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
  """One frame of protocol `released`: the gate of the frame before, then logit > 0.5.

  Args:
    logits: (h, w) float32, the mean over scales and mirror images; multiplied by a pruning mask where there is one.
    reference: (h, w) bool, the second result of the call for the frame before; None for a clip's first frame. One of
      another size (a clip whose frames change size) gives no gate.

  Returns:
    mask: (h, w) bool, the gated foreground.
    reference: (h, w) bool for the next frame: the foreground without the gate, so an object outside it can come back.

  Source: eval.py of yz93/anchor-diff-VOS.
  """
  foreground = logits > RELEASED_THRESHOLD
  if reference is None or reference.shape != foreground.shape:
    return foreground, foreground
  gate = opened_dilated_gate(reference)
  # The program multiplies logits by the gate's 0 or 1, and 0 is not above the threshold: the same set of pixels.
  return (foreground if gate is None else foreground & gate), foreground


def opened_dilated_gate(reference: np.ndarray) -> np.ndarray | None:
  """Where foreground may be: that of the frame before, opened with a 15x15 square, then dilated with a 101x101 one.

  Args:
    reference: (h, w) bool, ungated foreground of the frame before.

  Returns:
    (h, w) bool; all false where the opening leaves nothing. None, meaning no gate, unless the foreground counts more
    than 5,000 and fewer than 100,000 pixels.

  Source: eval.py of yz93/anchor-diff-VOS. The image's border neither erodes nor dilates (OpenCV's default).
  """
  low, high = GATE_COUNTS
  if not low < np.count_nonzero(reference) < high:
    return None
  opened = cv2.morphologyEx(reference.astype(np.uint8), cv2.MORPH_OPEN, np.ones((OPENING_SIDE, OPENING_SIDE), np.uint8))
  return cv2.dilate(opened, np.ones((GATE_SIDE, GATE_SIDE), np.uint8)).astype(bool)


def without_small(mask: np.ndarray, smallest: float) -> np.ndarray:
  """A mask without small leftovers.

  Args:
    mask: (h, w) bool.
    smallest: share of the picture, in [0, 1]; connected components of fewer pixels go (pixels that touch at a corner
      are connected).

  Returns:
    (h, w) bool.
  """
  _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
  keep = stats[:, cv2.CC_STAT_AREA] >= smallest * mask.size
  keep[0] = False
  return keep[labels]
