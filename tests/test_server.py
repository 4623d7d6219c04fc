"""The web page's requests, one by one and as a user makes them, against a real server with a worker without network."""

from __future__ import annotations

import base64
import errno
import io
import json
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('uvicorn')
pytest.importorskip('starlette')
pytest.importorskip('python_multipart')
server_kit = pytest.importorskip('server_kit')

from adnet_jax.errors import DataError  # noqa: E402
from adnet_jax.server import jobs, uploads  # noqa: E402


@pytest.fixture(scope='module')
def video(tmp_path_factory):
  return server_kit.write_video(tmp_path_factory.mktemp('video') / 'clip.mp4')


@pytest.fixture
def fake():
  return server_kit.FakeWork()


@pytest.fixture
def client(tmp_path, fake):
  with server_kit.serving(tmp_path / 'jobs', fake) as client:
    yield client
    fake.gate.set()


def files_in(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def test_a_video_goes_in_and_files_come_out(client, video, tmp_path):
  created = client.upload(video, 'my dog.mp4')
  assert created.status == 201
  job_id = created.json['id']
  assert created.headers['location'] == f'/api/jobs/{job_id}'
  job = client.wait(job_id, 'done')
  assert (job['name'], job['done'], job['width'], job['height']) == ('my dog.mp4', 4, 64, 48)
  assert job['place'] is None and job['error'] is None and job['rate'] == 12
  assert [file['name'] for file in job['files']] == ['summary.json']
  answer = client.get(f'/api/jobs/{job_id}/files/summary.json')
  assert answer.status == 200 and answer.body == b'{}'
  assert answer.headers['content-disposition'] == 'attachment; filename="summary.json"'
  mask = np.array(Image.open(io.BytesIO(client.get(f'/api/jobs/{job_id}/files/masks/2.png').body)).convert('RGBA'))
  assert mask.shape == (48, 64, 4) and (mask[2] == 255).all() and not mask[3:, :, 3].any()
  frame = Image.open(io.BytesIO(client.get(f'/api/jobs/{job_id}/files/frames/2.jpg').body))
  assert frame.size == (64, 48)
  assert client.ask('DELETE', f'/api/jobs/{job_id}').status == 204
  assert client.job(job_id)['state'] == 'cancelled' and files_in(tmp_path / 'jobs') == []
  assert client.get(f'/api/jobs/{job_id}/files/summary.json').status == 404


def test_further_forms_are_asked_for_with_the_video(client, video):
  line = f'--{server_kit.BOUNDARY}\r\nContent-Disposition: form-data; name="also"\r\n\r\n'
  kind = f'multipart/form-data; boundary={server_kit.BOUNDARY}'
  file = server_kit.form(video.read_bytes())
  for also, status in (('webm,cutouts', 201), ('', 201), ('nonsense', 422), ('x' * 1000, 422)):
    answer = client.ask('POST', '/api/jobs', (line + also + '\r\n').encode() + file, Content_Type=kind)
    assert answer.status == status
    assert status == 422 or answer.json['also'] == [name for name in also.split(',') if name]


def test_events_tell_of_every_mask_and_end_with_the_job(client, fake, video):
  fake.gate.clear()
  job_id = client.upload(video).json['id']
  with client.events(job_id) as events:
    seen, masks = [], {}
    for name, data in events:
      if name == 'mask':
        masks[data['index']] = base64.b64decode(data['png'])
        assert data['run'] == 1
      else:
        seen.append(data['state'])
        if data['state'] == 'running':
          fake.gate.set()
        if data['state'] == 'done':
          break
    assert seen[-1] == 'done' and 'running' in seen
    # The first may have been there before anybody listened; it can be fetched.
    assert {1, 2, 3} <= set(masks)
    assert np.array(Image.open(io.BytesIO(masks[3])).convert('RGBA'))[3].all()
    client.ask('DELETE', f'/api/jobs/{job_id}')
    assert [data['state'] for name, data in events if name == 'job'] == ['cancelled']


def test_another_anchor_runs_the_same_upload_again(client, fake, video, tmp_path):
  job_id = client.upload(video).json['id']
  first = client.wait(job_id, 'done')
  assert (first['run'], first['anchor']) == (1, 0)
  path = f'/api/jobs/{job_id}/anchor'
  again = client.ask('POST', path, json.dumps({'frame': 2}), Content_Type='application/json')
  assert again.status == 202 and (again.json['run'], again.json['anchor'], again.json['read']) == (2, 2, 4)
  job = client.wait(job_id, 'done')
  assert (job['run'], job['anchor'], job['done']) == (2, 2, 4)
  assert fake.began[0] == fake.began[1] == video.read_bytes()
  assert not (tmp_path / 'jobs' / job_id / 'run-1').exists()
  for body, kind, status in (
    (b'{"frame": 9}', 'application/json', 422),
    (b'{"frame": -1}', 'application/json', 422),
    (b'{"frame": true}', 'application/json', 422),
    (b'{"frame": "../x"}', 'application/json', 422),
    (b'[]', 'application/json', 422),
    (b'nonsense', 'application/json', 422),
    (b'{"frame": 1}', 'text/plain', 415),
    (b' ' * 2000, 'application/json', 413),
  ):
    answer = client.ask('POST', path, body, Content_Type=kind)
    assert answer.status == status and answer.json['error'], body
  assert client.job(job_id)['run'] == 2


def test_another_anchor_while_a_run_goes_on_replaces_it(client, fake, video, tmp_path):
  fake.gate.clear()
  job_id = client.upload(video).json['id']
  server_kit.until(lambda: client.job(job_id)['done'] == 1)
  body = json.dumps({'frame': 0})
  client.ask('POST', f'/api/jobs/{job_id}/anchor', body, Content_Type='application/json')
  server_kit.until(lambda: len(fake.began) == 2)
  fake.gate.set()
  assert client.wait(job_id, 'done')['run'] == 2
  assert {name.split('/')[1] for name in files_in(tmp_path / 'jobs')} == {'upload', 'previews', 'run-2'}


def test_similarity_of_both_ways_as_picture_and_numbers(client, video):
  job_id = client.upload(video).json['id']
  client.wait(job_id, 'done')
  path = f'/api/jobs/{job_id}/similarity?frame=1&x=63&y=0'
  answer = client.get(path)
  assert answer.status == 200 and answer.headers['similarity-peak'] == '63,0'
  picture = np.array(Image.open(io.BytesIO(answer.body)).convert('RGBA'))
  assert picture.shape == (48, 64, 4)
  assert picture[0, 63, 3] > picture[0, 0, 3] and picture[0, 63, :3].sum() > picture[47, 0, :3].sum()
  numbers = client.get(f'{path}&of=anchor&format=json').json
  assert (numbers['of'], numbers['width'], numbers['height'], numbers['peak']) == ('anchor', 5, 3, [63, 0])
  assert numbers['values'][0] == [0, 0, 0, 0, 1]
  for query, status in (
    ('frame=1&x=64&y=0', 422), ('frame=1&x=0&y=48', 422), ('frame=1&x=-1&y=0', 422), ('frame=1&x=0', 422),
    ('frame=9&x=0&y=0', 404), ('frame=1&x=0&y=0&of=both', 422), ('frame=1&x=0&y=0&format=exe', 422),
  ):  # fmt: skip
    answer = client.get(f'/api/jobs/{job_id}/similarity?{query}')
    assert answer.status == status and answer.json['error'], query


def test_what_is_not_there_is_404(client, video):
  job_id = client.upload(video).json['id']
  client.wait(job_id, 'done')
  for path in (
    '/nothing', '/api/jobs/nobody', '/api/jobs/nobody/events', f'/api/jobs/{job_id}/files/other.zip',
    f'/api/jobs/{job_id}/files/..%2f..%2fupload', f'/api/jobs/{job_id}/files/../upload', '/static/../app.py',
    f'/api/jobs/{job_id}/files/masks/99.png', f'/api/jobs/{job_id}/files/%2fetc%2fpasswd', '/static/%2e%2e/app.py',
    f'/api/jobs/{job_id}/files/', f'/api/jobs/{job_id}/files/.adnet-1.tmp', '/api/jobs/..%2f..',
  ):  # fmt: skip
    answer = client.get(path)
    assert answer.status == 404 and answer.json['error'], path
  assert client.ask('POST', '/api/about').status == 405


def test_results_are_offered_whole_or_not_at_all(client, fake, video, tmp_path):
  fake.gate.clear()
  job_id = client.upload(video).json['id']
  server_kit.until(lambda: client.job(job_id)['done'] == 1)
  (tmp_path / 'jobs' / job_id / 'run-1' / 'masks.zip').write_bytes(b'half')
  assert client.job(job_id)['files'] == []
  assert client.get(f'/api/jobs/{job_id}/files/masks.zip').status == 404
  assert client.get(f'/api/jobs/{job_id}/files/masks/1.png').status == 404


# Faults 72 and 73 ----------------------------------------------------------------------------------------------------


def test_ten_users_wait_in_line_and_get_their_own_results(tmp_path, fake):
  fake.gate.clear()
  clips = [server_kit.write_video(tmp_path / f'{k}.mp4', 2, seed=k) for k in range(10)]
  answers: dict[int, str] = {}
  with server_kit.serving(tmp_path / 'jobs', fake) as client:

    def send(k: int) -> None:
      answers[k] = client.upload(clips[k], f'{k}.mp4').json['id']

    threads = [threading.Thread(target=send, args=(k,)) for k in range(10)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    server_kit.until(lambda: fake.began != [])
    descriptions = {k: client.job(job_id) for k, job_id in answers.items()}
    assert len(set(answers.values())) == 10
    assert sorted(one['place'] for one in descriptions.values() if one['place']) == list(range(1, 10))
    order = sorted(descriptions, key=lambda k: descriptions[k]['place'] or 0)
    client.ask('DELETE', f'/api/jobs/{answers[order[1]]}')
    assert client.job(answers[order[2]])['place'] == 1
    fake.gate.set()
    for k in order[:1] + order[2:]:
      assert client.wait(answers[k], 'done')['name'] == f'{k}.mp4'
    assert fake.began == [clips[k].read_bytes() for k in order[:1] + order[2:]]


def test_the_queue_has_an_end(tmp_path, fake, video):
  fake.gate.clear()
  with server_kit.serving(tmp_path / 'jobs', fake, most=2) as client:
    assert [client.upload(video).status for _ in range(3)] == [201, 201, 503]
    assert len(list((tmp_path / 'jobs').iterdir())) == 2
    fake.gate.set()


def test_a_closed_browser_cancels_after_the_grace_time(tmp_path, video):
  fake = server_kit.FakeWork(held=True)
  times = jobs.Times(grace=0.5, kept=0.5, remembered=0.5)
  with server_kit.serving(tmp_path / 'jobs', fake, times=times) as client:
    watched, closed = (client.upload(video).json['id'] for _ in range(2))
    with client.events(watched) as events:
      with client.events(closed) as others:
        next(others)
      server_kit.until(lambda: not (tmp_path / 'jobs' / closed).exists())
      # Whoever looks at its events all the time keeps a job alive without a further request.
      assert (tmp_path / 'jobs' / watched / 'upload').exists()
      next(events)
    server_kit.until(lambda: not (tmp_path / 'jobs' / watched).exists())
    server_kit.until(lambda: client.get(f'/api/jobs/{watched}').status == 404)


def test_results_are_kept_for_a_while_and_not_for_ever(tmp_path, fake, video):
  times = jobs.Times(grace=0.3, kept=1.5)
  with server_kit.serving(tmp_path / 'jobs', fake, times=times) as client:
    job_id = client.upload(video).json['id']
    client.wait(job_id, 'done')
    folder = tmp_path / 'jobs' / job_id
    threading.Event().wait(0.8)
    assert folder.exists()
    server_kit.until(lambda: not folder.exists())
    assert client.get(f'/api/jobs/{job_id}').status == 404


# Faults 76 and 78 ----------------------------------------------------------------------------------------------------


def test_the_server_stops_in_the_middle_of_a_job_and_leaves_nothing(tmp_path, video):
  fake = server_kit.FakeWork(held=True)
  with server_kit.serving(tmp_path / 'jobs', fake) as client:
    job_id = client.upload(video).json['id']
    server_kit.until(lambda: client.job(job_id)['done'] == 1)
    with client.events(job_id) as events:
      next(events)
    # An open stream does not keep the server from ending; `serving` looks that it ends and what it leaves.
    client.events(job_id).__enter__()


def test_no_upload_where_the_disk_is_full(client, video, tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  with monkeypatch.context() as patch:
    patch.setattr(uploads.shutil, 'disk_usage', lambda _: usage)
    answer = client.upload(video)
  assert answer.status == 507 and 'disk' in answer.json['error'] and files_in(tmp_path / 'jobs') == []


def test_a_disk_that_fills_up_while_a_file_comes_in(client, video, tmp_path, monkeypatch):
  def full(self, chunk):
    raise OSError(errno.ENOSPC, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(uploads._Form, 'write', full)
    assert client.upload(video).status == 507
  assert list((tmp_path / 'jobs').iterdir()) == []
  assert client.upload(video).status == 201


def test_a_job_that_fills_the_disk_harms_no_other(tmp_path, video):
  fake = server_kit.FakeWork()

  def work(run):
    fake(run)
    if len(fake.began) == 1:
      raise DataError('cannot be written', run.folder) from OSError(errno.ENOSPC, 'No space left on device')

  with server_kit.serving(tmp_path / 'jobs', work) as client:
    full, other = (client.upload(video).json['id'] for _ in range(2))
    job = client.wait(full, 'failed')
    assert 'disk' in job['error'] and job['files'] == [] and str(tmp_path) not in json.dumps(job)
    assert not (tmp_path / 'jobs' / full / 'run-1').exists()
    assert client.wait(other, 'done')['done'] == 4


def test_a_failure_is_told_without_paths(tmp_path, video, caplog):
  errors = [DataError('the video breaks off at frame 3', tmp_path / 'upload', 'get the whole'), ZeroDivisionError('x')]

  def work(run):
    raise errors.pop(0)

  with server_kit.serving(tmp_path / 'jobs', work) as client:
    first, second = (client.wait(client.upload(video).json['id'], 'failed')['error'] for _ in range(2))
  assert first == 'The video breaks off at frame 3.'
  assert second.startswith('The program failed') and 'ZeroDivisionError' in caplog.text
