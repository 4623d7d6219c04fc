"""Films with cuts on the web page: what is asked for, and the anchors that a job says it has."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny

pytest.importorskip('uvicorn')
pytest.importorskip('starlette')
pytest.importorskip('python_multipart')
pytest.importorskip('scenedetect')
server_kit = pytest.importorskip('server_kit')
import av  # noqa: E402

from adnet_jax.segmenter import Segmenter  # noqa: E402
from adnet_jax.server import jobs, uploads, work  # noqa: E402
from adnet_jax.server.refused import Refused  # noqa: E402

SHOT = 24


@pytest.fixture
def film(tmp_path):
  """A video of two shots: one image each, which moves a little."""
  path = tmp_path / 'film.mp4'
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('mpeg4', rate=12)
    stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 96, 48, 'yuv420p', 2_000_000
    for shade in (60, 190):
      for image in tiny.frames(SHOT, (96, 48)):
        image = np.clip(image // 4 + np.uint8(shade), 0, 255).astype(np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
    container.mux(stream.encode())
  return path


def test_each_shot_of_a_film_has_its_first_frame_as_anchor(film, model, tmp_path):
  folder = tmp_path / 'job'
  folder.mkdir()
  (folder / 'upload').write_bytes(film.read_bytes())
  limits = uploads.Limits(reserve=0)
  clip, _ = uploads.check(folder / 'upload', limits)
  work.segment(run := jobs.Run(folder, 1, 0, clip, auto=True), Segmenter(model), limits, 'tiny')
  assert run.anchors == [0, SHOT] and run.done == 2 * SHOT
  assert [run.anchor_of(frame) for frame in (0, SHOT - 1, SHOT, 2 * SHOT - 1)] == [0, 0, SHOT, SHOT]
  shots = json.loads((run.folder / 'summary.json').read_text())['shots']
  assert [shot['anchors'] for shot in shots] == [[0], [SHOT]]
  assert all(text[0].isupper() and text.endswith('.') for text in run.warnings)


def test_a_chosen_anchor_serves_the_frames_before_it_too(tmp_path):
  run = jobs.Run(tmp_path, 2, 5, uploads.Clip(64, 48, 9, 12.0))
  assert [run.anchor_of(frame) for frame in (0, 5, 8)] == [5, 5, 5]


def test_the_form_says_first_or_auto(tmp_path):
  assert not work.check_anchor('') and not work.check_anchor('first') and work.check_anchor('auto')
  with pytest.raises(Refused, match='first or auto'):
    work.check_anchor('best')
  content = server_kit.write_video(tmp_path / 'x.mp4', 4).read_bytes()
  kind = f'multipart/form-data; boundary={server_kit.BOUNDARY}'
  seen = []

  def worker(run):
    seen.append(run.auto)
    server_kit.FakeWork()(run)

  with server_kit.serving(tmp_path / 'jobs', worker) as client:
    for anchor, status in (('auto', 201), ('first', 201), ('../x', 422)):
      field = f'--{server_kit.BOUNDARY}\r\nContent-Disposition: form-data; name="anchor"\r\n\r\n{anchor}\r\n'
      answer = client.ask('POST', '/api/jobs', field.encode() + server_kit.form(content), Content_Type=kind)
      assert answer.status == status
      if status == 201:
        assert client.wait(answer.json['id'], 'done')['anchors'] == [0]
  assert seen == [True, False]
