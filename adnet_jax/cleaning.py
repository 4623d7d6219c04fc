"""Which of the network's foreground is kept: filters of a clip's masks between network and files; knows no networks."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adnet_jax import objects, postprocess, smoothing
from adnet_jax.errors import DataError, UsageError

if TYPE_CHECKING:
  from adnet_jax.clip_files import Outputs
  from adnet_jax.pipeline import Item
  from adnet_jax.sources import Source


@dataclasses.dataclass(frozen=True)
class Cleaning:
  """What is taken out of masks, in this order; probabilities stay as the network gave them.

  Attributes:
    min_area: share of the picture below which a connected component goes; 0 for none.
    smooth: frames of the window in which components that flash up or blink away are mended, odd; 1 for none.
    object: which of the tracks of a shot is kept, 1 for the largest; None for all.
  """

  min_area: float = 0.0
  smooth: int = 1
  object: int | None = None

  def __post_init__(self):
    if not 0 <= self.min_area <= 1:
      raise UsageError(f'min_area is {self.min_area}', 'min_area', 'a share of the picture from 0 to 1')
    if self.smooth < 1 or self.smooth % 2 == 0:
      raise UsageError(f'smooth is {self.smooth}', 'smooth', 'an odd number of frames, such as 3')
    if self.object is not None and self.object < 1:
      raise UsageError(f'object is {self.object}', 'object', '1 for the largest, 2 for the second')

  def filters(self, source: Source, outputs: Outputs) -> list[Callable[[Iterator[Item]], Iterator[Item]]]:
    """What the pipeline's items pass through.

    Raises:
      UsageError: one object of a clip that is resumed: masks which are there already no longer hold the others.
    """
    chosen: list[Callable[[Iterator[Item]], Iterator[Item]]] = []
    if self.min_area:
      chosen.append(lambda items: without_small(items, self.min_area))
    if self.smooth > 1:
      chosen.append(lambda items: steady(items, self.smooth))
    if (rank := self.object) is not None:
      if outputs.resume:
        raise UsageError('one object needs all masks of its clip', '--object, --resume', 'give --overwrite instead')
      chosen.append(lambda items: one_object(items, source, rank))
    return chosen


def without_small(items: Iterator[Item], smallest: float) -> Iterator[Item]:
  """Items whose masks have no component smaller than this share of the picture."""
  for item in items:
    yield item if item.exists else item._replace(mask=postprocess.without_small(item.mask, smallest))


def steady(items: Iterator[Item], window: int) -> Iterator[Item]:
  """Items after `smoothing.steady` over `window` frames, half of it ahead; windows end where a shot or size does."""
  half = window // 2
  for _, run in itertools.groupby(items, key=lambda item: (item.shot, item.mask.shape)):
    around: collections.deque[Item] = collections.deque(maxlen=window)
    at = 0  # of the next one wanted
    for item in run:
      if len(around) == window:
        at -= 1
      around.append(item)
      if len(around) > at + half:
        yield _steadied(around, at)
        at += 1
    while at < len(around):
      if at > half:
        around.popleft()
        at -= 1
      yield _steadied(around, at)
      at += 1


def _steadied(around: collections.deque[Item], at: int) -> Item:
  item = around[at]
  return item if item.exists else item._replace(mask=smoothing.steady([one.mask for one in around], at))


def one_object(items: Iterator[Item], source: Source, rank: int) -> Iterator[Item]:
  """Items whose masks hold the `rank`-th largest track of their shot only.

  A shot's masks wait for its end in a file on disk, and its frames are then read again.

  Args:
    items: of the pipeline; numbers of shots never fall.
    source: where their frames came from.
    rank: from 1.
  """
  again = iter(source.copy())
  for _, run in itertools.groupby(items, key=lambda item: item.shot):
    with tempfile.TemporaryFile(prefix='adnet-') as file:
      waiting, boxes, areas = [], [], []
      for item in run:
        labels, box, area = objects.pieces(item.mask)
        boxes.append(box)
        areas.append(area)
        waiting.append(_store(file, item._replace(mask=labels.astype(np.uint8))))
      chosen = objects.choose(boxes, areas, rank)
      for stored, piece in zip(waiting, chosen, strict=True):
        item = _load(file, stored, next(again))
        yield item._replace(mask=item.mask == piece + 1 if piece >= 0 else np.zeros(item.mask.shape, bool))


class _Stored(NamedTuple):
  """An item on disk: its arrays' places, and the item without what is there."""

  mask: tuple[int, int]
  probability: tuple[int, int] | None
  shape: tuple[int, ...]
  item: Any


def _store(file: IO[bytes], item: Any) -> _Stored:
  def put(array: np.ndarray) -> tuple[int, int]:
    data = zlib.compress(array.tobytes(), 1)
    try:
      start = file.tell()
      file.write(data)
    except OSError as error:
      what = f'masks cannot wait for the end of their shot: {error.strerror}'
      raise DataError(what, tempfile.gettempdir(), 'free space, or set TMPDIR to another folder') from error
    return start, len(data)

  probability = None
  if item.probability is not None:
    # As exact as a heat map's file.
    probability = put(np.round(item.probability * 65535).astype(np.uint16))
  # Neither picture nor masks stay in memory.
  return _Stored(put(item.mask), probability, item.mask.shape, item._replace(frame=None, mask=None, probability=None))


def _load(file: IO[bytes], stored: _Stored, frame: Any) -> Item:
  def get(place: tuple[int, int], dtype: type) -> np.ndarray:
    file.seek(place[0])
    return np.frombuffer(zlib.decompress(file.read(place[1])), dtype).reshape(stored.shape)

  probability = None
  if stored.probability is not None:
    probability = get(stored.probability, np.uint16).astype(np.float32) / np.float32(65535)
  return stored.item._replace(frame=frame, mask=get(stored.mask, np.uint8), probability=probability)
