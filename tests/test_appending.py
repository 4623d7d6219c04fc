"""Files that grow by records: whole ones only, nothing lost on a full disk, and cutting back before a resumption."""

from __future__ import annotations

import errno
import os

import pytest

from adnet_jax import appending


@pytest.fixture
def disk(monkeypatch):
  """A disk with `disk['free']` bytes left, for os.write alone."""
  state, write = {'free': 10**9}, os.write

  def limited(file, data):
    if not state['free']:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    written = write(file, bytes(data)[: state['free']])
    state['free'] -= written
    return written

  monkeypatch.setattr(os, 'write', limited)
  return state


def test_records_wait_for_room_and_keep_their_order(tmp_path, disk, caplog):
  log = appending.Appender(tmp_path / 'log')
  log.append(b'one\n')
  disk['free'] = 2
  log.append(b'two\n')
  disk['free'] = 0
  log.append(b'three\n')
  assert (tmp_path / 'log').read_bytes() == b'one\n'  # no half record
  assert caplog.text.count('cannot be written: No space left on device') == 1
  disk['free'] = 100
  log.append(b'four\n')
  assert (tmp_path / 'log').read_bytes() == b'one\ntwo\nthree\nfour\n'


def test_memory_is_bounded_while_the_disk_is_full(tmp_path, disk, monkeypatch):
  monkeypatch.setattr(appending, 'MAX_WAITING', 8)
  disk['free'] = 0
  log = appending.Appender(tmp_path / 'log')
  for record in (b'aaaa', b'bbbb', b'cccc'):
    log.append(record)
  disk['free'] = 100
  log.append(b'dd')
  assert (tmp_path / 'log').read_bytes() == b'ccccdd'


def test_a_folder_that_is_gone_is_no_crash(tmp_path, caplog):
  log = appending.Appender(tmp_path / 'gone' / 'log')
  log.append(b'one\n')
  assert 'cannot be written: No such file' in caplog.text
  (tmp_path / 'gone').mkdir()
  log.append(b'two\n')
  assert (tmp_path / 'gone' / 'log').read_bytes() == b'one\ntwo\n'


@pytest.mark.parametrize(
  ('content', 'kept'),
  [
    ('{"step": 0}\n{"step": 1}\n{"step": 2}\n', '{"step": 0}\n{"step": 1}\n'),
    ('{"step": 0}\n{"step": 1', '{"step": 0}\n'),
    ('{"step": 0}\n{"step": 1}', '{"step": 0}\n'),  # without its end a line may be cut off within a number
    ('{"step": 0}\nnoise\n{"step": 1}\n', '{"step": 0}\n'),
    ('[]\n', ''),
    ('', ''),
  ],
)
def test_lines_to_be_done_again_are_cut(tmp_path, content, kept):
  (tmp_path / 'log').write_text(content)
  appending.cut_json_lines(tmp_path / 'log', 2)
  assert (tmp_path / 'log').read_text() == kept


def test_there_need_not_be_a_log(tmp_path):
  appending.cut_json_lines(tmp_path / 'log', 2)
  assert not (tmp_path / 'log').exists()
