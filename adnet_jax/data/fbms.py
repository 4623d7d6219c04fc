"""FBMS-59 and the older BMS-26 on disk: sequences, Def.dat, label maps with their certainty; knows no metric.

Sources: Ochs, Malik, Brox, PAMI 2014 (FBMS-59); Brox, Malik, ECCV 2010 (BMS-26); the Freiburg evaluation's source, as
which the files are read: a colour's number is red x 65536 + green x 256 + blue, and a `.pgm` with the stem of a
`.ppm` is its certainty x 255.

Which region is background: in the older `.pgm` maps the one of grey value 0 (the objects are 255, 204, 153, ...: all of
them are foreground, 255 alone is one object of several); in the `.ppm` maps the white one. Both are region 0 in the
Def.dat files, as the Freiburg evaluation takes for granted.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image

from adnet_jax.data import fbms_definition
from adnet_jax.data.clip import Clip, Split, first_ten, in_order
from adnet_jax.data.fbms_definition import WHITE, colour_name
from adnet_jax.errors import DataError
from adnet_jax.images import File
from adnet_jax.masks import MaskImage, natural_key

SPLITS = ('train', 'test')
# As in the lists allShotsTrainingSet.txt and allShotsTestSet.txt of the Freiburg evaluation.
TRAIN = (
  'bear01', 'bear02', 'cars2', 'cars3', 'cars6', 'cars7', 'cars8', 'cars9', 'cats02', 'cats04', 'cats05', 'cats07',
  'ducks01', 'horses01', 'horses03', 'horses06', 'lion02', 'marple1', 'marple3', 'marple5', 'marple8', 'marple10',
  'marple11', 'marple13', 'meerkats01', 'people04', 'people05', 'rabbits01', 'rabbits05',
)  # fmt: skip
TEST = (
  'camel01', 'cars1', 'cars4', 'cars5', 'cars10', 'cats01', 'cats03', 'cats06', 'dogs01', 'dogs02', 'farm01',
  'giraffes01', 'goats01', 'horses02', 'horses04', 'horses05', 'lion01', 'marple2', 'marple4', 'marple6', 'marple7',
  'marple9', 'marple12', 'people03', 'people1', 'people2', 'rabbits02', 'rabbits03', 'rabbits04', 'tennis',
)  # fmt: skip
_FOLDERS = {'trainset': 'train', 'trainingset': 'train', 'testset': 'test'}
_DEEPEST = 3  # root/TestSet/Data/SEQUENCE
# The published map has colours that its Def.dat does not list; the Freiburg evaluation counts them as region 0.
_UNLISTED_KNOWN = ('cats04_0020_gt.ppm',)
_LAYOUT = 'expected SEQ/*.jpg with SEQ/SEQDef.dat or SEQ/GroundTruth/SEQDef.dat, and SEQ/GroundTruth/*.pgm or *_gt.ppm'


@dataclasses.dataclass(frozen=True)
class Annotation:
  """The annotation of one frame.

  Attributes:
    frame: stem of the input image.
    labels: label map, `.ppm` by colour or `.pgm` by grey value.
    certainty: how certain each pixel's label is, x 255; None: all are.
  """

  frame: str
  labels: File
  certainty: File | None


@dataclasses.dataclass(frozen=True)
class Definition:
  """What a sequence's Def.dat says.

  Attributes:
    name: of the sequence.
    regions: number of each region's colour, or its grey value.
    background: which of `regions` is the background.
    frames: the annotated frames, in order.
    source: the Def.dat, or what has replaced it.
  """

  name: str
  regions: tuple[int, ...]
  background: int
  frames: tuple[Annotation, ...]
  source: str


@dataclasses.dataclass(frozen=True)
class TruthImage(MaskImage):
  """An annotation, decoded: `values` are (h, w) bool, everything that is not background.

  Attributes:
    numbers: (h, w) uint8, see `read_regions`.
    source: where the certainty map is read when it is asked for.
  """

  numbers: np.ndarray
  source: Truth

  def regions(self) -> np.ndarray:
    """(h, w) uint8, see `read_regions`."""
    return self.numbers

  def certainty(self) -> np.ndarray | None:
    """(h, w) float32 in [0, 1]; None where every pixel is certain."""
    return self.source.certainty()


@dataclasses.dataclass(frozen=True)
class Truth:
  """Ground truth of one frame under every rule: merged foreground, regions, certainty."""

  annotation: Annotation
  definition: Definition

  @property
  def stem(self) -> str:
    return self.annotation.frame

  @property
  def name(self) -> str:
    return self.annotation.labels.name

  def __str__(self) -> str:
    return str(self.annotation.labels)

  def load(self) -> TruthImage:
    """The merged foreground, with regions and certainty."""
    regions = self.regions()
    return TruthImage(self.annotation.labels, regions > 0, 'labels', 1.0, regions, self)

  def regions(self) -> np.ndarray:
    """(h, w) uint8, see `read_regions`."""
    return read_regions(self.annotation, self.definition)

  def certainty(self) -> np.ndarray | None:
    """(h, w) float32 in [0, 1]; None where every pixel is certain."""
    return read_certainty(self.annotation)


def find_sequences(root: Path) -> dict[str, Path]:
  """Sequences below `root` by name: the data set, its Testset or Trainingset, or one sequence.

  Returns:
    Folders that hold ground truth of such a form; none where there is nothing of FBMS.

  Raises:
    DataError: two sequences have one name.
  """
  found: dict[str, Path] = {}
  for folder in _sequence_folders(Path(root), _DEEPEST):
    name = folder.resolve().name
    if name in found:
      raise DataError(f'two sequences are called {name}', f'{found[name]} and {folder}', 'keep one of them')
    found[name] = folder
  return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def split(root: Path, name: str) -> Split:
  """Sequences of 'train' or 'test'.

  The folders Trainingset and Testset decide. Where there are none, the official lists do if sequences of both are
  there; else every sequence belongs to both, as in the BMS-26 benchmark, which has no split.

  Raises:
    DataError: no sequence at all.
  """
  sequences = find_sequences(root)
  if not sequences:
    found = first_ten(sorted(path.name for path in Path(root).iterdir())) if Path(root).is_dir() else 'no folder'
    raise DataError('no FBMS sequence', root, f'found {found or "nothing"}; {_LAYOUT}')
  by_folder = {sequence: _split_by_folder(folder, Path(root)) for sequence, folder in sequences.items()}
  if any(by_folder.values()):
    outside = [sequence for sequence, where in by_folder.items() if where is None]
    warnings = [f'sequences outside of Trainingset and Testset, left out: {", ".join(outside)}'] if outside else []
    return Split([sequence for sequence, where in by_folder.items() if where == name], warnings)
  if not (set(TRAIN) & set(sequences) and set(TEST) & set(sequences)):
    return Split(list(sequences), [])
  outside = [sequence for sequence in sequences if sequence not in TRAIN + TEST]
  warnings = [f'sequences in neither official list, left out: {", ".join(outside)}'] if outside else []
  wanted = TRAIN if name == 'train' else TEST
  return Split([sequence for sequence in sequences if sequence in wanted], warnings)


def read(root: Path, names: list[str]) -> list[Clip]:
  """The named sequences; DataError where one has no frames or its ground truth is not as it should be (fault 65)."""
  folders, clips = find_sequences(root), []
  for name in names:
    frames = frames_of(folders[name])
    if not frames:
      raise DataError('sequence without frames', folders[name], _LAYOUT)
    found = sequence_truths(folders[name])
    if not any(frame.stem in found for frame in frames):
      raise DataError('no annotated frame of the sequence is on disk', folders[name], f'annotated: {first_ten(found)}')
    clips.append(Clip(name, tuple(frames), tuple(found.get(frame.stem) for frame in frames), sparse=True))
  return clips


def truths(root: Path) -> dict[str, dict[str, Truth]]:
  """Ground truth of all sequences by frame stem, whether the frames are on disk or not; raises as `read_definition`."""
  return {name: sequence_truths(folder) for name, folder in find_sequences(root).items()}


def sequence_truths(folder: Path) -> dict[str, Truth]:
  """Ground truth of one sequence by frame stem; raises as `read_definition`."""
  definition = read_definition(folder)
  return {annotation.frame: Truth(annotation, definition) for annotation in definition.frames}


def frames_of(folder: Path) -> list[Path]:
  """The input images of a sequence, in order."""
  images = in_order(folder.iterdir())
  # The older layout had its label maps beside the frames.
  return [path for path in images if path.suffix.lower() not in ('.pgm', '.ppm')] or [
    path for path in images if path.suffix.lower() == '.ppm' and not path.stem.endswith('_gt')
  ]


def read_definition(folder: Path) -> Definition:
  """Reads a sequence's Def.dat and finds the files that it names.

  Args:
    folder: of the sequence; SEQDef.dat lies in it or in its GroundTruth.

  Raises:
    DataError: no Def.dat or several; a line that is not what it should be; a region twice; label maps or certainty
      maps that are missing, all of them named (fault 65).
  """
  folder = Path(folder)
  paths = [path for place in (folder / 'GroundTruth', folder) if place.is_dir() for path in place.glob('*Def.dat')]
  if len(paths) != 1:
    what = f'{len(paths)} definition files' if paths else 'no definition file'
    raise DataError(what, ', '.join(map(str, paths)) or folder, f'{folder.name}Def.dat lists regions and frames')
  path = paths[0]
  regions, total, entries = fbms_definition.parse(path)
  on_disk = frames_of(folder)
  places = (path.parent, path.parent / 'GroundTruth')
  annotations, missing = [], []
  for number, file, image in entries:
    labels = next((place / file for place in places if (place / file).is_file()), None)
    if labels is None:
      missing.append(f'{file} (frame {number})')
      continue
    annotations.append(Annotation(_stem(image, file, number, total, on_disk), labels, _certainty_of(labels)))
  uncertain = [annotation.labels.name for annotation in annotations if annotation.certainty is None]
  if len(uncertain) < len(annotations):  # as the published sequences have them: of all frames, or of none
    missing += [f'the certainty map of {name}' for name in uncertain]
  if missing:
    raise DataError(
      f'ground-truth files missing: {first_ten(missing)}', path, f'put them into {folder / "GroundTruth"}'
    )
  stems = [annotation.frame for annotation in annotations]
  twice = sorted({stem for stem in stems if stems.count(stem) > 1})
  if twice:
    raise DataError(f'frames annotated twice: {", ".join(twice)}', path, 'each frame has one label map')
  white = any(str(annotation.labels).lower().endswith('.ppm') for annotation in annotations)
  background = WHITE if white else 0
  index = regions.index(background) if background in regions else 0
  return Definition(folder.resolve().name, regions, index, tuple(annotations), str(path))


def read_regions(annotation: Annotation, definition: Definition) -> np.ndarray:
  """Reads a label map.

  Returns:
    (h, w) uint8: 0 for the background, then 1, 2, ... for the other regions in Def.dat's order.

  Raises:
    DataError: the file is damaged, or holds a colour that is no region's (fault 65).
  """
  codes = _decode(annotation.labels)
  if codes.ndim == 3:
    codes = codes.astype(np.uint32)
    codes = codes[..., 0] << 16 | codes[..., 1] << 8 | codes[..., 2]
  order = [definition.background, *(k for k in range(len(definition.regions)) if k != definition.background)]
  result = np.zeros(codes.shape, np.uint8)
  listed = np.zeros(codes.shape, bool)
  for index, region in enumerate(order):
    here = codes == definition.regions[region]
    result[here] = index
    listed |= here
  if not listed.all():
    unlisted, counts = np.unique(codes[~listed], return_counts=True)
    named = first_ten(f'{colour_name(code)} ({n} pixels)' for code, n in zip(unlisted, counts, strict=True))
    if annotation.labels.name not in _UNLISTED_KNOWN:
      regions = ', '.join(f'{k}: {colour_name(code)}' for k, code in enumerate(definition.regions))
      where = f'{annotation.labels}, frame {annotation.frame}'
      raise DataError(f'colour of no region: {named}', where, f'regions of {definition.source} are {regions}')
    logging.log_first_n(logging.WARNING, '%s: %s of no region, background', 1, annotation.labels.name, named)
  return result


def read_certainty(annotation: Annotation) -> np.ndarray | None:
  """Certainty of each pixel's label, (h, w) float32 in [0, 1]; None where the annotation has no such map."""
  if annotation.certainty is None:
    return None
  values = _decode(annotation.certainty)
  if values.ndim != 2:
    raise DataError('a certainty map with colours', annotation.certainty, 'expected grey values, 255 for certain')
  return values.astype(np.float32) / np.float32(255)


def _sequence_folders(folder: Path, levels: int) -> Iterator[Path]:
  if not folder.is_dir():
    return
  truth = folder / 'GroundTruth'
  if next(folder.glob('*Def.dat'), None) is not None or (truth.is_dir() and _holds_ground_truth(truth)):
    yield folder
  elif levels:
    for path in sorted(folder.iterdir()):
      yield from _sequence_folders(path, levels - 1)


def _holds_ground_truth(folder: Path) -> bool:
  return any(path.suffix in ('.ppm', '.pgm') or path.name.endswith('Def.dat') for path in folder.iterdir())


def _split_by_folder(folder: Path, root: Path) -> str | None:
  parents = [root.resolve().name, *folder.relative_to(root).parts[:-1]]
  return next((_FOLDERS[part.lower()] for part in reversed(parents) if part.lower() in _FOLDERS), None)


def _stem(image: str, labels: str, number: int, total: int, on_disk: list[Path]) -> str:
  """Stem of an annotated frame; where the name in Def.dat is not on disk, that of its label map or its position."""
  names = [Path(image).stem, Path(labels).stem.removesuffix('_gt')]
  stems = [path.stem for path in on_disk]
  found = next((name for name in names if name in stems), None)
  if found is not None:
    return found
  return stems[number] if len(stems) == total else names[0]


def _certainty_of(labels: Path) -> Path | None:
  if labels.suffix.lower() != '.ppm':
    return None
  places = (labels.with_suffix('.pgm'), labels.with_name(f'{labels.stem.removesuffix("_gt")}.pgm'))
  return next((place for place in places if place.is_file()), None)


def _decode(file: File) -> np.ndarray:
  """(h, w) grey values or (h, w, 3) RGB, integers."""
  try:
    with Image.open(io.BytesIO(file.read_bytes())) as image:
      image.load()
      return np.array(image if image.mode == 'L' or image.mode.startswith('I') else image.convert('RGB'))
  except (DataError, MemoryError):
    raise
  except Exception as error:  # Pillow's readers raise whatever they trip over in a damaged file
    raise DataError(f'ground truth cannot be read: {error}', file, 'restore the published file') from error
