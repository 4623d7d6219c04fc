r"""Table 1 of the paper with numbers of one's own: five given models, or all variants trained under one budget.

  python tools/ablation.py --models base.safetensors intra.safetensors ... --davis DAVIS -o OUT
  python tools/ablation.py --config configs/compact.py --workdir DIR --seeds 0,1 \
      --config.data.root=DAVIS --config.steps=400

The first form scores model files; each file says which variant it is. The second trains every variant from the same
configuration under each seed, into DIR/seed-0/VARIANT, and scores what its last step left (no validation on the way
chooses another); a run that was stopped goes on with --resume.
It trains the full network once more with both frames of a pair drawn at random (`both_frames_random`), of which the
paper says without a number that it did slightly worse.
Both write one score file a variant (OUT/VARIANT.json, DIR/seed-0/VARIANT.json) and Table 1 as `table1.md` beside them.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package as it stands here

from adnet_jax import exits, scores  # noqa: E402
from adnet_jax.errors import UsageError  # noqa: E402
from adnet_jax.models.adnet import VARIANTS  # noqa: E402
from adnet_jax.report import entries as entry_lib  # noqa: E402
from adnet_jax.report import grid, tables  # noqa: E402
from tools.similarity import network_size, write_whole  # noqa: E402

# What is trained: {name: (variant, data.anchor)}.
TRAININGS = {**{variant: (variant, 'first') for variant in VARIANTS}, tables.BOTH_RANDOM: ('full', 'random')}


def variants_of(models: Sequence[str | Path]) -> dict[str, Path]:
  """{variant: file} of model files, in the order of Table 1; UsageError where two are of one variant."""
  from adnet_jax import metadata, weights

  found: dict[str, Path] = {}
  for model in models:
    path = weights.find_model(model)
    _, strings = weights.read_file(path)
    parsed = metadata.parse_metadata(strings, path)
    if isinstance(parsed, metadata.Trunk):
      raise UsageError('an ImageNet trunk, not a model', path, 'give model files')
    variant = parsed.architecture.variant
    if variant in found:
      raise UsageError(f'two files of the variant {variant}', f'{found[variant]}, {path}', 'give one of each')
    found[variant] = path
  return {variant: found[variant] for variant in VARIANTS if variant in found}


def evaluate_models(config: Any, models: Mapping[str, Path], out: Path, **options: Any) -> dict[str, Path]:
  """Scores each model under `config`; {variant: score file OUT/VARIANT.json}. Masks lie in OUT/VARIANT/evaluation."""
  from adnet_jax import predict

  found = {}
  for variant, path in models.items():
    print(f'{variant}: {path}', file=sys.stderr)
    config.init.weights = str(path)
    found[variant] = _keep(predict.evaluate(config, out / variant, **options), variant, out)
  return found


def train_variants(config: Any, seed: int, workdir: Path, **options: Any) -> dict[str, Path]:
  """Trains and scores TRAININGS from `config` with `seed`; {name: score file WORKDIR/NAME.json}."""
  from adnet_jax import config as config_lib
  from adnet_jax import predict, train

  found = {}
  for name, (config.model.variant, config.data.anchor) in TRAININGS.items():
    config.seed = seed
    config_lib.validate(config)
    folder = workdir / name
    predict.check_free(folder, overwrite=options['overwrite'], resume=options['resume'])
    folder.mkdir(parents=True, exist_ok=True)
    print(f'{name}, seed {seed}: {config.steps} steps into {folder}', file=sys.stderr)
    train.train(config, folder, _Progress(config.steps))
    found[name] = _keep(predict.evaluate(config, folder, **options), name, workdir)
  return found


def _keep(found: dict[str, Any], variant: str, folder: Path) -> Path:
  """The score file under the name that Table 1 knows the variant by."""
  path = folder / f'{variant}.json'
  scores.write_scores({**found, 'name': variant}, path)
  for warning in found.get('warnings', ()):
    print(f'warning: {variant}: {warning}', file=sys.stderr)
  return path


class _Progress:
  """Prints a line of the training ten times a run."""

  def __init__(self, steps: int):
    self.steps = steps

  def __call__(self, step: int, values: dict[str, float]) -> None:
    if (step + 1) % max(1, self.steps // 10) == 0:
      print(f'  step {step + 1} loss {values["loss"]:.4f} {values["seconds"]:.2f} s/step', file=sys.stderr)


def table_1(files: Mapping[str, Path], title: str = '') -> grid.Table:
  """Table 1 from one score file a variant; a set that has no name, such as one's own, counts as the table's."""
  read = (entry_lib.read_entries([path])[0] for path in files.values())
  table = tables.table1([dataclasses.replace(entry, dataset=entry_lib.DAVIS) for entry in read])
  return dataclasses.replace(table, title=f'{table.title}{title}')


def over_seeds(files: Mapping[int, Mapping[str, Path]]) -> grid.Table:
  """Mean and range over seeds of each variant's J and F, and of the gains over the same seed's baseline, in percent."""
  columns = [grid.Column('variant', text=True)]
  rows = [[grid.words(name)] for name in TRAININGS]
  for metric in ('J', 'F'):
    found = {
      seed: {variant: scores.read_scores(path)['dataset'][metric]['mean'] for variant, path in of_seed.items()}
      for seed, of_seed in files.items()
    }
    for label, start in ((metric, None), (f'{metric} over baseline', 'baseline')):
      columns += [grid.Column('mean', label), grid.Column('lowest', label), grid.Column('highest', label)]
      for row, name in zip(rows, TRAININGS, strict=True):
        pairs = [(of[name], of[start] if start else 0.0) for of in found.values()]
        values = [value - before for value, before in pairs if value is not None and before is not None]
        for summary in (statistics.mean, min, max):
          value = summary(values) if len(values) == len(pairs) else None
          row.append(grid.number(value, 2, scale=100, sign=start is not None))
  seeds = ', '.join(map(str, files))
  return grid.Table(f'Over the seeds {seeds}, percent', tuple(columns), tuple(map(tuple, rows)))


# ----------------------------------------------------------------------------------------------------------- command


def main(argv: list[str] | None = None) -> int:
  """Runs the program and returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv
  return exits.guarded(lambda: _run(argv), debug='--debug' in argv)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    epilog='--config.KEY=VALUE changes a key of the configuration; adnet_jax/config.py lists them all.',
  )
  add = parser.add_argument
  add('--models', nargs='+', metavar='NAME|FILE', help='up to five model files, one of each variant')
  add('--davis', type=Path, metavar='DIR', help="--models: data set in DAVIS' layout")
  add('-o', '--output', type=Path, metavar='OUT', help='--models: folder')
  add('--size', type=network_size, metavar='WxH', help="--models: network's input (default: each model's)")
  add('--config', type=Path, metavar='FILE.py', help='configuration to train all variants from')
  add('--workdir', type=Path, metavar='DIR', help='--config: folder')
  add('--seeds', type=_seeds, default=(0,), metavar='0,1', help='--config: of the runs (default: 0)')
  add('--resume', action='store_true', help='go on with a run that was stopped')
  add('--overwrite', action='store_true', help='replace earlier evaluations (training always goes on)')
  add('--device', choices=('cpu', 'gpu', 'tpu'), help='default: what JAX prefers')
  add('--debug', action='store_true', help='print the traceback of an error')
  return parser


def _seeds(text: str) -> tuple[int, ...]:
  try:
    return tuple(dict.fromkeys(int(part) for part in text.split(',')))
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text!r} is not a list of numbers such as 0,1') from None


def _run(argv: list[str]) -> None:
  from adnet_jax import config as config_lib
  from adnet_jax import main as main_program

  own, overrides = main_program.split_overrides(argv)
  a = _parser().parse_args(own)
  if a.overwrite and a.resume:
    raise UsageError('--overwrite and --resume exclude each other', '--overwrite, --resume', 'give one')
  if (a.models is None) == (a.config is None):
    raise UsageError('give either model files or a configuration', '--models, --config', '--help tells more')
  options = {'overwrite': a.overwrite, 'resume': a.resume, 'device': a.device}
  if a.models:
    if a.davis is None or a.output is None:
      raise UsageError('where is the data set, and where do results go?', '--davis, --output', 'give both')
    config = config_lib.default()
    config.data.root, config.evaluate.size = str(a.davis), a.size or ()
    models = variants_of(a.models)
    _set_up(a.device)
    found = [table_1(evaluate_models(config, models, a.output, **options))]
    folder = a.output
  else:
    if a.workdir is None:
      raise UsageError('no folder to train into', '--workdir', 'give one')
    config, folder = config_lib.load(a.config, overrides), a.workdir
    _set_up(a.device)
    files = {seed: train_variants(config, seed, folder / f'seed-{seed}', **options) for seed in a.seeds}
    found = [table_1(of_seed, f', seed {seed}') for seed, of_seed in files.items()]
    found += [over_seeds(files)] if len(files) > 1 else []
  text = grid.to_markdown(found)
  write_whole(folder / 'table1.md', text.encode())
  print(text, end='')


def _set_up(device: str | None) -> None:
  # Heavy imports only after everything cheap has been checked.
  from adnet_jax import environment

  environment.set_up(device)


if __name__ == '__main__':
  sys.exit(main())
