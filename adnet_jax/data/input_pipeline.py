"""Training pairs, each a function of (seed, index) alone, read and augmented ahead of the step by Grain's threads.

Index i of the stream is sample i % batch of step i // batch. Knows nothing of models or devices.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import cv2
import grain
import numpy as np
from absl import logging

from adnet_jax import errors
from adnet_jax.data import cache as cache_lib
from adnet_jax.data import datasets, transforms

# Draws for one sample: where so many hit unreadable files, there is little else.
MAX_ATTEMPTS = 1000
# About a millisecond of each pair holds Python's lock: more threads would wait for each other.
MAX_WORKERS = 16
# Seconds without any sample, while one is waited for, after which the workers count as dead (fault 27).
STALLED = 45
_REPAIR = 'repair or remove them, or raise data.max_unreadable'


@dataclasses.dataclass(frozen=True)
class PairSource:
  """Random-access source of training pairs for Grain.

  Attributes:
    clips: training clips, each with a mask of the frames that `anchor` takes.
    photographs: still images; may be empty.
    stills_fraction: probability that a pair is two augmentations of one photograph.
    augmentation: what each frame of a pair goes through by itself.
    seed: with the index, decides everything random.
    length: number of samples.
    max_unreadable: files that may be unreadable before that is an error.
    unreadable: those met so far, and why.
    anchor: 'first': the anchor is the clip's first frame. 'random': any annotated frame, other than the pair's second.
    cache: keeps what has been decoded; None decodes each time.
  """

  clips: Sequence[datasets.Clip]
  photographs: Sequence[datasets.Photograph]
  stills_fraction: float
  augmentation: transforms.Augmentation
  seed: int
  length: int
  max_unreadable: int = 10
  unreadable: dict[str, str] = dataclasses.field(default_factory=dict, compare=False)
  anchor: str = 'first'
  cache: cache_lib.Decoded | None = None

  def __len__(self) -> int:
    return self.length

  def _choose(
    self, index: int, attempt: int = 0
  ) -> tuple[np.random.Generator, datasets.Photograph | tuple[datasets.Clip, int, int]]:
    rng = np.random.default_rng((self.seed, index, attempt) if attempt else (self.seed, index))
    if self.photographs and rng.random() < self.stills_fraction:
      return rng, self.photographs[int(rng.integers(len(self.photographs)))]
    clip = self.clips[int(rng.integers(len(self.clips)))]
    # The first frame is the anchor, and any other annotated frame the current one (paper Sec. 4, "Training").
    annotated = clip.annotated
    if self.anchor == 'random':
      anchor, frame = rng.permutation(annotated)[:2] if len(annotated) > 1 else annotated * 2
      return rng, (clip, int(anchor), int(frame))
    frame = annotated[rng.integers(1, len(annotated))] if len(annotated) > 1 else annotated[0]
    return rng, (clip, annotated[0], frame)

  def sample_id(self, index: int, attempt: int = 0) -> str:
    """What sample `index` is made of at an attempt, 'clip/00000+00012' or 'still/name', without reading it."""
    _, chosen = self._choose(index, attempt)
    if isinstance(chosen, datasets.Photograph):
      return f'still/{chosen.name}'
    clip, anchor, frame = chosen
    return f'{clip.name}/{clip.frames[anchor].stem}+{clip.frames[frame].stem}'

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """The pair of a sample; an unreadable one is replaced by the next attempt, which is another draw (fault 23).

    Returns:
      'images' (2, crop, crop, 3) uint8 RGB and 'masks' (2, crop, crop) uint8; [0] is the anchor. 'attempts' () int32:
      how many attempts were unreadable.

    Raises:
      DataError: more than `max_unreadable` files, or all that were drawn, are unreadable.
    """
    for attempt in range(MAX_ATTEMPTS):
      rng, chosen = self._choose(int(index), attempt)
      try:
        pair = self._read(chosen)
      except errors.DataError as error:
        self._note_unreadable(error)
        continue
      augmented = [transforms.augment(image, mask, self.augmentation, rng) for image, mask in pair]
      return {
        'images': np.stack([image for image, _ in augmented]),
        'masks': np.stack([mask for _, mask in augmented]),
        'attempts': np.asarray(attempt, np.int32),
      }
    raise errors.DataError(f'{MAX_ATTEMPTS} samples drawn, none is readable', next(iter(self.unreadable)), _REPAIR)

  def _read(self, chosen: datasets.Photograph | tuple[datasets.Clip, int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    read_pair = datasets.read_pair if self.cache is None else self.cache.read_pair
    if isinstance(chosen, datasets.Photograph):
      return [read_pair(chosen.image, chosen.mask)] * 2
    clip, *frames = chosen
    pair = []
    for frame in frames:
      mask_path = clip.masks[frame]
      assert mask_path is not None  # `annotated` has no others
      pair.append(read_pair(clip.frames[frame], mask_path))
    return pair

  def _note_unreadable(self, error: errors.DataError) -> None:
    name = str(error.where)
    if name in self.unreadable:
      return
    self.unreadable[name] = error.what
    count = len(self.unreadable)
    if count > self.max_unreadable:
      raise errors.DataError(f'{count} training files are unreadable, the last: {error.what}', name, _REPAIR) from error
    logging.error(
      'training file %s is unreadable (%s), other samples take its place; %d so far', name, error.what, count
    )


def pair_source(
  config: Any, clips: Sequence[datasets.Clip], photographs: Sequence[datasets.Photograph], processes: int = 1
) -> PairSource:
  """The source that a validated configuration describes, for each of so many processes."""
  usable = [clip for clip in clips if clip.masks[0] is not None or config.data.anchor == 'random']
  if not usable:
    raise errors.DataError('no training clip has a mask of its first frame', config.data.root, 'the anchor needs one')
  left_out = [clip.name for clip in clips if clip not in usable]
  if left_out:
    logging.warning('clips whose first frame has no mask, left out: %s', ', '.join(left_out))
  augmentation = transforms.Augmentation(config.data.crop, config.data.rotation, config.data.flip, config.data.colour)
  return PairSource(
    usable,
    photographs,
    config.data.stills_fraction,
    augmentation,
    config.seed,
    config.steps * config.batch,
    config.data.max_unreadable,
    anchor=config.data.anchor,
    cache=cache_lib.open_cache(config.data.cache, processes),
  )


def worker_count(workers: int) -> int:
  """Threads that `data.workers` means here: one a core that this process may use, up to MAX_WORKERS, for -1."""
  if workers >= 0:
    return max(workers, 1)
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  return min(MAX_WORKERS, cores)


def batches(
  source: PairSource, *, batch: int, first_step: int, workers: int, process: int = 0, processes: int = 1
) -> Iterator[dict[str, np.ndarray]]:
  """This process's share of each global batch from `first_step` on: contiguous rows, read ahead by threads.

  Threads, not processes: decoding and warping release Python's lock, and nothing has to be copied between processes.

  Raises:
    UsageError: the batch cannot be shared among the processes.
    DataError: a worker died, or none has given a sample for STALLED seconds (fault 27); what the source raises.
  """
  if batch % processes:
    raise errors.UsageError(f'batch={batch} is not divisible by {processes} processes', 'batch', 'choose a multiple')
  share = batch // processes
  cv2.setNumThreads(1)
  threads = worker_count(workers)
  first, last = first_step * batch, len(source)
  newest = time.monotonic()

  def sample(i: int) -> dict[str, np.ndarray]:
    nonlocal newest
    index = first + i // share * batch + process * share + i % share
    try:
      return source[index]
    except errors.DataError:
      raise
    except BaseException as error:  # whatever ends the thread ends the run
      what = f'a data worker died: {type(error).__name__}: {error}'
      raise errors.DataError(what, source.sample_id(index), 'the same command goes on from the checkpoint') from error
    finally:
      newest = time.monotonic()

  dataset = grain.MapDataset.range((last - first) // processes).map(lambda i: sample(int(i)))
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4 * share, 2 * threads))
  yield from _watched(iter(dataset.to_iter_dataset(options).batch(share)), lambda: newest)


def _watched(iterator: Iterator[Any], newest: Callable[[], float]) -> Iterator[Any]:
  """The same items; DataError once none has come for STALLED seconds and none was being made, by `newest`."""
  ends = object()
  waiting = futures.ThreadPoolExecutor(1)  # the wait for a lost worker must be broken off
  try:
    while True:
      start, item = time.monotonic(), waiting.submit(next, iterator, ends)
      while not futures.wait([item], timeout=1).done:
        idle = time.monotonic() - max(start, newest())
        if idle > STALLED:
          raise errors.DataError(
            f'the data workers gave no sample for {idle:.0f} s', None, 'is the storage of data.root still there?'
          )
      if item.result() is ends:
        return
      yield item.result()
  finally:
    waiting.shutdown(wait=False)
