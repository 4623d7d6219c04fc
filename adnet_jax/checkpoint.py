"""Checkpoints of training by Orbax: the only module that knows Orbax's API; knows nothing of models or data."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from adnet_jax import distributed, orbax_noise
from adnet_jax.errors import WeightsError

# Key of the record that holds the arrays' checksums and, under '', its own. Orbax reads an array with a flipped bit
# without a word.
_CHECKSUMS = 'checksums'


class Checkpoints:
  """The folder WORKDIR/checkpoints: state (a tree of arrays) and a JSON record a step, the last few and the best kept.

  Saving is asynchronous; a checkpoint that was cut off in the middle of saving does not count as one. One that cannot
  be saved, as on a full disk, is an error in the log and in `failure`, never an exception (fault 16).

  Attributes:
    saved: checkpoints that this object has brought to disk.
    newest: step of the newest of them, or of the one that was restored; None before.
    failure: why the last one that failed did; None where none has.
  """

  def __init__(self, folder: Path, keep: int):
    self.folder = folder.absolute()
    self.saved = 0
    self.newest: int | None = None
    self.failure: str | None = None
    self._saving: int | None = None
    self._keep = _LastAndBest(keep)
    try:
      self._manager = _manager(self.folder, preservation_policy=self._keep, cleanup_tmp_directories=True)
    except OSError as error:
      what = f'no checkpoints can be kept: {error.strerror}'
      raise WeightsError(what, folder, 'make room or choose another --workdir') from error

  def save(self, step: int, state: Any, record: dict[str, Any], *, best: int | None = None) -> None:
    """Starts saving `state` and `record` as step `step`, once the one before is on disk.

    Args:
      step: steps done.
      state: tree of arrays, replicated.
      record: JSON.
      best: step whose checkpoint is kept whatever its age.
    """
    self.wait()
    self._keep.best = best
    # Of the arrays as they are now: what is written later and in the background must be the same.
    sums = {**_checksums(_names(state)), '': _record_crc(record)}
    self._saving = step
    try:
      items = {'state': ocp.args.StandardSave(state), 'record': ocp.args.JsonSave({**record, _CHECKSUMS: sums})}
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    except Exception as error:  # Orbax raises whatever the file system or the writing library did
      self._failed(error)

  def wait(self) -> bool:
    """Returns when nothing is being saved any more; whether the last checkpoint is on disk."""
    if self._saving is not None:
      try:
        self._manager.wait_until_finished()
        if not (self.folder / str(self._saving)).is_dir():
          raise OSError('it is not there')
      except Exception as error:  # as above
        self._failed(error)
      else:
        self.newest, self._saving = self._saving, None
        self.saved += 1
        if self.failure is not None:
          self._remove_leftovers()  # threads of the failed save may have written on after it was given up
        self.failure = None
    return self.failure is None

  def _failed(self, error: Exception) -> None:
    distributed.await_loss()  # Orbax's threads talk to those of the other processes
    self.failure = _one_line(error)
    logging.error(
      'checkpoint %s in %s could not be saved, training goes on: %s', self._saving, self.folder, self.failure
    )
    self._saving = None
    self._remove_leftovers()  # they take the room that the next one needs
    self._manager.reload()

  def _remove_leftovers(self) -> None:
    if jax.process_index() == 0:
      for leftover in self.folder.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(leftover, ignore_errors=True)

  def restore_newest(
    self, like: Any, check: Callable[[dict[str, Any]], None] = lambda record: None
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """Step, state (shaped, typed and sharded as `like`) and record of the newest readable checkpoint.

    Newer ones, which are damaged, are renamed to STEP.damaged (fault 17).

    Args:
      like: the state to restore into.
      check: called with the record before the state is read; what it raises is passed on.

    Returns:
      None where there is no checkpoint at all.

    Raises:
      WeightsError: there are checkpoints but none can be read.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    for index, step in enumerate(steps):
      try:
        record, sums = _read_record(self._manager, step)
        check(record)
        state = _read_state(self._manager, step, ocp.args.StandardRestore(abstract), sums)
      except _Damaged as error:
        _say_damaged(self.folder, step, error)
        continue
      self._set_aside(steps[:index])
      self.newest = step
      return step, state, record
    if steps:
      raise WeightsError('no checkpoint can be read', self.folder, 'remove the folder to start again')
    return None

  def _set_aside(self, steps: Sequence[int]) -> None:
    """Frees the names of damaged checkpoints: their steps will be saved again."""
    if not steps:
      return
    if jax.process_index() == 0:
      for step in steps:
        aside = self.folder / f'{step}.damaged'
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(self.folder / str(step), aside)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('damaged checkpoints set aside')
    self._manager.reload()

  def close(self) -> None:
    """Waits for what is being saved and ends Orbax's threads."""
    with contextlib.suppress(Exception):  # what could not be saved has been said
      self._manager.close()


@contextmanager
def open_checkpoints(folder: Path, keep: int) -> Iterator[Checkpoints]:
  """`Checkpoints` that are complete on disk when the block is left."""
  checkpoints = Checkpoints(folder, keep)
  try:
    yield checkpoints
    checkpoints.wait()
  finally:
    checkpoints.close()


def read_checkpoint(folder: Path, step: int | None = None) -> tuple[int, dict[str, np.ndarray], dict[str, Any]]:
  """Step, arrays by name ('learnt/aspp/conv1/kernel', ...) and record of one checkpoint, without a state like it.

  Args:
    folder: of checkpoints; a training may be writing to it.
    step: which one; None for the newest that can be read.

  Raises:
    WeightsError: there is no such checkpoint, or it cannot be read.
  """
  folder = folder.absolute()
  manager = _manager(folder, create=False)
  try:
    steps = sorted(manager.all_steps(), reverse=True)
    if not steps:
      raise WeightsError('no checkpoints', folder, 'a work folder has them in checkpoints/')
    if step is not None and step not in steps:
      raise WeightsError(f'no checkpoint {step}', folder, f'those that exist: {", ".join(map(str, steps[::-1]))}')
    one_device = jax.sharding.SingleDeviceSharding(_host())
    for candidate in steps if step is None else [step]:
      try:
        record, sums = _read_record(manager, candidate)
        state = _read_state(manager, candidate, ocp.args.StandardRestore(fallback_sharding=one_device), sums)
        return candidate, {name: np.asarray(array) for name, array in _names(state).items()}, record
      except _Damaged as error:
        _say_damaged(folder, candidate, error)
    raise WeightsError('no checkpoint can be read', folder if step is None else folder / str(step), 'choose another')
  finally:
    manager.close()


@dataclasses.dataclass
class _LastAndBest:
  """Which checkpoints stay: Orbax's preservation policy."""

  last: int
  best: int | None = None

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    old = len(checkpoints) - self.last
    return [index >= old or found.step == self.best for index, found in enumerate(checkpoints)]


def _manager(folder: Path, **options: Any) -> ocp.CheckpointManager:
  orbax_noise.silence()
  # Orbax's own would have each device save a slice of every array: the state is replicated, and some four hundred
  # slicing programs are compiled during the first checkpoint of eight devices.
  whole = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
  ocp.type_handlers.register_type_handler(jax.Array, whole, override=True)
  return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(enable_async_checkpointing=True, **options))


def _host() -> jax.Device:
  """The CPU, or where JAX was told to leave it out the first device."""
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return jax.local_devices()[0]


class _Damaged(Exception):
  """A checkpoint that cannot be read or is not what was saved; its text says why."""


def _read_record(manager: ocp.CheckpointManager, step: int) -> tuple[dict[str, Any], dict[str, int]]:
  """The record of a checkpoint and its checksums; those of checkpoints before there were any are empty."""
  record = _read(manager, step, 'record', ocp.args.JsonRestore())
  if not isinstance(record, dict):
    raise _Damaged('its record cannot be read')
  sums = record.pop(_CHECKSUMS, {})
  if sums and sums.pop('', None) != _record_crc(record):
    raise _Damaged('the checksum of its record does not fit')
  return record, sums


def _read_state(manager: ocp.CheckpointManager, step: int, how: Any, sums: dict[str, int]) -> Any:
  """The state of a checkpoint, whose arrays have these checksums."""
  state = _read(manager, step, 'state', how)
  if state is None:
    raise _Damaged('it holds no state')
  found = _checksums(_names(state)) if sums else {}
  wrong = sorted(name for name in {*sums, *found} if sums.get(name) != found.get(name))
  if wrong:
    more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
    raise _Damaged(f'checksums do not fit: {", ".join(wrong[:3])}{more}')
  return state


def _read(manager: ocp.CheckpointManager, step: int, item: str, how: Any) -> Any:
  try:
    return manager.restore(step, args=ocp.args.Composite(**{item: how}))[item]
  except Exception as error:  # Orbax raises whatever it trips over in a damaged checkpoint
    raise _Damaged(_one_line(error)) from error


def _say_damaged(folder: Path, step: int, error: _Damaged) -> None:
  logging.error('checkpoint %d in %s is damaged and passed over: %s', step, folder, error)


def _names(state: Any) -> dict[str, Any]:
  """Leaves of a state under the names that they have on disk, 'learnt/aspp/conv1/kernel'."""

  def part(key: Any) -> str:
    return str(next(getattr(key, kind) for kind in ('key', 'name', 'idx') if hasattr(key, kind)))

  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  # NNX's variables add the level 'value'.
  return {'/'.join(map(part, path)).removesuffix('/value'): leaf for path, leaf in leaves}


def _checksums(named: dict[str, Any]) -> dict[str, int]:
  """CRC-32 of every array's bytes."""
  with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    return dict(zip(named, pool.map(_crc, named.values()), strict=True))


def _crc(array: Any) -> int:
  if isinstance(array, jax.Array) and array.is_fully_replicated:
    array = array.addressable_data(0)  # a view whose copy on the host is not kept, as the array itself would
  return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _record_crc(record: dict[str, Any]) -> int:
  return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _one_line(error: BaseException) -> str:
  """The reason in an error of Orbax, whose texts repeat themselves over many lines."""
  if number := re.search(r"os_error_code='(\d+)'", str(error)):
    return os.strerror(int(number[1]))
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= 300 else f'{text[:150]} ... {text[-150:]}'
