"""Training: one readable loop from a validated configuration to a model file; knows nothing of the command line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import logging
from clu import parameter_overview
from jax.sharding import NamedSharding, PartitionSpec

from adnet_jax import checkpoint, resume, weights
from adnet_jax import config as config_lib
from adnet_jax.data import datasets, input_pipeline
from adnet_jax.errors import DeviceError, DivergedError, UsageError
from adnet_jax.step import Trainer, Tree, initialize, train_step


def train(
  config: ml_collections.ConfigDict,
  workdir: Path,
  progress: Callable[[int, dict[str, float]], None] | None = None,
  validate: Callable[[Path], dict[str, float | None]] | None = None,
) -> Path:
  """Trains to `config.steps` and writes WORKDIR/final.safetensors; goes on from the newest checkpoint of WORKDIR.

  Args:
    config: validated configuration.
    workdir: gets train.jsonl, checkpoints/, config.json, final.safetensors.
    progress: called after each step with its number and loss, lr, grad_norm, seconds.
    validate: scores of a model file, {'J': ..., 'F': ...}; called every `evaluate.every` steps, if that is not 0. The
      model with the highest J is kept as WORKDIR/best.safetensors.

  Returns:
    The path of the model file.

  Raises:
    resume.Stopped: SIGTERM or Ctrl-C, after saving.
    DivergedError: more than `max_skipped` steps in a row were not finite.
    DataError, WeightsError, UsageError, DeviceError: see errors.py.
  """
  workdir = Path(workdir)
  # Data first: what is wrong there is said before anything heavy starts.
  clips = datasets.read_clips(Path(config.data.root), datasets.split(Path(config.data.root), 'train'), need_masks=True)
  photographs = datasets.read_photographs(Path(config.data.stills)) if config.data.stills else []
  datasets.check_pairs(clips, photographs)
  source = input_pipeline.pair_source(config, clips, photographs)

  mesh = make_mesh(config.devices, config.batch)
  replicated, sharded = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec('data'))
  trainer, state = initialize(config)
  logging.info(
    'parameters:\n%s',
    parameter_overview.get_parameter_overview(
      {name: array for name, array in weights.flatten(trainer.merge(state)).items()}, include_stats=False
    ),
  )
  state = jax.device_put(state, replicated)
  step_function = jax.jit(
    lambda state, batch: train_step(trainer, state, batch), donate_argnums=0, out_shardings=(replicated, replicated)
  )

  fingerprint = resume.fingerprint(config, clips, photographs)
  with (
    checkpoint.open_checkpoints(workdir / 'checkpoints', config.checkpoint.keep) as checkpoints,
    resume.Signals() as signals,
  ):
    record = {'fingerprint': json.loads(json.dumps(fingerprint)), 'config': json.loads(config_lib.to_json(config))}
    restored = checkpoints.restore_newest(state, lambda before: resume.check_resume(before, record))
    if restored is not None:
      _, state, _ = restored
    first = int(state['step'])
    (workdir / 'config.json').write_text(config_lib.to_json(config) + '\n')
    log = resume.open_log(workdir / 'train.jsonl', first)
    batches = input_pipeline.batches(
      source,
      batch=config.batch,
      first_step=first,
      workers=config.data.workers,
      process=jax.process_index(),
      processes=jax.process_count(),
    )
    started = time.perf_counter()
    with log:
      for step in range(first, config.steps):
        batch = {name: jax.make_array_from_process_local_data(sharded, array) for name, array in next(batches).items()}
        state, metrics = step_function(state, batch)
        values = {name: float(value) for name, value in metrics.items()}
        ids = [source.sample_id(step * config.batch + i) for i in range(config.batch)]
        line: dict[str, Any] = {
          'step': step,
          'loss': _finite(values['loss']),
          'lr': values['lr'],
          'grad_norm': _finite(values['grad_norm']),
          'sample_ids': ids,
        }
        done = step + 1
        if validate is not None and config.evaluate.every and done % config.evaluate.every == 0:
          line['validation'] = _keep_best(trainer, state, workdir, done, validate)
        log.write(json.dumps(line) + '\n')
        log.flush()
        if values['skipped']:
          logging.warning('step %d: loss or gradient not finite, update skipped; samples %s', step, ', '.join(ids))
          if values['skipped'] > config.max_skipped:
            raise DivergedError(
              f'{int(values["skipped"])} steps in a row were not finite, up to step {step}',
              workdir,
              'lower optim.lr; the last good checkpoint is kept',
            )
        if progress is not None:
          progress(step, {**values, 'seconds': (time.perf_counter() - started) / (step - first + 1)})
        if done % config.checkpoint.every == 0 or done == config.steps or signals.received:
          checkpoints.save(done, state, record)
        if signals.received and done < config.steps:
          checkpoints.wait()
          raise resume.Stopped(signals.received, done)
  final = workdir / 'final.safetensors'
  export(trainer, state, final)
  return final


def export(trainer: Trainer, state: Tree, path: Path, *, averaged: bool | None = None, dtype: str = 'float32') -> None:
  """Writes the model file of a training state: the averaged weights where there are any, unless told otherwise."""
  averaged = 'average' in state if averaged is None else averaged
  model = trainer.merge({**state, **state['average']} if averaged else state)
  weights.save(path, weights.flatten(model), trainer.metadata, dtype=dtype, overwrite=True)


def _keep_best(trainer: Trainer, state: Tree, workdir: Path, step: int, validate) -> dict[str, float | None]:
  """Scores of the model after `step` steps, which becomes best.safetensors if its J is the highest so far."""
  candidate, best = workdir / 'candidate.safetensors', workdir / 'best.json'
  export(trainer, state, candidate)
  scores = validate(candidate)
  highest = json.loads(best.read_text())['J'] if best.exists() else -math.inf
  if scores['J'] is not None and scores['J'] > highest:
    candidate.replace(workdir / 'best.safetensors')
    best.write_text(json.dumps({'step': step, **scores}) + '\n')
  candidate.unlink(missing_ok=True)
  return scores


def make_mesh(devices: int, batch: int) -> jax.sharding.Mesh:
  """A mesh of one axis, 'data', over the first `devices` devices (0: all that divide the batch)."""
  present = jax.devices()
  if devices > len(present):
    raise DeviceError(
      f'{devices} devices asked for, {len(present)} present: {", ".join(map(str, present))}', 'devices', 'lower devices'
    )
  count = devices or math.gcd(batch, len(present))
  if batch % count:
    raise UsageError(f'batch={batch} is not divisible by devices={count}', 'batch, devices', 'choose a multiple')
  return jax.make_mesh((count,), ('data',), axis_types=(jax.sharding.AxisType.Auto,), devices=present[:count])


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None
