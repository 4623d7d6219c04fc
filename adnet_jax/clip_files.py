"""What is written of a clip, what becomes of an earlier run's files, and who gets its frames; knows no network."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from adnet_jax import video
from adnet_jax.errors import DataError, UsageError
from adnet_jax.outputs import forms


class Writer(Protocol):
  """Gets the frames of one clip in their order, in a thread of its own.

  After a call that raised, `abort` and nothing else is called. `close` is called after the last frame, also of a clip
  that broke off: what was segmented until then is worth having.

  Attributes:
    warnings: sentences for the user, looked at after `close`.
  """

  warnings: list[str]

  def write(
    self, frame: np.ndarray, mask: np.ndarray, probability: np.ndarray | None, name: str, time: Fraction | None
  ) -> None:
    """Adds a frame.

    Args:
      frame: (h, w, 3) uint8 RGB.
      mask: (h, w) bool.
      probability: (h, w) float32 in [0, 1] where the form asks for it, else None or what another one asked for.
      name: stem of the files of this frame.
      time: seconds since the video's first frame; None for image files.

    Raises:
      DataError: it cannot be written.
    """

  def close(self) -> None:
    """Ends the files and gives them their names; DataError where that fails. Nothing is left where no frame came."""

  def abort(self) -> None:
    """Drops what was written."""


class Form(Protocol):
  """A form in which clips are written beside their masks; holds settings alone, as it may travel to other processes.

  Attributes:
    stage: its name in the summary's `seconds`; no two forms of a run have the same.
    soft: whether its writers need probabilities.
  """

  @property
  def stage(self) -> str: ...

  @property
  def soft(self) -> bool: ...

  def open(self, out: Path, source: video.Source) -> Writer:
    """A writer of one clip into the folder `out`; UsageError where an extra is not installed."""

  def files(self, out: Path) -> list[Path]:
    """Which of its files are in `out`, from an earlier run."""


@dataclasses.dataclass(frozen=True)
class Outputs:
  """What is written for a clip, and what happens to what is there already.

  Attributes:
    heatmaps: whether 16-bit probabilities are written beside the masks.
    overlay: whether overlay.mp4 is written.
    summary: whether summary.json is written.
    resume: keep the masks that exist and go on at the first missing one.
    overwrite: remove earlier results, as soon as the first frame was read.
    forms: what else is written.
    mask_form: how masks are stored (see `writers.write_mask`).
  """

  heatmaps: bool = False
  overlay: bool = True
  summary: bool = True
  resume: bool = False
  overwrite: bool = False
  forms: tuple[Form, ...] = ()
  mask_form: str = '0-255'

  @property
  def soft(self) -> bool:
    """Whether probabilities are wanted."""
    return self.heatmaps or any(form.soft for form in self.forms)


class OverlayForm:
  """overlay.mp4, for people to look at."""

  stage, soft = 'overlay', False

  def open(self, out: Path, source: video.Source) -> Writer:
    return _Overlay(forms.open_movie(video.OverlayWriter, out / 'overlay.mp4', source))

  def files(self, out: Path) -> list[Path]:
    return [path for path in (out / 'overlay.mp4',) if path.exists()]


class _Overlay:
  def __init__(self, writer: video.OverlayWriter):
    self._writer, self.warnings = writer, writer.warnings
    self.close, self.abort = writer.close, writer.abort

  def write(self, frame, mask, probability, name, time) -> None:
    self._writer.write(frame, mask, time)


def check_free(out: Path, outputs: Outputs) -> None:
  """Refuses a folder with results in it unless told what to do with them (fault 7); removes nothing."""
  found = _results_in(out, out / 'masks', out / 'heatmaps', outputs)
  if found and not (outputs.resume or outputs.overwrite):
    raise UsageError(
      'output folder already holds results', found[0].parent, 'add --overwrite or --resume, or choose another'
    )


def remove_results(out: Path, masks: Path, heatmaps: Path, outputs: Outputs) -> None:
  """Removes what an earlier run left, and nothing else that lies in these folders."""
  try:
    for path in _results_in(out, masks, heatmaps, outputs):
      path.unlink()
    for folder in (out, masks, heatmaps, *forms.folders(out)):
      for path in folder.glob('.adnet-*.tmp'):  # of a run that was killed
        path.unlink()
  except OSError as error:
    raise DataError(f'cannot be removed: {error.strerror}', error.filename, 'choose another folder') from error


def written(out: Path, masks: Path, heatmaps: Path, outputs: Outputs) -> list[str]:
  """Files and folders of a clip's folder that this run has written, folders with a slash at the end."""
  wanted = (OverlayForm(), *outputs.forms) if outputs.overlay else outputs.forms
  entries = {out / path.relative_to(out).parts[0] for form in wanted for path in form.files(out)}
  entries |= {masks, heatmaps} if outputs.heatmaps else {masks}
  found = (entry for entry in entries if entry.parent == out and entry.exists())
  return sorted(f'{entry.name}/' if entry.is_dir() else entry.name for entry in found)


def write_json(path: Path, content: dict[str, Any]) -> None:
  """Writes a JSON file atomically; DataError where it cannot be written."""
  temporary = path.with_name(f'.adnet-{os.getpid()}-{path.stem}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
    os.replace(temporary, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise DataError(f'cannot be written: {error.strerror}', path, 'free space or choose another folder') from error


def _results_in(out: Path, masks: Path, heatmaps: Path, outputs: Outputs) -> list[Path]:
  """What an earlier run left."""
  # Of forms that are not wanted, too: beside new masks they would show old ones.
  own = [path for form in (OverlayForm(), *outputs.forms) for path in form.files(out)]
  files = list(dict.fromkeys([*own, *forms.results(out)]))
  files += [path for path in (out / 'summary.json',) if path.exists()]
  folders = [sorted(folder.glob('*.png')) for folder in (masks, heatmaps) if folder.is_dir()]
  return [*files, *(path for found in folders for path in found)]
