"""Second stage of the bundled compact model: larger crops, from the averaged weights of configs/compact.py.

  python -m adnet_jax.main --config configs/compact_large.py --workdir runs/compact_large --mode train_and_evaluate \
      --config.data.root=DAVIS --config.data.stills=stills --config.init.weights=runs/compact/final.safetensors

docs/model_zoo.md has the model card: data, steps, machine, time and scores.
"""

import runpy
from pathlib import Path


def get_config():
  config = runpy.run_path(str(Path(__file__).with_name('compact.py')))['get_config']()
  config.init.weights = 'runs/compact/final.safetensors'
  config.data.crop = 417
  config.batch = 4
  config.optim.lr = 0.012
  config.steps = config.optim.horizon = 660
  return config
