"""Unreadable training files: what takes their place is a function of (seed, index, attempt) alone."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from adnet_jax import errors
from adnet_jax.data import datasets, input_pipeline


@pytest.fixture
def root(training_root, tmp_path):
  return shutil.copytree(training_root, tmp_path / 'data')


def source_of(config, root):
  clips = datasets.read_clips(root, datasets.split(root, 'train'), need_masks=True)
  return input_pipeline.pair_source(config, clips, [])


def image_of(root, clip, frame):
  return root / 'JPEGImages' / '480p' / clip / f'{frame:05d}.jpg'


def test_a_whole_data_set_needs_one_attempt(training_config, root):
  source = source_of(training_config, root)
  assert {int(source[i]['attempts']) for i in range(8)} == {0} and not source.unreadable


def test_the_replacement_does_not_depend_on_who_reads_when(training_config, root, caplog):
  whole = source_of(training_config, root)
  image_of(root, 'one', 2).write_bytes(b'no picture')
  source, other = source_of(training_config, root), source_of(training_config, root)
  forward = [source[i] for i in range(16)]
  backward = [other[i] for i in reversed(range(16))][::-1]
  replaced = 0
  for i, (one, two) in enumerate(zip(forward, backward, strict=True)):
    for name in one:
      np.testing.assert_array_equal(one[name], two[name])
    attempt = int(one['attempts'])
    assert '+00002' not in source.sample_id(i, attempt) or 'two' in source.sample_id(i, attempt)
    if attempt:
      replaced += 1
      assert whole.sample_id(i) == 'one/00000+00002'
    else:  # and all other samples are what they were
      np.testing.assert_array_equal(one['images'], whole[i]['images'])
  assert replaced
  assert list(source.unreadable) == [str(image_of(root, 'one', 2))]
  assert caplog.text.count('is unreadable') == 2  # once a source, however often it is met


def test_too_many_end_the_training(training_config, root):
  for frame in range(3):
    image_of(root, 'one', frame).write_bytes(b'')
  source = dataclasses.replace(source_of(training_config, root), max_unreadable=0)
  with pytest.raises(errors.DataError, match='1 training files are unreadable, the last: image cannot be read'):
    list(input_pipeline.batches(source, batch=4, first_step=0, workers=2))


def test_where_nothing_is_readable_the_search_ends(training_config, root, monkeypatch):
  monkeypatch.setattr(input_pipeline, 'MAX_ATTEMPTS', 20)
  for clip in ('one', 'two'):
    image_of(root, clip, 0).write_bytes(b'')
  with pytest.raises(errors.DataError, match='20 samples drawn, none is readable'):
    source_of(training_config, root)[0]
