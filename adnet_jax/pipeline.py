"""A clip to its files: masks, heat maps, overlay, summary; reading, computing and writing overlap. Knows no network."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adnet_jax import background, video
from adnet_jax import masks as mask_files
from adnet_jax.errors import DataError, UsageError
from adnet_jax.segmenter import Segmenter
from adnet_jax.session import Result

# Frames read ahead, and calls that wait for the writing threads: enough to overlap, whatever the frames' size.
READ_AHEAD = 16
WRITE_BEHIND = 32
WAITING_BYTES = 128 * 2**20


@dataclasses.dataclass(frozen=True)
class Outputs:
  """What is written for a clip, and what happens to what is there already.

  Attributes:
    heatmaps: whether 16-bit probabilities are written beside the masks.
    overlay: whether overlay.mp4 is written.
    summary: whether summary.json is written.
    resume: keep the masks that exist and go on at the first missing one.
    overwrite: remove earlier results, as soon as the first frame was read.
  """

  heatmaps: bool = False
  overlay: bool = True
  summary: bool = True
  resume: bool = False
  overwrite: bool = False


def check_free(out: Path, outputs: Outputs) -> None:
  """Refuses a folder with results in it unless told what to do with them (fault 7); removes nothing."""
  found = _results_in(out, out / 'masks', out / 'heatmaps')
  if found and not (outputs.resume or outputs.overwrite):
    raise UsageError(
      'output folder already holds results', found[0].parent, 'add --overwrite or --resume, or choose another'
    )


def segment_clip(
  segmenter: Segmenter,
  source: video.Source,
  out: Path,
  outputs: Outputs,
  *,
  model_name: str = '',
  anchor: int | None = None,
  masks_in: Path | None = None,
  heatmaps_in: Path | None = None,
  progress: Callable[[], None] | None = None,
) -> dict[str, Any]:
  """Segments a clip and writes its files.

  Args:
    segmenter: how.
    source: the clip.
    out: folder; gets masks/NAME.png, heatmaps/NAME.png, overlay.mp4, summary.json.
    outputs: which of them.
    model_name: for the summary.
    anchor: number of the anchor frame in the clip, from 0; None for the first frame read.
    masks_in: folder of the masks; None for OUT/masks.
    heatmaps_in: folder of the heat maps; None for OUT/heatmaps.
    progress: called after each frame.

  Returns:
    The summary (contracts: OUT/summary.json).

  Raises:
    DataError: a frame that cannot be read: everything before it is written, the overlay and the summary too. Results
      that cannot be written.
    UsageError: with `resume`, masks of another size than the frames.
  """
  started = time.perf_counter()
  masks, heatmaps = masks_in or out / 'masks', heatmaps_in or out / 'heatmaps'
  run = _Run(segmenter, source, out, masks, heatmaps, outputs, anchor)
  try:
    # The overlay is closed after the threads that write to it have ended.
    with (
      run.overlay() as overlay,
      background.WriteBehind(depth=WRITE_BEHIND, budget=WAITING_BYTES, clock=run.clock) as writer,
    ):
      for item in run.results():
        run.write(item, writer, overlay)
        if progress is not None:
          progress()
  except DataError as error:
    if run.frames:
      # The fault is what is to be told, not that the summary of a full disk cannot be written either.
      with contextlib.suppress(DataError):
        run.summarize(model_name, time.perf_counter() - started, str(error))
    raise
  return run.summarize(model_name, time.perf_counter() - started)


class _Item(NamedTuple):
  """A frame, its result, and whether the result's files are there already."""

  frame: video.Frame
  result: Result
  exists: bool


class _Run:
  """One clip on its way; `frames` counts those whose masks were handed on, `empty` those of them without foreground."""

  def __init__(
    self,
    segmenter: Segmenter,
    source: video.Source,
    out: Path,
    masks: Path,
    heatmaps: Path,
    outputs: Outputs,
    anchor: int | None,
  ):
    self.segmenter, self.source, self.outputs = segmenter, source, outputs
    self.out, self.masks, self.heatmaps = out, masks, heatmaps
    self.anchor: int | None = anchor
    self.size: tuple[int, int] | None = None
    self.frames = self.empty = 0
    self.clock: background.Clock = collections.defaultdict(float)
    self.warnings: list[str] = []

  def results(self) -> Iterator[_Item]:
    """Each frame with its result, computed or, where its mask is there, read; frames are read ahead in a thread."""
    anchor = None if self.anchor is None else read_frame(self.source, self.anchor)
    ahead = background.read_ahead(
      self.source, depth=READ_AHEAD, budget=WAITING_BYTES, weigh=lambda frame: frame.image.nbytes, clock=self.clock
    )
    with ahead as frames:
      frame = next(frames, None)
      if frame is None:
        return
      if self.outputs.overwrite:
        _remove_results(self.out, self.masks, self.heatmaps)
      if self.anchor is None or anchor is None:
        self.anchor, anchor = frame.index, frame.image
      self.size = self.segmenter.base_size(anchor)
      reference = None
      if self.outputs.resume:
        previous = None
        # What a broken run left is taken as it is, up to the first mask that is missing.
        while frame is not None and self._is_done(frame):
          yield _Item(frame, Result(self._read_mask(frame)), True)
          previous, frame = frame, next(frames, None)
        if self.segmenter.protocol == 'released' and previous is not None and frame is not None:
          # The next gate needs this frame's foreground as it was before its own gate, which no file holds.
          (again,) = self.segmenter.results([previous.image], anchor=anchor)
          reference = again.mask
      if frame is not None:
        yield from self._computed(frame, frames, anchor, reference)

  def _computed(
    self, frame: video.Frame, frames: Iterator[video.Frame], anchor: np.ndarray, reference: np.ndarray | None
  ) -> Iterator[_Item]:
    pending: collections.deque[video.Frame] = collections.deque()
    failure: list[DataError] = []

    def images() -> Iterator[np.ndarray]:
      following: video.Frame | None = frame
      while following is not None:
        pending.append(following)
        yield following.image
        before = time.perf_counter()
        try:
          following = next(frames, None)
        except DataError as error:
          # A frame that cannot be read ends the clip; those before it still get their masks.
          failure.append(error)
          return
        finally:
          self.clock['network'] -= time.perf_counter() - before

    results = self.segmenter.results(images(), soft=self.outputs.heatmaps, anchor=anchor, reference=reference)
    while True:
      before = time.perf_counter()
      result = next(results, None)
      self.clock['network'] += time.perf_counter() - before
      if result is None:
        break
      yield _Item(pending.popleft(), result, False)
    if failure:
      raise failure[0]

  def write(self, item: _Item, writer: background.WriteBehind, overlay: video.OverlayWriter | None) -> None:
    """Hands a frame's files to the writing threads."""
    frame, result = item.frame, item.result
    self.frames += 1
    self.empty += not result.mask.any()
    if not item.exists:
      path = self.masks / f'{frame.name}.png'
      if result.probability is not None:
        heatmap = self.heatmaps / path.name
        writer.submit('write', result.probability.nbytes, video.write_heatmap, heatmap, result.probability)
      writer.submit('write', result.mask.nbytes, video.write_mask, path, result.mask)
    if overlay is not None:
      size = frame.image.nbytes + result.mask.nbytes
      writer.submit_in_order('overlay', size, overlay.write, frame.image, result.mask, frame.time)

  @contextlib.contextmanager
  def overlay(self) -> Iterator[video.OverlayWriter | None]:
    """The overlay's writer, or None where none is wanted or PyAV is missing, which is said."""
    if not self.outputs.overlay:
      yield None
      return
    try:
      path = self.out / 'overlay.mp4'
      writer = video.OverlayWriter(path, self.source.rate, bit_rate=self.source.overlay_bit_rate)
    except UsageError:
      self.warnings.append("no overlay: PyAV is not installed (pip install 'adnet-jax[video]')")
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
    self.warnings += writer.warnings

  def summarize(self, model_name: str, seconds: float, fault: str | None = None) -> dict[str, Any]:
    """The summary; written where it is wanted."""
    warnings = list(self.warnings)
    if self.empty == self.frames:
      warnings.append('no foreground was found: every mask is empty')
    elif self.empty:
      warnings.append(f'no foreground was found in {self.empty} of {self.frames} frames: their masks are empty')
    skipped = self.source.skipped
    if skipped:
      warnings.append(f'{len(skipped)} frame(s) could not be read and were left out: {", ".join(skipped[:10])}')
    warnings += [text for text in self.source.warnings if text not in warnings]
    stages = {stage: round(max(0.0, spent), 3) for stage, spent in sorted(self.clock.items())}
    summary = {
      'model': model_name,
      'protocol': self.segmenter.protocol,
      'scales': list(self.segmenter.scales),
      'mirror': self.segmenter.mirror,
      'size': None if self.size is None else list(self.size),
      'frames': self.frames,
      'anchor': self.anchor,
      'seconds': {'total': round(seconds, 3), **stages},
      'warnings': [*warnings, fault] if fault else warnings,
    }
    if self.outputs.summary:
      _write_json(self.out / 'summary.json', summary)
    return summary

  def _is_done(self, frame: video.Frame) -> bool:
    heatmap = self.heatmaps / f'{frame.name}.png'
    return (self.masks / f'{frame.name}.png').exists() and (not self.outputs.heatmaps or heatmap.exists())

  def _read_mask(self, frame: video.Frame) -> np.ndarray:
    path = self.masks / f'{frame.name}.png'
    mask = mask_files.read_mask(path)
    if mask.shape != frame.image.shape[:2]:
      raise UsageError('a mask of another size than its frame, so of another clip', path, 'use --overwrite')
    return mask


def read_frame(source: video.Source, number: int) -> np.ndarray:
  """Frame `number` of the whole clip, counted from 0; DataError where the clip is shorter."""
  if source.kind == 'frames':
    if number >= len(source.paths):
      raise DataError(f'no frame {number}, the clip has {len(source.paths)}', source.name, 'frames count from 0')
    return video.read_image(source.paths[number])
  return next(iter(video.open_source(source.paths[0], start=number, end=number + 1))).image


def _results_in(out: Path, masks: Path, heatmaps: Path) -> list[Path]:
  """What an earlier run left."""
  files = [path for path in (out / 'overlay.mp4', out / 'summary.json') if path.exists()]
  folders = [sorted(folder.glob('*.png')) for folder in (masks, heatmaps) if folder.is_dir()]
  return [*files, *(path for found in folders for path in found)]


def _remove_results(out: Path, masks: Path, heatmaps: Path) -> None:
  """Removes what an earlier run left, and nothing else that lies in these folders."""
  try:
    for path in _results_in(out, masks, heatmaps):
      path.unlink()
    for folder in (out, masks, heatmaps):
      for path in folder.glob('.adnet-*.tmp'):  # of a run that was killed
        path.unlink()
  except OSError as error:
    raise DataError(f'cannot be removed: {error.strerror}', error.filename, 'choose another folder') from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
  temporary = path.with_name(f'.adnet-{os.getpid()}-summary.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
    os.replace(temporary, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise DataError(f'cannot be written: {error.strerror}', path, 'free space or choose another folder') from error
