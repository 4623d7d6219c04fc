"""What is uploaded: too much, no video, cut off, bombs, hostile names; refused with a sentence, nothing stays."""

from __future__ import annotations

import http.client
import struct
import zlib

import pytest

pytest.importorskip('uvicorn')
pytest.importorskip('starlette')
pytest.importorskip('python_multipart')
server_kit = pytest.importorskip('server_kit')

from adnet_jax.server import uploads  # noqa: E402
from adnet_jax.server.refused import Refused  # noqa: E402

LIMITS = uploads.Limits(bytes=200_000, pixels=200 * 100, frames=20, total=20 * 64 * 48, reserve=0)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('served') / 'jobs'


@pytest.fixture(scope='module')
def client(root):
  with server_kit.serving(root, server_kit.FakeWork(), limits=LIMITS) as client:
    yield client


@pytest.fixture
def refused(client, root):
  """Uploads something that is refused with a status; gives the sentence. Nothing of it may stay on the disk."""

  def upload(status, content, **options):
    before = set(root.iterdir())
    answer = client.upload(content, **options)
    sentence = answer.json['error']
    assert answer.status == status, sentence
    assert sentence.endswith('.') and '\n' not in sentence and str(root) not in sentence
    assert set(root.iterdir()) == before
    return sentence

  return upload


def png(width: int, height: int) -> bytes:
  """A PNG that says it has these sides and holds next to nothing."""

  def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(3000))) + chunk(b'IEND', b'')
  )


def test_a_file_over_the_limit_is_refused_by_its_declared_size(refused):
  assert '0 MB' in refused(413, bytes(300_000))


def test_a_file_over_the_limit_is_refused_while_it_comes_in(client, root):
  connection = http.client.HTTPConnection('127.0.0.1', client.port, timeout=20)
  kind = {'Content-Type': f'multipart/form-data; boundary={server_kit.BOUNDARY}'}
  body = server_kit.form(bytes(300_000))
  before = set(root.iterdir())
  # In chunks, so that nobody can know how much it will be.
  parts = [body[k : k + 10_000] for k in range(0, len(body), 10_000)]
  connection.request('POST', '/api/jobs', iter(parts), kind, encode_chunked=True)
  response = connection.getresponse()
  assert response.status == 413 and b'too large' in response.read()
  assert set(root.iterdir()) == before
  connection.close()


def test_what_is_no_form_is_refused(client, root):
  for kind in ('video/mp4', 'application/json', 'multipart/form-data', ''):
    assert client.ask('POST', '/api/jobs', b'x', Content_Type=kind).status == 415
  kind = f'multipart/form-data; boundary={server_kit.BOUNDARY}'
  for body in (
    server_kit.form(b'x', field='other'),
    server_kit.form(b'x', end=False),
    server_kit.form(b''),
    b'nonsense',
    b'',
    f'--{server_kit.BOUNDARY}--\r\n'.encode(),
    f'--{server_kit.BOUNDARY}\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext'.encode(),
  ):
    answer = client.ask('POST', '/api/jobs', body, Content_Type=kind)
    assert answer.status == 422 and answer.json['error'], body
  # Header lines without end are not collected.
  endless = f'--{server_kit.BOUNDARY}\r\nX: '.encode() + b'x' * 100_000
  assert client.ask('POST', '/api/jobs', endless, Content_Type=kind).status == 422


def test_an_upload_whose_sender_goes_away_leaves_nothing(client, root):
  before = set(root.iterdir())
  connection = http.client.HTTPConnection('127.0.0.1', client.port)
  connection.putrequest('POST', '/api/jobs')
  connection.putheader('Content-Type', f'multipart/form-data; boundary={server_kit.BOUNDARY}')
  connection.putheader('Content-Length', '100000')
  connection.endheaders()
  connection.send(server_kit.form(bytes(50_000), end=False))
  server_kit.until(lambda: set(root.iterdir()) != before)
  connection.close()
  server_kit.until(lambda: set(root.iterdir()) == before)


@pytest.mark.parametrize(
  'content',
  [b'just some text\n' * 50, b'#!/bin/sh\nrm -rf /\n', b'\x7fELF' + bytes(300), bytes(1000), b'%PDF-1.7\n' * 9],
)
def test_what_is_no_video_is_415(refused, content):
  assert 'not a video' in refused(415, content, name='clip.mp4')


def test_sound_alone_is_415(refused, tmp_path):
  import av
  import numpy as np

  with av.open(str(tmp_path / 'sound.mp4'), 'w') as container:
    stream = container.add_stream('aac', rate=44100)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format='fltp', layout='mono')
    frame.sample_rate = 44100
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  refused(415, tmp_path / 'sound.mp4')


def test_a_playlist_reads_no_other_file(refused, tmp_path):
  video = server_kit.write_video(tmp_path / 'secret.mp4')
  refused(415, f'#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{video}\n#EXT-X-ENDLIST\n'.encode())
  refused(415, f"ffconcat version 1.0\nfile '{video}'\n".encode())


def test_a_video_that_is_cut_off_is_422(refused, tmp_path):
  late = server_kit.write_video(tmp_path / 'late.mp4', 20).read_bytes()  # its index comes last
  early = server_kit.write_video(tmp_path / 'early.mp4', 20, options={'movflags': '+faststart'}).read_bytes()
  assert early.index(b'moov') < early.index(b'mdat') < late.index(b'moov')
  for content in (late, early):
    assert 'cut off' in refused(422, content[: len(content) // 2])
  assert 'cut off' in refused(422, server_kit.write_video(tmp_path / 'a.avi').read_bytes()[:200])


def test_bombs_are_refused_by_what_they_declare(refused, tmp_path, monkeypatch):
  def decoded(*_):
    raise AssertionError('decoded')

  monkeypatch.setattr(uploads, 'VideoFile', decoded)
  for sides in ((100_000, 100_000), (12_000, 12_000), (400, 100)):
    assert 'too large' in refused(413, png(*sides), name='bomb.png')
  assert 'too large' in refused(413, server_kit.write_video(tmp_path / 'wide.mp4', 2, (320, 96)))
  assert 'too many' in refused(413, server_kit.write_video(tmp_path / 'long.mp4', 21))
  # Wide and long, either of which would do.
  assert 'too many' in refused(413, server_kit.write_video(tmp_path / 'much.mp4', 16, (96, 64)))
  # A million frames in a file of some kilobytes.
  bomb = server_kit.write_long_video(tmp_path / 'bomb.mkv', 90_000)
  assert bomb.stat().st_size < 20_000
  assert '1,080,' in refused(413, bomb)


@pytest.mark.parametrize(
  ('name', 'shown'),
  [
    ('../../etc/passwd', 'passwd'),
    ('/etc/cron.d/x.mp4', 'x.mp4'),
    ('..\\\\..\\\\boot.ini', 'boot.ini'),
    ('a\x00b.mp4', 'ab.mp4'),
    ('<img src=x onerror=alert(1)>.mp4', '<img src=x onerror=alert(1)>.mp4'),
    ('gpj.\u202e4pm', 'gpj.4pm'),
    ('..', '..'),
    ('', 'video'),
    ('Hund läuft 100 %.mp4', 'Hund läuft 100 %.mp4'),
    ('x' * 300 + '.mp4', 'x' * 108 + '…' + 'x' * 7 + '.mp4'),
  ],
)
def test_hostile_names_are_text_and_never_a_path(client, root, tmp_path, name, shown):
  video = server_kit.write_video(tmp_path / 'clip.mp4', 2)
  body = server_kit.form(video.read_bytes()).replace(b'"clip.mp4"', b'"' + name.encode() + b'"')
  kind = f'multipart/form-data; boundary={server_kit.BOUNDARY}'
  before = sorted(tmp_path.rglob('*'))
  answer = client.ask('POST', '/api/jobs', body, Content_Type=kind)
  assert answer.status == 201
  job_id = answer.json['id']
  assert client.job(job_id)['name'] == shown and len(shown) <= uploads.LONGEST_NAME
  client.wait(job_id, 'done')
  assert {path.name for path in (root / job_id).iterdir()} == {'upload', 'previews', 'run-1'}
  assert sorted(tmp_path.rglob('*')) == before and {path.name for path in root.parent.iterdir()} == {'jobs'}
  client.ask('DELETE', f'/api/jobs/{job_id}')


def test_odd_videos_are_taken(tmp_path):
  cases = {
    'a.avi': ((64, 48), 5), 'a.mkv': ((64, 48), 5), 'a.mov': ((50, 38), 3), 'one.mp4': ((64, 48), 1),
  }  # fmt: skip
  for name, (size, count) in cases.items():
    clip, image = uploads.check(server_kit.write_video(tmp_path / name, count, size), uploads.Limits())
    assert (clip.width, clip.height) == size == image.shape[1::-1], name
    assert clip.frames in (count, None) and clip.rate == 12


def test_the_limits_are_said():
  with pytest.raises(Refused, match='at most 2,000 MB') as error:
    raise uploads.too_large(uploads.Limits())
  assert error.value.status == 413
