"""Videos that were written, in a real browser without a screen: they play, and transparency is the mask."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import made_videos
import numpy as np
import pytest
from chromium import launched, needs_chromium

from adnet_jax import video
from adnet_jax.clip_files import OverlayForm
from adnet_jax.outputs import forms

pytestmark = needs_chromium
SOURCES = {
  'sound.mp4': {'sound': 'aac'},
  'rotated.mp4': {'rotation': 90},
  'variable.mkv': {'count': 6, 'times': [0, 40, 80, 300, 340, 720], 'sound': 'ac3'},
  'odd.mkv': {'codec': 'ffv1', 'size': (95, 63), 'sound': 'flac'},
  'wide.mkv': {'pixels': 'yuv420p10le', 'colour': (9, 18, 9, 1)},
  'one.mp4': {'count': 1},
  'moving.gif': {'codec': 'gif', 'pixels': 'rgb8', 'rate': 10},
}
OPEN = """
async ([data, type]) => {
  const bytes = Uint8Array.from(atob(data), one => one.charCodeAt(0));
  const video = document.createElement('video');
  video.muted = true;
  video.src = URL.createObjectURL(new Blob([bytes], {type}));
  await new Promise((done, failed) => {
    video.oncanplay = done;
    video.onerror = () => failed(new Error(video.error.message));
  });
  window.video = video;
  return [video.videoHeight, video.videoWidth, video.duration];
}
"""
# The share of a chequer of black and white that shows through is 255 less alpha, whatever the colours before it.
ALPHA = """
async time => {
  const video = window.video, w = video.videoWidth, h = video.videoHeight;
  await new Promise(done => { video.onseeked = done; video.currentTime = time; });
  const over = first => {
    const canvas = new OffscreenCanvas(w, h), context = canvas.getContext('2d');
    for (let y = 0; y < h; y += 8) for (let x = 0; x < w; x += 8) {
      context.fillStyle = ((x + y) / 8 % 2 == 0) == first ? 'white' : 'black';
      context.fillRect(x, y, 8, 8);
    }
    context.drawImage(video, 0, 0);
    return context.getImageData(0, 0, w, h).data;
  };
  const one = over(true), other = over(false), alphas = [];
  for (let k = 0; k < one.length; k += 4) alphas.push(255 - Math.abs(one[k + 1] - other[k + 1]));
  return alphas;
}
"""


@pytest.fixture(scope='module')
def page():
  with launched() as browser:
    yield browser.new_page()


def load(page, path: Path) -> list:
  data = base64.b64encode(path.read_bytes()).decode()
  return page.evaluate(OPEN, [data, 'video/webm' if path.suffix == '.webm' else 'video/mp4'])


@pytest.mark.parametrize('name', SOURCES)
def test_videos_play(page, tmp_path: Path, name: str) -> None:
  path = made_videos.write(tmp_path / name, **SOURCES[name])
  source, given = video.open_source(path), made_videos.facts(path)
  masks = (made_videos.mask_of(frame.image) for frame in source)
  made = (OverlayForm(), *forms.make_forms(('webm', 'background', 'comparison')))
  files, warnings = forms.export(source, masks, tmp_path / 'out', made)
  assert not warnings and len(files) == 4
  w, h = SOURCES[name].get('size', (96, 64))
  for file in files:
    height, width, seconds = load(page, file)
    wide = 2 * w if file.name == 'comparison.mp4' else w
    even = file.suffix == '.mp4'
    assert (height, width) == ((h + h % 2, wide + wide % 2) if even else (h, wide)), file.name
    assert seconds == pytest.approx(given.length, abs=max(0.05, 1.01 / given.rate)), file.name


def test_transparent_video_over_a_chequer(page, tmp_path: Path) -> None:
  path = made_videos.write(tmp_path / 'v.mp4', 60, (192, 128))
  source = video.open_source(path)
  masks = [made_videos.mask_of(made_videos.frame(k % 20, 128, 192)) for k in range(60)]
  forms.export(source, masks, tmp_path / 'out', forms.make_forms(['webm']))
  load(page, tmp_path / 'out' / 'cutout.webm')
  for number in (0, 7, 55):  # 55: a jump beyond the second key frame
    alpha = np.array(page.evaluate(ALPHA, (number + 0.5) / 25)).reshape(128, 192)
    inside, outside = (
      cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, 5) for side in (masks[number], ~masks[number])
    )
    far = np.maximum(inside, outside) > 3
    assert np.abs(alpha - 255 * masks[number])[far].max() <= 2, number


def test_outlines_play(page, tmp_path: Path) -> None:
  source = video.open_source(made_videos.write(tmp_path / 'v.mp4', 5))
  masks = (made_videos.mask_of(frame.image) for frame in source)
  (file,), _ = forms.export(source, masks, tmp_path / 'out', forms.make_forms(['outline']))
  page.set_content(file.read_text())
  shown = """time => {
    const drawing = document.querySelector('svg');
    drawing.pauseAnimations();
    drawing.setCurrentTime(time);
    return [...document.querySelectorAll('path')].filter(one => getComputedStyle(one).visibility == 'visible')
      .map(one => one.id);
  }"""
  for time, number in ((0.02, 0), (0.06, 1), (0.18, 4), (0.22, 0), (0.26, 1)):
    assert page.evaluate(shown, time) == [f'frame-{number:05d}']
