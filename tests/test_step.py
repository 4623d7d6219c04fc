"""One training step: parts of a batch, what learns and what does not, and what precision and memory may change."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from adnet_jax import mesh as mesh_lib
from adnet_jax import step as step_lib
from adnet_jax import weights
from adnet_jax.models import adnet
from adnet_jax.normalization import normalize

pytestmark = pytest.mark.usefixtures('compiled_hastily')
CPU_UNDOES = ('cse', 'cse_barrier_expander', 'optimization-barrier-expander', 'simplification')


@pytest.fixture
def config(training_config):
  """Of one trainable trunk stage: gradients through more stages with random weights amplify rounding beyond use."""
  training_config.optim.frozen_stages = 3
  return training_config


LOGITS = 3 * 3  # of a frame of 33 pixels, at output stride 16


def make_batch(pairs, pixels=33, seed=1):
  rng = np.random.default_rng(seed)
  return {
    'images': jnp.asarray(rng.integers(0, 255, (pairs, 2, pixels, pixels, 3), np.uint8)),
    'masks': jnp.asarray(rng.integers(0, 2, (pairs, 2, pixels, pixels), np.uint8)),
  }


def jitted(trainer):
  return jax.jit(lambda state, batch: step_lib.train_step(trainer, state, batch))


def norm(tree):
  return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def assert_close(found, expected, tolerance):
  """Each array of a tree within `tolerance` of the other's largest value."""
  for (path, one), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
    limit = tolerance * np.abs(other).max() + 1e-12
    np.testing.assert_allclose(one, other, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path))


# ----------------------------------------------------------------------------------------------------- loss


def test_the_soft_jaccard_loss_of_certain_predictions_is_one_minus_j():
  masks = np.zeros((2, 8, 8), np.uint8)
  masks[0, 2:6, 2:6] = 1  # 16 pixels, of which half are found, and 8 beside them
  predicted = np.zeros((2, 8, 8, 1), np.float32)
  predicted[0, 4:8, 2:6] = 1
  predicted[1, 0, 0] = 1  # one pixel where there is no foreground
  loss = step_lib.soft_jaccard_loss(jnp.asarray(predicted * 200 - 100), jnp.asarray(masks))
  assert float(loss) == pytest.approx(((1 - 9 / 25) + (1 - 1 / 2)) / 2)


def test_the_jaccard_loss_is_added_with_its_weight(config):
  batch, key = make_batch(2), jax.random.key(0)
  losses = {}
  for weight in (0.0, 0.5, 1.0):
    config.optim.jaccard = weight
    trainer, state = step_lib.initialize(config)
    # Alone, so that no gradient is compiled.
    loss = jax.jit(lambda state, t=trainer: step_lib.loss_and_gradients(t, state, *batch.values(), key)[0])
    losses[weight] = float(loss(state))
  assert 0 < losses[1.0] - losses[0.0] < 1
  assert losses[0.5] == pytest.approx((losses[0.0] + losses[1.0]) / 2, rel=1e-5)


# ---------------------------------------------------------------------------------------------------- parts


def test_accumulated_parts_give_the_mean_loss_and_gradients_of_their_parts(config):
  """Each part draws its own dropout; with the trunk's statistics frozen nothing else ties the parts together."""
  config.optim.batch_norm, config.accumulate = 'frozen', 2
  trainer, state = step_lib.initialize(config)
  batch = make_batch(4)
  _, metrics = jitted(trainer)(state, batch)
  key = jax.random.fold_in(jax.random.key(config.seed), 0)
  part = jax.jit(lambda images, masks, key: step_lib.loss_and_gradients(trainer, state, images, masks, key)[:2])
  parts = [part(batch['images'][i::2], batch['masks'][i::2], jax.random.fold_in(key, i)) for i in range(2)]
  # The heads normalise by each part's own statistics, so the second part's loss does not depend on the first's.
  loss, gradients = jax.tree.map(lambda one, other: (one + other) / 2, *parts)
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)
  np.testing.assert_allclose(metrics['grad_norm'], norm(gradients), rtol=1e-4)


def test_devices_exchange_sums_alone(config):
  """No image or feature map may leave its device, whatever is stacked, split and swapped on the way.

  What a device sums of each frame does, and of each kernel's gradient (models/per_frame.py), and the logits' gradient.
  """
  config.accumulate, config.optim.both_directions = 2, True
  trainer, state = step_lib.initialize(config)
  batch = make_batch(16)  # so that frames are not as many as devices
  found = {}
  for devices in (1, 4):
    mesh = mesh_lib.make_mesh(devices, 16, config.accumulate)
    shared = jax.device_put(batch, NamedSharding(mesh, PartitionSpec('data')))
    everywhere = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
      program = jitted(trainer).lower(everywhere, shared).compile()
    exchanged = re.findall(r'= \w+\[([\d,]*)\].* (all-[a-z-]+|collective-permute|reduce-scatter)\(', program.as_text())
    assert {operation for _, operation in exchanged} == ({'all-gather'} if devices > 1 else set())
    for shape, _ in exchanged:
      count, *of_one = map(int, shape.split(','))
      parts = [n for n in of_one if n > 1]
      assert len(parts) < 2 or count == devices or math.prod(parts) == LOGITS, f'{shape} leaves its device'
    found[devices] = program(everywhere, shared)[1]
  np.testing.assert_allclose(found[4]['loss'], found[1]['loss'], rtol=1e-5)
  np.testing.assert_allclose(found[4]['grad_norm'], found[1]['grad_norm'], rtol=1e-4)


# ----------------------------------------------------------------------------------------------- what learns


def test_a_step_that_is_not_finite_changes_nothing_but_the_counter(config):
  trainer, state = step_lib.initialize(config)
  poisoned = {**state, 'learnt': jax.tree.map(lambda x: x, state['learnt'])}
  poisoned['learnt']['embedding']['bias'][...] = jnp.full_like(poisoned['learnt']['embedding']['bias'][...], np.nan)
  new, metrics = jitted(trainer)(poisoned, make_batch(2))
  assert int(new['skipped']) == 1 and int(new['step']) == 1
  assert not np.isfinite(metrics['loss'])
  for one, other in zip(jax.tree.leaves(new['statistics']), jax.tree.leaves(poisoned['statistics']), strict=True):
    np.testing.assert_array_equal(one, other)


def test_frozen_stages_stay_and_the_rest_learns(config):
  config.optim.frozen_stages, config.optim.batch_norm = 2, 'frozen'
  trainer, state = step_lib.initialize(config)
  before = weights.flatten(trainer.merge(state))
  new, _ = jitted(trainer)(state, make_batch(2))
  after = weights.flatten(trainer.merge(new))
  changed = {name for name in before if not np.array_equal(before[name], after[name])}
  frozen = ('backbone/conv1', 'backbone/layer1', 'backbone/layer2')
  assert not [name for name in changed if name.startswith(frozen)]
  assert not [name for name in changed if name.startswith('backbone') and name.endswith(('/mean', '/var'))]
  assert {
    name
    for name in before
    if name.startswith(('backbone/layer3', 'backbone/layer4', 'aspp')) and name.endswith('kernel')
  } <= changed


# -------------------------------------------------------------------------------------- memory and precision


def test_rematerialisation_needs_less_memory_and_computes_the_same(config):
  config.optim.frozen_stages = 1
  batch, key = make_batch(2, 97), jax.random.key(0)
  results, memory = {}, {}
  for config.model.remat in (False, True):
    trainer, state = step_lib.initialize(config)
    run = jax.jit(lambda state, t=trainer: step_lib.loss_and_gradients(t, state, batch['images'], batch['masks'], key))
    # The CPU's compiler else finds that both computations are one, and keeps it.
    program = run.lower(state).compile(compiler_options={'xla_disable_hlo_passes': ','.join(CPU_UNDOES)})
    results[config.model.remat], memory[config.model.remat] = program(state), program.memory_analysis()
  (loss, gradients, statistics), (expected_loss, expected, expected_statistics) = results[True], results[False]
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  # A random network amplifies the rounding of another order of sums: 6e-4 with one compiler, below 1e-5 with another.
  assert norm(jax.tree.map(jnp.subtract, gradients, expected)) < 5e-3 * norm(expected)
  assert_close(statistics, expected_statistics, 1e-5)
  moved = [np.abs(new - old).max() for new, old in zip(*map(jax.tree.leaves, (statistics, state['statistics'])))]
  assert sum(change > 0 for change in moved) > len(moved) / 2  # the trunk beyond its first stage and the heads
  assert memory[True].temp_size_in_bytes < 0.9 * memory[False].temp_size_in_bytes


def test_rematerialisation_keeps_the_inputs_of_trunk_blocks_alone(config):
  config.model.backbone, config.model.stem, config.optim.frozen_stages = 'efficientnet_lite0', 'efficientnet', 0
  trainer, state = step_lib.initialize(config)
  images = normalize(make_batch(1, 65)['images'][0], 'torchvision')

  def kept(remat):
    """Bytes that the gradient of the trunk needs, beyond its parameters."""

    def forward(learnt):
      model = trainer.merge({**state, 'learnt': learnt})
      return model.encode(images, adnet.Training(None, True, 0, remat))

    arrays = jax.tree.leaves(jax.eval_shape(lambda learnt: jax.vjp(forward, learnt)[1], state['learnt']))
    return sum(array.size * array.dtype.itemsize for array in arrays if array.shape[:1] == (2,))

  assert kept(True) < kept(False) / 2.5


def test_bfloat16_computes_with_float32_parameters_statistics_and_loss(config):
  batch = make_batch(4)
  found = {}
  for config.model.dtype in ('float32', 'bfloat16'):
    trainer, state = step_lib.initialize(config)
    new, metrics = jitted(trainer)(state, batch)
    found[config.model.dtype] = metrics, new
    floats = [leaf for leaf in jax.tree.leaves((new, metrics)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}
  (exact, whole), (rough, half) = found['float32'], found['bfloat16']
  unit = 2**-8  # of bfloat16's rounding
  np.testing.assert_allclose(rough['loss'], exact['loss'], rtol=2 * unit)
  assert rough['loss'] != exact['loss']
  np.testing.assert_allclose(rough['grad_norm'], exact['grad_norm'], rtol=0.1)
  # Running statistics are means of many rounded values.
  assert_close(half['statistics'], whole['statistics'], 4 * unit)
  updates = [
    jnp.concatenate([(n - o).ravel() for n, o in zip(*map(jax.tree.leaves, (new['learnt'], state['learnt'])))])
    for new in (whole, half)
  ]
  cosine = jnp.vdot(*updates) / jnp.linalg.norm(updates[0]) / jnp.linalg.norm(updates[1])
  assert cosine > 0.95
