"""What the TFDS builders share: a raw data set's clips become shards, in order; knows no data set.

`adnet prepare` writes the same shards by itself, so that it can go on after a break.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from adnet_jax.data import prepare, prepared, records

VERSION = tfds.core.Version('1.0.0')
RELEASE_NOTES = {'1.0.0': 'Encoded files as they are, a shard a clip.'}


class ClipShards:
  """Mixin of the builders: the raw data set lies in the folder that TFDS calls `manual_dir`."""

  def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator]]]:
    self._plan = records.plan_records(self.name, Path(dl_manager.manual_dir))  # type: ignore[attr-defined]
    found: dict[str, list[Callable[[], Iterator]]] = {}
    for part in (part for parts in self._plan.clips.values() for part in parts):
      found.setdefault(part.split, []).append(functools.partial(records.examples, part))
    return found

  def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
    super()._download_and_prepare(dl_manager, download_config)  # type: ignore[misc]
    entries = [records.describe(self._plan, name) for name in self._plan.clips]
    prepare.write_index(Path(self.data_dir), self.name, entries)  # type: ignore[attr-defined]


def info(builder: Any, description: str, homepage: str | None = None, citation: str | None = None) -> Any:
  """The builder's DatasetInfo: the common features, in the order of the files."""
  return tfds.core.DatasetInfo(
    builder=builder,
    description=description,
    features=prepared.features(),
    homepage=homepage,
    citation=citation,
    disable_shuffling=True,
  )
