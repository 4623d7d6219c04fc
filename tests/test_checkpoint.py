"""Checkpoints: what comes back, how many are kept, and what happens to damaged ones."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from adnet_jax import checkpoint, errors


def make_state(value):
  return {
    'step': jnp.asarray(value, jnp.int32),
    'learnt': {'kernel': jnp.full((4, 3), value, jnp.float32), 'stages': {0: jnp.full(2, -value, jnp.bfloat16)}},
  }


def write(folder, steps, keep=3):
  with checkpoint.open_checkpoints(folder, keep) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step), {'note': f'step {step}', 'numbers': [1, 2.5, None]})


def restore(folder):
  with checkpoint.open_checkpoints(folder, 3) as checkpoints:
    return checkpoints.restore_newest(make_state(0))


def damage(folder, step):
  """Cuts every larger file of a checkpoint in half."""
  for path in (folder / str(step) / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_an_empty_folder_has_no_checkpoint(tmp_path):
  assert restore(tmp_path / 'new') is None


def test_the_newest_comes_back_as_it_was(tmp_path):
  write(tmp_path, [1, 12])
  step, state, record = restore(tmp_path)
  assert step == 12
  assert record == {'note': 'step 12', 'numbers': [1, 2.5, None]}
  expected = make_state(12)
  assert jax.tree.structure(state) == jax.tree.structure(expected)
  for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_only_the_last_few_are_kept(tmp_path):
  write(tmp_path, range(1, 6), keep=2)
  assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ['4', '5']


def test_arrays_come_back_on_the_devices_of_the_state_given(tmp_path):
  write(tmp_path, [3])
  mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
  replicated = NamedSharding(mesh, PartitionSpec())
  with checkpoint.open_checkpoints(tmp_path, 3) as checkpoints:
    _, state, _ = checkpoints.restore_newest(jax.device_put(make_state(0), replicated))
  assert state['learnt']['kernel'].sharding.is_equivalent_to(replicated, 2)
  np.testing.assert_array_equal(state['learnt']['kernel'], 3)


def test_a_damaged_one_is_named_and_the_one_before_used(tmp_path, caplog):
  write(tmp_path, [1, 2])
  damage(tmp_path, 2)
  step, state, _ = restore(tmp_path)
  assert step == 1
  np.testing.assert_array_equal(state['learnt']['kernel'], 1)
  assert 'checkpoint 2' in caplog.text


def test_a_checkpoint_whose_state_is_missing_is_passed_over(tmp_path):
  write(tmp_path, [1, 2])
  shutil.rmtree(tmp_path / '2' / 'state')
  assert restore(tmp_path)[0] == 1


def test_none_readable_is_an_error_not_a_new_start(tmp_path):
  write(tmp_path, [1, 2])
  damage(tmp_path, 1)
  damage(tmp_path, 2)
  with pytest.raises(errors.WeightsError, match='no checkpoint can be read'):
    restore(tmp_path)


def test_what_was_cut_off_while_saving_does_not_count(tmp_path):
  write(tmp_path, [1])
  # As a killed process leaves it: Orbax writes under a longer name and renames in the end.
  shutil.copytree(tmp_path / '1', tmp_path / '2.orbax-checkpoint-tmp')
  assert restore(tmp_path)[0] == 1
