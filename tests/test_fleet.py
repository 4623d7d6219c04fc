"""Many clips: what is to do, faults of single clips, interruption and resumption, full disks, folders put in place."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import tiny

from adnet_jax import pipeline
from adnet_jax.clip_files import Outputs
from adnet_jax.errors import DataError, DeviceError, UsageError
from adnet_jax.fleet import job as jobs
from adnet_jax.fleet import run, worker
from adnet_jax.fleet.job import Job, is_complete
from adnet_jax.fleet.plan import make_plan
from adnet_jax.manifest import Clip

FRAMES = (32, 24)
PLAIN = Outputs(overlay=False)


def write_manifest(folder: Path, counts: dict[str, int], *more: dict[str, str]) -> Path:
  """A manifest of made clips, `counts` frames each, and further lines."""
  lines = []
  for seed, (name, count) in enumerate(counts.items()):
    tiny.write_frames(folder / 'clips' / name, tiny.frames(count, FRAMES, seed=seed))
    lines.append({'input': f'clips/{name}', 'name': name})
  path = folder / 'list.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in [*lines, *more]))
  return path


def files(folder: Path) -> dict[str, bytes]:
  """All files below a folder but hidden ones and times; of an overlay only that it is there.

  x264 encodes the same pictures to other bytes each time: with AVX-512, or with several threads at a limited rate.
  """
  found = {}
  for path in sorted(folder.rglob('*')):
    name = str(path.relative_to(folder))
    if path.is_file() and not name.startswith('.'):
      content = path.read_bytes()
      if path.name == 'summary.json':
        content = json.dumps({**json.loads(content), 'seconds': None, 'limited_by': None}).encode()
      found[name] = b'' if path.name == 'overlay.mp4' else content
  return found


def times(folder: Path) -> dict[str, int]:
  return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob('*.png')}


def failures(out: Path) -> list[dict]:
  path = out / 'failures.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


COMMAND = ('segment', 'list.jsonl', '-o', 'out', '--model', 'tiny', '--no-overlay', '--batch', '2')


# ------------------------------------------------------------------------------------------- the plain engine


def test_clips_get_the_files_of_the_plain_command(commands, tmp_path, capsys):
  write_manifest(tmp_path, {'a': 3, 'per cent %d ü': 2})
  assert commands(*COMMAND, '--every', 2) == 0
  assert '2 of 2 clips done: 3 frames in' in capsys.readouterr().out
  for name in ('a', 'per cent %d ü'):
    assert commands('segment', f'clips/{name}', '-o', f'alone/{name}', *COMMAND[4:], '--every', 2) == 0
  assert files(Path('out')) == files(Path('alone'))


def test_broken_clips_do_not_stop_the_others_and_are_done_when_they_are_mended(commands, tmp_path, capsys):
  Path('text.mp4').write_text('no video')
  write_manifest(
    tmp_path, {'a': 2, 'damaged': 4, 'b': 2},
    {'input': 'text.mp4', 'name': 'text'}, {'input': 'nowhere', 'name': 'nowhere'}, {'input': 'clips/a', 'name': 'c'},
    {'input': '.', 'name': 'inside'},
  )  # fmt: skip
  bad = Path('clips/damaged/00002.png')
  good = bad.read_bytes()
  bad.write_bytes(good[:60])
  tiny.write_frames(tmp_path, tiny.frames(1, FRAMES))
  assert commands(*COMMAND) == 3
  error = capsys.readouterr().err
  assert error.splitlines()[-1].startswith('error: 4 of 7 clips failed (')
  assert 'go on with --resume' in error and error.count('error: ') == 1 and 'warning: text: not a video' in error
  assert [(line['name'], line['line'], line['code']) for line in failures(Path('out'))] == [
    ('damaged', 2, 3), ('text', 4, 3), ('nowhere', 5, 3), ('inside', 7, 2),
  ]  # fmt: skip
  assert '00002.png' in failures(Path('out'))[0]['error'] and failures(Path('out'))[0]['attempts'] == 1
  assert sorted(path.name for path in Path('out').iterdir() if path.is_dir()) == ['.adnet', 'a', 'b', 'c', 'damaged']
  assert sorted(path.name for path in Path('out/damaged').rglob('*.png')) == ['00000.png', '00001.png']
  before = times(Path('out'))

  assert commands(*COMMAND) == 2
  assert '--overwrite or --resume' in capsys.readouterr().err
  bad.write_bytes(good)
  write_manifest(tmp_path, {'a': 2, 'damaged': 4, 'b': 2})
  assert commands(*COMMAND, '--resume') == 0
  assert '1 of 3 clips done, 2 were there: 4 frames' in capsys.readouterr().out
  assert before.items() <= times(Path('out')).items() and not Path('out/failures.jsonl').exists()
  assert is_complete(Path('out/damaged'), PLAIN)


def test_an_interrupted_run_goes_on_at_the_first_missing_mask(commands, tmp_path, monkeypatch, capsys):
  write_manifest(tmp_path, {'a': 2, 'b': 6, 'c': 2})
  segment, frames = pipeline.segment_clip, []

  def interrupted(*arguments, **options):
    def progress():
      frames.append(1)
      if len(frames) == 5:
        raise KeyboardInterrupt

    return segment(*arguments, **options, progress=progress)

  monkeypatch.setattr(pipeline, 'segment_clip', interrupted)
  assert commands(*COMMAND) == 130
  monkeypatch.setattr(pipeline, 'segment_clip', segment)
  before = times(Path('out'))
  assert 4 <= len(before) < 10 and not Path('out/c').exists()
  assert commands(*COMMAND, '--resume') == 0
  assert '2 of 3 clips done, 1 were there' in capsys.readouterr().out
  assert before.items() <= times(Path('out')).items()
  assert commands(*COMMAND[:3], 'whole', *COMMAND[4:]) == 0
  assert files(Path('out')) == files(Path('whole'))


def test_a_full_disk_stops_the_run(commands, tmp_path, monkeypatch, capsys):
  write_manifest(tmp_path, {'a': 2, 'b': 2, 'c': 2})
  segment = pipeline.segment_clip

  def full(segmenter, source, out, *arguments, **options):
    if out.name == 'b':
      raise DataError('cannot be written: No space left on device', out) from OSError(28, 'No space left on device')
    return segment(segmenter, source, out, *arguments, **options)

  monkeypatch.setattr(pipeline, 'segment_clip', full)
  assert commands(*COMMAND) == 3
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and error.startswith('error: b: cannot be written: No space')
  assert '2 of 3 clips are left' in error and not failures(Path('out'))
  monkeypatch.setattr(pipeline, 'segment_clip', segment)
  assert commands(*COMMAND, '--resume') == 0 and len(times(Path('out'))) == 6


def test_results_are_kept_where_the_input_is_gone(commands, tmp_path):
  write_manifest(tmp_path, {'a': 2})
  assert commands(*COMMAND) == 0
  before = times(Path('out'))
  shutil.rmtree('clips')
  assert commands(*COMMAND, '--overwrite') == 3
  assert times(Path('out')) == before and is_complete(Path('out/a'), PLAIN)


@pytest.mark.parametrize(
  ('arguments', 'code', 'text'),
  [
    ('clip --engine ray', 2, 'only a manifest'),
    ('list.jsonl clip', 2, 'give one manifest alone'),
    ('list.jsonl --workers 2', 2, 'add --engine ray'),
    ('list.jsonl --engine spark', 2, '--engine'),
    ('list.jsonl --engine ray', 2, "pip install 'adnet-jax[ray]'"),
    ('nowhere.jsonl', 3, 'cannot be read'),
    ('list.jsonl -o file/out', 3, 'cannot be written'),
    ('list.jsonl --model nobody', 4, 'unknown model'),
    ('list.jsonl --device tpu', 6, 'present are'),
  ],
)
def test_what_is_refused(commands, tmp_path, monkeypatch, capsys, arguments, code, text):
  monkeypatch.setitem(sys.modules, 'ray', None)
  write_manifest(tmp_path, {'a': 1})
  Path('file').touch()
  assert commands('segment', '--model', 'tiny', *arguments.split()) == code
  assert text in capsys.readouterr().err and not list(Path().rglob('masks'))
  assert code == 6 or not Path('adnet-output').exists()


# ---------------------------------------------------------------------------------- complete, and put in place


def write_results(folder: Path, frames: int = 2, masks: int | None = None, **summary) -> Path:
  tiny.write_frames(folder / 'masks', tiny.frames(frames if masks is None else masks, FRAMES))
  summary = {'model': 'tiny', 'protocol': 'paper', 'scales': [1.0], 'mirror': False, 'frames': frames, **summary}
  (folder / 'summary.json').write_text(json.dumps(summary))
  return folder


def make_job(out: Path, **outputs) -> Job:
  segmenter = {'protocol': 'paper', 'scales': (1.0,), 'mirror': False}
  return Job(out, dataclasses.replace(PLAIN, **outputs), segmenter, 'tiny')


def test_what_counts_as_complete(tmp_path):
  whole = write_results(tmp_path / 'whole')
  assert is_complete(whole, PLAIN)
  assert not is_complete(whole, Outputs()) and not is_complete(whole, Outputs(overlay=False, heatmaps=True))
  (whole / 'failure.json').touch()
  assert not is_complete(whole, PLAIN)
  assert not is_complete(write_results(tmp_path / 'short', 3, 2), PLAIN)
  assert is_complete(write_results(tmp_path / 'no PyAV', warnings=['no overlay: PyAV is not installed']), Outputs())
  (write_results(tmp_path / 'cut') / 'summary.json').write_text('{"frames": 2')
  assert not is_complete(tmp_path / 'cut', PLAIN) and not is_complete(tmp_path / 'nowhere', PLAIN)


def test_the_clip_at_which_a_run_was_killed_is_looked_at_again(tmp_path):
  clips = [Clip(name, name, k) for k, name in enumerate('abc')]
  for name in 'ab':
    write_results(tmp_path / name)
  assert make_plan(clips, make_job(tmp_path, resume=True)).todo == clips[2:]
  assert make_plan(clips, make_job(tmp_path, resume=True), 'b').todo == clips[1:]
  assert make_plan(clips, make_job(tmp_path, overwrite=True)).todo == clips
  with pytest.raises(UsageError, match='already holds results'):
    make_plan(clips, make_job(tmp_path))


def test_results_of_other_options_are_not_mixed_in(tmp_path):
  job, clips = make_job(tmp_path, resume=True), [Clip('a', 'a', 1)]
  write_results(tmp_path / 'a', mirror=True)
  with pytest.raises(UsageError, match=r'made with mirror True, this run has False .*--overwrite'):
    make_plan(clips, job)
  write_results(tmp_path / 'a', model='elsewhere/tiny.safetensors')
  assert make_plan(clips, job).kept == 1


def test_a_folder_is_put_in_place_once(tmp_path):
  job, final = make_job(tmp_path, resume=True), tmp_path / 'a'
  worker.put_in_place(write_results(tmp_path / 'first'), final, job)
  before = times(final)
  second = write_results(tmp_path / 'second', 5)
  worker.put_in_place(second, final, job)
  assert times(final) == before and is_complete(final, PLAIN)
  worker.put_in_place(second, final, make_job(tmp_path, overwrite=True))
  assert len(times(final)) == 5 and not second.exists() and sorted(tmp_path.iterdir()) == [final]


def test_incomplete_results_are_replaced_and_what_is_not_ours_stays(tmp_path):
  final = write_results(tmp_path / 'a', 3, 1)
  (final / 'failure.json').touch()
  (final / 'masks' / '.adnet-1-2.tmp').touch()
  (final / 'masks' / 'notes.txt').write_text('mine')
  worker.put_in_place(write_results(tmp_path / 'part'), final, make_job(tmp_path, resume=True))
  assert sorted(files(final)) == ['masks/00000.png', 'masks/00001.png', 'masks/notes.txt', 'summary.json']
  assert is_complete(final, PLAIN) and sorted(tmp_path.iterdir()) == [final]


def test_whose_fault_an_error_is():
  class JaxRuntimeError(RuntimeError):
    pass

  full = DataError('cannot be written')
  full.__cause__ = OSError(28, 'No space left on device')
  extra = UsageError('videos need PyAV')
  extra.__cause__ = ImportError('av')
  for error, scope, code in (
    (DataError('not a video'), 'clip', 3),
    (UsageError('no'), 'clip', 2),
    (full, 'run', 3),
    (extra, 'run', 2),
    (DeviceError('gone'), 'worker', 6),
    (JaxRuntimeError('RESOURCE_EXHAUSTED'), 'worker', 6),
    (MemoryError(), 'worker', 6),
    (ValueError('two\nlines'), 'clip', 1),
  ):
    fault = jobs.fault_of(error)
    assert (fault.scope, fault.code) == (scope, code) and '\n' not in fault.text and fault.text
    assert fault.as_error('; more').exit_code == code


def test_a_worker_that_does_not_see_the_output_folder_says_so(tmp_path):
  (fault, _) = worker.Worker(make_job(tmp_path), 'run-0').start()
  assert fault.code == 3 and 'one and the same on all machines' in fault.text


def test_one_run_at_a_time_in_a_folder(commands, tmp_path, capsys):
  write_manifest(tmp_path, {'a': 1})
  with run._held(make_job(Path('out').absolute())):
    assert commands(*COMMAND) == 2
  assert 'another run uses this work folder: process' in (error := capsys.readouterr().err) and '(out)' not in error
