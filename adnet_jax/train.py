"""Training: one readable loop from a validated configuration to a model file; knows nothing of the command line."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from clu import parameter_overview
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from adnet_jax import appending, checkpoint, lock, observe, resume, trained, utilization, weights
from adnet_jax import config as config_lib
from adnet_jax import mesh as mesh_lib
from adnet_jax.data import datasets, input_pipeline
from adnet_jax.errors import AdnetError, DivergedError, WeightsError
from adnet_jax.models import layers, platforms
from adnet_jax.normalization import normalize
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
    workdir: gets train.jsonl, metrics.jsonl, tensorboard/, parameters.txt, checkpoints/, config.json,
      final.safetensors. No other run may use it.
    progress: called after each step with its number, its metrics, what the machine made of it (by TensorBoard's tag)
      and `seconds`, the mean of a step.
    validate: scores of a model file, {'J': ..., 'F': ...}; called every `evaluate.every` steps, if that is not 0. The
      model with the highest J is kept as WORKDIR/best.safetensors.

  Returns:
    The path of the model file.

  Raises:
    resume.Stopped: SIGTERM or Ctrl-C, after saving.
    DivergedError: more than `max_skipped` steps in a row were not finite.
    WeightsError: no checkpoint can be read, none could be saved, or the model file cannot be written.
    DataError, UsageError, DeviceError: see errors.py.
  """
  workdir = Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  with lock.held(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
    return _train(config, workdir, progress, validate)


def _train(config: ml_collections.ConfigDict, workdir: Path, progress, validate) -> Path:
  # What is wrong with the configuration and the data is said before anything heavy starts.
  config_lib.check_training(config)
  clips = datasets.read_clips(Path(config.data.root), datasets.split(Path(config.data.root), 'train'), need_masks=True)
  photographs = []
  if config.data.stills_fraction > 0:
    photographs = datasets.read_photographs(Path(config.data.stills))
  elif config.data.stills:
    logging.warning('data.stills is not used: data.stills_fraction is 0')
  datasets.check_pairs(clips, photographs)
  source = input_pipeline.pair_source(config, clips, photographs, jax.process_count())
  alone = jax.process_count() == 1
  if not alone:
    resume.check_processes(config, clips, photographs)

  mesh = mesh_lib.make_mesh(config.devices, config.batch, config.accumulate)
  replicated, sharded = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec('data'))
  trainer, state = initialize(config)
  overview = parameter_overview.get_parameter_overview(weights.flatten(trainer.merge(state)), include_stats=False)
  state = jax.device_put(state, replicated)

  def one_step(state, batch):
    state, metrics = train_step(trainer, state, batch)
    # What each process alone knows comes back with the numbers, the same for all.
    return state, {**metrics, 'attempts': batch['attempts'], 'signal': jnp.max(batch['signal'])}

  compiler_options = platforms.compiler_options(mesh.devices.flat[0].platform, 'training')
  step_function = jax.jit(
    one_step, donate_argnums=0, out_shardings=(replicated, replicated), compiler_options=compiler_options
  )
  program, paint = None, _painter(trainer)

  leader = jax.process_index() == 0  # writes all files but checkpoints, which all processes write together
  record = resume.make_record(config, clips, photographs, trainer.metadata)
  with (
    checkpoint.open_checkpoints(workdir / 'checkpoints', config.checkpoint.keep) as checkpoints,
    resume.Signals() as signals,
  ):
    restored = checkpoints.restore_newest(state, lambda before: resume.check_resume(before, record))
    before: dict[str, Any] = {}
    if restored is not None:
      _, state, before = restored
    first = int(state['step'])
    if leader:
      appending.write_whole(workdir / 'config.json', config_lib.to_json(config) + '\n')
    batches = input_pipeline.batches(
      source,
      batch=config.batch,
      first_step=first,
      workers=config.data.workers,
      process=jax.process_index(),
      processes=jax.process_count(),
    )
    with observe.open_observer(workdir if leader else None, first) as observer:
      observer.parameters(overview, first)
      meter = observe.Meter(2 * config.batch)
      stopping = 0  # the signal that ends the run: of any process, known to all at the same step

      def read(late: _Late) -> _Entry:
        nonlocal stopping
        entry = _read(late, config, source, meter)
        stopping = stopping or int(entry.values.pop('signal'))
        return entry

      def write(entry: _Entry) -> None:
        observer.step(entry.line, entry.measured)
        if progress is not None:
          progress(entry.line['step'], {**entry.values, **entry.measured, 'seconds': meter.mean_seconds})
        _check_finite(entry, config, workdir)

      def score(entry: _Entry, done: int) -> _Entry | None:
        """Adds the scores that are due; gives the entry back where a signal came before them."""
        try:
          with signals.breakable():
            entry.line['validation'] = _validate(trainer, state, workdir, done, validate)
        except resume.Interrupted:
          if alone:
            return entry
          # The other processes, which know of no signal yet, are about to save: this step stays without scores.
        return None

      def save_and_stop(done: int, unscored: _Entry | None) -> None:
        nonlocal stopping
        if alone:
          stopping = signals.received
        last = done == config.steps or stopping
        for _ in range(2 if last and alone else 1):  # a last one gets its second chance now, others at the next save
          checkpoints.save(done, state, resume.at(record, done, unscored), best=trained.best(workdir).get('step'))
          if not last or checkpoints.wait():
            break
        if stopping and (done < config.steps or unscored):
          _stop(checkpoints, stopping, done)

      if before.get('unvalidated'):
        # The last run was stopped before it knew the scores of its last step.
        entry = _Entry(*before['unvalidated'])
        if leader and validate is not None and score(entry, first):
          raise resume.Stopped(signals.received, first)
        write(entry)

      late: _Late | None = None
      for step in range(first, config.steps):
        start = time.perf_counter()
        local = next(batches)
        waited = time.perf_counter() - start
        local['signal'] = np.full(len(local['attempts']), signals.received, np.int32)
        batch = {name: jax.make_array_from_process_local_data(sharded, array) for name, array in local.items()}
        if program is None:
          with jax.set_mesh(mesh):
            lowered = step_function.lower(state, batch)
          program = lowered.compile()
          meter.seconds_at_peak = _seconds_at_peak(lowered, config, mesh) if leader else None
          observer.profile(_is_within(step, config.observe.profile_steps))
          meter.restart()
        state, metrics = program(state, batch)
        # A step's numbers are read one step late: while the host waits for them, the devices have the next step.
        if late is not None:
          write(read(late))
        late = _Late(step, metrics, waited)

        if alone:
          stopping = signals.received
        done = step + 1
        scores_due = validate is not None and _is_due(done, config.evaluate.every)
        pictures_due = _is_due(done, config.observe.images_every)
        save_due = scores_due or _is_due(done, config.checkpoint.every) or done == config.steps
        if not (save_due or pictures_due or stopping or done in config.observe.profile_steps):
          continue
        entry, late = read(late), None
        if entry.values['skipped'] and not (stopping or done == config.steps):
          save_due = False  # what diverges would drive out the last good checkpoints
        unscored = score(entry, done) if scores_due and leader else None
        if scores_due and not alone:
          # In a collective the others wait as long as it takes; in Orbax's barriers they would give up.
          multihost_utils.sync_global_devices('scored')
        if unscored is None:
          write(entry)
        if pictures_due and leader:
          observer.pictures(step, paint(state, local))
        if save_due or stopping:
          save_and_stop(done, unscored)
        observer.profile(_is_within(done, config.observe.profile_steps))
        meter.restart()
  final = workdir / 'final.safetensors'
  if leader:
    trained.export(trainer, state, final)
  if checkpoints.failure and not checkpoints.saved:
    raise WeightsError(f'no checkpoint could be saved: {checkpoints.failure}', checkpoints.folder, 'make room')
  return final


class _Late(NamedTuple):
  """A step whose numbers are still to be read."""

  step: int
  metrics: dict[str, jax.Array]
  waited: float


class _Entry(NamedTuple):
  """A step: its line of train.jsonl, what the machine made of it by TensorBoard's tag, and its metrics."""

  line: dict[str, Any]
  measured: dict[str, float]
  values: dict[str, float]


def _read(late: _Late, config: Any, source: input_pipeline.PairSource, meter: observe.Meter) -> _Entry:
  """Waits for the end of a step."""
  metrics = jax.device_get(late.metrics)
  attempts = metrics.pop('attempts')
  values = {name: float(value) for name, value in metrics.items()}
  first = late.step * config.batch
  line = {
    'step': late.step,
    'loss': _finite(values['loss']),
    'lr': values['lr'],
    'grad_norm': _finite(values['grad_norm']),
    'sample_ids': [source.sample_id(first + i, int(attempt)) for i, attempt in enumerate(attempts)],
  }
  return _Entry(line, meter.step(late.waited), values)


def _check_finite(entry: _Entry, config: Any, workdir: Path) -> None:
  """Fault 22: names the samples of a step that was skipped; DivergedError after too many in a row."""
  skipped, step = int(entry.values['skipped']), entry.line['step']
  if not skipped:
    return
  ids = ', '.join(entry.line['sample_ids'])
  logging.warning('step %d: loss or gradient not finite, update skipped; samples %s', step, ids)
  if skipped > config.max_skipped:
    raise DivergedError(
      f'{skipped} steps in a row were not finite, up to step {step}',
      workdir,
      'lower optim.lr; the checkpoints from before are kept',
    )


def _stop(checkpoints: checkpoint.Checkpoints, signal_number: int, done: int) -> None:
  """Faults 13 and 14: ends the run, which says that everything is saved only where it is."""
  if checkpoints.wait():
    raise resume.Stopped(signal_number, done)
  newest = 'none before is' if checkpoints.newest is None else f'that of step {checkpoints.newest} is'
  raise WeightsError(
    f'stopped by a signal at step {done}, whose checkpoint could not be saved; {newest}: {checkpoints.failure}',
    checkpoints.folder,
    'make room; the same command goes on',
  )


def _validate(trainer: Trainer, state: Tree, workdir: Path, done: int, validate) -> dict[str, float | None] | None:
  """Scores of the model after `done` steps, which becomes best.safetensors if its J is the highest so far.

  None where there are no scores, as on a full disk: that is said, and training goes on.
  """
  candidate = workdir / 'candidate.safetensors'
  try:
    trained.export(trainer, state, candidate)
    scores = validate(candidate)
    trained.keep_best(candidate, scores, workdir, done)
    return scores
  except (AdnetError, OSError) as error:
    logging.error('validation after %d steps failed, training goes on: %s', done, error)
    return None
  finally:
    with contextlib.suppress(OSError):
      candidate.unlink(missing_ok=True)


def _painter(trainer: Trainer) -> Callable[[Tree, dict[str, np.ndarray]], dict[str, np.ndarray]]:
  """A function of a state and a batch: what the network is shown and makes of it, uint8 (b, H, W, 3) each."""

  @jax.jit
  def probabilities(state, images):  # inference, as in a validation, at the size of the crops
    anchors, frames = (normalize(images[:, i], trainer.metadata.normalization) for i in (0, 1))
    logits = trainer.merge(state)(anchors, frames)
    return jax.nn.sigmoid(layers.resize_align_corners(logits, images.shape[2:4])[..., 0])

  def paint(state, batch):
    images, masks = (batch[name][: observe.PICTURES] for name in ('images', 'masks'))
    return {
      'anchor': images[:, 0],
      'frame': images[:, 1],
      'truth': observe.grey(masks[:, 1]),
      'heat_map': observe.heat_colours(jax.device_get(probabilities(trained.local(state), images))),
    }

  return paint


def _seconds_at_peak(lowered: Any, config: Any, mesh: jax.sharding.Mesh) -> float | None:
  """How long a step would take at the devices' full rate; None where its operations are not known."""
  operations = utilization.operations(lowered, config.accumulate)
  if operations is None:
    logging.warning('no model FLOP utilisation: this backend does not count operations')
    return None
  rate, source = utilization.peak(list(mesh.devices.flat), jnp.dtype(config.model.dtype))
  what = f'{operations / 1e9:.1f} GFLOP a step; utilisation is relative to {source}'
  logging.warning('%s', what, extra={'note': True})
  return operations / rate


def _is_due(done: int, every: int) -> bool:
  return every > 0 and done % every == 0


def _is_within(step: int, interval: tuple[int, ...]) -> bool:
  return len(interval) == 2 and interval[0] <= step < interval[1]


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None
