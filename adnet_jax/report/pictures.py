"""Frames with true and predicted outlines, small enough for a page; knows nothing of figures and HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from adnet_jax.clips import find_clips, find_truth, name_list
from adnet_jax.data.clip import load_mask
from adnet_jax.errors import DataError
from adnet_jax.images import IMAGE_ENDINGS, read_image
from adnet_jax.masks import load_mask_image, natural_key
from adnet_jax.metrics import jaccard
from adnet_jax.report.entries import Entry

TRUE_COLOUR = (255, 214, 10)
PREDICTED_COLOUR = (40, 170, 255)
FRAMES_A_STRIP = 4
_WIDTH = 400
_GROUND = 60
_QUALITY = 78
# J of a file is exact; what differs by more is another mask.
_SAME_J = 1e-4


@dataclass(frozen=True)
class Picture:
  """One frame of a strip.

  Attributes:
    frame: its stem.
    j: the score file's J of it.
    uri: the picture, as a `data:` address.
    size: (width, height) in pixels.
    bare: whether the frame's own picture was not at hand, so that there are outlines alone.
  """

  frame: str
  j: float
  uri: str
  size: tuple[int, int]
  bare: bool


def worst_frames(values: Sequence[float | None], count: int = FRAMES_A_STRIP) -> list[tuple[int, float]]:
  """The lowest values with their positions, the worst first, of equal ones the earlier.

  After the first, frames closer than a sixteenth of the clip to one already taken are passed over: they look alike.
  """
  apart = max(1, len(values) // 16)
  taken: list[tuple[int, float]] = []
  for value, index in sorted((value, index) for index, value in enumerate(values) if value is not None):
    if len(taken) < count and all(abs(index - other) >= apart for other, _ in taken):
      taken.append((index, value))
  return taken


def find_frames(root: Path) -> dict[str, dict[str, Path]]:
  """Pictures of a folder CLIP/NNNNN.jpg: {clip: {stem: file}}; a folder of pictures alone is one clip.

  Raises:
    DataError: the folder is missing, or holds no picture.
  """
  if not root.is_dir():
    raise DataError('folder of frames not found', root, 'give a folder with CLIP/NNNNN.jpg')
  found = {folder.name: _pictures(folder) for folder in sorted(root.iterdir()) if folder.is_dir()}
  found = {clip: files for clip, files in found.items() if files}
  if not found and (files := _pictures(root)):
    found = {root.resolve().name: files}
  if not found:
    raise DataError('no frames laid out as CLIP/NNNNN.jpg', root, f'one of {", ".join(IMAGE_ENDINGS)} is read')
  return found


def strips(entry: Entry, frames: Path, truth: Path, masks: Path) -> dict[str, list[Picture]]:
  """For each clip with a J of each frame its worst frames, with the true and the predicted outline drawn in.

  Which frames these are is for the scores alone to say: where a clip's folder lacks one of them, as copies of DAVIS
  with every third frame do, the outlines lie on a plain ground.

  Args:
    entry: the score file; its J decides which frames are the worst.
    frames: folder with CLIP/NNNNN.jpg.
    truth: folder of annotations with CLIP/NNNNN.png, as for scoring.
    masks: the folder that the file is the score of.

  Returns:
    {clip: pictures, the worst first}.

  Raises:
    DataError: clips without frames, annotations or masks that are not there, all of them named, or whose J is not the
      file's.
  """
  wanted: dict[str, list[tuple[str, float]]] = {}
  for clip, content in entry.clips.items():
    if worst := worst_frames(entry.per_frame('J', clip) or []):
      wanted[clip] = [(content['frames'][index], j) for index, j in worst]
  pictures = _same_clips(find_frames(frames), wanted)
  if bare := [clip for clip in wanted if clip not in pictures]:
    raise DataError('clips without frames', name_list(bare), f'give a folder with them, here {frames}')
  annotations = _files(find_truth(truth), wanted, 'annotations', truth, {})
  predictions = _files(find_clips(masks, 'masks'), wanted, 'masks', masks, _empty_masks(entry))
  result: dict[str, list[Picture]] = {}
  for clip, rows in wanted.items():
    for frame, j in rows:
      true = load_mask(annotations[clip][frame]).truth()
      predicted = _prediction(predictions[clip].get(frame), true.shape, entry)
      _check_j(entry, clip, frame, j, predicted, true, masks)
      path = pictures[clip].get(frame)
      rgb = np.full((*true.shape, 3), _GROUND, np.uint8) if path is None else read_image(path)
      uri, size = _data_uri(draw_outlines(rgb, true, predicted))
      result.setdefault(clip, []).append(Picture(frame, j, uri, size, path is None))
  return result


def draw_outlines(rgb: np.ndarray, truth: np.ndarray, prediction: np.ndarray, width: int = _WIDTH) -> np.ndarray:
  """A small copy of a frame with the prediction tinted and outlined, and the truth outlined.

  The prediction's line lies inside of it and the truth's outside, so that both show where they agree.

  Args:
    rgb: uint8 (h, w, 3), RGB.
    truth: bool (h', w').
    prediction: bool (h'', w'').
    width: of the copy, in pixels; a narrower frame keeps its size.

  Returns:
    uint8 (height, width, 3), RGB.
  """
  h, w = rgb.shape[:2]
  size = (min(width, w), max(1, round(h * min(width, w) / w)))
  image = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
  # Areas, not nearest neighbours: thin parts must not vanish from the small copy.
  true, predicted = (
    cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.4 for mask in (truth, prediction)
  )
  tinted = cv2.addWeighted(image, 0.68, np.full_like(image, PREDICTED_COLOUR), 0.32, 0)
  image = np.where(predicted[..., None], tinted, image)
  disc = np.ones((3, 3), np.uint8)
  inside = predicted & ~cv2.erode(predicted.view(np.uint8), disc, iterations=2).astype(bool)
  outside = cv2.dilate(true.view(np.uint8), disc, iterations=2).astype(bool) & ~true
  halo = cv2.dilate(true.view(np.uint8), disc, iterations=3).astype(bool) & ~true & ~outside
  image[inside] = PREDICTED_COLOUR
  image[halo] = image[halo] // 3
  image[outside] = TRUE_COLOUR
  return image


def _pictures(folder: Path) -> dict[str, Path]:
  files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith('.'))
  return {path.stem: path for path in sorted(files, key=lambda path: natural_key(path.name))}


def _files(
  found: Mapping[str, Mapping[str, Any]],
  wanted: Mapping[str, Sequence[tuple[str, float]]],
  what: str,
  root: Path,
  empty: Mapping[str, Sequence[str]],
) -> dict[str, Mapping[str, Any]]:
  """Files of each wanted clip; a DataError names all that are not there."""
  found = _same_clips(found, wanted)
  missing = []
  for clip, rows in wanted.items():
    allowed = set(empty.get(clip, ()))
    stems = [frame for frame, _ in rows if frame not in found.get(clip, {}) and frame not in allowed]
    if stems:
      missing.append(f'{clip}: {name_list(sorted(stems, key=natural_key))}')
  if missing:
    advice = f'give a folder with them, here {root}, or no pictures at all'
    raise DataError(f'{what} missing of the worst frames', '; '.join(missing), advice)
  return {clip: found.get(clip, {}) for clip in wanted}


def _same_clips(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
  # One clip's own folder will do, whatever its name, as it does for scoring.
  return dict(zip(wanted, found.values(), strict=True)) if len(wanted) == len(found) == 1 else found


def _empty_masks(entry: Entry) -> Mapping[str, Sequence[str]]:
  missing = entry.scores.get('missing')
  return missing if isinstance(missing, Mapping) else {}


def _prediction(path: Path | None, shape: tuple[int, int], entry: Entry) -> np.ndarray:
  if path is None:
    return np.zeros(shape, bool)
  mask = load_mask_image(path).mask(entry.scores.get('threshold'))
  if mask.shape != shape:
    mask = cv2.resize(mask.view(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
  return mask


def _check_j(
  entry: Entry, clip: str, frame: str, j: float, predicted: np.ndarray, true: np.ndarray, masks: Path
) -> None:
  """A page that shows other masks than those scored would mislead without a sign of it."""
  here = jaccard(predicted, true)
  if abs(here - j) > _SAME_J:
    where = f'{entry.path}, {clip}/{frame}: J {j:.4f} in the file, {here:.4f} of {masks}'
    raise DataError('masks or annotations are not those that were scored', where, 'give the folders of that score')


def _data_uri(rgb: np.ndarray) -> tuple[str, tuple[int, int]]:
  buffer = io.BytesIO()
  Image.fromarray(rgb).save(buffer, 'WEBP', quality=_QUALITY, method=4)
  return 'data:image/webp;base64,' + base64.b64encode(buffer.getvalue()).decode('ascii'), rgb.shape[1::-1]
