"""TensorBoard event files through tensorboardX's messages; knows nothing of training.

tensorboardX's own writer hands events to a thread that dies on a full disk, after which the training would wait for
it for ever; here each event is one append of `appending.Appender`.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from tensorboardX import summary as summaries
from tensorboardX.crc32c import crc32c
from tensorboardX.proto import event_pb2, summary_pb2

from adnet_jax import appending


class EventFile:
  """One more event file in a folder; what earlier ones say of the steps from `first` on is void for TensorBoard."""

  def __init__(self, folder: Path, first: int):
    # Numbered, not dated: TensorBoard reads a folder's files by name, and clocks jump.
    number = sum(1 for _ in folder.glob('events.out.tfevents.*'))
    self._file = appending.Appender(folder / f'events.out.tfevents.{number:010d}.{socket.gethostname()}')
    self._write(event_pb2.Event(file_version='brain.Event:2'))
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(event_pb2.Event(step=first, session_log=start))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Adds one value a tag."""
    found = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    self._write(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=found)))

  def image(self, step: int, tag: str, rgb: np.ndarray) -> None:
    """Adds a picture, uint8 (h, w, 3)."""
    _, data = cv2.imencode('.png', rgb[..., ::-1])
    picture = summary_pb2.Summary.Image(
      height=rgb.shape[0], width=rgb.shape[1], colorspace=3, encoded_image_string=data.tobytes()
    )
    value = summary_pb2.Summary.Value(tag=tag, image=picture)
    self._write(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=[value])))

  def text(self, step: int, tag: str, markdown: str) -> None:
    """Adds a text."""
    self._write(event_pb2.Event(step=step, summary=summaries.text(tag, markdown)))

  def _write(self, event: event_pb2.Event) -> None:
    event.wall_time = time.time()
    data = event.SerializeToString()
    length = struct.pack('<Q', len(data))
    self._file.append(length + _checksum(length) + data + _checksum(data))


def _checksum(data: bytes) -> bytes:
  """CRC-32C as TFRecord files have it, rotated and moved."""
  crc = crc32c(data)
  return struct.pack('<I', (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
