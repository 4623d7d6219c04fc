r"""Makes the pictures of docs/failure_cases.md: short clips that the method fails on, with the masks of a model.

Clips are made of the bundled one and of photographs in the public domain or CC0, as scikit-image distributes them.
Prints the share of foreground and J of each picture, which the page quotes. The network sees what it does by default.

  python tools/make_failure_cases.py -o docs/failure_cases
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package as it stands here

from adnet_jax import DEFAULT_MODEL, images, video  # noqa: E402
from adnet_jax import masks as mask_files  # noqa: E402

SAMPLE = ROOT / 'adnet_jax' / 'assets' / 'sample'
WIDTH, HEIGHT = 480, 270
SHOWN = (2, 14, 26, 38)  # frames of the bundled clip
CELL = (240, 135)
QUALITY = 72


class Case(NamedTuple):
  """A clip to fail on: what the anchor is, (h, w, 3) uint8 RGB frames, and true masks, None where nothing is true."""

  anchor: np.ndarray
  frames: list[np.ndarray]
  truths: list[np.ndarray] | None


def sample(number: int) -> tuple[np.ndarray, np.ndarray]:
  """Frame and mask of the bundled clip."""
  image = images.read_image(SAMPLE / 'JPEGImages' / '480p' / 'astronaut' / f'{number:05d}.jpg')
  return image, mask_files.read_mask(SAMPLE / 'Annotations' / '480p' / 'astronaut' / f'{number:05d}.png')


def pan(photograph: np.ndarray, progress: float, zoom: float = 1.25) -> np.ndarray:
  """A frame of a hand-held look at a photograph that moves to the right."""
  scale = zoom * max(WIDTH / photograph.shape[1], HEIGHT / photograph.shape[0])
  room = scale * photograph.shape[1] - WIDTH, scale * photograph.shape[0] - HEIGHT
  shift = -room[0] * (0.2 + 0.6 * progress), -room[1] * (0.5 + 0.1 * np.sin(9 * progress))
  matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
  return cv2.warpAffine(photograph, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_AREA)


def paste(
  backdrop: np.ndarray, image: np.ndarray, mask: np.ndarray, matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The foreground of a frame, moved by a 2x3 matrix, before another backdrop: frame and mask."""
  alpha = cv2.erode(mask.astype(np.float32), np.ones((3, 3)))  # the old backdrop shines through an outline
  flags = cv2.INTER_AREA if matrix[0, 0] < 1 else cv2.INTER_LINEAR
  alpha = cv2.GaussianBlur(cv2.warpAffine(alpha, matrix, (WIDTH, HEIGHT), flags=flags), (0, 0), 0.7)[..., None]
  moved = cv2.warpAffine(image, matrix, (WIDTH, HEIGHT), flags=flags)
  return (alpha * moved + (1 - alpha) * backdrop).astype(np.uint8), alpha[..., 0] >= 0.5


def cases() -> Iterator[tuple[str, Case]]:
  """Every case, by the name of its picture."""
  from skimage import data

  rocket = np.minimum(1.35 * data.rocket().astype(float), 255).astype(np.uint8)
  pads = [pan(rocket, k / 3) for k in range(4)]
  clip, truths = map(list, zip(*(sample(k) for k in SHOWN), strict=True))
  first = sample(0)[0]
  yield 'bundled', Case(first, clip, truths)
  yield 'empty_anchor', Case(pan(rocket, 0.1), clip, truths)
  yield 'nothing', Case(pads[0], pads, [np.zeros((HEIGHT, WIDTH), bool)] * 4)
  yield 'cut', Case(first, [clip[0], *(pan(data.coffee(), k / 2) for k in range(3))], None)
  yield 'fills_the_frame', Case(pan(data.chelsea(), 0), [pan(data.chelsea(), k / 3) for k in range(4)], None)

  def made(place: Callable[[np.ndarray, np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]) -> Case:
    frames, masks = zip(*(place(pads[k], *sample(SHOWN[k]), k) for k in range(4)), strict=True)
    anchor, _ = place(pads[0], *sample(0), 0)
    return Case(anchor, list(frames), list(masks))

  def small(pad, image, mask, k):
    return paste(pad, image, mask, np.array([[0.18, 0, 90 + 60 * k], [0, 0.18, 190.0]]))

  def twice(pad, image, mask, k):
    frame, one = paste(pad, image, mask, np.array([[0.8, 0, 120.0], [0, 0.8, 54]]))
    frame, other = paste(frame, image, mask, np.array([[-0.8, 0, 420.0 - 40 * k], [0, 0.8, 54]]))
    return frame, one & ~other

  yield 'small', made(small)
  yield 'two_of_them', made(twice)

  rng = np.random.default_rng(0)

  def night(image: np.ndarray) -> np.ndarray:
    light = (image / 255.0) ** 2.2 / 40
    light = np.maximum(light + rng.standard_normal(light.shape) * (0.03 * np.sqrt(light) + 0.001), 0)
    return (255 * np.clip(light, 0, 1) ** (1 / 2.2)).astype(np.uint8)

  yield 'night', Case(night(first), [night(image) for image in clip], truths)


def picture(case: Case, found: list[np.ndarray]) -> Image.Image:
  """Frames in a row, below them their masks drawn in, true outlines in white."""
  columns = []
  for k, (frame, mask) in enumerate(zip(case.frames, found, strict=True)):
    drawn = video.draw_overlay(frame, mask)
    if case.truths is not None:
      outlines, _ = cv2.findContours(case.truths[k].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
      cv2.drawContours(drawn, outlines, -1, (255, 255, 255), 2)
    columns.append(np.vstack([cv2.resize(image, CELL, interpolation=cv2.INTER_AREA) for image in (frame, drawn)]))
  return Image.fromarray(np.hstack(columns))


def score(mask: np.ndarray, truth: np.ndarray) -> float:
  union = (mask | truth).sum()
  return float((mask & truth).sum() / union) if union else 1.0


def main(argv: list[str] | None = None) -> None:
  """Writes the pictures and prints the numbers."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('-o', '--output', type=Path, required=True, metavar='DIR')
  parser.add_argument('--model', default=DEFAULT_MODEL)
  arguments = parser.parse_args(argv)
  import adnet_jax

  segmenter = adnet_jax.Segmenter.from_pretrained(arguments.model, batch=1)
  arguments.output.mkdir(parents=True, exist_ok=True)
  for name, case in cases():
    found = list(segmenter.segment(case.frames, anchor=case.anchor))
    picture(case, found).save(arguments.output / f'{name}.webp', quality=QUALITY, method=6)
    shares = ' '.join(f'{mask.mean():.2f}' for mask in found)
    j = ' '.join(f'{score(*pair):.2f}' for pair in zip(found, case.truths)) if case.truths else 'no truth'
    print(f'{name}: foreground {shares}; J {j}', flush=True)


if __name__ == '__main__':
  main()
