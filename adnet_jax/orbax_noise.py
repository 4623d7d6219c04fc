"""Keeps Orbax from telling at length, and again later, what checkpoint.py says of a failure in one line."""

from __future__ import annotations

import logging as std_logging
import os
import sys
from typing import Any

from absl import logging

_installed = False


def silence() -> None:
  """Drops Orbax's log lines and what its abandoned reads and writes cause in asyncio; once a process, for good.

  Some of these come when garbage is collected, long after the failure. With absl's verbosity at DEBUG they stay.
  """
  global _installed
  if _installed:
    return
  _installed = True
  logging.get_absl_logger().addFilter(lambda record: _wanted() or f'{os.sep}orbax{os.sep}' not in record.pathname)
  std_logging.getLogger('asyncio').addFilter(lambda record: _wanted() or 'never retrieved' not in record.getMessage())
  before = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if _wanted() or 'Event loop is closed' not in str(unraisable.exc_value):
      before(unraisable)

  sys.unraisablehook = hook


def _wanted() -> bool:
  return logging.get_verbosity() >= logging.DEBUG
