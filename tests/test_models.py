"""The network's shapes, strides, dilations and parts for every backbone and variant, mostly without computing it."""

from __future__ import annotations

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adnet_jax import weights
from adnet_jax.models import adnet, deeplab, layers, platforms


def stem_of(backbone, stem='deep'):
  return 'efficientnet' if backbone.startswith('efficientnet') else stem


def tiny(variant='full', backbone='resnet18', stem='conv7x7', **options):
  options = {'output_stride': 16, 'aspp_width': 8, 'embedding': 4, **options}
  return adnet.Architecture(variant=variant, backbone=backbone, stem=stem_of(backbone, stem), **options)


def output(architecture, size, dtype=jnp.float32):
  """Shape and dtype of embeddings and logits, without computing them."""

  def run():
    model = adnet.ADNet(architecture, dtype=dtype, rngs=nnx.Rngs(0))
    frame = jnp.zeros((2, *size, 3))
    return model.encode(frame), model(frame if architecture.uses_anchor else None, frame)

  return jax.eval_shape(run)


def side(n, output_stride, ceil_pool):
  """Length of the feature map's side: strides of 2, the pooling's with ceil_mode where the stem is deep."""
  n = (n - 1) // 2 + 1
  n = -(-(n - 1) // 2) + 1 if ceil_pool else (n - 1) // 2 + 1
  for _ in range({8: 1, 16: 2}[output_stride]):
    n = (n - 1) // 2 + 1
  return n


@pytest.mark.parametrize('output_stride', [8, 16])
@pytest.mark.parametrize('stem', ['deep', 'conv7x7'])
@pytest.mark.parametrize('size', [(65, 81), (62, 90), (1, 17), (33, 64)])
def test_sizes_of_resnets(output_stride, stem, size):
  embeddings, logits = output(tiny(stem=stem, output_stride=output_stride), size)
  expected = tuple(side(n, output_stride, stem == 'deep') for n in size)
  assert embeddings.shape == (2, *expected, 4)
  assert logits.shape == (2, *expected, 1) and logits.dtype == jnp.float32


@pytest.mark.parametrize('backbone', ['efficientnet_lite0', 'efficientnet_lite2'])
@pytest.mark.parametrize('output_stride', [8, 16])
def test_sizes_of_efficientnets(backbone, output_stride):
  for size in ((65, 82), (1, 17)):
    embeddings, logits = output(tiny(backbone=backbone, output_stride=output_stride), size)
    expected = tuple(-(-n // output_stride) for n in size)
    assert embeddings.shape == (2, *expected, 4)
    assert logits.shape == (2, *expected, 1)


@pytest.mark.parametrize('backbone', ['resnet18', 'resnet50'])
def test_released_size_gives_a_map_of_61_by_108(backbone):
  architecture = tiny(backbone=backbone, stem='deep', output_stride=8)
  assert output(architecture, (481, 857))[0].shape == (2, 61, 108, 4)


@pytest.mark.parametrize('variant', adnet.VARIANTS)
def test_variants(variant):
  architecture = tiny(variant)
  embeddings, logits = output(architecture, (33, 33), jnp.bfloat16)
  assert logits.shape == (2, 3, 3, 1) and logits.dtype == jnp.float32
  assert embeddings.dtype == jnp.bfloat16
  inputs = adnet.VARIANTS[variant]
  shapes = weights.shapes(architecture)
  if variant == 'baseline':
    assert not any(name.startswith('classifier') for name in shapes)
    assert shapes['embedding/kernel'] == (1, 1, 8, 1)
  else:
    assert shapes['classifier/hidden/kernel'] == (1, 1, len(inputs) * 4, 4)
    assert shapes['embedding/kernel'] == (1, 1, 8, 4)
  assert architecture.uses_anchor == (variant in ('anchor', 'anchor_diffusion', 'full'))


@pytest.mark.parametrize('variant', adnet.VARIANTS)
def test_order_of_the_classifiers_inputs(variant, monkeypatch):
  """[diffused, intra, current], as the released files concatenate; the anchor itself in `anchor`."""
  monkeypatch.setattr(adnet.attention, 'attend', lambda q, k: q + 100)
  anchor, current = jnp.full((1, 2, 2, 1), 1.0), jnp.full((3, 2, 2, 1), 2.0)
  expected = {
    'intra_frame': [102, 2],
    'anchor': [1, 2],
    'anchor_diffusion': [101, 2],
    'full': [101, 102, 2],
  }
  if variant == 'baseline':
    return
  found = adnet._branches(adnet.VARIANTS[variant], anchor, current)
  assert found.shape == (3, 2, 2, len(expected[variant]))
  np.testing.assert_array_equal(found[2, 1, 1], expected[variant])


def convolutions(architecture):
  model = nnx.eval_shape(lambda: adnet.ADNet(architecture, rngs=nnx.Rngs(0)))
  found = {'/'.join(map(str, path)): part for path, part in nnx.iter_modules(model) if isinstance(part, layers.Conv)}
  return {name: (part.stride, part.dilation) for name, part in found.items()}


def test_where_resnets_stride_and_dilate():
  found = convolutions(tiny(backbone='resnet50', stem='deep', output_stride=8))
  assert found['backbone/conv1'] == (2, 1) and found['backbone/conv2'] == (1, 1)
  assert found['backbone/layer2/0/conv2'] == (2, 1)  # the 3x3 strides, not the 1x1
  assert found['backbone/layer2/0/conv1'] == (1, 1) and found['backbone/layer2/0/downsample'] == (2, 1)
  assert [found[f'backbone/layer3/{i}/conv2'] for i in range(6)] == [(1, 2)] * 6
  assert [found[f'backbone/layer4/{i}/conv2'] for i in range(3)] == [(1, 4), (1, 8), (1, 16)]
  assert [found[f'aspp/conv{i}'] for i in range(1, 5)] == [(1, 1), (1, 12), (1, 24), (1, 36)]
  found = convolutions(tiny(backbone='resnet50', output_stride=16, multi_grid=(1, 3)))
  assert found['backbone/layer3/0/conv2'] == (2, 1) and found['backbone/layer3/1/conv2'] == (1, 1)
  assert [found[f'backbone/layer4/{i}/conv2'] for i in range(3)] == [(1, 2), (1, 6), (1, 2)]
  assert [found[f'aspp/conv{i}'] for i in range(1, 5)] == [(1, 1), (1, 6), (1, 12), (1, 18)]


def test_basic_blocks_dilate_both_convolutions():
  found = convolutions(tiny(backbone='resnet18', output_stride=8))
  for i, dilation in enumerate((4, 8)):
    assert found[f'backbone/layer4/{i}/conv1'] == found[f'backbone/layer4/{i}/conv2'] == (1, dilation)


@pytest.mark.parametrize(
  ('backbone', 'stem', 'millions'),
  [
    ('resnet18', 'conv7x7', 11.18),
    ('resnet34', 'conv7x7', 21.28),
    ('resnet50', 'conv7x7', 23.51),
    ('resnet101', 'conv7x7', 42.50),
    ('resnet152', 'conv7x7', 58.14),
    ('efficientnet_lite0', 'efficientnet', 2.96),
    ('efficientnet_lite2', 'efficientnet', 4.36),
  ],
)
def test_numbers_of_trunk_parameters(backbone, stem, millions):
  """torchvision's and the Lite networks' counts, less their classifiers."""
  shapes = weights.shapes(tiny(backbone=backbone, stem=stem))
  count = sum(
    np.prod(shape)
    for name, shape in shapes.items()
    if name.startswith('backbone/') and not name.endswith(('/mean', '/var'))
  )
  assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_auxiliary_head():
  shapes = weights.shapes(tiny(backbone='resnet50', auxiliary=1))
  assert shapes['auxiliary/conv/kernel'] == (3, 3, 1024, 512) and shapes['auxiliary/logits/kernel'] == (1, 1, 512, 1)
  assert weights.shapes(tiny(backbone='efficientnet_lite0', auxiliary=1))['auxiliary/conv/kernel'] == (3, 3, 192, 512)

  def run(training):
    model = adnet.ADNet(tiny(auxiliary=3), rngs=nnx.Rngs(0))
    return model.encode_with_auxiliary(jnp.zeros((2, 33, 49, 3)), training)[1]

  assert jax.eval_shape(lambda: run(None)) is None  # not computed in inference
  logits = jax.eval_shape(lambda: run(adnet.Training(None)))
  assert logits.shape == (2, 3, 4, 3) and logits.dtype == jnp.float32


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'variant': 'fuller'}, "variant is 'fuller', expected one of baseline"),
    ({'backbone': 'vgg16'}, 'resnet18'),
    ({'output_stride': 32}, '8, 16'),
    ({'stem': 'efficientnet'}, 'does not go with'),
    ({'backbone': 'efficientnet_lite0'}, 'does not go with'),
    ({'activation': 'elu'}, 'leaky_relu'),
    ({'aspp_width': 0}, 'positive'),
    ({'multi_grid': (1, 0)}, 'positive'),
    ({'auxiliary': -1}, 'positive'),
  ],
)
def test_architectures_that_do_not_exist(options, message):
  with pytest.raises(ValueError, match=message):
    adnet.Architecture(**options)


def test_frozen_stages_neither_learn_nor_move():
  """One training pass: dropout, statistics of every part, and the parts that are frozen."""
  model = adnet.ADNet(tiny(auxiliary=1), rngs=nnx.Rngs(0))
  graph, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
  images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 33, 33, 3)), jnp.float32)

  @jax.jit
  def step(params, key):
    def loss(params):
      model = nnx.merge(graph, params, statistics, copy=True)
      training = adnet.Training(key, True, 2)
      x, auxiliary = model.encode_with_auxiliary(images, training)
      logits = model.classify(x[:1], x[1:], training)
      return jnp.square(logits).mean() + jnp.square(auxiliary).mean(), nnx.state(model, nnx.BatchStat)

    return jax.value_and_grad(loss, has_aux=True)(params)

  (first, moved), gradients = step(params, jax.random.key(0))
  (again, _), _ = step(params, jax.random.key(0))
  (other, _), _ = step(params, jax.random.key(1))
  assert first == again and first != other  # the dropout's key decides, and nothing else

  def flat(state):
    return {'/'.join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}

  def frozen(name):
    return name.startswith(('backbone/conv', 'backbone/layer1', 'backbone/layer2'))

  for name, gradient in flat(gradients).items():
    if not name.startswith('classifier/hidden'):  # one frame: BatchNorm's own scale may see nothing
      assert gradient.any() != frozen(name), name
  before = flat(statistics)
  for name, value in flat(moved).items():
    assert np.array_equal(value, before[name]) == frozen(name), name


def test_aspp_pools_in_float32():
  def run():
    aspp = deeplab.ASPP(8, 4, output_stride=16, epsilon=1e-5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    return aspp(jnp.zeros((1, 5, 7, 8), jnp.bfloat16))

  with platforms.lowering_for('gpu'):  # the form whose sum shows as one
    jaxpr = jax.make_jaxpr(run)()
  assert jax.eval_shape(run).dtype == jnp.bfloat16
  sums = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == 'reduce_sum' and e.invars[0].aval.shape == (1, 5, 7, 8)]
  assert len(sums) == 1 and sums[0].invars[0].aval.dtype == jnp.float32
