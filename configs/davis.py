"""The paper's training (Sec. 4): ResNet-101, output stride 8, 30,000 steps of 8 pairs on the DAVIS-2016 training clips.

  python -m adnet_jax.main --config configs/davis.py --workdir runs/davis --mode train_and_evaluate \
      --config.data.root=DAVIS --config.init.weights=resnet101.pth

Every default and its source stands in adnet_jax/config.py; what the paper leaves open (momentum, crop, initialisers)
is marked there as ours. Hardware: one accelerator with 40 GB, or several with batch / devices pairs each.
"""

from adnet_jax import config as config_lib


def get_config():
  return config_lib.default()
