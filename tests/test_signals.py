"""Signals held back: to the end of what must be done whole, with the handlers as they were."""

from __future__ import annotations

import signal
import threading

import pytest

from adnet_jax.signals import held_back


@pytest.fixture(autouse=True)
def handler(monkeypatch):
  def stop(number, _frame):
    raise InterruptedError(number)

  before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
  yield stop
  for number, earlier in before.items():
    signal.signal(number, earlier)


def handlers() -> list:
  return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_effect_at_the_end(number, handler):
  done = []
  with pytest.raises(InterruptedError, match=str(int(number))), held_back():
    signal.raise_signal(number)
    done.append(True)
  assert done and handlers() == [handler, handler]


def test_a_second_one_breaks_off_at_once(handler):
  done = []
  with pytest.raises(InterruptedError), held_back():
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    done.append(True)
  assert not done and handlers() == [handler, handler]


def test_a_fault_inside_does_not_lose_the_signal(handler):
  with pytest.raises(InterruptedError) as caught, held_back():
    signal.raise_signal(signal.SIGINT)
    raise ValueError
  assert isinstance(caught.value.__context__, ValueError) and handlers() == [handler, handler]


def test_ignored_signals_stay_ignored():
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with held_back():
    signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_other_threads_leave_handlers_alone(handler):
  found = []

  def work():
    with held_back():
      found.append(handlers())

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert found == [[handler, handler]]
