"""The paper's training with ResNet-50 instead of ResNet-101: about half of the arithmetic, for one smaller accelerator.

  python -m adnet_jax.main --config configs/davis_resnet50.py --workdir runs/davis_resnet50 \
      --mode train_and_evaluate --config.data.root=DAVIS --config.init.weights=resnet50.pth

`init.weights` is a torchvision file here (7x7 stem); for a deep-stem file add --config.model.stem=deep. Everything else
is configs/davis.py. Hardware: one accelerator with 24 GB. Not trained yet; docs/model_zoo.md has what is.
"""

from adnet_jax import config as config_lib


def get_config():
  config = config_lib.default()
  config.model.backbone = 'resnet50'
  config.model.stem = 'conv7x7'
  return config
