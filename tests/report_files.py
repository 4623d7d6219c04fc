"""Score files of made numbers, and made clips with frames, annotations and masks, for the tests of reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import made_clips
import numpy as np

from adnet_jax import evaluate, scores
from adnet_jax.metrics import clip_statistics
from adnet_jax.report.entries import DAVIS_VALIDATION

SHAPE = (96, 128)


def davis(clips: Mapping[str, Sequence[float | None]], *, f: float = -0.1, first: int = 1, **extra) -> dict:
  """A score file of the rule davis2016 with these J of frames; F is J plus `f`."""
  entries = {}
  for name, values in clips.items():
    frames = [f'{index:05}' for index in range(first, first + len(values))]
    lists = {'J': list(values), 'F': [None if value is None else value + f for value in values]}
    entries[name] = {'frames': frames} | {
      key: {**clip_statistics([v for v in one if v is not None]), 'per_frame': one} for key, one in lists.items()
    }
  dataset = {}
  for metric in 'JF':
    for key in ('mean', 'recall', 'decay'):
      defined = [entry[metric][key] for entry in entries.values() if entry[metric][key] is not None]
      dataset.setdefault(metric, {})[key] = float(np.mean(defined)) if defined else None
  return {
    'format': 1, 'rule': 'davis2016', 'protocol': 'paper', 'version': '0', 'dataset': dataset, 'clips': entries,
    'warnings': [], **extra,
  }  # fmt: skip


def flat(mean: float, clips: Sequence[str] = tuple(sorted(DAVIS_VALIDATION)), **extra) -> dict:
  """A davis2016 file in which every frame of every clip has this J."""
  return davis({clip: [mean] * 3 for clip in clips}, **extra)


def other(rule: str, dataset: Mapping[str, object], clips: Mapping[str, Mapping[str, float]], **extra) -> dict:
  """A score file of another rule."""
  entries = {name: {'frames': ['1', '2'], **numbers} for name, numbers in clips.items()}
  return {'format': 1, 'rule': rule, 'protocol': None, 'version': '0', 'dataset': dataset, 'clips': entries, **extra}


def saliency(mae: float, f: float, **extra) -> dict:
  """An adnet-saliency file with a curve."""
  curve = {'precision': [1.0, 0.9, 0.4], 'recall': [0.0, 0.6, 1.0], 'thresholds': [1.0, 0.5, 0.0]}
  clips = {name: {'MAE': mae, 'F_max': f} for name in ('dog', 'goat')}
  return other('adnet-saliency', {'MAE': mae, 'F_max': f, 'curve': curve}, clips, **extra)


def write(folder: Path, **files: dict) -> list[Path]:
  """Writes score files under these stems (`__` becomes `-`)."""
  folder.mkdir(parents=True, exist_ok=True)
  paths = []
  for stem, content in files.items():
    paths.append(folder / f'{stem.replace("__", "-")}.json')
    paths[-1].write_text(json.dumps(content), encoding='utf-8')
  return paths


def ellipse(index: int, wrong: float = 0.0) -> np.ndarray:
  """Foreground of frame `index`, shifted to the right by a share `wrong` of its width."""
  y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
  return ((y - 48) / 20) ** 2 + ((x - 40 - index - wrong * 48) / 24) ** 2 < 1


def make_clips(root: Path, wrong: Mapping[str, Sequence[float]], name: str = 'ours') -> Path:
  """Writes `frames`, `truth` and `NAME` (masks off by these shares, a frame each), and the score file NAME.json."""
  rng = np.random.default_rng(0)
  for clip, shares in wrong.items():
    for index, share in enumerate(shares):
      stem = f'{index:05}'
      picture = rng.integers(60, 200, (*SHAPE, 3)).astype(np.uint8)
      made_clips.write(root / 'truth' / clip / f'{stem}.png', ellipse(index) * 255)
      made_clips.write(root / name / clip / f'{stem}.png', ellipse(index, share) * 255)
      (root / 'frames' / clip).mkdir(parents=True, exist_ok=True)
      assert cv2.imwrite(str(root / 'frames' / clip / f'{stem}.jpg'), picture)
  path = root / f'{name}.json'
  scores.write_scores(evaluate.score_masks(root / name, root / 'truth', jobs=1), path)
  return path
