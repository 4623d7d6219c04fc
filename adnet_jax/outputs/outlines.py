"""Outlines of masks as SVG: of each frame a file, or of all frames one that plays; knows nothing of videos."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from adnet_jax.outputs.growing import GrowingFile
from adnet_jax.writers import write_bytes

# Twice as fine as pixels; how far a straight line may pass by the corners of pixels, in pixels.
_FINE = 2
_TOLERANCE = 0.6
_LOOK = 'fill="#1c94ff" fill-opacity=".45" fill-rule="evenodd" stroke="#1c94ff" stroke-linejoin="round"'


def outline(mask: np.ndarray) -> list[np.ndarray]:
  """Closed outlines of a mask, those of holes too; filled by the even-odd rule they give the mask.

  Args:
    mask: bool (h, w).

  Returns:
    float64 (n, 2) each, x and y in pixels from the picture's upper left corner; up to .6 pixels beside the pixels' own
    edges. What is narrower than that may be missing.
  """
  fine = np.repeat(np.repeat(mask.astype(np.uint8), _FINE, axis=0), _FINE, axis=1)
  found, _ = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
  simple = (cv2.approxPolyDP(line, _TOLERANCE * _FINE, True).reshape(-1, 2) for line in found)
  return [(line + 0.5) / _FINE for line in simple if len(line) > 2]


def path_data(lines: Sequence[np.ndarray]) -> str:
  """Closed outlines as the `d` of an SVG path, in quarters of a pixel; '' of none."""
  return ''.join(f'M{" ".join(f"{x:g},{y:g}" for x, y in line.tolist())}Z' for line in lines)


def svg(mask: np.ndarray) -> str:
  """A mask's outline as an SVG document of the mask's size."""
  return f'{_head(mask.shape)}<g {_LOOK}>\n<path d="{path_data(outline(mask))}"/>\n</g>\n</svg>\n'


class SvgWriter:
  """An SVG a frame, in a folder."""

  def __init__(self, folder: Path):
    self.folder, self.warnings = folder, list[str]()

  def write(
    self, frame: np.ndarray, mask: np.ndarray, probability: np.ndarray | None, name: str, time: Fraction | None
  ) -> None:
    write_bytes(self.folder / f'{name}.svg', svg(mask).encode())

  def close(self) -> None:
    pass

  def abort(self) -> None:
    pass


class SvgFilmWriter:
  """One SVG with a path a frame, whose id is `frame-NAME`; browsers show one after the other, again and again."""

  def __init__(self, path: Path, rate: Fraction):
    """Args:
    path: of the file.
    rate: frames per second, where no time is given.
    """
    self.warnings: list[str] = []
    self._file, self._rate = GrowingFile(path), rate
    self._clock = self._first = Fraction(0)
    self._waiting: tuple[str, str, Fraction] | None = None

  def write(
    self, frame: np.ndarray, mask: np.ndarray, probability: np.ndarray | None, name: str, time: Fraction | None
  ) -> None:
    self._clock = self._clock + 1 / self._rate if time is None else Fraction(time)
    if not self._file.begun:
      self._first = self._clock
      self._file.write(f'{_head(mask.shape)}<g {_LOOK}>\n')
    start = self._clock - self._first
    self._flush(start)
    self._waiting = name, path_data(outline(mask)), start

  def close(self) -> None:
    if not self._file.begun:
      return
    end = self._clock - self._first + 1 / self._rate
    self._flush(end)
    # What all the others count from; known only now.
    clock = f'<animate id="clock" attributeName="x" from="0" to="0" begin="0s;clock.end" dur="{float(end):.4f}s"/>'
    self._file.write(f'</g>\n<rect width="0" height="0">{clock}</rect>\n</svg>\n')
    self._file.close()

  def abort(self) -> None:
    self._file.abort()

  def _flush(self, until: Fraction) -> None:
    if self._waiting is None:
      return
    name, data, start = self._waiting
    if start == 0:  # the first one stays where nothing plays
      shown = f'<set attributeName="visibility" to="hidden" begin="clock.begin+{float(until):.4f}s" end="clock.end"/>'
      self._file.write(f'<path id="frame-{_escaped(name)}" d="{data}">{shown}</path>\n')
      return
    times = f'begin="clock.begin+{float(start):.4f}s" dur="{float(max(until - start, Fraction(1, 1000))):.4f}s"'
    shown = f'<set attributeName="visibility" to="visible" {times}/>'
    self._file.write(f'<path id="frame-{_escaped(name)}" visibility="hidden" d="{data}">{shown}</path>\n')


def _head(shape: tuple[int, ...]) -> str:
  h, w = shape
  return f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}">\n'


def _escaped(text: str) -> str:
  for sign, code in (('&', '&amp;'), ('<', '&lt;'), ('"', '&quot;')):
    text = text.replace(sign, code)
  return text
