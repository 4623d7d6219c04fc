"""Stills and texts made of masks, how forms are asked for, what a broken run leaves, the command."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import made_videos
import numpy as np
import pytest
from PIL import Image

from adnet_jax import cli, detections, segment_command, video, writers
from adnet_jax.clip_files import Outputs, OverlayForm, check_free, remove_results, written
from adnet_jax.errors import DataError, UsageError
from adnet_jax.masks import read_mask
from adnet_jax.outputs import coco, compose, davis, forms, outlines
from adnet_jax.outputs import options as output_options

ALL = tuple(forms.FILES)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
  folder = tmp_path / 'clip'
  folder.mkdir()
  for k in range(3):
    cv2.imwrite(str(folder / f'{k:03d}.png'), made_videos.frame(k, 48, 64)[..., ::-1])
  return folder


def masks_of(clip: Path) -> list[np.ndarray]:
  return [made_videos.mask_of(frame.image) for frame in video.open_source(clip)]


def export(clip: Path, out: Path, *names: str, behind: str = 'blur') -> list[Path]:
  return forms.export(video.open_source(clip), masks_of(clip), out, forms.make_forms(names, behind))[0]


@pytest.mark.parametrize('form', writers.MASK_FORMS)
@pytest.mark.parametrize('shape', [(1, 1), (13, 27)])
def test_mask_forms_are_read_back(tmp_path: Path, form: str, shape: tuple[int, int]) -> None:
  mask = np.random.default_rng(0).random(shape) > 0.5
  for values in (mask, ~mask, np.zeros(shape, bool), np.ones(shape, bool)):
    writers.write_mask(tmp_path / 'a.png', values, form)
    np.testing.assert_array_equal(read_mask(tmp_path / 'a.png'), values)
  with Image.open(tmp_path / 'a.png') as image:
    image.load()
  assert image.mode == {'palette': 'P', '1-bit': '1'}.get(form, 'L')
  assert (tmp_path / 'a.png').read_bytes()[24] == (1 if form == '1-bit' else 8)  # IHDR's bit depth
  if form == 'palette':
    assert image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    assert (np.asarray(image) == 1).all()
  if form.startswith('0-'):
    assert np.asarray(image).max() == int(form[2:])


def test_alpha_is_the_mask_beyond_two_pixels() -> None:
  mask = np.zeros((40, 50), bool)
  mask[10:30, 12:] = True
  alpha = compose.alpha(mask)
  near = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) - cv2.erode(mask.astype(np.uint8), np.ones((5, 5)))
  np.testing.assert_array_equal(alpha[near == 0], 255 * mask[near == 0])
  assert 0 < alpha[10, 30] < 255 and (alpha[20, -3:] == 255).all()


def test_backgrounds() -> None:
  rgb = made_videos.frame(0, 60, 80)
  mask = made_videos.mask_of(rgb)
  disc = np.ones((9, 9))
  far, inside = cv2.dilate(mask.astype(np.uint8), disc) == 0, cv2.erode(mask.astype(np.uint8), disc) == 1
  green = compose.over(rgb, mask, np.array([0, 255, 0], np.uint8))
  assert (green[far] == (0, 255, 0)).all() and (green[inside] == rgb[inside]).all()
  blurred = compose.blurred(rgb, mask)
  assert blurred.shape == rgb.shape and (blurred[far][:, 0].astype(int) - blurred[far][:, 1] < 12).all(), 'no halo'
  assert compose.blurred(rgb[:1, :1], mask[:1, :1]).shape == (1, 1, 3)
  assert compose.blurred(rgb, np.ones_like(mask)).std() > 0
  wide = np.zeros((10, 100, 3), np.uint8)
  wide[:, 50:] = 200
  covered = compose.cover(wide, (60, 80))
  assert covered.shape == (60, 80, 3) and covered[:, 0].max() == 0 and covered[:, -1].min() == 200


def test_outlines_give_the_mask_back() -> None:
  mask = np.zeros((60, 80), np.uint8)
  cv2.circle(mask, (30, 30), 22, 1, -1)
  cv2.circle(mask, (30, 30), 9, 0, -1)
  mask[40:55, 60:] = 1
  lines = outlines.outline(mask.astype(bool))
  assert len(lines) == 3 and sum(map(len, lines)) < 120
  fine = np.zeros((480, 640), np.uint8)
  cv2.fillPoly(fine, [np.rint(line * 8).astype(np.int32) for line in lines], 1)
  again = cv2.resize(fine.astype(np.float32), (80, 60), interpolation=cv2.INTER_AREA) > 0.5
  assert (again != mask).sum() < 0.03 * mask.sum()
  assert outlines.path_data(outlines.outline(np.zeros((5, 5), bool))) == ''
  assert 'd=""' in outlines.svg(np.zeros((5, 5), bool))


def test_svg_of_each_frame_and_of_all(clip: Path, tmp_path: Path) -> None:
  files = export(clip, tmp_path / 'out', 'svg', 'outline')
  assert [path.name for path in files] == ['000.svg', '001.svg', '002.svg', 'outline.svg']
  import xml.etree.ElementTree as tree

  for path in files:
    root = tree.fromstring(path.read_text())
    assert root.get('viewBox') == '0 0 64 48'
  paths = list(root.iter('{http://www.w3.org/2000/svg}path'))
  assert [path.get('id') for path in paths] == ['frame-000', 'frame-001', 'frame-002']
  assert [path.get('visibility') for path in paths] == [None, 'hidden', 'hidden']


def test_run_lengths_are_what_prune_reads(clip: Path, tmp_path: Path) -> None:
  masks = masks_of(clip)
  masks[1][:] = False
  source = video.open_source(clip)
  (file,), _ = forms.export(source, masks, tmp_path, forms.make_forms(['rle']))
  content = json.loads(file.read_text())
  assert [image['file_name'] for image in content['images']] == ['clip/000.png', 'clip/001.png', 'clip/002.png']
  frames = {f'{k:03d}': (48, 64) for k in range(3)}
  read = detections.read(file, {'clip': frames}).clips['clip']
  assert [len(read[name]) for name in frames] == [1, 0, 1]
  np.testing.assert_array_equal(read['002'][0].segmentation.mask(), masks[2])
  x1, y1, x2, y2 = read['002'][0].box
  assert masks[2][round(y1) : round(y2), round(x1) : round(x2)].sum() == masks[2].sum()
  assert coco.annotation(np.zeros((3, 3), bool)) is None


def test_submission_as_folder_and_as_archive(tmp_path: Path) -> None:
  rng, clips = np.random.default_rng(0), {}
  for name, form in (('cat', '0-255'), ('dog', '1-bit')):
    clips[name] = tmp_path / name
    for k in (0, 1):
      writers.write_mask(clips[name] / f'{k:05d}.png', rng.random((8, 9)) > 0.5, form)
  davis.write_submission(clips, tmp_path / 'folder')
  davis.write_submission(clips, tmp_path / 'new' / 'all.zip')
  with zipfile.ZipFile(tmp_path / 'new' / 'all.zip') as archive:
    names = archive.namelist()
    assert names == [f'{clip}/{k:05d}.png' for clip in clips for k in (0, 1)]
    for name in names:
      assert archive.read(name) == (tmp_path / 'folder' / name).read_bytes()
      with Image.open(tmp_path / 'folder' / name) as image:
        image.load()
      assert image.mode == 'P' and set(np.unique(image)) <= {0, 1}
      np.testing.assert_array_equal(read_mask(tmp_path / 'folder' / name), read_mask(tmp_path / name))
  first = (tmp_path / 'new' / 'all.zip').read_bytes()
  (clips['cat'] / '00001.png').unlink()
  davis.write_submission(clips, tmp_path / 'folder')
  assert os.listdir(tmp_path / 'folder' / 'cat') == ['00000.png']
  (clips['dog'] / '00001.png').write_bytes(b'no mask')
  with pytest.raises(DataError, match=r'00001\.png'):
    davis.write_submission(clips, tmp_path / 'new' / 'all.zip')
  assert os.listdir(tmp_path / 'new') == ['all.zip'] and (tmp_path / 'new' / 'all.zip').read_bytes() == first
  for target in (tmp_path / 'folder', tmp_path / 'new' / 'all.zip'):
    with pytest.raises(UsageError, match='exists already'):
      davis.check_free(target, replace=False)
    davis.check_free(target, replace=True)


def test_names_texts_and_files_agree() -> None:
  assert tuple(output_options.TEXTS) == ALL
  assert [form.stage for form in forms.make_forms(ALL)] == list(ALL)
  for name, text in output_options.TEXTS.items():
    assert forms.FILES[name].split('/')[0] in text
  assert {file for file in forms.FILES.values() if file.endswith(('mp4', 'webm', 'mov'))} < set(video.VIDEOS_WRITTEN)


@pytest.mark.parametrize(
  ('names', 'behind', 'text'),
  [
    (['wbem'], 'blur', 'did you mean webm'),
    (['background'], 'grenn', 'unknown background'),
    (['x'], 'blur', 'known are'),
  ],
)
def test_what_is_not_known_is_said(names: list[str], behind: str, text: str) -> None:
  with pytest.raises(UsageError, match=text):
    forms.make_forms(names, behind)


def test_without_an_extra_it_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setitem(sys.modules, 'av', None)
  with pytest.raises(UsageError, match=r'adnet-jax\[video\]'):
    forms.make_forms(['webm'])
  monkeypatch.setitem(sys.modules, 'pycocotools', None)
  with pytest.raises(UsageError, match=r'adnet-jax\[prune\]'):
    forms.make_forms(['rle'])


@pytest.mark.parametrize('name', ALL)
def test_a_full_disk_leaves_no_half_a_file(
  clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
  out = tmp_path / 'out'
  before = {path: path.read_bytes() for path in export(clip, out, name)}

  def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'replace', full_disk)
  with pytest.raises(DataError, match='No space left'):
    export(clip, out, name)
  assert {path: path.read_bytes() for path in out.rglob('*') if path.is_file()} == before


def test_earlier_results_of_any_form_are_seen_removed_and_listed(clip: Path, tmp_path: Path) -> None:
  out = tmp_path / 'out'
  export(clip, out, *ALL)
  (out / 'cutouts' / '.adnet-1-1.tmp').touch()
  (out / 'notes.txt').touch()
  outputs = Outputs(overlay=False, forms=forms.make_forms(['svg', 'webm']))
  folders = out / 'masks', out / 'heatmaps'
  assert written(out, *folders, outputs) == ['cutout.webm', 'outlines/']
  with pytest.raises(UsageError, match='already holds results'):
    check_free(out, Outputs())
  check_free(out, Outputs(resume=True))
  remove_results(out, *folders, Outputs(overwrite=True))
  assert [path.name for path in out.rglob('*') if path.is_file()] == ['notes.txt']


def test_no_frame_no_file(clip: Path, tmp_path: Path) -> None:
  source = video.open_source(clip)
  for form in (OverlayForm(), *forms.make_forms(ALL)):
    writer = form.open(tmp_path / 'out', source)
    writer.close()
    form.open(tmp_path / 'out', source).abort()
  assert not (tmp_path / 'out').exists()


def test_frames_of_different_sizes(clip: Path, tmp_path: Path) -> None:
  cv2.imwrite(str(clip / '003.png'), np.zeros((20, 90, 3), np.uint8))
  cv2.imwrite(str(tmp_path / 'behind.png'), np.full((7, 9, 3), 90, np.uint8))
  files = export(clip, tmp_path / 'out', *ALL, behind=str(tmp_path / 'behind.png'))
  shapes = [cv2.imread(str(path)).shape[:2] for path in files if path.parent.name == 'cutouts']
  assert shapes == [(48, 64)] * 3 + [(20, 90)]
  assert made_videos.facts(tmp_path / 'out' / 'cutout.webm').size == (48, 64)


def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
  code = """
import resource, sys
import numpy as np
from adnet_jax.outputs import forms
from adnet_jax.sources import Frame, Source
class Still(Source):
  def __iter__(self):
    for k in range(int(sys.argv[1])):
      yield Frame(f'{k:05d}', k, image)
image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
source = Still('still', [], None, None, 1, False)
made = forms.make_forms(('webm', 'background', 'outline', 'rle'))
forms.export(source, (image[..., 0] > 128 for _ in source), __import__('pathlib').Path(sys.argv[2]), made)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
  sizes = [
    int(subprocess.check_output([sys.executable, '-c', code, count, str(tmp_path / count)])) for count in ('30', '90')
  ]
  assert sizes[1] < 1.1 * sizes[0]


def test_the_command(commands, clip: Path, capsys: pytest.CaptureFixture) -> None:
  for frame, mask in zip(video.open_source(clip), masks_of(clip), strict=True):
    writers.write_mask(Path('out/masks') / f'{frame.name}.png', mask)  # nothing is left for the network
  options = '--also', 'webm, rle,cutouts', '--background', 'green', '--mask-form', '1-bit', '--resume'
  assert commands('segment', clip, '-o', 'out', '--davis', 'all.zip', *options) == 0
  summary = json.loads(Path('out/summary.json').read_text())
  assert summary['files'] == [
    'background.mp4', 'cutout.webm', 'cutouts/', 'detections.json', 'masks/', 'overlay.mp4',
  ]  # fmt: skip
  assert zipfile.ZipFile('all.zip').namelist() == [f'clip/{k:03d}.png' for k in range(3)]
  assert 'all.zip' in capsys.readouterr().out
  chosen = segment_command.outputs_of(cli.build_parser().parse_args(['segment', *options]))
  assert chosen.mask_form == '1-bit' and chosen.forms == forms.make_forms(
    ['webm', 'rle', 'cutouts', 'background'], 'green'
  )
  first = Path('out/cutout.webm').stat().st_mtime_ns
  assert commands('segment', clip, '-o', 'out', '--resume', '--davis', 'all.zip', '--also', 'webm,svg') == 0
  assert Path('out/cutout.webm').stat().st_mtime_ns > first and len(os.listdir('out/outlines')) == 3
  capsys.readouterr()
  for wrong in (['--also', 'vebm'], ['--background', 'grenn'], ['--davis', 'all.zip'], ['--davis', 'other']):
    assert commands('segment', clip, '-o', 'other', *wrong) == 2
    assert capsys.readouterr().err.count('\n') == 1
  assert not Path('other').exists()


def test_forms_travel_between_processes(tmp_path: Path) -> None:
  import pickle

  made = forms.make_forms(ALL, 'green')
  assert pickle.loads(pickle.dumps(made)) == made
