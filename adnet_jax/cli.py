"""The command `adnet`: options of each subcommand and a thin function that calls the library; imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from adnet_jax import __version__, exits, options, segment_command
from adnet_jax.errors import UsageError
from adnet_jax.server import command as serve_command


def main(argv: list[str] | None = None) -> int:
  """Runs `adnet` and returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv
  return exits.guarded(lambda: _run(argv), debug='--debug' in argv)


def _run(argv: list[str]) -> None:
  arguments, unknown = build_parser().parse_known_args(argv)
  if unknown:
    arguments.parser.refuse(unknown)
  arguments.run(arguments)


def build_parser() -> argparse.ArgumentParser:
  """The parser of all subcommands."""
  parser = options.Parser(
    prog='adnet', description='Cuts out the foreground of videos with AD-Net, and everything around it.'
  )
  parser.add_argument('--version', action='version', version=f'adnet-jax {__version__}')
  commands = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
  for name, add, run, text in (
    ('segment', segment_command.add_options, segment_command.run, 'masks of videos or folders of frames'),
    ('score', _add_score, _score, "scores of anyone's masks"),
    ('report', _add_report, _report, 'tables, figures and a page of score files'),
    ('prune', _add_prune, _prune, 'masks without small static instances'),
    ('prepare', _add_prepare, _prepare, 'a data set as records with checksums'),
    ('convert', _add_convert, _convert, 'PyTorch weights to a model file'),
    ('export', _add_export, _export, 'a model with programs traced ahead for given sizes and platforms'),
    ('serve', serve_command.add_options, serve_command.run, 'a local web page: drop a video, get its masks'),
    ('info', _add_info, _info, 'what a model file holds'),
    ('doctor', lambda _: None, _doctor, 'what this installation can do'),
    ('completion', _add_completion, _completion, 'a script with which a shell completes what is typed'),
  ):
    command = commands.add_parser(
      name, help=text, description=text[0].upper() + text[1:] + '.', allow_abbrev=False,
      epilog='Names that begin with - go after --.' if name == 'segment' else None,
    )  # fmt: skip
    command.add_argument('--debug', action='store_true', help='print the traceback of an error')
    add(command)
    command.set_defaults(run=run, parser=command)
  return parser


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
  add('--threshold', type=options.probability, metavar='P', help='masks are soft maps: foreground above P')
  add('--jobs', type=options.natural, metavar='N', help='processes (default: one a core)')
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
  add(
    '--masks',
    action='append',
    type=options.named,
    default=[],
    metavar='NAME=DIR',
    help="a score file's masks; repeat it",
  )
  add('--overwrite', action='store_true', help='replace the page')


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


def _add_export(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('model', metavar='MODEL', help='name or file')
  add('-o', '--output', type=Path, required=True, metavar='FILE.safetensors')
  add('--size', type=options.size, action='append', required=True, metavar='WxH', help="the network's input; repeat it")
  add('--platforms', default='cpu', metavar='cpu,cuda,tpu', help='where it will run (default: cpu)')
  add(
    '--batch',
    type=options.natural,
    action='append',
    metavar='N',
    help='frames at a time; repeat it (default: 1 and 4 or 8)',
  )
  add('--dtype', choices=('float32', 'bfloat16'), help='default: float32 on a CPU, bfloat16 elsewhere')
  add('--overwrite', action='store_true', help='replace the file')


def _export(a: argparse.Namespace) -> None:
  from adnet_jax import environment, exported, weights

  with environment.progress_bar('exporting', None) as advance:
    exported.export_model(
      a.model, a.output, a.size, a.platforms.split(','), batches=a.batch, dtype=a.dtype, overwrite=a.overwrite,
      progress=advance,
    )  # fmt: skip
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
  from adnet_jax import doctor

  print(doctor.report())


def _add_completion(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('shell', choices=('bash', 'zsh', 'fish'))
  parser.epilog = 'Such as: adnet completion bash > ~/.local/share/bash-completion/completions/adnet'


def _completion(a: argparse.Namespace) -> None:
  try:
    import shtab
  except ImportError as error:
    raise UsageError('shtab is not installed', a.shell, "pip install 'adnet-jax[completion]'") from error
  parser = build_parser()
  for action in options.actions(parser):
    if action.type is Path or action.dest in ('inputs', 'model'):
      action.complete = shtab.FILE  # type: ignore[attr-defined]
  print(shtab.complete(parser, a.shell))


if __name__ == '__main__':
  sys.exit(main())
