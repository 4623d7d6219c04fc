"""SGD as PyTorch does it: against a loop in NumPy, and against PyTorch where it is installed."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adnet_jax import optimizer

RATE, POWER, HORIZON, MOMENTUM, DECAY = 0.1, 0.9, 8, 0.9, 5e-2


def rates(steps):
  return [RATE * (1 - step / HORIZON) ** POWER for step in range(steps)]


def problem(steps=6):
  rng = np.random.default_rng(0)
  start = {'a': rng.normal(size=(3, 2)).astype(np.float32), 'b': rng.normal(size=4).astype(np.float32)}
  gradients = [
    {name: rng.normal(size=array.shape).astype(np.float32) for name, array in start.items()} for _ in range(steps)
  ]
  return start, gradients


def run(start, gradients, factors):
  sgd = optimizer.sgd(
    optimizer.poly_schedule(RATE, POWER, HORIZON), momentum=MOMENTUM, weight_decay=DECAY, factors=factors
  )
  parameters = {name: jnp.asarray(array) for name, array in start.items()}
  state = sgd.init(parameters)
  for gradient in gradients:
    updates, state = sgd.update({name: jnp.asarray(array) for name, array in gradient.items()}, state, parameters)
    parameters = optax.apply_updates(parameters, updates)
  return parameters


def test_poly_schedule():
  schedule = optimizer.poly_schedule(5e-3, 0.9, 40_000)
  np.testing.assert_allclose(schedule(jnp.asarray(0)), 5e-3, rtol=1e-6)
  np.testing.assert_allclose(schedule(jnp.asarray(30_000)), 5e-3 * 0.25**0.9, rtol=1e-6)
  assert schedule(jnp.asarray(40_000)) == 0
  assert schedule(jnp.asarray(50_000)) == 0
  values = [float(schedule(jnp.asarray(step))) for step in range(0, 40_001, 5_000)]
  assert values == sorted(values, reverse=True)


def test_steps_equal_a_loop_in_numpy():
  start, gradients = problem()
  factors = {'a': 1.0, 'b': 0.2}
  found = run(start, gradients, factors)
  for name, value in start.items():
    momentum = np.zeros_like(value)
    for rate, gradient in zip(rates(len(gradients)), gradients, strict=True):
      momentum = MOMENTUM * momentum + gradient[name] + DECAY * value
      value = value - rate * factors[name] * momentum
    np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def test_steps_equal_pytorch():
  torch = pytest.importorskip('torch')
  start, gradients = problem()
  found = run(start, gradients, {'a': 1.0, 'b': 0.2})
  parameters = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in start.items()}
  groups = [{'params': [parameters['a']], 'factor': 1.0}, {'params': [parameters['b']], 'factor': 0.2}]
  sgd = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
  for rate, gradient in zip(rates(len(gradients)), gradients, strict=True):
    for group in sgd.param_groups:
      group['lr'] = rate * group['factor']
    for name, parameter in parameters.items():
      parameter.grad = torch.from_numpy(gradient[name].copy())
    sgd.step()
  for name, parameter in parameters.items():
    np.testing.assert_allclose(found[name], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_without_momentum_and_decay_a_step_is_the_gradient():
  sgd = optimizer.sgd(lambda step: 0.5, momentum=0.0, weight_decay=0.0, factors={'a': 1.0})
  parameters = {'a': jnp.asarray([1.0, 2.0])}
  updates, _ = sgd.update({'a': jnp.asarray([2.0, -2.0])}, sgd.init(parameters), parameters)
  np.testing.assert_allclose(updates['a'], [-1.0, 1.0])
