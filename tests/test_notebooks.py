"""The notebooks of colabs/: run top to bottom on a CPU with tiny settings; no outputs; costs said; JAX left alone."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

nbformat = pytest.importorskip('nbformat')

pytestmark = pytest.mark.usefixtures('compiled_hastily')
ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / 'colabs').glob('*.ipynb'))
NAMES = {'segment_your_video', 'train_on_tpu', 'convert_and_check_weights', 'explore_similarities'}


def read(path: Path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  return notebook


def install_cell(notebook) -> str:
  return next(cell.source for cell in notebook.cells if 'def install(' in cell.source)


def test_notebooks_are_there_and_hold_no_outputs():
  assert {path.stem for path in PATHS} == NAMES
  for path in PATHS:
    for cell in read(path).cells:
      if cell.cell_type == 'code':
        assert cell.outputs == [] and cell.execution_count is None, path.name


@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
def test_each_step_says_what_it_costs(path):
  cells = read(path).cells
  assert '| step | what it costs |' in cells[0].source
  for cell in cells[1:]:
    settings = cell.source.startswith('## Settings')
    closing = cell is cells[-1]
    if cell.cell_type == 'markdown' and not settings and not closing:
      assert 'cost' in cell.source.lower(), f'{path.name}: {cell.source.splitlines()[0]}'


def test_the_runtime_keeps_its_jax(monkeypatch, tmp_path):
  """Installing pins what the runtime brought; where pip cannot, the notebook stops."""
  cells = {install_cell(read(path)) for path in PATHS}
  assert len(cells) == 1, 'the notebooks install in different ways'
  monkeypatch.chdir(tmp_path)
  commands = []
  status = SimpleNamespace(returncode=0)
  monkeypatch.setattr(subprocess, 'run', lambda command, **_: commands.append(command) or status)
  names: dict = {}
  exec(cells.pop().split('if importlib.util.find_spec')[0], names)
  names['install'](str(ROOT))
  pins = (tmp_path / 'constraints.txt').read_text().split()
  for name in ('jax', 'jaxlib', 'numpy'):
    assert f'{name}=={importlib.metadata.version(name)}' in pins
  assert commands[0][commands[0].index('--constraint') + 1] == 'constraints.txt'
  status.returncode = 1
  with pytest.raises(SystemExit, match=r'nothing was changed'):
    names['install'](str(ROOT))
  with pytest.raises(SystemExit, match='neither a wheel nor a clone'):
    names['install'](str(tmp_path))


@pytest.mark.slow
def test_all_notebooks_run_from_top_to_bottom(monkeypatch, tmp_path):
  """In one kernel, one after the other, each in a namespace of its own."""
  nbclient = pytest.importorskip('nbclient')
  for module in ('ipykernel', 'matplotlib', 'av'):
    pytest.importorskip(module)
  merged = nbformat.v4.new_notebook(metadata=read(PATHS[0]).metadata)
  for path in PATHS:
    merged.cells.append(nbformat.v4.new_code_cell(f'%reset -f\n# {path.name}'))
    merged.cells += [cell for cell in read(path).cells if cell.cell_type == 'code']
  environment = {
    'ADNET_QUICK': '1',
    'ADNET_SOURCE': str(ROOT),
    'ADNET_COMPILATION_CACHE': str(tmp_path / 'compiled'),
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
    'JAX_PLATFORMS': 'cpu',
    'JUPYTER_PLATFORM_DIRS': '1',
    'IPYTHONDIR': str(tmp_path / 'ipython'),
    'XDG_CACHE_HOME': str(tmp_path / 'cache'),
    'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH', '')])),
  }
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  client = nbclient.NotebookClient(
    merged, timeout=600, kernel_name='python3', resources={'metadata': {'path': tmp_path}}
  )
  client.execute()

  texts = [str(output.get('text', '')) for cell in merged.cells for output in cell.get('outputs', [])]
  pictures = [
    output for cell in merged.cells for output in cell.get('outputs', []) if 'image/png' in output.get('data', {})
  ]
  said = ''.join(texts)
  assert len(pictures) >= 8
  assert 'convolutions are equal' in said and 'WeightsError' in said and 'step 2 of 2' in said
  assert not list(tmp_path.glob('constraints.txt')), 'something was installed'
  assert sorted(path.name for path in (tmp_path / 'segmented' / 'masks').iterdir()) == [
    f'{k:05d}.png' for k in range(3)
  ]
  assert (tmp_path / 'segmented' / 'cut_out.png').is_file() and (tmp_path / 'masks.zip').is_file()
  assert (tmp_path / 'runs' / 'notebook' / 'final.safetensors').is_file()
