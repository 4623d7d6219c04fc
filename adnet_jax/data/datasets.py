"""Clips and photographs with their masks, whatever data set they are of and however it is stored; no augmentation.

`data.root` is DAVIS' layout, FBMS-59 or BMS-26, ViSal, a folder of one's own, or any of these prepared (prepared.py).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from absl import logging

from adnet_jax import errors, images
from adnet_jax.data import davis, fbms, plain, prepared, visal
from adnet_jax.data.clip import Annotation, Clip, Split, first_ten, load_mask
from adnet_jax.data.davis import annotations_root, frames_root
from adnet_jax.images import File

__all__ = [
  'KINDS', 'Annotation', 'Clip', 'Photograph', 'annotates_some', 'annotations_root', 'check_pairs', 'frames_root',
  'kind_of', 'read_clips', 'read_pair', 'read_photographs', 'split', 'truth_of',
]  # fmt: skip


class Kind(Protocol):
  """What the module of a data set offers."""

  @property
  def SPLITS(self) -> tuple[str, ...]: ...

  def split(self, root: Path, name: str) -> Split: ...

  def read(self, root: Path, names: list[str]) -> list[Clip]: ...

  def truths(self, root: Path) -> Mapping[str, Mapping[str, File | Annotation]]: ...


KINDS: Mapping[str, Kind] = {'davis2016': davis, 'fbms59': fbms, 'visal': visal, 'folder': plain}


@dataclasses.dataclass(frozen=True)
class Photograph:
  """A still image with a mask of its foreground."""

  name: str
  image: Path
  mask: Path


def kind_of(root: Path) -> str | None:
  """Which of KINDS lies there raw, or 'prepared'; None where nothing is recognised, as in a folder of masks alone."""
  tests = {
    'prepared': prepared.is_prepared,
    'davis2016': davis.is_davis,
    'fbms59': fbms.find_sequences,
    'visal': visal.is_visal,
    'folder': plain.has_masks,
  }
  return next((kind for kind, test in tests.items() if test(root)), None)


def _kind(root: Path) -> str:
  # The errors of DAVIS' layout say what was expected where nothing is recognised.
  return kind_of(root) or 'davis2016'


def split(root: Path, name: str) -> list[str]:
  """Names of the clips of 'train' or 'val' that lie under `root`; what is left out is said.

  'val' is the test split of FBMS-59 and of ViSal. A folder of one's own belongs to both, and ViSal has no other split.

  Raises:
    DataError: another layout, with what was found; clips that are listed but not on disk, all named (faults 57, 59).
  """
  kind = _kind(root)
  original = prepared.original_kind(root) if kind == 'prepared' else kind
  splits = KINDS[original].SPLITS
  wanted = name if name in splits else splits[-1]
  if (original, name) == ('visal', 'train'):
    logging.warning('%s: ViSal has no training split, its test clips are taken', root)
  names, warnings = prepared.split(root, wanted) if kind == 'prepared' else KINDS[kind].split(root, wanted)
  for warning in warnings:
    logging.warning('%s', warning)
  return names


def read_clips(root: Path, names: Sequence[str], *, need_masks: bool) -> list[Clip]:
  """Lists the named clips; DataError where one has no frames, or no masks although `need_masks`."""
  kind = _kind(root)
  if kind == 'davis2016':
    clips = davis.read(root, list(names), need_masks=need_masks)
  else:
    clips = prepared.read(root, list(names)) if kind == 'prepared' else KINDS[kind].read(root, list(names))
  if not clips:
    raise errors.DataError('no clips', root, 'the data set or the split is empty')
  bare = [clip.name for clip in clips if need_masks and not clip.annotated]
  if bare:
    raise errors.DataError(f'clips without masks: {first_ten(bare)}', root, 'masks are named as their frames')
  return clips


def truth_of(root: Path, name: str | None = None) -> dict[str, dict[str, File | Annotation]]:
  """Ground truth for scoring: {clip: {frame stem: source}} of a split, or of everything; frames need not be there.

  Args:
    root: a data set, raw or prepared, of which `kind_of` tells the kind.
    name: 'train' or 'val'; None for all clips.

  Returns:
    Sources that `clip.load_mask` reads; of FBMS they have `regions()` and `certainty()` too.
  """
  kind = _kind(root)
  found: Mapping = prepared.truths(root) if kind == 'prepared' else KINDS[kind].truths(root)
  names = list(found) if name is None else split(root, name)
  return {clip: dict(found[clip]) for clip in names if clip in found}


def annotates_some(source: File | Annotation) -> bool:
  """Whether this is the truth of a data set that annotates only some frames by design, as FBMS-59 and ViSal do."""
  return isinstance(source, fbms.Truth | visal.Truth)


def read_photographs(root: Path) -> list[Photograph]:
  """Lists ROOT/images/NAME.* with ROOT/masks/NAME.png; DataError names photographs without a mask."""
  folder, masks_folder = Path(root) / 'images', Path(root) / 'masks'
  if not folder.is_dir() or not masks_folder.is_dir():
    raise errors.DataError('no images/ and masks/ folders', root, 'data.stills is the folder that holds both')
  photographs = [
    Photograph(path.stem, path, masks_folder / f'{path.stem}.png')
    for path in sorted(folder.iterdir())
    if path.suffix.lower() in images.IMAGE_ENDINGS
  ]
  lost = [photograph.name for photograph in photographs if not photograph.mask.is_file()]
  if lost:
    raise errors.DataError(f'photographs without a mask: {first_ten(lost)}', masks_folder, 'add masks/NAME.png')
  if not photographs:
    raise errors.DataError('no photographs', folder, 'expected images/NAME.jpg')
  return photographs


def read_pair(image: File, mask: File | Annotation) -> tuple[np.ndarray, np.ndarray]:
  """A frame and its mask: (h, w, 3) uint8 RGB and (h, w) uint8 of 0 and 1; DataError where their sizes differ."""
  pixels = images.read_image(image)
  foreground = load_mask(mask).mask()
  _check_sizes(pixels.shape[:2], foreground.shape, mask)
  return pixels, foreground.astype(np.uint8)


def check_pair(image: File, mask: File | Annotation) -> bool:
  """Decodes a frame's mask and header; raises as `read_pair`. Returns whether several objects were merged."""
  found = load_mask(mask)
  _check_sizes(images.read_shape(image), found.mask().shape, mask)
  return found.kind == 'labels' and not found.binary


def _check_sizes(frame: tuple[int, ...], mask: tuple[int, ...], where: object) -> None:
  if frame != mask:
    what = f'frame is {frame[1]}x{frame[0]} but its mask is {mask[1]}x{mask[0]}'
    raise errors.DataError(what, where, 'masks have the size of their frames')


def check_pairs(clips: Sequence[Clip], photographs: Sequence[Photograph] = ()) -> None:
  """Decodes every mask and the header of every frame, so that training need not meet a bad one hours later.

  Masks of several objects are merged, which is said once (fault 58).

  Raises:
    DataError: masks that are missing, not binary or of another size than their frame, the first ten named (fault 24).
  """
  pairs = [(clip, *pair) for clip in clips for pair in zip(clip.frames, clip.masks, strict=True)]
  lost = [str(frame) for clip, frame, mask in pairs if mask is None and not clip.sparse]
  if lost:
    raise errors.DataError(
      f'{len(lost)} training frames without a mask: {first_ten(lost)}', None, 'add the masks, or take the frames away'
    )
  present = [(frame, mask) for _, frame, mask in pairs if mask is not None]
  present += [(photograph.image, photograph.mask) for photograph in photographs]
  with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
    outcomes = list(pool.map(lambda pair: _outcome(*pair), present))
  wrong = [outcome for outcome in outcomes if isinstance(outcome, str)]
  if wrong:
    raise errors.DataError(
      f'{len(wrong)} training frames or masks cannot be used: {first_ten(wrong, "; ")}',
      None,
      'mend or leave them out: masks hold two values and have the size of their frames',
    )
  merged = [str(mask) for (_, mask), outcome in zip(present, outcomes, strict=True) if outcome is True]
  if merged:
    logging.warning('masks with more than two values, as %s: all but 0 merged to one foreground', merged[0])


def _outcome(frame: File, mask: File | Annotation) -> str | bool:
  """What is wrong with a pair, or else whether its mask is of several objects."""
  try:
    return check_pair(frame, mask)
  except errors.DataError as error:
    return f'{error.where}, {error.what}'
