"""Fine-tunes the bundled model on a folder of one's own clips and masks: docs/own_data.md.

  python -m adnet_jax.main --config configs/folder.py --workdir runs/mine --mode train --config.data.root=MY_CLIPS

MY_CLIPS holds CLIP/NAME.jpg with masks/CLIP/NAME.png, or another layout of docs/data.md. Everything is that of
configs/compact.py but for a tenth of its rate, no photographs and few steps: the network knows foreground already.
Hardware: two CPU cores and 4 GB, or any accelerator.
"""

import runpy
from pathlib import Path

import adnet_jax


def get_config():
  config = runpy.run_path(str(Path(__file__).with_name('compact.py')))['get_config']()
  config.init.weights = adnet_jax.DEFAULT_MODEL
  config.data.stills_fraction = 0.0
  config.optim.lr = 0.002
  config.optim.ema = 0.98
  config.optim.horizon = 300
  config.steps = 300
  config.batch = 4
  config.checkpoint.every, config.checkpoint.keep = 50, 6
  return config
