"""One training step and the state that it moves: loss, gradients, update; knows nothing of loops, logs or data sets.

The step is one program over the global batch: sharded data, replicated state, BatchNorm over the whole batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import ml_collections

from adnet_jax import __version__, optimizer, trained, weights
from adnet_jax.errors import UsageError
from adnet_jax.models import adnet, layers, per_frame
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
  of_frames = jnp.mean(jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z))), axis=(1, 2))
  return per_frame.over_frames(of_frames) / len(of_frames)


def soft_jaccard_loss(logits: jax.Array, masks: jax.Array) -> jax.Array:
  """One minus the region similarity J of probabilities, mean over frames (not in the paper; Rahman and Wang 2016).

  A pixel more or less counts for both sums, so that a frame without foreground has a loss too: that of its area.

  Args:
    logits: (b, h, w, 1) float32, up-sampled as in `binary_cross_entropy`.
    masks: (b, H, W), 0 and 1.

  Returns:
    () float32 in [0, 1].
  """
  z = layers.resize_align_corners(logits, (masks.shape[1], masks.shape[2]))[..., 0]
  y, p = masks.astype(jnp.float32), jax.nn.sigmoid(z)
  both = jnp.sum(y * p, axis=(1, 2))
  either = jnp.sum(y, axis=(1, 2)) + jnp.sum(p, axis=(1, 2)) - both
  return per_frame.over_frames(1 - (both + 1) / (either + 1)) / len(both)


def pair_loss(
  model: adnet.ADNet,
  images: jax.Array,
  masks: jax.Array,
  training: adnet.Training,
  both_directions: bool = False,
  jaccard: float = 0.0,
) -> jax.Array:
  """Loss of a batch of pairs; moves the model's BatchNorm statistics.

  Args:
    model: in its training form.
    images: (b, 2, H, W, 3) normalised; [:, 0] are the anchors. Both frames pass the encoder as one batch.
    masks: (b, 2, H, W), 0 and 1.
    training: dropout, statistics, frozen stages.
    both_directions: whether the anchor is predicted too, with the frame as its anchor.
    jaccard: weight of `soft_jaccard_loss` beside the BCE.

  Returns:
    () float32: BCE, and the weighted Jaccard loss, of the current frame, or the mean of both directions; plus
    AUXILIARY_WEIGHT times the auxiliary head's BCE on both frames.
  """
  # Pair by pair, so that where pairs are shared among devices no frame leaves its own.
  stacked, stacked_masks = (
    x.reshape(-1, *x.shape[2:]) for x in (images, masks)
  )  # (2b, ...): anchor, frame, anchor, ...
  embeddings, auxiliary = model.encode_with_auxiliary(stacked, training)
  by_pair = embeddings.reshape(-1, 2, *embeddings.shape[1:])
  if both_directions:
    swapped = by_pair[:, ::-1].reshape(embeddings.shape)
    logits, truth = model.classify(swapped, embeddings, training), stacked_masks
  else:
    logits = model.classify(by_pair[:, 0], by_pair[:, 1], training)
    truth = masks[:, 1]
  loss = binary_cross_entropy(logits, truth)
  if jaccard:
    loss += jaccard * soft_jaccard_loss(logits, truth)
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
  holds, which is an ImageNet trunk, a whole model, or the network in a checkpoint of another training (the averaged
  one where there is one). A checkpoint in the workdir replaces everything later, optimiser and position too.
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
    initial = trained.read_initial(c.init.weights, architecture)
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
    max(0, c.evaluate.refine),
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
  training = adnet.Training(key, c.optim.batch_norm == 'train', c.optim.frozen_stages, c.model.remat)

  def loss_of(learnt):
    model = trainer.merge({**state, 'learnt': learnt})
    loss = pair_loss(model, normalized, masks, training, c.optim.both_directions, c.optim.jaccard)
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
    # Early on the average follows faster, or it would remember the random start. What stands still keeps its bits.
    decay = jnp.minimum(c.optim.ema, (1 + state['step']) / (10 + state['step']))
    new['average'] = jax.tree.map(
      lambda old, now: old + (1 - decay) * (now - old), state['average'], {'learnt': learnt, 'statistics': statistics}
    )
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  new = jax.tree.map(lambda now, old: jnp.where(finite, now, old), new, state)
  new['step'] = state['step'] + 1
  new['skipped'] = jnp.where(finite, 0, state['skipped'] + 1)
  return new, {'loss': loss, 'grad_norm': norm, 'lr': trainer.schedule(state['step']), 'skipped': new['skipped']}


def _accumulated(trainer, state, batch, key):
  """Mean loss and gradients over `accumulate` parts of the batch, one after the other; each moves the statistics.

  Part i is every `accumulate`th row from i: so each part has rows of every device, and no image changes its device.
  """
  parts = trainer.config.accumulate
  split = jax.tree.map(
    lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1),
    {name: batch[name] for name in ('images', 'masks')},
  )

  def part(carry, item):
    total, gradients, statistics = carry
    index, images, masks = item
    loss, more, statistics = loss_and_gradients(
      trainer, {**state, 'statistics': statistics}, images, masks, jax.random.fold_in(key, index)
    )
    return (total + loss / parts, jax.tree.map(lambda a, b: a + b / parts, gradients, more), statistics), None

  start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state['learnt']), state['statistics'])
  return jax.lax.scan(part, start, (jnp.arange(parts), split['images'], split['masks']))[0]
