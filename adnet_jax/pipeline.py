"""A clip to its files: masks, heat maps, overlay, summary; reading, computing and writing overlap. Knows no network."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adnet_jax import anchors, background, clip_files, reuse, signals, video
from adnet_jax import masks as mask_files
from adnet_jax.clip_files import Outputs, check_free
from adnet_jax.errors import DataError, UsageError

if TYPE_CHECKING:
  from adnet_jax.cleaning import Cleaning
  from adnet_jax.segmenter import Segmenter

__all__ = ['Filter', 'Item', 'Outputs', 'check_free', 'read_frame', 'segment_clip']

# Frames read ahead, and calls that wait for the writing threads: enough to overlap, whatever the frames' size.
READ_AHEAD = 16
WRITE_BEHIND = 32
WAITING_BYTES = 128 * 2**20


class Item(NamedTuple):
  """A frame on its way from the network to the files.

  Attributes:
    frame: its image, name and time.
    mask: (h, w) bool.
    probability: (h, w) float32 in [0, 1] where an output asks for it.
    exists: whether its files are there already, from a run that this one resumes.
    shot: number of its shot, from 0.
  """

  frame: video.Frame
  mask: np.ndarray
  probability: np.ndarray | None = None
  exists: bool = False
  shot: int = 0


Pair = tuple[video.Frame, anchors.Anchor]
# Changes masks between network and files: yields the items that it gets, in their order, as far behind as it likes.
# Items that exist are for its memory, and stay as they are.
Filter = Callable[[Iterator[Item]], Iterator[Item]]


def segment_clip(
  segmenter: Segmenter,
  source: video.Source,
  out: Path,
  outputs: Outputs,
  *,
  model_name: str = '',
  anchor: int | str | None = None,
  reanchor: int | None = None,
  masks_in: Path | None = None,
  heatmaps_in: Path | None = None,
  progress: Callable[[], None] | None = None,
  cleaning: Cleaning | None = None,
  filters: Sequence[Filter] = (),
  still: float | None = None,
) -> dict[str, Any]:
  """Segments a clip and writes its files.

  Args:
    segmenter: how.
    source: the clip.
    out: folder; gets masks/NAME.png, heatmaps/NAME.png, overlay.mp4, summary.json.
    outputs: which of them.
    model_name: for the summary.
    anchor: number of the anchor frame in the clip, from 0; None or 'first' for the first frame read; 'auto' for the
      first frame of each shot; 'best' for the clearest frame (`anchors.make_plan`), 'auto-best' for that of each shot.
    reanchor: every how many frames of a shot the frame becomes the anchor; None for never.
    masks_in: folder of the masks; None for OUT/masks.
    heatmaps_in: folder of the heat maps; None for OUT/heatmaps.
    progress: called after each frame.
    cleaning: which of the network's foreground is kept.
    filters: what the masks pass through then, before they are written, in this order.
    still: a frame takes the result of the one before where nothing changed by more (`reuse.Stillness`); None: none.

  Returns:
    The summary (contracts: OUT/summary.json).

  Raises:
    DataError: a frame that cannot be read: everything before it is written, the overlay and the summary too. Results
      that cannot be written.
    UsageError: with `resume`, masks of another size than the frames.
  """
  started = time.perf_counter()
  anchors.check_choice(anchor)
  if cleaning is not None:
    filters = [*cleaning.filters(source, outputs), *filters]
  masks, heatmaps = masks_in or out / 'masks', heatmaps_in or out / 'heatmaps'
  run = _Run(segmenter, source, out, masks, heatmaps, outputs, anchor, reanchor, still)
  try:
    with contextlib.ExitStack() as stack:
      writers = run.open_writers()
      writing = background.WriteBehind(depth=WRITE_BEHIND, budget=WAITING_BYTES, clock=run.clock, waits=run.waits)
      # Writers are closed after the threads that write to them have ended.
      for stage, writer in writers.items():
        stack.push(run.closing(stage, writer, writing))
      stack.enter_context(writing)
      for item in run.filtered(filters):
        run.write(item, writing, writers)
        if progress is not None:
          progress()
  except DataError as error:
    if run.frames:
      # The fault is what is to be told, not that the summary of a full disk cannot be written either.
      with contextlib.suppress(DataError):
        run.summarize(model_name, time.perf_counter() - started, str(error))
    raise
  return run.summarize(model_name, time.perf_counter() - started)


class _Anchors:
  """What the summary says of anchors: of each shot its first frame, how many it has, and its anchors' numbers."""

  def __init__(self) -> None:
    self.shots: list[dict[str, Any]] = []
    self._shot = -1

  @property
  def first(self) -> int | None:
    return self.shots[0]['anchors'][0] if self.shots else None

  def add(self, frame: video.Frame, anchor: anchors.Anchor) -> None:
    if anchor.shot != self._shot:
      self._shot = anchor.shot
      self.shots.append({'start': frame.index, 'frames': 0, 'anchors': []})
    entry = self.shots[-1]
    entry['frames'] += 1
    if anchor.index not in entry['anchors'][-1:]:
      entry['anchors'].append(anchor.index)


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
    anchor: int | str | None,
    reanchor: int | None,
    still: float | None,
  ):
    self.segmenter, self.source, self.outputs = segmenter, source, outputs
    self.out, self.masks, self.heatmaps = out, masks, heatmaps
    self.choice = 'first' if anchor is None else anchor
    self.reanchor = reanchor
    self.anchors = _Anchors()
    self.still = None if still is None else reuse.Stillness(still)
    self.size: tuple[int, int] | None = None
    self.frames = self.empty = self.reused = 0
    # Seconds of work by stage, in whichever thread; and those by which each stage held up the thread of this clip.
    self.clock: background.Clock = collections.defaultdict(float)
    self.waits: background.Clock = collections.defaultdict(float)
    self.warnings: list[str] = []
    self.failure: DataError | None = None

  def filtered(self, filters: Sequence[Filter]) -> Iterator[Item]:
    """The results, passed through the filters; what these take is the stage `filter`."""
    items = self.results()
    for change in filters:
      items = change(items)
    while True:
      before, others = time.perf_counter(), self.waits['network'] + self.waits['read']
      item = next(items, None)
      if filters:
        own = time.perf_counter() - before - (self.waits['network'] + self.waits['read'] - others)
        self.clock['filter'] += own
        self.waits['filter'] += own
      if item is None:
        break
      yield item
    # Only now: filters still held masks of frames before it.
    if self.failure is not None:
      raise self.failure

  def results(self) -> Iterator[Item]:
    """Each frame with its result, computed or, where its mask is there, read; frames are read ahead in a thread."""
    ahead = background.read_ahead(
      self._anchored(),
      depth=READ_AHEAD,
      budget=WAITING_BYTES,
      weigh=lambda pair: pair[0].image.nbytes,
      clock=self.clock,
      waits=self.waits,
    )
    with ahead as frames:
      pair = next(frames, None)
      if pair is None:
        return
      if self.outputs.overwrite:
        clip_files.remove_results(self.out, self.masks, self.heatmaps, self.outputs)
      self.size = self.segmenter.base_size(pair[1].image)
      reference = None
      if self.outputs.resume:
        previous = None
        # What a broken run left is taken as it is, up to the first mask that is missing.
        while pair is not None and self._is_done(pair[0]):
          frame, anchor = pair
          self.anchors.add(frame, anchor)
          yield Item(frame, self._read_mask(frame), exists=True, shot=anchor.shot)
          previous, pair = pair, next(frames, None)
        if self.segmenter.protocol == 'released' and previous is not None and pair is not None:
          frame, anchor = previous
          # The next gate needs this frame's foreground as it was before its own gate, which no file holds.
          if anchor.shot == pair[1].shot:
            (again,) = self.segmenter.results([frame.image], anchor=anchor.image)
            reference = again.mask
      if pair is not None:
        yield from self._computed(pair, frames, reference)

  def _anchored(self) -> Iterator[Pair]:
    """Frames with their anchors; what looks at the clip beforehand does so at once."""
    choice = self.choice
    if isinstance(choice, int):
      # An image of its own: the frame may lie outside of what is read.
      plan, images = [anchors.Stretch(0, choice)], iter([read_frame(self.source, choice)])
    elif choice in ('best', 'auto-best'):
      before = time.perf_counter()
      plan = anchors.make_plan(self.segmenter, self.source, by_shots=choice == 'auto-best')
      self.clock['anchor'] += time.perf_counter() - before
      self.waits['anchor'] = self.clock['anchor']
      images = (frame.image for frame in self.source.only([stretch.anchor for stretch in plan]))
    else:
      return anchors.streamed(self.source, choice, self.reanchor)
    pairs = anchors.planned(self.source, plan, images)
    return pairs if self.reanchor is None else anchors.renewed(pairs, self.reanchor)

  def _computed(self, pair: Pair, frames: Iterator[Pair], reference: np.ndarray | None) -> Iterator[Item]:
    # Frames whose results are under way; those that follow one of them closely enough take its result.
    pending: collections.deque[tuple[video.Frame, anchors.Anchor, bool]] = collections.deque()

    def images() -> Iterator[tuple[np.ndarray, anchors.Anchor]]:
      following: Pair | None = pair
      while following is not None:
        frame, anchor = following
        again = self._is_still(frame, pending) and bool(pending) and pending[-1][1] is anchor
        pending.append((frame, anchor, again))
        if not again:
          yield frame.image, anchor
        try:
          following = next(frames, None)
        except DataError as error:
          # A frame that cannot be read ends the clip; those before it still get their masks.
          self.failure = error
          return

    results = self.segmenter.anchored_results(images(), soft=self.outputs.soft, reference=reference)
    while True:
      before, reading = time.perf_counter(), self.waits['read']
      result = next(results, None)
      spent = time.perf_counter() - before - (self.waits['read'] - reading)
      self.clock['network'] += spent
      self.waits['network'] += spent
      if result is None:
        break
      again = False
      # The frame itself, and those behind it that take its result.
      while pending and (not again or pending[0][2]):
        frame, anchor, _ = pending.popleft()
        self.reused += again
        again = True
        self.anchors.add(frame, anchor)
        yield Item(frame, result.mask, result.probability, shot=anchor.shot)

  def _is_still(self, frame: video.Frame, pending: collections.deque) -> bool:
    if self.still is None:
      return False
    # Compared even where it is computed anyway, since a clip that stands still must not fill the memory.
    same = self.still.same(frame.image)
    return same and sum(waiting.image.nbytes for waiting, _, _ in pending) < WAITING_BYTES

  def write(self, item: Item, writing: background.WriteBehind, writers: dict[str, clip_files.Writer]) -> None:
    """Hands a frame's files to the writing threads: all of them, or what is interrupted has masks and no overlay."""
    with signals.held_back():
      self._hand_over(item, writing, writers)

  def _hand_over(self, item: Item, writing: background.WriteBehind, writers: dict[str, clip_files.Writer]) -> None:
    frame, mask, probability = item[:3]
    self.frames += 1
    self.empty += not mask.any()
    if not item.exists:
      path = self.masks / f'{frame.name}.png'
      if self.outputs.heatmaps and probability is not None:
        heatmap = self.heatmaps / path.name
        writing.submit('write', probability.nbytes, video.write_heatmap, heatmap, probability)
      writing.submit('write', mask.nbytes, video.write_mask, path, mask, self.outputs.mask_form)
    size = frame.image.nbytes + mask.nbytes + (0 if probability is None else probability.nbytes)
    for stage, writer in writers.items():
      writing.submit_in_order(stage, size, writer.write, frame.image, mask, probability, frame.name, frame.time)

  def open_writers(self) -> dict[str, clip_files.Writer]:
    """Writers by stage; the overlay is left out where PyAV is missing, which is said."""
    writers: dict[str, clip_files.Writer] = {
      form.stage: form.open(self.out, self.source) for form in self.outputs.forms
    }
    if self.outputs.overlay:
      overlay = clip_files.OverlayForm()
      try:
        writers[overlay.stage] = overlay.open(self.out, self.source)
      except UsageError:
        self.warnings.append("no overlay: PyAV is not installed (pip install 'adnet-jax[video]')")
    return writers

  def closing(self, stage: str, writer: clip_files.Writer, writing: background.WriteBehind) -> Callable[..., None]:
    """What ends a writer when the clip ends, with whatever exception."""

    def end(kind: object, *_: object) -> None:
      if writing.is_broken(stage):
        writer.abort()
        return
      before = time.perf_counter()
      # What was segmented before a fault is worth looking at too; the fault is what is to be told.
      with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
        writer.close()
      self.clock[stage] += time.perf_counter() - before
      self.warnings += writer.warnings

    return end

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
      'refine': 0 if self.size is None else self.segmenter.refine_radius(self.size),
      'frames': self.frames,
      'reused': self.reused,
      'anchor': self.anchors.first,
      'shots': self.anchors.shots,
      'seconds': {'total': round(seconds, 3), **stages},
      'limited_by': max(self.waits, key=lambda stage: self.waits[stage], default=None),
      'files': clip_files.written(self.out, self.masks, self.heatmaps, self.outputs),
      'warnings': [*warnings, fault] if fault else warnings,
    }
    if self.outputs.summary:
      clip_files.write_json(self.out / 'summary.json', summary)
    return summary

  def _is_done(self, frame: video.Frame) -> bool:
    heatmap = self.heatmaps / f'{frame.name}.png'
    # Writers of probabilities would have none for a mask that is only read.
    if any(form.soft for form in self.outputs.forms):
      return False
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
