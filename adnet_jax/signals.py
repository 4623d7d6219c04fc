"""Holds Ctrl-C and SIGTERM back while something is done whole; knows not what."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def held_back() -> Iterator[None]:
  """What runs inside is not broken off by Ctrl-C or SIGTERM: they take effect at its end, a second one at once.

  In threads other than the main one, which meet no signals, it does nothing.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  received: list[int] = []
  before: dict[int, Any] = {}

  def note(number: int, frame: object) -> None:
    received.append(number)
    if len(received) > 1:
      before[number](number, frame)

  try:
    for number in (signal.SIGINT, signal.SIGTERM):
      handler = signal.getsignal(number)
      if callable(handler):  # neither ignored nor left to the system
        before[number] = handler
        signal.signal(number, note)
    yield
  finally:
    for caught, handler in before.items():
      signal.signal(caught, handler)
    if received:
      signal.raise_signal(received[0])
