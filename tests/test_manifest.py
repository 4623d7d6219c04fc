"""Manifests of many videos: what is read, and what is refused with its line."""

from __future__ import annotations

import json

import pytest

from adnet_jax import manifest
from adnet_jax.errors import AdnetError, DataError, UsageError


def test_lines_in_their_order_and_inputs_relative_to_the_manifest(tmp_path):
  path = tmp_path / 'list.jsonl'
  path.write_text(
    '\ufeff{"input": "videos/a.mp4", "name": "a"}\n\n{"name": "ü %d", "input": "/data/\\u2028 b"}\r\n', 'utf-8'
  )
  assert manifest.read_manifest(path) == [
    manifest.Clip('a', str(tmp_path / 'videos/a.mp4'), 1),
    manifest.Clip('ü %d', '/data/\u2028 b', 3),
  ]


def test_a_manifest_is_known_by_its_ending():
  assert (
    manifest.is_manifest(['a.mp4', 'B.JSONL']) and not manifest.is_manifest(['a.mp4']) and not manifest.is_manifest([])
  )


@pytest.mark.parametrize(
  ('line', 'text'),
  [
    ('{"input": "a"', 'not JSON'),
    ('[' * 100_000, 'not JSON'),
    ('["a", "b"]', 'not a JSON object'),
    ('{"name": "a"}', "has no key 'input'"),
    ('{"input": "a"}', "has no key 'name'"),
    ('{"input": "a", "name": 7}', "'name' is no text"),
    ('{"input": "", "name": "a"}', "'input' is no text"),
    ('{"input": "a", "name": "a", "inputs": "b"}', "did you mean 'input'"),
    ('{"input": "a", "name": "a", "frame": 3}', "unknown key 'frame'"),
    ('{"input": "a\\u0000", "name": "a"}', "'input' is no path"),
    ('{"input": "\\ud800", "name": "a"}', "'input' is no path"),
  ],
)
def test_a_broken_line_is_named(tmp_path, line, text):
  path = tmp_path / 'list.jsonl'
  path.write_text(f'{{"input": "x", "name": "x"}}\n{line}\n')
  with pytest.raises(DataError, match='line 2') as caught:
    manifest.read_manifest(path)
  assert text in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
  'name',
  [
    '../a',
    'a/b',
    '/a',
    'a\\b',
    '.',
    '..',
    '.hidden',
    'a\0',
    'a\nb',
    ' ',
    'x' * 151,
    'ü' * 76,
    '\ud800',
    'Failures.jsonl',
  ],
)
def test_names_that_are_no_folders(tmp_path, name):
  path = tmp_path / 'list.jsonl'
  path.write_text(json.dumps({'input': 'a', 'name': name}))
  with pytest.raises(DataError, match=r'line 1.*choose another name'):
    manifest.read_manifest(path)


@pytest.mark.parametrize(('one', 'other'), [('dog', 'dog'), ('Dog', 'dOG'), ('\u00fc', 'u\u0308')])
def test_two_clips_for_one_folder(tmp_path, one, other):
  path = tmp_path / 'list.jsonl'
  path.write_text('\n'.join(json.dumps({'input': str(k), 'name': name}) for k, name in enumerate((one, 'x', other))))
  with pytest.raises(UsageError, match='lines 1 and 3'):
    manifest.read_manifest(path)


def test_files_that_are_no_manifest(tmp_path):
  (tmp_path / 'empty').write_text('\n \n')
  (tmp_path / 'binary').write_bytes(b'\xff\xfe\x00')
  for name, text in (('empty', 'is empty'), ('binary', 'no UTF-8'), ('nowhere', 'No such file'), ('.', 'directory')):
    with pytest.raises(AdnetError, match=text) as caught:
      manifest.read_manifest(tmp_path / name)
    assert caught.value.exit_code == 3
