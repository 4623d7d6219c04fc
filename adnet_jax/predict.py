"""`--mode evaluate`: masks of a data set's validation clips and their scores; knows neither training nor metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import ml_collections

from adnet_jax import environment, pipeline, sources
from adnet_jax import evaluate as scoring
from adnet_jax import scores as scores_lib
from adnet_jax import segmenter as segmenter_lib
from adnet_jax.data import datasets
from adnet_jax.errors import UsageError


def model_to_evaluate(config: ml_collections.ConfigDict, workdir: Path) -> str | Path:
  """WORKDIR/best.safetensors, else final.safetensors, else the whole model that `init.weights` names."""
  for name in ('best.safetensors', 'final.safetensors'):
    if (workdir / name).exists():
      return workdir / name
  if not config.init.weights:
    raise UsageError('nothing to evaluate', workdir, 'train first, or name a model with --config.init.weights=MODEL')
  return config.init.weights


def check_free(workdir: Path, *, overwrite: bool, resume: bool) -> None:
  """Refuses to write over an earlier evaluation (fault 7)."""
  folder = workdir / 'evaluation'
  if folder.exists() and any(folder.iterdir()) and not (overwrite or resume):
    raise UsageError('the work folder already holds an evaluation', folder, 'add --overwrite or --resume')


def evaluate(
  config: ml_collections.ConfigDict,
  workdir: Path,
  *,
  overwrite: bool = False,
  resume: bool = False,
  device: str | None = None,
) -> dict[str, Any]:
  """Segments the validation clips of `data.root` and scores them.

  Args:
    config: validated configuration.
    workdir: gets evaluation/masks/CLIP/NNNNN.png and evaluation/scores.json.
    overwrite: replace an earlier evaluation.
    resume: go on with it.
    device: 'cpu', 'gpu' or 'tpu'; None for what JAX prefers.

  Returns:
    The score file's content: frames on disk are predicted, those with a truth scored.

  Raises:
    UsageError: no model to evaluate; results of an earlier evaluation are there.
    DataError, WeightsError, DeviceError: see errors.py.
  """
  check_free(workdir, overwrite=overwrite, resume=resume)
  model = model_to_evaluate(config, workdir)
  return _masks_and_scores(config, model, workdir / 'evaluation', overwrite=overwrite, resume=resume, device=device)


def validate(
  config: ml_collections.ConfigDict,
  workdir: Path,
  model: Path,
  device: str | None = None,
  clips: Sequence[datasets.Clip] | None = None,
) -> dict[str, float | None]:
  """Mean J and F of a model on the validation clips during training; its masks lie in WORKDIR/validation.

  Args:
    config: validated configuration.
    workdir: of the training.
    model: its file.
    device: 'cpu', 'gpu' or 'tpu'; None for what JAX prefers.
    clips: `validation_clips(config)`, where they have been listed already.
  """
  folder = workdir / 'validation'
  scores = _masks_and_scores(config, model, folder, overwrite=True, resume=False, device=device, clips=clips)
  return {metric: scores['dataset'][metric]['mean'] for metric in ('J', 'F')}


def validation_clips(config: ml_collections.ConfigDict) -> list[datasets.Clip]:
  """The clips that are segmented and scored; DataError where there are none."""
  root = Path(config.data.root)
  return datasets.read_clips(root, datasets.split(root, 'val'), need_masks=True)


def _masks_and_scores(
  config: ml_collections.ConfigDict,
  model: str | Path,
  into: Path,
  *,
  overwrite: bool,
  resume: bool,
  device: str | None,
  clips: Sequence[datasets.Clip] | None = None,
) -> dict[str, Any]:
  root, e = Path(config.data.root), config.evaluate
  clips = validation_clips(config) if clips is None else clips
  segmenter = segmenter_lib.Segmenter.from_pretrained(
    model,
    e.protocol,
    e.scales,
    e.mirror,
    tuple(e.size) or None,
    refine=None if e.refine < 0 else e.refine,
    device=device,
  )
  folder = into / 'masks'
  if overwrite:
    # Whole, or clips of another data set would stay.
    for path in (*folder.glob('*/*.png'), into / 'scores.json'):
      path.unlink(missing_ok=True)
  outputs = pipeline.Outputs(overlay=False, summary=False, resume=resume)
  for clip in clips:
    # Of a path, this asks only what files in records have too.
    source = sources.FrameFiles(clip.name, cast(list[Path], list(clip.frames)))
    with environment.progress_bar(clip.name, source.length) as advance:
      pipeline.segment_clip(
        segmenter, source, folder / clip.name, outputs, masks_in=folder / clip.name, progress=advance
      )
  scores = scoring.score_masks(
    folder,
    datasets.annotations_root(root) if datasets.kind_of(root) == 'davis2016' else root,
    frames='given',
    clips=[clip.name for clip in clips],
    protocol=e.protocol,
    progress=True,
  )
  scores_lib.write_scores(scores, into / 'scores.json')
  return scores
