"""What tools/reproduce_paper.py measures: models applied to data sets, their masks and score files; draws nothing."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adnet_jax import scores
from adnet_jax.data import datasets, fbms, visal
from adnet_jax.errors import UsageError
from adnet_jax.report import entries as entry_lib
from adnet_jax.report import tables
from tools.similarity import write_whole

MULTI_SCALE = (0.75, 1.0, 1.5)
# {short name: (name in tables, rules of masks, rule of heat maps)}
SETS = {
  'davis': (entry_lib.DAVIS, ('davis2016',), 'adnet-saliency'),
  'fbms': (entry_lib.FBMS, ('fbms-pooled', 'fbms-mean-pr'), 'adnet-saliency'),
  'visal': (entry_lib.VISAL, (), 'adnet-saliency'),
}
TEST_CLIPS = {'fbms': fbms.TEST, 'visal': visal.CLIPS}
# Names in the tables, which know their rows by them.
MULTI_SCALE_NAME, PRUNED_NAME, COMPONENTS_NAME = 'AD-Net multiscale', 'AD-Net pruned', 'AD-Net, components pruned'


@dataclasses.dataclass(frozen=True)
class Run:
  """One model applied in one way.

  Attributes:
    key: name of its folders and files.
    name: in tables.
    model: file.
    scales, mirror: as of `Segmenter`.
    whole: whether everything is measured of it, heat maps, T and the other data sets too; else J and F of DAVIS.
  """

  key: str
  name: str
  model: Path
  scales: tuple[float, ...] = (1.0,)
  mirror: bool = False
  whole: bool = True


# ------------------------------------------------------------------------------------------------------------- plan


def released_runs(folder: Path, out: Path, multi_scale: bool) -> list[Run]:
  """Converts the authors' files that are there into OUT/models, and says what is to be run of them."""
  from adnet_jax import convert

  if not folder.is_dir():
    raise UsageError('folder of released files not found', folder, 'give the folder with ad.pth')
  found = {name: path for name in convert.RELEASED for path in _released_file(folder, name)}
  absent = [name for name in convert.RELEASED if name not in found]
  if not found:
    raise UsageError('none of the released files is there', folder, f'expected {", ".join(absent)} (.pth)')
  if absent:
    print(f'warning: not in {folder}, so not measured: {", ".join(absent)}', file=sys.stderr)
  runs = []
  for name, path in found.items():
    model = out / 'models' / f'{name}.safetensors'
    if not model.exists() or model.stat().st_mtime_ns < path.stat().st_mtime_ns:
      convert.convert(path, model, variant=convert.RELEASED[name], overwrite=True)
    runs.append(Run(name, row_of(convert.RELEASED[name]), model, whole=name == 'ad'))
  return _with_multi_scale(runs) if multi_scale else runs


def _released_file(folder: Path, name: str) -> Iterator[Path]:
  paths = [path for ending in ('.pth', '.safetensors') if (path := folder / f'{name}{ending}').is_file()]
  if len(paths) > 1:
    raise UsageError('two files of one network', ', '.join(map(str, paths)), 'keep one')
  yield from paths


def own_runs(model: str, baseline: str | None, multi_scale: bool) -> list[Run]:
  """What is to be run of a model of one's own."""
  from tools.ablation import variants_of

  ((variant, path),) = variants_of([model]).items()
  runs = [Run(variant, row_of(variant), path)]
  if baseline:
    found = variants_of([baseline])
    if 'baseline' not in found or variant == 'baseline':
      raise UsageError('not a baseline beside another variant', baseline, 'give a model file of the variant baseline')
    runs.insert(0, Run('baseline', row_of('baseline'), found['baseline'], whole=False))
  return _with_multi_scale(runs) if multi_scale else runs


def _with_multi_scale(runs: list[Run]) -> list[Run]:
  run = whole(runs)
  return [*runs, Run(f'{run.key}-multiscale', MULTI_SCALE_NAME, run.model, MULTI_SCALE, mirror=True)]


def whole(runs: Sequence[Run]) -> Run:
  """The run with everything measured: the last one, which is multi-scale where there is such a run.

  Raises:
    UsageError: there is none, as among the authors' files without `ad`.
  """
  found = [run for run in runs if run.whole]
  if not found:
    raise UsageError('nothing that everything could be measured of', ', '.join(run.key for run in runs), 'add ad.pth')
  return found[-1]


def row_of(variant: str) -> str:
  """What Table 1 calls a variant."""
  return next(row['label'] for row in tables.printed()['table1_davis_ablation'] if row['variant'] == variant)


def check_free(out: Path, *, resume: bool, overwrite: bool) -> None:
  """Refuses a folder with results in it unless told what to do with them (fault 7)."""
  if (out / 'settings.json').exists() and not (resume or overwrite):
    raise UsageError('output folder already holds results', out, 'add --overwrite or --resume, or choose another')


def settle(out: Path, runs: Sequence[Run], options: argparse.Namespace) -> None:
  """Writes OUT/settings.json; refuses to go on with other models or options than OUT was begun with."""
  path, size = out / 'settings.json', options.size
  settings: dict[str, Any] = {'protocol': options.protocol, 'size': list(size) if size else None}
  settings['models'] = {run.key: hashlib.sha256(run.model.read_bytes()).hexdigest() for run in runs}
  if path.exists() and options.resume:
    before = json.loads(path.read_text())
    changed = [key for key in settings if key != 'models' and before.get(key) != settings[key]]
    changed += [
      key for key, digest in settings['models'].items() if before.get('models', {}).get(key, digest) != digest
    ]
    if changed:
      raise UsageError(f'begun with another {", ".join(changed)}', path, 'give what it was begun with, or --overwrite')
  write_whole(path, (json.dumps(settings, indent=1) + '\n').encode())


# -------------------------------------------------------------------------------------------------- masks and scores


@dataclasses.dataclass
class Work:
  """What all steps share.

  Attributes:
    out: folder of everything.
    data: clips of each data set, by its key in SETS.
    roots: folder of each data set.
    options: of the command line.
    files: score files so far, in the order of the tables.
    notes: warnings that belong to every score of DAVIS.
  """

  out: Path
  data: Mapping[str, Sequence[datasets.Clip]]
  roots: Mapping[str, Path]
  options: argparse.Namespace
  files: list[Path] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)

  def masks(self, which: str, key: str) -> Path:
    return self.out / 'masks' / which / key

  def heatmaps(self, which: str, key: str) -> Path:
    return self.out / 'heatmaps' / which / key


def predict(work: Work, run: Run) -> None:
  """Makes the masks, and of a `whole` run the heat maps, that are not there yet."""
  from adnet_jax import environment, pipeline, segmenter, video

  o = work.options
  options = pipeline.Outputs(heatmaps=run.whole, overlay=False, summary=False, resume=o.resume, overwrite=o.overwrite)
  runner = None
  for which in SETS if run.whole else ('davis',):
    for clip in work.data.get(which, ()):
      frames = frames_to_predict(clip, o.protocol)
      masks, heatmaps = work.masks(which, run.key) / clip.name, work.heatmaps(which, run.key) / clip.name
      wanted = [masks, heatmaps] if run.whole else [masks]
      if o.resume and all((folder / f'{frame.stem}.png').exists() for folder in wanted for frame in frames):
        continue
      if runner is None:
        runner = segmenter.Segmenter.from_pretrained(
          run.model, o.protocol, run.scales, run.mirror, o.size, device=o.device
        )
      source = video.open_source(frames)
      with environment.progress_bar(f'{run.key}: {clip.name}', len(frames)) as advance:
        pipeline.segment_clip(runner, source, work.out, options, masks_in=masks, heatmaps_in=heatmaps, progress=advance)


def frames_to_predict(clip: datasets.Clip, protocol: str) -> list[Any]:
  """The anchor and what is scored; all frames where the protocol's gate looks at the one before."""
  if protocol == 'released':
    return list(clip.frames)
  return [clip.frames[k] for k in sorted({0, *clip.annotated})]


def score(work: Work, which: str, key: str, name: str, rule: str, metrics: Sequence[str] | None = None) -> None:
  """Writes a score file unless it is there and newer than what it is of."""
  from adnet_jax import evaluate

  dataset, _, rule_of_maps = SETS[which]
  folder = (work.heatmaps if rule == rule_of_maps else work.masks)(which, key)
  clips = [clip.name for clip in work.data[which]]
  path = work.out / 'scores' / f'{key}-{rule}{"" if which == "davis" else f"-{which}"}.json'
  work.files.append(path)
  if work.options.resume and _is_current(path, folder, clips):
    return
  truth = datasets.annotations_root(work.roots[which]) if which == 'davis' else work.roots[which]
  found = evaluate.score_masks(
    folder,
    truth,
    rule=rule,
    metrics=metrics,
    frames='given',
    clips=clips,
    protocol=work.options.protocol,
    progress=sys.stderr.isatty(),
  )
  absent = [name for name in TEST_CLIPS.get(which, ()) if name not in clips]
  if absent:
    found['subset'] = True
    found['warnings'].append(f'test clips that are not there: {", ".join(absent)}')
  for warning in found['warnings']:
    print(f'warning: {name}, {rule}: {warning}', file=sys.stderr)
  warnings = [*found['warnings'], *(work.notes if which == 'davis' else ())]
  scores.write_scores({**found, 'warnings': warnings, 'name': name, 'dataset_name': dataset}, path)


def _is_current(path: Path, folder: Path, clips: Sequence[str]) -> bool:
  if not path.exists() or set(scores.read_scores(path)['clips']) != set(clips):
    return False
  written = path.stat().st_mtime_ns
  return all(file.stat().st_mtime_ns <= written for clip in clips for file in (folder / clip).iterdir())


def measure(work: Work, run: Run) -> None:
  """Masks and scores of one run."""
  predict(work, run)
  score(work, 'davis', run.key, run.name, 'davis2016', ('J', 'F', 'T') if run.whole else ('J', 'F'))
  if run.whole:
    for which in work.data:
      _, rules, rule_of_maps = SETS[which]
      for rule in rules if which != 'davis' else ():
        score(work, which, run.key, run.name, rule)
      score(work, which, run.key, run.name, rule_of_maps)


def prune(work: Work, run: Run) -> Run:
  """Instance pruning of a run's masks (of its heat maps under `released`), scored; the run that it makes."""
  from adnet_jax import pruning

  o = work.options
  pruned = dataclasses.replace(run, key=f'{run.key}-pruned', name=PRUNED_NAME, whole=False)
  if o.components:
    pruned = dataclasses.replace(run, key=f'{run.key}-components', name=COMPONENTS_NAME, whole=False)
  folder = (work.heatmaps if o.protocol == 'released' else work.masks)('davis', run.key)
  target = work.masks('davis', pruned.key)
  with _stage(f'pruning {run.key}') as progress:
    summary = pruning.prune_folder(
      folder,
      target,
      detections=o.detections,
      components=o.components,
      protocol=o.protocol,
      overwrite=True,
      progress=progress,
    )
  for warning in summary['warnings']:
    print(f'warning: {warning}', file=sys.stderr)
  score(work, 'davis', pruned.key, pruned.name, 'davis2016', ('J', 'F', 'T'))
  return pruned


@contextlib.contextmanager
def _stage(title: str) -> Iterator[Callable[[int, int], None]]:
  """A progress bar for what tells how many of how many steps are done."""
  from adnet_jax import environment

  with environment.progress_bar(title, None) as advance:
    yield lambda done, total: advance()
