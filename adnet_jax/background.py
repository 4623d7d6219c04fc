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
) -> Iterator[Iterator[T]]:
  """An iterator over `items` that a thread fills ahead of its reader; an exception there is raised at its place.

  Args:
    items: iterated in the thread.
    depth: items that wait at most.
    budget: bytes that wait at most, one item aside.
    weigh: bytes of an item.
    clock: gets the seconds that the thread spent, as 'read'.
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
      with changed:
        changed.wait_for(lambda: waiting or end)
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

  def __init__(self, *, depth: int, budget: int, clock: Clock):
    """Args:
    depth: calls that wait at most.
    budget: bytes that wait at most, one call aside.
    clock: gets the seconds that the threads spent, by stage.
    """
    self._depth, self._budget, self._clock = depth, budget, clock
    self._files = ThreadPoolExecutor(2, 'write')
    self._ordered = ThreadPoolExecutor(1, 'write-in-order')
    self._waiting: collections.deque[tuple[Future, int]] = collections.deque()
    self._broken = False

  def submit(self, stage: str, size: int, function: Callable[..., None], *arguments: Any) -> None:
    """Calls `function` in one of the threads; `size` is the bytes that its arguments hold."""
    self._add(self._files.submit(self._timed, stage, function, *arguments), size)

  def submit_in_order(self, stage: str, size: int, function: Callable[..., None], *arguments: Any) -> None:
    """As `submit`, one call after the other, and none after one that failed."""

    def call() -> None:
      if self._broken:
        return
      try:
        self._timed(stage, function, *arguments)
      except BaseException:
        self._broken = True
        raise

    self._add(self._ordered.submit(call), size)

  def _add(self, future: Future, size: int) -> None:
    self._waiting.append((future, size))
    while self._waiting and self._waiting[0][0].done():
      self._waiting.popleft()[0].result()
    while len(self._waiting) > 1 and (
      len(self._waiting) > self._depth or sum(bytes_ for _, bytes_ in self._waiting) > self._budget
    ):
      self._waiting.popleft()[0].result()

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
      for future, _size in self._waiting if kind is None else ():
        future.result()
    finally:
      self._files.shutdown()
      self._ordered.shutdown()
