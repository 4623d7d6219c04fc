"""The command `adnet`: options of each subcommand, and a thin function that calls the library; nothing heavy on import."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from adnet_jax import DEFAULT_MODEL, __version__
from adnet_jax import exits
from adnet_jax.errors import UsageError

SAMPLE = Path(__file__).parent / 'assets' / 'sample'
SAMPLE_CLIP = 'astronaut'


def main(argv: list[str] | None = None) -> int:
  """Runs `adnet` and returns its exit code."""
  arguments = build_parser().parse_args(argv)
  return exits.guarded(lambda: arguments.run(arguments), debug=arguments.debug)


def build_parser() -> argparse.ArgumentParser:
  """The parser of all subcommands."""
  parser = argparse.ArgumentParser(
      prog='adnet', description='Cuts out the foreground of videos with AD-Net, and everything around it.')
  parser.add_argument('--version', action='version', version=f'adnet-jax {__version__}')
  commands = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
  for name, add, run, text in (
      ('segment', _add_segment, _segment, 'masks of videos or folders of frames'),
      ('score', _add_score, _score, "scores of anyone's masks"),
      ('convert', _add_convert, _convert, 'PyTorch weights to a model file'),
      ('info', _add_info, _info, 'what a model file holds'),
      ('doctor', lambda _: None, _doctor, 'what this installation can do')):
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + '.', allow_abbrev=False,
                                  formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    command.add_argument('--debug', action='store_true', help='print the traceback of an error')
    add(command)
    command.set_defaults(run=run)
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
  parser.add_argument('inputs', nargs='*', metavar='INPUT',
                      help='video, folder of frames, pattern such as "clip/*.jpg", or - ; nothing: the bundled clip')
  parser.add_argument('-o', '--output', type=Path, default=Path('adnet-output'), metavar='OUT')
  parser.add_argument('--model', default=DEFAULT_MODEL, metavar='NAME|FILE')
  parser.add_argument('--protocol', default='paper', choices=('paper', 'released'), help='how masks are made')
  parser.add_argument('--scales', type=_scales, default=(1.0,), metavar='.75,1,1.5', help="factors of the network's size")
  parser.add_argument('--mirror', action='store_true', help='average mirrored frames in')
  parser.add_argument('--size', type=_size, metavar='WxH', help="network's size; aspect not kept (default: the model's)")
  parser.add_argument('--threshold', type=_probability, default=0.5, metavar='P', help='probability above which is foreground')
  parser.add_argument('--batch', type=_natural, metavar='N', help='frames at a time (default: by size and device)')
  parser.add_argument('--device', choices=('cpu', 'gpu', 'tpu'), help='default: what JAX prefers')
  parser.add_argument('--heatmaps', action='store_true', help='16-bit probabilities too')
  parser.add_argument('--no-overlay', action='store_true', help='no overlay.mp4')
  parser.add_argument('--overwrite', action='store_true', help='replace earlier results')
  parser.add_argument('--resume', action='store_true', help='go on at the first missing mask')
  parser.add_argument('--skip-bad', action='store_true', help='leave out frames that cannot be read')
  parser.add_argument('--start', type=_whole, metavar='N', help='first frame, from 0')
  parser.add_argument('--end', type=_natural, metavar='N', help='frame before which to stop')
  parser.add_argument('--every', type=_natural, default=1, metavar='N', help='take every Nth frame')
  parser.add_argument('--anchor', type=_anchor, metavar='first|N', help='anchor frame, from 0 (default: first)')
  parser.add_argument('--no-cache', action='store_true', help='do not keep compiled programs')


def _anchor(text: str) -> int | None:
  return None if text == 'first' else _whole(text)


def _segment(a: argparse.Namespace) -> None:
  from adnet_jax import pipeline
  from adnet_jax import video
  from adnet_jax import weights

  if a.overwrite and a.resume:
    raise UsageError('--overwrite and --resume exclude each other', '--overwrite, --resume', 'give one')
  sample = not a.inputs
  inputs = a.inputs or [SAMPLE / 'JPEGImages' / '480p' / SAMPLE_CLIP]
  weights.check_is_file(weights.find_model(a.model))
  sources = video.resolve_inputs(inputs, start=a.start, end=a.end, every=a.every, skip_bad=a.skip_bad)
  video.check_output(sources, a.output)
  outputs = pipeline.Outputs(heatmaps=a.heatmaps, overlay=not a.no_overlay, resume=a.resume, overwrite=a.overwrite)
  folders = [a.output / source.name if len(sources) > 1 else a.output for source in sources]
  for folder in folders:
    pipeline.check_free(folder, outputs)

  from rich.console import Console
  from rich.progress import MofNCompleteColumn, Progress, TextColumn

  from adnet_jax import environment
  from adnet_jax import segmenter as segmenter_lib

  environment.set_up(a.device, cache=not a.no_cache)
  segmenter = segmenter_lib.Segmenter.from_pretrained(
      a.model, protocol=a.protocol, scales=a.scales, mirror=a.mirror, size=a.size, threshold=a.threshold,
      batch=a.batch, device=a.device)
  columns = (TextColumn('{task.description}'), *Progress.get_default_columns()[1:], MofNCompleteColumn())
  with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
    for source, folder in zip(sources, folders, strict=True):
      task = bar.add_task(source.name, total=source.length)
      summary = pipeline.segment_clip(segmenter, source, folder, outputs, model_name=str(a.model), anchor=a.anchor,
                                      progress=lambda task=task: bar.advance(task))
      for warning in summary['warnings']:
        bar.console.print(f'warning: {source.name}: {warning}', highlight=False, markup=False, soft_wrap=True)
      seconds = summary['seconds']['total']
      print(f'{source.name}: {summary["frames"]} masks in {folder / "masks"}, {seconds:.1f} s, '
            f'network at {summary["size"][0]}x{summary["size"][1]}')
      if (folder / 'overlay.mp4').exists() and not a.no_overlay:
        print(f'{source.name}: overlay in {folder / "overlay.mp4"}')
  if sample:
    _score_sample(folders[0])


def _score_sample(folder: Path) -> None:
  """J and F of the bundled clip, whose true masks are bundled too."""
  from adnet_jax import evaluate

  scores = evaluate.score_masks(folder / 'masks', SAMPLE / 'Annotations' / '480p' / SAMPLE_CLIP, frames='given')
  j, f = (scores['dataset'][metric]['mean'] for metric in ('J', 'F'))
  if j is not None:
    print(f'bundled clip against its true masks (rule {scores["rule"]}): J {j:.3f}, F {f:.3f}')


def _add_score(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('masks', type=Path, metavar='MASKS', help='folder with CLIP/NNNNN.png')
  parser.add_argument('--truth', type=Path, required=True, metavar='DIR', help='such as DAVIS/Annotations/480p')
  parser.add_argument('--rule', default='davis2016', metavar='NAME')
  parser.add_argument('-o', '--output', type=Path, metavar='FILE.json')
  parser.add_argument('--metrics', default='J,F', metavar='J,F')
  parser.add_argument('--allow-missing', action='store_true', help='count missing masks as empty')
  parser.add_argument('--resize', action='store_true', help="bring masks to the truth's size, nearest neighbour")
  parser.add_argument('--threshold', type=_probability, metavar='P', help='masks are soft maps: foreground above P')
  parser.add_argument('--jobs', type=_natural, metavar='N', help='processes (default: one a core)')
  parser.add_argument('--overwrite', action='store_true', help='replace the score file')


def _score(a: argparse.Namespace) -> None:
  from adnet_jax import evaluate

  if a.output is not None and a.output.exists() and not a.overwrite:
    raise UsageError('output exists', a.output, 'remove it or add --overwrite')
  scores = evaluate.score_masks(a.masks, a.truth, rule=a.rule, metrics=tuple(a.metrics.split(',')),
                                allow_missing=a.allow_missing, resize=a.resize, threshold=a.threshold, jobs=a.jobs,
                                progress=True)
  for warning in scores['warnings']:
    print(f'warning: {warning}', file=sys.stderr)
  print(evaluate.scores_table(scores))
  if a.output is not None:
    evaluate.write_scores(scores, a.output)


def _add_convert(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('input', type=Path, metavar='IN', help='.pth or .safetensors with PyTorch names')
  parser.add_argument('-o', '--output', type=Path, required=True, metavar='OUT.safetensors')
  parser.add_argument('--variant', metavar='V', help='row of Table 1, where names and file name do not tell')
  parser.add_argument('--batch-norm', choices=('abs', 'plain'), help='effective scale: |weight| + eps, or the weight')
  parser.add_argument('--normalization', choices=('released', 'torchvision', 'efficientnet'),
                      help='what the input looks like (default: by the kind of file)')
  parser.add_argument('--overwrite', action='store_true')


def _convert(a: argparse.Namespace) -> None:
  from adnet_jax import convert
  from adnet_jax import weights

  convert.convert(a.input, a.output, variant=a.variant, batch_norm=a.batch_norm, normalization=a.normalization,
                  overwrite=a.overwrite)
  print(weights.describe(a.output))


def _add_info(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('model', nargs='?', metavar='MODEL', help='name or file; nothing: the known models')


def _info(a: argparse.Namespace) -> None:
  from adnet_jax import weights

  if a.model is not None:
    print(weights.describe(weights.find_model(a.model)))
    return
  for path in weights.known_models().values():
    print(weights.describe(path), end='\n\n')


def _doctor(_: argparse.Namespace) -> None:
  from adnet_jax import environment

  print(environment.report())


if __name__ == '__main__':
  sys.exit(main())
