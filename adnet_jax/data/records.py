"""What a raw data set becomes as records: which shard gets which files, and a clip's entry in clips.json; writes none.

A shard holds one clip. Annotations whose frames are not at hand (a subset of DAVIS, say) count in scoring: they lie in
shards of their own, so that every record of a split has a frame.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adnet_jax.data import datasets, fbms, visal
from adnet_jax.data.clip import Annotation, Clip
from adnet_jax.errors import DataError
from adnet_jax.images import File
from adnet_jax.masks import natural_key

_MASKS_ONLY = '_masks_only'
# A black pixel, in records without a frame: TFDS decodes every image.
_NO_FRAME = base64.b64decode(
  b'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVQI12NgYGAAAAAEAAEnNCcKAAAAAElFTkSuQmCC'
)


class Record(NamedTuple):
  """A frame, its ground truth, or both; `stem` is the frame's."""

  stem: str
  frame: File | None
  truth: File | Annotation | None

  @property
  def files(self) -> dict[str, File]:
    """The file of each field that holds one: frame, annotation, certainty."""
    found: dict[str, File | None] = {'frame': self.frame}
    if isinstance(self.truth, fbms.Truth):
      found |= {'annotation': self.truth.annotation.labels, 'certainty': self.truth.annotation.certainty}
    else:
      found['annotation'] = self.truth.file if isinstance(self.truth, visal.Truth) else self.truth  # type: ignore[assignment]
    return {field: file for field, file in found.items() if file is not None}


class Part(NamedTuple):
  """A clip's records in one shard.

  Attributes:
    clip: the clip.
    split: of TFDS: 'train', 'val' or 'test', or that with '_masks_only'.
    shard: the file's name.
    records: in order.
  """

  clip: Clip
  split: str
  shard: str
  records: tuple[Record, ...]


class Plan(NamedTuple):
  """What a preparation is to write.

  Attributes:
    kind: davis2016, fbms59, visal or folder.
    root: the raw data set.
    clips: the parts of each clip.
    splits: the splits that each clip belongs to; its records are in the first.
    warnings: of clips that are not there or left out.
  """

  kind: str
  root: Path
  clips: Mapping[str, tuple[Part, ...]]
  splits: Mapping[str, tuple[str, ...]]
  warnings: tuple[str, ...]


def plan_records(kind: str, root: Path) -> Plan:
  """What is to be written of a raw data set; raises DataError where it is none of that kind."""
  module = datasets.KINDS[kind]
  splits: dict[str, tuple[str, ...]] = {}
  warnings: list[str] = []
  for name in module.SPLITS:
    names, more = module.split(root, name)
    splits |= {clip: (*splits.get(clip, ()), name) for clip in names}
    warnings += [warning for warning in more if warning not in warnings]
  clips = module.read(root, list(splits))
  if not clips:
    raise DataError('no clips', root, f'the folder is empty, or holds no clip of {kind}')
  truths = module.truths(root)
  groups: dict[str, list[tuple[Clip, tuple[Record, ...]]]] = {}
  for clip in clips:
    split = splits[clip.name][0]
    stems = {frame.stem for frame in clip.frames}
    whole = [Record(frame.stem, frame, mask) for frame, mask in zip(clip.frames, clip.masks, strict=True)]
    alone = [Record(stem, None, truth) for stem, truth in truths.get(clip.name, {}).items() if stem not in stems]
    groups.setdefault(split, []).append((clip, tuple(whole)))
    if alone:
      alone.sort(key=lambda record: natural_key(record.stem))
      groups.setdefault(split + _MASKS_ONLY, []).append((clip, tuple(alone)))
  parts = [
    Part(clip, split, f'{kind}-{split}.array_record-{k:05d}-of-{len(group):05d}', records)
    for split, group in groups.items()
    for k, (clip, records) in enumerate(group)
  ]
  found = {clip.name: tuple(part for part in parts if part.clip is clip) for clip in clips}
  return Plan(kind, Path(root), found, splits, tuple(warnings))


def describe(plan: Plan, name: str) -> dict[str, Any]:
  """A clip's entry in clips.json: where its records lie, with path and checksum of every file in them."""
  clip = plan.clips[name][0].clip
  truth = next((mask for mask in clip.masks if mask is not None), None)
  entry: dict[str, Any] = {
    'name': name,
    'splits': list(plan.splits[name]),
    'sparse': clip.sparse,
    'truth': 'fbms' if isinstance(truth, fbms.Truth) else 'visal' if isinstance(truth, visal.Truth) else 'mask',
  }
  if isinstance(truth, fbms.Truth):
    entry |= {'regions': list(truth.definition.regions), 'background': truth.definition.background}
    entry['definition'] = _described(Path(truth.definition.source), plan.root)
  entry['parts'] = [
    {
      'split': part.split,
      'shard': part.shard,
      'frames': [
        {'stem': record.stem, 'files': {field: _described(file, plan.root) for field, file in record.files.items()}}
        for record in part.records
      ],
    }
    for part in plan.clips[name]
  ]
  return entry


def checksums(entry: Mapping[str, Any]) -> dict[str, str]:
  """The checksum of each source file of a clip, by path."""
  files = [file for part in entry['parts'] for frame in part['frames'] for file in frame['files'].values()]
  files += [entry['definition']] if 'definition' in entry else []
  return {file['path']: file['sha256'] for file in files}


def examples(part: Part) -> Iterator[tuple[str, dict[str, Any]]]:
  """Key and fields of each record of a part, as `prepared.features` has them."""
  truth = next((mask for mask in part.clip.masks if isinstance(mask, fbms.Truth)), None)
  for index, record in enumerate(part.records):
    content = {field: file.read_bytes() for field, file in record.files.items()}
    yield (
      f'{part.clip.name}/{record.stem}',
      {
        'clip': part.clip.name,
        'index': index if record.frame is not None else -1,
        'name': record.stem,
        'frame': content.get('frame', _NO_FRAME),
        'annotation': content.get('annotation', b''),
        'certainty': content.get('certainty', b''),
        'regions': [] if truth is None else list(truth.definition.regions),
        'background': 0 if truth is None else truth.definition.background,
      },
    )


def _described(file: File, root: Path) -> dict[str, str]:
  path = Path(str(file))
  place = path.relative_to(root) if path.is_relative_to(root) else path
  return {'path': place.as_posix(), 'sha256': hashlib.sha256(file.read_bytes()).hexdigest()}
