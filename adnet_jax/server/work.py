"""What a run does: masks, overlay and archives of an uploaded clip, and small pictures of it; knows no request."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from adnet_jax import masks as mask_files
from adnet_jax import pipeline, shots
from adnet_jax.errors import DataError, UsageError
from adnet_jax.outputs import forms
from adnet_jax.segmenter import Segmenter
from adnet_jax.server.jobs import Run, mask_path, preview_path
from adnet_jax.server.refused import Refused
from adnet_jax.server.uploads import Limits
from adnet_jax.sources import Frame, VideoFile
from adnet_jax.writers import reason

# Longest side of the pictures on the page.
PREVIEW = 768
# What can be wanted beside masks and overlay.
FORMS = ('heatmaps', *forms.FILES)
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 85)


class _Upload(VideoFile):
  """An uploaded clip that leaves a small picture of each frame where there is none yet, and ends at the limits."""

  def __init__(self, run: Run, limits: Limits):
    super().__init__('clip', run.upload)
    self._run, self._limits = run, limits

  def __iter__(self) -> Iterator[Frame]:
    pixels = 0
    for frame in super().__iter__():
      self._run.check()
      pixels += frame.image.shape[0] * frame.image.shape[1]
      if frame.index >= self._limits.frames or pixels > self._limits.total:
        raise DataError(f'the video is longer than it says: only its first {frame.index:,} frames were taken')
      if frame.index >= self._run.read:
        write_preview(self._run.previews, frame.index, frame.image)
        self._run.read = frame.index + 1
      yield frame


def segment(run: Run, segmenter: Segmenter, limits: Limits, model_name: str = '') -> None:
  """Makes the files of a run: masks/NNNNN.png, overlay.mp4, summary.json, `also`, and an archive of each folder.

  Args:
    run: gets the number of masks that are there; its `clip.frames` becomes the number found.
    segmenter: how.
    limits: of the clip's frames, counted as they are read.
    model_name: for the summary.

  Raises:
    Stopped: the run was told to end.
    DataError: the video cannot be read to its end, of which all masks before it are there; or the disk is full.
  """
  try:
    done = 0

    def note_anchors(items: Iterator[pipeline.Item]) -> Iterator[pipeline.Item]:
      shot = 0
      for item in items:
        if item.shot != shot:
          shot = item.shot
          run.anchors.append(item.frame.index)
        yield item

    def progress() -> None:
      nonlocal done
      run.check()
      # Masks are written behind the computation, by several threads: those count which no earlier one is missing of.
      while mask_path(run.folder, done).exists():
        done += 1
      run.advance(done)

    try:
      summary = pipeline.segment_clip(
        segmenter, _Upload(run, limits), run.folder, _outputs(run.also), model_name=model_name,
        anchor='auto' if run.auto else run.anchor, progress=progress, filters=[note_anchors],
      )  # fmt: skip
    except DataError:
      progress()
      if run.done:
        run.clip = dataclasses.replace(run.clip, frames=run.done)
        _pack_folders(run.folder, run.check)
      raise
    progress()
    run.clip = dataclasses.replace(run.clip, frames=run.done)
    run.warnings = [f'{text[0].upper()}{text[1:].rstrip(".")}.' for text in summary['warnings']]
    _pack_folders(run.folder, run.check)
  except OSError as error:
    raise DataError(f'cannot be written: {reason(error)}') from error


def check_anchor(text: str) -> bool:
  """Whether each shot is to have an anchor of its own ('auto') and not the first frame alone ('first', or nothing).

  Raises:
    Refused: 422, another text, or what finds cuts is not installed.
  """
  if text not in ('', 'first', 'auto'):
    raise Refused(422, f'"anchor" is first or auto, not {text[:40]!r}.')
  if text == 'auto':
    try:
      shots.check_installed()
    except UsageError as error:
      raise Refused(422, f'{error.what[0].upper()}{error.what[1:]}.') from None
  return text == 'auto'


def check_forms(text: str) -> tuple[str, ...]:
  """Names of forms in a list such as 'webm, cutouts'.

  Raises:
    Refused: 422, an unknown one, or one that needs an extra which is not installed.
  """
  names = tuple(dict.fromkeys(name.strip() for name in text.split(',') if name.strip()))
  if unknown := [name for name in names if name not in FORMS]:
    raise Refused(422, f'"also" knows no {unknown[0][:40]!r}, only {", ".join(FORMS)}.')
  try:
    _outputs(names)
  except UsageError as error:
    raise Refused(422, f'{error.what[0].upper()}{error.what[1:]}.') from error
  return names


def _outputs(also: tuple[str, ...]) -> pipeline.Outputs:
  # What a form is made of comes from here alone: a background may be a file, and users name none.
  return pipeline.Outputs(
    heatmaps='heatmaps' in also, forms=forms.make_forms([name for name in also if name != 'heatmaps'], forms.BLUR)
  )


def _pack_folders(folder: Path, check: Callable[[], None]) -> None:
  """FOLDER.zip of each folder of results, whole or not at all."""
  for part in sorted(path for path in folder.iterdir() if path.is_dir()):
    files = sorted(path for path in part.rglob('*') if path.is_file() and not path.name.startswith('.'))
    temporary = folder / f'.adnet-{os.getpid()}-{part.name}.tmp'
    try:
      # Pictures are compressed already.
      with zipfile.ZipFile(temporary, 'w', zipfile.ZIP_STORED) as archive:
        for path in files:
          check()
          archive.write(path, f'{part.name}/{path.relative_to(part)}')
      os.replace(temporary, folder / f'{part.name}.zip')
      if part.name != 'masks':  # which the page shows one by one
        shutil.rmtree(part)
    except BaseException:
      with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
      raise


def preview_size(width: int, height: int) -> tuple[int, int]:
  """(width, height) of the small pictures of a clip."""
  scale = min(1.0, PREVIEW / max(width, height))
  return max(1, round(width * scale)), max(1, round(height * scale))


def write_preview(previews: Path, index: int, image: np.ndarray) -> None:
  """Writes the small JPEG of a frame, (h, w, 3) uint8 RGB."""
  size = preview_size(image.shape[1], image.shape[0])
  small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if size != image.shape[1::-1] else image
  _write_whole(preview_path(previews, index), cv2.imencode('.jpg', small[..., ::-1], JPEG)[1].tobytes())


def encode_mask(path: Path) -> bytes:
  """The mask in a file as a small PNG: white where it is foreground, transparent elsewhere."""
  mask = mask_files.read_mask(path).astype(np.uint8)
  size = preview_size(mask.shape[1], mask.shape[0])
  if size != mask.shape[::-1]:
    mask = (cv2.resize(mask * 255, size, interpolation=cv2.INTER_AREA) > 127).astype(np.uint8)
  picture = Image.fromarray(mask)
  picture.putpalette([0, 0, 0, 255, 255, 255])
  buffer = io.BytesIO()
  picture.save(buffer, 'PNG', transparency=0, bits=1)
  return buffer.getvalue()


def _write_whole(path: Path, content: bytes) -> None:
  """Writes a file that appears whole or not at all."""
  path.parent.mkdir(exist_ok=True)
  temporary = path.with_name(f'.adnet-{os.getpid()}-{path.name}.tmp')
  try:
    temporary.write_bytes(content)
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise
