"""Templates of the report, filled in with everything escaped; knows nothing of scores."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from adnet_jax.errors import UsageError

_TEMPLATES = Path(__file__).parent / 'templates'


def render(template: str, **values: Any) -> str:
  """Fills in a file of `templates/`; markup in values is shown as text.

  Raises:
    UsageError: jinja2 is not installed.
  """
  return _environment().get_template(template).render(**values)


def part(name: str) -> str:
  """A style sheet or script of `templates/`, to be written into a page as it is."""
  return (_TEMPLATES / name).read_text(encoding='utf-8')


@functools.cache
def _environment() -> Any:
  try:
    import jinja2
  except ImportError as error:
    advice = "pip install 'adnet-jax[report]'"
    raise UsageError('the report needs jinja2, which is not installed', advice=advice) from error
  return jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
