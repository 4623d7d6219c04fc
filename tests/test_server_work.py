"""What a job makes of a video with a real, tiny network: its files, another anchor, similarity; and `adnet serve`."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tiny
from PIL import Image

pytest.importorskip('uvicorn')
pytest.importorskip('starlette')
pytest.importorskip('python_multipart')
server_kit = pytest.importorskip('server_kit')

from adnet_jax import images, masks, pipeline, similarity, video  # noqa: E402
from adnet_jax.errors import DataError, UsageError  # noqa: E402
from adnet_jax.segmenter import Segmenter  # noqa: E402
from adnet_jax.server import jobs, maps, run, uploads, work  # noqa: E402
from adnet_jax.server.refused import Refused  # noqa: E402

LIMITS = uploads.Limits(reserve=0)
SIZE = (96, 48)  # of the tiny model's aspect: one program for all


@pytest.fixture(scope='module')
def segmenter(model):
  return Segmenter(model)


@pytest.fixture
def make_run(tmp_path):
  """A run for a video, as the queue makes it."""

  def make(path, anchor=0, number=1, also=()):
    folder = tmp_path / 'job'
    folder.mkdir(exist_ok=True)
    (folder / 'upload').write_bytes(path.read_bytes())
    clip, _ = uploads.check(folder / 'upload', LIMITS)
    return jobs.Run(folder, number, anchor, clip, also=also)

  return make


def test_a_job_writes_what_the_command_writes(make_run, segmenter, tmp_path):
  path = server_kit.write_video(tmp_path / 'clip.mp4', 6, SIZE)
  also = work.check_forms('cutouts, svg,heatmaps,cutouts')
  assert also == ('cutouts', 'svg', 'heatmaps')
  work.segment(job := make_run(path, anchor=2, also=also), segmenter, LIMITS, 'tiny')
  assert (job.done, job.read, job.clip.frames) == (6, 6, 6)
  pipeline.segment_clip(segmenter, video.open_source(path), tmp_path / 'out', pipeline.Outputs(), anchor=2)
  names = [f'{k:05d}.png' for k in range(6)]
  with zipfile.ZipFile(job.folder / 'masks.zip') as archive:
    assert archive.namelist() == [f'masks/{name}' for name in names] and archive.testzip() is None
  foreground = 0
  for name in names:
    found = masks.read_mask(job.folder / 'masks' / name)
    assert np.array_equal(found, masks.read_mask(tmp_path / 'out' / 'masks' / name))
    foreground += found.sum()
  assert 0 < foreground < 6 * 96 * 48
  assert (job.folder / 'overlay.mp4').stat().st_size > 500
  assert json.loads((job.folder / 'summary.json').read_text())['anchor'] == 2
  for part in ('cutouts', 'heatmaps', 'outlines'):
    with zipfile.ZipFile(job.folder / f'{part}.zip') as archive:
      assert len(archive.namelist()) == 6
    assert not (job.folder / part).exists()
  assert not list(job.folder.rglob('*.tmp'))
  for k, frame in enumerate(video.open_source(path)):
    small = images.read_image(jobs.preview_path(job.previews, k))
    assert np.abs(small.astype(int) - frame.image).mean() < 8


def test_forms_are_known_by_name_and_are_no_files(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert work.check_forms('') == work.check_forms(' , ') == ()
  for text in ('exe', 'webm,/etc/passwd', 'background=x.png', '../masks'):
    with pytest.raises(Refused, match='knows no') as error:
      work.check_forms(text)
    assert error.value.status == 422
  monkeypatch.setattr(work.forms, 'make_forms', raise_usage_error)
  with pytest.raises(Refused, match=r'Needs an extra\.'):
    work.check_forms('webm')


def raise_usage_error(*_):
  raise UsageError('needs an extra')


def test_large_frames_and_masks_are_shown_small(tmp_path):
  work.write_preview(tmp_path / 'previews', 3, np.full((1080, 1920, 3), 90, np.uint8))
  assert images.read_image(tmp_path / 'previews' / '00003.jpg').shape == (432, 768, 3)
  mask = np.zeros((1080, 1920), bool)
  mask[:540] = True
  video.write_mask(tmp_path / 'mask.png', mask)
  content = work.encode_mask(tmp_path / 'mask.png')
  shown = np.array(Image.open(io.BytesIO(content)).convert('RGBA'))
  assert shown.shape == (432, 768, 4) and len(content) < 2000
  assert (shown[:216] == 255).all() and not shown[216:, :, 3].any()
  assert work.preview_size(4000, 1) == (768, 1) and work.preview_size(64, 48) == (64, 48)


def test_a_video_that_breaks_off_gives_the_masks_before_it(make_run, segmenter, tmp_path):
  whole = server_kit.write_video(tmp_path / 'clip.mkv', 30, SIZE).read_bytes()
  (tmp_path / 'cut.mkv').write_bytes(whole[: len(whole) * 2 // 3])
  job = make_run(tmp_path / 'cut.mkv')
  with pytest.raises(DataError, match='breaks off'):
    work.segment(job, segmenter, LIMITS)
  assert 1 < job.done < 30 and job.clip.frames == job.done
  with zipfile.ZipFile(job.folder / 'masks.zip') as archive:
    assert len(archive.namelist()) == job.done


@pytest.mark.parametrize('limits', [uploads.Limits(frames=3), uploads.Limits(total=3 * 96 * 48)])
def test_a_video_longer_than_it_says_ends_at_the_limit(make_run, segmenter, tmp_path, limits):
  job = make_run(server_kit.write_video(tmp_path / 'clip.mp4', 6, SIZE))
  with pytest.raises(DataError, match='only its first 3 frames'):
    work.segment(job, segmenter, limits)
  assert job.done == job.read == 3


def test_a_run_that_is_stopped_ends_at_the_next_frame(make_run, segmenter, tmp_path):
  job = make_run(server_kit.write_video(tmp_path / 'clip.mp4', 6, SIZE))
  job.stop()
  with pytest.raises(jobs.Stopped):
    work.segment(job, segmenter, LIMITS)
  assert not list(job.folder.rglob('*.zip'))


def test_a_full_disk_in_the_middle_is_told_as_such(make_run, segmenter, tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(work.zipfile, 'ZipFile', full)
  with pytest.raises(DataError) as error:
    work.segment(make_run(server_kit.write_video(tmp_path / 'clip.mp4', 2, SIZE)), segmenter, LIMITS)
  assert jobs.is_full(error.value) and 'disk' in jobs._sentence(error.value)


def test_time_left_follows_the_pace_after_the_first_masks(make_run, tmp_path, monkeypatch):
  job = make_run(server_kit.write_video(tmp_path / 'clip.mp4', 10))
  now = [100.0]
  monkeypatch.setattr(jobs.time, 'monotonic', lambda: now[0])
  job.advance(0)
  assert job.seconds_left is None
  now[0] = 160  # a minute of compiling
  job.advance(2)
  assert job.seconds_left is None
  now[0] = 164
  job.advance(4)
  assert job.seconds_left == pytest.approx(2 * 6)


# Similarity ----------------------------------------------------------------------------------------------------------


def test_maps_are_the_networks_own_scaled_products(segmenter, tmp_path):
  paths = []
  for k, image in enumerate(tiny.frames(2, (96, 48))):
    paths.append(tmp_path / f'{k}.png')
    cv2.imwrite(str(paths[-1]), image[..., ::-1])
  asked = maps.Maps(segmenter)
  assert asked.possible
  found = asked.product(paths[0], paths[1], (1.0, 0.5), (960, 480))
  base = segmenter.base_size(np.zeros((480, 960, 3), np.uint8))
  one, other = (
    np.asarray(segmenter.model.embed(cv2.resize(images.read_image(path), base)[None])[0], np.float32) for path in paths
  )
  h, w, _ = one.shape
  expected = similarity.scaled_product(one[round((h - 1) / 2), w - 1][None], other)[0]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  back = asked.product(paths[1], paths[0], (0.0, 0.0), (960, 480))
  np.testing.assert_allclose(back, similarity.scaled_product(other[0, 0][None], one)[0], rtol=1e-5, atol=1e-5)
  assert len(asked._embeddings) == 2


def test_maps_are_stretched_corner_to_corner_and_coloured_by_value():
  values = np.float32([[0, 1, 2], [3, 4, 5]])
  large = maps.stretched(values, (201, 101))
  assert large.shape == (101, 201)
  for (y, x), value in {(0, 0): 0, (0, 200): 2, (100, 0): 3, (100, 200): 5, (0, 100): 1}.items():
    assert large[y, x] == pytest.approx(value, abs=1e-4)
  assert maps.as_shares(values).min() == 0 and maps.as_shares(values).max() == 1
  assert not maps.as_shares(np.full((2, 2), 7, np.float32)).any()
  content = maps.encode_map(np.linspace(0, 1, 256, dtype=np.float32)[None])
  picture = np.array(Image.open(io.BytesIO(content)).convert('RGBA'))
  light = picture[0, :, :3].astype(float) @ [0.2126, 0.7152, 0.0722]
  assert (np.diff(light) > -2).all() and light[-1] > 240 and (np.diff(picture[0, :, 3].astype(int)) >= 0).all()


def test_a_model_without_comparison_says_so(tmp_path):
  architecture = SimpleNamespace(metadata=SimpleNamespace(architecture=tiny.architecture('baseline')))
  similar = maps.Maps(SimpleNamespace(model=architecture))
  with server_kit.serving(tmp_path / 'jobs', server_kit.FakeWork(), similar=similar) as client:
    assert client.get('/api/about').json['similarity'] is False
    job_id = client.upload(server_kit.write_video(tmp_path / 'clip.mp4', 2)).json['id']
    client.wait(job_id, 'done')
    assert client.get(f'/api/jobs/{job_id}/similarity?frame=0&x=0&y=0').status == 409


# The command ---------------------------------------------------------------------------------------------------------


def test_folders_of_servers_that_were_killed_are_removed_and_others_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(run.tempfile, 'gettempdir', lambda: str(tmp_path))
  monkeypatch.setattr(run.tempfile, 'tempdir', str(tmp_path))
  killed = tmp_path / f'{run.PREFIX}killed'
  (killed / 'jobs').mkdir(parents=True)
  link = tmp_path / f'{run.PREFIX}link'
  (tmp_path / 'theirs').mkdir()
  link.symlink_to(tmp_path / 'theirs')
  with run._folder() as first:
    assert not killed.exists() and first.is_dir() and (first.stat().st_mode & 0o077 or True)
    assert first.parent.stat().st_mode & 0o077 == 0
    with run._folder() as second:
      assert first.is_dir() and second.is_dir() and first != second
    assert not second.exists()
  assert not first.exists() and (tmp_path / 'theirs').is_dir()


def test_an_address_in_use_or_of_nobody_is_refused(commands, capsys):
  import socket

  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    assert commands('serve', '--port', port) == 2
  assert f'127.0.0.1:{port}' in (text := capsys.readouterr().err) and 'another --host or --port' in text
  with pytest.raises(UsageError):
    run._listen('no.such.host.invalid', 0)
  with pytest.raises(UsageError):
    run._listen('127.0.0.1', 99_999)
  assert commands('serve', '--model', 'nobody') == 4
  assert commands('serve', '--token', '') == 2


def test_without_the_extra_it_is_named(commands, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'uvicorn', None)
  assert commands('serve') == 2
  assert "pip install 'adnet-jax[serve]'" in capsys.readouterr().err


def test_the_command_serves_until_sigterm_and_leaves_nothing(tiny_model, tmp_path):
  video_path = server_kit.write_video(tmp_path / 'clip.mp4', 400, SIZE)
  (tmp_path / 'temporary').mkdir()
  environment = {**os.environ, 'TMPDIR': str(tmp_path / 'temporary'), 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
  environment |= {'PYTHONPATH': str(Path(work.__file__).parents[2]), 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-m', 'adnet_jax.cli', 'serve', '--port', '0', '--model', str(tiny_model)]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
  try:
    line = process.stdout.readline()
    client = server_kit.Client(int(re.fullmatch(r'page: http://127\.0\.0\.1:(\d+)/ .*\n', line)[1]))
    job_id = client.upload(video_path).json['id']
    server_kit.until(lambda: client.job(job_id)['done'] > 0, 180, lambda: client.job(job_id))
    with client.events(job_id) as events:
      next(events)
      process.send_signal(signal.SIGTERM)
      assert process.wait(30) == 75
  finally:
    process.kill()
    _, errors = process.communicate()
  assert 'removed' in errors and 'Traceback' not in errors and 'resume' not in errors
  assert list((tmp_path / 'temporary').glob(f'{run.PREFIX}*')) == []
