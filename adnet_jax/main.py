"""The main program: flags and logging; `train.py` and `predict.py` do the work.

python -m adnet_jax.main --config configs/davis.py --workdir DIR --mode train_and_evaluate --config.optim.lr=.01
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
import tempfile
import time
from pathlib import Path

from adnet_jax import distributed, exits
from adnet_jax.errors import UsageError

MODES = ('train', 'evaluate', 'train_and_evaluate')
# Between two lines of a training whose progress bar has no terminal.
LINE_SECONDS = 60


def main(argv: list[str] | None = None) -> int:
  """Runs the program and returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv
  status = exits.guarded(lambda: _main(argv), debug='--debug' in argv)
  distributed.leave(status)
  return status


def _main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(
    prog='python -m adnet_jax.main',
    description='Train and evaluate AD-Net.',
    allow_abbrev=False,
    epilog='--config.KEY=VALUE changes a key of the configuration; adnet_jax/config.py lists them all.',
  )
  parser.add_argument('--config', required=True, metavar='FILE.py', help='configuration, see configs/')
  parser.add_argument('--workdir', required=True, type=Path, metavar='DIR', help='gets logs, checkpoints and results')
  parser.add_argument('--mode', default='train_and_evaluate', choices=MODES)
  parser.add_argument('--overwrite', action='store_true', help='replace an earlier evaluation')
  parser.add_argument('--resume', action='store_true', help='go on with an earlier evaluation (training always does)')
  parser.add_argument('--device', choices=('cpu', 'gpu', 'tpu'), help='default: what JAX prefers')
  parser.add_argument('--debug', action='store_true', help='print the traceback of an error')
  several = parser.add_argument_group('training with several processes, each started with its own place')
  several.add_argument('--distributed', action='store_true', help='the place is what the TPU pod, Slurm, ... says')
  several.add_argument('--coordinator', metavar='HOST:PORT', help='where process 0 runs, and a free port there')
  several.add_argument('--processes', type=int, metavar='N', help='how many there are')
  several.add_argument('--process', type=int, metavar='K', help='which one this is, from 0')
  several.add_argument(
    '--timeout', type=int, default=distributed.TIMEOUT, metavar='S', help='seconds without a sign of life (%(default)s)'
  )
  own, overrides = split_overrides(argv)
  _run(parser.parse_args(own), overrides)


def split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
  """The other arguments, and KEY=VALUE of every --config.KEY=VALUE or --config.KEY VALUE."""
  own, overrides = [], []
  arguments = iter(argv)
  for argument in arguments:
    if not argument.startswith('--config.'):
      own.append(argument)
      continue
    text = argument.removeprefix('--config.')
    overrides.append(text if '=' in text else f'{text}={next(arguments, "")}')
  return own, overrides


def _run(flags: argparse.Namespace, overrides: list[str]) -> None:
  from adnet_jax import config as config_lib

  config = config_lib.load(flags.config, overrides)
  place = distributed.place(flags.coordinator, flags.processes, flags.process)
  several = flags.distributed or place is not None
  if several and flags.mode == 'evaluate':
    raise UsageError('evaluation runs in one process', '--mode, --distributed, --coordinator', 'leave the latter out')
  if flags.mode != 'evaluate':
    config_lib.check_training(config)
  _check_workdir(flags.workdir)
  # Heavy imports only after everything cheap has been checked.
  import jax

  from adnet_jax import environment, predict

  if flags.overwrite and flags.resume:
    raise UsageError('--overwrite and --resume exclude each other', '--overwrite, --resume', 'give one')
  if flags.mode != 'train':
    predict.check_free(flags.workdir, overwrite=flags.overwrite, resume=flags.resume)
  with distributed.joined(place, flags.timeout) if several else contextlib.nullcontext():
    environment.set_up(flags.device)
    if flags.mode != 'evaluate':
      _train(config, flags.workdir, flags.device)
    leader = jax.process_index() == 0
  if flags.mode != 'train' and leader:
    from adnet_jax import scores as scores_lib

    scores = predict.evaluate(
      config, flags.workdir, overwrite=flags.overwrite, resume=flags.resume, device=flags.device
    )
    for warning in scores['warnings']:
      print(f'warning: {warning}', file=sys.stderr)
    print(scores_lib.scores_table(scores))


def _train(config, workdir: Path, device: str | None) -> None:
  import jax
  from rich.console import Console
  from rich.progress import Progress, TextColumn, TimeRemainingColumn

  from adnet_jax import predict, train

  # What is wrong with them is said now, not at the first validation.
  clips = predict.validation_clips(config) if config.evaluate.every else None

  columns = (*Progress.get_default_columns()[:-1], TextColumn('{task.fields[numbers]}'), TimeRemainingColumn())
  console, leader = Console(stderr=True), jax.process_index() == 0
  with Progress(*columns, console=console, disable=not (console.is_terminal and leader)) as bar:
    task = bar.add_task('training', total=config.steps, numbers='compiling')
    said = None

    def show(step: int, values: dict[str, float]) -> None:
      nonlocal said
      now, done = time.monotonic(), step + 1
      numbers = f'loss {values["loss"]:.4f} lr {values["lr"]:.2g} {values["seconds"]:.2f} s/step'
      if said is None:  # time left counts from here: neither compiling nor the steps of an earlier run tell of it
        bar.reset(task, completed=step)
      bar.update(task, completed=done, numbers=f'step {done} {numbers}')
      if said is None or now - said > LINE_SECONDS or done == config.steps:
        said = now
        if bar.disable and leader:
          left = datetime.timedelta(seconds=round(values['seconds'] * (config.steps - done)))
          print(f'step {done} of {config.steps}, {numbers}, {left} left', file=sys.stderr, flush=True)

    def validate(model: Path) -> dict[str, float | None]:
      bar.stop()  # it draws bars of its own
      try:
        return predict.validate(config, workdir, model, device, clips=clips)
      finally:
        bar.start()

    final = train.train(config, workdir, show, validate)
  if leader:
    print(f'model: {final}')


def _check_workdir(workdir: Path) -> None:
  """Fault 5: said before anything heavy starts."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as error:
    raise UsageError(f'work folder cannot be written: {error.strerror}', workdir, 'choose another --workdir') from error


def run() -> None:
  """The program as a process: after an error it ends even where a thread of the input is stuck (fault 27)."""
  status = main()
  if status:
    exits.leave(status)


if __name__ == '__main__':
  run()
