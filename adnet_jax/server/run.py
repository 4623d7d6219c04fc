"""Starts the web page and ends it: model, socket, temporary folder, signals; knows no route."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from adnet_jax import environment, weights
from adnet_jax.errors import UsageError
from adnet_jax.exits import INTERRUPTED, TERMINATED
from adnet_jax.segmenter import Segmenter
from adnet_jax.server import app, jobs, maps, security, uploads, work
from adnet_jax.writers import import_av, reason

PREFIX = 'adnet-serve-'
LIMITS = uploads.Limits()


def serve(
  host: str,
  port: int,
  token: str | None,
  *,
  model: str = weights.DEFAULT_MODEL,
  size: tuple[int, int] | None = None,
  device: str | None = None,
  limits: uploads.Limits = LIMITS,
) -> int:
  """Serves the page until a signal ends it.

  Args:
    host: address or name to listen at.
    port: 0 for any that is free.
    token: that requests have to bring; where others can reach `host` one is made up if none is given.
    model: name or file.
    size: (width, height) of the network's input; None for the default geometry.
    device: 'cpu', 'gpu', 'tpu' or None for what JAX prefers.
    limits: of uploads.

  Returns:
    The exit code that stands for the signal.

  Raises:
    UsageError: the address cannot be listened at; PyAV is missing.
    WeightsError, DeviceError: the model or the device cannot be used.
  """
  import_av()
  if token is None and not security.is_loopback(host):
    token = secrets.token_urlsafe(18)
  with contextlib.closing(_listen(host, port)) as listener, _folder() as root:
    environment.keep_memory()
    environment.set_up(device)
    segmenter = Segmenter.from_pretrained(model, size=size, device=device)
    queue = jobs.Jobs(root, lambda run: work.segment(run, segmenter, limits, str(model)))
    try:
      guard = security.Guard(host, token)
      site = app.Site(queue, maps.Maps(segmenter), limits, guard, Path(model).stem)
      server = Server(queue, app.create_app(site))
      shown = socket.gethostname() if host in ('0.0.0.0', '::', '') else f'[{host}]' if ':' in host else host
      address = f'http://{shown}:{listener.getsockname()[1]}/'
      print(f'page: {address}' + ('' if token is None else f'?token={token}') + ' (Ctrl-C ends it)', flush=True)
      status = _until_signal(server, listener)
    finally:
      ended = queue.stop()
  print('stopped: every upload and result is removed', file=sys.stderr, flush=True)
  if not ended:
    # A program that is being compiled cannot be interrupted, and would bring the interpreter's own end down.
    os._exit(status)
  return status


class Server(uvicorn.Server):
  """Uvicorn that ends the jobs' event streams as soon as it is told to end, or it would wait for them."""

  def __init__(self, queue: jobs.Jobs, application):
    super().__init__(
      uvicorn.Config(
        application,
        lifespan='off',
        log_level='warning',
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=5,
        ws='none',
      )
    )
    self._queue = queue

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    self._queue.close()
    await super().shutdown(sockets)


def _until_signal(server: Server, listener: socket.socket) -> int:
  caught: list[int] = []

  def note(number: int, _frame: object) -> None:
    caught.append(number)

  # Uvicorn raises the signals that ended it again, for whoever had a handler before.
  before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    server.run(sockets=[listener])
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  return TERMINATED if signal.SIGTERM in caught else INTERRUPTED


def _listen(host: str, port: int) -> socket.socket:
  if port > 65_535:
    raise UsageError('no such port', str(port), 'ports end at 65535')
  try:
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)
  except OSError as error:
    raise UsageError(f'cannot listen: {reason(error)}', f'{host}:{port}', 'choose another --host or --port') from error


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
  """A folder for uploads and results, gone at the end; what servers left that were killed is removed first."""
  place = Path(tempfile.gettempdir())
  for folder in place.glob(f'{PREFIX}*'):
    with contextlib.suppress(OSError):
      if folder.stat().st_uid == os.getuid() and not folder.is_symlink():
        with _locked(folder):  # refuses where its server lives
          shutil.rmtree(folder, ignore_errors=True)
  root = Path(tempfile.mkdtemp(prefix=PREFIX))
  try:
    with _locked(root):
      (root / 'jobs').mkdir()
      yield root / 'jobs'
  finally:
    shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
  """Holds a lock that ends with this process; OSError where another one holds it."""
  with (folder / 'lock').open('w') as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
