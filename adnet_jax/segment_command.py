"""`adnet segment`: its options, and from them to the library; imports nothing heavy before it is run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adnet_jax import DEFAULT_MODEL, options
from adnet_jax.errors import UsageError
from adnet_jax.outputs import options as output_options

if TYPE_CHECKING:
  from adnet_jax.pipeline import Outputs

SAMPLE = Path(__file__).parent / 'assets' / 'sample'
SAMPLE_CLIP = 'astronaut'


def add_options(parser: argparse.ArgumentParser) -> None:
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
  add(
    '--scales',
    type=options.scales,
    default=(1.0,),
    metavar='.75,1,1.5',
    help="factors of the network's size (default: 1)",
  )
  add('--mirror', action='store_true', help='average mirrored frames in')
  add('--size', type=options.size, metavar='WxH', help="network's size, aspect not kept (default: the model's)")
  add('--threshold', type=options.probability, metavar='P', help='probability above which is foreground (default: .5)')
  add(
    '--refine',
    type=options.reach,
    metavar='N',
    help="refine along edges that are up to N pixels of the network's input away, 0: not at all (default: the model's)",
  )
  add('--batch', type=options.natural, metavar='N', help='frames at a time (default: by size and device)')
  add('--device', choices=('cpu', 'gpu', 'tpu'), help='default: what JAX prefers')
  add('--overwrite', action='store_true', help='replace earlier results')
  add('--resume', action='store_true', help='go on at the first missing mask')
  add('--skip-bad', action='store_true', help='leave out frames that cannot be read')
  add('--start', type=options.whole, metavar='N', help='first frame, from 0')
  add('--end', type=options.natural, metavar='N', help='frame before which to stop')
  add('--every', type=options.natural, default=1, metavar='N', help='take every Nth frame')
  add(
    '--anchor',
    type=options.anchor,
    metavar='first|auto|best|auto-best|N',
    help='anchor frame, from 0 (default: the first one read); auto: the first of each shot, best: the clearest',
  )
  add('--reanchor', type=options.natural, metavar='N', help='take a new anchor every N frames of a shot')
  add('--min-area', type=options.probability, default=0.0, metavar='P', help='drop pieces below this share of a frame')
  add('--smooth', type=options.window, default=1, metavar='N', help='mend pieces that flicker within N frames, odd')
  add('--object', type=options.track, metavar='largest|all|N', help='keep one object of a shot: its Nth largest')
  add(
    '--still',
    type=options.steps,
    metavar='T',
    help='a frame takes the mask before where nothing changed by more, of 255',
  )
  add('--cache', type=Path, metavar='DIR', help="where compiled programs are kept (default: the user's cache folder)")
  add('--no-cache', action='store_true', help='do not keep compiled programs')
  add('--engine', choices=('plain', 'ray'), help='who does a manifest: this process (the default), or Ray actors')
  add('--workers', type=options.natural, metavar='N', help='Ray actors (default: one a device, on CPUs one a machine)')
  add('--address', metavar='HOST:PORT', help='of a Ray cluster, or auto (default: one is started on this machine)')
  output_options.add_options(parser)


def outputs_of(a: argparse.Namespace) -> Outputs:
  """What the options want written."""
  from adnet_jax.pipeline import Outputs

  return Outputs(resume=a.resume, overwrite=a.overwrite, **output_options.written_by(a))


def cache_of(a: argparse.Namespace) -> bool | Path:
  """`cache` of `environment.set_up`."""
  return a.cache if a.cache is not None and not a.no_cache else not a.no_cache


def treatment_of(a: argparse.Namespace) -> dict[str, Any]:
  """Further arguments of `pipeline.segment_clip`, the same for all clips, that the options ask for."""
  from adnet_jax import shots
  from adnet_jax.cleaning import Cleaning

  if a.anchor in ('auto', 'auto-best'):
    shots.check_installed()
  cleaning = Cleaning(a.min_area, a.smooth, a.object)
  if a.object is not None and a.resume:
    raise UsageError('one object needs all masks of its clip', '--object, --resume', 'give --overwrite instead')
  return {
    'anchor': a.anchor,
    'reanchor': a.reanchor,
    'still': a.still,
    'cleaning': None if cleaning == Cleaning() else cleaning,
  }


def run(a: argparse.Namespace) -> None:
  from adnet_jax import manifest, pipeline, postprocess, video, weights

  if a.overwrite and a.resume:
    raise UsageError('--overwrite and --resume exclude each other', '--overwrite, --resume', 'give one')
  if a.protocol == 'released' and a.threshold is not None:
    raise UsageError('the protocol released has a threshold of its own', '--protocol, --threshold', 'leave out one')
  if a.protocol == 'released' and a.refine:
    raise UsageError('the protocol released has no refinement', '--protocol, --refine', 'leave out one')
  output_options.check_submission(a)
  threshold = postprocess.PAPER_THRESHOLD if a.threshold is None else a.threshold
  if manifest.is_manifest(a.inputs) or a.engine or a.workers or a.address:
    from adnet_jax.fleet import command

    command.segment(a, threshold)
    output_options.write_submission(a)
    return
  inputs = a.inputs or [SAMPLE / 'JPEGImages' / '480p' / SAMPLE_CLIP]
  weights.check_is_file(weights.find_model(a.model))
  sources = video.resolve_inputs(inputs, start=a.start, end=a.end, every=a.every, skip_bad=a.skip_bad)
  video.check_output(sources, a.output)
  outputs, treatment = outputs_of(a), treatment_of(a)
  folders = [a.output / source.name if len(sources) > 1 else a.output for source in sources]
  for folder in folders:
    pipeline.check_free(folder, outputs)

  # JAX only after everything cheap has been checked.
  from adnet_jax import environment
  from adnet_jax import segmenter as segmenter_lib

  environment.keep_memory()
  environment.set_up(a.device, cache=cache_of(a))
  segmenter = segmenter_lib.Segmenter.from_pretrained(
    a.model,
    a.protocol,
    a.scales,
    a.mirror,
    a.size,
    threshold=threshold,
    batch=a.batch,
    refine=a.refine,
    device=a.device,
  )
  for source, folder in zip(sources, folders, strict=True):
    # A bar for each clip: while it is drawn, nothing else is printed.
    with environment.progress_bar(source.name, source.length) as advance:
      summary = pipeline.segment_clip(
        segmenter, source, folder, outputs, model_name=str(a.model), progress=advance, **treatment
      )
    for warning in summary['warnings']:
      print(f'warning: {source.name}: {warning}', file=sys.stderr)
    width, height = summary['size']
    seconds = summary['seconds']['total']
    print(
      f'{source.name}: {summary["frames"]} masks in {folder / "masks"}, {seconds:.1f} s, limited by '
      f'{summary["limited_by"]}, network at {width}x{height}'
    )
    for form in outputs.forms:
      for path in form.files(folder)[:1]:
        print(f'{source.name}: {form.stage} in {path if path.parent == folder else path.parent}')
    if outputs.overlay and (folder / 'overlay.mp4').exists():
      print(f'{source.name}: overlay in {folder / "overlay.mp4"}')
  output_options.write_submission(a, {source.name: folder for source, folder in zip(sources, folders, strict=True)})
  if not a.inputs:
    _score_sample(folders[0])


def _score_sample(folder: Path) -> None:
  """J and F of the bundled clip, whose true masks are bundled too."""
  from adnet_jax import evaluate

  scores = evaluate.score_masks(folder / 'masks', SAMPLE / 'Annotations' / '480p' / SAMPLE_CLIP, frames='given')
  j, f = (scores['dataset'][metric]['mean'] for metric in ('J', 'F'))
  if j is not None:
    print(f'bundled clip against its true masks (rule {scores["rule"]}): J {j:.3f}, F {f:.3f}')
