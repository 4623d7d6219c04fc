"""Scores folders of masks or heat maps against annotations; knows nothing of how the masks were made."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from adnet_jax import __version__, rules
from adnet_jax import clips as layout
from adnet_jax.errors import DataError, DeviceError, UsageError
from adnet_jax.masks import MaskImage, load_mask_image
from adnet_jax.scores import FORMAT

_WORTH_A_POOL = 100  # frames: below, processes take longer to start than to score


def score_masks(
  masks: str | Path,
  truth: str | Path,
  *,
  rule: str = 'davis2016',
  metrics: Sequence[str] | None = None,
  stability: str = rules.STABILITY,
  ends: str | None = None,
  frames: str = 'all',
  clips: Sequence[str] | None = None,
  allow_missing: bool = False,
  resize: bool = False,
  threshold: float | None = None,
  jobs: int | None = None,
  protocol: str | None = None,
  progress: bool = False,
) -> dict:
  """Scores a folder of masks against a folder of annotations.

  Args:
    masks: folder with CLIP/NNNNN.png; one clip's own folder will do too. The saliency rules want heat maps: 8 bit,
      16 bit, or npz with the key `probability`; masks count as maps of 0 and 1.
    truth: folder with CLIP/NNNNN.png, such as DAVIS/Annotations/480p, or a data set that `adnet_jax.data` reads. Frames
      without an annotation are not scored.
    rule: how to score; a key of `rules.RULES`.
    metrics: of the rule `davis2016`, from 'J', 'F' and 'T'; None for J and F. The other rules give all they have.
    stability: which of the programs T follows; see `metrics.stability`.
    ends: 'drop' leaves out a clip's first and last annotation, 'keep' counts them; None does what the rule says.
    frames: 'all' wants a mask for every counted annotation. 'given' scores those of them that have a mask, as where
      only some frames of a clip were at hand to predict; none is missing then.
    clips: exactly these clips. None: the clips of `masks`; where annotations, or the data set's own list that holds
      these clips (ImageSets beside Annotations), have more, they are named in the result's `warnings`.
    allow_missing: with frames='all', count a missing mask as empty, and do not refuse a folder where clips have masks
      of frames without annotation, or differ in whether their first and last frame have one (two methods mixed).
    resize: bring masks of another size to the annotation's, nearest neighbour.
    threshold: masks are soft maps; foreground is a probability strictly above this one, in [0, 1].
    jobs: processes; None for one a core, or none at all where there is little to do.
    protocol: the inference protocol that made the masks, for the record; None where unknown.
    progress: draw a progress bar on stderr.

  Returns:
    The contents of a score file: `format, rule, protocol, version, dataset, clips, warnings` and, only where it
    applies, `stability` (T's program), `ends` (where not the rule's own), `subset` (true where frames of a clip are
    left out of the score), `missing` and `resized` ({clip: [frame]}) and `threshold`. Undefined values are None.

  Raises:
    UsageError: unknown rule or metric, or a value out of range.
    DataError: folders, clips, frames or masks that cannot be scored; all of them are named.
    DeviceError: a worker process died.

  Source: docs/evaluation.md has each rule's.
  """
  task = _task(rule, metrics, stability, threshold, resize)
  _check_options(frames, ends, threshold, jobs)
  masks, truth = Path(masks), Path(truth)
  counts_ends = task.rule.ends if ends is None else ends == 'keep'
  plan = layout.plan_clips(
    masks, truth, ends=counts_ends, frames=frames, clips=clips, allow_missing=allow_missing
  )  # fmt: skip
  outcomes = _score_clips(plan.clips, task, jobs, progress)
  warnings = [*plan.warnings, *_reading_warnings(outcomes)]
  counted = {clip.name: outcomes[clip.name].measured for clip in plan.clips if clip.frames}
  scores = {
    'format': FORMAT,
    'rule': rule,
    'protocol': protocol,
    'version': __version__,
    'dataset': task.rule.dataset(counted, task.metrics),
    'clips': {
      clip.name: {'frames': list(clip.frames), **task.rule.clip(counted.get(clip.name), task.metrics)}
      for clip in plan.clips
    },
    'warnings': warnings,
  }
  if any(clip.subset for clip in plan.clips):
    scores['subset'] = True
  extra = {
    'stability': stability if 'T' in task.metrics else None,
    'ends': ends if counts_ends != task.rule.ends else None,
    'missing': {clip.name: list(clip.missing) for clip in plan.clips if clip.missing},
    'resized': {name: outcome.resized for name, outcome in outcomes.items() if outcome.resized},
    'threshold': threshold,
  }
  return scores | {key: value for key, value in extra.items() if value not in (None, {})}


@dataclass(frozen=True)
class ClipTask:
  """What to do with each clip, the same for all."""

  name: str
  metrics: tuple[str, ...]
  stability: str
  threshold: float | None
  resize: bool

  @property
  def rule(self) -> rules.Rule:
    """The rule itself, which does not travel between processes."""
    return rules.RULES[self.name]


@dataclass
class ClipOutcome:
  """What the rule measured on one clip's counted frames, and what had to be done to its files."""

  measured: Any = None
  resized: list[str] = field(default_factory=list)
  merged_truth: str | None = None
  merged_mask: str | None = None
  zero_one: str | None = None


def score_clip(clip: layout.ClipPlan, task: ClipTask) -> ClipOutcome:
  """Reads and scores one clip, frame by frame, in bounded memory; also what a worker process runs.

  Raises:
    DataError: every mask of another size, and every soft map, of this clip is named.
  """
  outcome = ClipOutcome()
  if clip.frames:
    reader = _ClipReader(clip, task, outcome)
    settings = rules.Settings(task.metrics, task.stability, reader.first_annotation)
    outcome.measured = task.rule.measure(reader.frames(), settings)
  return outcome


class _ClipReader:
  """Files of one clip to the arrays that a rule wants; what is wrong with them is raised after the last."""

  def __init__(self, clip: layout.ClipPlan, task: ClipTask, outcome: ClipOutcome):
    self._clip, self._task, self._outcome = clip, task, outcome
    self._order = {frame: index for index, frame in enumerate(clip.truth)}
    self._hard: bool | None = None

  def first_annotation(self) -> np.ndarray | None:
    """Foreground of the clip's first annotation where the first counted frame is the one after it, else None."""
    first, *_ = self._clip.truth
    return self._truth(first).truth() if self._order[self._clip.frames[0]] == 1 else None

  def frames(self) -> Iterator[rules.Frame]:
    """The counted frames in order."""
    wrong_size, soft, brightest = [], [], 0
    before = None
    for frame in self._clip.frames:
      image = self._truth(frame)
      truth = self._wanted_truth(image, frame)
      if frame in self._clip.missing:
        prediction = np.zeros(truth.shape, {'masks': bool, 'maps': np.float32, 'labels': np.int32}[self._rule.wants])
      else:
        mask = load_mask_image(self._clip.masks[frame])
        if self._is_soft(mask):
          soft.append(frame)
          continue
        prediction = self._wanted_prediction(mask, frame)
        brightest = max(brightest, 1 if mask.zero_one else 2 if mask.values.any() else 0)
      if prediction.shape != truth.shape:
        if not self._task.resize:
          wrong_size.append(f'{frame} {_size(prediction)} not {_size(truth)}')
          continue
        self._outcome.resized.append(frame)
        prediction = _resized(prediction, truth.shape)
      follows = before is None or self._order[frame] == self._order[before] + 1
      certainty = image.certainty() if self._rule.wants == 'labels' and hasattr(image, 'certainty') else None
      yield rules.Frame(prediction, truth, certainty, follows)
      before = frame
    self._raise_for(wrong_size, soft, brightest)

  @property
  def _rule(self) -> rules.Rule:
    return self._task.rule

  def _truth(self, frame: str) -> Any:
    source = self._clip.truth[frame]
    return load_mask_image(source) if isinstance(source, Path) else source.load()

  def _wanted_truth(self, image: Any, frame: str) -> np.ndarray:
    if self._rule.wants == 'labels':
      return image.regions() if hasattr(image, 'regions') else image.labels()
    if not image.binary:
      self._outcome.merged_truth = self._outcome.merged_truth or f'{self._clip.name}/{frame}'
    return image.truth(half=self._rule.wants == 'maps')

  def _is_soft(self, image: MaskImage) -> bool:
    return self._rule.wants == 'masks' and image.kind == 'grey' and self._task.threshold is None and not image.binary

  def _wanted_prediction(self, image: MaskImage, frame: str) -> np.ndarray:
    if self._rule.wants == 'labels':
      return image.labels() if self._task.threshold is None else image.mask(self._task.threshold).astype(np.int32)
    if image.kind == 'labels' and not image.binary:
      self._outcome.merged_mask = self._outcome.merged_mask or f'{self._clip.name}/{frame}'
    if self._rule.wants == 'masks':
      return image.mask(self._task.threshold)
    if image.zero_one and self._is_hard():
      self._outcome.zero_one = self._outcome.zero_one or f'{self._clip.name}/{frame}'
    return image.probability(hard=image.zero_one and self._is_hard())

  def _is_hard(self) -> bool:
    """Whether no map of the clip has a level above 1: then they are masks stored as 0 and 1."""
    if self._hard is None:
      paths = (self._clip.masks[frame] for frame in self._clip.frames if frame not in self._clip.missing)
      self._hard = all(image.zero_one or not image.values.any() for image in map(load_mask_image, paths))
    return self._hard

  def _raise_for(self, wrong_size: list[str], soft: list[str], brightest: int) -> None:
    name = self._clip.name
    if soft:
      where = f'{name}: {layout.name_list(soft)}'
      raise DataError('soft maps where masks are wanted', where, 'give --threshold P, or write masks of 0 and 255')
    if wrong_size:
      advice = "write masks of the annotation's size, or give --resize for nearest neighbour"
      raise DataError('masks of another size than the annotation', f'{name}: {", ".join(wrong_size)}', advice)
    if self._task.threshold is not None and brightest == 1:
      # As soft maps of 8 bits, all of these would be empty without a word.
      raise DataError('a threshold is given, but these masks hold 0 and 1', name, 'leave out --threshold')


def _task(
  name: str, metrics: Sequence[str] | None, stability: str, threshold: float | None, resize: bool
) -> ClipTask:  # fmt: skip
  if name not in rules.RULES:
    raise UsageError('unknown rule', name, f'one of {", ".join(rules.RULES)}')
  rule = rules.RULES[name]
  wanted = tuple(dict.fromkeys(rule.default if metrics is None else metrics))
  unknown = [metric for metric in wanted if metric not in rule.metrics]
  if unknown or not wanted:
    what = 'unknown metric' if unknown else 'no metric'
    raise UsageError(what, ', '.join(unknown) or None, f'rule {name} has {", ".join(rule.metrics)}')
  if stability not in rules.STABILITIES:
    raise UsageError('unknown program of T', stability, f'one of {", ".join(rules.STABILITIES)}')
  if threshold is not None and rule.wants == 'maps':
    raise UsageError('a threshold, but the rule wants soft maps', '--threshold, --rule', 'leave out one')
  return ClipTask(name, wanted, stability, threshold, resize)


def _check_options(frames: str, ends: str | None, threshold: float | None, jobs: int | None) -> None:
  if frames not in ('all', 'given'):
    raise UsageError('unknown choice of frames', frames, 'all or given')
  if ends not in (None, 'keep', 'drop'):
    raise UsageError('unknown choice of ends', ends, 'keep or drop')
  if threshold is not None and not 0 <= threshold <= 1:
    raise UsageError('threshold out of range', threshold, 'a probability from 0 to 1')
  if jobs is not None and jobs < 1:
    raise UsageError('jobs out of range', jobs, 'at least 1')


def _score_clips(
  clips: Sequence[layout.ClipPlan], task: ClipTask, jobs: int | None, progress: bool
) -> dict[str, ClipOutcome]:
  from rich.console import Console
  from rich.progress import MofNCompleteColumn, Progress

  total = sum(len(clip.frames) for clip in clips)
  workers = min(jobs or _cores(), len(clips))
  outcomes = {}
  columns = (*Progress.get_default_columns(), MofNCompleteColumn())
  console = Console(stderr=True)
  with Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
    row = bar.add_task('scoring', total=total)
    if workers == 1 or (jobs is None and total < _WORTH_A_POOL) or not _can_spawn():
      for clip in clips:
        outcomes[clip.name] = score_clip(clip, task)
        bar.advance(row, len(clip.frames))
      return outcomes
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
      # The longest first, so that no process is left alone with one at the end.
      longest_first = sorted(clips, key=lambda clip: -len(clip.frames))
      futures = {pool.submit(score_clip, clip, task): clip for clip in longest_first}
      try:
        for future in as_completed(futures):
          outcomes[futures[future].name] = future.result()
          bar.advance(row, len(futures[future].frames))
      except BrokenProcessPool as error:
        raise DeviceError('a scoring process was lost', None, 'free memory, or give --jobs 1') from error
      except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
  return outcomes


def _can_spawn() -> bool:
  # A new process runs the main script again: one without the guard of __name__ must not start processes of its own
  # from there, and one that came through a pipe is not there to be run.
  script = getattr(sys.modules['__main__'], '__file__', None)
  # By its name, as a new process does not know its parent yet while it runs that script.
  child = multiprocessing.current_process().name != 'MainProcess'
  return not child and (script is None or Path(script).exists())


def _cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _reading_warnings(outcomes: dict[str, ClipOutcome]) -> list[str]:
  warnings = []
  for what, key in (
    ('annotations with more than two values, as {}: all but 0 merged to one foreground', 'merged_truth'),
    ('masks with more than two values, as {}: all but 0 merged to one foreground', 'merged_mask'),
    ('maps of the levels 0 and 1 alone, as {}: taken as masks', 'zero_one'),
  ):
    first = [getattr(outcome, key) for outcome in outcomes.values() if getattr(outcome, key)]
    if first:
      warnings.append(what.format(min(first)))
  return warnings


def _resized(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  stored = mask.view(np.uint8) if mask.dtype == bool else mask
  return cv2.resize(stored, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(mask.dtype)


def _size(mask: np.ndarray) -> str:
  return f'{mask.shape[1]}x{mask.shape[0]}'
