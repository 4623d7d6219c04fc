"""DAVIS-2016 (Perazzi et al., CVPR 2016) on disk, and clips of one's own in its layout; knows no metric.

Frames are JPEGImages/480p/CLIP/NNNNN.jpg and masks Annotations/480p/CLIP/NNNNN.png; the level 480p may be missing.
"""

from __future__ import annotations

from pathlib import Path

from adnet_jax.data.clip import Clip, Split, in_order
from adnet_jax.errors import DataError
from adnet_jax.masks import list_masks, natural_key

SPLITS = ('train', 'val')
TRAIN = (
  'bear', 'bmx-bumps', 'boat', 'breakdance-flare', 'bus', 'car-turn', 'dance-jump', 'dog-agility', 'drift-turn',
  'elephant', 'flamingo', 'hike', 'hockey', 'horsejump-low', 'kite-walk', 'lucia', 'mallard-fly', 'mallard-water',
  'motocross-bumps', 'motorbike', 'paragliding', 'rhino', 'rollerblade', 'scooter-gray', 'soccerball', 'stroller',
  'surf', 'swing', 'tennis', 'train',
)  # fmt: skip
VALIDATION = (
  'blackswan', 'bmx-trees', 'breakdance', 'camel', 'car-roundabout', 'car-shadow', 'cows', 'dance-twirl', 'dog',
  'drift-chicane', 'drift-straight', 'goat', 'horsejump-high', 'kite-surf', 'libby', 'motocross-jump',
  'paragliding-launch', 'parkour', 'scooter-black', 'soapbox',
)  # fmt: skip
_LAYOUT = 'expected JPEGImages/480p/CLIP/NNNNN.jpg and Annotations/480p/CLIP/NNNNN.png'


def is_davis(root: Path) -> bool:
  """Whether `root` has DAVIS' folder of frames, or of masks."""
  return (Path(root) / 'JPEGImages').is_dir() or (Path(root) / 'Annotations' / '480p').is_dir()


def frames_root(root: Path) -> Path:
  """The folder of clips below a data set's root; DataError says what lies there instead (fault 57)."""
  return _subfolder(root, 'JPEGImages')


def annotations_root(root: Path) -> Path:
  """The folder of clips' masks below a data set's root."""
  return _subfolder(root, 'Annotations')


def split(root: Path, name: str) -> Split:
  """Clips of 'train' or 'val' that lie under `root`.

  The lists are those of ImageSets/480p where the data set has them, else DAVIS-2016's. A data set of which no clip
  is in either list is somebody's own: its clips belong to both.

  Raises:
    DataError: another layout; clips of ImageSets' list that are not on disk, all named (fault 59).
  """
  present = sorted(path.name for path in frames_root(root).iterdir() if path.is_dir() and path.name[0] != '.')
  listing = Path(root) / 'ImageSets' / '480p' / f'{name}.txt'
  if listing.is_file():
    wanted = list(_listed(listing))
    absent = [clip for clip in wanted if clip not in present]
    if absent:
      raise DataError(
        f'clips in the list but not on disk: {", ".join(absent)}', listing, 'complete the data set or remove the list'
      )
    listed = set().union(*(_listed(path) for path in listing.parent.glob('*.txt')))
    return Split(wanted, _unlisted(present, listed, str(listing.parent)))
  known = TRAIN + VALIDATION
  if not set(known) & set(present):
    return Split(present, [])
  wanted_names = TRAIN if name == 'train' else VALIDATION
  absent = [clip for clip in wanted_names if clip not in present]
  warnings = [f'clips of the official list {name} that are not on disk: {", ".join(absent)}'] if absent else []
  warnings += _unlisted(present, set(known), 'the official lists')
  return Split([clip for clip in present if clip in wanted_names], warnings)


def read(root: Path, names: list[str], *, need_masks: bool = True) -> list[Clip]:
  """Lists the named clips; DataError where one has no frames, or no masks although `need_masks`."""
  frames_folder, clips = frames_root(root), []
  masks_folder = annotations_root(root) if need_masks or (Path(root) / 'Annotations').is_dir() else None
  for name in names:
    frames = in_order((frames_folder / name).iterdir())
    if not frames:
      raise DataError('clip without frames', frames_folder / name, _deeper(frames_folder / name))
    found: dict[str, Path] = {}
    if masks_folder is not None and (masks_folder / name).is_dir():
      found = {path.stem: path for path in (masks_folder / name).iterdir() if path.suffix.lower() == '.png'}
    if need_masks and not any(frame.stem in found for frame in frames):
      where = (masks_folder or root) / name
      raise DataError('clip without masks', where, 'masks are CLIP/NNNNN.png, named as their frames')
    clips.append(Clip(name, tuple(frames), tuple(found.get(frame.stem) for frame in frames)))
  return clips


def truths(root: Path) -> dict[str, dict[str, Path]]:
  """Masks of all clips by frame stem, whether the frames are on disk or not."""
  folders = [path for path in annotations_root(root).iterdir() if path.is_dir() and not path.name.startswith('.')]
  return {folder.name: list_masks(folder) for folder in sorted(folders, key=lambda path: natural_key(path.name))}


def _subfolder(root: Path, name: str) -> Path:
  root = Path(root)
  if not root.is_dir():
    raise DataError('data set folder not found', root, 'data.root is the folder that holds JPEGImages/480p')
  for candidate in (root / name / '480p', root / name):
    if candidate.is_dir() and any(path.is_dir() for path in candidate.iterdir()):
      return candidate
  inside = ', '.join(sorted(path.name for path in root.iterdir())[:8]) or 'nothing'
  deeper = next((path.parent for path in sorted(root.glob(f'*/{name}')) + sorted(root.glob(f'*/*/{name}'))), None)
  advice = f'found {inside}; {_LAYOUT}' + (f'; give {deeper}' if deeper else '')
  raise DataError(f'no {name}/480p/CLIP folders', root, advice)


def _deeper(folder: Path) -> str:
  """Advice on a clip's folder without frames: what lies in it instead."""
  inside = sorted((path.name for path in folder.iterdir() if path.is_dir()), key=natural_key)
  if not inside:
    return 'remove the folder or add its frames'
  return f'found folders in it, {", ".join(inside[:8])}, a level too many; {_LAYOUT}'


def _listed(listing: Path) -> dict[str, None]:
  """Clips of a list in their order; its lines are '/JPEGImages/480p/bear/00000.jpg /Annotations/...' or 'bear'."""
  firsts = (line.split()[0] for line in listing.read_text().splitlines() if line.strip())
  return dict.fromkeys(Path(first).parent.name if Path(first).suffix else first for first in firsts)


def _unlisted(present: list[str], listed: set[str], where: str) -> list[str]:
  unlisted = [clip for clip in present if clip not in listed]
  return [f'clips on disk but in no list of {where}, left out: {", ".join(unlisted)}'] if unlisted else []
