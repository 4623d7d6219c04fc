"""The command `adnet`: options of each subcommand and a thin function that calls the library; imports nothing heavy."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from adnet_jax import DEFAULT_MODEL, __version__, exits
from adnet_jax.errors import UsageError

SAMPLE = Path(__file__).parent / 'assets' / 'sample'
SAMPLE_CLIP = 'astronaut'


def main(argv: list[str] | None = None) -> int:
  """Runs `adnet` and returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv
  return exits.guarded(lambda: _run(argv), debug='--debug' in argv)


def _run(argv: list[str]) -> None:
  arguments, unknown = build_parser().parse_known_args(argv)
  if unknown:
    arguments.parser.refuse(unknown)
  arguments.run(arguments)


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are the usage and one line as of any other error (fault 6)."""

  def error(self, message: str) -> NoReturn:
    self.print_usage(sys.stderr)
    self.exit(2, f'error: {message}: {self.prog} --help tells more\n')

  def refuse(self, unknown: list[str]) -> NoReturn:
    """Ends the program over arguments that the command does not have."""
    known = [option for action in self._actions for option in action.option_strings]
    name = unknown[0].split('=')[0]
    close = difflib.get_close_matches(name, known, n=1)
    advice = f', did you mean {close[0]}?' if close else ' (a name that begins with - goes after --)'
    self.error(f'unknown argument {name}{advice if name.startswith("-") else ""}')


def build_parser() -> argparse.ArgumentParser:
  """The parser of all subcommands."""
  parser = _Parser(prog='adnet', description='Cuts out the foreground of videos with AD-Net, and everything around it.')
  parser.add_argument('--version', action='version', version=f'adnet-jax {__version__}')
  commands = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
  for name, add, run, text in (
    ('segment', _add_segment, _segment, 'masks of videos or folders of frames'),
    ('score', _add_score, _score, "scores of anyone's masks"),
    ('report', _add_report, _report, 'tables, figures and a page of score files'),
    ('prune', _add_prune, _prune, 'masks without small static instances'),
    ('prepare', _add_prepare, _prepare, 'a data set as records with checksums'),
    ('convert', _add_convert, _convert, 'PyTorch weights to a model file'),
    ('info', _add_info, _info, 'what a model file holds'),
    ('doctor', lambda _: None, _doctor, 'what this installation can do'),
  ):
    command = commands.add_parser(
      name, help=text, description=text[0].upper() + text[1:] + '.', allow_abbrev=False,
      epilog='Names that begin with - go after --.' if name == 'segment' else None,
    )  # fmt: skip
    command.add_argument('--debug', action='store_true', help='print the traceback of an error')
    add(command)
    command.set_defaults(run=run, parser=command)
  return parser


def _checked(kind: Callable, allowed: Callable, text: str) -> Callable:
  """An argparse type that refuses values out of range."""

  def parse(value: str):
    try:
      parsed = kind(value)
    except ValueError:
      raise argparse.ArgumentTypeError(f'{value!r} is not {text}') from None
    if not allowed(parsed):
      raise argparse.ArgumentTypeError(f'{value} is not {text}')
    return parsed

  return parse


def _size(text: str) -> tuple[int, int]:
  match = re.fullmatch(r'(\d+)[xX](\d+)', text)
  if match is None or not all(8 <= int(side) <= 8192 for side in match.groups()):
    raise argparse.ArgumentTypeError(f'{text!r} is not WIDTHxHEIGHT with sides from 8 to 8192')
  return int(match[1]), int(match[2])


def _scales(text: str) -> tuple[float, ...]:
  try:
    scales = tuple(float(part) for part in text.split(','))
  except ValueError:
    scales = ()
  if not scales or not all(0 < scale <= 8 for scale in scales):
    raise argparse.ArgumentTypeError(f'{text!r} is not a list such as .75,1,1.5 of factors above 0, at most 8')
  return scales


_natural = _checked(int, lambda n: n >= 1, 'a whole number from 1')
_whole = _checked(int, lambda n: n >= 0, 'a whole number from 0')
_probability = _checked(float, lambda p: 0 <= p <= 1, 'a probability from 0 to 1')


def _add_segment(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    'inputs',
    nargs='*',
    metavar='INPUT',
    help='video, folder of frames, pattern such as "clip/*.jpg", or - (a pipe); nothing: the bundled clip; '
    'MANIFEST.jsonl: many clips, {"input", "name"} a line',
  )
  add('-o', '--output', type=Path, default=Path('adnet-output'), metavar='OUT', help='folder (default: adnet-output)')
  add('--model', default=DEFAULT_MODEL, metavar='NAME|FILE', help=f'see adnet info (default: {DEFAULT_MODEL})')
  add('--protocol', default='paper', choices=('paper', 'released'), help='how masks are made (default: paper)')
  add('--scales', type=_scales, default=(1.0,), metavar='.75,1,1.5', help="factors of the network's size (default: 1)")
  add('--mirror', action='store_true', help='average mirrored frames in')
  add('--size', type=_size, metavar='WxH', help="network's size, aspect not kept (default: the model's)")
  add('--threshold', type=_probability, metavar='P', help='probability above which is foreground (default: .5)')
  add('--batch', type=_natural, metavar='N', help='frames at a time (default: by size and device)')
  add('--device', choices=('cpu', 'gpu', 'tpu'), help='default: what JAX prefers')
  add('--heatmaps', action='store_true', help='16-bit probabilities too')
  add('--no-overlay', action='store_true', help='no overlay.mp4')
  add('--overwrite', action='store_true', help='replace earlier results')
  add('--resume', action='store_true', help='go on at the first missing mask')
  add('--skip-bad', action='store_true', help='leave out frames that cannot be read')
  add('--start', type=_whole, metavar='N', help='first frame, from 0')
  add('--end', type=_natural, metavar='N', help='frame before which to stop')
  add('--every', type=_natural, default=1, metavar='N', help='take every Nth frame')
  add(
    '--anchor', type=_anchor, metavar='first|N', help='anchor frame of the clip, from 0 (default: the first one read)'
  )
  add('--no-cache', action='store_true', help='do not keep compiled programs')
  add('--engine', choices=('plain', 'ray'), help='who does a manifest: this process (the default), or Ray actors')
  add('--workers', type=_natural, metavar='N', help='Ray actors (default: one a device, on CPUs one a machine)')
  add('--address', metavar='HOST:PORT', help='of a Ray cluster, or auto (default: one is started on this machine)')


def _anchor(text: str) -> int | None:
  return None if text == 'first' else _whole(text)


def _segment(a: argparse.Namespace) -> None:
  from adnet_jax import manifest, pipeline, postprocess, video, weights

  if a.overwrite and a.resume:
    raise UsageError('--overwrite and --resume exclude each other', '--overwrite, --resume', 'give one')
  if a.protocol == 'released' and a.threshold is not None:
    raise UsageError('the protocol released has a threshold of its own', '--protocol, --threshold', 'leave out one')
  threshold = postprocess.PAPER_THRESHOLD if a.threshold is None else a.threshold
  if manifest.is_manifest(a.inputs) or a.engine or a.workers or a.address:
    from adnet_jax.fleet import command

    command.segment(a, threshold)
    return
  inputs = a.inputs or [SAMPLE / 'JPEGImages' / '480p' / SAMPLE_CLIP]
  weights.check_is_file(weights.find_model(a.model))
  sources = video.resolve_inputs(inputs, start=a.start, end=a.end, every=a.every, skip_bad=a.skip_bad)
  video.check_output(sources, a.output)
  outputs = pipeline.Outputs(heatmaps=a.heatmaps, overlay=not a.no_overlay, resume=a.resume, overwrite=a.overwrite)
  folders = [a.output / source.name if len(sources) > 1 else a.output for source in sources]
  for folder in folders:
    pipeline.check_free(folder, outputs)

  # JAX only after everything cheap has been checked.
  from adnet_jax import environment
  from adnet_jax import segmenter as segmenter_lib

  environment.set_up(a.device, cache=not a.no_cache)
  segmenter = segmenter_lib.Segmenter.from_pretrained(
    a.model, a.protocol, a.scales, a.mirror, a.size, threshold=threshold, batch=a.batch, device=a.device
  )
  for source, folder in zip(sources, folders, strict=True):
    # A bar for each clip: while it is drawn, nothing else is printed.
    with environment.progress_bar(source.name, source.length) as advance:
      summary = pipeline.segment_clip(
        segmenter, source, folder, outputs, model_name=str(a.model), anchor=a.anchor, progress=advance
      )
    for warning in summary['warnings']:
      print(f'warning: {source.name}: {warning}', file=sys.stderr)
    width, height = summary['size']
    seconds = summary['seconds']['total']
    print(
      f'{source.name}: {summary["frames"]} masks in {folder / "masks"}, {seconds:.1f} s, network at {width}x{height}'
    )
    if outputs.overlay and (folder / 'overlay.mp4').exists():
      print(f'{source.name}: overlay in {folder / "overlay.mp4"}')
  if not a.inputs:
    _score_sample(folders[0])


def _score_sample(folder: Path) -> None:
  """J and F of the bundled clip, whose true masks are bundled too."""
  from adnet_jax import evaluate

  scores = evaluate.score_masks(folder / 'masks', SAMPLE / 'Annotations' / '480p' / SAMPLE_CLIP, frames='given')
  j, f = (scores['dataset'][metric]['mean'] for metric in ('J', 'F'))
  if j is not None:
    print(f'bundled clip against its true masks (rule {scores["rule"]}): J {j:.3f}, F {f:.3f}')


def _add_score(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('masks', type=Path, metavar='MASKS', help='folder with CLIP/NNNNN.png: masks, or heat maps for saliency')
  add('--truth', type=Path, required=True, metavar='DIR', help='such as DAVIS/Annotations/480p, or a data set')
  add(
    '--rule',
    default='davis2016',
    metavar='NAME',
    help='davis2016 (the default), adnet-saliency, davsod, pysod, fbms-pooled, -mean-pr, -jaccard or -official',
  )
  add('-o', '--output', type=Path, metavar='FILE.json')
  add('--metrics', metavar='J,F,T', help='of davis2016 (default: J,F)')
  add(
    '--stability',
    default='davis-matlab-master',
    metavar='NAME',
    help='program that T follows: davis-matlab-master (the default), davis-matlab-2016, python',
  )
  add('--ends', choices=('keep', 'drop'), help="a clip's first and last annotation (default: as the rule says)")
  add('--allow-missing', action='store_true', help='count missing masks as empty')
  add('--resize', action='store_true', help="bring masks to the truth's size, nearest neighbour")
  add('--threshold', type=_probability, metavar='P', help='masks are soft maps: foreground above P')
  add('--jobs', type=_natural, metavar='N', help='processes (default: one a core)')
  add('--overwrite', action='store_true', help='replace the score file')


def _score(a: argparse.Namespace) -> None:
  from adnet_jax import evaluate, scores

  if a.output is not None and a.output.exists() and not a.overwrite:
    raise UsageError('output exists', a.output, 'remove it or add --overwrite')
  result = evaluate.score_masks(
    a.masks,
    a.truth,
    rule=a.rule,
    metrics=None if a.metrics is None else tuple(a.metrics.split(',')),
    stability=a.stability,
    ends=a.ends,
    allow_missing=a.allow_missing,
    resize=a.resize,
    threshold=a.threshold,
    jobs=a.jobs,
    progress=True,
  )
  for warning in result['warnings']:
    print(f'warning: {warning}', file=sys.stderr)
  print(scores.scores_table(result))
  if a.output is not None:
    scores.write_scores(result, a.output)


def _add_report(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('scores', nargs='+', type=Path, metavar='SCORES.json', help='what adnet score or --mode evaluate wrote')
  add('-o', '--output', type=Path, required=True, metavar='PAGE.html')
  add('--frames', type=Path, metavar='DIR', help='such as DAVIS/JPEGImages/480p, for pictures')
  add('--truth', type=Path, metavar='DIR', help='such as DAVIS/Annotations/480p, for true outlines')
  add('--masks', action='append', type=_named, default=[], metavar='NAME=DIR', help="a score file's masks; repeat it")
  add('--overwrite', action='store_true', help='replace the page')


def _named(text: str) -> tuple[str, Path]:
  name, equals, folder = text.partition('=')
  if not name or not equals or not folder:
    raise argparse.ArgumentTypeError(f'{text!r} is not NAME=DIR')
  return name, Path(folder)


def _report(a: argparse.Namespace) -> None:
  from adnet_jax.report import page

  twice = [name for name in dict(a.masks) if [one for one, _ in a.masks].count(name) > 1]
  if twice:
    raise UsageError('masks named twice', f'--masks {twice[0]}', 'give each name once')
  page.write_report(
    a.scores, a.output, frames=a.frames, truth=a.truth, masks=dict(a.masks), overwrite=a.overwrite
  )  # fmt: skip
  print(f'page: {a.output}')


def _add_prune(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('masks', type=Path, metavar='MASKS', help='folder with CLIP/NNNNN.png')
  add('-o', '--output', type=Path, required=True, metavar='OUT')
  source = parser.add_mutually_exclusive_group()
  source.add_argument('--detections', type=Path, metavar='FILE.json', help='instances as COCO JSON')
  source.add_argument('--components', action='store_true', help="connected components of the masks' own as instances")
  add('--protocol', default='paper', choices=('paper', 'released'), help="Algorithm 1 or the released program's filter")
  add('--overwrite', action='store_true', help='replace earlier results')


def _prune(a: argparse.Namespace) -> None:
  from adnet_jax import environment, pruning

  with environment.progress_bar('pruning', None) as advance:
    summary = pruning.prune_folder(
      a.masks, a.output, detections=a.detections, components=a.components, protocol=a.protocol,
      overwrite=a.overwrite, progress=lambda done, total: advance(),
    )  # fmt: skip
  for warning in summary['warnings']:
    print(f'warning: {warning}', file=sys.stderr)
  print(f'masks in {a.output}, what was removed in {a.output / "summary.json"}')


def _add_prepare(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('kind', choices=('davis2016', 'fbms59', 'visal', 'folder'))
  add('source', type=Path, metavar='SRC', help='the data set as distributed')
  add('-o', '--output', type=Path, required=True, metavar='DIR')
  add('--resume', action='store_true', help='go on where a run was interrupted')


def _prepare(a: argparse.Namespace) -> None:
  from adnet_jax.data import prepare

  summary = prepare.prepare(a.kind, a.source, a.output, resume=a.resume, progress=True)
  for warning in summary['warnings']:
    print(f'warning: {warning}', file=sys.stderr)
  counts = f'{summary["frames"]} frames of {summary["clips"]} clips, {summary["annotations"]} with annotation'
  print(f'{a.output}: {counts}' + (f'; {summary["kept"]} clips were there' if summary['kept'] else ''))


def _add_convert(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('input', type=Path, metavar='IN', help='.pth or .safetensors with PyTorch names')
  parser.add_argument('-o', '--output', type=Path, required=True, metavar='OUT.safetensors')
  parser.add_argument('--variant', metavar='V', help='row of Table 1, where names and file name do not tell')
  parser.add_argument('--batch-norm', choices=('abs', 'plain'), help='effective scale: |weight| + eps, or the weight')
  parser.add_argument(
    '--normalization',
    choices=('released', 'torchvision', 'efficientnet'),
    help='what the input looks like (default: by the kind of file)',
  )
  parser.add_argument('--output-stride', type=int, choices=(8, 16), default=8, help='no file tells; released: 8')
  parser.add_argument('--overwrite', action='store_true')


def _convert(a: argparse.Namespace) -> None:
  from adnet_jax import convert, weights

  convert.convert(
    a.input,
    a.output,
    variant=a.variant,
    batch_norm=a.batch_norm,
    normalization=a.normalization,
    output_stride=a.output_stride,
    overwrite=a.overwrite,
  )
  print(weights.describe(a.output))


def _add_info(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('model', nargs='?', metavar='MODEL', help='name or file; nothing: the known models')


def _info(a: argparse.Namespace) -> None:
  from adnet_jax import weights

  if a.model is not None:
    print(weights.describe(a.model))
    return
  models = weights.known_models()
  print('\n\n'.join(weights.describe(path) for path in models.values()) if models else 'no model is known')
  print(f'\nlooked in: {", ".join(map(str, weights.model_folders()))}')


def _doctor(_: argparse.Namespace) -> None:
  from adnet_jax import environment

  print(environment.report())


if __name__ == '__main__':
  sys.exit(main())
