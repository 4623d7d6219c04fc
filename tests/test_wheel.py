"""The wheel holds what the package needs, and nothing else of the tree."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def names(tmp_path_factory) -> dict[str, int]:
  """Sizes of the wheel's files by name."""
  pytest.importorskip('hatchling')
  from hatchling.builders.wheel import WheelBuilder

  folder = tmp_path_factory.mktemp('wheel')
  (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=['standard'])
  with zipfile.ZipFile(path) as archive:
    return {item.filename: item.file_size for item in archive.infolist()}


def test_every_file_of_the_package_is_in_the_wheel(names):
  listed = subprocess.run(['git', 'ls-files', 'adnet_jax'], cwd=ROOT, capture_output=True, text=True, check=False)
  tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
  if not tracked:
    pytest.skip('no Git checkout')
  assert not tracked - set(names)
  for needed in (
    'adnet_jax/assets/models/adnet-compact.safetensors',
    'adnet_jax/assets/sample/JPEGImages/480p/astronaut/00000.jpg',
    'adnet_jax/assets/sample/Annotations/480p/astronaut/00000.png',
    'adnet_jax/assets/sample/ORIGIN.txt',
    'adnet_jax/server/static/index.html',
  ):
    assert names.get(needed, 0) > 0, needed


def test_the_wheel_holds_nothing_else(names):
  top = {name.split('/')[0] for name in names}
  assert {name for name in top if not name.endswith('.dist-info')} == {'adnet_jax'}
  assert not [name for name in names if name.endswith(('.pyc', '.ipynb')) or '__pycache__' in name]
  assert any(name.endswith('.dist-info/licenses/LICENSE') for name in names)
  assert any(name.endswith('.dist-info/entry_points.txt') for name in names)
  assert sum(names.values()) < 20e6, 'a package index and a laptop would feel it'
