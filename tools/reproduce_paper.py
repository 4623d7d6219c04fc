r"""From model files and the data set to the paper's tables and figures, with one command.

  python tools/reproduce_paper.py --davis DAVIS -o OUT                       # the bundled model
  python tools/reproduce_paper.py --model my.safetensors --davis DAVIS -o OUT --others MotAdapt=motadapt.json
  python tools/reproduce_paper.py --released DIR --davis DAVIS -o OUT --detections detections.json

With --released, DIR holds the authors' files base, intra, concat, inter and ad (.pth or .safetensors): all five are
evaluated at a single scale (Table 1), `ad` at scales .75, 1, 1.5 and mirrored too (Tables 2 to 4), and pruned where
detections are given. A file that is missing, and whatever needs data that was not given, is 'not measured'.

OUT gets masks/SET/RUN/CLIP/NAME.png, heatmaps/SET/RUN/CLIP/NAME.png (16 bit), scores/*.json, figures/fig1.png ...
fig10.png, tables.md, report.html, models/ (converted) and settings.json. A run that was stopped goes on with --resume.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package as it stands here

from adnet_jax import DEFAULT_MODEL, exits, images, masks, scores  # noqa: E402
from adnet_jax.data import datasets  # noqa: E402
from adnet_jax.errors import DataError, UsageError  # noqa: E402
from adnet_jax.report import entries as entry_lib  # noqa: E402
from adnet_jax.report import figures, grid, html, page, tables  # noqa: E402
from tools import paper_runs  # noqa: E402
from tools import similarity as similarity_tool  # noqa: E402
from tools.paper_runs import Run, Work  # noqa: E402
from tools.similarity import network_size, write_whole  # noqa: E402

MOST_OVERLAYS, OVERLAYS_A_CLIP, OVERLAY_WIDTH = 8, 5, 480  # clips, frames, pixels
PRUNED = (paper_runs.PRUNED_NAME, paper_runs.COMPONENTS_NAME)


# ----------------------------------------------------------------------------------------------- tables and figures


def draw(work: Work, runs: Sequence[Run], best: Run) -> None:
  """Figs. 1 and 3 to 10, as far as there is data; each that cannot be drawn is said.

  Args:
    work: with all score files.
    runs: those of models.
    best: whose masks are shown, pruned perhaps.
  """
  from adnet_jax import pretrained

  clips, out = work.data['davis'], work.out / 'figures'
  found = entry_lib.read_entries(work.files)
  davis = [entry for entry in found if entry.rule == 'davis2016' and entry.dataset == entry_lib.DAVIS]
  ours = next(entry for entry in davis if entry.name == best.name)
  own = {run.name for run in runs} | {best.name}
  compared = [ours, *(entry for entry in davis if entry.name not in own)]
  models = {run.model: pretrained.load_model(run.model, device=work.options.device) for run in _looked_into(runs)}
  model, size = next(iter(models.values())), work.options.size

  def similarity_over_time() -> None:
    path, labels = out / 'fig3.png', [similarity_tool.label(one) for one in models.values()]
    if not (work.options.resume and path.exists() and _is_of(path.with_suffix('.json'), labels, clips)):
      similarity_tool.write_figure_3(list(models.values()), clips, path, size)

  def overlays(which: str) -> Any:
    folder = work.masks(which, best.key if which == 'davis' else paper_runs.whole(runs).key)
    names = spread(ours, clips) if which == 'davis' else [clip.name for clip in work.data[which]][:MOST_OVERLAYS]
    shown = {clip.name: clip for clip in work.data[which]}
    return figures.overlays({name: overlay_row(shown[name], folder / name) for name in names})

  draft: dict[str, Callable[[], Any]] = {
    'fig1': lambda: similarity_tool.figure_1(model, similarity_tool.default_clip(clips), size=size),
    'fig3': similarity_over_time,
    'fig4': lambda: figures.precision_recall(found),
    'fig5': lambda: overlays('davis'),
    'fig6': lambda: figures.per_sequence(compared, 'J mean', ours.name),
    'fig7': lambda: figures.per_sequence(compared, 'F mean', ours.name),
    'fig8': lambda: overlays('fbms'),
    'fig9': lambda: overlays('visal'),
    'fig10': lambda: similarity_tool.figure_10(model, clips, size=size),
  }
  needed = {'fig8': 'fbms', 'fig9': 'visal'}
  for name, make in draft.items():
    if needed.get(name, 'davis') not in work.data:
      print(f'{name}: not measured, no --{needed[name]}', file=sys.stderr)
      continue
    try:
      drawn = make()
    except DataError as error:
      # One figure's lack of data must not cost the others.
      print(f'{name}: not drawn: {error}', file=sys.stderr)
      continue
    if drawn is not None:
      figures.save(drawn, out / f'{name}.png')


def _looked_into(runs: Sequence[Run]) -> list[Run]:
  """The runs whose models Figs. 1, 3 and 10 look into: the one that everything is measured of, then the baseline."""
  return [paper_runs.whole(runs), *(run for run in runs if run.name == paper_runs.row_of('baseline') and not run.whole)]


def overlay_row(clip: datasets.Clip, folder: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
  """Name, picture and mask of some of a clip's frames that have a mask in `folder`, evenly spread."""
  found = [frame for frame in clip.frames if (folder / f'{frame.stem}.png').exists()]
  row = []
  for place in sorted({round(k * (len(found) - 1) / (OVERLAYS_A_CLIP - 1)) for k in range(OVERLAYS_A_CLIP)}):
    picture, mask = images.read_image(found[place]), masks.read_mask(folder / f'{found[place].stem}.png')
    width = min(OVERLAY_WIDTH, picture.shape[1])
    size = (width, max(1, round(width * picture.shape[0] / picture.shape[1])))
    small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
    row.append((found[place].stem, cv2.resize(picture, size, interpolation=cv2.INTER_AREA), small))
  return row


def _is_of(path: Path, labels: Sequence[str], clips: Sequence[datasets.Clip]) -> bool:
  """Whether what Fig. 3 was drawn from is of these models and clips."""
  drifts = json.loads(path.read_text()) if path.exists() else {}
  names = {clip.name for clip in clips}
  return set(drifts) == set(labels) and all(set(drift['clips']) == names for drift in drifts.values())


def spread(entry: entry_lib.Entry, clips: Sequence[datasets.Clip]) -> list[str]:
  """At most MOST_OVERLAYS clips from the best J to the worst, evenly spread, so that failures show too."""
  values = {clip.name: entry.number('J mean', clip.name) or 0.0 for clip in clips}
  ordered = sorted(values, key=lambda name: -values[name])
  count = min(MOST_OVERLAYS, len(ordered))
  return [ordered[round(k * (len(ordered) - 1) / max(count - 1, 1))] for k in range(count)]


def conclude(work: Work, best: Run, shown: Mapping[str, Path]) -> str:
  """Writes tables.md and report.html; the printed key figures of the paper beside ours, for the terminal."""
  found = entry_lib.read_entries(work.files)
  write_whole(work.out / 'tables.md', grid.to_markdown(tables.paper_tables(found)).encode())
  order = sorted(work.files, key=lambda path: path.stem != f'{best.key}-davis2016')
  page.write_report(
    order,
    work.out / 'report.html',
    frames=datasets.frames_root(work.roots['davis']),
    truth=datasets.annotations_root(work.roots['davis']),
    masks=shown,
    overwrite=True,
  )
  return key_figures(found)


def key_figures(found: Sequence[entry_lib.Entry]) -> str:
  """J / F of AD-Net's three rows as printed in the paper, and as measured."""
  paper = tables.printed()
  single = next(row for row in paper['table1_davis_ablation'] if row['variant'] == 'full')
  multi, pruned = (row for row in paper['table2_davis_fbms'] if row['method'].startswith('AD-Net'))
  rows = [
    (single['label'], single['label'], single['J'], single['F']),
    (multi['method'], paper_runs.MULTI_SCALE_NAME, multi['davis_J'], multi['davis_F']),
    (pruned['method'], paper_runs.PRUNED_NAME, pruned['davis_J'], pruned['davis_F']),
  ]
  lines = [f'{"DAVIS-2016, J / F in percent":<28}  {"printed":<15}  measured']
  for label, name, j, f in rows:
    entry = next((one for one in found if one.name == name and one.rule == 'davis2016'), None)
    values = [entry.number(f'{metric} mean') if entry else None for metric in 'JF']
    measured = (
      grid.MISSING if None in values else ' / '.join(f'{100 * value:.2f}' for value in values if value is not None)
    )
    subset = f' ({"; ".join(entry_lib.remarks(entry))})' if entry and entry_lib.is_partial(entry) else ''
    lines.append(f'{label:<28}  {f"{j} / {f}":<15}  {measured}{subset}')
  return '\n'.join(lines)


# ----------------------------------------------------------------------------------------------------------- command


def main(argv: list[str] | None = None) -> int:
  """Runs the program and returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv
  return exits.guarded(lambda: _run(_parser().parse_args(argv)), debug='--debug' in argv)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  add = parser.add_argument
  add('--davis', type=Path, required=True, metavar='DIR', help='DAVIS-2016, or a set in its layout')
  add('-o', '--output', type=Path, required=True, metavar='OUT', help='folder')
  model = parser.add_mutually_exclusive_group()
  model.add_argument('--released', type=Path, metavar='DIR', help="folder with the authors' files")
  model.add_argument('--model', metavar='NAME|FILE', help=f'a model of ours (default: {DEFAULT_MODEL})')
  add('--baseline', metavar='NAME|FILE', help='with --model: a model of the variant baseline, for Table 1 and Fig. 3')
  add('--protocol', default='paper', choices=('paper', 'released'), help='how masks are made (default: paper)')
  add('--size', type=network_size, metavar='WxH', help="network's input at scale 1 (default: the model's)")
  help_text = 'scales .75, 1, 1.5 and mirrored frames too (default: with --released)'
  add('--multi-scale', action=argparse.BooleanOptionalAction, default=None, help=help_text)
  instances = parser.add_mutually_exclusive_group()
  instances.add_argument(
    '--detections', type=Path, metavar='FILE', help='COCO JSON, for the rows with instance pruning'
  )
  instances.add_argument('--components', action='store_true', help="a further row: the masks' own components pruned")
  add('--others', action='append', default=[], type=_named, metavar='NAME=FILE', help="another method's score file")
  add('--fbms', type=Path, metavar='DIR', help='FBMS-59, for Tables 2 and 3 and Fig. 8')
  add('--visal', type=Path, metavar='DIR', help='ViSal, for Table 3 and Fig. 9')
  add('--clips', type=similarity_tool.names, metavar='a,b', help='only these clips of DAVIS; the tables say so')
  add('--resume', action='store_true', help='go on: masks and scores that are there are not made again')
  add('--overwrite', action='store_true', help='replace earlier results')
  add('--device', choices=('cpu', 'gpu', 'tpu'), help='default: what JAX prefers')
  add('--debug', action='store_true', help='print the traceback of an error')
  return parser


def _named(text: str) -> tuple[str, Path]:
  name, equals, path = text.partition('=')
  if not name.strip() or not equals or not path:
    raise argparse.ArgumentTypeError(f'{text!r} is not NAME=FILE')
  return name.strip(), Path(path)


def _run(a: argparse.Namespace) -> None:
  if a.overwrite and a.resume:
    raise UsageError('--overwrite and --resume exclude each other', '--overwrite, --resume', 'give one')
  if a.released and a.baseline:
    raise UsageError('the released files have a baseline', '--released, --baseline', 'leave out --baseline')
  # What hours of work would otherwise end in.
  figures.new_figure(1, 1)
  html.part('style.css')
  html.render('table.html.j2', table=grid.Table('', (), ()))
  others = [(name, scores.read_scores(path)) for name, path in a.others]
  roots = {which: root for which in paper_runs.SETS if (root := getattr(a, which)) is not None}
  data = {
    which: similarity_tool.read_clips(root, a.clips if which == 'davis' else None) for which, root in roots.items()
  }
  if a.detections:
    _check_detections(a.detections, data['davis'])
  paper_runs.check_free(a.output, resume=a.resume, overwrite=a.overwrite)
  multi_scale = bool(a.released) if a.multi_scale is None else a.multi_scale
  if a.released:
    runs = paper_runs.released_runs(a.released, a.output, multi_scale)
  else:
    runs = paper_runs.own_runs(a.model or DEFAULT_MODEL, a.baseline, multi_scale)
  taken = [name for name, _ in others if name in (*(run.name for run in runs), *PRUNED)]
  if taken:
    raise UsageError(f'the name of a row of ours: {", ".join(taken)}', '--others', 'call it otherwise')
  paper_runs.settle(a.output, runs, a)
  from adnet_jax import environment

  environment.set_up(a.device)
  work = Work(a.output, data, roots, a)
  if a.clips:
    work.notes.append(f'a subset: only these clips were asked for: {", ".join(a.clips)}')
    print(f'warning: {work.notes[-1]}', file=sys.stderr)
  for run in runs:
    paper_runs.measure(work, run)
  best = paper_runs.whole(runs)
  if a.detections or a.components:
    best = paper_runs.prune(work, best)
  shown = {path.stem: work.masks('davis', best.key) for path in work.files if path.stem == f'{best.key}-davis2016'}
  for number, (name, content) in enumerate(others):
    work.files.append(work.out / 'scores' / 'others' / f'{number}-{content["rule"]}.json')
    scores.write_scores({**content, 'name': name}, work.files[-1])
  draw(work, runs, best)
  print(conclude(work, best, shown))
  print(f'tables in {work.out / "tables.md"}, figures in {work.out / "figures"}, page {work.out / "report.html"}')


def _check_detections(path: Path, clips: Sequence[datasets.Clip]) -> None:
  """Names the mistakes in a file of detections before anything is computed."""
  from adnet_jax import detections

  detections.read(path, {clip.name: {frame.stem: images.read_shape(frame) for frame in clip.frames} for clip in clips})


if __name__ == '__main__':
  sys.exit(main())
