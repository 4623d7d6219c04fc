"""The bundled compact model: EfficientNet-Lite2 trunk at output stride 16, ASPP 128 wide; trains on two CPU cores.

  python -m adnet_jax.main --config configs/compact.py --workdir runs/compact --mode train_and_evaluate \
      --config.data.root=DAVIS --config.data.stills=stills

docs/model_zoo.md has the model card: data, steps, machine, time and scores.
"""

from adnet_jax import config as config_lib


def get_config():
  config = config_lib.default()
  config.model.backbone = 'efficientnet_lite2'
  config.model.stem = 'efficientnet'
  config.model.output_stride = 16
  config.model.aspp_width = 128
  config.init.weights = 'efficientnet_lite2'
  config.data.crop = 321
  config.data.stills_fraction = 0.5
  config.data.rotation = 0.8
  config.data.flip = 0.5
  config.data.colour = 0.3
  config.optim.lr = 0.02
  config.optim.backbone_lr_factor = 0.2
  config.optim.batch_norm = 'frozen'
  config.optim.frozen_stages = 3
  config.optim.ema = 0.998
  config.optim.both_directions = True
  config.optim.horizon = 2600
  config.steps = 2600
  config.batch = 6
  config.checkpoint.every = 100
  config.observe.images_every = 100
  config.evaluate.every = 200
  config.evaluate.size = (769, 433)
  config.evaluate.refine = 28
  return config
