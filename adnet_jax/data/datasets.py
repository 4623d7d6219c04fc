"""Where clips, photographs and their masks lie on disk, and reading them; knows no augmentation and no JAX.

A data set is a folder in DAVIS' layout: JPEGImages/480p/CLIP/NNNNN.jpg and Annotations/480p/CLIP/NNNNN.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adnet_jax import errors
from adnet_jax import images
from adnet_jax import masks
from adnet_jax.data import davis


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
  raise errors.DataError(f'no {name}/480p/CLIP folders', root, f'found {found}; expected JPEGImages/480p/CLIP/NNNNN.jpg '
                         'and Annotations/480p/CLIP/NNNNN.png')


def split(root: Path, name: str) -> list[str]:
  """Names of the clips of 'train' or 'val' that lie under `root`.

  The lists are those of ImageSets/480p where the data set has them, else DAVIS-2016's. A data set of which no clip
  is in either list is somebody's own: its clips belong to both.
  """
  present = sorted(path.name for path in frames_root(root).iterdir() if path.is_dir())
  listing = Path(root) / 'ImageSets' / '480p' / f'{name}.txt'
  if listing.is_file():
    wanted = list(dict.fromkeys(Path(line.split()[0]).parent.name for line in listing.read_text().splitlines() if line.strip()))
    absent = [clip for clip in wanted if clip not in present]
    if absent:
      raise errors.DataError(f'clips in the list but not on disk: {", ".join(absent)}', listing,
                             'complete the data set or remove the list')
    return wanted
  known = set(davis.TRAIN) | set(davis.VALIDATION)
  if not known & set(present):
    return present
  wanted_names = davis.TRAIN if name == 'train' else davis.VALIDATION
  return [clip for clip in present if clip in wanted_names]


def read_clips(root: Path, names: Sequence[str], *, need_masks: bool) -> list[Clip]:
  """Lists the named clips; DataError where one has no frames, or no masks although `need_masks`."""
  frames_folder, clips = frames_root(root), []
  masks_folder = annotations_root(root) if need_masks else None
  for name in names:
    frames = sorted((path for path in (frames_folder / name).iterdir() if path.suffix.lower() in images.IMAGE_ENDINGS),
                    key=lambda path: masks.natural_key(path.stem))
    if not frames:
      raise errors.DataError('clip without frames', frames_folder / name, 'remove the folder or add its frames')
    found: dict[str, Path] = {}
    if masks_folder is not None and (masks_folder / name).is_dir():
      found = {path.stem: path for path in (masks_folder / name).iterdir() if path.suffix.lower() == '.png'}
    if need_masks and not any(frame.stem in found for frame in frames):
      raise errors.DataError('clip without masks', (masks_folder or root) / name,
                             'masks are CLIP/NNNNN.png, named as their frames')
    clips.append(Clip(name, tuple(frames), tuple(found.get(frame.stem) for frame in frames)))
  if not clips:
    raise errors.DataError('no clips', root, 'the data set or the split is empty')
  return clips


def read_photographs(root: Path) -> list[Photograph]:
  """Lists ROOT/images/NAME.* with ROOT/masks/NAME.png; DataError names photographs without a mask."""
  folder, masks_folder = Path(root) / 'images', Path(root) / 'masks'
  if not folder.is_dir() or not masks_folder.is_dir():
    raise errors.DataError('no images/ and masks/ folders', root, 'data.stills is the folder that holds both')
  photographs = [Photograph(path.stem, path, masks_folder / f'{path.stem}.png')
                 for path in sorted(folder.iterdir()) if path.suffix.lower() in images.IMAGE_ENDINGS]
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
    raise errors.DataError(f'frame is {image.shape[1]}x{image.shape[0]} but its mask is '
                           f'{mask.shape[1]}x{mask.shape[0]}', mask_path, 'masks have the size of their frames')
  return image, mask.astype(np.uint8)
