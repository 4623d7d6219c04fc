"""Checkpoints: what comes back, how many are kept, and what happens to damaged ones."""

from __future__ import annotations

import random
import resource
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


def write(folder, steps, keep=3, best=None):
  with checkpoint.open_checkpoints(folder, keep) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step), {'note': f'step {step}', 'numbers': [1, 2.5, None]}, best=best)


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


def test_the_best_is_kept_beyond_the_last_few(tmp_path):
  write(tmp_path, range(1, 6), keep=2, best=2)
  assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ['2', '4', '5']


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


FAULTS = {
  'missing': lambda path, rng: path.unlink(),
  'empty': lambda path, rng: path.write_bytes(b''),
  'cut off': lambda path, rng: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
  'one bit': lambda path, rng: flip_bit(path, rng),
}


def flip_bit(path, rng):
  data = bytearray(path.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  path.write_bytes(data)


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('part', ['record/metadata', 'state/_METADATA', 'state/manifest.ocdbt', 'the largest'])
def test_every_damage_is_noticed_named_and_passed_over(tmp_path, caplog, part, fault):
  """Orbax itself reads an array with a flipped bit without a word: the checksums of the record notice it."""
  write(tmp_path, [1, 2])
  files = [path for path in (tmp_path / '2').rglob('*') if path.is_file()]
  path = max(files, key=lambda path: path.stat().st_size) if part == 'the largest' else tmp_path / '2' / part
  FAULTS[fault](path, random.Random(0))
  step, state, record = restore(tmp_path)
  assert (step, record['note']) == (1, 'step 1')
  np.testing.assert_array_equal(state['learnt']['kernel'], 1)
  assert 'checkpoint 2' in caplog.text and 'damaged and passed over' in caplog.text


def test_the_step_of_a_damaged_one_can_be_saved_again(tmp_path):
  write(tmp_path, [1, 2])
  damage(tmp_path, 2)
  with checkpoint.open_checkpoints(tmp_path, 3) as checkpoints:
    assert checkpoints.restore_newest(make_state(0))[0] == 1
    checkpoints.save(2, make_state(7), {})
  assert (tmp_path / '2.damaged').is_dir()  # a disk that was gone for a moment does not cost a checkpoint
  step, state, _ = restore(tmp_path)
  assert step == 2
  np.testing.assert_array_equal(state['learnt']['kernel'], 7)


def test_a_record_of_an_earlier_version_has_no_checksums(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, '_CHECKSUMS', 'of the future')
  write(tmp_path, [1])
  monkeypatch.setattr(checkpoint, '_CHECKSUMS', 'checksums')
  assert restore(tmp_path)[0] == 1


def test_a_checkpoint_is_read_without_a_state_like_it(tmp_path):
  write(tmp_path, [1, 2])
  step, arrays, record = checkpoint.read_checkpoint(tmp_path)
  assert step == 2 and set(record) == {'note', 'numbers'}
  assert set(arrays) == {'step', 'learnt/kernel', 'learnt/stages/0'}
  np.testing.assert_array_equal(arrays['learnt/kernel'], 2)
  assert checkpoint.read_checkpoint(tmp_path, 1)[1]['step'] == 1
  damage(tmp_path, 2)
  assert checkpoint.read_checkpoint(tmp_path)[0] == 1
  with pytest.raises(errors.WeightsError, match='no checkpoint can be read'):
    checkpoint.read_checkpoint(tmp_path, 2)
  with pytest.raises(errors.WeightsError, match='those that exist: 1, 2'):
    checkpoint.read_checkpoint(tmp_path, 3)


@pytest.fixture
def small_disk():
  """Calls that limit the size of files, as a full disk does, and lift the limit again."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield (
    lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1])),
    lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before),
  )
  resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_cannot_be_saved_is_said_and_the_next_save_tries_again(tmp_path, small_disk, caplog):
  limit, lift = small_disk
  state = {'kernel': jax.random.normal(jax.random.key(0), (64, 64))}
  with checkpoint.open_checkpoints(tmp_path, 1) as checkpoints:
    checkpoints.save(1, state, {})
    assert checkpoints.wait() and checkpoints.newest == 1
    limit(8000)
    for step in (2, 3):
      checkpoints.save(step, state, {})
      assert not checkpoints.wait()
    lift()
    assert (checkpoints.newest, checkpoints.saved) == (1, 1) and checkpoints.failure
    assert 'checkpoint 2' in caplog.text and 'checkpoint 3' in caplog.text and 'training goes on' in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ['1']  # half a checkpoint takes the room of the next
    checkpoints.save(4, state, {})
    assert checkpoints.wait() and (checkpoints.newest, checkpoints.failure) == (4, None)
  assert [path.name for path in tmp_path.iterdir()] == ['4']


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(errors.WeightsError, match='no checkpoints can be kept'):
    checkpoint.Checkpoints(tmp_path / 'file' / 'checkpoints', 1)
