"""Exported models: the same masks as the model they come from, and what happens where no program fits."""

from __future__ import annotations

import json
import logging

import jax
import numpy as np
import pytest
import tiny

from adnet_jax import cli, exported, pretrained, weights
from adnet_jax.errors import UsageError, WeightsError
from adnet_jax.segmenter import Segmenter

pytest.importorskip('flatbuffers')


@pytest.fixture(scope='module')
def file(tiny_model, tmp_path_factory):
  """The tiny model with programs for one size on the CPU, one and three frames at a time, and on a TPU."""
  path = tmp_path_factory.mktemp('exported') / 'ahead.safetensors'
  exported.export_model(tiny_model, path, [tiny.SIZE], ['cpu', 'tpu'], batches=[3])
  return path


@pytest.fixture
def said(caplog, monkeypatch):
  """What was said of programs that do not fit."""
  exported._say.cache_clear()
  monkeypatch.setattr(pretrained, '_terms_said', set())
  with caplog.at_level(logging.WARNING, 'absl'):
    yield lambda: [r.getMessage() for r in caplog.records if 'traced and compiled anew' in r.getMessage()]


@pytest.mark.parametrize(('protocol', 'mirror', 'soft'), [('paper', True, True), ('released', False, False)])
def test_the_same_masks(file, model, said, protocol, mirror, soft):
  """Five frames, four at a time: the last program's batch is filled up."""
  loaded = Segmenter.from_pretrained(file, protocol, mirror=mirror, size=tiny.SIZE, batch=4)
  assert isinstance(loaded.model, exported.ExportedModel) and loaded.model.metadata == model.metadata
  frames = tiny.frames(5)
  expected = Segmenter(model, protocol, mirror=mirror, size=tiny.SIZE, batch=4).segment(frames, soft=soft)
  for found, wanted in zip(loaded.segment(frames, soft=soft), expected, strict=True):
    np.testing.assert_allclose(found, wanted, atol=1e-4)
  assert not said()
  assert 'traced' not in vars(loaded.model)  # the network was never built


def test_logits_and_normalize_are_those_of_the_model(file, model):
  loaded = pretrained.load_model(file)
  anchor, frame = (loaded.normalize(image[None]) for image in tiny.frames(2, tiny.SIZE))
  np.testing.assert_allclose(loaded.logits(anchor, frame), model.logits(anchor, frame), atol=1e-4)


def test_another_size_is_traced_and_said_once(file, model, said):
  frames = tiny.frames(3)
  segmenter = Segmenter.from_pretrained(file, size=(65, 33), batch=2)
  found, expected = (list(one.segment(frames)) for one in (segmenter, Segmenter(model, size=(65, 33), batch=2)))
  np.testing.assert_array_equal(found, expected)
  assert said() == [
    'the exported model ahead.safetensors is traced and compiled anew: its programs are for 129x65, not for 65x33'
  ]


def test_blocks_of_attention_as_the_last_resort_are_traced(file, model):
  loaded, images = pretrained.load_model(file), np.stack(tiny.frames(1, tiny.SIZE))
  anchor = loaded.embed(images)
  found = loaded.predict(anchor, images, blockwise=True)
  np.testing.assert_allclose(found, model.predict(anchor, images, blockwise=True), atol=1e-4)


def test_other_platforms_and_dtypes_are_traced_and_said(tiny_model, file, tmp_path, said):
  elsewhere = tmp_path / 'elsewhere.safetensors'
  exported.export_model(tiny_model, elsewhere, [tiny.SIZE], ['tpu'], batches=[1])
  assert isinstance(pretrained.load_model(elsewhere), pretrained.Model)
  assert isinstance(pretrained.load_model(file, dtype='bfloat16'), pretrained.Model)
  assert [one.split('anew: ')[1] for one in said()] == [
    'its programs are for tpu, not for cpu',
    'its programs for cpu compute in float32, not bfloat16',
  ]


def test_programs_of_another_jax_are_traced_and_said(file, model, said, monkeypatch):
  def refuse(_):
    raise NotImplementedError('version 99')

  monkeypatch.setattr(jax.export, 'deserialize', refuse)
  frames = tiny.frames(2)
  found = list(Segmenter.from_pretrained(file, size=tiny.SIZE, batch=1).segment(frames))
  np.testing.assert_array_equal(found, list(Segmenter(model, size=tiny.SIZE, batch=1).segment(frames)))
  assert len(said()) == 1 and 'version 99' in said()[0]


def test_a_variant_without_anchor(tmp_path):
  plain = tiny.write_model(tmp_path / 'intra.safetensors', 'intra_frame')
  ahead = tmp_path / 'ahead.safetensors'
  keys = exported.export_model(plain, ahead, [tiny.SIZE], batches=[1])
  assert [key.kind for key in keys] == ['predict']
  frames = tiny.frames(2)
  found, expected = (
    list(Segmenter.from_pretrained(p, size=tiny.SIZE, batch=1).segment(frames)) for p in (ahead, plain)
  )
  np.testing.assert_array_equal(found, expected)


def test_a_file_with_programs_is_a_model_file(file, tiny_model):
  assert 'cpu 129x65, tpu 129x65' in weights.describe(file)
  (_, metadata), (_, expected) = weights.load(file), weights.load(tiny_model)
  assert metadata == expected


def test_damage_and_wrong_use_are_named(tiny_model, file, tmp_path, capsys):
  with pytest.raises(UsageError, match='output exists'):
    exported.export_model(tiny_model, file, [tiny.SIZE])
  with pytest.raises(UsageError, match="unknown platform 'cpuu'"):
    exported.export_model(tiny_model, tmp_path / 'x.safetensors', [tiny.SIZE], ['cpuu'])
  damaged = tmp_path / 'damaged.safetensors'
  content = bytearray(file.read_bytes())
  content[-1000] ^= 1
  damaged.write_bytes(content)
  with pytest.raises(WeightsError, match='checksum'):
    pretrained.load_model(damaged)
  assert cli.main(['export', str(tiny_model), '-o', str(file), '--size', '129x65']) == 2
  assert 'output exists' in capsys.readouterr().err
  assert not [path for path in tmp_path.iterdir() if path != damaged]


def test_the_command(tiny_model, tmp_path, capsys):
  output = tmp_path / 'ahead.safetensors'
  arguments = ['export', str(tiny_model), '-o', str(output), '--size', '65x33', '--size', '129x65', '--batch', '1']
  assert cli.main([*arguments, '--platforms', 'cpu']) == 0
  assert 'cpu 129x65, cpu 65x33' in capsys.readouterr().out
  assert json.loads(weights.read_strings(output)[exported.KEY])['dtypes'] == {'cpu': 'float32'}
