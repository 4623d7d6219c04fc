"""What all tests share: strict JAX switches on eight fake devices, the optional data sets, and when GPU tests run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Both are read when JAX first starts a backend; several test processes must fit on one GPU.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import hypothesis
import jax
import made_clips
import pytest

# The same examples in every run: a change turns a test red, not chance.
hypothesis.settings.register_profile('deterministic', derandomize=True, deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile('deterministic')

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')  # a missing axis must not broadcast in silence

COMPILED_SECONDS = 0.1  # of compiling, from which a program is kept
SHARED = Path(__file__).resolve().parents[2] / 'shared'


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  marked = [item for item in items if item.get_closest_marker('gpu')]
  # Asking for the backend starts it, so only where a test depends on the answer.
  if marked and jax.default_backend() != 'gpu':
    for item in marked:
      item.add_marker(pytest.mark.skip(reason='needs a GPU'))


@pytest.fixture(scope='session')
def shared() -> Path:
  """Folder with the data sets of the tests marked `shared_data`; such a test is skipped where it is absent."""
  if not (SHARED / 'data').is_dir():
    pytest.skip('the shared data sets are not here')
  return SHARED


@pytest.fixture(scope='session')
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The model file `tiny` with random weights, alone in its folder (tests/tiny.py)."""
  import tiny

  return tiny.write_model(tmp_path_factory.mktemp('models') / 'tiny.safetensors')


@pytest.fixture(scope='session')
def model(tiny_model: Path):
  """The loaded `tiny`: what it has compiled is shared by all tests of a process."""
  from adnet_jax import pretrained

  return pretrained.load_model(tiny_model)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path, model) -> Iterator[Callable[..., int]]:
  """Calls `adnet`, or with `main=True` the main program, in an empty folder; every model that it loads is `tiny`."""
  from adnet_jax import cli, pretrained
  from adnet_jax import main as main_program

  monkeypatch.setenv('ADNET_MODELS', str(tiny_model.parent))
  monkeypatch.setenv('ADNET_COMPILATION_CACHE', '0')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / '.cache'))
  monkeypatch.setattr(pretrained, 'load_model', lambda *_, **__: model)
  monkeypatch.chdir(tmp_path)
  handlers = logging.getLogger().handlers[:]
  yield lambda *arguments, main=False: (main_program if main else cli).main([str(a) for a in arguments])
  logging.getLogger().handlers[:] = handlers
  jax.config.update('jax_default_device', None)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
  """Masks and annotations of the clips `cat` (6 frames) and `dog` (9 frames)."""
  masks, truth = tmp_path / 'results', tmp_path / 'DAVIS' / 'Annotations' / '480p'
  for clip, count in (('cat', 6), ('dog', 9)):
    made_clips.write_clip(truth / clip, range(count))
    made_clips.write_clip(masks / clip, range(count), shift=2)
  return masks, truth


@pytest.fixture(scope='session')
def training_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The data set of tiny_training.py."""
  import tiny_training

  return tiny_training.write_data(tmp_path_factory.mktemp('training'))


@pytest.fixture(scope='session', autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The folder of compiled programs that is in use: many tests have their programs in common, each compiled once."""
  folder = tmp_path_factory.mktemp('compiled')
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', COMPILED_SECONDS)
  return folder


@pytest.fixture(scope='module')
def compiled_hastily() -> Iterator[None]:
  """Here and in the processes started from here XLA optimises little: for tests of what surrounds the arithmetic."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture
def training_config(training_root: Path):
  """The configuration of tiny_training.py."""
  import tiny_training

  from adnet_jax import config

  return config.load('configs/davis.py', tiny_training.overrides(training_root))
