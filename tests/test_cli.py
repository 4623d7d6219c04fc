"""The command `adnet` as a user meets it: options, several inputs, messages, signals, pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import tiny

import adnet_jax
from adnet_jax import cli, weights
from adnet_jax.masks import read_mask
from adnet_jax.segmenter import Segmenter

FRAMES = (150, 80)


@pytest.fixture
def clip(tmp_path) -> Path:
  return tiny.write_frames(tmp_path / 'clip', tiny.frames(6, FRAMES))


def masks_of(folder: Path) -> dict[str, np.ndarray]:
  return {path.stem: read_mask(path) for path in sorted((folder / 'masks').glob('*.png'))}


def shell(command: str, **options) -> subprocess.CompletedProcess:
  environment = {**os.environ, 'ADNET': f'{sys.executable} -m adnet_jax.cli', **options.pop('env', {})}
  return subprocess.run(
    ['bash', '-c', command], capture_output=True, text=True, env=environment, timeout=120, **options
  )


# ------------------------------------------------------------------------------------------------------ segment


@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    ('', {}),
    ('--protocol released --size 129x65', {'protocol': 'released', 'size': (129, 65)}),
    ('--scales .5,1 --mirror', {'scales': (0.5, 1.0), 'mirror': True}),
    ('--threshold .7 --batch 2 --device cpu', {'threshold': 0.7, 'batch': 2}),
  ],
)
def test_options_of_segment_reach_the_masks(commands, model, clip, options, expected):
  assert commands('segment', clip, '-o', 'out', '--model', 'tiny', '--no-overlay', *options.split()) == 0
  frames = tiny.frames(6, FRAMES)
  found = masks_of(Path('out'))
  np.testing.assert_array_equal(list(found.values()), list(Segmenter(model, **expected).segment(frames)))
  assert sorted(path.name for path in Path('out').iterdir()) == ['masks', 'summary.json']
  summary = json.loads(Path('out/summary.json').read_text())
  assert summary['protocol'] == expected.get('protocol', 'paper') and summary['mirror'] == expected.get('mirror', False)
  assert summary['scales'] == list(expected.get('scales', (1.0,))) and summary['model'] == 'tiny'


def test_choice_of_frames_anchor_and_heatmaps(commands, model, clip, capsys):
  command = ['segment', str(clip), '-o', 'out', '--model', 'tiny', '--heatmaps']
  assert commands(*command, '--start', 1, '--end', 6, '--every', 2, '--anchor', 4) == 0
  frames = tiny.frames(6, FRAMES)
  found = masks_of(Path('out'))
  assert list(found) == ['00001', '00003', '00005']
  np.testing.assert_array_equal(list(found.values()), list(Segmenter(model).segment(frames[1::2], anchor=frames[4])))
  assert sorted(path.stem for path in Path('out/heatmaps').iterdir()) == list(found)
  printed = capsys.readouterr().out
  assert (
    '3 masks in out/masks' in printed and 'network at 129x65' in printed and 'overlay in out/overlay.mp4' in printed
  )
  assert commands(*command, '--overwrite', '--anchor', 'first') == 0
  assert len(masks_of(Path('out'))) == 6


def test_existing_results(commands, clip, capsys):
  command = ['segment', clip, '--model', 'tiny', '-o', 'out', '--no-overlay']
  assert commands(*command) == 0
  before = {path: path.stat().st_mtime_ns for path in Path('out/masks').iterdir()}
  assert commands(*command) == 2
  assert 'error: output folder already holds results (out): add --overwrite or --resume' in capsys.readouterr().err
  Path('out/masks/00004.png').unlink()
  assert commands(*command, '--resume') == 0
  after = {path: path.stat().st_mtime_ns for path in Path('out/masks').iterdir()}
  assert {path.stem for path in before if before[path] != after[path]} == {'00004', '00005'}
  assert commands(*command, '--overwrite') == 0
  assert commands(*command, '--overwrite', '--resume') == 2


def test_several_inputs(commands, clip, tmp_path):
  other = tiny.write_frames(tmp_path / 'per cent %d ü', tiny.frames(2, FRAMES, seed=1))
  assert commands('segment', clip, other, '-o', 'out', '--model', 'tiny', '--no-overlay') == 0
  assert sorted(path.name for path in Path('out').iterdir()) == ['clip', 'per cent %d ü']
  assert len(masks_of(Path('out') / other.name)) == 2


def test_two_inputs_for_one_place(commands, clip, tmp_path, capsys):
  other = tiny.write_frames(tmp_path / 'elsewhere' / 'clip', tiny.frames(1))
  assert commands('segment', clip, other, '-o', 'out', '--model', 'tiny') == 2
  assert 'two inputs would be written to one folder' in capsys.readouterr().err and not Path('out').exists()


def test_names_with_a_leading_dash(commands, tmp_path, capsys):
  tiny.write_frames(tmp_path / '-clip', tiny.frames(2))
  assert commands('segment', '--model', 'tiny', '--no-overlay', '-o', 'out', '--', '-clip') == 0
  assert len(masks_of(Path('out'))) == 2
  assert commands('segment', '-clip') == 2
  assert 'goes after --' in capsys.readouterr().err


def test_a_video_and_a_pipe(commands, tmp_path, capsys):
  with av.open('v.mp4', 'w') as container:
    stream = container.add_stream('mpeg4', rate=25)
    stream.width, stream.height, stream.pix_fmt = 160, 80, 'yuv420p'
    for image in tiny.frames(5, (160, 80)):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, 'rgb24')))
    container.mux(stream.encode())
  assert commands('segment', 'v.mp4', '--model', 'tiny', '-o', 'out') == 0
  assert list(masks_of(Path('out'))) == [f'{k:05d}' for k in range(5)]
  Path('cut.mp4').write_bytes(Path('v.mp4').read_bytes()[:400])
  Path('empty.mp4').touch()
  Path('text.mp4').write_text('no video')
  for name in ('cut', 'empty', 'text'):
    assert commands('segment', f'{name}.mp4', '--model', 'tiny', '-o', name) == 3
    assert 'error: not a video: ' in (error := capsys.readouterr().err) and f'{name}.mp4' in error
    assert not Path(name).exists()


def test_without_pyav_the_extra_is_named(commands, monkeypatch, capsys):
  Path('v.mp4').write_bytes(b'anything')
  monkeypatch.setitem(sys.modules, 'av', None)
  assert commands('segment', 'v.mp4', '--model', 'tiny') == 2
  assert "pip install 'adnet-jax[video]'" in capsys.readouterr().err


def test_a_damaged_frame(commands, clip, capsys):
  (clip / '00003.png').write_bytes(b'damaged')
  assert commands('segment', clip, '--model', 'tiny', '-o', 'out') == 3
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and '00003.png' in error and '--skip-bad' in error
  assert len(masks_of(Path('out'))) == 3 and Path('out/overlay.mp4').exists()
  assert commands('segment', clip, '--model', 'tiny', '-o', 'out', '--resume', '--skip-bad') == 0
  assert list(masks_of(Path('out'))) == ['00000', '00001', '00002', '00004', '00005']
  assert 'warning: clip: 1 frame(s) could not be read' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('arguments', 'code', 'text'),
  [
    ('nowhere', 3, 'no such file or folder'),
    ('empty', 3, 'the folder is empty'),
    ('clip --model nobody', 4, "unknown model 'nobody': known models: "),
    ('clip --model nobody.safetensors', 4, 'model file not found'),
    ('clip -o clip/out', 2, 'masks would be read as frames'),
    ('clip -o clip', 2, 'masks would be read as frames'),
    ('clip --device tpu', 6, 'present are'),
    ('clip --protocol released --threshold .3', 2, '--protocol, --threshold'),
    ('clip --start 6', 3, 'no frame from 6 on'),
    ('clip --anchor 17', 3, 'no frame 17, the clip has 6'),
    ('clip -o file/out', 3, 'cannot be written'),
  ],
)
def test_faults_before_anything_is_written(commands, clip, capsys, arguments, code, text):
  Path('empty').mkdir()
  Path('file').touch()
  before = sorted(Path().rglob('*'))
  given = arguments.split()
  assert commands('segment', *given, *(() if '--model' in given else ('--model', 'tiny'))) == code
  error = capsys.readouterr().err
  assert text in error and error.startswith('error: ') and error.count('\n') == 1
  assert [path for path in Path().rglob('*') if '.cache' not in path.parts] == before or sorted(
    path for path in Path().rglob('*') if '.cache' not in path.parts
  ) == before


@pytest.mark.parametrize(
  ('arguments', 'usage', 'text'),
  [
    ('', 'adnet [-h]', 'COMMAND'),
    ('segmnt', 'adnet [-h]', 'segmnt'),
    ('segment --modell x', 'adnet segment', 'unknown argument --modell, did you mean --model?'),
    ('segment --batch 0', 'adnet segment', '--batch: 0 is not a whole number from 1'),
    ('segment --size 5x5', 'adnet segment', '--size'),
    ('segment --scales 0', 'adnet segment', '--scales'),
    ('segment --threshold 2', 'adnet segment', '--threshold'),
    ('segment --anchor last', 'adnet segment', '--anchor'),
    ('segment --start x', 'adnet segment', '--start'),
    ('segment --protocol mine', 'adnet segment', '--protocol'),
    ('score masks', 'adnet score', '--truth'),
    ('info a b', 'adnet info', 'unknown argument b'),
  ],
)
def test_wrong_arguments_show_the_usage_of_that_command(capsys, arguments, usage, text):
  assert cli.main(arguments.split()) == 2
  error = capsys.readouterr().err
  assert error.startswith(f'usage: {usage}') and text in error.splitlines()[-1]
  assert error.splitlines()[-1].startswith('error: ')


def test_debug_adds_the_traceback(commands, capsys):
  assert commands('segment', 'nowhere', '--model', 'tiny', '--debug') == 3
  error = capsys.readouterr().err
  assert 'Traceback' in error and error.splitlines()[-1].startswith('error: no such file')


# ----------------------------------------------------------------------------------------------- other commands


def test_a_bare_segment_scores_the_bundled_clip(commands, monkeypatch, tiny_model, capsys):
  monkeypatch.setattr(weights, 'known_models', lambda: {adnet_jax.DEFAULT_MODEL: tiny_model})
  assert commands('segment', '--every', 8, '--no-overlay') == 0
  printed = capsys.readouterr().out
  assert 'astronaut: 5 masks in adnet-output/masks' in printed
  assert 'bundled clip against its true masks (rule davis2016): J 0.' in printed and ', F 0.' in printed


def test_the_bundled_model_finds_the_astronaut(tmp_path, monkeypatch, capsys):
  if adnet_jax.DEFAULT_MODEL not in weights.known_models():
    pytest.skip('no bundled model yet')
  monkeypatch.chdir(tmp_path)
  assert cli.main(['segment', '--no-overlay', '--every', '8', '--no-cache']) == 0
  j = float(capsys.readouterr().out.split(': J ')[1].split(',')[0])
  assert j > 0.8


def test_score(commands, tmp_path, capsys):
  frames = [np.zeros((20, 30, 3), np.uint8) for _ in range(4)]
  for image in frames:
    cv2.rectangle(image, (5, 5), (15, 15), (255, 255, 255), -1)
  tiny.write_frames(tmp_path / 'masks' / 'a', frames)
  tiny.write_frames(tmp_path / 'truth' / 'a', frames)
  command = ['score', 'masks', '--truth', 'truth', '--rule', 'davis2016', '--jobs', 1, '-o', 'scores.json']
  assert commands(*command) == 0
  assert 'rule davis2016, protocol unknown' in capsys.readouterr().out
  scores = json.loads(Path('scores.json').read_text())
  assert scores['dataset']['J']['mean'] == 1 and scores['clips']['a']['frames'] == ['00001', '00002']
  assert commands(*command) == 2 and commands(*command, '--overwrite', '--metrics', 'J') == 0
  assert 'F' not in json.loads(Path('scores.json').read_text())['dataset']
  (tmp_path / 'masks' / 'a' / '00001.png').unlink()
  assert commands(*command, '--overwrite') == 3
  assert commands(*command, '--overwrite', '--allow-missing') == 0
  assert commands(*command[:-2], '--rule', 'mine') == 2


def test_info_and_doctor(commands, tiny_model, capsys):
  assert commands('info', 'tiny') == 0
  assert tiny.TERMS in (text := capsys.readouterr().out) and 'resnet10' in text and '129x65' in text
  assert commands('info') == 0
  assert str(tiny_model) in (text := capsys.readouterr().out) and 'looked in: ' in text
  assert commands('doctor') == 0
  assert 'devices: ' in capsys.readouterr().out
  assert commands('info', 'nobody') == 4


def test_help_and_version_are_quick_and_without_jax():
  script = (
    'import sys, time; start = time.process_time()\n'
    'from adnet_jax import cli\n'
    'codes = [cli.main([a]) for a in ("--help", "--version")] + [cli.main(["segment", "--help"])]\n'
    'assert codes == [0, 0, 0] and "jax" not in sys.modules and "numpy" not in sys.modules\n'
    'assert time.process_time() - start < .4'
  )
  run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=False)
  assert run.returncode == 0, run.stderr
  assert adnet_jax.__version__ in run.stdout and '--protocol' in run.stdout


def test_closed_pipes_end_quietly(tiny_model):
  run = shell(
    'set -o pipefail; $ADNET info tiny | head -1; $ADNET --help | head -1; $ADNET info 2>&1 | true',
    env={'ADNET_MODELS': str(tiny_model.parent)},
  )
  assert run.returncode == 0 and not run.stderr
  assert run.stdout.splitlines() == ['model       tiny', 'usage: adnet [-h] [--version] COMMAND ...']


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
import numpy as np
from adnet_jax import cli, segmenter, session

class Slow:
  protocol, scales, mirror = 'paper', (1.0,), False

  def base_size(self, frame):
    return 9, 9

  def anchored_results(self, pairs, **_):
    for frame, _anchor in pairs:
      time.sleep(.02)
      yield session.Result(np.ones(frame.shape[:2], bool))

segmenter.Segmenter.from_pretrained = lambda *_, **__: Slow()
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(('number', 'code', 'word'), [(signal.SIGINT, 130, 'Ctrl-C'), (signal.SIGTERM, 75, 'SIGTERM')])
def test_signals_leave_whole_files(tiny_model, tmp_path, number, code, word):
  clip, out = tiny.write_frames(tmp_path / 'clip', tiny.frames(3) * 500), tmp_path / 'out'
  command = [sys.executable, '-c', SLOW, 'segment', str(clip), '-o', str(out), '--model', str(tiny_model), '--no-cache']
  with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
    deadline = time.monotonic() + 100
    while not (out / 'masks' / '00004.png').exists():
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.02)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
  assert process.returncode == code
  assert error.count('\n') == 1 and word in error and '--resume' in error
  found = sorted((out / 'masks').iterdir())
  assert 5 <= len(found) < 1500 and [path.name for path in found] == [f'{k:05d}.png' for k in range(len(found))]
  assert all(read_mask(path).all() for path in found)
  with av.open(str(out / 'overlay.mp4')) as container:
    assert sum(1 for _ in container.decode(video=0)) == len(found)
