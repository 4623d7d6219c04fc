"""A folder of one's own clips, with or without masks, in DAVIS' layout or one of folders.py; knows no data set."""

from __future__ import annotations

from pathlib import Path

from adnet_jax.data import davis, folders
from adnet_jax.data.clip import Clip, Split
from adnet_jax.errors import DataError

SPLITS = ('train',)


def has_masks(root: Path) -> bool:
  """Whether clips with masks lie there, in a layout of folders.py."""
  return any(files.masks for files in folders.find_clips(root).values())


def split(root: Path, name: str) -> Split:
  """All clips, in natural order."""
  if davis.is_davis(root):
    return Split(sorted(path.name for path in davis.frames_root(root).iterdir() if path.is_dir()), [])
  return Split(list(_find(root)), [])


def read(root: Path, names: list[str]) -> list[Clip]:
  """The named clips; masks are files, and None where a frame has none, as it may but in DAVIS' layout."""
  if davis.is_davis(root):
    return davis.read(root, names, need_masks=False)
  found = _find(root)
  return [
    Clip(
      name,
      tuple(found[name].frames),
      tuple(found[name].masks.get(path.stem) for path in found[name].frames),
      sparse=True,  # whoever draws masks by hand draws some
    )
    for name in names
  ]


def truths(root: Path) -> dict[str, dict[str, Path]]:
  """Masks of all clips by frame stem; none for clips without masks."""
  if davis.is_davis(root):
    return davis.truths(root) if (Path(root) / 'Annotations').is_dir() else {}
  return {name: dict(files.masks) for name, files in _find(root).items()}


def _find(root: Path) -> dict[str, folders.Files]:
  found = folders.find_clips(root)
  if not found:
    inside = ', '.join(sorted(path.name for path in Path(root).iterdir())[:8]) if Path(root).is_dir() else 'no folder'
    advice = f'found {inside or "nothing"}; expected CLIP/NAME.jpg, or frames/CLIP/NAME.jpg and masks/CLIP/NAME.png'
    raise DataError('no clips', root, advice)
  return found
