"""Tiny data sets in the layouts that they come in: what tests of reading and preparing share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH = 24, 40
WHITE, CYAN, RED = 0xFFFFFF, 0x00FFFF, 0xFF0000


def frame(number: int, seed: int = 0) -> np.ndarray:
  """(h, w, 3) uint8: noise."""
  return np.random.default_rng((seed, number)).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)


def regions(number: int, count: int = 3) -> np.ndarray:
  """(h, w) uint8: region 0 around boxes of 1, 2, ... that move to the right."""
  labels = np.zeros((HEIGHT, WIDTH), np.uint8)
  for region in range(1, count):
    labels[2 + 8 * (region - 1) : 8 * region, 3 + number : 10 + number] = region
  return labels


def definition(
  name: str, scales: Sequence[int], labelled: Sequence[int], total: int, ending: str = '_gt.ppm', digits: int = 2
) -> str:
  """The text of a Def.dat; frames count from 0 and are called NAME_01, NAME_02, ..."""
  lines = ['Ground truth definition file; do not change!', '', 'Total number of regions:', str(len(scales))]
  for region, scale in enumerate(scales):
    lines += [f'Scale of region {region}:', str(scale)]
  lines += ['', 'Confusion penality matrix:']
  lines += [' '.join('0' if i == j else '1' for j in range(len(scales))) + ' ' for i in range(len(scales))]
  lines += ['', 'Total number of frames in this shot:', str(total)]
  lines += ['Total number of labeled frames for this shot:', str(len(labelled))]
  for number in labelled:
    stem = f'{name}_{number + 1:0{digits}d}'
    lines += ['Frame number:', str(number), 'File name:', stem + ending, 'Input file name:', f'{stem}.ppm']
  return '\n'.join(lines) + '\n'


def write_fbms(
  folder: Path, scales: Sequence[int] = (WHITE, CYAN, RED), labelled: Sequence[int] = (0, 2, 4), total: int = 5
) -> Path:
  """A sequence of FBMS-59: colours, certainty less than one at the borders of regions; Def.dat in GroundTruth."""
  truth = folder / 'GroundTruth'
  truth.mkdir(parents=True)
  for number in range(total):
    cv2.imwrite(str(folder / f'{folder.name}_{number + 1:02d}.jpg'), frame(number))
  for number in labelled:
    labels = regions(number, len(scales))
    codes = np.array(scales)[labels]
    colours = np.stack([codes & 255, codes >> 8 & 255, codes >> 16], -1).astype(np.uint8)  # BGR, as OpenCV has it
    stem = truth / f'{folder.name}_{number + 1:02d}_gt'
    cv2.imwrite(f'{stem}.ppm', colours)
    certain = np.where(cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0, 102, 255).astype(np.uint8)
    cv2.imwrite(f'{stem}.pgm', certain)
  (truth / f'{folder.name}Def.dat').write_text(definition(folder.name, scales, labelled, total))
  return folder


def write_bms(folder: Path, scales: Sequence[int] = (0, 255, 204), labelled: Sequence[int] = (0, 3)) -> Path:
  """A sequence of the older layout: grey values, Def.dat beside the frames."""
  (folder / 'GroundTruth').mkdir(parents=True)
  for number in range(4):
    cv2.imwrite(str(folder / f'{folder.name}_{number + 1:02d}.jpg'), frame(number))
  for number in labelled:
    grey = np.array(scales, np.uint8)[regions(number, len(scales))]
    cv2.imwrite(str(folder / 'GroundTruth' / f'{folder.name}_{number + 1:02d}.pgm'), grey)
  (folder / f'{folder.name}Def.dat').write_text(definition(folder.name, scales, labelled, 4, '.pgm'))
  return folder


def write_visal(root: Path, frames: int = 6) -> Path:
  """Two clips as ViSal is published: the masks of `horse` are called horse2_..., those of `horse2` horse3_..."""
  (root / 'GroundTruth').mkdir(parents=True)
  for k, (clip, prefix) in enumerate({'horse': 'horse2_frame', 'horse2': 'horse3_frame'}.items()):
    (root / 'ViSal' / clip).mkdir(parents=True)
    for number in range(1, frames + 1):
      cv2.imwrite(str(root / 'ViSal' / clip / f'{prefix}{number:04d}.bmp'), frame(number, k))
    for number in range(1, frames + 1, 5):
      mask = cv2.cvtColor(255 * (regions(number + k) > 0).astype(np.uint8), cv2.COLOR_GRAY2BGR)
      mask[0, :3] = (7, 9, 8), (128, 128, 129), (131, 129, 130)  # soft edges, slightly coloured
      cv2.imwrite(str(root / 'GroundTruth' / f'{prefix}{number:04d}.bmp'), mask)
  return root


def write_davis(
  root: Path, clips: Sequence[str] = ('bear', 'camel'), frames: int = 4, masks: int | None = None
) -> Path:
  """Clips in DAVIS' layout; `masks`: number of annotations, where it is not that of frames."""
  for k, clip in enumerate(clips):
    for kind in ('JPEGImages', 'Annotations'):
      (root / kind / '480p' / clip).mkdir(parents=True)
    for number in range(frames):
      cv2.imwrite(str(root / 'JPEGImages' / '480p' / clip / f'{number:05d}.jpg'), frame(number, k))
    for number in range(frames if masks is None else masks):
      mask = 255 * (regions(number + k) > 0).astype(np.uint8)
      cv2.imwrite(str(root / 'Annotations' / '480p' / clip / f'{number:05d}.png'), mask)
  return root
