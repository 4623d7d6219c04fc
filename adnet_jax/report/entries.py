"""Score files as a report sees them: under a name, on a data set, with what must be said of them; scores nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adnet_jax.clips import name_list
from adnet_jax.errors import DataError
from adnet_jax.rules import STABLE_CLIPS
from adnet_jax.scores import numbers, read_scores

DAVIS, FBMS, VISAL = 'DAVIS-2016', 'FBMS', 'ViSal'
DAVIS_VALIDATION = frozenset(STABLE_CLIPS) | {
  'bmx-trees', 'breakdance', 'dance-twirl', 'dog', 'drift-chicane', 'goat', 'horsejump-high', 'libby',
  'motocross-jump', 'parkour',
}  # fmt: skip
# What tells the data set of a score file, in its `dataset_name` or at the end of its file's name.
_DATASETS = (
  (re.compile(r'davis([-_ ]?2016)?', re.IGNORECASE), DAVIS),
  (re.compile(r'fbms([-_ ]?59)?', re.IGNORECASE), FBMS),
  (re.compile(r'visal', re.IGNORECASE), VISAL),
)
COUNTS = ('objects', 'visible')  # numbers under these names are counted, not measured
_RULES = 'adnet-saliency|saliency|davsod|pysod|fbms-pooled|fbms-mean-pr|fbms-jaccard|fbms-official'
_ENDING = re.compile(rf'(.+)[-_. ]({_RULES}|davis(?:[-_ ]?2016)?|fbms(?:[-_ ]?59)?|visal)', re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Entry:
  """One score file.

  Attributes:
    name: of what was scored.
    path: of the file.
    dataset: 'DAVIS-2016', 'FBMS', 'ViSal', another name that the file gives, or None where nothing tells.
    scores: content of the file.
  """

  name: str
  path: Path
  dataset: str | None
  scores: Mapping[str, Any]

  @property
  def rule(self) -> str:
    """Name of the rule that made the numbers."""
    return self.scores['rule']

  @property
  def clips(self) -> Mapping[str, Any]:
    """The clips' entries by name."""
    return self.scores['clips']

  def number(self, key: str, clip: str | None = None) -> float | None:
    """A number of the data set, or of one clip, under its name in `scores.numbers`; None where there is none."""
    return dict(numbers(self.scores['dataset'] if clip is None else self.clips.get(clip, {}))).get(key)

  def per_frame(self, metric: str, clip: str) -> list[float | None] | None:
    """Values of a clip's counted frames; None where the file has none."""
    value = self.clips.get(clip, {}).get(metric)
    return value.get('per_frame') if isinstance(value, Mapping) else None


def read_entries(paths: Sequence[str | Path]) -> tuple[Entry, ...]:
  """Reads score files in the order given.

  The name is the file's key `name`, else the file's stem without what tells data set or rule (`ours-fbms.json` is
  `ours` on FBMS). A file `scores.json` goes by its folder, and `evaluation/scores.json` by the folder above.

  Raises:
    DataError: not a score file, or two of one name, rule and data set.
  """
  entries: dict[tuple, Entry] = {}
  for path in map(Path, paths):
    entry = _read_entry(path)
    key = (entry.name, entry.rule, entry.dataset)
    if key in entries:
      where = f'{entry.name}: {entries[key].path}, {path}'
      raise DataError('two score files of one name and rule', where, 'rename one, or give it a key "name"')
    entries[key] = entry
  return tuple(entries.values())


def group(entries: Sequence[Entry]) -> dict[tuple[str, str | None], tuple[Entry, ...]]:
  """Entries that may be compared: of one rule and data set; in order of first appearance."""
  groups: dict[tuple[str, str | None], tuple[Entry, ...]] = {}
  for entry in entries:
    key = (entry.rule, entry.dataset)
    groups[key] = (*groups.get(key, ()), entry)
  return groups


def keys(entries: Sequence[Entry]) -> list[str]:
  """Names of all numbers that the data set of one of these entries has, in order of first appearance."""
  return list(dict.fromkeys(key for entry in entries for key, _ in numbers(entry.scores['dataset'])))


def lower_is_better(key: str) -> bool:
  """Whether a smaller number under this name is the better one."""
  return key.endswith(' decay') or key.split()[0] in ('T', 'MAE')


def is_partial(entry: Entry) -> bool:
  """Whether the numbers are over other clips or frames than the data set's own, or over masks that were not there."""
  other_clips = entry.dataset == DAVIS and set(entry.clips) != DAVIS_VALIDATION
  return other_clips or any(entry.scores.get(key) for key in ('subset', 'missing', 'ends'))


def remarks(entry: Entry) -> list[str]:
  """What a reader must know before he compares the numbers with others', a sentence each; without `warnings`."""
  scores, found = entry.scores, []
  if entry.dataset == DAVIS and set(entry.clips) != DAVIS_VALIDATION:
    listed = len(set(entry.clips) & DAVIS_VALIDATION)
    found.append(f'{listed} of the {len(DAVIS_VALIDATION)} validation clips')
    if len(entry.clips) > listed:
      found[-1] += f' and {len(entry.clips) - listed} others'
  if scores.get('subset'):
    found.append('a subset of the frames that the rule counts')
  if scores.get('ends'):
    found.append(
      f'first and last frame of each clip {"counted" if scores["ends"] == "keep" else "left out"}, unlike the rule'
    )
  for key, what in (
    ('missing', 'masks missing, counted as empty'),
    ('resized', 'masks brought to the size of the truth'),
  ):
    by_clip = scores.get(key)
    if isinstance(by_clip, Mapping) and by_clip:
      found.append(f'{what}: ' + '; '.join(f'{clip}: {name_list(map(str, stems))}' for clip, stems in by_clip.items()))
  if scores.get('threshold') is not None:
    found.append(f'soft maps, foreground above {scores["threshold"]}')
  return found


def _read_entry(path: Path) -> Entry:
  scores = read_scores(path)
  given = scores.get('name')
  if given is not None and not (isinstance(given, str) and given.strip()):
    raise DataError('not a score file: its name is no text', path, 'correct or remove the key "name"')
  stem = _stem(path)
  shortened, told = _split(stem)
  return Entry(given or shortened, path, _dataset(scores, told), scores)


def _stem(path: Path) -> str:
  folder = path.resolve().parent
  if path.stem != 'scores':
    return path.stem
  return (folder.parent if folder.name == 'evaluation' else folder).name or path.stem


def _split(stem: str) -> tuple[str, str | None]:
  """A file's stem without the endings that tell data set or rule, and the data set that they tell."""
  dataset = _known_dataset(stem)
  while match := _ENDING.fullmatch(stem):
    stem, ending = match.groups()
    dataset = dataset or _known_dataset(ending)
  return stem, dataset


def _dataset(scores: Mapping[str, Any], told: str | None) -> str | None:
  name = scores.get('dataset_name')
  if isinstance(name, str) and name.strip():
    return _known_dataset(name) or name
  if told:
    return told
  if scores['rule'].startswith('fbms-'):
    return FBMS
  return DAVIS if scores['clips'] and set(scores['clips']) <= DAVIS_VALIDATION else None


def _known_dataset(name: str) -> str | None:
  return next((dataset for pattern, dataset in _DATASETS if pattern.fullmatch(name)), None)
