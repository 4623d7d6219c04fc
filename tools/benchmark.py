"""Times the network against the PyTorch oracle, a clip from file to file, a training step, and the input pipeline.

  python tools/benchmark.py                                    # every section at its defaults, minutes on a CPU
  python tools/benchmark.py model --backbone resnet50 --size 641x353 --threads 1
  python tools/benchmark.py end-to-end --model adnet-compact --input CLIP
  python tools/benchmark.py train-step --config configs/davis.py --crop 321 481 --config-key batch=4
  python tools/benchmark.py input --data DAVIS --json benchmark.json

What is compared runs in turns within one process (ours, theirs, ours, theirs, ...), so that a busy machine slows both;
`ratio` is that of the best times. Beside each wall time stands the process's CPU time, all threads together, which
other programs on the machine change little. docs/performance.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]  # the package as it stands here, and the oracle

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Timing:
  """Repeated measurements of one thing, in seconds.

  Attributes:
    wall: of each repetition.
    cpu: processor time of each repetition, all threads of this process.
  """

  wall: tuple[float, ...]
  cpu: tuple[float, ...]

  def row(self, what: str) -> Row:
    return {
      'what': what,
      'median s': statistics.median(self.wall),
      'best s': min(self.wall),
      'best CPU s': min(self.cpu),
    }


def measure(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
  """Times functions in turns, each called once before (compilation); they return when their work is done."""
  for function in functions.values():
    function()
  taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
  for _ in range(repeats):
    for name, function in functions.items():
      wall, cpu = time.perf_counter(), time.process_time()
      function()
      taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
  return {name: Timing(*zip(*pairs)) for name, pairs in taken.items()}


# ---------------------------------------------------------------------------------------------------- model


def model_section(options: argparse.Namespace) -> list[Row]:
  """Time a frame of our network and the oracle's with the same weights: uint8 frame in, logits out, anchor cached."""
  import cv2
  import jax
  import numpy as np

  from adnet_jax import pretrained

  devices = pretrained.find_devices(options.device)[:1]
  kind = devices[0].platform
  dtype = options.dtype or ('float32' if kind == 'cpu' else 'bfloat16')
  # Smooth pictures: on noise, random networks saturate and the outputs of the two could not be compared.
  coarse = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), np.uint8)
  anchor, frame = (cv2.resize(image, options.size, interpolation=cv2.INTER_CUBIC)[None] for image in coarse)
  oracle, absent = _oracle(options, kind)
  model = pretrained.Model(*_network(options, oracle, dtype), devices)
  embedding = jax.block_until_ready(model.embed(anchor)) if model.uses_anchor else None

  outputs: dict[str, Any] = {}

  def ours() -> None:
    outputs['ours'] = jax.block_until_ready(model.predict(embedding, frame))

  name = f'ours, {dtype}'
  functions: dict[str, Callable[[], Any]] = {name: ours}
  if oracle is not None:
    functions['PyTorch, float32'] = _oracle_frame(oracle, options, kind, anchor, frame, outputs)
  timings = measure(functions, options.repeats)
  title = f'{options.variant} {options.backbone} {"x".join(map(str, options.size))}'
  rows = [timing.row(f'{title}: {what}') for what, timing in timings.items()]
  if oracle is None:
    return [*rows, {'what': f'PyTorch: not measured, {absent}'}]
  reference = np.moveaxis(outputs['theirs'], 1, -1)
  difference = np.abs(np.asarray(outputs['ours']) - reference).max() / np.abs(reference).max()
  mine, theirs = (timing.row('') for timing in timings.values())
  ratio = {column: mine[column] / theirs[column] for column in mine if column != 'what'}
  rows.append({'what': 'ratio, ours to PyTorch', **ratio})
  return [*rows, {'what': f'largest difference of the logits: {difference:.1e} of their largest magnitude'}]


def _oracle(options: argparse.Namespace, kind: str) -> tuple[Any, str]:
  """The oracle with random weights, or None and the reason."""
  try:
    import torch

    torch_adnet, torch_weights = map(importlib.import_module, ('torch_adnet', 'torch_weights'))
  except ImportError as error:
    return None, f'{error.name} is not installed' if error.name == 'torch' else str(error)
  if kind not in ('cpu', 'gpu') or (kind == 'gpu' and not torch.cuda.is_available()):
    return None, f'this PyTorch has no {kind}'
  # The CPU backend of JAX takes every core that the process may use.
  torch.set_num_threads(_cores())
  torch.manual_seed(0)
  stem = {'conv7x7': '7x7'}.get(options.stem, options.stem)
  oracle = torch_adnet.build(options.variant, options.backbone, stem, options.output_stride)
  return torch_weights.random_weights(oracle, seed=0), ''


def _network(options: argparse.Namespace, oracle: Any, dtype: str) -> tuple[Any, Any]:
  """Our network, with the oracle's weights where there is one, and its metadata."""
  import flax.nnx as nnx
  import jax.numpy as jnp

  from adnet_jax import convert, weights
  from adnet_jax.models import adnet

  if oracle is not None:
    state = {name: array.numpy() for name, array in oracle.state_dict().items() if 'num_batches' not in name}
    found = convert.from_foreign(
      state, Path('oracle'), variant=options.variant, normalization='released', output_stride=options.output_stride
    )
    assert isinstance(found.metadata, weights.Metadata)
    return weights.build(found.metadata.architecture, found.arrays, dtype=jnp.dtype(dtype)), found.metadata
  architecture = adnet.Architecture(
    variant=options.variant, backbone=options.backbone, stem=options.stem, output_stride=options.output_stride
  )
  metadata = weights.Metadata(architecture, 'released', options.size, 'random weights', '', 'benchmark')
  return adnet.ADNet(architecture, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)), metadata


def _oracle_frame(oracle, options, kind, anchor, frame, outputs) -> Callable[[], None]:
  """What the oracle does for a frame: eager, as its users run it."""
  import torch

  torch_inference = importlib.import_module('torch_inference')
  device = 'cuda' if kind == 'gpu' else 'cpu'
  oracle = oracle.to(device)

  def prepare(image):
    return torch_inference.to_torch(torch_inference.normalize(image, 'released')).to(device)

  has_anchor = options.variant != 'baseline'
  with torch.no_grad():
    embedding = oracle.encode(prepare(anchor)) if has_anchor else None

  @torch.no_grad()
  def theirs() -> None:
    current = prepare(frame)
    output = oracle.decode(embedding, oracle.encode(current)) if has_anchor else oracle(None, current)
    outputs['theirs'] = output.cpu().numpy()  # waits for the device

  return theirs


# ------------------------------------------------------------------------------------------------- the rest


def end_to_end_section(options: argparse.Namespace) -> list[Row]:
  """A clip from its files to masks and overlay, by stage; stages overlap, each in threads of its own."""
  from adnet_jax import errors, pipeline, segmenter, video, weights

  try:
    runner = segmenter.Segmenter.from_pretrained(
      options.model or weights.DEFAULT_MODEL, device=options.device, dtype=options.dtype, size=options.network_size
    )
  except errors.AdnetError as error:
    return [{'what': f'not measured: {error}'}]
  source = video.open_source(
    options.input or ROOT / 'adnet_jax/assets/sample/JPEGImages/480p/astronaut', end=options.frames
  )
  outputs = pipeline.Outputs(overlay=importlib.util.find_spec('av') is not None, overwrite=True)
  best: dict[str, Any] = {}
  for repetition in range(options.repeats + 1):
    with tempfile.TemporaryDirectory() as folder:
      started = time.perf_counter()
      summary = pipeline.segment_clip(runner, source, Path(folder), outputs)
      seconds = time.perf_counter() - started
    # The first one compiles.
    if repetition and (not best or seconds < best['seconds']):
      best = {'seconds': seconds, 'summary': summary}
  (width, height), frames = best['summary']['size'], best['summary']['frames']
  title = f'{frames} frames, network at {width}x{height} on {runner.model.devices[0].platform}'
  stages = {title: best['seconds'], **{f'  {k}': v for k, v in best['summary']['seconds'].items() if k != 'total'}}
  return [{'what': name, 'fps': frames / spent, 'seconds': spent} for name, spent in stages.items() if spent]


def train_step_section(options: argparse.Namespace) -> list[Row]:
  """One step of a configuration at each crop, from a batch that lies on the device; random weights."""
  import jax
  import numpy as np

  from adnet_jax import config as config_lib
  from adnet_jax import step as step_lib

  rows = []
  for crop in options.crop or [None]:
    keys = ['init.weights=', *options.config_key, *([f'data.crop={crop}'] if crop else [])]
    config = config_lib.load(options.config, keys)
    trainer, state = step_lib.initialize(config)
    rng = np.random.default_rng(0)
    shape = (config.batch, 2, config.data.crop, config.data.crop)
    images, masks = rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(0, 2, shape, np.uint8)
    batch = jax.device_put({'images': images, 'masks': masks})
    step = jax.jit(lambda state, batch, trainer=trainer: step_lib.train_step(trainer, state, batch), donate_argnums=0)
    current = [state]

    def advance(step=step, batch=batch, current=current) -> None:
      current[0], metrics = step(current[0], batch)
      jax.block_until_ready(metrics['loss'])

    (timing,) = measure({'step': advance}, options.repeats).values()
    model = f'{config.model.backbone} {config.model.dtype}'
    name = f'{Path(options.config).stem}: {model}, {config.batch} pairs of {config.data.crop}'
    rows.append({**timing.row(name), 'images/s': 2 * config.batch / min(timing.wall)})
  return rows


def input_section(options: argparse.Namespace) -> list[Row]:
  """Training pairs a second, read, decoded and augmented, with one thread and with one a core."""
  import cv2

  from adnet_jax import config as config_lib
  from adnet_jax.data import datasets, input_pipeline

  config = config_lib.load(options.config, options.config_key)
  root = Path(options.data or ROOT / 'adnet_jax/assets/sample')
  clips = datasets.read_clips(root, datasets.split(root, 'train'), need_masks=True)
  photographs = datasets.read_photographs(Path(options.stills)) if options.stills else []
  source = input_pipeline.pair_source(config, clips, photographs)
  cv2.setNumThreads(1)
  rows = []
  for threads in sorted({1, _cores()}):
    with ThreadPoolExecutor(threads) as pool:
      list(pool.map(source.__getitem__, range(threads)))
      wall, cpu = time.perf_counter(), time.process_time()
      list(pool.map(source.__getitem__, range(options.samples)))
      wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    name, rate = f'pairs of {config.data.crop}, {threads} thread{"s" * (threads > 1)}', options.samples / wall
    rows.append({'what': name, 'pairs/s': rate, 'a thread': rate / threads, 'CPU s a pair': cpu / options.samples})
  return rows


SECTIONS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
  'model': model_section,
  'end-to-end': end_to_end_section,
  'train-step': train_step_section,
  'input': input_section,
}


# -------------------------------------------------------------------------------------------------- reports


def table(rows: list[Row]) -> str:
  """Rows with some of the same columns as aligned text; 'what' comes first."""
  columns = list(dict.fromkeys(column for row in rows for column in row if column != 'what'))
  # A line without numbers may be as long as it likes.
  widest = max((len(row['what']) for row in rows if len(row) > 1), default=0)
  lines = [' ' * widest + ''.join(f'  {column:>10}' for column in columns)]
  for row in rows:
    cells = (f'{row[column]:.4g}' if column in row else '' for column in columns)
    widths = (max(10, len(column)) for column in columns)
    lines.append(row['what'].ljust(widest) + ''.join(f'  {cell:>{width}}' for cell, width in zip(cells, widths)))
  return '\n'.join(line.rstrip() for line in lines)


def machine(platform_name: str | None) -> dict[str, Any]:
  """Processor, cores that this process may use, and the device, on which everything runs from now on."""
  import jax

  from adnet_jax import pretrained

  model, cpuinfo = platform.processor(), Path('/proc/cpuinfo')
  if cpuinfo.exists():
    lines = cpuinfo.read_text().splitlines()
    model = next((line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')), model)
  device = pretrained.find_devices(platform_name)[0]
  if platform_name:
    jax.config.update('jax_default_device', device)
  return {'cpu': model, 'cores': _cores(), 'device': device.device_kind}


def versions() -> dict[str, str]:
  found = {'python': platform.python_version()}
  for package in ('adnet-jax', 'jax', 'jaxlib', 'flax', 'numpy', 'opencv-python-headless', 'torch'):
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _size(text: str) -> tuple[int, int]:
  width, height = text.lower().split('x')
  return int(width), int(height)


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
  add('--variant', default='full', help='model: row of Table 1')
  add('--backbone', default='resnet101', help='model')
  add('--stem', help="model; default: 'deep', an EfficientNet's own")
  add('--output-stride', type=int, choices=(8, 16), default=8, help='model')
  add('--size', type=_size, default=(857, 481), metavar='WxH', help="model: the network's input")
  add('--model', help='end-to-end: name or file; default: the bundled model')
  add('--input', help='end-to-end: clip; default: the bundled one')
  add('--frames', type=int, help='end-to-end: only the first so many')
  add('--network-size', type=_size, metavar='WxH', help='end-to-end; default: by model and clip')
  add('--config', default=str(ROOT / 'configs/compact.py'), help='train-step and input')
  add('--config-key', action='append', default=[], metavar='KEY=VALUE', help='train-step and input: changed key')
  add('--crop', type=int, nargs='+', help="train-step: sizes; default: the configuration's")
  add('--data', help="input: data set in DAVIS' layout; default: the bundled clip")
  add('--stills', help='input: folder of photographs')
  add('--samples', type=int, default=64, help='input: pairs read')
  return parser


TINY_KEYS = (
  'model.backbone=resnet18 model.stem=conv7x7 model.aspp_width=8 model.embedding=8 optim.frozen_stages=4 data.crop=33 '
  'data.stills_fraction=0 batch=2'
)
TINY = {'backbone': 'resnet18', 'size': (65, 33), 'repeats': 1, 'frames': 3, 'network_size': (65, 33), 'samples': 4}


def main(arguments: list[str] | None = None) -> int:
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
    'command': ' '.join(['python', 'tools/benchmark.py', *(sys.argv[1:] if arguments is None else arguments)]),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'machine': machine(options.device),
    'versions': versions(),
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
  return 0


if __name__ == '__main__':
  sys.exit(main())
