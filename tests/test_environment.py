"""What commands set up before JAX runs, and what `adnet doctor` reports."""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import subprocess
import sys

import jax
import pytest
from absl import logging as absl_logging

from adnet_jax import doctor, environment
from adnet_jax.errors import DeviceError, UsageError


@pytest.fixture(autouse=True)
def restored(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.delenv('ADNET_COMPILATION_CACHE', raising=False)
  handlers, cache = logging.getLogger().handlers[:], jax.config.jax_compilation_cache_dir
  size = jax.config.jax_compilation_cache_max_size
  yield
  jax.config.update('jax_compilation_cache_max_size', size)
  logging.getLogger().handlers[:] = handlers
  jax.config.update('jax_default_device', None)
  jax.config.update('jax_compilation_cache_dir', cache)


NEW_PAGES = """
import resource, sys
from adnet_jax import environment
if sys.argv[1] == 'kept':
  environment.keep_memory()
import jax
import jax.numpy as jnp

@jax.jit
def program(x):  # works in 80 MB, as a network at a video's size
  y = jax.lax.optimization_barrier(jnp.broadcast_to(x, (20_000, 1000)) + 1)
  return jnp.sort(y.reshape(-1, 8), 1).sum()

def new_pages():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  program(x).block_until_ready()
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

x = jnp.ones(1000)
print(min(new_pages() for _ in range(8)))  # while a call's memory is being given back, the next one may take other
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='of glibc')
def test_a_programs_working_memory_is_kept_between_calls():
  def new_pages(how):
    command = [sys.executable, '-c', NEW_PAGES, how]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)

  assert new_pages('given back') > 10_000 and new_pages('kept') < 1000, 'of 4 kB'


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch):
  for kept in (False, True):
    monkeypatch.setenv('ADNET_COMPILATION_CACHE', str(int(kept)))
    environment.set_up('cpu')
    assert (jax.config.jax_compilation_cache_dir == str(tmp_path / 'adnet-jax' / 'compiled')) == kept
  jax.config.update('jax_compilation_cache_dir', None)
  environment.set_up('cpu', cache=False)
  assert jax.config.jax_compilation_cache_dir is None


def test_compiled_programs_go_where_they_are_told(tmp_path, monkeypatch):
  monkeypatch.setenv('ADNET_COMPILATION_CACHE', str(tmp_path / 'by variable'))
  environment.set_up('cpu')
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'by variable')
  assert str(tmp_path / 'by variable') in doctor.report()
  environment.set_up('cpu', cache=tmp_path / 'by option')
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'by option')
  (tmp_path / 'file').write_text('')
  with pytest.raises(UsageError, match='choose another --cache'):
    environment.set_up('cpu', cache=tmp_path / 'file')


def test_entries_of_processes_that_died_while_writing_are_dropped(tmp_path):
  folder = tmp_path / 'compiled'
  folder.mkdir()
  for name in ('whole-cache', 'whole-atime', 'torn-cache', 'being written-cache'):
    (folder / name).write_bytes(b'1')
    if name != 'being written-cache':
      os.utime(folder / name, (1e9, 1e9))
  environment.set_up('cpu', cache=folder)
  assert sorted(path.name for path in folder.iterdir()) == ['being written-cache', 'whole-atime', 'whole-cache']


SHARING = """
import sys
from pathlib import Path
from adnet_jax import environment
environment.set_up('cpu', cache=Path(sys.argv[1]))
import jax, jax.numpy as jnp
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
for n in range(1, 30):
  assert float(jax.jit(lambda x: jnp.sin(x).sum() + n)(jnp.zeros(n))) == n
"""


def test_two_processes_share_a_cache(tmp_path):
  command = [sys.executable, '-W', 'error', '-c', SHARING, str(tmp_path / 'compiled')]
  both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
  assert [(process.communicate(timeout=200)[1], process.returncode) for process in both] == [('', 0)] * 2
  entries = {path.name for path in (tmp_path / 'compiled').glob('*-cache')}
  assert len(entries) >= 29 and all((tmp_path / 'compiled' / f'{e[:-6]}-atime').exists() for e in entries)


def test_a_cache_that_cannot_be_written_is_left_out(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  jax.config.update('jax_compilation_cache_dir', None)
  environment.set_up('cpu')
  assert jax.config.jax_compilation_cache_dir is None


def test_log_lines_are_plain_and_come_once(capsys):
  environment.set_up('cpu', cache=False)
  environment.set_up('cpu', cache=False)
  absl_logging.info('not shown')
  absl_logging.warning('%d things', 3)
  absl_logging.warning('terms', extra={'note': True})
  assert capsys.readouterr().err == 'warning: 3 things\nnote: terms\n'


def test_a_missing_device_names_those_that_are_there():
  if jax.default_backend() == 'tpu':
    pytest.skip('there is a TPU')
  with pytest.raises(DeviceError, match=r'present are .*cpu'):
    environment.set_up('tpu', cache=False)


def test_a_gpu_that_jax_cannot_use_is_said(capsys, monkeypatch):
  if jax.default_backend() != 'cpu':
    pytest.skip('JAX uses an accelerator here')
  monkeypatch.setattr(environment, 'gpu_without_jax', lambda: True)
  environment.set_up(None, cache=False)
  assert capsys.readouterr().err.startswith('warning: a GPU is present')
  environment.set_up('cpu', cache=False)
  assert not capsys.readouterr().err
  assert "pip install 'adnet-jax[cuda]'" in doctor.report()


def test_the_report_has_advice_for_each_missing_extra(monkeypatch, tiny_model):
  monkeypatch.setenv('ADNET_MODELS', str(tiny_model.parent))
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'av' else find(name))
  report = doctor.report()
  assert "video: no, reading videos and writing the overlay: pip install 'adnet-jax[video]'" in report
  assert 'devices: ' in report and f'tiny: {tiny_model}' in report and 'compilation cache: ' in report


def test_without_a_terminal_there_is_no_progress_bar(capsys):
  with environment.progress_bar('[bold]clip', 3) as advance:
    advance()
    print('result')
  captured = capsys.readouterr()
  assert captured.out == 'result\n' and not captured.err.strip()
