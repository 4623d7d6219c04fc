"""A real browser without a screen for tests that look at pages and videos; they are skipped where there is none."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

playwright = pytest.importorskip('playwright.sync_api')
_PATH = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
needs_chromium = pytest.mark.skipif(_PATH is None, reason='no Chromium in PATH')
# Without these it asks its maker for updates, which must not be taken for the page's own requests.
_QUIET = (
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
)  # fmt: skip


@contextlib.contextmanager
def launched() -> Iterator[Any]:
  """Playwright's browser, closed at the end."""
  with playwright.sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=_PATH, args=_QUIET)
    yield browser
    browser.close()
