"""Model files: what is written is what is read, damage of every kind is named, models are found by name."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import subprocess
import sys

import flax.nnx as nnx
import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adnet_jax import weights
from adnet_jax.errors import UsageError, WeightsError
from adnet_jax.models import adnet

TINY = adnet.Architecture(
  variant='full', backbone='resnet18', stem='conv7x7', output_stride=16, aspp_width=8, embedding=4, auxiliary=1
)
METADATA = weights.Metadata(TINY, 'torchvision', (321, 193), 'tests', 'CC0-1.0', 'tests')
TRUNK = weights.Trunk('resnet18', 'conv7x7', 'torchvision', 'tests', 'CC0-1.0', 'tests')


def random_arrays(architecture, seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: rng.standard_normal(shape, np.float32) * 0.1 + (1 if name.endswith('/var') else 0)
    for name, shape in weights.shapes(architecture).items()
  }


def small_arrays():
  """What a file test needs when the network does not matter."""
  rng = np.random.default_rng(1)
  return {'a/kernel': rng.normal(size=(3, 2)).astype(np.float32), 'b/bias': rng.normal(size=5).astype(np.float32)}


@pytest.fixture(scope='module')
def arrays():
  return random_arrays(TINY)


@pytest.fixture(scope='module')
def model_file(arrays, tmp_path_factory):
  path = tmp_path_factory.mktemp('models') / 'tiny.safetensors'
  weights.save(path, arrays, METADATA)
  return path


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
  """No model folder but tmp_path/models; the working folder is empty."""
  monkeypatch.setenv('ADNET_MODELS', str(tmp_path / 'models'))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(weights, 'ASSETS', tmp_path / 'assets')
  (tmp_path / 'work').mkdir()
  monkeypatch.chdir(tmp_path / 'work')
  return tmp_path


def rewrite(path, out, change_strings=None, change_arrays=None):
  """A copy of a model file with other metadata or arrays and, as files of other programs, no checksum."""
  arrays, strings = weights.read_file(path)
  strings.pop('checksum')
  (change_strings or (lambda _: None))(strings)
  (change_arrays or (lambda _: None))(arrays)
  safetensors.numpy.save_file(arrays, out, strings)
  return out


# What is written is what is read -------------------------------------------------------------------------------------


def test_round_trip(model_file, arrays):
  model, metadata = weights.load(model_file)
  assert metadata == METADATA
  found = weights.flatten(model)
  assert set(found) == set(arrays)
  for name, array in arrays.items():
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], array, err_msg=name)
  assert model.architecture == TINY


def test_equal_models_are_equal_files(tmp_path):
  for name in 'abcd':
    weights.save(tmp_path / f'{name}.safetensors', small_arrays(), METADATA)
  assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
  content = (tmp_path / 'a.safetensors').read_bytes()
  assert int.from_bytes(content[:8], 'little') % 8 == 0, 'arrays are aligned'
  assert safetensors.numpy.load(content).keys() == small_arrays().keys()


def test_metadata_has_the_documented_keys(model_file):
  _, strings = weights.read_file(model_file)
  assert set(strings) == {
    *('format', 'variant', 'backbone', 'stem', 'output_stride', 'multi_grid', 'aspp_width', 'embedding'),
    *('batch_norm_eps', 'activation', 'auxiliary', 'normalization', 'size', 'origin', 'licence', 'created_by'),
    'checksum',
  }
  assert strings['size'] == '321x193' and strings['multi_grid'] == '1,2,4' and strings['format'] == '1'


def test_names_are_those_of_the_tree(arrays):
  model = nnx.eval_shape(lambda: adnet.ADNet(TINY, rngs=nnx.Rngs(0)))
  assert 'backbone/layer1/0/conv1/kernel' in arrays and 'classifier/hidden/mean' in arrays
  assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model))) == sum(a.size for a in arrays.values())


def test_half_precision_keeps_statistics_in_float32(tmp_path):
  arrays = {'a/kernel': np.float32([0.1, 3]), 'a/mean': np.float32([1e5]), 'a/var': np.float32([1e-9])}
  weights.save(tmp_path / 'half.safetensors', arrays, TRUNK, dtype='float16')
  found, _ = weights.read_file(tmp_path / 'half.safetensors')
  assert {name: array.dtype for name, array in found.items()} == {
    'a/kernel': np.float16,
    'a/mean': np.float32,
    'a/var': np.float32,
  }
  np.testing.assert_array_equal(found['a/mean'], arrays['a/mean'])


def test_values_that_half_precision_cannot_hold_are_named(tmp_path):
  with pytest.raises(WeightsError, match='a/kernel holds nan or infinite'):
    weights.save(tmp_path / 'half.safetensors', {'a/kernel': np.float32([1e5])}, TRUNK, dtype='float16')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('variant', adnet.VARIANTS)
@pytest.mark.parametrize('backbone', adnet.BACKBONES)
def test_metadata_round_trip(variant, backbone):
  stem = 'efficientnet' if backbone.startswith('eff') else 'deep'
  metadata = dataclasses.replace(
    METADATA,
    architecture=adnet.Architecture(variant, backbone, stem, 16, (1, 3), 64, 32, 1e-3, auxiliary=1),
  )
  assert weights.parse_metadata(metadata.to_strings(), 'file') == metadata


def test_reads_without_torch_in_another_process(model_file):
  code = (
    'import sys; sys.modules["torch"] = None\n'
    'from adnet_jax import weights\n'
    'model, metadata = weights.load(sys.argv[1])\n'
    'print(metadata.architecture.variant, float(model.embedding.bias[...].sum()))'
  )
  done = subprocess.run([sys.executable, '-c', code, str(model_file)], capture_output=True, text=True, check=True)
  variant, total = done.stdout.split()
  assert variant == 'full'
  assert float(total) == pytest.approx(float(weights.load(model_file)[0].embedding.bias[...].sum()), rel=1e-6)


def test_file_without_checksum_is_read(model_file, tmp_path, arrays):
  copy = rewrite(model_file, tmp_path / 'other.safetensors')
  assert 'none' in weights.describe(copy)
  np.testing.assert_array_equal(weights.load(copy)[0].embedding.bias[...], arrays['embedding/bias'])


# Faults --------------------------------------------------------------------------------------------------------------


def test_missing_file_folder_and_empty_file(tmp_path):
  with pytest.raises(WeightsError, match=r'not found .*gone\.safetensors.*known models.*adnet convert') as error:
    weights.load(tmp_path / 'gone.safetensors')
  assert error.value.exit_code == 4
  with pytest.raises(WeightsError, match='a folder'):
    weights.load(tmp_path)
  (tmp_path / 'empty.safetensors').touch()
  with pytest.raises(WeightsError, match=r'empty file .*empty\.safetensors'):
    weights.load(tmp_path / 'empty.safetensors')


@pytest.mark.parametrize('keep', [1, 7, 8, 100, 3000, 60_000, -1])
def test_truncated(model_file, tmp_path, keep):
  data = model_file.read_bytes()[:keep]
  (tmp_path / 'cut.safetensors').write_bytes(data)
  with pytest.raises(WeightsError, match='damaged') as error:
    weights.load(tmp_path / 'cut.safetensors')
  if keep in (60_000, -1):
    assert f'{model_file.stat().st_size} bytes expected, {len(data)} found' in str(error.value)


def test_longer_than_it_says(model_file, tmp_path):
  (tmp_path / 'long.safetensors').write_bytes(model_file.read_bytes() + b'12')
  with pytest.raises(WeightsError, match=r'damaged.*bytes expected'):
    weights.load(tmp_path / 'long.safetensors')


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(tmp_path, position, bit):
  path = tmp_path / 'flip.safetensors'
  weights.save(path, small_arrays(), TRUNK, overwrite=True)
  data = bytearray(path.read_bytes())
  data[int(position * len(data))] ^= 1 << bit
  path.write_bytes(data)
  try:
    arrays, strings = weights.read_file(path)
    metadata = weights.parse_metadata(strings, path)
  except WeightsError:
    return
  # What is left: padding, or the name of the checksum's entry; the content is whole.
  assert metadata == TRUNK
  for name, array in small_arrays().items():
    np.testing.assert_array_equal(arrays[name], array)


def test_flipped_value_of_a_real_model(model_file, tmp_path):
  data = bytearray(model_file.read_bytes())
  data[len(data) // 2] ^= 1
  (tmp_path / 'flip.safetensors').write_bytes(data)
  with pytest.raises(WeightsError, match='damaged model file: the checksum'):
    weights.load(tmp_path / 'flip.safetensors')


@pytest.mark.parametrize('data', [b'hello, world', b'\0' * 100, struct.pack('<Q', 2) + b'{}', bytes(range(256)) * 4])
def test_no_safetensors_at_all(tmp_path, data):
  (tmp_path / 'text.safetensors').write_bytes(data)
  with pytest.raises(WeightsError, match=r'damaged|metadata'):
    weights.load(tmp_path / 'text.safetensors')


@pytest.mark.parametrize('data', [b'PK\x03\x04 and so on', b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'])
def test_pytorch_file_in_place_of_a_model(tmp_path, data):
  (tmp_path / 'ad.pth').write_bytes(data)
  with pytest.raises(WeightsError, match=r'a PyTorch file, not a model file .*adnet convert'):
    weights.load(tmp_path / 'ad.pth')


def test_missing_extra_and_misshapen_arrays_are_listed(model_file, tmp_path):
  def change(arrays):
    for i in range(2):
      for name in [name for name in arrays if name.startswith(f'backbone/layer4/{i}/conv')]:
        del arrays[name]
    arrays['nonsense/kernel'] = np.zeros((1, 2), np.float32)
    arrays['embedding/bias'] = np.zeros(3, np.float32)

  with pytest.raises(WeightsError) as error:
    weights.load(rewrite(model_file, tmp_path / 'wrong.safetensors', change_arrays=change))
  text = str(error.value)
  missing, extra, wrong = text.split('. ', 2)
  assert '20 missing' in missing and missing.count('backbone/layer4') == 10 and '...' in missing
  assert '(3, 3, ' in missing
  assert '1 unexpected: nonsense/kernel (1, 2)' in extra
  assert '1 misshapen: embedding/bias (3,) instead of (4,)' in wrong


def test_wrong_network_in_the_metadata(model_file, tmp_path):
  with pytest.raises(WeightsError, match=r'misshapen: classifier/hidden/kernel \(1, 1, 12, 4\) instead of'):
    weights.load(rewrite(model_file, tmp_path / 'v.safetensors', lambda s: s.update(variant='anchor')))
  with pytest.raises(WeightsError, match=r'\d+ missing: .*misshapen'):
    weights.load(rewrite(model_file, tmp_path / 'b.safetensors', lambda s: s.update(backbone='resnet50')))


@pytest.mark.parametrize('key', ['variant', 'size', 'normalization', 'licence', 'batch_norm_eps'])
def test_metadata_key_missing(model_file, tmp_path, key):
  with pytest.raises(WeightsError, match=f'metadata missing: {key}'):
    weights.load(rewrite(model_file, tmp_path / 'm.safetensors', lambda s: s.pop(key)))


def test_no_metadata_at_all(tmp_path):
  for name, strings in (('none', None), ('torch', {'format': 'pt'})):
    safetensors.numpy.save_file(small_arrays(), tmp_path / f'{name}.safetensors', strings)
    with pytest.raises(WeightsError, match=r'no adnet-jax metadata .*adnet convert'):
      weights.load(tmp_path / f'{name}.safetensors')


def test_newer_format(model_file, tmp_path):
  with pytest.raises(WeightsError, match=r'model format 2, this version reads 1 .*newer'):
    weights.load(rewrite(model_file, tmp_path / 'm.safetensors', lambda s: s.update(format='2')))


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    *(('variant', 'fuller'), ('backbone', 'vgg16'), ('output_stride', '12'), ('size', '0x3'), ('size', 'large')),
    *(('normalization', 'none'), ('multi_grid', 'a'), ('activation', 'elu'), ('stem', 'efficientnet')),
  ],
)
def test_metadata_of_another_kind(model_file, tmp_path, key, value):
  with pytest.raises(WeightsError, match='does not understand') as error:
    weights.load(rewrite(model_file, tmp_path / 'm.safetensors', lambda s: s.update({key: value})))
  assert value in str(error.value) or key == 'stem'


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(model_file, tmp_path, value):
  def change(arrays):
    arrays['aspp/conv2/scale'][3] = value

  path = rewrite(model_file, tmp_path / 'nan.safetensors', change_arrays=change)
  for function in (weights.load, weights.describe):
    with pytest.raises(WeightsError, match='aspp/conv2/scale holds nan or infinite'):
      function(path)


def test_existing_output_is_kept(tmp_path):
  path = tmp_path / 'out.safetensors'
  path.write_bytes(b'precious')
  with pytest.raises(UsageError, match=r'output exists .*--overwrite') as error:
    weights.save(path, small_arrays(), TRUNK)
  assert error.value.exit_code == 2
  assert path.read_bytes() == b'precious'
  weights.save(path, small_arrays(), TRUNK, overwrite=True)
  assert weights.read_file(path)[0].keys() == small_arrays().keys()
  assert [entry.name for entry in tmp_path.iterdir()] == ['out.safetensors']


def test_output_of_another_ending(tmp_path):
  with pytest.raises(UsageError, match=r'end in \.safetensors'):
    weights.save(tmp_path / 'out.pth', small_arrays(), TRUNK)


def test_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'out.safetensors'
  weights.save(path, small_arrays(), TRUNK)
  before = path.read_bytes()

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(WeightsError, match='No space left'):
    weights.save(path, small_arrays(), TRUNK, overwrite=True)
  assert path.read_bytes() == before
  assert len(list(tmp_path.iterdir())) == 1


def test_output_below_a_file(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(WeightsError, match='cannot write'):
    weights.save(tmp_path / 'file' / 'out.safetensors', small_arrays(), TRUNK)


# Names ---------------------------------------------------------------------------------------------------------------


def test_unknown_name_lists_the_known_and_their_sizes(nowhere, model_file):
  with pytest.raises(WeightsError, match=r"unknown model 'adnet-huge'.*known models: none"):
    weights.load('adnet-huge')
  (nowhere / 'models').mkdir()
  (nowhere / 'models' / 'mine.safetensors').write_bytes(model_file.read_bytes())
  size = model_file.stat().st_size / 1e6
  with pytest.raises(WeightsError, match=rf'known models: mine \({size:.0f} MB\); or give a file'):
    weights.load('adnet-huge')
  assert weights.load('mine')[1] == METADATA


def test_order_of_the_model_folders(nowhere):
  folders = [nowhere / 'assets' / 'models', nowhere / 'models', nowhere / 'cache' / 'adnet-jax' / 'models']
  folders.append(nowhere / 'work' / 'releases')
  for folder in reversed(folders):
    folder.mkdir(parents=True)
    (folder / 'same.safetensors').touch()
    assert weights.find_model('same').resolve() == folder / 'same.safetensors'


def test_path_with_and_without_folder(nowhere):
  assert str(weights.find_model('a/b')) == 'a/b'
  assert str(weights.find_model('b.pth')) == 'b.pth'


def test_names_win_over_folders_of_the_same_name(nowhere):
  (nowhere / 'models').mkdir()
  (nowhere / 'models' / 'mine.safetensors').touch()
  (nowhere / 'work' / 'mine').mkdir()
  assert weights.find_model('mine').suffix == '.safetensors'


# Text and starting weights -------------------------------------------------------------------------------------------


def test_describe(model_file):
  text = weights.describe(model_file)
  for part in ('variant full', 'resnet18', '321x193', 'torchvision', 'CC0-1.0', 'verified', str(model_file), ' MB'):
    assert part in text
  learnt = sum(np.prod(shape) for name, shape in weights.shapes(TINY).items() if not name.endswith(('/mean', '/var')))
  assert f'{learnt:,}' in text


def trunk_arrays(arrays):
  return {name: array for name, array in arrays.items() if name.startswith('backbone/')}


@pytest.fixture
def trunk_file(arrays, tmp_path):
  weights.save(tmp_path / 'trunk.safetensors', trunk_arrays(arrays), TRUNK)
  return tmp_path / 'trunk.safetensors'


def test_trunk_is_no_model(trunk_file):
  with pytest.raises(WeightsError, match=r'an ImageNet trunk \(resnet18\), not a whole model .*init\.weights'):
    weights.load(trunk_file)
  assert 'ImageNet trunk' in weights.describe(trunk_file) and 'that of training' in weights.describe(trunk_file)


def test_training_starts_from_a_trunk(trunk_file, arrays):
  initial = weights.read_initial(trunk_file, TINY)
  assert initial.metadata == TRUNK
  assert set(initial.arrays) == set(trunk_arrays(arrays))
  with pytest.raises(WeightsError, match='unexpected: backbone/'):
    weights.read_initial(trunk_file, adnet.Architecture(backbone='efficientnet_lite0', stem='efficientnet'))
  with pytest.raises(WeightsError, match='misshapen: backbone/conv1'):
    weights.read_initial(trunk_file, dataclasses.replace(TINY, stem='deep'))


def test_training_starts_from_a_model(model_file, arrays):
  initial = weights.read_initial(model_file, TINY)
  assert initial.metadata == METADATA
  assert set(initial.arrays) == set(arrays)
  assert all(array.dtype == np.float32 for array in initial.arrays.values())
  without = weights.read_initial(model_file, dataclasses.replace(TINY, auxiliary=0))
  assert set(arrays) - set(without.arrays) == {name for name in arrays if name.startswith('auxiliary/')}
  with pytest.raises(WeightsError, match='unexpected: classifier'):
    weights.read_initial(model_file, dataclasses.replace(TINY, variant='baseline'))


def test_size_in_the_header_is_checked_before_it_is_read(tmp_path):
  header = json.dumps({'a': {'dtype': 'F32', 'shape': [10**12], 'data_offsets': [0, 4 * 10**12]}}).encode()
  (tmp_path / 'bomb.safetensors').write_bytes(struct.pack('<Q', len(header)) + header)
  with pytest.raises(WeightsError, match='damaged'):
    weights.load(tmp_path / 'bomb.safetensors')
