"""What a training shows of itself: JSON lines always, TensorBoard where it can, pictures and profiles on demand.

Knows nothing of how a step is made; it gets numbers, arrays of pixels and names.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from absl import logging

from adnet_jax import appending

# TensorBoard's tag of a key of train.jsonl; those of metrics.jsonl are their own tags.
TAGS = {'loss': 'train/loss', 'lr': 'train/learning_rate', 'grad_norm': 'train/gradient_norm'}
# Pixels: larger pictures take longer to write than they are looked at.
PICTURE_SIDE, PICTURES = 240, 4


class Observer:
  """Writes WORKDIR/train.jsonl, metrics.jsonl, parameters.txt, tensorboard/; goes on where an earlier run stopped.

  train.jsonl is a function of configuration and data, so that a resumed run writes the very lines of one that was
  never stopped; what depends on the machine stands in metrics.jsonl. Nothing here raises on a full disk.
  """

  def __init__(self, workdir: Path | None, first: int):
    """Args:
    workdir: None where another process writes.
    first: step that comes next; lines of it and later ones, which are about to be done again, are removed.
    """
    self._workdir, self._events, self._profiling = workdir, None, False
    if workdir is None:
      return
    for name in ('train.jsonl', 'metrics.jsonl'):
      appending.cut_json_lines(workdir / name, first)
    self._log, self._metrics = (appending.Appender(workdir / name) for name in ('train.jsonl', 'metrics.jsonl'))
    self._events = _event_file(workdir / 'tensorboard', first)

  def step(self, line: Mapping[str, Any], measured: Mapping[str, float]) -> None:
    """Writes what a step was.

    Args:
      line: of train.jsonl; 'validation' may hold scores.
      measured: what the machine made of it, by TensorBoard tag.
    """
    if self._workdir is None:
      return
    self._log.append(_json_line(line))
    scores = {f'validation/{name}': value for name, value in (line.get('validation') or {}).items()}
    found = {**measured, **scores}
    self._metrics.append(_json_line({'step': line['step'], **found}))
    if self._events is not None:
      values = {**{tag: line[key] for key, tag in TAGS.items()}, **found}
      self._events.scalars(line['step'], {tag: value for tag, value in values.items() if value is not None})

  def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
    """Writes pictures side by side under their tag: uint8 (b, h, w, 3) each; `heat_colours` and `grey` make such."""
    if self._events is not None:
      for name, images in pictures.items():
        self._events.image(step, f'images/{name}', _side_by_side(images[:PICTURES]))

  def parameters(self, overview: str, first: int) -> None:
    """Writes the table of parameters."""
    if self._workdir is None:
      return
    appending.write_whole(self._workdir / 'parameters.txt', overview + '\n')
    if self._events is not None:
      self._events.text(first, 'parameters', ''.join(f'    {line}\n' for line in overview.splitlines()))

  def profile(self, wanted: bool) -> None:
    """Starts or ends a profile of what runs from here on, in WORKDIR/tensorboard."""
    if wanted == self._profiling or self._workdir is None:
      return
    self._profiling = wanted
    try:
      if wanted:
        jax.profiler.start_trace(str(self._workdir / 'tensorboard'))
      else:
        jax.profiler.stop_trace()
    except Exception as error:  # whatever a profiler has to say: training goes on
      logging.error('no profile: %s', error)


@contextmanager
def open_observer(workdir: Path | None, first: int) -> Iterator[Observer]:
  """An `Observer` whose profile, if one runs, ends with the block."""
  observer = Observer(workdir, first)
  try:
    yield observer
  finally:
    observer.profile(False)


class Meter:
  """Times of a loop whose steps are read one step late, so that a device always has its next one."""

  def __init__(self, images: int):
    """Args:
    images: a step, anchors and frames.
    """
    self.images = images
    self.seconds_at_peak: float | None = None  # that a step would take at the devices' full rate
    self._last = self._start = time.perf_counter()
    self._steps = 0

  def restart(self) -> None:
    """What was done since the last step, such as a validation, does not count."""
    now = time.perf_counter()
    self._start += now - self._last
    self._last = now

  def step(self, waited: float) -> dict[str, float]:
    """Numbers of the step that has just ended, by TensorBoard tag.

    Args:
      waited: seconds that the loop stood still for its data.
    """
    now = time.perf_counter()
    seconds, self._last = now - self._last, now
    self._steps += 1
    found = {
      'speed/step_seconds': seconds,
      'speed/data_wait_seconds': waited,
      'speed/images_per_second': self.images / seconds,
    }
    if self.seconds_at_peak is not None:
      found['speed/model_flop_utilisation'] = self.seconds_at_peak / seconds
    return found

  @property
  def mean_seconds(self) -> float:
    """A step, over all that have ended."""
    return (self._last - self._start) / max(self._steps, 1)


def grey(values: np.ndarray) -> np.ndarray:
  """(b, h, w) 0 to 1 -> uint8 (b, h, w, 3) in black and white."""
  return np.repeat((np.clip(values, 0, 1) * 255).astype(np.uint8)[..., None], 3, -1)


def heat_colours(values: np.ndarray) -> np.ndarray:
  """(b, h, w) 0 to 1 -> uint8 (b, h, w, 3), in OpenCV's colours TURBO."""
  levels = (np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
  return np.stack([cv2.applyColorMap(level, cv2.COLORMAP_TURBO)[..., ::-1] for level in levels])


def _side_by_side(images: np.ndarray) -> np.ndarray:
  scale = min(1, PICTURE_SIDE / max(images[0].shape[:2]))
  size = [max(1, round(side * scale)) for side in images[0].shape[1::-1]]
  return np.concatenate([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images], axis=1)


def _event_file(folder: Path, first: int) -> Any:
  try:
    from adnet_jax import events

    folder.mkdir(parents=True, exist_ok=True)
    return events.EventFile(folder, first)
  except ImportError as error:
    logging.warning(
      "TensorBoard files are not written, %s is missing: pip install 'adnet-jax[train]'", error.name or 'tensorboardX'
    )
  except OSError as error:
    logging.error('TensorBoard files are not written, %s: %s', folder, error.strerror)
  return None


def _json_line(values: Mapping[str, Any]) -> bytes:
  defined = {
    name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
  }
  return (json.dumps(defined) + '\n').encode()
