"""ViSal (Wang, Shen, Shao, TIP 2015) on disk: 17 clips, every fifth frame annotated; knows no metric.

As published: ViSal/CLIP/NAME.bmp and one folder GroundTruth/NAME.bmp for all clips. A mask belongs to the frame of its
name, not to the clip of its name: GroundTruth/horse2_frame0001.bmp is of ViSal/horse, not of ViSal/horse2, whose frames
are called horse3_frame... Other layouts that go round are those of folders.py. The masks are RGB with soft, slightly
coloured edges (.06 % of the foreground's number of pixels): foreground is a grey value above 128, as DAVSOD's program
and PySODMetrics read them.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
from PIL import Image

from adnet_jax.data import folders
from adnet_jax.data.clip import Clip, Split
from adnet_jax.errors import DataError
from adnet_jax.images import File
from adnet_jax.masks import MaskImage, load_mask_image

SPLITS = ('test',)
CLIPS = (
  'aeroplane', 'bird', 'boat', 'boat2', 'car', 'cat', 'cow', 'cow2', 'gokart', 'horse', 'horse2', 'lion', 'man',
  'motorbike', 'panda', 'rider', 'snow_leopards',
)  # fmt: skip
_ABOVE = 128
_LAYOUT = 'expected ViSal/CLIP/NAME.bmp and GroundTruth/NAME.bmp, or CLIP/Imgs/NAME.jpg and CLIP/GT/NAME.png'


@dataclasses.dataclass(frozen=True)
class Truth:
  """The annotation of one frame."""

  file: File

  @property
  def stem(self) -> str:
    return self.file.stem

  @property
  def name(self) -> str:
    return self.file.name

  def __str__(self) -> str:
    return str(self.file)

  def load(self) -> MaskImage:
    """Foreground, `values` are (h, w) bool: grey values above 128; labels and values of 0 and 1 that are not 0."""
    image = load_mask_image(self.file)
    if image.kind == 'labels' or image.zero_one:
      return MaskImage(self.file, image.values > 0, 'labels', 1.0)
    if image.kind == 'grey':
      return MaskImage(self.file, image.values > image.top * _ABOVE / 255, 'labels', 1.0)
    with Image.open(io.BytesIO(self.file.read_bytes())) as colours:
      return MaskImage(self.file, np.array(colours.convert('L')) > _ABOVE, 'labels', 1.0)


def is_visal(root: Path) -> bool:
  """Whether clips of ViSal's names lie there, with masks."""
  found = folders.find_clips(root)
  return any(name in CLIPS for name in found) and any(files.masks for files in found.values())


def split(root: Path, name: str) -> Split:
  """All clips of ViSal, whose only split is 'test'."""
  return Split(list(_find(root)), [])


def read(root: Path, names: list[str]) -> list[Clip]:
  """The named clips; DataError where one has no masks."""
  found = _find(root)
  bare = [name for name in names if not found[name].masks]
  if bare:
    raise DataError(f'clips without masks: {", ".join(bare)}', root, _LAYOUT)
  return [
    Clip(
      name,
      tuple(found[name].frames),
      tuple(Truth(found[name].masks[path.stem]) if path.stem in found[name].masks else None for path in found[name][0]),
      sparse=True,
    )
    for name in names
  ]


def truths(root: Path) -> dict[str, dict[str, Truth]]:
  """Ground truth of all clips by frame stem."""
  return {name: {stem: Truth(path) for stem, path in files.masks.items()} for name, files in _find(root).items()}


def _find(root: Path) -> dict[str, folders.Files]:
  found = folders.find_clips(root)
  if not any(files.masks for files in found.values()):
    inside = ', '.join(sorted(path.name for path in Path(root).iterdir())[:8]) if Path(root).is_dir() else 'no folder'
    raise DataError('no clips with masks', root, f'found {inside or "nothing"}; {_LAYOUT}')
  return found
