"""Checkpoints of training by Orbax: the only module that knows Orbax's API; knows nothing of models or data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from adnet_jax.errors import WeightsError


class Checkpoints:
  """The folder WORKDIR/checkpoints: state (a tree of arrays) and a JSON record a step, the last few kept.

  Saving is asynchronous; a checkpoint that was cut off in the middle of saving does not count as one.
  """

  def __init__(self, folder: Path, keep: int):
    self._manager = ocp.CheckpointManager(
      folder.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    )
    self.folder = folder

  def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
    """Starts saving `state` and `record` as step `step`."""
    self._manager.save(
      step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
    )

  def restore_newest(
    self, like: Any, check: Callable[[dict[str, Any]], None] = lambda record: None
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """Step, state (shaped, typed and sharded as `like`) and record of the newest readable checkpoint.

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
    for step in steps:
      record = self._read(step, 'record', ocp.args.JsonRestore())
      if record is None:
        continue
      check(record)
      state = self._read(step, 'state', ocp.args.StandardRestore(abstract))
      if state is not None:
        return step, state, record
    if steps:
      raise WeightsError('no checkpoint can be read', self.folder, 'remove the folder to start again')
    return None

  def _read(self, step: int, item: str, how: Any) -> Any:
    """One item of a checkpoint; None, and a log line, where it cannot be read."""
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**{item: how}))[item]
    except Exception as error:  # Orbax raises whatever it trips over in a damaged checkpoint
      logging.error('checkpoint %d in %s cannot be read, trying the one before: %s', step, self.folder, error)
      return None

  def wait(self) -> None:
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
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
