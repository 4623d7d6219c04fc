"""Compiles the network for an accelerator that is not there and says what its programs would do there.

  python tools/compiled.py h200                          # needs JAX's CUDA plugin, as 'adnet-jax[cuda]' has it, no GPU
  python tools/compiled.py v5e:2x2 --devices 4           # needs libtpu, as 'adnet-jax[tpu]' has it, no TPU
  python tools/compiled.py h200 --plain                  # as if inference had no options and no order of kernels
  python tools/compiled.py v5e:2x2 --devices 4 --train --config configs/davis.py --config-key model.dtype=bfloat16

A TPU is named by a topology that libtpu knows (v4:2x2x1, v5e:2x2, v5p:2x2x1, v6e:2x2). What XLA would try out on a GPU
(which of cuBLAS's and cuDNN's kernels is fastest) is not tried. Nothing is run, so nothing is timed but the compiler.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from adnet_jax import exits  # noqa: E402
from adnet_jax.errors import DeviceError  # noqa: E402
from tools.benchmarks import measuring  # noqa: E402
from tools.benchmarks.measuring import Row  # noqa: E402

# What XLA asks a GPU for, by name: public figures of the chip.
GPUS = {
  'h200': """
    gpu_device_info {
      threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
      shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      registers_per_core_limit: 65536 registers_per_block_limit: 65536 l2_cache_size: 52428800 clock_rate_ghz: 1.98
      memory_bandwidth: 4800000000000 device_memory_size: 141000000000 cuda_compute_capability { major: 9 }
    }
    platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 } runtime_version { major: 12 minor: 8 }
    device_description_str: "NVIDIA H200"
  """
}
BYTES = {'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8, 's8': 1, 'u8': 1, 'pred': 1, 's32': 4, 'u32': 4, 's64': 8, 'u64': 8}


def main(arguments: list[str] | None = None) -> int:
  """Runs the tool and returns its exit code."""
  arguments = sys.argv[1:] if arguments is None else arguments
  return exits.guarded(lambda: _run(arguments), debug='--debug' in arguments)


def _run(arguments: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('target', help=f'{", ".join(GPUS)}, or a topology of TPUs such as v5e:2x2')
  add('--devices', type=int, default=1, help='of the target, that share a batch')
  add('--batch', type=int, default=8, help='frames at a time, inference')
  add('--size', type=measuring.size, default=(857, 481), metavar='WxH')
  add('--backbone', default='resnet101')
  add('--plain', action='store_true', help='inference without what platforms.py does for the target')
  add('--train', action='store_true', help='the step of --config instead of inference')
  add('--text', type=Path, metavar='DIR', help='also write the compiled programs there')
  add('--json', type=Path, metavar='FILE', help='also write the table')
  add('--debug', action='store_true', help='print the traceback of an error')
  measuring.add_config_options(parser)
  options = parser.parse_args(arguments)
  # Only the compiler of the accelerator is used.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  devices = _devices(options.target)
  if options.devices > len(devices):
    raise DeviceError(f'{options.target} has {len(devices)} devices', '--devices', 'choose a larger topology')
  found = (_training if options.train else _inference)(options, devices[: options.devices])
  rows = []
  for name, compile_it in found:
    began = time.perf_counter()
    try:
      compiled = compile_it()
    except Exception as error:  # whatever a compiler says, the others are to be seen
      rows.append({'what': f'{name}: not possible: {" ".join(str(error).split())[:100]}'})
      continue
    text, memory = compiled.as_text(), compiled.memory_analysis()
    row: Row = {
      'what': name,
      'compile s': time.perf_counter() - began,
      'temporary MiB': memory.temp_size_in_bytes / 2**20,
    }
    kinds, moved = _counted(text)
    row |= {'arguments MiB': memory.argument_size_in_bytes / 2**20, 'GB': moved / 1e9, 'instructions': kinds.total()}
    rows += [row, {'what': '  ' + ', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}]
    if options.text:
      options.text.mkdir(parents=True, exist_ok=True)
      (options.text / f'{name.split(":")[0]}.txt').write_text(text)
  print(f'{options.target}, {measuring.versions()}\n{measuring.table(rows)}')
  if options.json:
    options.json.write_text(json.dumps({'versions': measuring.versions(), 'rows': rows}, indent=2) + '\n')


def _devices(target: str) -> list[Any]:
  """Devices of a topology that is not there."""
  import jax
  from jax._src import xla_bridge
  from jax.experimental import topologies

  try:
    if target not in GPUS:
      # libtpu would ask the machine, or the network, what it is on, and let one process alone use it.
      os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
      for name, value in (
        ('SKIP_MDS_QUERY', '1'),
        ('ACCELERATOR_TYPE', 'v5litepod-4'),
        ('WORKER_HOSTNAMES', 'localhost'),
      ):
        os.environ.setdefault(f'TPU_{name}', value)
      return list(topologies.get_topology_desc(platform='tpu', topology_name=target).devices)
    jax.devices('cpu')
    # JAX takes 'cuda' for 'gpu' and finds no GPU; it has no other way to a compiler without a device.
    known = xla_bridge.canonicalize_platform
    xla_bridge.canonicalize_platform = lambda platform: 'cuda' if platform in ('gpu', 'cuda') else known(platform)
    return list(topologies.get_topology_desc(platform='cuda', target_config=GPUS[target], topology='1x1x1').devices)
  except Exception as error:  # whatever a plugin that is absent, or does not know the name, says
    plugin = "'adnet-jax[cuda]'" if target in GPUS else "'adnet-jax[tpu]'"
    reason = ' '.join(str(error).split())[:200]
    raise DeviceError(f'no compiler for it: {reason}', target, f'pip install {plugin}, or another target') from error


def _platform(devices: list[Any]) -> str:
  return 'tpu' if devices[0].platform == 'tpu' else 'gpu'


def _inference(options: argparse.Namespace, devices: list[Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
  """The programs of a clip: bfloat16, masks of 854 x 480 or the size, packed, refined."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  from adnet_jax import pretrained, refinement, session, weights
  from adnet_jax.models import adnet, platforms

  platform, compact = _platform(devices), options.backbone.startswith('efficientnet')
  architecture = adnet.Architecture(
    backbone=options.backbone,
    stem='efficientnet' if compact else 'deep',
    output_stride=16 if compact else 8,
    aspp_width=128 if compact else 512,
  )
  zeros = {name: np.zeros(shape, np.float32) for name, shape in weights.shapes(architecture).items()}
  module = weights.build(architecture, zeros, dtype=jnp.dtype('bfloat16'))
  changes: dict[str, Any] = {'attention___has_cudnn_attention': lambda: True}  # it asks the GPU of this machine
  if options.plain:
    changes |= {
      'platforms__compiler_options': lambda platform, purpose: {},
      'platforms__stored': lambda array, dtype, platform: array.astype(dtype) if array.ndim == 4 else array,
      'platforms__from_stored': lambda array, platform: array,
      'layers__CUBLAS_ROWS': 1,
    }
  with _replaced(**changes):
    mesh = Mesh(np.asarray(devices), ('data',))
    everywhere, rows = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec('data')))
    programs = pretrained.Programs(module, 'torchvision', platform, mesh)
    compile_options = platforms.compiler_options(platform, 'inference')

    def compiling(function: Callable, *shapes) -> Callable[[], Any]:
      jitted = jax.jit(function, compiler_options=compile_options)
      return lambda: jitted.trace(*shapes).lower(lowering_platforms=(devices[0].platform,)).compile()

    def shape(dims: tuple[int, ...], dtype: Any, where: Any = rows) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(dims, dtype, sharding=where)

    (width, height), b = options.size, options.batch
    params = {name: shape(array.shape, array.dtype, everywhere) for name, array in programs.params.items()}
    images = shape((b, height, width, 3), np.uint8)
    yield f'embed: {b} frames of {width} x {height}', compiling(programs.embed, params, images)
    h, w, c = jax.eval_shape(programs.embed, programs.params, images).shape[1:]
    anchor, current = shape((1, h, w, c), jnp.bfloat16, everywhere), shape((b, h, w, c), jnp.bfloat16)
    yield 'classify: attention and classifier', compiling(programs.classify, params, anchor, current)
    grid, size = refinement.grid_of(options.size), (480, 854)
    arrays = (shape((b, h, w, 1), jnp.float32),), shape((), jnp.float32, everywhere)
    combine: Callable[..., Any] = functools.partial(
      session.combine, mirrored=(False,), size=size, protocol='paper', soft=False, packed=True
    )
    yield 'combine: masks', compiling(combine, *arrays)
    refined = functools.partial(combine, grid=grid, radius=7)
    guided = compiling(
      lambda logits, threshold, guide: refined(logits, threshold, guide=guide), *arrays, shape((b, *size, 3), np.uint8)
    )
    yield 'refine: masks refined along edges', guided


@contextlib.contextmanager
def _replaced(**names: Any) -> Iterator[None]:
  """MODULE__NAME of adnet_jax.models replaced meanwhile."""
  with contextlib.ExitStack() as stack:
    for name, value in names.items():
      module, _, attribute = name.partition('__')
      stack.enter_context(mock.patch(f'adnet_jax.models.{module}.{attribute}', value))
    yield


def _training(options: argparse.Namespace, devices: list[Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
  """The step of a configuration."""
  import jax
  import numpy as np
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  from adnet_jax import config as config_lib
  from adnet_jax import step
  from adnet_jax.models import platforms

  config = config_lib.load(options.config, ['init.weights=', *options.config_key])
  trainer, state = step.initialize(config)
  mesh = Mesh(np.asarray(devices), ('data',))
  everywhere, rows = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec('data')))
  size = (config.batch, 2, config.data.crop, config.data.crop)
  given = {'images': (*size, 3), 'masks': size}
  batch = {name: jax.ShapeDtypeStruct(dims, np.uint8, sharding=rows) for name, dims in given.items()}
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state)

  def compile_it() -> Any:
    with platforms.lowering_for(_platform(devices)), jax.set_mesh(mesh):
      jitted = jax.jit(functools.partial(step.train_step, trainer), donate_argnums=0, out_shardings=(everywhere,) * 2)
      lowered = jitted.trace(shapes, batch).lower(lowering_platforms=(devices[0].platform,))
      # XLA's own products, whose tiles only a GPU can choose, end this compiler.
      own = {'xla_gpu_enable_triton_gemm': False} if _platform(devices) == 'gpu' else {}
      return lowered.compile({**own, **platforms.compiler_options(_platform(devices), 'training')})

  yield (
    f'step: {Path(options.config).stem}, {config.batch} pairs of {config.data.crop}, {config.model.dtype}',
    compile_it,
  )


def _counted(text: str) -> tuple[collections.Counter[str], int]:
  """Instructions of a compiled program by kind, and the bytes that they read and write, an array once each."""
  shapes: dict[str, str] = {}
  kinds: collections.Counter[str] = collections.Counter()
  moved = 0
  for line in text[text.index('\nENTRY') :].splitlines():
    match = re.match(r'\s*(?:ROOT )?%([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*)', line)
    if not match:
      continue
    name, shape, operation, rest = match.groups()
    shapes[name] = shape
    if operation in ('parameter', 'constant', 'bitcast', 'tuple', 'get-tuple-element'):
      continue
    target = re.search(r'custom_call_target="([^"]+)"', line)
    kinds[target[1].lstrip('_') if target else operation] += 1
    # What a library works in is an array of bytes beside its result.
    written = re.sub(r'\b[su]8\[\d+\]', '', shape) if target else shape
    read = (shapes.get(operand, '') for operand in re.findall(r'%([\w.\-]+)', rest.split('), ')[0]))
    moved += sum(map(_bytes, (written, *read)))
  return kinds, moved


def _bytes(shape: str) -> int:
  arrays = re.findall(r'(\w+)\[([\d,]*)\]', shape)
  return sum(BYTES.get(dtype, 0) * math.prod(int(n) for n in dims.split(',') if n) for dtype, dims in arrays)


if __name__ == '__main__':
  sys.exit(main())
