"""A hook of MkDocs: pages link to files of the repository, which are no part of the site; knows nothing else of it.

Such links lead to `repo_url` where mkdocs.yml has one; without one the text alone stays.
"""

from __future__ import annotations

import re
from typing import Any

# [text](../path), not ![picture](../path).
_OUTSIDE = re.compile(r'(?<!!)\[([^\]]+)\]\(\.\./([^)\s]+)\)')


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
  """MkDocs' event: the page's text before it is rendered."""
  base = (config.repo_url or '').rstrip('/')
  return _OUTSIDE.sub(rf'[\1]({base}/blob/main/\2)' if base else r'\1', markdown)
