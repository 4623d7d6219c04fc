"""Which frames of which clips are scored: matches masks with annotations; reads names only, never pixels."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adnet_jax.data import datasets
from adnet_jax.errors import DataError
from adnet_jax.masks import list_masks, natural_key

# An annotation: a file, or an object whose `load()` gives what `masks.MaskImage` has.
Source = Any

_DEEPEST = 4
_ENDS = {
  (True, True): 'with both',
  (True, False): 'without the last',
  (False, True): 'without the first',
  (False, False): 'without both',
}


@dataclass(frozen=True)
class ClipPlan:
  """One clip's counted frames.

  Attributes:
    name: of the clip.
    frames: stems of the counted frames, in order.
    truth: annotation of each annotated frame, by stem, in order: a file, or what a data set has in its place.
    masks: mask of each frame that has one, by stem.
    missing: counted frames without a mask.
    subset: whether frames of the clip are left out that the rule would count.
  """

  name: str
  frames: tuple[str, ...]
  truth: Mapping[str, Source]
  masks: Mapping[str, Path]
  missing: tuple[str, ...] = ()
  subset: bool = False


@dataclass(frozen=True)
class Plan:
  """The clips to score, in natural order, and what the user should hear of the rest."""

  clips: tuple[ClipPlan, ...]
  warnings: tuple[str, ...]


def plan_clips(
  masks: Path, truth: Path, *, ends: bool, frames: str, clips: Sequence[str] | None, allow_missing: bool
) -> Plan:
  """Matches masks with annotations; arguments as those of `score_masks`, but `ends` is whether both ends count.

  Raises:
    DataError: layout, clips or frames that do not fit; every one of a kind is named.
  """
  given, wanted = find_clips(masks, 'masks'), find_truth(truth)
  if set(given) == {masks.name} and set(wanted) == {truth.name} and clips is None:
    given = {truth.name: given[masks.name]}
  warnings = []
  if clips is None:
    names = sorted(given, key=natural_key)
    unknown = [name for name in names if name not in wanted]
    if unknown:
      raise DataError(
        'clips without annotations', name_list(unknown), f'not in {truth}; remove them or give their annotations'
      )
    left_out = sorted(_expected_clips(truth, names, wanted) - set(names), key=natural_key)
    if left_out:
      warnings.append(f'clips without masks, not scored: {name_list(left_out)}')
  else:
    names = sorted(set(clips), key=natural_key)
    absent = [
      f'{name} ({side})'
      for name in names
      for side, found in (('masks', given), ('annotations', wanted))
      if name not in found
    ]
    if absent:
      raise DataError(
        'clips that are listed but not on disk', name_list(absent), 'add them, or list only clips that are there'
      )
    unlisted = sorted(set(given) - set(names), key=natural_key)
    if unlisted:
      warnings.append(f'clips on disk that are not in the list, not scored: {name_list(unlisted)}')
  plans = tuple(_plan_clip(name, wanted[name], given[name], ends, frames) for name in names)
  if frames == 'all':
    warnings += _check_frames(plans, allow_missing)
  warnings += [f'{plan.name}: no counted frame, left out of means' for plan in plans if not plan.frames]
  return Plan(plans, tuple(warnings))


def find_truth(root: Path) -> dict[str, dict[str, Source]]:
  """Annotations by clip and frame, in order: a folder CLIP/NNNNN.png, or a data set with its frames or prepared.

  Raises:
    DataError: the folder is missing or laid out otherwise. So is DAVIS' own: there may be annotations of several
      years and sizes in it.
  """
  if datasets.kind_of(root) in (None, 'davis2016'):
    return dict(find_clips(root, 'annotations'))
  return datasets.truth_of(root)


def find_clips(root: Path, what: str) -> dict[str, dict[str, Path]]:
  """Clips of a folder CLIP/NNNNN.png: {clip: {stem: file}}; CLIP/masks/NNNNN.png is read too.

  A folder of images alone is one clip, named as the folder.

  Raises:
    DataError: the folder is missing or laid out otherwise.
  """
  if not root.is_dir():
    problem = f'{what} must be a folder' if root.exists() else f'folder of {what} not found'
    raise DataError(problem, root, 'give a folder with CLIP/NNNNN.png')
  folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith('.')]
  folders.sort(key=lambda path: natural_key(path.name))
  found = {}
  for folder in folders:
    inner = folder / 'masks'
    files = list_masks(folder) or (list_masks(inner) if inner.is_dir() else {})
    # An empty folder is a clip whose masks are all missing, one of folders is something else.
    if files or not any(path.is_dir() for path in folder.iterdir()):
      found[folder.name] = files
  if any(found.values()):
    return found
  files = list_masks(root)
  if files:
    return {root.resolve().name: files}
  nearer = _deeper_layout(root, _DEEPEST)
  advice = 'give a folder with CLIP/NNNNN.png' + (f', here {nearer}' if nearer else '')
  inside = f'; found {name_list(path.name for path in folders)}' if folders else '; it is empty'
  raise DataError(f'no {what} laid out as CLIP/NNNNN.png', f'{root}{inside}', advice)


def name_list(names: Iterable[str]) -> str:
  """All names on one line, runs of four and more consecutive numbers shortened to 'first..last'."""
  runs: list[list[str]] = []
  for name in names:
    if runs and _follows(runs[-1][-1], name):
      runs[-1].append(name)
    else:
      runs.append([name])
  return ', '.join(f'{run[0]}..{run[-1]}' if len(run) > 3 else ', '.join(run) for run in runs)


def _plan_clip(name: str, truth: Mapping[str, Source], masks: dict[str, Path], ends: bool, frames: str) -> ClipPlan:
  # Without its ends nothing is left of one annotation or two.
  counted = tuple(truth) if ends else tuple(truth)[1:-1]
  absent = tuple(frame for frame in counted if frame not in masks)
  # Some data sets annotate few frames, and a rule that counts every annotation was made for them.
  subset = not ends and not _dense(truth) and not any(map(datasets.annotates_some, truth.values()))
  if frames == 'given':
    return ClipPlan(name, tuple(frame for frame in counted if frame in masks), truth, masks, (), subset or bool(absent))
  return ClipPlan(name, counted, truth, masks, absent, subset)


def _check_frames(plans: Sequence[ClipPlan], allow_missing: bool) -> list[str]:
  """Warnings of masks missing, too many or of unlike clips; without `allow_missing` the first kind is an error."""
  missing = _by_clip({plan.name: plan.missing for plan in plans})
  # Between the frames of a sparse annotation, masks without one are as they should be.
  dense = [plan for plan in plans if _dense(plan.truth)]
  surplus = _by_clip({plan.name: [frame for frame in plan.masks if frame not in plan.truth] for plan in dense})
  findings = [
    ('masks missing', missing, 'add them, or give --allow-missing to count them as empty'),
    (
      'masks of frames that have no annotation, as where results of two methods are mixed',
      surplus,
      'remove them, or give --allow-missing',
    ),
    (
      'results of two methods mixed: clips differ in whether the first and the last frame have masks',
      _unlike_ends(dense),
      'score each method by itself, or give --allow-missing',
    ),
  ]
  seen = [finding for finding in findings if finding[1]]
  if seen and not allow_missing:
    raise DataError(*seen[0])
  consequence = {'masks missing': 'masks missing, counted as empty'}
  return [f'{consequence.get(what, what)}: {where}' for what, where, _ in seen]


def _unlike_ends(plans: Sequence[ClipPlan]) -> str:
  # Some methods leave out a clip's last frame and some its first, but one method does the same everywhere.
  groups: dict[str, list[str]] = {}
  for plan in plans:
    if plan.frames and not plan.missing:
      annotated = list(plan.truth)
      first, last = annotated[0] in plan.masks, annotated[-1] in plan.masks
      groups.setdefault(_ENDS[first, last], []).append(plan.name)
  return '; '.join(f'{kind}: {name_list(names)}' for kind, names in groups.items()) if len(groups) > 1 else ''


def _expected_clips(truth: Path, names: Sequence[str], wanted: Mapping[str, object]) -> set[str]:
  """The data set's shortest own list that holds these clips; all annotated clips where there is none."""
  lists = []
  for path in (truth.resolve().parent.parent / 'ImageSets').rglob('*.txt'):
    # A line is a clip's name, or the paths of a frame and its mask.
    lines = path.read_text(encoding='utf-8', errors='replace').split('\n')
    listed = {Path(line.split()[0]).parent.name or line.split()[0] for line in lines if line.strip()}
    if listed >= set(names):
      lists.append(listed)
  return min(lists, key=len) if lists else set(wanted)


def _deeper_layout(root: Path, levels: int) -> Path | None:
  for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    if any(path.is_dir() and list_masks(path) for path in folder.iterdir()):
      return folder
    nearer = _deeper_layout(folder, levels - 1) if levels else None
    if nearer:
      return nearer
  return None


def _by_clip(frames: Mapping[str, Sequence[str]]) -> str:
  return '; '.join(f'{name}: {name_list(stems)}' for name, stems in frames.items() if stems)


def _dense(stems: Iterable[str]) -> bool:
  ordered = list(stems)
  return all(_follows(one, other) for one, other in itertools.pairwise(ordered))


def _follows(one: str, other: str) -> bool:
  before, after = (re.fullmatch(r'(.*?)(\d+)', name) for name in (one, other))
  return before is not None and after is not None and before[1] == after[1] and int(before[2]) + 1 == int(after[2])
