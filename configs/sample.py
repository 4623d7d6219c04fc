"""The bundled clip: scores the bundled model on it, or shows in two minutes on two CPU cores that training works.

  python -m adnet_jax.main --config configs/sample.py --workdir runs/sample --mode evaluate
  python -m adnet_jax.main --config configs/sample.py --workdir runs/sample --mode train

Training starts from the bundled model and runs 20 steps of 2 small pairs with a low learning rate: enough to see the
loss, checkpoints and a model file, too little to learn from. The clip is the only one, so it is trained on and scored
on: its score after training says nothing.
"""

from pathlib import Path

import adnet_jax
from adnet_jax import config as config_lib

SAMPLE = Path(adnet_jax.__file__).parent / 'assets' / 'sample'


def get_config():
  config = config_lib.default()
  config.data.root = str(SAMPLE)
  config.data.crop = 161
  config.init.weights = adnet_jax.DEFAULT_MODEL
  # The bundled model's own, as configs/compact.py trains it: training goes on with the same network.
  config.model.backbone = 'efficientnet_lite2'
  config.model.stem = 'efficientnet'
  config.model.output_stride = 16
  config.model.aspp_width = 128
  config.optim.lr = 0.001
  config.optim.batch_norm = 'frozen'
  config.optim.frozen_stages = 3
  config.optim.horizon = 20
  config.steps = 20
  config.batch = 2
  config.checkpoint.every = 10
  return config
