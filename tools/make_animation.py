r"""Makes the moving picture of the README: frames of a clip with their masks drawn in, as an animated WebP.

  adnet segment -o adnet-output --overwrite
  python tools/make_animation.py adnet_jax/assets/sample/JPEGImages/480p/astronaut adnet-output/masks \
      -o docs/sample.webp
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from adnet_jax import masks as mask_files
from adnet_jax import video


def main(argv: list[str] | None = None) -> None:
  """Writes the animation: each frame beside itself with its foreground tinted and outlined."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('frames', type=Path, help='folder of frames')
  parser.add_argument('masks', type=Path, help='folder of masks of the same names')
  parser.add_argument('-o', '--output', type=Path, required=True, metavar='FILE.webp')
  parser.add_argument('--height', type=int, default=216, help='of the picture, in pixels')
  parser.add_argument('--rate', type=float, default=12, help='frames per second')
  parser.add_argument('--quality', type=int, default=70)
  arguments = parser.parse_args(argv)
  pictures = []
  for frame in video.open_source(arguments.frames):
    mask = mask_files.read_mask(arguments.masks / f'{frame.name}.png')
    pair = np.hstack([frame.image, video.draw_overlay(frame.image, mask)])
    width = round(pair.shape[1] * arguments.height / pair.shape[0])
    pictures.append(Image.fromarray(cv2.resize(pair, (width, arguments.height), interpolation=cv2.INTER_AREA)))
  pictures[0].save(
    arguments.output,
    save_all=True,
    append_images=pictures[1:],
    duration=round(1000 / arguments.rate),
    loop=0,
    quality=arguments.quality,
    method=6,
  )
  print(f'{arguments.output}: {len(pictures)} frames, {arguments.output.stat().st_size / 1e6:.2f} MB')


if __name__ == '__main__':
  main()
