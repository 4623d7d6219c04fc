"""Writes tests/data/golden_saliency.npz: what PySODMetrics and scikit-learn say of maps that anyone can draw again.

    PYTHONPATH=tests python tests/make_golden_saliency.py

Needs `pip install pysodmetrics scikit-learn`; run it when a case changes.
"""

from __future__ import annotations

import warnings

import golden
import numpy as np

PATH = golden.FOLDER / 'golden_saliency.npz'


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """By name: a grey map, (h, w) uint8, and a truth, (h, w) bool."""
  h, w = 41, 52
  rows, columns = np.mgrid[:h, :w]
  disk = (rows - 17) ** 2 + (columns - 30) ** 2 < 120
  corner = (rows < 9) & (columns < 13)
  noise = golden.uniform('noise', (h, w)).astype(np.float64)
  soft = 1 / (1 + np.exp((np.hypot(rows - 19, columns - 27) - 10) / 3 + noise))
  grey = np.rint(255 * soft).astype(np.uint8)
  line = np.rint(127 + 127 * golden.uniform('line', (1, 17))).astype(np.uint8)
  nothing = np.zeros((h, w), bool)
  return {
    'soft': (grey, disk),
    'range of 50 to 199': (50 + np.rint(149 * soft).astype(np.uint8), disk),
    'inverse': (255 - grey, disk),
    'mask': (np.uint8(255) * (np.hypot(rows - 19, columns - 27) < 10), disk),
    'mask of 0 and 1': (np.uint8(1) * disk, disk),
    'in a corner': (grey, corner),
    'all but a corner': (grey, ~corner),
    'one pixel': (grey, (rows == 20) & (columns == 3)),
    'nothing wanted': (grey, nothing),
    'all wanted': (grey, ~nothing),
    'map of 0': (np.zeros((h, w), np.uint8), disk),
    'map of 255': (np.full((h, w), 255, np.uint8), disk),
    'map of 51': (np.full((h, w), 51, np.uint8), disk),
    'nothing wanted, map of 0': (np.zeros((h, w), np.uint8), nothing),
    'row': (line, line > 100),
    'column': (line.T, line.T[::-1] > 100),
    'pixel': (np.full((1, 1), 200, np.uint8), np.ones((1, 1), bool)),
  }


def frame_scores(grey: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
  """PySODMetrics of one map, under the names of FrameSaliency; nan where it computes that."""
  import py_sod_metrics

  found = {}
  with warnings.catch_warnings(), np.errstate(all='ignore'):
    warnings.simplefilter('ignore')
    for metric in ('Fmeasure', 'MAE', 'Smeasure', 'Emeasure'):
      evaluator = getattr(py_sod_metrics, metric)()
      evaluator.step(grey, np.uint8(255) * truth)
      found |= evaluator.get_results()
  return {
    'mae': found['mae'],
    'f_adaptive': found['fm']['adp'],
    's': found['sm'],
    'e_adaptive': found['em']['adp'],
    'precision': found['pr']['p'],
    'recall': found['pr']['r'],
    'f': found['fm']['curve'],
    'e': found['em']['curve'],
  }


def pooled_scores() -> dict[str, np.ndarray]:
  """Mean absolute error and greatest F of scikit-learn's curve over all pixels of all cases; its curve by threshold."""
  from sklearn.metrics import precision_recall_curve

  pairs = cases().values()
  scores = np.concatenate([grey.ravel() for grey, _ in pairs]) / 255
  wanted = np.concatenate([truth.ravel() for _, truth in pairs])
  precision, recall, thresholds = precision_recall_curve(wanted, scores)
  kept = precision + recall > 0
  f = 2 * precision[kept] * recall[kept] / (precision + recall)[kept]
  return {
    'mae': np.abs(scores - wanted).mean(),
    'f_max': f.max(),
    'precision': precision[:-1][::-1],
    'recall': recall[:-1][::-1],
    'thresholds': thresholds[::-1],
  }


def make() -> dict[str, np.ndarray]:
  """All arrays of the file, named CASE/SCORE."""
  scores = {name: frame_scores(*pair) for name, pair in cases().items()} | {'pooled': pooled_scores()}
  return {f'{name}/{key}': np.asarray(value, np.float64) for name, one in scores.items() for key, value in one.items()}


if __name__ == '__main__':
  np.savez_compressed(PATH, **make())
