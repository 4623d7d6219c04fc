"""What the pages say: examples run, commands exist, links lead somewhere, the site builds; own clips train."""

from __future__ import annotations

import doctest
import re
import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
from PIL import Image

from adnet_jax import cli, config, errors, main
from adnet_jax.data import datasets

pytestmark = pytest.mark.usefixtures('compiled_hastily')
ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / 'docs'
PAGES = sorted(DOCS.glob('*.md'))


def commands(page: Path) -> list[list[str]]:
  """Command lines of a page's ```sh blocks, split into words, comments and continuations resolved."""
  blocks = re.findall(r'^```sh\n(.*?)^```', page.read_text(), re.S | re.M)
  lines = [line for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
  return [
    shlex.split(line, comments=True) for line in lines if line.startswith(('adnet ', 'python -m adnet_jax.main '))
  ]


# ------------------------------------------------------------------------------------------------------- examples


def test_the_examples_of_the_library_page_run(monkeypatch):
  monkeypatch.chdir(ROOT)
  text = re.sub(r'^```.*$', '', (DOCS / 'library.md').read_text(), flags=re.M)  # a fence would count as output
  test = doctest.DocTestParser().get_doctest(text, {}, 'library.md', 'docs/library.md', 0)
  assert len(test.examples) > 30
  said: list[str] = []
  runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
  runner.run(test, out=said.append)
  assert not runner.failures, ''.join(said)


@pytest.mark.parametrize('page', ['index', 'own_data', 'library', 'models', 'failure_cases'])
def test_commands_of_a_page_are_understood(page, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  for words in commands(DOCS / f'{page}.md'):
    if words[0] == 'adnet':
      arguments = cli.build_parser().parse_args(words[1:])
      assert callable(arguments.run)
      continue
    _, overrides = main.split_overrides(words[3:])
    config.load(words[words.index('--config') + 1], overrides)


def test_links_between_pages_and_into_the_tree_lead_somewhere():
  lost = []
  for page in PAGES:
    for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
      if not target.startswith(('http', '#')) and not (page.parent / target.split('#')[0]).exists():
        lost.append(f'{page.name}: {target}')
  assert not lost


def test_pictures_are_small():
  sizes = [path.stat().st_size for path in (DOCS / 'failure_cases').iterdir()]
  assert len(sizes) >= 8 and max(sizes) <= 60_000 and sum(sizes) <= 600_000


def test_the_site_builds_without_a_warning(tmp_path):
  pytest.importorskip('mkdocs')
  pytest.importorskip('material')
  import subprocess

  command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '--site-dir', str(tmp_path / 'site')]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  pages = {path.stem for path in PAGES} - {'index'}
  assert pages <= {path.name for path in (tmp_path / 'site').iterdir()}
  index = (tmp_path / 'site' / 'index.html').read_text()
  missing = [name for name in pages if f'href="{name}/"' not in index]
  assert not missing, 'pages that the navigation lacks'
  # Nothing is fetched from other hosts.
  assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="?(?:https?:)?//[^">]+', index)


# ------------------------------------------------------------------------------------------------------- own clips


def write_mask(path: Path, mask: np.ndarray, form: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  if form == 'palette':
    image = Image.fromarray(mask.astype(np.uint8) * 3, 'P')
    image.putpalette([0, 0, 0] * 3 + [200, 0, 0])
  elif form == '1 bit':
    image = Image.fromarray(mask)
  else:
    image = Image.fromarray(mask.astype(np.uint8) * int(form))
  image.save(path)


@pytest.fixture
def own_clips(tmp_path) -> Path:
  """Four clips in the layout of docs/own_data.md, each with another form of masks, the third frame without one."""
  root = tmp_path / 'MY_CLIPS'
  for number, form in enumerate(('255', '1', 'palette', '1 bit')):
    clip = form.replace(' ', '-')
    for k, image in enumerate(tiny.frames(4, seed=number)):
      (root / 'frames' / clip).mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(root / 'frames' / clip / f'{k:05d}.jpg'), image[..., ::-1])
      if k != 2:
        write_mask(root / 'masks' / clip / f'{k:05d}.png', image[..., 0] > 200, form)
  return root


def test_masks_of_every_form_mean_the_same(own_clips):
  clips = datasets.read_clips(own_clips, datasets.split(own_clips, 'train'), need_masks=True)
  assert [clip.annotated for clip in clips] == [[0, 1, 3]] * 4
  datasets.check_pairs(clips)
  for clip in clips:
    for k in clip.annotated:
      image, mask = datasets.read_pair(clip.frames[k], clip.masks[k])
      assert set(np.unique(mask)) == {0, 1}
      assert image[mask > 0].mean() > image[mask == 0].mean() + 50


def test_a_training_with_the_folder_configuration(own_clips, tiny_model, tmp_path, monkeypatch, capsys):
  """Its recipe with a network that compiles in seconds; the train_on_tpu notebook takes the bundled one."""
  from adnet_jax import train, weights

  network = {'backbone': 'resnet10', 'stem': 'conv7x7', 'output_stride': 16, 'aspp_width': 16, 'embedding': 16}
  small = [f'model.{key}={value}' for key, value in network.items()]
  values = [f'data.root={own_clips}', f'init.weights={tiny_model}', 'data.crop=33', 'steps=2', 'batch=2', 'devices=1']
  # A trunk that stands still needs no gradient, which is most of compiling.
  values += ['optim.frozen_stages=5', 'observe.images_every=0']
  loaded = config.load(ROOT / 'configs' / 'folder.py', [*small, *values])
  final = train.train(loaded, tmp_path / 'run')
  lines = (tmp_path / 'run' / 'train.jsonl').read_text().splitlines()
  assert len(lines) == 2 and '/00002' not in ''.join(lines)  # the frame without a mask
  before, after = (weights.read_file(path)[0] for path in (tiny_model, final))
  moved = {name for name in before if not np.array_equal(before[name], after[name])}
  assert any(name.startswith('classifier') for name in moved)
  assert not any(name.startswith('backbone') for name in moved)


@pytest.mark.parametrize(
  ('damage', 'text'),
  [
    (lambda root: (root / 'masks/255/00000.png').rename(root / 'masks/255/00009.png'), 'masks that have no frame'),
    (lambda root: cv2.imwrite(str(root / 'masks/255/00000.png'), np.zeros((9, 9), np.uint8)), 'its mask is 9x9'),
    (lambda root: cv2.imwrite(str(root / 'masks/1/00001.png'), np.mgrid[:48, :96][1].astype(np.uint8)), 'two values'),
  ],
)
def test_mistakes_in_a_folder_of_clips_are_named(own_clips, damage, text):
  damage(own_clips)
  with pytest.raises(errors.DataError, match=text):
    clips = datasets.read_clips(own_clips, datasets.split(own_clips, 'train'), need_masks=True)
    datasets.check_pairs(clips)
