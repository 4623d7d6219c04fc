"""Forms in which a clip is written beside its masks, by name: settings alone, which open writers for one clip."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np

from adnet_jax.errors import UsageError
from adnet_jax.images import read_image
from adnet_jax.outputs import coco, compose, media, outlines
from adnet_jax.outputs.movies import MovieWriter
from adnet_jax.run_lengths import import_pycocotools
from adnet_jax.sources import Source
from adnet_jax.writers import draw_overlay, import_av, write_png

BLUR = 'blur'
COLOURS = {'black': '000000', 'white': 'ffffff', 'green': '00b140', 'blue': '0047bb', 'grey': '808080'}
# Where each form is written, below the clip's folder.
FILES = {
  'webm': 'cutout.webm',
  'prores': 'cutout.mov',
  'cutouts': 'cutouts/*.png',
  'background': 'background.mp4',
  'comparison': 'comparison.mp4',
  'svg': 'outlines/*.svg',
  'outline': 'outline.svg',
  'rle': 'detections.json',
}
MOVIES = ('webm', 'prores', 'background', 'comparison')
Draw = Callable[[np.ndarray, np.ndarray], np.ndarray]
M = TypeVar('M', bound=MovieWriter)


@dataclasses.dataclass(frozen=True)
class MovieForm:
  """A video: `webm` and `prores` of the foreground alone, `background` before another one, `comparison` beside itself.

  Attributes:
    name: which of MOVIES.
    behind: of `background`: 'blur', a colour #rrggbb or of COLOURS, or an image file's path.
  """

  name: str
  behind: str = BLUR
  soft: bool = dataclasses.field(default=False, init=False)

  def __post_init__(self):
    import_av()
    _drawing(self.name, self.behind)

  @property
  def stage(self) -> str:
    return self.name

  def open(self, out: Path, source: Source) -> PictureWriter:
    movie = open_movie(MovieWriter, out / FILES[self.name], source)
    return PictureWriter(movie, _drawing(self.name, self.behind))

  def files(self, out: Path) -> list[Path]:
    return files_of(self.name, out)


@dataclasses.dataclass(frozen=True)
class CutoutForm:
  """cutouts/NAME.png: the foreground of each frame with straight alpha."""

  stage: str = dataclasses.field(default='cutouts', init=False)
  soft: bool = dataclasses.field(default=False, init=False)

  def open(self, out: Path, source: Source) -> CutoutWriter:
    return CutoutWriter(out / 'cutouts')

  def files(self, out: Path) -> list[Path]:
    return files_of(self.stage, out)


@dataclasses.dataclass(frozen=True)
class OutlineForm:
  """Outlines as SVG: `svg` in outlines/NAME.svg, `outline` all in outline.svg."""

  stage: str
  soft: bool = dataclasses.field(default=False, init=False)

  def open(self, out: Path, source: Source) -> outlines.SvgWriter | outlines.SvgFilmWriter:
    if self.stage == 'svg':
      return outlines.SvgWriter(out / 'outlines')
    return outlines.SvgFilmWriter(out / 'outline.svg', source.rate)

  def files(self, out: Path) -> list[Path]:
    return files_of(self.stage, out)


@dataclasses.dataclass(frozen=True)
class CocoForm:
  """detections.json: masks as run lengths."""

  stage: str = dataclasses.field(default='rle', init=False)
  soft: bool = dataclasses.field(default=False, init=False)

  def __post_init__(self):
    import_pycocotools()

  def open(self, out: Path, source: Source) -> coco.CocoWriter:
    files = {path.stem: path.name for path in source.paths} if source.kind == 'frames' else {}
    return coco.CocoWriter(out / 'detections.json', source.name, files)

  def files(self, out: Path) -> list[Path]:
    return files_of(self.stage, out)


AnyForm = MovieForm | CutoutForm | OutlineForm | CocoForm


def files_of(name: str, out: Path) -> list[Path]:
  """Files of a form in a clip's folder, from an earlier run."""
  folder, slash, pattern = FILES[name].partition('/')
  return sorted((out / folder).glob(pattern)) if slash else [path for path in (out / folder,) if path.exists()]


def results(out: Path) -> list[Path]:
  """Files of whatever form in a clip's folder, from an earlier run."""
  return [path for name in FILES for path in files_of(name, out)]


def folders(out: Path) -> list[Path]:
  """Folders below a clip's own one that forms write into."""
  return [out / file.partition('/')[0] for file in FILES.values() if '/' in file]


def make_forms(names: Iterable[str], behind: str = BLUR) -> tuple[AnyForm, ...]:
  """Forms by name, each once.

  Args:
    names: of FILES.
    behind: what `background` puts behind the foreground (see `MovieForm`).

  Raises:
    UsageError: a name or colour that is not known; an extra that is not installed.
    DataError: the background's image cannot be read.
  """
  if Path(behind).exists():
    behind = str(Path(behind).absolute())  # forms travel to processes that work elsewhere
  forms: list[AnyForm] = []
  for name in dict.fromkeys(names):
    if name in MOVIES:
      forms.append(MovieForm(name, behind if name == 'background' else BLUR))
    elif name in ('svg', 'outline'):
      forms.append(OutlineForm(name))
    elif name in ('cutouts', 'rle'):
      forms.append(CutoutForm() if name == 'cutouts' else CocoForm())
    else:
      close = difflib.get_close_matches(name, FILES, n=1)
      advice = f'did you mean {close[0]}?' if close else f'known are {", ".join(FILES)}'
      raise UsageError(f'unknown output {name!r}', advice=advice)
  return tuple(forms)


def export(
  source: Source, masks: Iterable[np.ndarray], out: Path, forms: Sequence[AnyForm]
) -> tuple[list[Path], list[str]]:
  """Writes forms of a clip whose masks are known, without a network; frames stream.

  Args:
    source: the clip.
    masks: of each of its frames, in order: bool (h, w).
    out: folder of the files.
    forms: which.

  Returns:
    The files and warnings for the user.

  Raises:
    DataError: a frame cannot be read or a file not be written; whatever was begun is then dropped.
  """
  writers = [form.open(out, source) for form in forms]
  try:
    for frame, mask in zip(source, masks, strict=True):
      for writer in writers:
        writer.write(frame.image, mask, None, frame.name, frame.time)
    for writer in writers:
      writer.close()
  except BaseException:
    for writer in writers:
      writer.abort()
    raise
  return [path for form in forms for path in form.files(out)], [text for one in writers for text in one.warnings]


def open_movie(kind: type[M], path: Path, source: Source) -> M:
  """A video of a clip, with its colours and sound, about as large as its own at most (ProRes apart)."""
  about, left_out = media.describe(source), False
  if source.every > 1 and about.sound is not None:
    about, left_out = dataclasses.replace(about, sound=None), True
  limit = None if path.suffix == '.mov' else source.overlay_bit_rate
  movie = kind(path, source.rate, media=about, bit_rate=limit, to_end=source.end is None, length=source.length)
  if left_out:
    movie.warnings.append(f'{path.name} has no sound, as frames are left out (--every)')
  return movie


class PictureWriter:
  """Draws each frame and adds it to a video."""

  def __init__(self, movie: MovieWriter, draw: Draw):
    self._movie, self._draw, self.warnings = movie, draw, movie.warnings
    self.close, self.abort = movie.close, movie.abort

  def write(
    self, frame: np.ndarray, mask: np.ndarray, probability: np.ndarray | None, name: str, time: Fraction | None
  ) -> None:
    self._movie.add(self._draw(frame, mask), time)


class CutoutWriter:
  """A transparent PNG a frame."""

  def __init__(self, folder: Path):
    self._folder, self.warnings = folder, list[str]()

  def write(
    self, frame: np.ndarray, mask: np.ndarray, probability: np.ndarray | None, name: str, time: Fraction | None
  ) -> None:
    write_png(self._folder / f'{name}.png', compose.cut_out(frame, mask)[..., [2, 1, 0, 3]])

  def close(self) -> None:
    pass

  def abort(self) -> None:
    pass


def _drawing(name: str, behind: str) -> Draw:
  if name in ('webm', 'prores'):
    return compose.cut_out
  if name == 'comparison':
    return lambda rgb, mask: np.hstack([rgb, draw_overlay(rgb, mask)])
  if behind == BLUR:
    return lambda rgb, mask: compose.over(rgb, mask, compose.blurred(rgb, mask))
  code = COLOURS.get(behind.lower(), behind.removeprefix('#'))
  if re.fullmatch('[0-9a-fA-F]{6}', code) and not Path(behind).exists():
    colour = np.frombuffer(bytes.fromhex(code), np.uint8)
    return lambda rgb, mask: compose.over(rgb, mask, colour)
  if not Path(behind).exists():
    known = f'give blur, #rrggbb, {", ".join(COLOURS)}, or an image file'
    raise UsageError('unknown background', behind, known)
  image = read_image(behind)
  fitted = functools.lru_cache(maxsize=1)(lambda shape: compose.cover(image, shape))
  return lambda rgb, mask: compose.over(rgb, mask, fitted(mask.shape))
