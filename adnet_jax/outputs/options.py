"""Options of `adnet segment` that say what is written, and from them to forms; imports nothing heavy before that."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adnet_jax.errors import UsageError

TEXTS = {
  'webm': 'cutout.webm, the foreground as a transparent video (VP9)',
  'prores': 'cutout.mov, the same for editors (ProRes 4444)',
  'cutouts': 'cutouts/NAME.png, the same as transparent pictures',
  'background': 'background.mp4, see --background',
  'comparison': 'comparison.mp4, frame and overlay side by side',
  'svg': 'outlines/NAME.svg',
  'outline': 'outline.svg, all outlines, which plays',
  'rle': 'detections.json, run lengths in COCO JSON',
}


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds them in a group of their own."""
  texts = '; '.join(f'{name}: {text}' for name, text in TEXTS.items())
  add = parser.add_argument_group('what is written beside masks/NAME.png, overlay.mp4 and summary.json').add_argument
  add('--also', metavar='FORM,...', default='', help=f'a list of: {texts}')
  add(
    '--background',
    metavar='blur|COLOUR|IMAGE',
    help='what background.mp4 has behind the foreground: the frame out of focus (the default), a colour such as green '
    "or '#00b140', or an image; gives background.mp4 without --also, too",
  )
  add('--heatmaps', action='store_true', help='heatmaps/NAME.png, 16-bit probabilities')
  add('--no-overlay', action='store_true', help='no overlay.mp4')
  add(
    '--mask-form',
    default='0-255',
    choices=('0-255', '0-1', 'palette', '1-bit'),
    help="values of the masks, or DAVIS's palette with index 1, or PNG of 1 bit (default: 0-255)",
  )
  add(
    '--davis',
    type=Path,
    metavar='DIR|FILE.zip',
    help='all clips as a DAVIS submission too: CLIP/NAME.png with palette, in a folder or an archive',
  )


def written_by(a: argparse.Namespace) -> dict[str, Any]:
  """Arguments of `pipeline.Outputs` that these options stand for.

  Raises:
    UsageError: an unknown form or colour, an extra that is not installed.
    DataError: the background's image cannot be read.
  """
  names = [name.strip() for name in a.also.split(',') if name.strip()]
  if a.background is not None:
    names.append('background')
  forms: tuple = ()
  if names:
    from adnet_jax.outputs import forms as forms_lib

    forms = forms_lib.make_forms(names, a.background or forms_lib.BLUR)
  return {'heatmaps': a.heatmaps, 'overlay': not a.no_overlay, 'mask_form': a.mask_form, 'forms': forms}


def check_submission(a: argparse.Namespace) -> None:
  """Refuses a submission that would replace another one, or be read as a clip; before anything is computed."""
  if a.davis is None:
    return
  from adnet_jax.outputs import davis

  if a.davis.absolute() == a.output.absolute():
    raise UsageError('the submission would lie among the other results', a.davis, 'choose another folder')
  davis.check_free(a.davis, a.overwrite or a.resume)


def write_submission(a: argparse.Namespace, clips: Mapping[str, Path] | None = None) -> None:
  """Writes what --davis asks for.

  Args:
    a: the options.
    clips: {name: folder with its results}; None: all such folders in the output folder.
  """
  if a.davis is None:
    return
  from adnet_jax.outputs import davis

  if clips is None:
    clips = {folder.name: folder for folder in sorted(a.output.iterdir()) if (folder / 'masks').is_dir()}
  davis.write_submission({name: folder / 'masks' for name, folder in clips.items()}, a.davis)
  print(f'DAVIS submission of {len(clips)} clip(s) in {a.davis}')
