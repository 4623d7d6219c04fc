"""A detector's findings from COCO JSON, every mistake in the file named at once; knows nothing of what they are for."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from adnet_jax import run_lengths
from adnet_jax.clips import name_list
from adnet_jax.errors import DataError

# Boxes of real detectors end between pixels, or count the last one in.
_OUTSIDE = 1.0
# What the released program's classes 0 and 2 are, and their numbers in COCO's own list, which begins with 1.
TARGETS = ('person', 'car')
_COCO_NUMBERS = frozenset({1, 3})
_NUMBERS_FROM_ZERO = frozenset({0, 2})

_MANY = 100  # mistakes: beyond, those alike are named together
_LONGEST_QUOTE = 60

Size = tuple[int, int]


@dataclass(frozen=True)
class Instance:
  """One detection.

  Attributes:
    id: of the annotation.
    box: corners x1, y1, x2, y2 in pixels.
    segmentation: the mask, checked, with its area.
    score: the detector's confidence in [0, 1].
    category: the detector's number of the class.
  """

  id: int
  box: tuple[float, float, float, float]
  segmentation: run_lengths.RunLengths
  score: float
  category: int


@dataclass(frozen=True)
class Detections:
  """The content of a file.

  Attributes:
    clips: {clip: {frame stem: instances in the order of the file}}, for every frame asked for.
    target_categories: numbers that stand for persons and cars: those of these names where the file has `categories`;
      otherwise 0 and 2 where a 0 shows that numbers begin there, else COCO's own 1 and 3.
    unlisted: {clip: [frame stem]}: frames asked for that the file's `images` do not name; they have no instances.
  """

  clips: Mapping[str, Mapping[str, tuple[Instance, ...]]]
  target_categories: frozenset[int]
  unlisted: Mapping[str, Sequence[str]]


def read(path: str | Path, clips: Mapping[str, Mapping[str, Size]], *, any_clip: bool = False) -> Detections:
  """Reads detections of the frames of some clips.

  Args:
    path: COCO JSON with `images` (id, file_name "CLIP/00000.jpg", width, height) and `annotations` (id, image_id,
      category_id, bbox [x, y, width, height], score, segmentation: RLE, or a list of polygons).
    clips: {clip: {frame stem: (height, width)}}, the frames that the file may speak of and their sizes.
    any_clip: there is one clip in `clips`, and the file may call it by another name.

  Raises:
    DataError: the file cannot be read, or has mistakes: each of them is named with its index.
    UsageError: pycocotools is not installed.
  """
  path = Path(path)
  run_lengths.import_pycocotools()
  content = _load(path)
  mistakes = _Mistakes()
  images = _read_images(content['images'], _Frames(clips, any_clip), mistakes)
  found: dict[str, dict[str, list[Instance]]] = {clip: {stem: [] for stem in frames} for clip, frames in clips.items()}
  targets = _target_categories(content, mistakes)
  seen: dict[Any, int] = {}
  for index, entry in enumerate(content['annotations']):
    image, instance = _read_annotation(entry, images, seen, functools.partial(mistakes.add, 'annotations', index))
    if instance is not None and image is not None and image.frame is not None:
      clip, stem = image.frame
      found[clip][stem].append(instance)
    if isinstance(entry, dict) and type(entry.get('id')) is int:
      seen.setdefault(entry['id'], index)
  mistakes.raise_if_any(path)
  listed = {image.frame for image in images.values()}
  unlisted = {clip: [stem for stem in frames if (clip, stem) not in listed] for clip, frames in clips.items()}
  return Detections(
    {clip: {stem: tuple(instances) for stem, instances in frames.items()} for clip, frames in found.items()},
    targets,
    {clip: stems for clip, stems in unlisted.items() if stems},
  )


class _Mistakes:
  """What is wrong where, in the order of the file."""

  def __init__(self):
    self._found: list[tuple[str, int, str]] = []

  def add(self, where: str, index: int, text: str) -> None:
    self._found.append((where, index, text))

  def raise_if_any(self, path: Path) -> None:
    if not self._found:
      return
    named = [f'{where}[{index}] {text}' for where, index, text in self._found]
    if len(named) > _MANY:
      alike: dict[tuple[str, str], list[str]] = {}
      for where, index, text in self._found:
        alike.setdefault((where, text), []).append(str(index))
      named = [f'{where}[{name_list(indices)}] {text}' for (where, text), indices in alike.items()]
    what = f'{len(self._found)} mistake{"s" if len(self._found) > 1 else ""} in the detections'
    raise DataError(what, f'{path}: {"; ".join(named)}', 'indices count from 0; correct or remove these entries')


@dataclass(frozen=True)
class _Image:
  """An entry of `images`: its frame, None if unknown, and its size; the mask's and its own where they differ."""

  frame: tuple[str, str] | None
  sizes: tuple[Size, ...]


@dataclass
class _Frames:
  """Finds the frame, (clip, stem), of a file name."""

  clips: Mapping[str, Mapping[str, Size]]
  any_clip: bool
  called: str | None = None

  def find(self, file_name: str) -> tuple[str, str] | None:
    file = PurePosixPath(file_name)
    clip = file.parent.name
    if self.any_clip:
      self.called = clip if self.called is None else self.called
      clip = next(iter(self.clips)) if clip == self.called else clip
    return (clip, file.stem) if file.stem in self.clips.get(clip, {}) else None

  def size(self, frame: tuple[str, str]) -> Size:
    return self.clips[frame[0]][frame[1]]


def _load(path: Path) -> dict[str, Any]:
  advice = 'give COCO JSON with "images" and "annotations"'
  try:
    content = json.loads(path.read_bytes().decode('utf-8-sig'))
  except OSError as error:
    raise DataError('detections cannot be read', path, error.strerror) from error
  except (ValueError, RecursionError) as error:
    reason = f'line {error.lineno}: {error.msg}' if isinstance(error, json.JSONDecodeError) else 'unreadable text'
    raise DataError(f'detections are not JSON, {reason}', path, advice) from error
  if not isinstance(content, dict):
    raise DataError('detections are no JSON object', path, advice)
  for key in ('images', 'annotations'):
    if not isinstance(content.get(key), list):
      problem = 'is missing' if key not in content else 'is not a list'
      raise DataError(f'{key} {problem} in the detections', path, advice)
  return content


def _read_images(entries: list, frames: _Frames, mistakes: _Mistakes) -> dict[int, _Image]:
  images: dict[int, _Image] = {}
  first_of: dict[Any, int] = {}
  for index, entry in enumerate(entries):
    wrong = functools.partial(mistakes.add, 'images', index)
    fields = _Fields(entry, wrong)
    number, name = fields.whole('id'), fields.text('file_name')
    width, height = fields.whole('width', 1), fields.whole('height', 1)
    sizes = [] if width is None or height is None else [(height, width)]
    frame = None if name is None else frames.find(name)
    if frame is not None:
      h, w = frames.size(frame)
      if sizes and sizes != [(h, w)]:
        wrong(f'width and height are {width}x{height}, the mask is {w}x{h}')
      sizes = [(h, w), *sizes]
    elif name is not None:
      wrong(f'file_name {_quoted(name)} is no frame of these masks')
    for key, what in ((number, f'id {number}'), (frame, f'the frame of file_name {_quoted(name)}')):
      if key is not None and first_of.setdefault(key, index) != index:
        wrong(f'{what} is that of images[{first_of[key]}] too')
    if number is not None:
      images.setdefault(number, _Image(frame, tuple(sizes)))
  return images


def _read_annotation(
  entry: Any, images: Mapping[int, _Image], seen: Mapping[int, int], wrong: Callable[[str], None]
) -> tuple[_Image | None, Instance | None]:
  fields = _Fields(entry, wrong)
  number = fields.whole('id')
  if number is not None and number in seen:
    wrong(f'id {number} is that of annotations[{seen[number]}] too')
  image_id = fields.whole('image_id')
  image = None if image_id is None else images.get(image_id)
  if image_id is not None and image is None:
    wrong(f'image_id {image_id} is none of the images')
  sizes = () if image is None else image.sizes
  category = fields.whole('category_id')
  score = fields.number('score')
  if score is not None and not 0 <= score <= 1:
    wrong(f'score {score:g} is not within 0 and 1')
  area = fields.number('area') if 'area' in fields.entry else None
  if area is not None and area <= 0:
    wrong(f'area {area:g} is not above 0')
  box = _read_box(fields, sizes, wrong)
  segmentation = None
  if fields.has('segmentation') and sizes:
    given = entry['segmentation']
    stated = given.get('size') if isinstance(given, dict) else None
    try:
      # Of an image with two sizes, that is named already, the annotation may have either.
      size = next((size for size in sizes if stated == list(size)), sizes[0])
      segmentation = run_lengths.read_segmentation(given, size)
    except run_lengths.BrokenMask as error:
      wrong(str(error))
  if number is None or category is None or score is None or box is None or segmentation is None:
    return image, None
  return image, Instance(number, box, segmentation, score, category)


def _read_box(
  fields: _Fields, sizes: Sequence[Size], wrong: Callable[[str], None]
) -> tuple[float, float, float, float] | None:
  if not fields.has('bbox'):
    return None
  box = fields.entry['bbox']
  if not (isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)):
    wrong('bbox is not four numbers')
    return None
  if not all(_finite(value) for value in box):
    wrong('bbox has a number that is not finite')
    return None
  x, y, width, height = map(float, box)
  if width <= 0 or height <= 0:
    wrong(f'bbox of width {width:g} and height {height:g} has no area')
    return None
  if sizes:
    h, w = (max(side) for side in zip(*sizes, strict=True))
    if x < -_OUTSIDE or y < -_OUTSIDE or x + width > w + _OUTSIDE or y + height > h + _OUTSIDE:
      shown = ', '.join(f'{value:g}' for value in (x, y, width, height))
      wrong(f'bbox [{shown}] lies outside of the image of {w}x{h}')
      return None
  return x, y, x + width, y + height


class _Fields:
  """Fields of an entry of the file, whose lack or wrong type is told to `wrong`; None then."""

  def __init__(self, entry: Any, wrong: Callable[[str], None]):
    self.entry: dict = entry if isinstance(entry, dict) else {}
    self._known = isinstance(entry, dict)
    self._wrong = wrong
    if not self._known:
      wrong('is not an object')

  def has(self, key: str) -> bool:
    if self._known and self.entry.get(key) is None:
      self._wrong(f'{key} is missing')
    return self.entry.get(key) is not None

  def whole(self, key: str, least: int = 0) -> int | None:
    if not self.has(key):
      return None
    value = self.entry[key]
    if type(value) is not int or value < least:  # a bool is an int
      self._wrong(f'{key} {_quoted(value)} is not a whole number{f" from {least}" if type(value) is int else ""}')
      return None
    return value

  def number(self, key: str) -> float | None:
    if not self.has(key):
      return None
    value = self.entry[key]
    if type(value) not in (int, float):
      self._wrong(f'{key} {_quoted(value)} is not a number')
      return None
    if not _finite(value):
      self._wrong(f'{key} is {value if type(value) is float else "too large"}')
      return None
    return float(value)

  def text(self, key: str) -> str | None:
    if not self.has(key):
      return None
    value = self.entry[key]
    if not isinstance(value, str):
      self._wrong(f'{key} {_quoted(value)} is not a text')
      return None
    return value


def _target_categories(content: dict[str, Any], mistakes: _Mistakes) -> frozenset[int]:
  categories = content.get('categories')
  if isinstance(categories, list) and categories:
    numbers = []
    for index, entry in enumerate(categories):
      fields = _Fields(entry, functools.partial(mistakes.add, 'categories', index))
      number, name = fields.whole('id'), fields.text('name')
      if number is not None and name in TARGETS:
        numbers.append(number)
    return frozenset(numbers)
  used = [entry.get('category_id') for entry in content['annotations'] if isinstance(entry, dict)]
  return _NUMBERS_FROM_ZERO if any(type(one) is int and one == 0 for one in used) else _COCO_NUMBERS


def _finite(value: float) -> bool:
  try:
    return math.isfinite(value)
  except OverflowError:  # an integer beyond every float
    return False


def _quoted(value: Any) -> str:
  try:
    text = json.dumps(value)
  except (ValueError, RecursionError):
    text = type(value).__name__
  return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + '...'
