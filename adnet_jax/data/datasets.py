"""Where clips, photographs and their masks lie on disk, and reading them; knows no augmentation and no JAX.

A data set is a folder in DAVIS' layout: JPEGImages/480p/CLIP/NNNNN.jpg and Annotations/480p/CLIP/NNNNN.png.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image

from adnet_jax import errors, images, masks
from adnet_jax.data import davis

# Values of EXIF's orientation tag that turn an image by a quarter.
_EXIF_ORIENTATION, _FIRST_QUARTER_TURN = 0x0112, 5


@dataclasses.dataclass(frozen=True)
class Clip:
  """A clip's frames in order, and the masks that exist for them.

  Attributes:
    name: the folder's name.
    frames: paths of all frames on disk.
    masks: path of each frame's mask, None where there is none.
  """

  name: str
  frames: tuple[Path, ...]
  masks: tuple[Path | None, ...]

  @property
  def annotated(self) -> list[int]:
    """Indices of the frames that have a mask."""
    return [index for index, mask in enumerate(self.masks) if mask is not None]


@dataclasses.dataclass(frozen=True)
class Photograph:
  """A still image with a mask of its foreground."""

  name: str
  image: Path
  mask: Path


def frames_root(root: Path) -> Path:
  """The folder of clips below a data set's root; DataError says what lies there instead (faults: 57)."""
  return _subfolder(root, 'JPEGImages')


def annotations_root(root: Path) -> Path:
  """The folder of clips' masks below a data set's root."""
  return _subfolder(root, 'Annotations')


def _subfolder(root: Path, name: str) -> Path:
  root = Path(root)
  if not root.is_dir():
    raise errors.DataError('data set folder not found', root, 'data.root is the folder that holds JPEGImages/480p')
  for candidate in (root / name / '480p', root / name):
    if candidate.is_dir() and any(path.is_dir() for path in candidate.iterdir()):
      return candidate
  found = ', '.join(sorted(path.name for path in root.iterdir())[:8]) or 'nothing'
  raise errors.DataError(
    f'no {name}/480p/CLIP folders',
    root,
    f'found {found}; expected JPEGImages/480p/CLIP/NNNNN.jpg and Annotations/480p/CLIP/NNNNN.png',
  )


def split(root: Path, name: str) -> list[str]:
  """Names of the clips of 'train' or 'val' that lie under `root`.

  The lists are those of ImageSets/480p where the data set has them, else DAVIS-2016's. A data set of which no clip
  is in either list is somebody's own: its clips belong to both.
  """
  present = sorted(path.name for path in frames_root(root).iterdir() if path.is_dir())
  listing = Path(root) / 'ImageSets' / '480p' / f'{name}.txt'
  if listing.is_file():
    wanted = list(_listed(listing))
    absent = [clip for clip in wanted if clip not in present]
    if absent:
      raise errors.DataError(
        f'clips in the list but not on disk: {", ".join(absent)}', listing, 'complete the data set or remove the list'
      )
    listed = [_listed(path) for path in listing.parent.glob('*.txt')]
    _say_unlisted(present, set().union(*listed), listing.parent)
    return wanted
  known = set(davis.TRAIN) | set(davis.VALIDATION)
  if not known & set(present):
    return present
  _say_unlisted(present, known, 'the official lists')
  wanted_names = davis.TRAIN if name == 'train' else davis.VALIDATION
  return [clip for clip in present if clip in wanted_names]


def _listed(listing: Path) -> dict[str, None]:
  """Clips of a list in their order; its lines are '/JPEGImages/480p/bear/00000.jpg /Annotations/...' or 'bear'."""
  firsts = (line.split()[0] for line in listing.read_text().splitlines() if line.strip())
  return dict.fromkeys(Path(first).parent.name if Path(first).suffix else first for first in firsts)


def _say_unlisted(present: Sequence[str], listed: set[str], where: object) -> None:
  unlisted = [clip for clip in present if clip not in listed]
  if unlisted:
    logging.warning('clips on disk but in no list of %s, left out: %s', where, ', '.join(unlisted))


def read_clips(root: Path, names: Sequence[str], *, need_masks: bool) -> list[Clip]:
  """Lists the named clips; DataError where one has no frames, or no masks although `need_masks`."""
  frames_folder, clips = frames_root(root), []
  masks_folder = annotations_root(root) if need_masks else None
  for name in names:
    frames = sorted(
      (path for path in (frames_folder / name).iterdir() if path.suffix.lower() in images.IMAGE_ENDINGS),
      key=lambda path: masks.natural_key(path.stem),
    )
    if not frames:
      raise errors.DataError('clip without frames', frames_folder / name, 'remove the folder or add its frames')
    found: dict[str, Path] = {}
    if masks_folder is not None and (masks_folder / name).is_dir():
      found = {path.stem: path for path in (masks_folder / name).iterdir() if path.suffix.lower() == '.png'}
    if need_masks and not any(frame.stem in found for frame in frames):
      raise errors.DataError(
        'clip without masks', (masks_folder or root) / name, 'masks are CLIP/NNNNN.png, named as their frames'
      )
    clips.append(Clip(name, tuple(frames), tuple(found.get(frame.stem) for frame in frames)))
  if not clips:
    raise errors.DataError('no clips', root, 'the data set or the split is empty')
  return clips


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
    raise errors.DataError(f'photographs without a mask: {", ".join(lost[:10])}', masks_folder, 'add masks/NAME.png')
  if not photographs:
    raise errors.DataError('no photographs', folder, 'expected images/NAME.jpg')
  return photographs


def read_pair(image_path: Path, mask_path: Path) -> tuple[np.ndarray, np.ndarray]:
  """A frame and its mask: (h, w, 3) uint8 RGB and (h, w) uint8 of 0 and 1; DataError where their sizes differ."""
  image = images.read_image(image_path)
  mask = masks.read_mask(mask_path)
  if image.shape[:2] != mask.shape:
    raise errors.DataError(
      f'frame is {image.shape[1]}x{image.shape[0]} but its mask is {mask.shape[1]}x{mask.shape[0]}',
      mask_path,
      'masks have the size of their frames',
    )
  return image, mask.astype(np.uint8)


def check_pairs(clips: Sequence[Clip], photographs: Sequence[Photograph] = ()) -> None:
  """Decodes every mask and the header of every frame, so that training need not meet a bad one hours later.

  Raises:
    DataError: masks that are missing, not binary or of another size than their frame, the first ten named (fault 24).
  """
  pairs = [pair for clip in clips for pair in zip(clip.frames, clip.masks, strict=True)]
  pairs += [(photograph.image, photograph.mask) for photograph in photographs]
  lost = [str(frame) for frame, mask in pairs if mask is None]
  if lost:
    raise errors.DataError(
      f'{len(lost)} training frames without a mask: {_first_ten(lost)}', None, 'add the masks, or take the frames away'
    )
  with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
    wrong = [fault for fault in pool.map(lambda pair: _fault(*pair), pairs) if fault]
  if wrong:
    raise errors.DataError(
      f'{len(wrong)} training masks cannot be used: {_first_ten(wrong, "; ")}',
      None,
      'masks hold two values and have the size of their frames',
    )


def _fault(frame: Path, mask: Path) -> str | None:
  try:
    height, width = masks.read_mask(mask).shape
    with Image.open(frame) as image:
      size = image.size
      if image.getexif().get(_EXIF_ORIENTATION, 1) >= _FIRST_QUARTER_TURN:
        size = size[::-1]
  except errors.DataError as error:
    return f'{error.where}, {error.what}'
  except Exception as error:  # Pillow's readers raise whatever they trip over in a damaged file
    return f'{frame}, image cannot be read: {error}'
  return None if size == (width, height) else f'{mask}, {width}x{height} for a frame of {size[0]}x{size[1]}'


def _first_ten(names: Sequence[str], separator: str = ', ') -> str:
  return separator.join(names[:10]) + (f'{separator}...' if len(names) > 10 else '')
