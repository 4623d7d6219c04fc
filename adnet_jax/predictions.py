"""A folder of predictions to be worked on: its clips, read whole before anything is written; knows no rules."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adnet_jax.clips import find_clips, name_list
from adnet_jax.errors import DataError, UsageError
from adnet_jax.masks import list_masks, load_mask_image

SUMMARY = 'summary.json'

_KINDS = {'masks', 'heatmaps'}  # folders that `adnet segment` makes for a clip


@dataclass(frozen=True)
class Clip:
  """One clip's files.

  Attributes:
    name: of the clip.
    files: by stem, in order.
  """

  name: str
  files: Mapping[str, Path]


@dataclass(frozen=True)
class Survey:
  """What reading all of a clip's files has told.

  Attributes:
    sizes: (height, width) by stem.
    soft: whether they are soft maps.
  """

  sizes: Mapping[str, tuple[int, int]]
  soft: bool


def find(root: Path, kinds: Sequence[str]) -> tuple[list[Clip], bool]:
  """Clips of CLIP/NNNNN.png, of one folder of images, or of what `adnet segment` wrote for one or several inputs.

  Args:
    root: the folder.
    kinds: which of the folders of `adnet segment`, 'masks' and 'heatmaps', the best first.

  Returns:
    The clips in natural order; and whether it is one clip whose name is only that of the folder given.

  Raises:
    DataError: the folder is missing or laid out otherwise; clips without files are all named.
  """
  folders = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
  files = _segmented(root, kinds) if folders <= _KINDS else {}
  if files:
    return [Clip(root.resolve().name, files)], True
  found = find_clips(root, 'masks')
  bare = not any((root / name).is_dir() for name in found)
  clips = [Clip(name, files if bare else _segmented(root / name, kinds) or files) for name, files in found.items()]
  empty = [clip.name for clip in clips if not clip.files]
  if empty:
    raise DataError('clips without masks', f'{root}: {name_list(empty)}', 'add their masks, or remove the folders')
  return clips, bare


def survey(clips: Iterable[Clip], advance: Callable[[], None]) -> dict[str, Survey]:
  """Reads every file once, so that no fault appears halfway; `advance` is called after each.

  Raises:
    DataError: files that are damaged or no masks, and clips that mix masks with soft maps; all are named.
  """
  surveys = {}
  failed: list[DataError] = []
  for clip in clips:
    sizes, kinds, soft = {}, set(), False
    for stem, path in clip.files.items():
      try:
        image = load_mask_image(path)
        if image.kind == 'colour':
          image.mask()  # says what is wrong with one of more than two values
        sizes[stem] = (image.values.shape[0], image.values.shape[1])
        kinds.add(image.kind)
        # One soft map makes all of the clip's such: of a frame without any object, two values may be all there is.
        soft = soft or (image.kind == 'grey' and not image.binary)
      except DataError as error:
        failed.append(error)
      advance()
    if soft and len(kinds) > 1:
      failed.append(DataError('masks and soft maps in one clip', clip.name, 'keep the results of one method'))
    surveys[clip.name] = Survey(sizes, soft)
  if len(failed) > 1:
    named = '; '.join(f'{error.where}: {error.what}' for error in failed)
    raise DataError(f'{len(failed)} faults in the masks', named, 'write these again')
  if failed:
    raise failed[0]
  return surveys


def foreground(path: Path, soft: bool, threshold: float) -> np.ndarray:
  """A frame's foreground: of a mask, or of a soft map strictly above the threshold, a probability; (h, w) bool."""
  image = load_mask_image(path)
  return image.mask(threshold if soft else None)


def check_output(root: Path, output: Path, clips: Sequence[Clip], *, overwrite: bool) -> None:
  """Refuses an output that would be read as input, or that holds results; removes nothing.

  Raises:
    UsageError: it is or lies in the input, would replace what is read, is a file, or holds results without `overwrite`.
  """
  out, source = output.resolve(), root.resolve()
  if out == source or source in out.parents:
    what = 'the output folder is or lies in the folder of masks'
    raise UsageError(what, f'{output} in {root}', 'choose an output folder outside of it')
  read_from = {path.parent.resolve() for clip in clips for path in clip.files.values()}
  over = [clip.name for clip in clips if (output / clip.name).resolve() in read_from]
  if over:
    raise UsageError('masks would be written over those read', f'{output}: {name_list(over)}', 'choose another folder')
  if output.exists() and not output.is_dir():
    raise UsageError('the output is no folder', output, 'choose another')
  held = next((path for path in _results(output, clips) if path.exists()), None)
  if held is not None and not overwrite:
    raise UsageError('output folder already holds results', held, 'add --overwrite, or choose another')


def remove_results(output: Path, clips: Sequence[Clip]) -> None:
  """Removes what an earlier run left, and nothing else that lies there; DataError where that cannot be done."""
  try:
    for path in list(_results(output, clips)):
      path.unlink(missing_ok=True)
  except OSError as error:
    raise DataError(f'cannot be removed: {error.strerror}', error.filename, 'choose another folder') from error


def _results(output: Path, clips: Iterable[Clip]) -> Iterator[Path]:
  """The summary of an earlier run, and masks of the clips that it names and of those to be written."""
  names = {clip.name for clip in clips}
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
    earlier = json.loads((output / SUMMARY).read_bytes())['clips']
    # A name in a file must not lead out of the folder.
    names |= {name for name in earlier if Path(name).name == name}
  yield output / SUMMARY
  for name in sorted(names):
    yield from sorted((output / name).glob('*.png'))


def _segmented(folder: Path, kinds: Sequence[str]) -> dict[str, Path]:
  found = (list_masks(folder / kind) for kind in kinds if (folder / kind).is_dir())
  return next((files for files in found if files), {})
