"""What network inputs look like for each origin of weights: a pure function of uint8 images.

Sources: the released AD-Net program (OpenCV's BGR, 0..255 less a mean), torchvision, EfficientNet-Lite.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# (whether channels are reversed to BGR, mean, divisor) in 0..255.
_RULES = {
  'released': (True, (104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0)),
  'torchvision': (False, (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)),
  'efficientnet': (False, (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
}
NAMES = tuple(_RULES)


def normalize(images: jax.Array, rule: str) -> jax.Array:
  """(..., 3) RGB in 0..255, any dtype -> float32 as the weights expect; channels in the order they expect."""
  reverse, mean, divisor = _RULES[rule]
  images = images[..., ::-1] if reverse else images
  shape = (1,) * (images.ndim - 1) + (3,)
  offset, scale = (np.asarray(values, np.float32).reshape(shape) for values in (mean, divisor))
  return (jnp.asarray(images, jnp.float32) - offset) / scale
