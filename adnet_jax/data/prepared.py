"""Prepared data sets: encoded files in ArrayRecord shards, listed in clips.json; knows how they are read, not written.

A record holds the files of one frame as they were, so that what is read from it equals the raw folder bit for bit.
clips.json says which frame lies where and has the SHA-256 of every file, against which each is checked when read.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adnet_jax.data import fbms, visal
from adnet_jax.data.clip import Annotation, Clip, Split, first_ten
from adnet_jax.errors import DataError, UsageError
from adnet_jax.images import File
from adnet_jax.masks import MaskImage, load_mask_image, natural_key

INDEX = 'clips.json'
FORMAT = 1
# Read at random, one record at a time.
_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'
_AGAIN = 'prepare the data set again'


@dataclasses.dataclass(frozen=True)
class StoredFile:
  """A file in a record, with what readers ask of a path; it holds no open file, so it may go to another process.

  Attributes:
    shard: the ArrayRecord file.
    record: number of the record in it.
    field: the record's field that holds the file.
    clip: name of the clip.
    name: of the original file.
    sha256: of its content, in hexadecimal digits.
  """

  shard: Path
  record: int
  field: str
  clip: str
  name: str
  sha256: str

  @property
  def stem(self) -> str:
    return Path(self.name).stem

  @property
  def suffix(self) -> str:
    return Path(self.name).suffix

  def __str__(self) -> str:
    return f'{self.shard}, record {self.record}: {self.clip}/{self.name}'

  def load(self) -> MaskImage:
    """Decodes the file as a mask."""
    return load_mask_image(self)

  def read_bytes(self) -> bytes:
    """The original file's content.

    Raises:
      DataError: the record is damaged, or is another one (fault 69).
      UsageError: the extra `tfds` is not installed.
    """
    data = read_record(self.shard, self.record, str(self))[self.field]
    if hashlib.sha256(data).hexdigest() != self.sha256:
      raise DataError('damaged record: its content has another checksum', self, _AGAIN)
    return data


def is_prepared(root: Path) -> bool:
  """Whether `root` is a prepared data set."""
  return (Path(root) / INDEX).is_file() or (Path(root) / 'dataset_info.json').is_file()


def original_kind(root: Path) -> str:
  """The kind of data set that was prepared: davis2016, fbms59, visal or folder."""
  return read_index(root)['kind']


def split(root: Path, name: str) -> Split:
  """The clips of a split; none is left out."""
  return Split([entry['name'] for entry in read_index(root)['clips'] if name in entry['splits']], [])


def read(root: Path, names: list[str]) -> list[Clip]:
  """The named clips, whose frames and masks lie in records.

  Raises:
    DataError: a shard is missing, or clips.json is damaged.
    UsageError: the extra `tfds` is not installed.
  """
  clips = []
  for entry in _entries(root, names):
    frames = [stored['frame'] for _, stored in _records(root, entry) if 'frame' in stored]
    masks = _truths(root, entry)
    clips.append(
      Clip(entry['name'], tuple(frames), tuple(masks.get(frame.stem) for frame in frames), sparse=entry['sparse'])
    )
  return clips


def truths(root: Path) -> dict[str, dict[str, File | Annotation]]:
  """Ground truth of all annotated clips by frame stem, of frames that are not there too; raises as `read`."""
  found = {entry['name']: _truths(root, entry) for entry in _entries(root, None)}
  return {name: masks for name, masks in found.items() if masks}


def _entries(root: Path, names: list[str] | None) -> list[dict[str, Any]]:
  import_tfds()
  entries = {entry['name']: entry for entry in read_index(root)['clips']}
  chosen = list(entries.values()) if names is None else [entries[name] for name in names]
  shards = [part['shard'] for entry in chosen for part in entry['parts']]
  lost = [shard for shard in shards if not (Path(root) / shard).is_file()]
  if lost:
    raise DataError(f'shards missing: {first_ten(lost)}', root, _AGAIN)
  return chosen


def _records(root: Path, entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, StoredFile]]]:
  """Each record of a clip: the frame's stem, and the files by field."""
  for part in entry['parts']:
    for record, frame in enumerate(part['frames']):
      yield (
        frame['stem'],
        {
          field: StoredFile(
            Path(root) / part['shard'], record, field, entry['name'], Path(file['path']).name, file['sha256']
          )
          for field, file in frame['files'].items()
        },
      )


def _truths(root: Path, entry: dict[str, Any]) -> dict[str, File | Annotation]:
  """Ground truth of a clip by frame stem, in natural order."""
  found = {stem: stored for stem, stored in _records(root, entry) if 'annotation' in stored}
  found = dict(sorted(found.items(), key=lambda item: natural_key(item[0])))
  if entry['truth'] == 'visal':
    return {stem: visal.Truth(stored['annotation']) for stem, stored in found.items()}
  if entry['truth'] != 'fbms':
    return {stem: stored['annotation'] for stem, stored in found.items()}
  annotations = tuple(
    fbms.Annotation(stem, stored['annotation'], stored.get('certainty')) for stem, stored in found.items()
  )
  definition = fbms.Definition(
    entry['name'], tuple(entry['regions']), entry['background'], annotations, str(Path(root) / INDEX)
  )
  return {annotation.frame: fbms.Truth(annotation, definition) for annotation in annotations}


def read_index(root: Path) -> dict[str, Any]:
  """The content of clips.json; DataError where it is missing, damaged or of a newer format."""
  path = Path(root) / INDEX
  try:
    status = path.stat()
  except FileNotFoundError as error:
    raise DataError(f'prepared data set without {INDEX}', root, _AGAIN) from error
  return _parsed_index(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _parsed_index(path: Path, _time: int, _size: int) -> dict[str, Any]:
  try:
    index = json.loads(path.read_text(encoding='utf-8'))
    newer = index['format'] > FORMAT
    complete = all(entry.keys() >= {'name', 'splits', 'truth', 'sparse', 'parts'} for entry in index['clips'])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise DataError('list of a prepared data set is damaged', path, _AGAIN) from error
  if newer or not complete:
    raise DataError(f'prepared by {"a newer" if newer else "another"} version, format {index["format"]}', path, _AGAIN)
  return index


def import_tfds() -> Any:
  """TFDS' module, which only prepared data sets need; UsageError where it or ArrayRecord is not installed."""
  try:
    import array_record.python.array_record_module  # noqa: F401
    import tensorflow_datasets  # imports no TensorFlow
  except ImportError as error:
    what = f'prepared data sets need TFDS and ArrayRecord, which are not installed ({error})'
    raise UsageError(what, advice="pip install 'adnet-jax[tfds]'") from error
  return tensorflow_datasets


def features() -> Any:
  """What a record holds, as TFDS' features: the frame as an image, everything else as it was on disk."""
  import numpy as np

  tfds = import_tfds()
  return tfds.features.FeaturesDict(
    {
      'clip': tfds.features.Text(doc='name of the clip'),
      'index': tfds.features.Scalar(np.int32, doc='number of the frame in the clip, from 0'),
      'name': tfds.features.Text(doc="name of the frame's file"),
      'frame': tfds.features.Image(shape=(None, None, 3), doc='the frame, encoded as it was'),
      'annotation': tfds.features.Text(doc="bytes of the mask's or label map's file; empty: not annotated"),
      'certainty': tfds.features.Text(doc="bytes of FBMS' certainty map, value / 255; empty: none"),
      'regions': tfds.features.Sequence(np.int32, doc="FBMS: colours of the label map's regions"),
      'background': tfds.features.Scalar(np.int32, doc='FBMS: which of the regions is background'),
    }
  )


def read_record(shard: Path, record: int, where: str) -> dict[str, Any]:
  """A record's fields, files as bytes; DataError names it where it is damaged."""
  tfds = import_tfds()
  try:
    status = shard.stat()
    reader, lock = _reader(str(shard), status.st_mtime_ns, status.st_size)
    with lock:
      (data,) = reader.read([record])
    return _features().deserialize_example_np(data, decoders={'frame': tfds.decode.SkipDecoding()})
  except MemoryError:
    raise
  except Exception as error:  # ArrayRecord and the parser raise whatever they trip over in a damaged file
    _reader.cache_clear()  # a reader that has failed once stays broken
    raise DataError(f'damaged record: {" ".join(str(error).split())[:200]}', where, _AGAIN) from error


@functools.lru_cache(maxsize=128)
def _reader(shard: str, _time: int, _size: int) -> tuple[Any, threading.Lock]:
  from array_record.python.array_record_module import ArrayRecordReader

  return ArrayRecordReader(shard, _OPTIONS), threading.Lock()


@functools.cache
def _features() -> Any:
  return features()
