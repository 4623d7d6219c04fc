"""Models as the library gives them: normalisation, logits, devices, terms."""

from __future__ import annotations

import logging

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import adnet_jax
from adnet_jax import pretrained, weights
from adnet_jax.errors import DeviceError, UsageError, WeightsError
from adnet_jax.models import attention, layers, platforms
from adnet_jax.segmenter import Segmenter


def test_the_library_surface(tiny_model, model):
  loaded = adnet_jax.load_model(tiny_model)
  assert isinstance(loaded, pretrained.Model)
  assert loaded.metadata.architecture == tiny.architecture() and loaded.metadata.size == tiny.SIZE
  assert loaded.dtype == jnp.float32 and loaded.uses_anchor
  segmenter = adnet_jax.Segmenter.from_pretrained(
    str(tiny_model), protocol='paper', scales=[1.0], mirror=False, size=[129, 65]
  )
  assert segmenter.scales == (1.0,) and segmenter.size == (129, 65) and hash(segmenter.size)
  with pytest.raises(AttributeError):
    segmenter.mirror = True


def test_normalize_and_logits(tiny_model, model):
  anchor, frame = (model.normalize(image[None]) for image in tiny.frames(2, tiny.SIZE))
  assert frame.dtype == jnp.float32 and frame.shape == (1, 65, 129, 3)
  logits = model.logits(anchor, frame)
  assert logits.dtype == jnp.float32 and logits.shape == (1, 5, 9, 1)
  # Folded BatchNorm is the same function.
  module, _ = weights.load(tiny_model)
  reference = np.asarray(jax.jit(lambda a, x: module(a, x))(anchor, frame))
  np.testing.assert_allclose(logits, reference, atol=1e-4 * np.abs(reference).max())
  both = model.logits(np.asarray(jnp.concatenate([anchor, anchor])), np.asarray(jnp.concatenate([frame, anchor])))
  np.testing.assert_allclose(both[0], logits[0], atol=1e-4 * np.abs(reference).max())


def test_wrong_inputs_of_logits_are_refused(model):
  frame = np.zeros((1, 65, 129, 3), np.float32)
  with pytest.raises(ValueError, match='needs an anchor'):
    model.logits(None, frame)
  with pytest.raises(ValueError, match='frame is uint8'):
    model.logits(frame, frame.astype(np.uint8))
  with pytest.raises(ValueError, match='anchor is float32'):
    model.logits(frame[0], frame)


def test_loading_leaves_the_module_as_it_is(tiny_model):
  module, metadata = weights.load(tiny_model)
  before = set(weights.flatten(module))
  pretrained.Model(module, metadata, jax.local_devices()[:1])
  assert set(weights.flatten(module)) == before


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_programs_of_a_gpu_compute_the_same(tiny_model, dtype):
  """From kernels in another order and, of 16 bits, another form of 1x1 convolutions."""
  module, metadata = weights.load(tiny_model, dtype=jnp.dtype(dtype))
  mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()[:1]), ('data',))
  frames = np.stack(tiny.frames(3, tiny.SIZE))

  def logits(platform):
    programs = pretrained.Programs(module, metadata.normalization, platform, mesh)
    kernels = {name: array for name, array in programs.params.items() if name.endswith('kernel')}
    assert all(array.dtype == dtype for array in programs.params.values())
    with attention.blockwise_only():  # cuDNN's is not here
      anchor = jax.jit(programs.embed)(programs.params, frames[:1])
      return kernels, np.asarray(jax.jit(programs.predict)(programs.params, anchor, frames))

  (here, expected), (there, found) = logits('cpu'), logits('gpu')
  for name, kernel in here.items():
    np.testing.assert_array_equal(kernel, platforms.from_stored(there[name], 'gpu'))
  assert any(kernel.shape != there[name].shape for name, kernel in here.items())
  np.testing.assert_allclose(found, expected, atol=(1e-4 if dtype == 'float32' else 0.1) * np.abs(expected).max())


def test_options_that_this_xla_does_not_know_are_left_out(monkeypatch):
  platforms.compiler_options.cache_clear()
  assert platforms.compiler_options('cpu', 'inference') == {} and platforms.compiler_options('gpu', 'other') == {}
  for purpose in ('inference', 'training'):
    assert platforms.compiler_options('gpu', purpose) == platforms._OPTIONS['gpu', purpose]
  platforms.compiler_options.cache_clear()
  monkeypatch.setattr(platforms, '_OPTIONS', {('gpu', 'inference'): {'xla_of_yesterday': True}})
  assert platforms.compiler_options('gpu', 'inference') == {}
  platforms.compiler_options.cache_clear()


def test_terms_are_said_once_in_a_process(tiny_model, caplog, monkeypatch):
  monkeypatch.setattr(pretrained, '_terms_said', set())
  with caplog.at_level(logging.WARNING, 'absl'):
    for _ in range(2):
      pretrained.load_model(tiny_model)
  said = [record for record in caplog.records if tiny.TERMS in record.getMessage()]
  assert len(said) == 1 and said[0].note and 'tiny' in said[0].getMessage()
  assert tiny.TERMS in weights.describe(tiny_model)


def test_devices(monkeypatch):
  assert len(pretrained.find_devices('cpu')) == 1
  if jax.default_backend() != 'tpu':
    with pytest.raises(DeviceError, match=r'no tpu device is there: present are .*cpu'):
      pretrained.find_devices('tpu')

  def none(backend=None):
    raise RuntimeError('Unable to initialize\nbackend')

  monkeypatch.setattr(jax, 'local_devices', none)
  with pytest.raises(DeviceError, match='no usable device is there: Unable to initialize backend'):
    pretrained.find_devices(None)


def test_wrong_models_and_dtypes(tmp_path, tiny_model):
  with pytest.raises(WeightsError, match='unknown model'):
    adnet_jax.load_model('nobody')
  with pytest.raises(WeightsError, match='not found'):
    adnet_jax.load_model(tmp_path / 'nothing.safetensors')
  with pytest.raises(UsageError, match='float32 or bfloat16'):
    adnet_jax.load_model(tiny_model, dtype='int8')


def test_bfloat16_comes_close(tiny_model, model):
  half = pretrained.load_model(tiny_model, dtype='bfloat16')
  anchor, frame = (model.normalize(image[None]) for image in tiny.frames(2, tiny.SIZE))
  logits = half.logits(anchor, frame)
  assert logits.dtype == jnp.float32
  # Random weights amplify rounding more than trained ones do.
  assert np.corrcoef(np.ravel(logits), np.ravel(model.logits(anchor, frame)))[0, 1] > 0.85


def test_the_bundled_model():
  path = weights.ASSETS / 'models' / f'{adnet_jax.DEFAULT_MODEL}.safetensors'
  if not path.exists():
    pytest.skip('no bundled model yet')
  assert path.stat().st_size <= 25_000_000
  model = adnet_jax.load_model()
  assert model.metadata.licence and model.metadata.origin


def test_masks_of_the_bundled_clip_do_not_depend_on_form_and_dtype(monkeypatch):
  """Against the plain float32 forms: Winograd's and tap-wise convolutions, and bfloat16 as accelerators compute."""
  folder = weights.ASSETS / 'sample' / 'JPEGImages' / '480p' / 'astronaut'
  frames = [cv2.imread(str(path))[..., ::-1] for path in sorted(folder.glob('*.jpg'))[:9:8]]

  def masks(dtype):
    return np.stack(list(Segmenter.from_pretrained(size=(641, 361), batch=1, dtype=dtype).segment(frames)))

  fast, half = masks('float32'), masks('bfloat16')
  monkeypatch.setattr(layers, 'WINOGRAD_SHARE', 0)
  monkeypatch.setattr(layers, 'TAPS_FROM_DILATION', 1000)
  plain = masks('float32')
  assert 0.02 < plain.mean() < 0.98
  assert np.mean(fast == plain) >= 0.9999
  assert np.mean(half == plain) >= 0.995
