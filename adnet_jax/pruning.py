"""Folders of masks through instance pruning, in both protocols' order of operations; the rules are in other modules."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adnet_jax import detections as detection_files
from adnet_jax import instances as algorithm
from adnet_jax import postprocess, predictions, released_filter, tracks
from adnet_jax.clips import name_list
from adnet_jax.errors import DataError, UsageError
from adnet_jax.predictions import SUMMARY, Clip, Survey
from adnet_jax.writers import write_mask

# Of a probability; the released program's own one is of a logit.
THRESHOLDS = {
  'paper': postprocess.PAPER_THRESHOLD,
  'released': 1 / (1 + math.exp(-postprocess.RELEASED_THRESHOLD)),
}
PARAMETERS: dict[str, dict[str, Any]] = {
  'paper': {
    'threshold': THRESHOLDS['paper'],
    'link_iou': tracks.LINK_IOU,
    'longest_gap': tracks.LONGEST_GAP,
    'static_iou': algorithm.STATIC_IOU,
    'support': algorithm.SUPPORT,
    'dominance': algorithm.DOMINANCE,
    'much_smaller': algorithm.MUCH_SMALLER,
  },
  'released': {
    'threshold': THRESHOLDS['released'],
    'boxes_a_frame': released_filter.BOXES_A_FRAME,
    'static_area': released_filter.STATIC_AREA,
    'static_iou': released_filter.STATIC_IOU,
    'static_count': released_filter.STATIC_SHARE * released_filter.TRAINING_FRAMES,
    'target_area': released_filter.TARGET_AREA,
    'last_start': released_filter.LAST_START,
    'box_counts': list(released_filter.BOX_COUNTS),
    'box_area': released_filter.BOX_AREA,
    'gate_counts': list(postprocess.GATE_COUNTS),
  },
}


def prune_folder(
  masks: Path,
  output: Path,
  *,
  detections: Path | None = None,
  components: bool = False,
  protocol: str = 'paper',
  overwrite: bool = False,
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
  """Prunes background instances from predictions; writes masks, OUTPUT/CLIP/NAME.png, then OUTPUT/summary.json.

  Args:
    masks: CLIP/NNNNN.png, one clip's own folder, or what `adnet segment` wrote: masks, or soft maps, which are
      thresholded as the protocol does it. 'released' wants predictions without the gate, as heat maps are; these are
      taken where `adnet segment` left both.
    output: a folder apart from `masks`.
    detections: COCO JSON with the instances (see `detections.read`).
    components: take the predictions' own connected components for instances.
    protocol: 'paper': section 3 and Algorithm 1 (`instances.prune`). 'released': as the authors' program, frame by
      frame: its detection filter, its box filter, the gate of the frame before.
    overwrite: replace the results of an earlier run.
    progress: called with the number of steps done and of all, two a frame.

  Returns:
    The summary's content. Without detections and components there are no instances: 'paper' changes nothing then.

  Raises:
    UsageError: options that exclude each other; an output that holds results or lies in the input; pycocotools is not
      installed.
    DataError: masks or detections that cannot be used, all of them named, and nothing is written; an output that
      cannot be written.
  """
  masks, output = Path(masks), Path(output)
  if protocol not in postprocess.PROTOCOLS:
    raise UsageError(f'unknown protocol {protocol!r}', 'protocol', f'one of {", ".join(postprocess.PROTOCOLS)}')
  if detections is not None and components:
    raise UsageError('two sources of instances', '--detections, --components', 'give one')
  clips, bare = predictions.find(masks, ('heatmaps', 'masks') if protocol == 'released' else ('masks',))
  predictions.check_output(masks, output, clips, overwrite=overwrite)
  steps = _Steps(progress, 2 * sum(len(clip.files) for clip in clips))
  surveys = predictions.survey(clips, steps.advance)
  found = None
  if detections is not None:
    found = detection_files.read(detections, {name: one.sizes for name, one in surveys.items()}, any_clip=bare)
  warnings = _warnings(clips, surveys, protocol, found, components)
  if overwrite:
    predictions.remove_results(output, clips)
  entries = {}
  for clip in clips:
    frames = _Frames(clip, surveys[clip.name].soft, protocol, found, components)
    entries[clip.name] = _paper(frames, output, steps) if protocol == 'paper' else _released(frames, output, steps)
  summary: dict[str, Any] = {
    'protocol': protocol,
    'source': 'detections' if found is not None else 'components' if components else None,
    'detections': None if detections is None else str(detections),
    'parameters': PARAMETERS[protocol],
    'frames': sum(len(clip.files) for clip in clips),
    'clips': entries,
    'warnings': warnings,
  }
  if found is not None and protocol == 'released':
    summary['target_categories'] = sorted(found.target_categories)
  _write_summary(output / SUMMARY, summary)
  return summary


@dataclass
class _Steps:
  """Counts what is done, and tells it."""

  progress: Callable[[int, int], None] | None
  total: int
  done: int = 0

  def advance(self) -> None:
    self.done += 1
    if self.progress is not None:
      self.progress(self.done, self.total)


@dataclass(frozen=True)
class _Frames:
  """A clip's frames with their instances, wherever these come from; reads a frame at a time."""

  clip: Clip
  soft: bool
  protocol: str
  detections: detection_files.Detections | None
  components: bool

  def foreground(self, stem: str) -> np.ndarray:
    return predictions.foreground(self.clip.files[stem], self.soft, THRESHOLDS[self.protocol])

  def detected(self, stem: str) -> Sequence[detection_files.Instance]:
    return () if self.detections is None else self.detections.clips[self.clip.name][stem]

  def instances(self) -> algorithm.Instances:
    """All of the clip's."""
    if self.components:
      parts = [algorithm.components(self.foreground(stem))[1:] for stem in self.clip.files]
      return algorithm.Instances.gather([boxes for boxes, _ in parts], [areas for _, areas in parts])
    per_frame = [self.detected(stem) for stem in self.clip.files]
    return algorithm.Instances.gather(
      [np.array([one.box for one in found]).reshape(-1, 4) for found in per_frame],
      [np.array([one.segmentation.area for one in found]) for found in per_frame],
      [np.array([one.category for one in found], np.int64) for found in per_frame],
    )

  def prune(
    self, stem: str, foreground: np.ndarray, removed: Sequence[int], target: int | None = None
  ) -> tuple[np.ndarray, list[int]]:
    """Foreground without the frame's instances of these numbers, and how many pixels of it each of them covers."""
    if not removed:
      return foreground, []
    labels = algorithm.components(foreground)[0] if self.components else None

    def mask(number: int) -> np.ndarray:
      return self.detected(stem)[number].segmentation.mask() if labels is None else labels == number + 1

    masks = [mask(number) for number in removed]
    keep = algorithm.pruning_mask(foreground.shape, masks, None if target is None else mask(target))
    return foreground & keep, [int(np.count_nonzero(foreground & ~keep & one)) for one in masks]

  def annotation(self, stem: str, number: int) -> dict[str, int]:
    """What the summary says of an instance that has a number in a file."""
    return {} if self.components else {'annotation': self.detected(stem)[number].id}


def _paper(frames: _Frames, output: Path, steps: _Steps) -> dict[str, Any]:
  """Masks, times the pruning mask."""
  found = frames.instances()
  pruned = algorithm.prune(found)
  removed: dict[int, dict[str, Any]] = {}
  for number, (stem, rows) in enumerate(zip(frames.clip.files, found.by_frame(), strict=True)):
    gone = np.flatnonzero(pruned.removed[rows]).tolist()
    target = int(pruned.target[number]) - rows.start
    mask, pixels = frames.prune(stem, frames.foreground(stem), gone, target)
    for row, count in zip(gone, pixels, strict=True):
      track = int(pruned.track[rows.start + row])
      entry = removed.setdefault(track, {'track': track, 'reason': pruned.reasons[track], 'frames': {}})
      entry['frames'][stem] = {'pixels': count, **frames.annotation(stem, row)}
    write_mask(output / frames.clip.name / f'{stem}.png', mask)
    steps.advance()
  return {
    'frames': len(frames.clip.files),
    'instances': len(found.frame),
    'tracks': len(np.unique(pruned.track)),
    'size_low': pruned.size_low,
    'removed': list(removed.values()),
  }


def _released(frames: _Frames, output: Path, steps: _Steps) -> dict[str, Any]:
  """Predictions, times the pruning mask, box filter, kept as the next reference, gate: the program's own order."""
  found = frames.instances()
  targets = frozenset() if frames.detections is None else frames.detections.target_categories
  reasons, unmasked = released_filter.filter_instances(found, targets)
  removed: list[dict[str, Any]] = []
  boxed, gated = [], []
  reference = None
  for stem, rows in zip(frames.clip.files, found.by_frame(), strict=True):
    gone = [row for row, reason in enumerate(reasons[rows]) if reason is not None]
    pruned, pixels = frames.prune(stem, frames.foreground(stem), gone)
    for row, count in zip(gone, pixels, strict=True):
      entry = {'reason': reasons[rows.start + row], 'box': found.boxes[rows.start + row].tolist()}
      removed.append({**entry, 'frames': {stem: {'pixels': count, **frames.annotation(stem, row)}}})
    mask, reference = released_filter.step(pruned, reference)
    boxed += [stem] if (pruned & ~reference).any() else []
    gated += [stem] if (reference & ~mask).any() else []
    write_mask(output / frames.clip.name / f'{stem}.png', mask)
    steps.advance()
  stems = list(frames.clip.files)
  return {
    'frames': len(stems),
    'instances': len(found.frame),
    'no_pruning_mask_from': None if unmasked is None else stems[unmasked],
    'removed': removed,
    'box_filter': boxed,
    'gate': gated,
  }


def _warnings(
  clips: Sequence[Clip],
  surveys: Mapping[str, Survey],
  protocol: str,
  found: detection_files.Detections | None,
  components: bool,
) -> list[str]:
  """What the user should hear though nothing is wrong."""
  warnings = []
  soft = [clip.name for clip in clips if surveys[clip.name].soft]
  if soft:
    warnings.append(f'soft maps, foreground above {THRESHOLDS[protocol]:.3f}: {name_list(soft)}')
  if protocol == 'released' and len(soft) < len(clips):
    warnings.append('binary masks are taken for predictions without the gate: with it, give heat maps instead')
  if found is None and not components:
    warnings.append('neither detections nor components: there are no instances to prune')
  for clip, stems in ({} if found is None else found.unlisted).items():
    warnings.append(f'frames that the detections do not list, taken to have none: {clip}: {name_list(stems)}')
  return warnings


def _write_summary(path: Path, summary: dict[str, Any]) -> None:
  temporary = path.with_name(f'.adnet-{os.getpid()}-summary.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + '\n', encoding='utf-8')
    os.replace(temporary, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise DataError(f'cannot be written: {error.strerror}', path, 'free space or choose another folder') from error
