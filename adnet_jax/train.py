"""Training: one readable loop from a validated configuration to a model file; knows nothing of the command line.

The step is one program over the global batch: sharded data, replicated state, BatchNorm over the whole batch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import ml_collections
from absl import logging
from clu import parameter_overview
from jax.sharding import NamedSharding, PartitionSpec

from adnet_jax import __version__, checkpoint, optimizer, resume, weights
from adnet_jax import config as config_lib
from adnet_jax.data import datasets, input_pipeline
from adnet_jax.errors import DeviceError, DivergedError, UsageError
from adnet_jax.models import adnet, layers
from adnet_jax.normalization import normalize

# Weight of the auxiliary head's loss, as DeepLab-like networks train with it (PSPNet, Zhao et al. 2017).
AUXILIARY_WEIGHT = 0.4

Tree = Any


# ---------------------------------------------------------------------------------------------------- loss


def binary_cross_entropy(logits: jax.Array, masks: jax.Array) -> jax.Array:
  """Mean BCE of logits up-sampled (bilinear, align_corners) to the masks (paper Sec. 4, "Training").

  Args:
    logits: (b, h, w, 1) float32.
    masks: (b, H, W), 0 and 1.
  """
  z = layers.resize_align_corners(logits, (masks.shape[1], masks.shape[2]))[..., 0]
  y = masks.astype(jnp.float32)
  return jnp.mean(jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z))))


def pair_loss(
  model: adnet.ADNet, images: jax.Array, masks: jax.Array, training: adnet.Training, both_directions: bool = False
) -> jax.Array:
  """Loss of a batch of pairs; moves the model's BatchNorm statistics.

  Args:
    model: in its training form.
    images: (b, 2, H, W, 3) normalised; [:, 0] are the anchors. Both frames pass the encoder as one batch.
    masks: (b, 2, H, W), 0 and 1.
    training: dropout, statistics, frozen stages.
    both_directions: whether the anchor is predicted too, with the frame as its anchor.

  Returns:
    () float32: BCE of the current frame, or the mean of both directions; plus AUXILIARY_WEIGHT times the auxiliary
    head's BCE on both frames.
  """
  pairs = images.shape[0]
  stacked = jnp.concatenate([images[:, 0], images[:, 1]])  # (2b, H, W, 3): all anchors, then all frames
  stacked_masks = jnp.concatenate([masks[:, 0], masks[:, 1]])
  embeddings, auxiliary = model.encode_with_auxiliary(stacked, training)
  if both_directions:
    swapped = jnp.concatenate([embeddings[pairs:], embeddings[:pairs]])
    loss = binary_cross_entropy(model.classify(swapped, embeddings, training), stacked_masks)
  else:
    logits = model.classify(embeddings[:pairs], embeddings[pairs:], training)
    loss = binary_cross_entropy(logits, masks[:, 1])
  if auxiliary is not None:
    loss += AUXILIARY_WEIGHT * binary_cross_entropy(auxiliary, stacked_masks)
  return loss


# --------------------------------------------------------------------------------------------------- state


@dataclasses.dataclass(frozen=True)
class Trainer:
  """The static half of training: the network's graph and how a step is made.

  Attributes:
    graph: NNX graph of the model.
    metadata: of the model files that are written.
    schedule: step -> learning rate.
    optimizer: of the learnt parameters.
    config: validated configuration.
  """

  graph: nnx.GraphDef
  metadata: weights.Metadata
  schedule: Callable[[jax.Array], jax.Array]
  optimizer: Any
  config: ml_collections.FrozenConfigDict

  def merge(self, state: Tree) -> adnet.ADNet:
    """The model of a training state, with variables of its own."""
    return nnx.merge(self.graph, state['learnt'], state['fixed'], state['statistics'], copy=True)


def initialize(config: ml_collections.ConfigDict) -> tuple[Trainer, Tree]:
  """Model, optimiser and the state of step 0.

  Where parameters come from is decided here alone: random by PyTorch's rule; then `init.weights` replaces what it
  holds (a whole model, or an ImageNet trunk); a checkpoint in the workdir, if any, replaces everything later.
  """
  c = config
  try:
    architecture = adnet.Architecture(
      variant=c.model.variant,
      backbone=c.model.backbone,
      stem=c.model.stem,
      output_stride=c.model.output_stride,
      multi_grid=tuple(c.model.multi_grid),
      aspp_width=c.model.aspp_width,
      embedding=c.model.embedding,
      auxiliary=int(c.model.auxiliary),
    )
  except ValueError as error:
    raise UsageError(str(error), 'model') from error
  dtype = jnp.dtype(c.model.dtype)
  arrays: dict[str, Any] = dict(weights.flatten(adnet.ADNet(architecture, rngs=nnx.Rngs(c.seed))))
  normalization, terms = weights.default_normalization(c.model.stem), 'terms of the training data'
  if c.init.weights:
    initial = weights.read_initial(c.init.weights, architecture)
    arrays.update(initial.arrays)
    normalization = initial.metadata.normalization
    terms += f'; of the initial weights: {initial.metadata.licence}'
  normalization = c.model.normalization or normalization
  model = weights.build(architecture, arrays, dtype=dtype)

  frozen = frozen_prefixes(c.model.backbone, c.optim.frozen_stages)
  graph, learnt, fixed, statistics = nnx.split(  # type: ignore[misc]
    model, nnx.All(nnx.Param, lambda path, _: not is_frozen(path, frozen)), nnx.Param, nnx.BatchStat
  )
  factors = jax.tree.map_with_path(
    lambda path, _: c.optim.backbone_lr_factor if path[0].key == 'backbone' else 1.0, learnt
  )
  schedule = optimizer.poly_schedule(c.optim.lr, c.optim.power, c.optim.horizon)
  sgd = optimizer.sgd(schedule, momentum=c.optim.momentum, weight_decay=c.optim.weight_decay, factors=factors)
  size = tuple(c.evaluate.size) or (857, 481)
  metadata = weights.Metadata(
    architecture,
    normalization,
    size,
    f'trained by adnet-jax from {c.init.weights or "random weights"}',
    terms,
    f'adnet-jax {__version__}',
  )
  trainer = Trainer(graph, metadata, schedule, sgd, ml_collections.FrozenConfigDict(c))
  state = {
    'step': jnp.zeros((), jnp.int32),
    'learnt': learnt,
    'fixed': fixed,
    'statistics': statistics,
    'optimizer': sgd.init(learnt),
    'skipped': jnp.zeros((), jnp.int32),
  }
  if c.optim.ema:
    state['average'] = jax.tree.map(jnp.copy, {'learnt': learnt, 'statistics': statistics})
  return trainer, state


def frozen_prefixes(backbone: str, stages: int) -> list[tuple]:
  """Path prefixes of the parameters of the first `stages` trunk stages, the stem with the first."""
  if stages == 0:
    return []
  if backbone.startswith('efficientnet'):
    return [('backbone', 'stem'), *(('backbone', 'stages', i) for i in range(stages))]
  return [*(('backbone', f'conv{i}') for i in (1, 2, 3)), *(('backbone', f'layer{i + 1}') for i in range(stages))]


def is_frozen(path: tuple, prefixes: list[tuple]) -> bool:
  return any(tuple(path[: len(prefix)]) == prefix for prefix in prefixes)


# ---------------------------------------------------------------------------------------------------- step


def loss_and_gradients(
  trainer: Trainer, state: Tree, images: jax.Array, masks: jax.Array, key: jax.Array | None
) -> tuple[jax.Array, Tree, Tree]:
  """Loss, gradients of the learnt parameters and the moved BatchNorm statistics of a batch.

  Args:
    trainer: static half.
    state: training state.
    images: (b, 2, H, W, 3) uint8 RGB.
    masks: (b, 2, H, W) uint8.
    key: of dropout; None for none.
  """
  c = trainer.config
  normalized = normalize(images, trainer.metadata.normalization)
  training = adnet.Training(key, c.optim.batch_norm == 'train', c.optim.frozen_stages)

  def loss_of(learnt):
    model = trainer.merge({**state, 'learnt': learnt})
    loss = pair_loss(model, normalized, masks, training, c.optim.both_directions)
    return loss, nnx.state(model, nnx.BatchStat)

  (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state['learnt'])
  return loss, gradients, statistics


def train_step(trainer: Trainer, state: Tree, batch: dict[str, jax.Array]) -> tuple[Tree, dict[str, jax.Array]]:
  """One SGD step; a batch whose loss or gradients are not finite changes nothing but the counters."""
  c = trainer.config
  key = jax.random.fold_in(jax.random.key(c.seed), state['step'])
  if c.accumulate == 1:
    loss, gradients, statistics = loss_and_gradients(trainer, state, batch['images'], batch['masks'], key)
  else:
    loss, gradients, statistics = _accumulated(trainer, state, batch, key)
  norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)))
  updates, opt_state = trainer.optimizer.update(gradients, state['optimizer'], state['learnt'])
  learnt = jax.tree.map(jnp.add, state['learnt'], updates)
  new = {**state, 'learnt': learnt, 'statistics': statistics, 'optimizer': opt_state}
  if 'average' in state:
    # Early on the average follows faster, or it would remember the random start.
    decay = jnp.minimum(c.optim.ema, (1 + state['step']) / (10 + state['step']))
    new['average'] = jax.tree.map(
      lambda old, now: decay * old + (1 - decay) * now, state['average'], {'learnt': learnt, 'statistics': statistics}
    )
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  new = jax.tree.map(lambda now, old: jnp.where(finite, now, old), new, state)
  new['step'] = state['step'] + 1
  new['skipped'] = jnp.where(finite, 0, state['skipped'] + 1)
  return new, {'loss': loss, 'grad_norm': norm, 'lr': trainer.schedule(state['step']), 'skipped': new['skipped']}


def _accumulated(trainer, state, batch, key):
  """Mean loss and gradients over `accumulate` parts of the batch, one after the other; each moves the statistics."""
  parts = trainer.config.accumulate
  split = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)

  def part(carry, item):
    total, gradients, statistics = carry
    index, images, masks = item
    loss, more, statistics = loss_and_gradients(
      trainer, {**state, 'statistics': statistics}, images, masks, jax.random.fold_in(key, index)
    )
    return (total + loss / parts, jax.tree.map(lambda a, b: a + b / parts, gradients, more), statistics), None

  start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state['learnt']), state['statistics'])
  return jax.lax.scan(part, start, (jnp.arange(parts), split['images'], split['masks']))[0]


# ---------------------------------------------------------------------------------------------------- loop


def train(
  config: ml_collections.ConfigDict,
  workdir: Path,
  progress: Callable[[int, dict[str, float]], None] | None = None,
  validate: Callable[[Path], dict[str, float | None]] | None = None,
) -> Path:
  """Trains to `config.steps` and writes WORKDIR/final.safetensors; goes on from the newest checkpoint of WORKDIR.

  Args:
    config: validated configuration.
    workdir: gets train.jsonl, checkpoints/, config.json, final.safetensors.
    progress: called after each step with its number and loss, lr, grad_norm, seconds.
    validate: scores of a model file, {'J': ..., 'F': ...}; called every `evaluate.every` steps, if that is not 0. The
      model with the highest J is kept as WORKDIR/best.safetensors.

  Returns:
    The path of the model file.

  Raises:
    resume.Stopped: SIGTERM or Ctrl-C, after saving.
    DivergedError: more than `max_skipped` steps in a row were not finite.
    DataError, WeightsError, UsageError, DeviceError: see errors.py.
  """
  workdir = Path(workdir)
  # Data first: what is wrong there is said before anything heavy starts.
  clips = datasets.read_clips(Path(config.data.root), datasets.split(Path(config.data.root), 'train'), need_masks=True)
  photographs = datasets.read_photographs(Path(config.data.stills)) if config.data.stills else []
  datasets.check_pairs(clips, photographs)
  source = input_pipeline.pair_source(config, clips, photographs)

  mesh = make_mesh(config.devices, config.batch)
  replicated, sharded = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec('data'))
  trainer, state = initialize(config)
  logging.info(
    'parameters:\n%s',
    parameter_overview.get_parameter_overview(
      {name: array for name, array in weights.flatten(trainer.merge(state)).items()}, include_stats=False
    ),
  )
  state = jax.device_put(state, replicated)
  step_function = jax.jit(
    lambda state, batch: train_step(trainer, state, batch), donate_argnums=0, out_shardings=(replicated, replicated)
  )

  fingerprint = resume.fingerprint(config, clips, photographs)
  with (
    checkpoint.open_checkpoints(workdir / 'checkpoints', config.checkpoint.keep) as checkpoints,
    resume.Signals() as signals,
  ):
    record = {'fingerprint': json.loads(json.dumps(fingerprint)), 'config': json.loads(config_lib.to_json(config))}
    restored = checkpoints.restore_newest(state, lambda before: resume.check_resume(before, record))
    if restored is not None:
      _, state, _ = restored
    first = int(state['step'])
    (workdir / 'config.json').write_text(config_lib.to_json(config) + '\n')
    log = resume.open_log(workdir / 'train.jsonl', first)
    batches = input_pipeline.batches(
      source,
      batch=config.batch,
      first_step=first,
      workers=config.data.workers,
      process=jax.process_index(),
      processes=jax.process_count(),
    )
    started = time.perf_counter()
    with log:
      for step in range(first, config.steps):
        batch = {name: jax.make_array_from_process_local_data(sharded, array) for name, array in next(batches).items()}
        state, metrics = step_function(state, batch)
        values = {name: float(value) for name, value in metrics.items()}
        ids = [source.sample_id(step * config.batch + i) for i in range(config.batch)]
        line: dict[str, Any] = {
          'step': step,
          'loss': _finite(values['loss']),
          'lr': values['lr'],
          'grad_norm': _finite(values['grad_norm']),
          'sample_ids': ids,
        }
        done = step + 1
        if validate is not None and config.evaluate.every and done % config.evaluate.every == 0:
          line['validation'] = _keep_best(trainer, state, workdir, done, validate)
        log.write(json.dumps(line) + '\n')
        log.flush()
        if values['skipped']:
          logging.warning('step %d: loss or gradient not finite, update skipped; samples %s', step, ', '.join(ids))
          if values['skipped'] > config.max_skipped:
            raise DivergedError(
              f'{int(values["skipped"])} steps in a row were not finite, up to step {step}',
              workdir,
              'lower optim.lr; the last good checkpoint is kept',
            )
        if progress is not None:
          progress(step, {**values, 'seconds': (time.perf_counter() - started) / (step - first + 1)})
        if done % config.checkpoint.every == 0 or done == config.steps or signals.received:
          checkpoints.save(done, state, record)
        if signals.received and done < config.steps:
          checkpoints.wait()
          raise resume.Stopped(signals.received, done)
  final = workdir / 'final.safetensors'
  export(trainer, state, final)
  return final


def export(trainer: Trainer, state: Tree, path: Path, *, averaged: bool | None = None, dtype: str = 'float32') -> None:
  """Writes the model file of a training state: the averaged weights where there are any, unless told otherwise."""
  averaged = 'average' in state if averaged is None else averaged
  model = trainer.merge({**state, **state['average']} if averaged else state)
  weights.save(path, weights.flatten(model), trainer.metadata, dtype=dtype, overwrite=True)


def _keep_best(trainer: Trainer, state: Tree, workdir: Path, step: int, validate) -> dict[str, float | None]:
  """Scores of the model after `step` steps, which becomes best.safetensors if its J is the highest so far."""
  candidate, best = workdir / 'candidate.safetensors', workdir / 'best.json'
  export(trainer, state, candidate)
  scores = validate(candidate)
  highest = json.loads(best.read_text())['J'] if best.exists() else -math.inf
  if scores['J'] is not None and scores['J'] > highest:
    candidate.replace(workdir / 'best.safetensors')
    best.write_text(json.dumps({'step': step, **scores}) + '\n')
  candidate.unlink(missing_ok=True)
  return scores


def make_mesh(devices: int, batch: int) -> jax.sharding.Mesh:
  """A mesh of one axis, 'data', over the first `devices` devices (0: all that divide the batch)."""
  present = jax.devices()
  if devices > len(present):
    raise DeviceError(
      f'{devices} devices asked for, {len(present)} present: {", ".join(map(str, present))}', 'devices', 'lower devices'
    )
  count = devices or math.gcd(batch, len(present))
  if batch % count:
    raise UsageError(f'batch={batch} is not divisible by devices={count}', 'batch, devices', 'choose a multiple')
  return jax.make_mesh((count,), ('data',), axis_types=(jax.sharding.AxisType.Auto,), devices=present[:count])


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None
