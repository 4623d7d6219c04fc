"""Finds the shots of a film while it is read, a few frames behind; knows neither files nor networks."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np

from adnet_jax.errors import DataError, UsageError

# Frames that PySceneDetect looks ahead, over which it averages a picture's change; and frames of the shortest shot.
WINDOW = 2
SHORTEST = 10
# How many times its neighbours' change a cut's is. At PySceneDetect's own 3, 88 of 111 cuts between DAVIS's validation
# clips are found, at 2 107, and none within the clips (1,376 frames).
RATIO = 2.0
# Pixels of the longer side at which frames are compared: its own advice for speed, and noise is averaged out.
SIDE = 256


class Picture(Protocol):
  """A frame of a clip: its number from 0, and uint8 (h, w, 3) RGB."""

  @property
  def index(self) -> int: ...

  @property
  def image(self) -> np.ndarray: ...


P = TypeVar('P', bound=Picture)


def split(pictures: Iterable[P]) -> Iterator[tuple[P, int]]:
  """Frames with the number of their shot, from 0; holds WINDOW frames.

  Cuts are those of PySceneDetect's AdaptiveDetector: a change of colours that stands out from its neighbours', so that
  a pan or a fast object is none. Dissolves and fades are not found. Where the frames' size changes a shot begins too.

  Raises:
    UsageError: PySceneDetect is not installed.
    DataError: what `pictures` raises, after the frames before it.
  """
  make_detector, timecode = _import_detector()
  waiting: collections.deque[tuple[int, P]] = collections.deque()
  detector: Any = None
  shape: tuple[int, ...] = ()
  shot = 0
  failure = None
  iterator = enumerate(pictures)
  while True:
    try:
      number, picture = next(iterator)
    except StopIteration:
      break
    except DataError as error:
      failure = error
      break
    if picture.image.shape != shape:
      while waiting:
        yield waiting.popleft()[1], shot
      shot += bool(shape)
      shape = picture.image.shape
      detector = make_detector(adaptive_threshold=RATIO, min_scene_len=SHORTEST, window_width=WINDOW)
    waiting.append((number, picture))
    cuts = detector.process_frame(timecode(number, 25.0), _small(picture.image))
    starts = {cut.frame_num for cut in cuts}
    while waiting and waiting[0][0] <= number - WINDOW:
      first, ready = waiting.popleft()
      shot += first in starts
      yield ready, shot
  while waiting:
    yield waiting.popleft()[1], shot
  if failure is not None:
    raise failure


def check_installed() -> None:
  """Raises UsageError where PySceneDetect is not."""
  _import_detector()


def _small(image: np.ndarray) -> np.ndarray:
  """(h', w', 3) uint8 BGR, as PySceneDetect takes it."""
  height, width = image.shape[:2]
  factor = min(1.0, SIDE / max(height, width))
  size = (max(1, round(width * factor)), max(1, round(height * factor)))
  small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if size != (width, height) else image
  return np.ascontiguousarray(small[..., ::-1])


def _import_detector() -> tuple[Any, Any]:
  try:
    from scenedetect.common import FrameTimecode  # type: ignore[import-untyped]
    from scenedetect.detectors import AdaptiveDetector  # type: ignore[import-untyped]
  except ImportError:
    advice = "pip install 'adnet-jax[video]', or give --anchor first"
    raise UsageError('PySceneDetect, which finds cuts, is not installed', '--anchor auto', advice) from None
  return AdaptiveDetector, FrameTimecode
