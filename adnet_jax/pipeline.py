"""A clip to its files: masks, heat maps, overlay, summary; reading, computing and writing overlap. Knows no network."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from adnet_jax import masks as mask_files
from adnet_jax import segmenter as segmenter_lib
from adnet_jax import video
from adnet_jax.errors import DataError, UsageError

READ_AHEAD = 16  # frames
WRITE_BEHIND = 32  # files
T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Outputs:
  """What is written for a clip, and what happens to what is there already.

  Attributes:
    heatmaps: whether 16-bit probabilities are written beside the masks.
    overlay: whether overlay.mp4 is written.
    summary: whether summary.json is written.
    resume: keep the masks that exist and go on at the first missing one.
    overwrite: remove earlier results first.
  """

  heatmaps: bool = False
  overlay: bool = True
  summary: bool = True
  resume: bool = False
  overwrite: bool = False


def check_free(out: Path, outputs: Outputs) -> None:
  """Refuses a folder with results in it unless told what to do with them (faults 7); with `overwrite` removes them."""
  found = [path for path in (out / 'masks', out / 'heatmaps', out / 'overlay.mp4', out / 'summary.json') if path.exists()]
  if not found or outputs.resume:
    return
  if not outputs.overwrite:
    raise UsageError('output folder already holds results', found[0], 'add --overwrite or --resume, or choose another')
  for path in found:
    # Only what we write is removed; a folder with anything else in it stays.
    if path.is_file():
      path.unlink()
      continue
    for file in path.glob('*.png'):
      file.unlink()
    with contextlib.suppress(OSError):
      path.rmdir()


def segment_clip(segmenter: segmenter_lib.Segmenter, source: video.Source, out: Path, outputs: Outputs, *,
                 model_name: str = '', anchor: int | None = None, masks_in: Path | None = None,
                 progress: Callable[[], None] | None = None) -> dict[str, Any]:
  """Segments a clip and writes its files.

  Args:
    segmenter: how.
    source: the clip.
    out: folder; gets masks/NAME.png, heatmaps/NAME.png, overlay.mp4, summary.json.
    outputs: which of them.
    model_name: for the summary.
    anchor: number of the anchor frame in the clip, from 0; None for the first frame read.
    masks_in: folder of the masks; None for OUT/masks.
    progress: called after each frame.

  Returns:
    The summary (contracts: OUT/summary.json).

  Raises:
    DataError: frames that cannot be read; masks up to there are written. Results that cannot be written.
  """
  started, clock = time.perf_counter(), collections.Counter()
  warnings: list[str] = []
  masks_in = out / 'masks' if masks_in is None else masks_in
  anchor_image = None if anchor is None else read_frame(source, anchor)
  done = {}
  if outputs.resume and masks_in.is_dir():
    done = {path.stem: path for path in masks_in.glob('*.png') if not path.name.startswith('.')}
    if outputs.heatmaps:
      done = {name: path for name, path in done.items() if (out / 'heatmaps' / f'{name}.png').exists()}
  frames = [0, 0]  # written, of which empty
  sizes: list[tuple[int, int]] = []
  with _Writer(clock) as writer, _overlay(out, source, outputs, warnings) as overlay:

    def write(frame: video.Frame, result: segmenter_lib.Result, mask_exists: bool) -> None:
      if not mask_exists:
        writer.submit(video.write_mask, masks_in / f'{frame.name}.png', result.mask)
        if outputs.heatmaps:
          writer.submit(video.write_heatmap, out / 'heatmaps' / f'{frame.name}.png', result.probability)
      if overlay is not None:
        writer.submit_in_order(overlay.write, frame.image, result.mask, frame.time)
      frames[0] += 1
      frames[1] += not result.mask.any()
      if progress is not None:
        progress()

    for frame, result in _results(segmenter, source, anchor_image, done, outputs.heatmaps, clock, sizes):
      write(frame, result, frame.name in done)
  if frames[1] == frames[0]:
    warnings.append('no foreground was found: every mask is empty')
  elif frames[1]:
    warnings.append(f'no foreground was found in {frames[1]} of {frames[0]} frames: their masks are empty')
  if source.skipped:
    warnings.append(f'{len(source.skipped)} frame(s) could not be read and were left out: {", ".join(source.skipped[:10])}')
  warnings += [text for text in source.warnings if text not in warnings]
  total = time.perf_counter() - started
  summary = {
      'model': model_name, 'protocol': segmenter.protocol, 'scales': list(segmenter.scales), 'mirror': segmenter.mirror,
      'size': list(sizes[0]) if sizes else None, 'frames': frames[0], 'anchor': anchor or 0,
      'seconds': {'total': round(total, 3), **{stage: round(seconds, 3) for stage, seconds in sorted(clock.items())}},
      'warnings': warnings}
  if outputs.summary:
    _write_json(out / 'summary.json', summary)
  return summary


def read_frame(source: video.Source, number: int) -> np.ndarray:
  """Frame `number` of the whole clip, counted from 0; DataError where the clip is shorter."""
  if source.kind == 'frames':
    if number >= len(source.paths):
      raise DataError(f'no frame {number}, the clip has {len(source.paths)}', source.name, 'frames count from 0')
    return video.read_image(source.paths[number])
  return next(iter(video.open_source(source.paths[0], start=number, end=number + 1))).image


def _results(segmenter, source, anchor_image, done, soft, clock, sizes):
  """Each frame with its result, computed or, where its mask is done, read; frames are read ahead in a thread."""
  with contextlib.ExitStack() as stack:
    frames = stack.enter_context(read_ahead(source, READ_AHEAD, clock))
    first = next(frames, None)
    if first is None:
      return
    anchor = first.image if anchor_image is None else anchor_image
    sizes.append(segmenter.base_size(anchor))
    reference, previous, frame = None, None, first
    # What a broken run left is taken as it is, up to the first mask that is missing.
    while frame is not None and frame.name in done:
      yield frame, segmenter_lib.Result(mask_files.read_mask(done[frame.name]))
      previous, frame = frame, next(frames, None)
    if frame is None:
      return
    done.clear()
    if segmenter.protocol == 'released' and previous is not None:
      # The gate of the next frame needs this one's foreground before its own gate, which no file holds.
      (again,) = segmenter.results([previous.image], anchor=anchor)
      reference = again.mask
    pending: collections.deque = collections.deque()
    failure: list[DataError] = []

    def images() -> Iterator[np.ndarray]:
      following: video.Frame | None = frame
      while following is not None:
        pending.append(following)
        yield following.image
        try:
          following = next(frames, None)
        except DataError as error:
          # A frame that cannot be read ends the clip; those before it still get their masks.
          failure.append(error)
          return

    results = segmenter.results(images(), soft=soft, anchor=anchor, reference=reference)
    while True:
      before = time.perf_counter()
      result = next(results, None)
      clock['network'] += time.perf_counter() - before
      if result is None:
        break
      yield pending.popleft(), result
    if failure:
      raise failure[0]


@contextlib.contextmanager
def _overlay(out: Path, source: video.Source, outputs: Outputs, warnings: list[str]):
  """The overlay's writer, or None where none is wanted or PyAV is missing, which is said."""
  if not outputs.overlay:
    yield None
    return
  try:
    writer = video.OverlayWriter(out / 'overlay.mp4', source.rate, bit_rate=source.overlay_bit_rate)
  except UsageError:
    warnings.append("no overlay: PyAV is not installed (pip install 'adnet-jax[video]')")
    yield None
    return
  try:
    yield writer
  except BaseException:
    # What was segmented before the fault is worth looking at too.
    with contextlib.suppress(Exception):
      writer.close()
    raise
  writer.close()
  warnings += writer.warnings


class _Writer:
  """Threads that write files behind the computation; an error in one is raised at the next call or at the end."""

  def __init__(self, clock: collections.Counter):
    self._clock = clock
    self._files = ThreadPoolExecutor(2, 'write')
    self._ordered = ThreadPoolExecutor(1, 'overlay')
    self._waiting: collections.deque[Future] = collections.deque()

  def submit(self, function: Callable, *arguments: Any) -> None:
    self._add(self._files.submit(self._timed, 'write', function, *arguments))

  def submit_in_order(self, function: Callable, *arguments: Any) -> None:
    self._add(self._ordered.submit(self._timed, 'overlay', function, *arguments))

  def _add(self, future: Future) -> None:
    self._waiting.append(future)
    while len(self._waiting) > WRITE_BEHIND:
      self._waiting.popleft().result()

  def _timed(self, stage: str, function: Callable, *arguments: Any) -> None:
    before = time.perf_counter()
    function(*arguments)
    self._clock[stage] += time.perf_counter() - before

  def __enter__(self) -> _Writer:
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    try:
      for future in self._waiting:
        if kind is None:
          future.result()
    finally:
      self._files.shutdown()
      self._ordered.shutdown()


@contextlib.contextmanager
def read_ahead(items: Iterable[T], depth: int, clock: collections.Counter | None = None) -> Iterator[Iterator[T]]:
  """An iterator over `items` that a thread fills `depth` items ahead; an exception there is raised at its place."""
  slots: queue.Queue = queue.Queue(depth)
  stop = threading.Event()

  def put(kind: str, value: Any) -> bool:
    while not stop.is_set():
      with contextlib.suppress(queue.Full):
        slots.put((kind, value), timeout=0.1)
        return True
    return False

  def fill() -> None:
    try:
      iterator = iter(items)
      while not stop.is_set():
        before = time.perf_counter()
        item = next(iterator, stop)
        if clock is not None:
          clock['read'] += time.perf_counter() - before
        if item is stop or not put('item', item):
          break
      put('end', None)
    except BaseException as error:
      put('error', error)

  def drain() -> Iterator[T]:
    while True:
      kind, value = slots.get()
      if kind == 'end':
        return
      if kind == 'error':
        raise value
      yield value

  thread = threading.Thread(target=fill, name='read', daemon=True)
  thread.start()
  try:
    yield drain()
  finally:
    stop.set()
    thread.join()


def _write_json(path: Path, content: dict[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise DataError(f'cannot be written: {error.strerror}', path, 'free space or choose another folder') from error
