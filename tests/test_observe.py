"""What a training shows of itself, read back: TensorBoard's files by TensorBoard's own reader where it is installed."""

from __future__ import annotations

import io
import itertools
import json
import math
import struct
import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from adnet_jax import observe, train, utilization
from adnet_jax.data import input_pipeline

pytest.importorskip('tensorboardX')
from adnet_jax import events

pytestmark = pytest.mark.usefixtures('compiled_hastily')

SCALARS = {
  'train/loss', 'train/learning_rate', 'train/gradient_norm', 'speed/images_per_second', 'speed/step_seconds',
  'speed/data_wait_seconds', 'speed/model_flop_utilisation', 'validation/J', 'validation/F',
}  # fmt: skip
IMAGES = {'images/anchor', 'images/frame', 'images/truth', 'images/heat_map'}


def records(path):
  """The events of a file by tensorboardX's messages, its checksums verified."""
  from tensorboardX.proto import event_pb2

  data, found = path.read_bytes(), []
  while data:
    (length,) = struct.unpack_from('<Q', data)
    body = data[12 : 12 + length]
    assert events._checksum(data[:8]) == data[8:12] and events._checksum(body) == data[12 + length : 16 + length]
    found.append(event_pb2.Event.FromString(body))
    data = data[16 + length :]
  return found


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def trained(training_root, tmp_path_factory):
  """A work folder of six steps, stopped after three and gone on with."""
  import tiny_training

  from adnet_jax import config as config_lib

  options = ['steps=6', 'observe.images_every=3', 'evaluate.every=3', 'observe.profile_steps=4,5']
  config = config_lib.load('configs/davis.py', [*tiny_training.overrides(training_root), *options])
  workdir = tmp_path_factory.mktemp('observed')

  class Broken(Exception):
    pass

  def stop(step, values):
    assert {'loss', 'lr', 'seconds', 'speed/step_seconds'} <= set(values)
    if step == 4:
      raise Broken

  scores = itertools.cycle([{'J': 0.25, 'F': None}, {'J': 0.5, 'F': 0.75}])
  with pytest.raises(Broken):
    train.train(config, workdir, stop, lambda path: next(scores))
  train.train(config, workdir, None, lambda path: next(scores))
  return workdir


def test_tensorboards_own_reader_finds_every_scalar_and_image(trained):
  pytest.importorskip('tensorboard')
  from tensorboard.backend.event_processing import event_accumulator

  found = event_accumulator.EventAccumulator(str(trained / 'tensorboard'), size_guidance={'images': 0, 'scalars': 0})
  found.Reload()
  tags = found.Tags()
  assert set(tags['scalars']) == SCALARS and set(tags['images']) == IMAGES
  log = lines(trained / 'train.jsonl')
  for tag, key in (('train/loss', 'loss'), ('train/learning_rate', 'lr'), ('train/gradient_norm', 'grad_norm')):
    scalars = found.Scalars(tag)
    assert [scalar.step for scalar in scalars] == list(range(6))  # the steps done twice count once
    np.testing.assert_allclose([scalar.value for scalar in scalars], [line[key] for line in log], rtol=1e-6)
  assert [(scalar.step, scalar.value) for scalar in found.Scalars('validation/J')] == [(2, 0.25), (5, 0.5)]
  assert [(scalar.step, scalar.value) for scalar in found.Scalars('validation/F')] == [(5, 0.75)]
  for tag in IMAGES:
    images = found.Images(tag)
    assert [image.step for image in images] == [2, 5]
    assert Image.open(io.BytesIO(images[0].encoded_image_string)).size == (4 * 33, 33)
  assert b'backbone/conv1/kernel' in found.Tensors('parameters/text_summary')[0].tensor_proto.string_val[0]


def test_the_event_files_hold_what_they_should(trained):
  one, other = sorted((trained / 'tensorboard').glob('events.out.tfevents.*'))
  first = records(one)
  assert first[0].file_version == 'brain.Event:2'
  tags = {value.tag for event in first for value in event.summary.value}
  assert (SCALARS - {'validation/F'}) | IMAGES | {'parameters/text_summary'} == tags
  restart = next(event for event in records(other) if event.HasField('session_log'))
  assert restart.step == 4  # what the first file says of later steps is void


def test_everything_stands_in_json_lines_too(trained):
  measured = lines(trained / 'metrics.jsonl')
  assert [line['step'] for line in measured] == [line['step'] for line in lines(trained / 'train.jsonl')]
  assert set().union(*measured) == {'step', *(tag for tag in SCALARS if not tag.startswith('train/'))}
  for line in measured:
    assert line['speed/images_per_second'] == pytest.approx(8 / line['speed/step_seconds'])
    assert 0 < line['speed/model_flop_utilisation'] < 2 and line['speed/data_wait_seconds'] >= 0
  assert [line.get('validation/J') for line in measured] == [None, None, 0.25, None, None, 0.5]
  overview = (trained / 'parameters.txt').read_text()
  assert 'backbone/layer4/0/conv2/kernel' in overview and 'Total: 5,031,153' in overview


def test_the_chosen_step_is_profiled(trained):
  profiles = list((trained / 'tensorboard').glob('plugins/profile/*/*.xplane.pb'))
  assert len(profiles) == 2 and all(path.stat().st_size for path in profiles)  # step 4 was done twice


def test_a_step_is_read_when_the_next_one_has_its_data(training_config, tmp_path, monkeypatch):
  """So that an accelerator never waits for the host to read a loss."""
  training_config.checkpoint.every = 100
  batches, drawn, at = input_pipeline.batches, [], []

  def counted(*arguments, **options):
    for batch in batches(*arguments, **options):
      drawn.append(batch)
      yield batch

  monkeypatch.setattr(input_pipeline, 'batches', counted)
  train.train(training_config, tmp_path, lambda step, _: at.append((step, len(drawn))))
  assert at == [(0, 2), (1, 3), (2, 4), (3, 4)]


def test_pictures_are_made_small_and_side_by_side(tmp_path):
  observer = observe.Observer(tmp_path, 0)
  images = np.zeros((6, 960, 480, 3), np.uint8)
  images[:, :, :, 0] = 255
  observer.pictures(3, {'frame': images})
  (event,) = [e for e in records(next(tmp_path.glob('tensorboard/*'))) if e.summary.value]
  picture = event.summary.value[0].image
  assert (event.step, picture.width, picture.height) == (3, 4 * 120, 240)
  decoded = cv2.imdecode(np.frombuffer(picture.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
  assert (decoded == (0, 0, 255)).all()


def test_colours():
  values = np.array([[[0.0, 0.5, 1.0, np.nan]]])
  assert observe.grey(values[..., :3]).tolist() == [[[[0] * 3, [127] * 3, [255] * 3]]]
  low, middle, high, undefined = observe.heat_colours(values)[0, 0].astype(int)
  assert low[2] > low[0] and middle[1] > 200 and high[0] > high[2] and (undefined == low).all()


def test_numbers_that_are_none_or_not_finite_are_no_numbers(tmp_path):
  observer = observe.Observer(tmp_path, 0)
  line = {'step': 0, 'loss': None, 'lr': 0.1, 'grad_norm': None, 'sample_ids': []}
  observer.step(line, {'speed/step_seconds': math.inf})
  assert lines(tmp_path / 'train.jsonl') == [line]
  assert lines(tmp_path / 'metrics.jsonl') == [{'step': 0, 'speed/step_seconds': None}]
  tags = {value.tag for event in records(next(tmp_path.glob('tensorboard/*'))) for value in event.summary.value}
  assert 'train/loss' not in tags and 'train/learning_rate' in tags


def test_only_one_process_writes(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with observe.open_observer(None, 0) as observer:
    observer.step({'step': 0}, {})
    observer.pictures(0, {})
    observer.parameters('table', 0)
    observer.profile(True)
  assert not list(tmp_path.iterdir())


def test_a_meter_leaves_out_what_is_no_step(monkeypatch):
  now = iter([0.0, 100.0, 102.0, 150.0, 154.0])
  monkeypatch.setattr(time, 'perf_counter', lambda: next(now))
  meter = observe.Meter(12)
  meter.restart()
  meter.seconds_at_peak = 0.5
  assert meter.step(1.5) == {
    'speed/step_seconds': 2.0,
    'speed/data_wait_seconds': 1.5,
    'speed/images_per_second': 6.0,
    'speed/model_flop_utilisation': 0.25,
  }
  meter.restart()
  assert meter.step(0.0)['speed/step_seconds'] == 4.0
  assert meter.mean_seconds == 3.0


class Chip:
  platform, process_index = 'gpu', 0

  def __init__(self, kind):
    self.device_kind = kind


def test_known_chips_and_a_measured_one():
  for kind, rate in (('NVIDIA H100 80GB HBM3', 989e12), ('TPU v5 lite', 197e12), ('TPU v5p', 459e12), ('NVIDIA H100 PCIe', 756e12)):  # fmt: skip  # noqa: E501
    found, source = utilization.peak([Chip(kind)] * 2, jnp.dtype('bfloat16'))
    assert found == 2 * rate and kind in source and 'table' in source
  found, source = utilization.peak(jax.devices()[:4], jnp.dtype('float32'))
  assert 1e8 < found < 1e14 and 'measured' in source and 'times 1' in source  # fake devices share the cores


def test_operations_of_a_product_are_counted_before_the_compiler_hides_them():
  a, b = jnp.ones((8, 16)), jnp.ones((16, 4))
  lowered = jax.jit(lambda a, b: a @ b).lower(a, b)
  assert utilization.operations(lowered) == 2 * 8 * 16 * 4
  assert utilization.operations(lowered, parts=3) == 3 * 2 * 8 * 16 * 4
  assert utilization.operations(object()) is None
