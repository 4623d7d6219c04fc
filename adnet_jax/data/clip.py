"""What a clip of a data set is to those who read it; knows no data set and no layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from adnet_jax import images, masks
from adnet_jax.images import File
from adnet_jax.masks import MaskImage, natural_key


class Annotation(Protocol):
  """Ground truth of a frame that takes more than decoding one file."""

  @property
  def stem(self) -> str: ...

  def load(self) -> MaskImage:
    """Foreground, all objects merged: `values` are (h, w) bool."""
    ...


@dataclasses.dataclass(frozen=True)
class Clip:
  """A clip's frames in order, and the masks that exist for them.

  Attributes:
    name: the folder's name.
    frames: all frames at hand: paths, or files in records of a prepared data set.
    masks: each frame's mask, a file or an Annotation; None where there is none.
    sparse: whether only some frames of such a data set are annotated, so that the others are not missing.
  """

  name: str
  frames: tuple[File, ...]
  masks: tuple[File | Annotation | None, ...]
  sparse: bool = False

  @property
  def annotated(self) -> list[int]:
    """Indices of the frames that have a mask."""
    return [index for index, mask in enumerate(self.masks) if mask is not None]


class Split(NamedTuple):
  """Names of a split's clips in order, and what the user should hear of clips that are not there or left out."""

  names: list[str]
  warnings: list[str]


def load_mask(source: File | Annotation) -> MaskImage:
  """Decodes a mask, be it a file or an Annotation; raises DataError where it is missing or damaged."""
  return source.load() if hasattr(source, 'load') else masks.load_mask_image(source)


def in_order(paths: Iterable[Path]) -> list[Path]:
  """The images among `paths`, in natural order of their names; hidden files are none."""
  found = (path for path in paths if path.suffix.lower() in images.IMAGE_ENDINGS and not path.name.startswith('.'))
  return sorted(found, key=lambda path: natural_key(path.stem))


def first_ten(names: Iterable[object], separator: str = ', ') -> str:
  """The first ten of many names on one line, and how many there are."""
  texts = [str(name) for name in names]
  return separator.join(texts[:10]) + (f'{separator}... ({len(texts)} in all)' if len(texts) > 10 else '')
