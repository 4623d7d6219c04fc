from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adnet_jax.errors import DataError
from adnet_jax.evaluate import score_masks
from adnet_jax.scores import numbers, read_scores, scores_table, write_scores


def test_score_files_are_whole_and_hold_null_for_nan(tmp_path, folders):
  scores = score_masks(*folders)
  path = tmp_path / 'new' / 'scores.json'
  write_scores(scores, path)
  assert json.loads(path.read_text()) == scores
  write_scores({'a': [math.nan, np.float64(math.inf), np.float32(0.5)], 'b': {'c': np.int64(3)}}, path)
  assert json.loads(path.read_text()) == {'a': [None, None, 0.5], 'b': {'c': 3}}
  assert [one.name for one in path.parent.iterdir()] == ['scores.json']


def test_score_files_that_cannot_be_written_leave_what_was_there(tmp_path):
  (tmp_path / 'file').write_text('kept')
  with pytest.raises(DataError, match='cannot be written'):
    write_scores({}, tmp_path / 'file' / 'scores.json')
  assert (tmp_path / 'file').read_text() == 'kept'
  (tmp_path / 'folder').mkdir()
  with pytest.raises(DataError, match='cannot be written'):
    write_scores({}, tmp_path / 'folder')
  assert sorted(one.name for one in tmp_path.iterdir()) == ['file', 'folder']


def test_table_names_rule_protocol_and_every_clip(folders):
  scores = score_masks(*folders, frames='given', protocol='released')
  table = scores_table({**scores, 'subset': True}).splitlines()
  assert table[0] == 'rule davis2016, protocol released, a subset of the frames'
  assert table[1].split()[:6] == ['clip', 'frames', 'J', 'mean', 'J', 'recall']
  assert table[3].split()[:3] == ['cat', '4', f'{scores["clips"]["cat"]["J"]["mean"]:.3f}']
  assert table[-1].startswith('data set') and table[-1].split()[2] == '11'


@given(st.lists(st.one_of(st.floats(), st.none(), st.text(max_size=3)), max_size=4))
def test_any_number_can_be_written(tmp_path_factory, values):
  path = tmp_path_factory.getbasetemp() / 'any.json'
  write_scores({'values': values}, path)
  expected = [None if isinstance(one, float) and not math.isfinite(one) else one for one in values]
  assert json.loads(path.read_text(encoding='utf-8'))['values'] == expected


# Reading.


def test_what_is_written_is_read_again(tmp_path, folders):
  scores = score_masks(*folders)
  write_scores(scores, tmp_path / 'scores.json')
  assert read_scores(tmp_path / 'scores.json') == scores


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'format': 2}, r'format 2, and 1 is what this version reads'),
    ({'rule': None}, 'rule or protocol is no text'),
    ({'protocol': 3}, 'rule or protocol is no text'),
    ({'dataset': []}, 'clips or dataset is no object'),
    ({'clips': {'cat': {}}}, 'clip cat has no list of frames'),
    ({'clips': {'cat': {'frames': ['1'], 'J': {'per_frame': []}}}}, 'J of clip cat is not a number'),
    ({'clips': {'cat': {'frames': ['1'], 'J': {'per_frame': ['.5']}}}}, 'J of clip cat is not a number'),
  ],
)
def test_files_that_are_no_score_files_say_why(tmp_path, change, words):
  content = {'format': 1, 'rule': 'davis2016', 'protocol': None, 'dataset': {}, 'clips': {}} | change
  (tmp_path / 'scores.json').write_text(json.dumps(content))
  with pytest.raises(DataError, match=words):
    read_scores(tmp_path / 'scores.json')


@pytest.mark.parametrize('text', ['', '[1]', '{"rule": 1}', '{"rule": NaN}', '{"rule": 1e999}', '\xff', '[' * 100_000])
def test_text_that_is_no_score_file_is_refused(tmp_path, text):
  (tmp_path / 'scores.json').write_text(text, encoding='latin-1')
  with pytest.raises(DataError, match='not a score file'):
    read_scores(tmp_path / 'scores.json')
  with pytest.raises(DataError, match='cannot be read'):
    read_scores(tmp_path / 'absent.json')


def test_numbers_of_an_entry_are_named_and_lists_left_out():
  entry = {'frames': ['1'], 'J': {'mean': 0.5, 'per_frame': [0.5]}, 'MAE': None, 'curve': {'precision': [1]}}
  assert dict(numbers(entry)) == {'J mean': 0.5, 'MAE': None}
