"""EfficientNet-Lite trunks: their table of stages, and ImageNet classes of real pictures with the real weights."""

from __future__ import annotations

import cv2
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adnet_jax import convert, foreign, weights
from adnet_jax.errors import UsageError
from adnet_jax.models import adnet, efficientnet, layers, per_frame
from adnet_jax.normalization import normalize


def test_stages_of_lite0_and_lite2():
  assert efficientnet.scaled_stages('efficientnet_lite0') == list(efficientnet.STAGES)
  lite2 = efficientnet.scaled_stages('efficientnet_lite2')
  assert [stage[0] for stage in lite2] == [1, 3, 3, 4, 4, 5, 1]  # the first and the last are never repeated
  assert [stage[4] for stage in lite2] == [16, 24, 48, 88, 120, 208, 352]


@pytest.mark.parametrize(
  ('output_stride', 'expected'),
  [
    (32, [(1, 1), (2, 1), (2, 1), (2, 1), (1, 1), (2, 1), (1, 1)]),
    (16, [(1, 1), (2, 1), (2, 1), (2, 1), (1, 1), (1, 2), (1, 2)]),
    (8, [(1, 1), (2, 1), (2, 1), (1, 2), (1, 2), (1, 4), (1, 4)]),
  ],
)
def test_stages_dilate_instead_of_striding(output_stride, expected):
  trunk = nnx.eval_shape(lambda: make_trunk('efficientnet_lite0', output_stride))
  assert [(stage[0].depthwise.stride, stage[0].depthwise.dilation) for stage in trunk.stages] == expected
  for stage, (_, dilation) in zip(trunk.stages, expected, strict=True):
    assert all(block.depthwise.dilation == dilation for block in stage)
    assert all(block.depthwise.stride == 1 for block in list(stage)[1:])
  assert trunk.channels == (320, 192)


def make_trunk(backbone, output_stride):
  return efficientnet.EfficientNetLite(backbone, output_stride=output_stride, dtype=jnp.float32, rngs=nnx.Rngs(0))


def classifier(backbone, state, arrays):
  """Our trunk, undilated as it was trained on ImageNet, followed by the file's own head: images -> class logits."""
  graph, empty = nnx.split(nnx.eval_shape(lambda: make_trunk(backbone, 32)))
  flat = [
    (path, leaf.replace(jnp.asarray(arrays['backbone/' + '/'.join(map(str, path))])))
    for path, leaf in nnx.to_flat_state(empty)
  ]
  parameters = nnx.from_flat_state(flat)

  @jax.jit
  def classify(images):
    x, _ = nnx.merge(graph, parameters)(normalize(images, 'efficientnet'))
    x = jnp.einsum('bhwi,oi->bhwo', x, state['_conv_head.weight'][:, :, 0, 0])
    gain = state['_bn1.weight'] / np.sqrt(state['_bn1.running_var'] + efficientnet.EPSILON)
    offset = state['_bn1.bias'] - state['_bn1.running_mean'] * gain
    x = layers.relu6(x * per_frame.per_channel(gain) + per_frame.per_channel(offset))
    return x.mean((1, 2)) @ state['_fc.weight'].T + state['_fc.bias'][None]

  return classify


@pytest.mark.shared_data
@pytest.mark.parametrize('backbone', efficientnet.WIDTH_DEPTH)
def test_real_weights_know_the_swan_and_the_camel(backbone, shared, tmp_path):
  pytest.importorskip('torch')
  try:
    path = foreign.find_source(backbone)
  except UsageError as error:
    pytest.skip(str(error))
  metadata = convert.convert(backbone, tmp_path / 'trunk.safetensors')  # strict: every tensor has its place
  assert metadata == weights.Trunk(
    backbone,
    'efficientnet',
    'efficientnet',
    f'ImageNet trunk from {path.name}',
    'Apache-2.0',
    metadata.created_by,
  )
  initial = weights.read_initial(
    tmp_path / 'trunk.safetensors', adnet.Architecture(backbone=backbone, stem='efficientnet')
  )
  for name, array in weights.read_initial(backbone).arrays.items():
    np.testing.assert_array_equal(array, initial.arrays[name])
  frames = []
  for clip in ('blackswan', 'camel'):
    frame = cv2.imread(str(shared / f'data/DAVIS/JPEGImages/480p/{clip}/00000.jpg'))
    crop = frame[:, (frame.shape[1] - frame.shape[0]) // 2 :][:, : frame.shape[0], ::-1]
    frames.append(cv2.resize(np.ascontiguousarray(crop), (224, 224), interpolation=cv2.INTER_AREA))
  logits = np.asarray(classifier(backbone, foreign.read_state(path), initial.arrays)(np.stack(frames)))
  probability = np.exp(logits - logits.max(1, keepdims=True))
  probability /= probability.sum(1, keepdims=True)
  assert logits.argmax(1).tolist() == [100, 354]
  assert probability[0, 100] > 0.5 and probability[1, 354] > 0.3
