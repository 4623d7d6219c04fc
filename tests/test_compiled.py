"""tools/compiled.py: what it counts of a compiled program, and real compilers where they are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import compiled

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """HloModule jit_f

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %n = f32[4]{0} negate(%p)
}

ENTRY %main (x: bf16[8,4], k: bf16[4,4]) -> bf16[8,4] {
  %x = bf16[8,4]{1,0} parameter(0)
  %k = bf16[4,4]{1,0} parameter(1)
  %b = bf16[4,8]{0,1} bitcast(%x)
  %m.1 = (bf16[8,4]{1,0}, s8[4096]{0}) custom-call(%x, %k), custom_call_target="__cublas$lt$matmul", backend_config={}
  %g = bf16[8,4]{1,0} get-tuple-element(%m.1), index=0
  %f.1 = f32[8]{0} fusion(%g), kind=kInput, calls=%fused
  ROOT %f.2 = bf16[8,4]{1,0} fusion(%g, %f.1), kind=kLoop, calls=%fused
}
"""


def test_kernels_and_bytes_of_a_program():
  product, sums, last = 64 + 32 + 64, 64 + 32, 64 + 32 + 64  # not what the library works in
  kinds, moved = compiled._counted(PROGRAM)
  assert kinds == {'fusion': 2, 'cublas$lt$matmul': 1} and moved == product + sums + last


@pytest.mark.parametrize('target', ['h200', 'v5e:2x2'])
def test_a_compiler_that_is_not_installed_is_named(target, capsys):
  plugins = ('jax_plugins.xla_cuda12', 'jax_plugins.xla_cuda13') if target == 'h200' else ('libtpu',)
  if any(_is_there(name) for name in plugins):
    pytest.skip('it is')
  assert compiled.main([target]) == 6
  error = capsys.readouterr().err
  assert target in error and "pip install 'adnet-jax[" in error and error.count('\n') == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  ('target', 'plugin', 'kernel'),
  [('h200', 'jax_plugins', 'cudnn$fmhaSoftmax'), ('v5e:2x2', 'libtpu', 'tpu_custom_call')],
)
@pytest.mark.parametrize('train', [False, True])
def test_real_compilers(target, plugin, kernel, train, tmp_path):
  """Inference of the bundled model's network, and a training step of a tiny one, for chips that are not there."""
  if not _is_there(plugin):
    pytest.skip(f'no {plugin}')
  report = tmp_path / 'report.json'
  options = ['--backbone', 'efficientnet_lite2', '--size', '129x65', '--batch', '2', '--json', str(report)]
  if train:
    keys = (
      'data.root=x model.backbone=resnet10 model.stem=conv7x7 model.aspp_width=8 model.embedding=8 data.crop=65 batch=2'
    )
    options += ['--train', '--config', 'configs/davis.py', '--config-key', 'model.dtype=bfloat16']
    options += [part for key in keys.split() for part in ('--config-key', key)]
  # The compiler's process is its own: what it sets for JAX stays there.
  command = [sys.executable, str(ROOT / 'tools/compiled.py'), target, *options]
  subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
  rows = json.loads(report.read_text())['rows']
  counted, kinds = rows[::2], rows[1::2]
  assert len(counted) == (1 if train else 4) and all(row['instructions'] > 1 for row in counted)
  assert train or kernel in kinds[1]['what']


def _is_there(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:
    return False
