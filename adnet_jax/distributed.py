"""Several processes that train as one: how they find each other and how all end with one; knows nothing of training.

JAX's own service starts them and counts their heartbeats, but where a process is gone it says so late, or aborts the
others. So each process also holds a connection to process 0, whose end is seen at once: a star of plain sockets.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hmac
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

from absl import logging

from adnet_jax import exits
from adnet_jax.errors import DeviceError, UsageError

# Seconds that a process may be silent, or late at the start, before the others give it up.
TIMEOUT = 100
# Seconds, at most, that a process has to end by itself when another one has said that it ends.
GRACE = 10
_LOST = DeviceError.exit_code
_SAME_COMMAND = 'start all processes again with the same commands, they go on from the last checkpoint'


class Place(NamedTuple):
  """Which of how many processes this one is, and where process 0 listens."""

  coordinator: str
  processes: int
  process: int


def place(coordinator: str | None, processes: int | None, process: int | None) -> Place | None:
  """The place that the command line names; None where it names none.

  Raises:
    UsageError: only a part is named, or there is no such place.
  """
  if coordinator is None and processes is None and process is None:
    return None
  flags = '--coordinator, --processes, --process'
  if coordinator is None or processes is None or process is None:
    raise UsageError('only a part of a place among processes is named', flags, 'give all three')
  if not coordinator.rpartition(':')[0] or not coordinator.rpartition(':')[2].isdigit():
    raise UsageError(f'{coordinator!r} is no HOST:PORT', '--coordinator', 'such as 10.0.0.1:1234, a free port there')
  if not 0 <= process < processes:
    raise UsageError(f'process {process} of {processes}', flags, 'processes are numbered from 0 to N - 1')
  return Place(coordinator, processes, process)


_star: _Star | None = None
_must_leave = False  # inside `joined`, or left by an error


@contextlib.contextmanager
def joined(where: Place | None, timeout: int = TIMEOUT) -> Iterator[None]:
  """While entered, this process is one of several and ends with exit code 6 where another one is lost (fault 28).

  To be entered before JAX looks for its devices. When the block is left without an error, all processes have left it.

  Args:
    where: None where the cluster is to say it: a TPU pod, Slurm, Open MPI or Kubernetes.
    timeout: seconds that a process may be silent, or late at the start.

  Raises:
    UsageError: the cluster says nothing.
    DeviceError: the others did not come.
  """
  global _star, _must_leave
  import jax
  from jax._src import distributed as state

  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # It would take SIGTERM for itself; all processes stop at the same step without it (train.py).
  jax.config.update('jax_enable_preemption_service', False)
  _must_leave = True
  apart = DeviceError(
    'the processes did not find each other', where and where.coordinator, f'start all of them within {timeout} s'
  )
  _call_on_abort(lambda: _end(_LOST, str(apart)))  # JAX's way to say so in process 0
  try:
    jax.distributed.initialize(
      where and where.coordinator,
      where and where.processes,
      where and where.process,
      initialization_timeout=timeout,
      heartbeat_timeout_seconds=timeout,
      shutdown_timeout_seconds=timeout,
    )
  except ValueError as error:
    raise UsageError(
      'nothing says which process this is: no TPU pod, Slurm, Open MPI or Kubernetes is found',
      '--distributed',
      'give --coordinator HOST:PORT --processes N --process K instead',
    ) from error
  except RuntimeError as error:
    raise apart from error
  found = state.global_state
  assert found.coordinator_address is not None
  _star = star = _Star(found.process_id, found.num_processes, found.coordinator_address, found.client, timeout)
  try:
    yield
  except BaseException as error:
    if type(error).__name__ == 'JaxRuntimeError':
      await_loss()
    star.say_end(str(error) or type(error).__name__)
    raise
  star.finish()
  jax.distributed.shutdown()
  star.close()
  _star, _must_leave = None, False


def leave(status: int) -> None:
  """Ends this process where it failed inside `joined`: JAX would wait for the others on the way out."""
  if _star is not None:
    _star.wait_for_others()
  if _must_leave:
    exits.leave(status)


def _end(status: int, line: str) -> NoReturn:
  """Ends the process with an error, whatever its main thread waits for."""
  os.write(2, f'error: {" ".join(line.split())}\n'.encode())
  exits.leave(status)


def await_loss() -> None:
  """Where a collective failed: if that was a lost process, its connection ends this one now, naming it (fault 28)."""
  if _star is not None:
    time.sleep(1)


class _Star:
  """Connections of all processes to process 0, which passes on what it hears.

  A line is `hello TOKEN PROCESS HOST` (once, from each), `end WHO WHY` (ends by itself, with an error), `lost WHO`, or
  `finished` (leaves in order). A connection that closes without the last two belonged to a process that was lost.
  """

  def __init__(self, process: int, processes: int, coordinator: str, client, timeout: int):
    self._process, self._me = process, f'process {process} ({socket.gethostname()})'
    self._finished = threading.Event()  # this process leaves in order: what others do no longer matters
    self._ending = False  # this process, or another that has said so
    self._why = f'the runtime of {self._me} aborted, see above'
    self._grace = min(GRACE, timeout)
    self._lock = threading.Lock()
    self._peers: dict[int, socket.socket] = {}
    _call_on_abort(self._aborted)
    if process == 0:
      token = secrets.token_hex(16)
      family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
      self._server = socket.create_server(
        ('', 0), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=processes
      )
      client.key_value_set('adnet_jax/star', f'{self._server.getsockname()[1]} {token} {socket.gethostname()}')
      _start(lambda: self._accept(token, processes - 1))
      return
    port, token, host = client.blocking_key_value_get('adnet_jax/star', timeout * 1000).split()
    try:
      link = socket.create_connection((coordinator.rpartition(':')[0].strip('[]'), int(port)), timeout=10)
    except OSError as error:
      logging.warning(
        'process 0 (%s), port %s cannot be reached (%s): a lost process is noticed late', host, port, error
      )
      return
    link.settimeout(None)
    self._peers[0] = _kept_alive(link)
    _send(link, f'hello {token} {process} {socket.gethostname()}')
    _start(lambda: self._listen(0, f'process 0 ({host})', link.makefile()))

  def _accept(self, token: str, count: int) -> None:
    while len(self._peers) < count:
      try:
        link, _ = self._server.accept()
      except OSError:  # closed: this process has left
        return
      _start(functools.partial(self._greet, link, token))

  def _greet(self, link: socket.socket, token: str) -> None:
    link.settimeout(10)
    lines = link.makefile()
    try:
      word, offered, process, host = lines.readline(200).split()
    except (OSError, ValueError):
      word, offered, process, host = '', '', '', ''
    if word != 'hello' or not hmac.compare_digest(offered, token):
      link.close()
      return
    link.settimeout(None)
    with self._lock:
      self._peers[int(process)] = _kept_alive(link)
    self._listen(int(process), f'process {process} ({host})', lines)

  def _listen(self, process: int, name: str, lines) -> None:
    with contextlib.suppress(OSError, ValueError):
      for line in lines:
        word, _, text = line.strip().partition(' ')
        if word == 'finished':
          return
        if word == 'end':
          self._tell(f'end {text}', but=process)
          self._end_soon(text)
          break
        if word == 'lost':
          self._lost(text)
    with self._lock:
      self._peers.pop(process, None)
    if not self._ending:
      self._tell(f'lost {name}', but=process)
      self._lost(name)

  def _lost(self, name: str) -> None:
    if not self._finished.is_set():
      _end(_LOST, str(DeviceError(f'{name} was lost', None, f'see its own last lines; {_SAME_COMMAND}')))

  def _end_soon(self, text: str) -> None:
    """Another process has ended with an error; what ended it mostly ends this one too, in its own words."""
    self._ending, self._why = True, f'{text}; this process ends with it'

    def end() -> None:
      if not self._finished.wait(self._grace + (self._process == 0)):
        _end(_LOST, str(DeviceError(self._why, None, _SAME_COMMAND)))

    _start(end)

  def _aborted(self) -> None:
    """JAX's runtime is about to abort: mostly since process 0, which it depends on, is gone."""
    await_loss()
    _end(_LOST, str(DeviceError(self._why, None, f'where another process was lost, {_SAME_COMMAND}')))

  def say_end(self, why: str) -> None:
    """Tells the others that this process ends, and why, before it does."""
    self._ending = True
    self._finished.set()
    self._tell(f'end {self._me} ended with {" ".join(why.split())[:500]}')

  def wait_for_others(self) -> None:
    """Process 0 goes last: with it goes what JAX's runtime of the others depends on."""
    limit = time.monotonic() + self._grace + 2
    while self._process == 0 and self._peers and time.monotonic() < limit:
      time.sleep(0.05)

  def finish(self) -> None:
    """Leaves in order: the others no longer take the end of this connection for a loss."""
    self._tell('finished')
    self._ending = True

  def close(self) -> None:
    self._finished.set()
    with self._lock:
      for link in self._peers.values():
        link.close()
    if self._process == 0:
      self._server.close()
    _call_on_abort(None)

  def _tell(self, line: str, but: int | None = None) -> None:
    with self._lock:
      links = [link for process, link in self._peers.items() if process != but]
    if self._process == 0 or but is None:
      for link in links:
        _send(link, line)


def _send(link: socket.socket, line: str) -> None:
  with contextlib.suppress(OSError):  # who is gone is noticed where its lines are read
    link.sendall(f'{line}\n'.encode())


def _kept_alive(link: socket.socket) -> socket.socket:
  """The kernel asks after a silent peer, so that a machine without power is noticed within a minute."""
  link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for option, value in (('TCP_KEEPIDLE', 20), ('TCP_KEEPINTVL', 10), ('TCP_KEEPCNT', 3)):
    if hasattr(socket, option):
      link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
  return link


def _start(work: Callable[[], None]) -> None:
  threading.Thread(target=work, daemon=True).start()


_handler = None  # what C calls has to stay alive


def _call_on_abort(function: Callable[[], None] | None) -> None:
  """Has `function` called where the runtime aborts, in the aborting thread, instead of the end by SIGABRT.

  Python's own handlers run in the main thread, which waits for a collective then.
  """
  global _handler
  set_handler = ctypes.CDLL(None).signal
  set_handler.restype = ctypes.c_void_p
  if function is None:
    set_handler.argtypes = (ctypes.c_int, ctypes.c_void_p)
    set_handler(signal.SIGABRT, int(signal.SIG_DFL))
    _handler = None
    return
  kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
  set_handler.argtypes = (ctypes.c_int, kind)
  _handler = kind(lambda _: function())
  set_handler(signal.SIGABRT, _handler)
