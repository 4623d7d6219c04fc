"""Keeps Orbax from telling at length, and again later, what checkpoint.py says of a failure in one line."""

from __future__ import annotations

import logging as std_logging
import os
import re
import sys
import warnings
from typing import Any

from absl import logging

_installed = False
_ABANDONED = r"coroutine '.*' was never awaited"


def silence() -> None:
  """Drops Orbax's log lines and what its abandoned reads and writes cause in asyncio; once a process, for good.

  Some of these come when garbage is collected, long after the failure. With absl's verbosity at DEBUG they stay.
  """
  global _installed
  if _installed:
    return
  _installed = True
  warnings.filterwarnings('ignore', message=_ABANDONED, category=RuntimeWarning)
  logging.get_absl_logger().addFilter(lambda record: _wanted() or f'{os.sep}orbax{os.sep}' not in record.pathname)
  std_logging.getLogger('asyncio').addFilter(lambda record: _wanted() or 'never retrieved' not in record.getMessage())
  before = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    said = str(unraisable.exc_value)
    # Where warnings are errors, a coroutine nobody awaited is one too.
    if _wanted() or not ('Event loop is closed' in said or re.match(_ABANDONED, said)):
      before(unraisable)

  sys.unraisablehook = hook


def _wanted() -> bool:
  return logging.get_verbosity() >= logging.DEBUG
