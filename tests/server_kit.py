"""A real server of the web page on a free port, a client for it, and small videos: what its tests share."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import tiny

from adnet_jax import writers
from adnet_jax.server import app, jobs, run, security, uploads, work

BOUNDARY = 'boundary-of-a-test'
LIMITS, TIMES, GUARD = uploads.Limits(reserve=0), jobs.Times(), security.Guard()


def write_video(path: Path, count: int = 5, size: tuple[int, int] = (64, 48), seed: int = 0, **options: Any) -> Path:
  """A video of `tiny.frames`; options are those of `av.open`."""
  with av.open(str(path), 'w', **options) as container:
    stream = container.add_stream('mpeg4', rate=12)
    stream.width, stream.height, stream.pix_fmt = *size, 'yuv420p'
    stream.bit_rate = 2_000_000
    for image in tiny.frames(count, size, seed):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
    container.mux(stream.encode())
  return path


def write_long_video(path: Path, seconds: int) -> Path:
  """A Matroska file of two frames that says it is `seconds` long, at 12 frames a second."""
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('mpeg4', rate=12)
    stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
    stream.codec_context.time_base = Fraction(1, 12)
    for image, time_of in zip(tiny.frames(2, (64, 48)), (0, seconds), strict=True):
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      frame.pts, frame.time_base = 12 * time_of, Fraction(1, 12)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def form(content: bytes, name: str = 'clip.mp4', field: str = 'file', end: bool = True) -> bytes:
  """A multipart body with one file."""
  disposition = f'Content-Disposition: form-data; name="{field}"; filename="{name}"'.encode()
  head = f'--{BOUNDARY}\r\n'.encode() + disposition + b'\r\nContent-Type: video/mp4\r\n\r\n'
  return head + content + (f'\r\n--{BOUNDARY}--\r\n'.encode() if end else b'')


@dataclasses.dataclass
class Answer:
  status: int
  headers: http.client.HTTPMessage
  body: bytes

  @property
  def json(self) -> Any:
    return json.loads(self.body)


class Client:
  """Asks the server as a program would."""

  def __init__(self, port: int, headers: dict[str, str] | None = None):
    self.port, self.headers = port, headers or {}

  def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)
    try:
      named = {name.replace('_', '-'): value for name, value in headers.items()}
      connection.request(method, path, body, {**self.headers, **named})
      response = connection.getresponse()
      return Answer(response.status, response.headers, response.read())
    finally:
      connection.close()

  def get(self, path: str, **headers: str) -> Answer:
    return self.ask('GET', path, **headers)

  def upload(self, content: bytes | Path, name: str = 'clip.mp4', **headers: str) -> Answer:
    content = content.read_bytes() if isinstance(content, Path) else content
    kind = f'multipart/form-data; boundary={BOUNDARY}'
    return self.ask('POST', '/api/jobs', form(content, name), Content_Type=kind, **headers)

  def job(self, job_id: str) -> dict[str, Any]:
    return self.get(f'/api/jobs/{job_id}').json

  def wait(self, job_id: str, *states: str, timeout: float = 60) -> dict[str, Any]:
    """The job once it is in one of the states."""
    until(lambda: self.job(job_id)['state'] in states, timeout, lambda: self.job(job_id))
    return self.job(job_id)

  @contextlib.contextmanager
  def events(self, job_id: str) -> Iterator[Iterator[tuple[str, Any]]]:
    """(name, data) of a job's events, as they come."""
    connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)
    connection.request('GET', f'/api/jobs/{job_id}/events', headers=self.headers)
    response = connection.getresponse()
    assert response.status == 200 and response.headers['content-type'].startswith('text/event-stream')

    def read() -> Iterator[tuple[str, Any]]:
      name = ''
      for line in response:
        if line.startswith(b'event: '):
          name = line[7:].decode().strip()
        elif line.startswith(b'data: '):
          yield name, json.loads(line[6:])

    try:
      yield read()
    finally:
      response.close()
      connection.close()


def until(done: Callable[[], bool], timeout: float = 30, shown: Callable[[], object] = lambda: None) -> None:
  """Waits for a condition."""
  end = time.monotonic() + timeout
  while not done():
    assert time.monotonic() < end, f'timed out: {shown()}'
    time.sleep(0.02)


class FakeWork:
  """Masks without a network: frame k of run n has its foreground in row k; `gate` holds every run after its first one.

  Attributes:
    began: uploads' contents in the order in which they were worked on.
  """

  def __init__(self, frames: int = 4, held: bool = False):
    self.frames, self.gate, self.began = frames, threading.Event(), list[bytes]()
    if not held:
      self.gate.set()

  def __call__(self, run: jobs.Run) -> None:
    self.began.append(run.upload.read_bytes())
    for k in range(self.frames):
      mask = np.zeros((48, 64), bool)
      mask[k] = True
      writers.write_mask(jobs.mask_path(run.folder, k), mask)
      work.write_preview(run.previews, k, np.full((48, 64, 3), 10 * k, np.uint8))
      run.read = max(run.read, k + 1)
      run.advance(k + 1)
      while not self.gate.wait(0.02):
        run.check()
      run.check()
    (run.folder / 'summary.json').write_text('{}')


class FakeMaps:
  """A map that is brightest where the pixel is."""

  possible = True

  def product(self, asked: Path, over: Path, place: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    found = np.zeros((3, 5), np.float32)
    found[round(2 * place[1]), round(4 * place[0])] = 1
    return found


@contextlib.contextmanager
def serving(
  root: Path,
  worker: Callable[[jobs.Run], None],
  *,
  similar: Any = None,
  limits: uploads.Limits = LIMITS,
  times: jobs.Times = TIMES,
  guard: security.Guard = GUARD,
  most: int = 50,
) -> Iterator[Client]:
  """A client of a server in this process, whose uploads and results lie in `root`."""
  root.mkdir(parents=True, exist_ok=True)
  queue = jobs.Jobs(root, worker, times=times, most=most)
  server = run.Server(queue, app.create_app(app.Site(queue, similar or FakeMaps(), limits, guard, 'tiny')))
  with socket.create_server(('127.0.0.1', 0)) as listener:
    thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
      yield Client(listener.getsockname()[1])
    finally:
      server.should_exit = True
      thread.join(20)
      queue.stop()
  assert not thread.is_alive() and not root.exists()
