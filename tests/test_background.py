"""Reading ahead and writing behind: order, bounds, and exceptions at their place."""

from __future__ import annotations

import collections
import threading
import time

import pytest

from adnet_jax import background


def wait_until(condition) -> None:
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.005)


@pytest.mark.parametrize(('depth', 'budget', 'ahead'), [(4, 10**9, 4), (100, 30, 3), (100, 1, 1)])
def test_reading_ahead_is_bounded_by_number_and_bytes(depth, budget, ahead):
  read = []

  def items():
    for k in range(50):
      read.append(k)
      yield k

  clock: background.Clock = collections.defaultdict(float)
  with background.read_ahead(items(), depth=depth, budget=budget, weigh=lambda _: 10, clock=clock) as found:
    wait_until(lambda: len(read) == ahead)
    time.sleep(0.05)
    assert len(read) == ahead
    assert next(found) == 0
    wait_until(lambda: len(read) == ahead + 1)
    assert list(found) == list(range(1, 50))
  assert clock['read'] > 0


def test_an_exception_comes_at_its_place():
  def items():
    yield 1
    yield 2
    raise KeyError('third')

  with background.read_ahead(items(), depth=8, budget=100, weigh=lambda _: 1) as found:
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(KeyError, match='third'):
      next(found)


def test_leaving_early_ends_the_thread():
  def items():
    while True:
      yield 0

  with background.read_ahead(items(), depth=2, budget=100, weigh=lambda _: 1) as found:
    next(found)
  assert not any(thread.name == 'read' for thread in threading.enumerate())


def test_calls_in_order_stop_at_the_first_failure():
  done = []

  def call(k):
    if k == 2:
      raise ValueError('second')
    done.append(k)

  clock: background.Clock = collections.defaultdict(float)
  writer = background.WriteBehind(depth=10, budget=100, clock=clock)
  with pytest.raises(ValueError, match='second'), writer:
    for k in range(5):
      writer.submit_in_order('stage', 1, call, k)
  assert done == [0, 1] and clock['stage'] > 0


@pytest.mark.parametrize(('depth', 'budget', 'size'), [(2, 10**9, 1), (100, 20, 10)])
def test_writing_behind_waits_where_too_much_is_under_way(depth, budget, size):
  release, started = threading.Event(), threading.Event()

  def call():
    started.set()
    assert release.wait(20)

  with background.WriteBehind(depth=depth, budget=budget, clock=collections.defaultdict(float)) as writer:
    writer.submit('a', size, call)
    writer.submit('a', size, call)
    third = threading.Thread(target=writer.submit, args=('a', size, call))
    third.start()
    third.join(0.1)
    assert third.is_alive()
    release.set()
    third.join(20)
    assert not third.is_alive()


def test_what_was_submitted_is_done_when_another_exception_passes():
  done = []
  with (
    pytest.raises(KeyboardInterrupt),
    background.WriteBehind(depth=9, budget=99, clock=collections.defaultdict(float)) as writer,
  ):
    for k in range(5):
      writer.submit('a', 1, done.append, k)
    raise KeyboardInterrupt
  assert sorted(done) == list(range(5))
