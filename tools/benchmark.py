"""Times the network against the PyTorch oracle, a clip from file to file, a training step, and the input pipeline.

  python tools/benchmark.py                                    # every section at its defaults, minutes on a CPU
  python tools/benchmark.py model --backbone resnet50 --size 641x353 --threads 1
  python tools/benchmark.py end-to-end --model adnet-compact --input CLIP
  python tools/benchmark.py train-step --config configs/davis.py --crop 321 481 --config-key batch=4
  python tools/benchmark.py input --data DAVIS --json benchmark.json
  python tools/benchmark.py trade-offs --davis DAVIS --step 12
  python tools/benchmark.py convolutions attention             # the forms that layers.conv and attend choose between
  python tools/benchmark.py tiling                             # how much of a TPU's matrix unit the shapes fill

What is compared runs in turns within one process (ours, theirs, ours, theirs, ...), so that a busy machine slows both;
`ratio` is that of the best times. Beside each wall time stands the process's CPU time, all threads together, which
other programs on the machine change little. docs/performance.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]  # the package as it stands here, and the oracle

from adnet_jax import exits  # noqa: E402
from tools.benchmarks import end_to_end, forms, inputs, measuring, metrics, model, tradeoffs, train_step  # noqa: E402
from tools.benchmarks.measuring import Row, table  # noqa: E402

# In the order in which they run; each has options of its own.
SECTIONS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
  'model': model.run,
  'end-to-end': end_to_end.run,
  'train-step': train_step.run,
  'input': inputs.run,
  'metrics': metrics.run,
  'trade-offs': tradeoffs.run,
  'convolutions': forms.convolutions,
  'attention': forms.attention,
  'tiling': forms.tiling,
}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('sections', nargs='*', metavar='SECTION', help=f'some of {", ".join(SECTIONS)}; default: all')
  add('--repeats', type=int, default=5, help='measurements of each thing')
  add('--threads', type=int, help='processor cores to use, JAX and PyTorch alike (Linux); default: all')
  add('--device', choices=('cpu', 'gpu', 'tpu'), help='default: what JAX prefers')
  add('--dtype', choices=('float32', 'bfloat16'), help='of inference; default: float32 on a CPU, else bfloat16')
  add('--json', type=Path, metavar='FILE', help='also write what was measured, machine and versions')
  add('--tiny', action='store_true', help='rehearsal: everything as small as it goes')
  add('--debug', action='store_true', help='print the traceback of an error')
  measuring.add_config_options(parser)
  for section in (model, end_to_end, train_step, inputs, tradeoffs):
    section.add_options(parser)
  return parser


TINY_KEYS = (
  'model.backbone=resnet10 model.stem=conv7x7 model.aspp_width=8 model.embedding=8 optim.frozen_stages=4 data.crop=33 '
  'data.stills_fraction=0 batch=2'
)
TINY = {'backbone': 'resnet10', 'size': (65, 33), 'repeats': 1, 'frames': 3, 'network_size': (65, 33), 'samples': 4}


def main(arguments: list[str] | None = None) -> int:
  """Runs the tool and returns its exit code."""
  arguments = sys.argv[1:] if arguments is None else arguments
  return exits.guarded(lambda: _run(arguments), debug='--debug' in arguments)


def _run(arguments: list[str]) -> None:
  parser = _parser()
  options = parser.parse_args(arguments)
  unknown = [name for name in options.sections if name not in SECTIONS]
  if unknown:
    parser.error(f'unknown section {unknown[0]!r}, expected some of {", ".join(SECTIONS)}')
  if options.tiny:
    vars(options).update(TINY, config_key=TINY_KEYS.split())
  options.stem = options.stem or ('efficientnet' if options.backbone.startswith('efficientnet') else 'deep')
  if options.threads:
    if not hasattr(os, 'sched_setaffinity'):
      parser.error('--threads needs Linux')
    # JAX makes one thread a core that the process may use, and reads it when its backend starts.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
  report: dict[str, Any] = {
    'format': 1,
    'command': ' '.join(['python', 'tools/benchmark.py', *arguments]),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'machine': measuring.machine(options.device),
    'versions': measuring.versions(),
    'sections': {},
  }
  print(', '.join(f'{name} {value}' for part in ('machine', 'versions') for name, value in report[part].items()))
  for name in options.sections or SECTIONS:
    rows = report['sections'][name] = SECTIONS[name](options)
    print(f'\n{name}\n{table(rows)}', flush=True)
  if options.json:
    temporary = options.json.with_name(f'.{options.json.name}.{os.getpid()}.tmp')
    temporary.write_text(json.dumps(report, indent=2) + '\n')
    temporary.replace(options.json)


if __name__ == '__main__':
  sys.exit(main())
