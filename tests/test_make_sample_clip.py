"""The sample clip: its tool is deterministic, and the files in the package are what the tool makes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

SAMPLE = Path(__file__).resolve().parents[1] / 'adnet_jax' / 'assets' / 'sample'
CLIP = 'astronaut'


def read(kind: str, root: Path = SAMPLE) -> list[np.ndarray]:
  flag = cv2.IMREAD_COLOR if kind == 'JPEGImages' else cv2.IMREAD_GRAYSCALE
  images = [cv2.imread(str(path), flag) for path in sorted((root / kind / '480p' / CLIP).iterdir())]
  assert all(image is not None for image in images)
  return images


def test_bundled_clip_has_one_binary_mask_a_frame():
  frames, masks = read('JPEGImages'), read('Annotations')
  assert len(frames) == len(masks) == 40
  assert {frame.shape for frame in frames} == {(270, 480, 3)}
  for mask in masks:
    assert mask.shape == (270, 480)
    assert set(np.unique(mask)) == {0, 255}
    assert 0.08 <= np.mean(mask == 255) <= 0.25


def test_bundled_clip_is_small_and_moves():
  assert sum(path.stat().st_size for path in SAMPLE.rglob('*') if path.is_file()) < 1_500_000
  centres = [np.argwhere(mask).mean(axis=0)[1] for mask in read('Annotations')]
  assert centres[-1] - centres[0] > 120


def test_photographs_are_credited():
  text = (SAMPLE / 'ORIGIN.txt').read_text()
  assert 'astronaut' in text and 'rocket' in text and 'public domain' in text


def test_tool_makes_the_bundled_frames(tmp_path):
  pytest.importorskip('skimage')
  from tools import make_sample_clip

  astronaut, pad = make_sample_clip.photographs()
  subject, backdrop = make_sample_clip.prepare(astronaut, pad)
  assert 0.4 < subject.alpha.mean() < 0.6
  first = make_sample_clip.render(3, 40, make_sample_clip.SEED, subject, backdrop)
  again = make_sample_clip.render(3, 40, make_sample_clip.SEED, *make_sample_clip.prepare(astronaut, pad))
  for one, other in zip(first, again):
    np.testing.assert_array_equal(one, other)
  # Another release of OpenCV may round otherwise, so the stored frame is only close (it is a JPEG, besides).
  image, mask = first
  assert np.mean(cv2.absdiff(image, read('JPEGImages')[3])) < 3
  assert np.mean(mask != (read('Annotations')[3] == 255)) < 1e-3


def test_other_seed_gives_another_clip():
  pytest.importorskip('skimage')
  from tools import make_sample_clip

  one, other = (make_sample_clip.scene_at(0.5, 1.6, seed) for seed in (1, 2))
  assert not np.allclose(one.subject, other.subject)
