"""What a TPU will be given is lowered without one: programs, training step, attention; batches split over devices."""

from __future__ import annotations

import flax.nnx as nnx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from adnet_jax import pretrained, session, step, weights
from adnet_jax.models import adnet, attention, layers, platforms
from tools.benchmarks import forms


def mesh(devices: int = 1) -> jax.sharding.Mesh:
  return jax.sharding.Mesh(np.asarray(jax.devices()[:devices]), ('data',))


def lowered(function, *shapes) -> jax.export.Exported:
  """Checked for what a TPU needs: shapes known beforehand, no 64-bit numbers."""
  exported = jax.export.export(jax.jit(function), platforms=['tpu'])(*shapes)
  text = exported.mlir_module()
  assert exported.platforms == ('tpu',) and '?x' not in text and 'f64' not in text
  return exported


def shapes(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.mark.parametrize(
  ('variant', 'backbone', 'stem'), [('full', 'efficientnet_lite2', 'efficientnet'), ('baseline', 'resnet18', 'deep')]
)
@pytest.mark.parametrize('blockwise', [False, True])
def test_inference(variant, backbone, stem, blockwise):
  architecture = adnet.Architecture(variant=variant, backbone=backbone, stem=stem, output_stride=16)
  arrays = {name: np.zeros(shape, np.float32) for name, shape in weights.shapes(architecture).items()}
  module = weights.build(architecture, arrays, dtype=jnp.bfloat16)
  programs = pretrained.Programs(module, 'torchvision', 'tpu', mesh())
  params, images = shapes(programs.params), jax.ShapeDtypeStruct((4, 65, 129, 3), np.uint8)
  anchor = None
  if variant == 'full':
    (anchor,) = lowered(programs.embed, params, jax.ShapeDtypeStruct((1, 65, 129, 3), np.uint8)).out_avals
  exported = lowered(lambda *a: programs.predict(*a, blockwise=blockwise), params, anchor, images)
  assert exported.out_avals[0].shape[0] == 4
  # The kernel is in it, unless memory is short.
  assert ('tpu_custom_call' in exported.mlir_module()) == (variant == 'full' and not blockwise)


@pytest.mark.parametrize('refined', [False, True])
def test_masks(refined):
  """Thresholded and packed on the device, refined along the frame's edges or not."""
  logits = jax.ShapeDtypeStruct((4, 9, 17, 1), np.float32)
  guide = jax.ShapeDtypeStruct((4, 60, 107, 3), np.uint8) if refined else None

  def combine(logits, mirrored, threshold, guide):
    options = dict(mirrored=(False, True), size=(60, 107), protocol='paper', soft=False, packed=True)
    return session.combine(
      (logits, mirrored), threshold, guide=guide, grid=(17, 33) if refined else None, radius=3, **options
    )

  with platforms.lowering_for('tpu'):
    exported = lowered(combine, logits, logits, jax.ShapeDtypeStruct((), np.float32), guide)
  (masks,) = exported.out_avals
  assert masks.shape == (4, 60, 14) and masks.dtype == np.uint8


def test_training_step(training_config):
  training_config.model.dtype = 'bfloat16'
  trainer, state = step.initialize(training_config)
  size = (training_config.batch, 2, training_config.data.crop, training_config.data.crop)
  batch = {'images': jax.ShapeDtypeStruct((*size, 3), np.uint8), 'masks': jax.ShapeDtypeStruct(size, np.uint8)}
  with platforms.lowering_for('tpu'):
    lowered(lambda state, batch: step.train_step(trainer, state, batch), shapes(state), batch)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
@pytest.mark.parametrize('form', [attention.attend_exact, attention.attend_blockwise, attention.attend_tpu])
def test_attention(form, dtype):
  """With the embeddings of the full model at 857 x 481, which no block divides."""
  queries, context = (jax.ShapeDtypeStruct((2, n, 128), dtype) for n in (2 * 6588, 6588))
  exported = lowered(form, queries, context)
  assert exported.out_avals[0].shape == queries.shape
  if form is attention.attend_blockwise:
    lowered(jax.grad(lambda q, k: form(q, k).astype(jnp.float32).sum(), (0, 1)), queries, context)


def test_the_kernel_on_several_devices(monkeypatch):
  """XLA cannot split it; each device computes its own frames."""
  from jax.experimental.pallas import tpu

  rng = np.random.default_rng(0)
  queries, context = (jnp.asarray(rng.standard_normal((4, n, 16), np.float32), jnp.bfloat16) for n in (60, 50))

  def attend(queries, context):
    with platforms.lowering_for('tpu'), attention.kernels(mesh(4)):
      return attention.attend(queries, context)

  with tpu.force_tpu_interpret_mode():
    found = jax.jit(attend)(queries, context)
  expected = attention.attend_exact(queries, context)
  np.testing.assert_allclose(np.float32(found), np.float32(expected), atol=0.02)


@pytest.mark.parametrize('devices', [2, 8])
def test_inference_split_over_devices(tiny_model, model, devices):
  split = pretrained.Model(*weights.load(tiny_model), jax.devices()[:devices])
  images = np.stack(tiny.frames(8, tiny.SIZE))
  found = split.predict(split.embed(images[:1]), images)
  assert len(found.sharding.device_set) == devices
  # In batches as large as a device's: this network of random weights amplifies what another order of sums rounds off.
  anchor, parts = model.embed(images[:1]), np.split(images, devices)
  expected = np.concatenate([model.predict(anchor, part) for part in parts])
  assert np.abs(np.asarray(found) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_what_fills_a_matrix_unit():
  assert forms.padded_product((8, 128, 256)) == 8 * 128 * 256
  assert forms.padded_product((9, 3, 130)) == 16 * 128 * 256
  module = layers.Conv(4, 6, 3, norm=False, rngs=nnx.Rngs(0))
  jaxpr = jax.make_jaxpr(lambda x: layers.leaky_relu(module(x)) @ jnp.ones((6, 5)))(jnp.zeros((1, 5, 7, 4)))
  assert list(forms.matrix_products(jaxpr.jaxpr)) == [(35, 4, 6)] * 9 + [(35, 6, 5)]
