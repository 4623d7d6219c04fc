"""Takes flicker out of masks that follow each other, with a short look ahead; knows arrays only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adnet_jax.instances import components


def vote(masks: Sequence[np.ndarray]) -> np.ndarray:
  """Pixels that are foreground in more than half of the (h, w) bool masks."""
  count = np.zeros(masks[0].shape, np.int32)
  for mask in masks:
    count += mask
  return count * 2 > len(masks)


def steady(masks: Sequence[np.ndarray], at: int) -> np.ndarray:
  """A mask without components that flash up, and with those that blink away.

  Args:
    masks: (h, w) bool, consecutive frames of one shot and one size, an odd number of them or fewer at its ends.
    at: which of them is wanted.

  Returns:
    (h, w) bool: a component of the frame stays if it touches foreground in at least half of the other masks; a
    component of what more than half of the others agree on comes in if it touches nothing in this frame. Outlines stay
    as they are, however fast they move. One neighbour alone decides nothing, and nothing comes in at the ends.
  """
  mask, before, after = masks[at], masks[:at], masks[at + 1 :]
  others = [*before, *after]
  if len(others) < 2:
    return mask
  labels, _, areas = components(mask)
  votes = np.zeros(len(areas) + 1, np.int64)
  for other in others:
    votes[np.unique(labels[other])] += 1
  keep = votes * 2 >= len(others)
  keep[0] = False
  result = keep[labels]
  if not before or not after:
    return result
  missing, _, areas = components(vote(others) & np.any(before, axis=0) & np.any(after, axis=0))
  touched = np.zeros(len(areas) + 1, bool)
  touched[np.unique(missing[mask])] = True
  touched[0] = True
  return result | ~touched[missing]
