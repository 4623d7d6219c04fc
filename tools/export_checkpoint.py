"""Writes a checkpoint of training as a model file.

  python tools/export_checkpoint.py WORKDIR -o model.safetensors
  python tools/export_checkpoint.py WORKDIR -o model.safetensors --step 12000 --weights learnt

The newest checkpoint that can be read, unless --step names another; its averaged weights where it has them, unless
--weights says which. The training may be running.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package as it stands here

from adnet_jax import exits  # noqa: E402


def main(argv: list[str] | None = None) -> int:
  """Runs the program and returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv
  return exits.guarded(lambda: _run(argv), debug='--debug' in argv)


def _run(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  add = parser.add_argument
  add('workdir', type=Path, help='work folder of a training, its checkpoints/, or checkpoints/STEP')
  add('-o', '--output', type=Path, required=True, metavar='FILE.safetensors')
  add('--step', type=int, metavar='N', help='which checkpoint (default: the newest)')
  add('--weights', choices=('averaged', 'learnt'), help='default: averaged where there are such')
  add('--half', action='store_true', help='store parameters as float16')
  add('--overwrite', action='store_true', help='replace the output')
  add('--debug', action='store_true', help='print the traceback of an error')
  a = parser.parse_args(argv)
  # Heavy imports only after everything cheap has been checked.
  from adnet_jax import environment

  environment.print_log_lines()  # before Orbax is there, which would have lines printed another way
  from adnet_jax import trained, weights

  weights.check_output(a.output, a.overwrite)
  averaged = None if a.weights is None else a.weights == 'averaged'
  step, found = trained.read_checkpoint(a.workdir, averaged=averaged, step=a.step)
  dtype = 'float16' if a.half else 'float32'
  weights.save(a.output, found.arrays, found.metadata, dtype=dtype, overwrite=a.overwrite)
  print(f'checkpoint {step} -> {a.output}')


if __name__ == '__main__':
  sys.exit(main())
