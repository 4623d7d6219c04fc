"""SGD with momentum, weight decay and the poly schedule, in PyTorch's order; knows trees of arrays only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def poly_schedule(rate: float, power: float, horizon: int) -> Callable[[jax.Array], jax.Array]:
  """rate * (1 - step / horizon) ** power, the "poly" policy of the paper's Sec. 4."""
  return lambda step: rate * (1 - jnp.minimum(step, horizon) / horizon) ** power


def sgd(
  schedule: Callable[[jax.Array], jax.Array], *, momentum: float, weight_decay: float, factors: Any
) -> optax.GradientTransformation:
  """PyTorch's SGD: the decay joins the gradient, then momentum, then the learning rate.

  Args:
    schedule: step -> learning rate.
    momentum: 0 to 1.
    weight_decay: of every parameter, biases and BatchNorm's included, as PyTorch's SGD does.
    factors: tree like the parameters' of factors of the learning rate.
  """
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.trace(decay=momentum),
    optax.scale_by_learning_rate(schedule),
    optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors)),
  )
