"""Threads that read ahead of the computation and write behind it, within a budget of bytes; knows no frames."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar('T')
Clock = collections.defaultdict[str, float]  # seconds by stage


@contextlib.contextmanager
def read_ahead(
  items: Iterable[T],
  *,
  depth: int,
  budget: int,
  weigh: Callable[[T], int],
  clock: Clock | None = None,
  waits: Clock | None = None,
) -> Iterator[Iterator[T]]:
  """An iterator over `items` that a thread fills ahead of its reader; an exception there is raised at its place.

  Args:
    items: iterated in the thread.
    depth: items that wait at most.
    budget: bytes that wait at most, one item aside.
    weigh: bytes of an item.
    clock: gets the seconds that the thread spent, as 'read'.
    waits: gets the seconds that the reader waited, as 'read'.
  """
  changed = threading.Condition()
  waiting: collections.deque[tuple[T, int]] = collections.deque()
  end: list[BaseException | None] = []
  stop = False

  def full() -> bool:
    return len(waiting) >= depth or (bool(waiting) and sum(size for _, size in waiting) >= budget)

  def fill() -> None:
    failure: BaseException | None = None
    try:
      iterator = iter(items)
      while True:
        with changed:
          changed.wait_for(lambda: stop or not full())
          if stop:
            break
        before = time.perf_counter()
        try:
          item = next(iterator)
        except StopIteration:
          break
        finally:
          if clock is not None:
            clock['read'] += time.perf_counter() - before
        with changed:
          waiting.append((item, weigh(item)))
          changed.notify_all()
        del item
    except BaseException as error:
      failure = error
    with changed:
      end.append(failure)
      changed.notify_all()

  def drain() -> Iterator[T]:
    while True:
      before = time.perf_counter()
      with changed:
        changed.wait_for(lambda: waiting or end)
        if waits is not None:
          waits['read'] += time.perf_counter() - before
        if not waiting:
          if end[0] is not None:
            raise end[0]
          return
        item, _ = waiting.popleft()
        changed.notify_all()
      yield item
      del item

  thread = threading.Thread(target=fill, name='read', daemon=True)
  thread.start()
  try:
    yield drain()
  finally:
    with changed:
      stop = True
      changed.notify_all()
    thread.join()


class WriteBehind:
  """Threads that write files while the next ones are computed; an error there is raised at the next call or the end.

  Leaving the `with` block waits for what was submitted, also when an exception passes through it.
  """

  def __init__(self, *, depth: int, budget: int, clock: Clock, waits: Clock | None = None):
    """Args:
    depth: calls that wait at most.
    budget: bytes that wait at most, one call aside.
    clock: gets the seconds that the threads spent, by stage.
    waits: gets the seconds that the caller waited for them, by stage.
    """
    self._depth, self._budget, self._clock = depth, budget, clock
    self._waits: Clock = collections.defaultdict(float) if waits is None else waits
    self._files = ThreadPoolExecutor(2, 'write')
    self._lanes: dict[str, ThreadPoolExecutor] = {}
    self._waiting: collections.deque[tuple[Future, int, str]] = collections.deque()
    self._broken: set[str] = set()

  def submit(self, stage: str, size: int, function: Callable[..., None], *arguments: Any) -> None:
    """Calls `function` in one of the threads; `size` is the bytes that its arguments hold."""
    self._add(self._files.submit(self._timed, stage, function, *arguments), size, stage)

  def submit_in_order(self, stage: str, size: int, function: Callable[..., None], *arguments: Any) -> None:
    """As `submit`, in a thread of the stage's own: one call after the other, and none after one that failed."""

    def call() -> None:
      if stage in self._broken:
        return
      try:
        self._timed(stage, function, *arguments)
      except BaseException:
        self._broken.add(stage)
        raise

    lane = self._lanes.setdefault(stage, ThreadPoolExecutor(1, f'write-{stage}'))
    self._add(lane.submit(call), size, stage)

  def is_broken(self, stage: str) -> bool:
    """Whether a call of `submit_in_order` failed in that stage."""
    return stage in self._broken

  def _add(self, future: Future, size: int, stage: str) -> None:
    self._waiting.append((future, size, stage))
    while self._waiting and self._waiting[0][0].done():
      self._waiting.popleft()[0].result()
    while len(self._waiting) > 1 and (
      len(self._waiting) > self._depth or sum(bytes_ for _, bytes_, _ in self._waiting) > self._budget
    ):
      self._wait(*self._waiting.popleft())

  def _wait(self, future: Future, _size: int, stage: str) -> None:
    before = time.perf_counter()
    try:
      future.result()
    finally:
      self._waits[stage] += time.perf_counter() - before

  def _timed(self, stage: str, function: Callable[..., None], *arguments: Any) -> None:
    before = time.perf_counter()
    try:
      function(*arguments)
    finally:
      self._clock[stage] += time.perf_counter() - before

  def __enter__(self) -> WriteBehind:
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    try:
      for waiting in self._waiting if kind is None else ():
        self._wait(*waiting)
    finally:
      for pool in (self._files, *self._lanes.values()):
        pool.shutdown()
