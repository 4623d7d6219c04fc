"""Scores of folders of masks against annotations, and the score file; knows nothing of how the masks were made."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from adnet_jax import clips as layout
from adnet_jax.errors import DataError, DeviceError, UsageError
from adnet_jax.masks import load_mask_image, read_mask
from adnet_jax.metrics import clip_statistics, contour_accuracy, jaccard

__all__ = ['FORMAT', 'RULES', 'read_mask', 'score_masks', 'scores_table', 'write_scores']

FORMAT = 1
RULES = ('davis2016',)

# T compares consecutive masks, so it does not belong here: it gets its own step beside this loop in score_clip.
PER_FRAME: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {'J': jaccard, 'F': contour_accuracy}

_WORTH_A_POOL = 100  # frames: below, processes take longer to start than to score


def score_masks(
  masks: str | Path,
  truth: str | Path,
  *,
  rule: str = 'davis2016',
  metrics: Sequence[str] = ('J', 'F'),
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
    masks: folder with CLIP/NNNNN.png; one clip's own folder will do too.
    truth: folder with CLIP/NNNNN.png, such as DAVIS/Annotations/480p. Frames without an annotation are not scored.
    rule: how to score; one of RULES.
    metrics: 'J' and 'F'.
    frames: 'all' wants a mask for every annotated frame except a clip's first and last annotation. 'given' scores
      those of them that have a mask, as where only some frames of a clip were at hand to predict; none is missing then.
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
    applies, `subset` (true where frames of a clip are left out of the score), `missing` and `resized`
    ({clip: [frame]}) and `threshold`. Undefined values are None.

  Raises:
    UsageError: unknown rule or metric, or a value out of range.
    DataError: folders, clips, frames or masks that cannot be scored; all of them are named.
    DeviceError: a worker process died.

  Source: metrics and frames of Perazzi et al., CVPR 2016; data-set numbers are plain means over clips.
  """
  _check_options(rule, metrics, frames, threshold, jobs)
  masks, truth = Path(masks), Path(truth)
  plan = layout.plan_clips(masks, truth, frames=frames, clips=clips, allow_missing=allow_missing)
  task = ClipTask(tuple(dict.fromkeys(metrics)), threshold, resize)
  outcomes = _score_clips(plan.clips, task, jobs, progress)
  warnings = [*plan.warnings, *_merged_warnings(outcomes)]
  scored = {clip.name: _clip_entry(clip, outcomes[clip.name], task.metrics) for clip in plan.clips}
  scores = {
    'format': FORMAT,
    'rule': rule,
    'protocol': protocol,
    'version': _version(),
    'dataset': {metric: _dataset_mean([entry[metric] for entry in scored.values()]) for metric in task.metrics},
    'clips': scored,
    'warnings': warnings,
  }
  if any(clip.subset for clip in plan.clips):
    scores['subset'] = True
  extra = {
    'missing': {clip.name: list(clip.missing) for clip in plan.clips if clip.missing},
    'resized': {name: outcome.resized for name, outcome in outcomes.items() if outcome.resized},
    'threshold': threshold,
  }
  return scores | {key: value for key, value in extra.items() if value not in (None, {})}


@dataclass(frozen=True)
class ClipTask:
  """What to do with each clip, the same for all."""

  metrics: tuple[str, ...]
  threshold: float | None
  resize: bool


@dataclass
class ClipOutcome:
  """Scores of one clip's counted frames, by metric, and what had to be done to its files."""

  values: dict[str, list[float]]
  resized: list[str]
  merged_truth: str | None = None
  merged_mask: str | None = None


def score_clip(clip: layout.ClipPlan, task: ClipTask) -> ClipOutcome:
  """Reads and scores one clip, frame by frame, in bounded memory; also what a worker process runs.

  Raises:
    DataError: every mask of another size, and every soft map, of this clip is named.
  """
  outcome = ClipOutcome({metric: [] for metric in task.metrics}, [])
  wrong_size, soft, brightest = [], [], 0
  for frame in clip.frames:
    truth_image = load_mask_image(clip.truth[frame])
    truth = truth_image.truth()
    if not truth_image.binary:
      outcome.merged_truth = outcome.merged_truth or f'{clip.name}/{frame}'
    if frame in clip.missing:
      prediction = np.zeros_like(truth)
    else:
      image = load_mask_image(clip.masks[frame])
      if image.kind == 'grey' and task.threshold is None and not image.binary:
        soft.append(frame)
        continue
      prediction = image.mask(task.threshold)
      brightest = max(brightest, 1 if image.zero_one else 2 if image.values.any() else 0)
      if image.kind == 'labels' and not image.binary:
        outcome.merged_mask = outcome.merged_mask or f'{clip.name}/{frame}'
    if prediction.shape != truth.shape:
      if not task.resize:
        wrong_size.append(f'{frame} {_size(prediction)} not {_size(truth)}')
        continue
      outcome.resized.append(frame)
      prediction = _resized(prediction, truth.shape)
    for metric in task.metrics:
      outcome.values[metric].append(PER_FRAME[metric](prediction, truth))
  if soft:
    where = f'{clip.name}: {layout.name_list(soft)}'
    raise DataError('soft maps where masks are wanted', where, 'give --threshold P, or write masks of 0 and 255')
  if wrong_size:
    advice = "write masks of the annotation's size, or give --resize for nearest neighbour"
    raise DataError('masks of another size than the annotation', f'{clip.name}: {", ".join(wrong_size)}', advice)
  if task.threshold is not None and brightest == 1:
    # As soft maps of 8 bits, all of these would be empty without a word.
    raise DataError('a threshold is given, but these masks hold 0 and 1', clip.name, 'leave out --threshold')
  return outcome


def write_scores(scores: dict, path: str | Path) -> None:
  """Writes a score file whole or not at all; what is not finite becomes null.

  Raises:
    DataError: the place cannot be written.
  """
  path = Path(path)
  text = json.dumps(_finite(scores), indent=1, allow_nan=False, ensure_ascii=False) + '\n'
  temporary = path.with_name(f'.scores.{os.getpid()}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise DataError('scores cannot be written', path, f'{error.strerror}; give another place') from error


def scores_table(scores: dict) -> str:
  """The score file as a table for the terminal: a row a clip, the data set's last, under the name of the rule."""
  metrics = list(scores['dataset'])
  columns = [(metric, statistic) for metric in metrics for statistic in scores['dataset'][metric]]
  rows = [['clip', 'frames', *(f'{metric} {statistic}' for metric, statistic in columns)]]
  total = sum(len(entry['frames']) for entry in scores['clips'].values())
  counts = {name: len(entry['frames']) for name, entry in scores['clips'].items()} | {'mean over clips': total}
  for (name, count), entry in zip(counts.items(), [*scores['clips'].values(), scores['dataset']], strict=True):
    rows.append([name, str(count), *(_three(entry[metric][statistic]) for metric, statistic in columns)])
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for name, *cells in rows:
    numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
    lines.append('  '.join([name.ljust(widths[0]), *numbers]))
  ruler = '-' * max(map(len, lines))
  title = f'rule {scores["rule"]}, protocol {scores["protocol"] or "unknown"}'
  if scores.get('threshold') is not None:
    title += f', threshold {scores["threshold"]:g}'
  if scores.get('subset'):
    title += ', a subset of the frames'
  return '\n'.join([title, lines[0], ruler, *lines[1:-1], ruler, lines[-1]])


def _check_options(rule: str, metrics: Sequence[str], frames: str, threshold: float | None, jobs: int | None) -> None:
  if rule not in RULES:
    raise UsageError('unknown rule', rule, f'one of {", ".join(RULES)}')
  unknown = [metric for metric in metrics if metric not in PER_FRAME]
  if unknown or not metrics:
    raise UsageError(
      'unknown metric' if unknown else 'no metric',
      ', '.join(unknown) or None,
      f'rule {rule} has {", ".join(PER_FRAME)}',
    )
  if frames not in ('all', 'given'):
    raise UsageError('unknown choice of frames', frames, 'all or given')
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
  with Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress) as bar:
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


def _clip_entry(clip: layout.ClipPlan, outcome: ClipOutcome, metrics: Sequence[str]) -> dict:
  entry: dict = {'frames': list(clip.frames)}
  for metric in metrics:
    entry[metric] = {**clip_statistics(outcome.values[metric]), 'per_frame': outcome.values[metric]}
  return entry


def _dataset_mean(entries: Sequence[dict]) -> dict[str, float | None]:
  result = {}
  for statistic in ('mean', 'recall', 'decay'):
    values = [entry[statistic] for entry in entries if entry[statistic] is not None]
    result[statistic] = float(np.mean(values)) if values else None
  return result


def _merged_warnings(outcomes: dict[str, ClipOutcome]) -> list[str]:
  warnings = []
  for what, key in (('annotations', 'merged_truth'), ('masks', 'merged_mask')):
    first = [getattr(outcome, key) for outcome in outcomes.values() if getattr(outcome, key)]
    if first:
      warnings.append(f'{what} with more than two values, as {min(first)}: all but 0 merged to one foreground')
  return warnings


def _resized(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  return cv2.resize(mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)


def _size(mask: np.ndarray) -> str:
  return f'{mask.shape[1]}x{mask.shape[0]}'


def _three(value: float | None) -> str:
  return '-' if value is None else f'{value:.3f}'


def _version() -> str:
  try:
    return importlib.metadata.version('adnet-jax')
  except importlib.metadata.PackageNotFoundError:
    return 'not installed'


def _finite(value: object) -> object:
  if isinstance(value, dict):
    return {key: _finite(one) for key, one in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(one) for one in value]
  if isinstance(value, np.generic):
    value = value.item()
  return None if isinstance(value, float) and not math.isfinite(value) else value
