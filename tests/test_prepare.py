"""Preparing data sets: what is written equals what was there, breaks, changes and damage; no TensorFlow anywhere."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import sets

from adnet_jax.data import datasets, prepare, prepared
from adnet_jax.errors import DataError, UsageError

tfds = pytest.importorskip('tensorflow_datasets')
pytest.importorskip('array_record')

SPLITS = {'davis2016': ('train', 'val'), 'fbms59': ('train', 'test'), 'visal': ('test',), 'folder': ('train',)}


def write_raw(kind, root):
  """A raw data set of a kind, each with something that makes it hard."""
  if kind == 'davis2016':
    sets.write_davis(root, masks=6)  # two masks more than frames
  elif kind == 'visal':
    sets.write_visal(root)
  elif kind == 'fbms59':
    sets.write_fbms(root / 'Trainingset' / 'ducks01')
    sets.write_fbms(root / 'Testset' / 'lion01', scales=(sets.RED, sets.WHITE), labelled=(0, 4))
    sets.write_bms(root / 'Testset' / 'cars1')
  else:
    sets.write_davis(root, clips=('mine', 'yours'))
    for path in (root / 'Annotations' / '480p' / 'yours').iterdir():
      path.unlink()
  return root


@pytest.fixture(params=SPLITS)
def kind(request):
  return request.param


@pytest.fixture
def raw(kind, tmp_path):
  return write_raw(kind, tmp_path / 'raw')


def assert_same_truth(one, other):
  one, other = one.load(), other.load()
  np.testing.assert_array_equal(one.values, other.values)
  if hasattr(one, 'regions'):
    np.testing.assert_array_equal(one.regions(), other.regions())
    np.testing.assert_array_equal(one.certainty(), other.certainty())


def wrap(source):
  """What `load` is of for a file."""
  return source if hasattr(source, 'load') else prepared_like(source)


def prepared_like(path):
  from types import SimpleNamespace

  from adnet_jax.masks import load_mask_image

  return SimpleNamespace(load=lambda: load_mask_image(path))


def test_prepared_equals_raw(kind, raw, tmp_path):
  output = tmp_path / 'prepared'
  summary = prepare.prepare(kind, raw, output)
  assert datasets.kind_of(raw) == ('davis2016' if kind == 'folder' else kind)  # a folder in DAVIS' layout
  assert datasets.kind_of(output) == 'prepared' and prepared.original_kind(output) == kind
  assert sorted(path.name for path in tmp_path.iterdir()) == ['prepared', 'raw']
  for split in ('train', 'val'):
    names = datasets.split(raw, split)
    assert datasets.split(output, split) == names
    if kind != 'folder':
      for one, other in zip(
        datasets.read_clips(raw, names, need_masks=True),
        datasets.read_clips(output, names, need_masks=True),
        strict=True,
      ):
        assert (one.name, one.annotated, one.sparse) == (other.name, other.annotated, other.sparse)
        assert [frame.name for frame in one.frames] == [frame.name for frame in other.frames]
        assert [frame.suffix for frame in one.frames] == [frame.suffix for frame in other.frames]
        for index, (frame, stored) in enumerate(zip(one.frames, other.frames, strict=True)):
          assert frame.read_bytes() == stored.read_bytes()
          if index in one.annotated:
            pair, again = (datasets.read_pair(c.frames[index], c.masks[index]) for c in (one, other))
            np.testing.assert_array_equal(pair[0], again[0])
            np.testing.assert_array_equal(pair[1], again[1])
  truth, stored = datasets.truth_of(raw), datasets.truth_of(output)
  truth = {name: found for name, found in truth.items() if found}
  assert {name: list(found) for name, found in stored.items()} == {name: list(found) for name, found in truth.items()}
  for name, found in truth.items():
    for stem, source in found.items():
      assert_same_truth(wrap(source), pickle.loads(pickle.dumps(stored[name][stem])))
  assert summary['frames'] == sum(1 for path in raw.rglob('*.*') if is_frame(path, kind))
  assert summary['annotations'] == sum(map(len, truth.values()))
  assert summary['masks_only'] == (4 if kind == 'davis2016' else 0)
  assert set(summary['splits']) == set(SPLITS[kind])


def is_frame(path, kind):
  return path.suffix == '.jpg' or (kind == 'visal' and path.parent.parent.name == 'ViSal')


def test_tfds_reads_it_in_order(kind, raw, tmp_path):
  prepare.prepare(kind, raw, tmp_path / 'prepared')
  builder = tfds.builder_from_directory(tmp_path / 'prepared')
  assert builder.name == kind
  for split in SPLITS[kind]:
    names = prepared.split(tmp_path / 'prepared', split)[0]
    clips = prepared.read(tmp_path / 'prepared', names)
    if kind == 'davis2016':
      clips = [clip for clip in clips if datasets.split(raw, split) == [clip.name]]
    source = builder.as_data_source(split)
    assert len(source) == sum(len(clip.frames) for clip in clips)
    expected = [(clip, index) for clip in clips for index in range(len(clip.frames))]
    for record, (clip, index) in zip(source, expected, strict=True):
      assert (record['clip'].decode(), record['index']) == (clip.name, index)
      assert record['name'].decode() == clip.frames[index].stem
      pixels = cv2.imdecode(np.frombuffer(clip.frames[index].read_bytes(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
      np.testing.assert_array_equal(record['frame'], pixels)
      assert bool(record['annotation']) == (index in clip.annotated)
      assert bool(record['certainty']) == (index in clip.annotated and clip.name in ('ducks01', 'lion01'))


def test_the_builder_of_tfds_writes_the_same(kind, raw, tmp_path):
  prepare.prepare(kind, raw, tmp_path / 'ours')
  builder = prepare.builder_class(kind)(data_dir=tmp_path / 'theirs')
  builder.download_and_prepare(
    file_format='array_record', download_config=tfds.download.DownloadConfig(manual_dir=str(raw))
  )
  theirs = tmp_path / 'theirs' / kind / '1.0.0'
  assert prepared.read_index(theirs) == prepared.read_index(tmp_path / 'ours')
  for split in tfds.builder_from_directory(theirs).info.splits:
    one, other = (tfds.builder_from_directory(folder).as_data_source(split) for folder in (theirs, tmp_path / 'ours'))
    for record, same in zip(one, other, strict=True):
      assert record.keys() == same.keys() and all(np.array_equal(record[key], same[key]) for key in record)


def test_a_preparation_that_was_killed_goes_on(tmp_path):
  raw = sets.write_davis(tmp_path / 'raw', clips=[f'clip{k}' for k in range(8)])
  script = (
    'import os, signal, sys\n'
    'from adnet_jax.data import prepare\n'
    'write, count = prepare._write_shard, 0\n'
    'def killed(part, path):\n'
    '  global count\n'
    '  count += 1\n'
    '  if count == 4:\n'
    '    path.with_name(f".{path.name}").write_bytes(b"half a shard")\n'
    '    os.kill(os.getpid(), signal.SIGKILL)\n'
    '  write(part, path)\n'
    'prepare._write_shard = killed\n'
    f'prepare.prepare("davis2016", {str(raw)!r}, {str(tmp_path / "prepared")!r})\n'
  )
  killed = subprocess.run([sys.executable, '-c', script], env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
  assert killed.returncode == -signal.SIGKILL
  assert sorted(path.name for path in tmp_path.iterdir()) == ['.prepared.preparing', 'raw']
  with (tmp_path / '.prepared.preparing' / 'journal.jsonl').open('a') as journal:
    journal.write('{"entry": {"na')  # cut off in the middle of a write
  summary = prepare.prepare('davis2016', raw, tmp_path / 'prepared', resume=True)
  assert summary['kept'] == 3
  prepare.prepare('davis2016', raw, tmp_path / 'whole')
  whole = {path.name: path.read_bytes() for path in (tmp_path / 'whole').iterdir()}
  assert {path.name: path.read_bytes() for path in (tmp_path / 'prepared').iterdir()} == whole
  assert sorted(path.name for path in tmp_path.iterdir()) == ['prepared', 'raw', 'whole']


def interrupt(monkeypatch, raw, output, after, kind='davis2016'):
  """Prepares `after` clips; then a frame cannot be read."""
  written = []
  original = prepare._append

  def append(*arguments):
    original(*arguments)
    written.append(arguments)
    if len(written) == after:
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(prepare, '_append', append)
    with pytest.raises(KeyboardInterrupt):
      prepare.prepare(kind, raw, output)


@pytest.mark.parametrize('resume', [True, False])
def test_changed_sources_are_named(tmp_path, monkeypatch, resume):  # fault 68
  raw = sets.write_davis(tmp_path / 'raw', clips=('a', 'b', 'c'))
  interrupt(monkeypatch, raw, tmp_path / 'prepared', 2)
  frame = raw / 'JPEGImages' / '480p' / 'a' / '00001.jpg'
  before = frame.read_bytes()
  cv2.imwrite(str(frame), sets.frame(99))
  (raw / 'Annotations' / '480p' / 'b' / '00003.png').unlink()
  (raw / 'JPEGImages' / '480p' / 'c' / '00000.jpg').write_bytes(before)  # not written yet
  expected = r'2 source files have changed.*: JPEGImages/480p/a/00001\.jpg, Annotations/480p/b/00003\.png \(gone\)'
  with pytest.raises(DataError, match=expected):
    prepare.prepare('davis2016', raw, tmp_path / 'prepared', resume=resume)
  assert not (tmp_path / 'prepared').exists()


def test_a_complete_output_is_compared_with_its_source(tmp_path):
  raw = write_raw('fbms59', tmp_path / 'raw')
  prepare.prepare('fbms59', raw, tmp_path / 'prepared')
  with pytest.raises(UsageError, match=r'already holds a prepared data set .*--resume'):
    prepare.prepare('fbms59', raw, tmp_path / 'prepared')
  before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'prepared').iterdir()}
  assert prepare.prepare('fbms59', raw, tmp_path / 'prepared', resume=True)['kept'] == 3
  assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'prepared').iterdir()} == before
  definition = raw / 'Testset' / 'cars1' / 'cars1Def.dat'
  definition.write_text(definition.read_text().replace('penality', 'penalty'))
  with pytest.raises(DataError, match=r'1 source files have changed.*: Testset/cars1/cars1Def\.dat'):
    prepare.prepare('fbms59', raw, tmp_path / 'prepared', resume=True)
  sets.write_fbms(raw / 'Testset' / 'cats01')
  with pytest.raises(DataError, match='clips of the source have changed, added: cats01'):
    prepare.prepare('fbms59', raw, tmp_path / 'prepared', resume=True)


def test_an_interrupted_preparation_of_another_kind(tmp_path, monkeypatch):
  raw = sets.write_davis(tmp_path / 'raw', clips=('a', 'b'))
  interrupt(monkeypatch, raw, tmp_path / 'prepared', 1)
  with pytest.raises(DataError, match='a preparation of davis2016 has been interrupted there'):
    prepare.prepare('folder', raw, tmp_path / 'prepared')


def test_what_stands_in_the_way(tmp_path):  # fault 7
  raw = sets.write_davis(tmp_path / 'raw')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'note').touch()
  (tmp_path / 'file').touch()
  for output, text in (
    ('full', 'already holds something.*--resume'),
    ('file', 'is a file'),
    ('raw/x', 'in the source'),
  ):
    for resume in (True, False):
      with pytest.raises(UsageError, match=text):
        prepare.prepare('davis2016', raw, tmp_path / output, resume=resume)
  with pytest.raises(UsageError, match='one of davis2016, fbms59, visal, folder'):
    prepare.prepare('davis2017', raw, tmp_path / 'out')
  (tmp_path / 'empty').mkdir()
  prepare.prepare('davis2016', raw, tmp_path / 'empty')
  with pytest.raises(DataError, match='is a prepared data set already'):
    prepare.prepare('davis2016', tmp_path / 'empty', tmp_path / 'out')


@pytest.mark.parametrize(
  ('kind', 'text'),
  [
    ('davis2016', r'no JPEGImages/480p/CLIP folders .*found videos; expected JPEGImages/480p'),
    ('fbms59', r'no FBMS sequence .*found videos; expected SEQ'),
    ('visal', r'no clips with masks .*found videos; expected ViSal'),
    ('folder', r'no clips .*found videos; expected CLIP'),
  ],
)
def test_another_layout_is_described(tmp_path, kind, text):  # fault 57
  (tmp_path / 'raw' / 'videos').mkdir(parents=True)
  with pytest.raises(DataError, match=text):
    prepare.prepare(kind, tmp_path / 'raw', tmp_path / 'out')
  with pytest.raises(DataError, match='data set folder not found'):
    prepare.prepare(kind, tmp_path / 'nowhere', tmp_path / 'out')
  assert [path.name for path in tmp_path.iterdir()] == ['raw']


def test_bad_files_are_named_and_the_rest_is_kept(tmp_path):
  raw = sets.write_davis(tmp_path / 'raw', clips=('a', 'b'))
  frame, mask = raw / 'JPEGImages/480p/b/00002.jpg', raw / 'Annotations/480p/b/00003.png'
  good = frame.read_bytes(), mask.read_bytes()
  frame.write_bytes(good[0][:200])
  cv2.imwrite(str(mask), np.zeros((3, 4), np.uint8))
  with pytest.raises(
    DataError, match=r'2 files cannot be used: .*00002\.jpg, image cannot be read.*but its mask is 4x3'
  ):
    prepare.prepare('davis2016', raw, tmp_path / 'out')
  frame.write_bytes(good[0])
  mask.write_bytes(good[1])
  assert prepare.prepare('davis2016', raw, tmp_path / 'out')['kept'] == 1


def test_several_objects_are_merged_and_it_is_said_once(tmp_path):  # fault 58
  raw = sets.write_davis(tmp_path / 'raw')
  from PIL import Image

  for path in raw.rglob('*.png'):
    image = Image.fromarray(sets.regions(int(path.stem)), 'P')
    image.putpalette([0, 0, 0, 90, 0, 0, 0, 90, 0])
    image.save(path)
  warnings = prepare.prepare('davis2016', raw, tmp_path / 'out')['warnings']
  assert [warning for warning in warnings if 'merged' in warning] == [
    'masks with more than two values, as bear/00000: all but 0 merged to one foreground'
  ]
  assert any('not on disk: bmx-bumps, boat' in warning for warning in warnings)  # fault 59


def test_damaged_records_are_named(tmp_path):  # fault 69
  output = tmp_path / 'out'
  prepare.prepare('davis2016', sets.write_davis(tmp_path / 'raw', clips=('bear',)), output)
  (shard,) = output.glob('*.array_record*')
  (clip,) = datasets.read_clips(output, ['bear'], need_masks=True)
  frames, whole = [frame.read_bytes() for frame in clip.frames], shard.read_bytes()
  named = set()
  for at in range(0, len(whole), 997):
    shard.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
    os.utime(shard, ns=(at, at))  # a clock may be too coarse to tell the two files apart
    for k, frame in enumerate(clip.frames):
      try:
        assert frame.read_bytes() == frames[k]
      except DataError as error:
        assert f'{shard.name}, record {k}: bear/{k:05d}.jpg): prepare the data set again' in str(error)
        named.add(k)
  assert named == {0, 1, 2, 3}
  shard.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(DataError, match=r'damaged record: .*record 0: bear/00000\.png'):
    clip.masks[0].load()
  with pytest.raises(DataError, match=r'record 2: bear/00002\.jpg'):
    datasets.read_pair(clip.frames[2], clip.masks[2])
  shard.unlink()
  with pytest.raises(DataError, match=rf'shards missing: {shard.name}'):
    datasets.read_clips(output, ['bear'], need_masks=True)
  index = output / 'clips.json'
  index.write_text(index.read_text()[:100])
  with pytest.raises(DataError, match=r'list of a prepared data set is damaged \(.*clips\.json'):
    datasets.split(output, 'train')
  index.unlink()
  with pytest.raises(DataError, match=r'prepared data set without clips\.json'):
    datasets.split(output, 'train')


def test_records_of_another_preparation_are_noticed(tmp_path):
  for k in range(2):
    prepare.prepare(
      'davis2016', sets.write_davis(tmp_path / f'raw{k}', clips=(('bear', 'boat')[k],)), tmp_path / f'{k}'
    )
  (clip,) = datasets.read_clips(tmp_path / '0', ['bear'], need_masks=True)
  (shard,), (other,) = ((tmp_path / f'{k}').glob('*.array_record*') for k in range(2))
  sets.write_davis(tmp_path / 'raw2', clips=('x', 'bear'))
  prepare.prepare('folder', tmp_path / 'raw2', tmp_path / '2')
  shard.write_bytes((tmp_path / '2' / 'folder-train.array_record-00000-of-00002').read_bytes())
  with pytest.raises(DataError, match='its content has another checksum'):
    clip.frames[1].read_bytes()
  assert other.exists()


def test_a_newer_format_is_refused(tmp_path):
  prepare.prepare('davis2016', sets.write_davis(tmp_path / 'raw'), tmp_path / 'out')
  path = tmp_path / 'out' / 'clips.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'format': 2}))
  with pytest.raises(DataError, match='prepared by a newer version, format 2'):
    datasets.split(tmp_path / 'out', 'train')


def test_without_the_extra(tmp_path, monkeypatch):  # fault 8
  prepare.prepare('davis2016', sets.write_davis(tmp_path / 'raw'), tmp_path / 'out')
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  for call in (
    lambda: prepare.prepare('davis2016', tmp_path / 'raw', tmp_path / 'new'),
    lambda: datasets.read_clips(tmp_path / 'out', ['bear'], need_masks=True),
  ):
    with pytest.raises(UsageError, match=r"pip install 'adnet-jax\[tfds\]'"):
      call()
  assert datasets.read_clips(tmp_path / 'raw', ['bear'], need_masks=True)


def test_tensorflow_is_never_imported(tmp_path):
  raw = sets.write_fbms(tmp_path / 'raw' / 'ducks01').parent
  (tmp_path / 'packages' / 'tensorflow').mkdir(parents=True)
  (tmp_path / 'packages' / 'tensorflow' / '__init__.py').write_text('raise AssertionError("TensorFlow is imported")')
  script = (
    'import sys\n'
    'from adnet_jax.data import datasets, prepare\n'
    'assert "tensorflow_datasets" not in sys.modules and "jax" not in sys.modules\n'
    f'prepare.prepare("fbms59", {str(raw)!r}, {str(tmp_path / "out")!r})\n'
    f'clip, = datasets.read_clips({str(tmp_path / "out")!r}, ["ducks01"], need_masks=True)\n'
    'datasets.read_pair(clip.frames[0], clip.masks[0])\n'
    'assert "tensorflow" not in sys.modules and "jax" not in sys.modules\n'
  )
  run = subprocess.run(
    [sys.executable, '-c', script],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path / 'packages'), *sys.path])},
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 0, run.stderr


def test_disk_full(tmp_path, monkeypatch):
  raw = sets.write_davis(tmp_path / 'raw', clips=('a', 'b'))

  def full(*_):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', full)
    with pytest.raises(DataError, match=r'cannot be written .*No space left on device; what was written is kept'):
      prepare.prepare('davis2016', raw, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  assert prepare.prepare('davis2016', raw, tmp_path / 'out')['clips'] == 2


def test_many_threads_read_one_shard(tmp_path):
  from concurrent.futures import ThreadPoolExecutor

  raw = sets.write_davis(tmp_path / 'raw', clips=('bear',), frames=40)
  prepare.prepare('davis2016', raw, tmp_path / 'out')
  (clip,) = datasets.read_clips(tmp_path / 'out', ['bear'], need_masks=True)
  expected = {path.name: path.read_bytes() for path in (raw / 'JPEGImages' / '480p' / 'bear').iterdir()}
  started = time.perf_counter()
  with ThreadPoolExecutor(8) as pool:
    read = list(pool.map(lambda frame: (frame.name, frame.read_bytes()), clip.frames * 5))
  assert all(expected[name] == data for name, data in read)
  assert time.perf_counter() - started < 10


def test_the_script_is_the_command(tmp_path, monkeypatch, capsys):
  raw = sets.write_davis(tmp_path / 'raw')
  monkeypatch.setattr(sys, 'argv', ['prepare_dataset.py', 'davis2016', str(raw), '-o', str(tmp_path / 'out')])
  for code in (0, 2):  # the second time the output is there
    with pytest.raises(SystemExit) as stopped:
      runpy.run_path('tools/prepare_dataset.py', run_name='__main__')
    assert stopped.value.code == code
  printed = capsys.readouterr()
  assert '8 frames of 2 clips' in printed.out and 'already holds a prepared data set' in printed.err
