"""The score file: written whole, read with its shape checked, shown as a table; knows not how scores are made."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adnet_jax.errors import DataError

FORMAT = 1


def write_scores(scores: dict, path: str | Path) -> None:
  """Writes a score file whole or not at all; what is not finite becomes null.

  Raises:
    DataError: the place cannot be written.
  """
  path = Path(path)
  text = json.dumps(_finite(scores), indent=1, allow_nan=False, ensure_ascii=False) + '\n'
  temporary = path.with_name(f'.scores.{os.getpid()}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise DataError('scores cannot be written', path, f'{error.strerror}; give another place') from error


def read_scores(path: str | Path) -> dict:
  """Reads a score file and checks what every reader relies on.

  Returns:
    Its content: `format`, `rule` (text), `protocol` (text or None), `dataset` and `clips`, where each clip has
    `frames`; numbers are finite or None, `per_frame` lists are as long as `frames`.

  Raises:
    DataError: the file is missing, not JSON, of another format, or not a score file.
  """
  path = Path(path)
  advice = 'give a file that adnet score or --mode evaluate wrote'
  try:
    content = json.loads(path.read_text(encoding='utf-8'), parse_constant=_refuse_constant, parse_float=_finite_float)
  except OSError as error:
    raise DataError('score file cannot be read', path, f'{error.strerror}; {advice}') from error
  except (ValueError, RecursionError) as error:
    raise DataError('not a score file: no JSON', path, advice) from error
  wrong = _wrong(content)
  if wrong:
    raise DataError(f'not a score file: {wrong}', path, advice)
  return content


def _refuse_constant(name: str) -> None:
  raise ValueError(f'{name} is no JSON')


def _finite_float(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f'{text} is too large')
  return value


def _wrong(content: Any) -> str | None:
  """What makes this content no score file; None if it is one."""
  if not isinstance(content, dict) or 'rule' not in content or 'clips' not in content:
    return 'the keys rule and clips are missing'
  if content.get('format') != FORMAT:
    return f'format {content.get("format")!r}, and {FORMAT} is what this version reads'
  if not isinstance(content['rule'], str) or not isinstance(content.get('protocol'), str | None):
    return 'rule or protocol is no text'
  entries, dataset = content['clips'], content.get('dataset')
  if not isinstance(entries, dict) or not isinstance(dataset, dict):
    return 'clips or dataset is no object'
  for name, entry in entries.items():
    frames = entry.get('frames') if isinstance(entry, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, str) for frame in frames):
      return f'clip {name} has no list of frames'
    for metric, value in entry.items():
      if isinstance(value, dict) and 'per_frame' in value and not _fits(value['per_frame'], len(frames)):
        return f'{metric} of clip {name} is not a number, or null, for each frame'
  return None


def _fits(values: Any, count: int) -> bool:
  return isinstance(values, list) and len(values) == count and all(_is_number(one) for one in values)


def _is_number(value: Any) -> bool:
  return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def scores_table(scores: dict) -> str:
  """The score file as a table for the terminal: a row a clip, the data set's last, under the name of the rule."""
  columns = list(dict.fromkeys(name for name, _ in numbers(scores['dataset'])))
  rows = [['clip', 'frames', *columns]]
  total = sum(len(entry['frames']) for entry in scores['clips'].values())
  counts = {name: len(entry['frames']) for name, entry in scores['clips'].items()} | {'data set': total}
  for (name, count), entry in zip(counts.items(), [*scores['clips'].values(), scores['dataset']], strict=True):
    values = dict(numbers(entry))
    rows.append([name, str(count), *(_three(values.get(column)) for column in columns)])
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for name, *cells in rows:
    right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
    lines.append('  '.join([name.ljust(widths[0]), *right]))
  ruler = '-' * max(map(len, lines))
  return '\n'.join([_title(scores), lines[0], ruler, *lines[1:-1], ruler, lines[-1]])


def numbers(entry: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
  """The single numbers of a clip's or data set's entry under their names: 'J mean', 'MAE', ..."""
  for metric, value in entry.items():
    if isinstance(value, Mapping):
      yield from ((f'{metric} {key}', one) for key, one in value.items() if _is_number(one))
    elif _is_number(value):
      yield metric, value


def _title(scores: dict) -> str:
  title = f'rule {scores["rule"]}, protocol {scores["protocol"] or "unknown"}'
  if scores.get('stability'):
    title += f', T by {scores["stability"]}'
  if scores.get('threshold') is not None:
    title += f', threshold {scores["threshold"]:g}'
  if scores.get('subset'):
    title += ', a subset of the frames'
  return title


def _three(value: float | None) -> str:
  if value is None:
    return '-'
  return str(value) if isinstance(value, int) else f'{value:.3f}'


def _finite(value: object) -> object:
  if isinstance(value, dict):
    return {key: _finite(one) for key, one in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(one) for one in value]
  if isinstance(value, np.ndarray):
    return _finite(value.tolist())
  if isinstance(value, np.generic):
    value = value.item()
  return None if isinstance(value, float) and not math.isfinite(value) else value
