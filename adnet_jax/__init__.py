"""AD-Net (anchor diffusion, ICCV 2019) in JAX: masks of the foreground object of a video, with no hint from anybody."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = '0.1.0'
DEFAULT_MODEL = 'adnet-compact'  # bundled in assets/models
# Imported at first use: `adnet --help` and the metrics need no JAX.
_PUBLIC = {'Segmenter': 'segmenter', 'load_model': 'pretrained', 'AdnetError': 'errors'}
__all__ = ['DEFAULT_MODEL', 'AdnetError', 'Segmenter', '__version__', 'load_model']


def __getattr__(name: str) -> Any:
  if name in _PUBLIC:
    return getattr(importlib.import_module(f'adnet_jax.{_PUBLIC[name]}'), name)
  raise AttributeError(f"module 'adnet_jax' has no attribute {name!r}")
