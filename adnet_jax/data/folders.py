"""Clips and masks in the folders that data sets other than DAVIS and FBMS come in; knows no data set.

Read are, with names in any case and `frames` and `masks` standing for those of FRAMES and MASKS:

  frames/CLIP/NAME.jpg, masks/CLIP/NAME.png     CLIP/frames/NAME.jpg, CLIP/masks/NAME.png
  frames/CLIP/NAME.jpg, masks/NAME.png          CLIP/NAME.jpg, CLIP/masks/NAME.png
  CLIP/NAME.jpg, masks/NAME.png                 CLIP/NAME.jpg, masks/CLIP/NAME.png
  CLIP/NAME.jpg                                 NAME.jpg

A mask belongs to the frame that has its name: in one folder of masks for all clips, the names of frames must differ.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from adnet_jax.data.clip import first_ten, in_order
from adnet_jax.errors import DataError
from adnet_jax.masks import list_masks, natural_key

FRAMES = ('jpegimages', 'visal', 'frame', 'frames', 'imgs', 'img', 'images', 'image')
MASKS = ('annotations', 'groundtruth', 'ground-truth', 'ground_truth', 'gt', 'gt_object_level', 'masks', 'mask')


class Files(NamedTuple):
  """A clip's frames in order, and its masks by their frames' stems."""

  frames: list[Path]
  masks: dict[str, Path]


def find_clips(root: Path) -> dict[str, Files]:
  """Clips below `root` by name, in natural order; none where no layout fits.

  Raises:
    DataError: masks that belong to no frame, or to frames of several clips.
  """
  root = Path(root)
  if not root.is_dir():
    return {}
  masks = _inside(root, MASKS)
  top = _inside(root, FRAMES)
  if top is None or not any(_clip_folders(top)):
    top = root
  found = {folder.name: _clip(folder) for folder in _clip_folders(top) if folder != masks}
  if not found:
    own = _clip(root)
    return {root.resolve().name: own} if own.frames else {}
  if masks is not None:
    _assign(found, masks)
  return found


def _clip_folders(top: Path) -> Iterator[Path]:
  for folder in sorted((path for path in top.iterdir() if path.is_dir()), key=lambda path: natural_key(path.name)):
    if not folder.name.startswith('.') and _clip(folder).frames:
      yield folder


def _clip(folder: Path) -> Files:
  frames, masks = _inside(folder, FRAMES), _inside(folder, MASKS)
  files = in_order((folder if frames is None else frames).iterdir())
  if masks is None or not files:
    return Files(files, {})
  found = list_masks(masks)
  _check(found, {path.stem for path in files}, masks)
  return Files(files, found)


def _assign(clips: Mapping[str, Files], masks: Path) -> None:
  flat = list_masks(masks)
  names = collections.Counter(path.stem for files in clips.values() for path in files.frames)
  _check(flat, set(names), masks)
  several = [stem for stem in flat if names[stem] > 1]
  if several:
    raise DataError(
      f'masks that belong to frames of several clips: {first_ten(several)}', masks, 'give each clip a folder of masks'
    )
  for name, files in clips.items():
    own = list_masks(masks / name) if (masks / name).is_dir() else {}
    stems = {path.stem for path in files.frames}
    _check(own, stems, masks / name)
    files.masks.update(own or {stem: path for stem, path in flat.items() if stem in stems})


def _check(masks: Mapping[str, Path], stems: set[str], where: Path) -> None:
  lost = [path.name for stem, path in masks.items() if stem not in stems]
  if lost:
    raise DataError(f'masks that have no frame: {first_ten(lost)}', where, 'masks are named as their frames')


def _inside(folder: Path, names: tuple[str, ...]) -> Path | None:
  present = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
  return next((present[name] for name in names if name in present), None)
