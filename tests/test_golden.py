"""Parity where PyTorch is absent: stored logits of the oracle (tests/make_golden.py), on the CPU and on a GPU."""

from __future__ import annotations

import cv2
import golden
import jax
import numpy as np
import pytest
import safetensors.numpy

import adnet_jax
from adnet_jax import convert, pretrained, weights

NAMES = tuple(convert.RELEASED)


@pytest.fixture(scope='module', params=NAMES)
def case(request, tmp_path_factory):
  """A converted model file, frames and the oracle's logits."""
  about, state, frames, logits = golden.read(golden.FOLDER / f'golden_{request.param}.npz')
  folder = tmp_path_factory.mktemp('golden')
  source, out = folder / f'{about["name"]}.safetensors', folder / 'model.safetensors'
  safetensors.numpy.save_file(state, source)
  metadata = convert.convert(source, out, normalization=about['normalization'], output_stride=about['output_stride'])
  assert metadata.architecture.variant == convert.RELEASED[request.param]
  return out, frames, logits


def worst_difference(case, device):
  path, frames, expected = case
  model = pretrained.load_model(path, device=device, dtype='float32')
  anchor, current = model.normalize(np.repeat(frames[:1], 2, axis=0)), model.normalize(frames[1:])
  found = np.asarray(model.logits(anchor if model.uses_anchor else None, current))
  assert found.shape == expected.shape
  assert 0.3 < expected.std() < 5
  return np.abs(found - expected).max() / np.abs(expected).max()


def test_stored_logits(case):
  assert worst_difference(case, 'cpu') < 1e-4


@pytest.mark.gpu
def test_stored_logits_on_a_gpu_at_highest_precision(case):
  with jax.default_matmul_precision('highest'):
    assert worst_difference(case, 'gpu') < 1e-4


@pytest.mark.gpu
def test_stored_logits_on_a_gpu(case):
  assert worst_difference(case, 'gpu') < 1e-2


@pytest.mark.gpu
def test_bundled_model_gives_the_same_masks_in_bfloat16_on_a_gpu():
  """99.5 % of the pixels of the sample clip, against float32 on the CPU."""
  if weights.DEFAULT_MODEL not in weights.known_models():
    pytest.skip('no bundled model')
  paths = sorted((weights.ASSETS / 'sample' / 'JPEGImages' / '480p' / 'astronaut').glob('*.jpg'))[::8]
  frames = [np.ascontiguousarray(cv2.imread(str(path))[..., ::-1]) for path in paths]
  masks = [
    list(adnet_jax.Segmenter.from_pretrained(device=device, dtype=dtype).segment(iter(frames)))
    for device, dtype in (('cpu', 'float32'), ('gpu', 'bfloat16'))
  ]
  assert 0.01 < np.mean(masks[0]) < 0.99
  assert np.mean(np.stack(masks[0]) == np.stack(masks[1])) >= 0.995


def test_stored_arrays_are_small():
  files = list(golden.FOLDER.glob('golden_*.npz'))
  assert {path.stem.removeprefix('golden_') for path in files} == {*NAMES, 'saliency'}
  assert sum(path.stat().st_size for path in files) < 1.5e6


def test_stored_logits_are_what_the_oracle_says():
  pytest.importorskip('torch')
  import make_golden

  for case in make_golden.CASES[2:4]:
    _, _, _, logits = golden.read(golden.FOLDER / f'golden_{case[0]}.npz')
    np.testing.assert_allclose(make_golden.make(*case)['logits'], logits, atol=1e-3 * np.abs(logits).max())
