"""Training on several devices: the same samples and losses on any number of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from adnet_jax import train

# What is the same sum in another order must stay that far apart (relative) over a whole training.
TOLERANCE = 1e-5


def run(config, workdir):
  """Losses (steps,) and sample ids of a training."""
  train.train(config, workdir)
  lines = [json.loads(line) for line in (workdir / 'train.jsonl').read_text().splitlines()]
  return np.array([line['loss'] for line in lines]), [line['sample_ids'] for line in lines]


@pytest.fixture
def config(training_config):
  """A training that does not amplify rounding, as one from a pretrained trunk does not.

  A ResNet-18 with random weights that all learn under batch statistics multiplies any change by ten and more a step: a
  change of its parameters in the last bit moves the loss of the sixth step by 1e-2, on one device too. In float64,
  1, 2 and 4 devices agree to 1e-15 in it. With the first three stages fixed and a tenth of the
  rate it does not grow beyond 1e-5.
  """
  config = training_config
  config.data.crop, config.batch, config.steps = 65, 8, 5
  config.optim.frozen_stages, config.optim.lr = 3, 0.0005
  return config


def test_any_number_of_devices_sees_the_same_samples_and_losses(config, tmp_path):
  losses, ids = {}, {}
  for config.devices in (1, 2, 4, 8):
    losses[config.devices], ids[config.devices] = run(config, tmp_path / str(config.devices))
  for devices in (2, 4, 8):
    assert ids[devices] == ids[1]
    np.testing.assert_allclose(losses[devices], losses[1], rtol=TOLERANCE, err_msg=f'{devices} devices')
