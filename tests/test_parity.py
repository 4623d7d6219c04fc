"""The library against the PyTorch oracle: random weights, written as released, converted, loaded: the same logits.

Differences are relative to the largest logit. All runs on the CPU in float32, where 1e-4 leaves an order of magnitude
to spare; test_golden.py checks accelerators.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

pytest.importorskip('torch')

import torch
import torch_adnet
import torch_inference
import torch_weights

from adnet_jax import convert, postprocess, pretrained, segmenter, weights
from adnet_jax.models import adnet

torch.set_num_threads(1)  # several test processes share the cores
TOLERANCE = 1e-4
NAME = {variant: name for name, variant in torch_adnet.RELEASED_NAMES.items()}
STEMS = {'deep': 'deep', 'conv7x7': '7x7', 'efficientnet': 'deep'}  # ours to the oracle's
ODD, EVEN = (65, 81), (62, 90)  # height, width


@pytest.fixture(autouse=True, scope='module')
def quick_compilation():
  """A third less time: XLA's optimisations are those of the other tests' programs."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def spread(oracle, images):
  """Standard deviation of the embeddings over positions, mean over channels."""
  with torch.no_grad():
    return float(oracle.encode(torch_inference.to_torch(images)).std((2, 3)).mean())


def make_oracle(variant, backbone, stem, output_stride, seed, *, batch_norm='abs', aspp_width=64, auxiliary=None):
  oracle = torch_adnet.build(
    variant,
    backbone,
    STEMS[stem],
    output_stride,
    aspp_width=aspp_width,
    batch_norm=batch_norm,
    auxiliary=auxiliary,
  )
  return torch_weights.random_weights(oracle, seed, 'efficientnet' if stem == 'efficientnet' else 'released')


def converted(oracle, tmp_path, variant, **options):
  """A model that went through a released-like file, on the CPU."""
  out = tmp_path / 'model.safetensors'
  path = torch_weights.save_released(oracle, tmp_path / f'{NAME[variant]}.pth', tracked=True)
  metadata = convert.convert(path, out, overwrite=True, **options)
  path.unlink()
  assert metadata.architecture.variant == variant
  return pretrained.load_model(out, device='cpu', dtype='float32')


def worst_difference(oracle, model, size, seed):
  """Largest difference of the logits of two frames, relative to the largest logit; asserts that they can differ."""
  rule = model.metadata.normalization
  images = torch_weights.random_images(seed, 3, *size)
  anchor, frames = (torch_inference.normalize(part, rule) for part in (images[:1], images[1:]))
  np.testing.assert_allclose(model.normalize(images[1:]), frames, rtol=1e-6, atol=1e-4)
  anchor = np.repeat(anchor, 2, axis=0)
  expected = torch_inference.logits(oracle, anchor, frames)
  found = np.asarray(model.logits(anchor if model.uses_anchor else None, frames))
  assert found.shape == expected.shape and found.dtype == np.float32
  if oracle.variant != 'baseline':
    assert 0.3 < spread(oracle, frames) < 3
  assert 0.3 < expected.std() < 5
  return np.abs(found - expected).max() / np.abs(expected).max()


# Every variant, both strides, both stems, odd and even sizes, each pair of these at least once.
RESNET50 = [
  *(('baseline', 8, 'deep', EVEN), ('baseline', 16, 'conv7x7', ODD), ('intra_frame', 8, 'conv7x7', ODD)),
  *(('intra_frame', 16, 'deep', EVEN), ('anchor', 8, 'deep', ODD), ('anchor', 16, 'conv7x7', EVEN)),
  *(('anchor_diffusion', 8, 'conv7x7', EVEN), ('anchor_diffusion', 16, 'deep', ODD)),
  *(('full', 8, 'deep', ODD), ('full', 16, 'conv7x7', EVEN)),
]


@pytest.mark.parametrize(('variant', 'output_stride', 'stem', 'size'), RESNET50)
def test_resnet50(variant, output_stride, stem, size, tmp_path):
  oracle = make_oracle(variant, 'resnet50', stem, output_stride, 11)
  model = converted(oracle, tmp_path, variant, output_stride=output_stride)
  assert worst_difference(oracle, model, size, 12) < TOLERANCE


def test_released_architecture(tmp_path):
  """ResNet-101, deep stem, stride 8, ASPP 512 wide, auxiliary head of 128: the released file of the full model."""
  oracle = torch_weights.random_weights(torch_adnet.released('ad'), 21)
  model = converted(oracle, tmp_path, 'full')
  assert model.metadata.architecture == adnet.Architecture(auxiliary=128)
  assert worst_difference(oracle, model, EVEN, 22) < TOLERANCE


@pytest.mark.parametrize(
  ('variant', 'backbone', 'output_stride', 'stem', 'size', 'batch_norm'),
  [
    ('baseline', 'resnet101', 8, 'deep', ODD, 'abs'),
    ('anchor', 'resnet101', 16, 'conv7x7', EVEN, 'abs'),
    ('full', 'resnet18', 16, 'conv7x7', (33, 40), 'plain'),
    ('anchor_diffusion', 'resnet18', 8, 'deep', ODD, 'abs'),
    ('intra_frame', 'resnet34', 8, 'conv7x7', EVEN, 'plain'),
    ('full', 'resnet152', 16, 'deep', ODD, 'abs'),
  ],
)
def test_other_depths(variant, backbone, output_stride, stem, size, batch_norm, tmp_path):
  oracle = make_oracle(variant, backbone, stem, output_stride, 31, batch_norm=batch_norm)
  model = converted(oracle, tmp_path, variant, output_stride=output_stride, batch_norm=batch_norm)
  assert worst_difference(oracle, model, size, 32) < TOLERANCE


@pytest.mark.parametrize(
  ('variant', 'backbone', 'output_stride', 'size'),
  [
    ('full', 'efficientnet_lite0', 16, ODD),
    ('anchor_diffusion', 'efficientnet_lite0', 8, EVEN),
    ('full', 'efficientnet_lite2', 8, ODD),
    ('intra_frame', 'efficientnet_lite2', 16, EVEN),
  ],
)
def test_efficientnet(variant, backbone, output_stride, size, tmp_path):
  oracle = make_oracle(variant, backbone, 'efficientnet', output_stride, 41)
  model = converted(oracle, tmp_path, variant, output_stride=output_stride, normalization='efficientnet')
  assert worst_difference(oracle, model, size, 42) < TOLERANCE


# Scales, mirror, protocols -------------------------------------------------------------------------------------------

CLIP_SIZES = {0.75: (89, 49), 1.0: (129, 73), 1.5: (193, 105)}  # 8k + 1, rounded down
SCALES = tuple(CLIP_SIZES)


def clip():
  return torch_weights.random_images(52, 3, 160, 270)


@pytest.fixture(scope='module', params=['full', 'baseline'])
def small_model(request, tmp_path_factory):
  oracle = make_oracle(request.param, 'resnet18', 'conv7x7', 16, 51)
  frames = clip()
  logits = [
    torch_inference.predict(oracle, frames[0], frame, sizes=(CLIP_SIZES[1.0],), protocol='released') for frame in frames
  ]
  with torch.no_grad():  # half of the clip is foreground
    (oracle.head[1] if request.param == 'baseline' else oracle.cls[3]).bias -= float(np.median(logits))
  model = converted(oracle, tmp_path_factory.mktemp('small'), request.param, output_stride=16)
  return oracle, model


@pytest.mark.parametrize('protocol', postprocess.PROTOCOLS)
def test_scales_and_mirror(small_model, protocol):
  oracle, model = small_model
  frames = clip()
  chosen = segmenter.Segmenter(model, protocol=protocol, scales=SCALES, mirror=True, size=CLIP_SIZES[1.0], batch=2)
  results = list(chosen.results(iter(frames), soft=True))
  assert len(results) == 3
  reference, foreground = None, 0.0
  for frame, result in zip(frames, results, strict=True):
    outputs = {
      each: torch_inference.predict(
        oracle, frames[0], frame, sizes=tuple(CLIP_SIZES.values()), mirror=True, protocol=each
      )
      for each in postprocess.PROTOCOLS
    }
    if protocol == 'paper':
      value = soft = outputs['paper']
      expected = value > 0.5
    else:
      value = outputs['released']
      soft = 1 / (1 + np.exp(-value))
      expected, reference = postprocess.released_step(value, reference)
    np.testing.assert_allclose(result.probability, soft, atol=TOLERANCE, rtol=0)
    clear = np.abs(value - 0.5) > 1e-3 * np.abs(value).max()
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(result.mask[clear], expected[clear])
    foreground += expected.mean() / 3
  assert 0.1 < foreground < 0.9


# Starting points of training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('backbone', 'stem'),
  [('resnet18', 'conv7x7'), ('resnet18', 'deep'), ('efficientnet_lite0', 'efficientnet')],
)
def test_trunk_file_gives_the_same_features(backbone, stem, tmp_path):
  """An ImageNet file's trunk in a network of ours: the baseline's logits with the oracle's own head."""
  oracle = make_oracle('baseline', backbone, stem, 16, 61, batch_norm='plain', aspp_width=16)
  state = {name: value for name, value in oracle.state_dict().items() if not name.startswith('head.')}
  torch.save(state, tmp_path / 'imagenet.pth')
  architecture = adnet.Architecture('baseline', backbone, stem, 16, aspp_width=16)
  initial = weights.read_initial(tmp_path / 'imagenet.pth', architecture)
  assert isinstance(initial.metadata, weights.Trunk)
  path = torch_weights.save_released(oracle, tmp_path / 'base.pth')
  convert.convert(path, tmp_path / 'o.safetensors', batch_norm='plain', output_stride=16)
  whole, metadata = weights.load(tmp_path / 'o.safetensors')
  assert dataclasses.replace(metadata.architecture) == architecture
  flat = weights.flatten(whole)
  for name, array in initial.arrays.items():
    np.testing.assert_array_equal(array, flat[name])
