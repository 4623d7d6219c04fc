"""Turns what a user names (folders, patterns, images, videos, a pipe) into clips; knows nothing of models."""

from __future__ import annotations

import dataclasses
import glob
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

from adnet_jax.errors import DataError, UsageError
from adnet_jax.images import IMAGE_ENDINGS, read_image
from adnet_jax.masks import natural_key
from adnet_jax.outputs.movies import OverlayWriter
from adnet_jax.sources import Frame, FrameFiles, Source, VideoFile
from adnet_jax.writers import draw_overlay, reason, write_heatmap, write_mask

__all__ = [
  'Frame', 'OverlayWriter', 'Source', 'check_output', 'draw_overlay', 'open_source', 'output_names', 'read_image',
  'resolve_inputs', 'write_heatmap', 'write_mask',
]  # fmt: skip

# Only to tell videos from other files in a folder or pattern; a file given by its name is tried whatever it is called.
VIDEO_ENDINGS = (
  '.3gp', '.avi', '.flv', '.gif', '.m2ts', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.mts', '.ogv', '.ts',
  '.webm', '.wmv',
)  # fmt: skip
VIDEOS_WRITTEN = ('overlay.mp4', 'cutout.webm', 'cutout.mov', 'background.mp4', 'comparison.mp4')
READ = f'read are videos that FFmpeg knows and images ending in {" ".join(IMAGE_ENDINGS)}'

Input = str | os.PathLike


def open_source(
  inputs: Input | Iterable[Input],
  *,
  start: int | None = None,
  end: int | None = None,
  every: int = 1,
  skip_bad: bool = False,
) -> Source:
  """Opens one clip, without reading more than its first frame.

  A folder of images (other files in it are left alone), one image, several images, a pattern with `*`, `?`, `[...]` or
  `**` (what exists under that very name is taken by its name), a video file, a pipe, or `-` for standard input. Images
  are read in natural order: 2.jpg before 10.jpg.

  Args:
    inputs: path, pattern, or several images' paths.
    start: number of the first frame, from 0; None: the first.
    end: number of the frame before which to stop; None: all.
    every: takes frames start, start + every, ...
    skip_bad: leaves out frames that cannot be read, counted in `Source.skipped`.

  Returns:
    The clip; iterating it raises DataError at a frame that cannot be read, or where a video breaks off.

  Raises:
    UsageError: start, end or every out of range; several clips; two images that share a stem; PyAV not installed.
    DataError: nothing there, no image in the folder, not a video.
  """
  given = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
  groups = _group(given, split=False)
  if len(groups) > 1:
    named = ', '.join(str(group.folder or group.paths[0]) for group in groups[:5])
    raise UsageError(f'{len(groups)} clips where one is wanted', named, 'give one at a time')
  return _open(groups[0], (start, end, every, skip_bad))


def resolve_inputs(
  inputs: Iterable[Input],
  *,
  start: int | None = None,
  end: int | None = None,
  every: int = 1,
  skip_bad: bool = False,
) -> list[Source]:
  """Opens the clips that a command is given; images of one folder are one clip, a pattern may name several clips.

  Arguments and errors are those of `open_source`.

  Raises:
    UsageError: also where two clips have the same name, so that both would be written to one folder.
  """
  sources = [_open(group, (start, end, every, skip_bad)) for group in _group(list(inputs), split=True)]
  names: dict[str, Source] = {}
  for source in sources if len(sources) > 1 else ():
    # Some file systems take Dog and dog for one name.
    other = names.setdefault(source.name.casefold(), source)
    if other is not source:
      where = f'{other.folder or other.paths[0]} and {source.folder or source.paths[0]}'
      what = f'two inputs would be written to one folder, {source.name!r}'
      raise UsageError(what, where, 'run them apart, into two output folders')
  return sources


def output_names(source: Source) -> list[str] | None:
  """Stems of the files that are written for a clip's frames, each once, in order.

  Args:
    source: the clip; images whose stems collide were refused when it was opened.

  Returns:
    For image files their own stems, damaged ones too; for a video the numbers 00000, 00001, ... as far as its header
    counts them, None where it does not.
  """
  if source.kind == 'frames':
    return [path.stem for path in source.paths[source.start : source.end : source.every]]
  if source.length is None:
    return None
  return [f'{source.start + source.every * k:05d}' for k in range(source.length)]


def check_output(inputs: Iterable[Source | Input], out: str | Path) -> None:
  """Refuses an output folder whose files would be read as frames, or would replace what is read.

  Args:
    inputs: all clips of the command, or what `open_source` takes.
    out: the output folder; it need not exist.

  Raises:
    UsageError: it is, or lies inside, an input folder; or masks would be written over the input.
  """
  sources = [item if isinstance(item, Source) else open_source(item) for item in inputs]
  for source in sources:
    place = Path(out) / source.name if len(sources) > 1 else Path(out)
    for target in {Path(out), place}:
      if source.folder is not None and _inside(target, source.folder):
        what = 'the output folder is or lies in the input folder, masks would be read as frames'
        raise UsageError(what, f'{target} in {source.folder}', 'choose an output folder outside of it')
    written = {place / 'masks', place / 'heatmaps', place / 'cutouts'}
    for folder in {path.parent for path in source.paths}:
      if source.kind == 'frames' and any(_same(folder, target) for target in written):
        raise UsageError('results would be written over the input', folder, 'choose another output folder')
    if any(_same(source.paths[0], place / name) for name in VIDEOS_WRITTEN):
      raise UsageError('a video would be written over the input', source.paths[0], 'choose another output folder')


@dataclasses.dataclass
class _Group:
  """Inputs that make one clip: a folder or pattern (`folder`), images or a video (`paths`)."""

  kind: str
  paths: list[Path]
  folder: Path | None = None


def _group(given: list[Input], split: bool) -> list[_Group]:
  """Sorts inputs into clips, in the order given; split: images of different folders are different clips."""
  groups: dict[object, _Group] = {}
  for item in given:
    for path, folder in _expand(os.fspath(item)):
      if path.is_dir():
        # Under a key of its own: the same input twice is two clips, whose equal names are then refused.
        groups[len(groups)] = _Group('frames', _images_in(path), path)
      elif path.suffix.lower() in IMAGE_ENDINGS:
        key = str(path.parent.absolute()) if split else ''
        groups.setdefault(key, _Group('frames', [], folder)).paths.append(path)
      else:
        groups[len(groups)] = _Group('video', [path])
  if not groups:
    raise UsageError('no input', advice='name a folder of frames, a video or images')
  return list(groups.values())


def _expand(item: str) -> list[tuple[Path, Path | None]]:
  """What an input stands for: each path, with its folder where the input is a pattern."""
  if item == '-' or os.path.exists(item):
    return [(Path('/dev/stdin' if item == '-' else item), None)]
  found = [Path(name) for name in glob.iglob(item, recursive=True)] if glob.has_magic(item) else []
  if not found:
    what = 'no file matches the pattern' if glob.has_magic(item) else 'no such file or folder'
    raise DataError(what, item, READ)
  endings = IMAGE_ENDINGS if any(_is_image(path) for path in found) else VIDEO_ENDINGS
  chosen = [path for path in found if path.suffix.lower() in endings and not path.is_dir()]
  chosen = chosen or [path for path in found if path.is_dir()]
  if not chosen:
    raise DataError('no image, video or folder matches the pattern', item, READ)
  return [(path, path.parent if _is_image(path) else None) for path in sorted(chosen, key=_natural)]


def _images_in(folder: Path) -> list[Path]:
  try:
    entries = sorted((path for path in folder.iterdir() if not path.name.startswith('.')), key=_natural)
  except OSError as error:
    raise DataError(f'folder cannot be read: {reason(error)}', folder, 'check its permissions') from error
  images = [path for path in entries if _is_image(path)]
  if images:
    return images
  folders = [path.name for path in entries if path.is_dir()]
  videos = [path.name for path in entries if path.suffix.lower() in VIDEO_ENDINGS]
  if folders and not videos:
    more = f' and {len(folders) - 8} more' if len(folders) > 8 else ''
    what = f'no image in it, only folders: {", ".join(folders[:8])}{more}'
    raise DataError(what, folder, f'give the clips in it, such as {folder / folders[0]}')
  if videos:
    what = f'no image in it, but videos: {", ".join(videos[:8])}'
    raise DataError(what, folder, f'give them, such as {folder / videos[0]}')
  raise DataError('no image in it' if entries else 'the folder is empty', folder, READ)


def _open(group: _Group, options: tuple) -> Source:
  first = group.paths[0]
  if group.kind == 'video':
    if stat.S_ISREG(first.stat().st_mode):
      return VideoFile(first.stem, first, *options)
    return _open_pipe(first, options)
  single = group.folder is None and len(group.paths) == 1
  name = first.stem if single else (group.folder or first.parent).resolve().name or 'clip'
  source = FrameFiles(name, sorted(group.paths, key=_natural), *options)
  source.folder = group.folder
  return source


def _open_pipe(path: Path, options: tuple) -> Source:
  """A video from a pipe, by way of a temporary file: most containers cannot be read without going back in them."""
  handle, copy = tempfile.mkstemp(prefix='adnet-', suffix='.pipe')
  try:
    try:
      with os.fdopen(handle, 'wb') as target, path.open('rb') as pipe:
        shutil.copyfileobj(pipe, target, 1 << 20)
    except OSError as error:
      raise DataError(f'cannot be read: {reason(error)}', path, 'save it to a file and give that') from error
    source = VideoFile(path.name, Path(copy), *options)
  except BaseException:
    os.unlink(copy)
    raise
  weakref.finalize(source, os.unlink, copy)
  return source


def _natural(path: Path) -> list:
  return [natural_key(part) for part in path.parts]


def _is_image(path: Path) -> bool:
  return path.suffix.lower() in IMAGE_ENDINGS and not path.is_dir()


def _same(one: Path, other: Path) -> bool:
  try:
    return one.samefile(other)  # also on file systems that take two spellings for one name
  except OSError:
    return one.resolve() == other.resolve()


def _inside(path: Path, folder: Path) -> bool:
  path = path.resolve()
  return any(_same(place, folder) for place in (path, *path.parents))
