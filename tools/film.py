r"""Cuts clips of DAVIS together to a film, and scores its masks against those of the clips segmented one by one.

  python tools/film.py --davis DAVIS --clips dog,cows,libby,camel,parkour --frames 24

The film is H.264 at 25 frames a second, nearly lossless. J is the mean over a clip's frames, each clip counts the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from adnet_jax import masks as mask_files
from adnet_jax import pipeline, video
from adnet_jax.errors import DataError
from adnet_jax.metrics import region
from adnet_jax.segmenter import Segmenter
from adnet_jax.writers import import_av

QUANTIZER = 6  # of 51; 0 is lossless


def main(argv: list[str] | None = None) -> dict[str, Any]:
  """Prints a table of J by clip and way, and writes it as JSON where asked to; returns it."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--davis', type=Path, required=True, metavar='DIR', help='with JPEGImages/480p, Annotations/480p')
  parser.add_argument('--clips', required=True, type=lambda text: text.split(','), metavar='A,B,...')
  parser.add_argument('--frames', type=int, metavar='N', help="of each clip's beginning (default: all)")
  parser.add_argument('--model', metavar='NAME|FILE')
  parser.add_argument('--anchors', default='auto,first', type=lambda text: text.split(','), metavar='A,B,...')
  parser.add_argument('--keep', type=Path, metavar='DIR', help='keep the film and all masks there')
  parser.add_argument('-o', '--output', type=Path, metavar='FILE.json')
  arguments = parser.parse_args(argv)
  segmenter = Segmenter.from_pretrained(*([arguments.model] if arguments.model else []))
  with tempfile.TemporaryDirectory() as temporary:
    folder = arguments.keep or Path(temporary)
    result = compare(segmenter, arguments.davis, arguments.clips, arguments.frames, arguments.anchors, folder)
  print(table(result))
  if arguments.output is not None:
    arguments.output.write_text(json.dumps(result, indent=1) + '\n')
  return result


def compare(
  segmenter: Segmenter, davis: Path, clips: Sequence[str], count: int | None, choices: Sequence[str], folder: Path
) -> dict[str, Any]:
  """Makes the film, segments it and its clips; masks go below `folder`.

  Returns:
    {'clips': {clip: {'one by one': J, 'film, auto': J, ...}}, 'mean': {...}, 'cuts': {...}}: J in [0, 1]; `cuts` are
    where the film's clips begin, and by way the frames at which shots were found to.

  Raises:
    DataError: frames or annotations that cannot be read; clips of different sizes.
  """
  frames = {clip: _files(davis / 'JPEGImages' / '480p' / clip, count) for clip in clips}
  truths = [davis / 'Annotations' / '480p' / clip / f'{path.stem}.png' for clip in clips for path in frames[clip]]
  outputs = pipeline.Outputs(overlay=False, overwrite=True)
  masks: dict[str, list[Path]] = {'one by one': []}
  for clip in clips:
    end = len(frames[clip])
    source = video.open_source(davis / 'JPEGImages' / '480p' / clip, end=end)
    pipeline.segment_clip(segmenter, source, folder / 'clips' / clip, outputs)
    masks['one by one'] += [folder / 'clips' / clip / 'masks' / f'{path.stem}.png' for path in frames[clip]]
  film = write_film(folder / 'film.mp4', [path for clip in clips for path in frames[clip]])
  starts = np.cumsum([0, *(len(frames[clip]) for clip in clips)])
  cuts: dict[str, list[int]] = {'made': starts[:-1].tolist()}
  for choice in choices:
    out = folder / f'film-{choice}'
    summary = pipeline.segment_clip(segmenter, video.open_source(film), out, outputs, anchor=choice)
    masks[f'film, {choice}'] = [out / 'masks' / f'{number:05d}.png' for number in range(len(truths))]
    cuts[f'film, {choice}'] = [shot['start'] for shot in summary['shots']]
  values = {
    way: [region.jaccard(mask_files.read_mask(one), mask_files.read_mask(truth)) for one, truth in zip(paths, truths)]
    for way, paths in masks.items()
  }
  by_clip = {
    clip: {way: float(np.mean(all_[starts[k] : starts[k + 1]])) for way, all_ in values.items()}
    for k, clip in enumerate(clips)
  }
  mean = {way: float(np.mean([scores[way] for scores in by_clip.values()])) for way in masks}
  return {'clips': by_clip, 'mean': mean, 'cuts': cuts}


def write_film(path: Path, images: Sequence[Path]) -> Path:
  """H.264 of image files of one size (even sides), 25 frames a second."""
  av = import_av()
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=25, options={'crf': str(QUANTIZER), 'preset': 'veryfast'})
    for number, name in enumerate(images):
      image = video.read_image(name)
      if not number:
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = 'yuv420p'
      elif image.shape[:2] != (stream.height, stream.width):
        image = cv2.resize(image, (stream.width, stream.height), interpolation=cv2.INTER_AREA)
      frame = av.VideoFrame.from_ndarray(image, 'rgb24')
      frame.pts, frame.time_base = number, Fraction(1, 25)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def table(result: dict[str, Any]) -> str:
  """Rows of Markdown."""
  ways = list(result['mean'])
  rows = [['clip', *ways], ['---'] * (len(ways) + 1)]
  for clip, scores in [*result['clips'].items(), ('mean', result['mean'])]:
    rows.append([clip, *(f'{scores[way]:.3f}' for way in ways)])
  lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
  return '\n'.join([*lines, *(f'{way}: shots begin at {numbers}' for way, numbers in result['cuts'].items())])


def _files(folder: Path, count: int | None) -> list[Path]:
  files = sorted(folder.glob('*.jpg'))[:count]
  if not files:
    raise DataError('no frames', folder, 'name a clip of DAVIS')
  return files


if __name__ == '__main__':
  main()
