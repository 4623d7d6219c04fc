"""Scores of masks as pure functions of NumPy arrays; knows nothing of files, models or JAX."""

from __future__ import annotations

from adnet_jax.metrics.contour import boundary_map, contour_accuracy
from adnet_jax.metrics.region import jaccard
from adnet_jax.metrics.statistics import clip_statistics

__all__ = ['boundary_map', 'clip_statistics', 'contour_accuracy', 'jaccard']
