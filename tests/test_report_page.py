from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import made_clips
import numpy as np
import pytest
import report_files
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from adnet_jax.errors import AdnetError, DataError, UsageError
from adnet_jax.report.page import write_report
from adnet_jax.report.pictures import PREDICTED_COLOUR, TRUE_COLOUR, draw_outlines, worst_frames

WRONG = {'cat': [0, 0, 0.1, 0.5, 0.2, 0.45, 0, 0], 'dog': [0, 0, 0, 0, 1.5, 0, 0.3, 0]}


class Elements(HTMLParser):
  """All elements of a page as (tag, attributes), and its text."""

  def __init__(self, text: str):
    super().__init__()
    self.found: list[tuple[str, dict]] = []
    self.text = ''
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data

  def all(self, tag: str) -> list[dict]:
    return [attributes for name, attributes in self.found if name == tag]


def page_of(folder: Path, files, **options) -> Elements:
  write_report(files, folder / 'page.html', overwrite=True, **options)
  return Elements((folder / 'page.html').read_text(encoding='utf-8'))


@pytest.fixture
def clips(tmp_path):
  """Options that give a page pictures; the score file is `ours.json`."""
  report_files.make_clips(tmp_path, WRONG)
  return {'frames': tmp_path / 'frames', 'truth': tmp_path / 'truth', 'masks': {'ours': tmp_path / 'ours'}}


def test_numbers_are_shown_without_pictures(tmp_path):
  files = report_files.write(tmp_path, ours=report_files.flat(0.625), theirs=report_files.flat(0.5))
  page = page_of(tmp_path, files)
  for number in ('0.625', '0.500', '+0.125', 'better', '62.5'):
    assert number in page.text
  assert not page.all('img')
  assert {one['data-frame'] for one in page.all('figure') if 'data-frame' in one} == {'00001', '00002', '00003'}


def test_the_worst_frame_of_the_scores_comes_first_with_its_picture(tmp_path, clips):
  page = page_of(tmp_path, [tmp_path / 'ours.json'], **clips)
  scores = json.loads((tmp_path / 'ours.json').read_text())
  frames, clip = {}, None
  for tag, attributes in page.found:
    clip = attributes.get('data-clip', clip)
    if tag == 'figure' and 'data-frame' in attributes:
      frames.setdefault(clip, []).append((attributes['data-frame'], float(attributes['data-j'])))
  assert sorted(frames) == ['cat', 'dog']
  for name, shown in frames.items():
    entry = scores['clips'][name]
    values = dict(zip(entry['frames'], entry['J']['per_frame'], strict=True))
    assert shown[0][1] == min(values.values())
    assert shown == sorted(shown, key=lambda one: one[1]) and all(values[frame] == j for frame, j in shown)
  assert frames['cat'][0][0] == '00003' and frames['dog'][0] == ('00004', 0.0)
  pictures = page.all('img')
  assert len(pictures) == 8
  for one in pictures:
    kind, data = one['src'].split(',', 1)
    assert kind == 'data:image/webp;base64'
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
      image.load()
      assert image.size == (int(one['width']), int(one['height'])) == report_files.SHAPE[::-1]


def test_nothing_on_the_page_leads_out_of_it(tmp_path, clips):
  page = page_of(tmp_path, [tmp_path / 'ours.json'], **clips)
  addresses = [one[key] for _, one in page.found for key in ('href', 'src', 'action', 'poster', 'data') if key in one]
  assert all(address.startswith(('#', 'data:')) for address in addresses)
  assert not page.all('iframe') and not any(
    key.startswith('on') or key == 'style' for _, one in page.found for key in one
  )
  text = (tmp_path / 'page.html').read_text()
  assert not re.search(r'https?:|//[a-z]|@import|url\(', re.sub(r'base64,[^"]*', '', text))


def test_the_policy_lets_only_the_pages_own_script_and_style_run(tmp_path):
  page = page_of(tmp_path, report_files.write(tmp_path, ours=report_files.flat(0.5)))
  (policy,) = [one['content'] for one in page.all('meta') if one.get('http-equiv') == 'Content-Security-Policy']
  assert "default-src 'none'" in policy and 'unsafe' not in policy
  text = (tmp_path / 'page.html').read_text(encoding='utf-8')
  for tag in ('style', 'script'):
    (inline,) = re.findall(rf'<{tag}>(.*?)</{tag}>', text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    assert f"{tag}-src 'sha256-{digest}'" in policy


def test_markup_in_names_is_shown_as_text(tmp_path):
  evil = '<script>alert(1)</script><img src=x onerror=alert(1)>"\''
  content = report_files.davis(
    {evil: [0.5, 0.6]}, name=evil, warnings=[evil], protocol=evil, version=evil, dataset_name=evil, stability=evil
  )
  content['clips'][evil]['frames'][0] = evil
  content['missing'] = {evil: [evil]}
  page = page_of(tmp_path, report_files.write(tmp_path, a=content, b=content | {'name': 'b'}))
  assert len(page.all('script')) == 1 and not page.all('img')
  assert page.text.count(evil) > 10


def test_files_of_different_rules_have_sections_of_their_own(tmp_path):
  files = report_files.write(
    tmp_path,
    a=report_files.flat(0.5),
    b=report_files.flat(0.6),
    a__davis=report_files.saliency(0.1, 0.7),
    a__fbms=report_files.other('fbms-pooled', {'F': 0.8}, {'cars1': {'F': 0.8}}),
    b__fbms=report_files.other('fbms-mean-pr', {'F': 0.9}, {'cars1': {'F': 0.9}}),
    c=report_files.other('of-the-future', {'Q': 0.123, 'parts': {'left': 0.456}}, {}),
  )
  text = page_of(tmp_path, files).text
  assert text.count(' against ') == 1 and 'a against b' in text
  for number in ('0.700', '0.800', '0.900', '0.123', '0.456', 'parts left'):
    assert number in text


def test_what_was_done_to_the_masks_is_shown(tmp_path):
  content = report_files.flat(
    0.5, subset=True, threshold=0.25, missing={'dog': ['00002']}, warnings=['two kinds of masks'], stability='python'
  )
  text = page_of(tmp_path, report_files.write(tmp_path, a=content)).text
  for part in ('a subset', 'above 0.25', 'dog: 00002', 'two kinds of masks', 'python', 'protocol', 'paper', 'a.json'):
    assert part in text


def test_data_sets_of_other_clips_have_no_difference(tmp_path):
  files = report_files.write(tmp_path, a=report_files.flat(0.75, ['dog', 'cow']), b=report_files.flat(0.5, ['dog']))
  for path in files:
    content = json.loads(path.read_text()) | {'dataset_name': 'farm'}
    path.write_text(json.dumps(content))
  write_report(files, tmp_path / 'page.html')
  text = (tmp_path / 'page.html').read_text()
  foot = re.findall(r'<tfoot>.*?</tfoot>', text, re.DOTALL)[0]
  assert '0.750' in foot and '0.500' in foot and '0.250' not in foot
  assert 'these numbers do not compare' in text
  assert '+0.250' in text  # of the clip that both have


def test_files_without_clips_or_frames_make_a_page(tmp_path):
  for content in (report_files.davis({}), report_files.davis({'dog': []}), report_files.davis({'dog': [None, 0.5]})):
    assert 'a.json' in page_of(tmp_path, report_files.write(tmp_path, a=content, b=content)).text


def test_a_missing_mask_counts_as_an_empty_one(tmp_path, clips):
  from adnet_jax import evaluate, scores

  (tmp_path / 'ours' / 'dog' / '00003.png').unlink()
  made = evaluate.score_masks(tmp_path / 'ours', tmp_path / 'truth', jobs=1, allow_missing=True)
  scores.write_scores(made, tmp_path / 'ours.json')
  assert len(page_of(tmp_path, [tmp_path / 'ours.json'], **clips).all('img')) == 8


def test_soft_and_smaller_masks_are_read_as_they_were_scored(tmp_path, clips):
  from adnet_jax import evaluate, scores

  for path in (tmp_path / 'ours').rglob('*.png'):
    mask = made_clips.cv2.imread(str(path), made_clips.cv2.IMREAD_GRAYSCALE) > 0
    made_clips.write(path, np.where(mask, 200, 90)[::2, ::2])
  made = evaluate.score_masks(tmp_path / 'ours', tmp_path / 'truth', jobs=1, threshold=0.5, resize=True)
  scores.write_scores(made, tmp_path / 'ours.json')
  page = page_of(tmp_path, [tmp_path / 'ours.json'], **clips)
  assert len(page.all('img')) == 8 and 'brought to the size' in page.text


def test_other_masks_than_those_scored_are_refused(tmp_path, clips):
  made_clips.write(tmp_path / 'ours' / 'dog' / '00004.png', report_files.ellipse(4) * 255)
  with pytest.raises(DataError, match=r'not those that were scored.*dog/00004: J 0\.0000 in the file, 1\.0000'):
    page_of(tmp_path, [tmp_path / 'ours.json'], **clips)


@pytest.mark.parametrize(('folder', 'what'), [('truth', 'annotations'), ('ours', 'masks')])
def test_missing_files_are_all_named(tmp_path, clips, folder, what):
  for clip, frame in (('cat', '00003'), ('dog', '00004')):
    (tmp_path / folder / clip / f'{frame}.png').unlink()
  with pytest.raises(DataError, match=rf'{what} missing of the worst frames \(cat: 00003; dog: 00004\)'):
    page_of(tmp_path, [tmp_path / 'ours.json'], **clips)
  assert not (tmp_path / 'page.html').exists()


def test_the_worst_frame_stays_the_worst_where_its_picture_is_not_at_hand(tmp_path, clips):
  for path in (tmp_path / 'frames').rglob('0000[124578].jpg'):
    path.unlink()
  page = page_of(tmp_path, [tmp_path / 'ours.json'], **clips)
  worst = [one for one in page.all('figure') if one.get('class') == 'worst']
  assert sorted(one['data-frame'] for one in worst) == ['00003', '00004']
  assert len(page.all('img')) == 8 and page.text.count('no picture') == 6
  for path in (tmp_path / 'frames' / 'dog').iterdir():
    path.unlink()
  with pytest.raises(DataError, match=r'clips without frames \(dog\)'):
    page_of(tmp_path, [tmp_path / 'ours.json'], **clips)


def test_frames_without_a_folder_or_picture_are_errors(tmp_path, clips):
  (tmp_path / 'empty').mkdir()
  for frames, message in (('nowhere', 'folder of frames not found'), ('empty', 'no frames laid out')):
    with pytest.raises(DataError, match=message):
      page_of(tmp_path, [tmp_path / 'ours.json'], **clips | {'frames': tmp_path / frames})


def test_pictures_need_all_three_folders(tmp_path, clips):
  for absent in clips:
    given_ = {key: value for key, value in clips.items() if key != absent}
    with pytest.raises(UsageError, match=f'without --{absent}'):
      page_of(tmp_path, [tmp_path / 'ours.json'], **given_)


def test_masks_go_by_the_name_of_a_file_with_j_of_each_frame(tmp_path, clips):
  masks = tmp_path / 'ours'
  files = [tmp_path / 'ours.json', *report_files.write(tmp_path, ours__visal=report_files.saliency(0.1, 0.5))]
  assert len(page_of(tmp_path, files, **clips).all('img')) == 8
  for name, message in (('theirs', 'no score file has.*one of ours'), ('ours-visal', 'no J of each frame')):
    with pytest.raises(UsageError, match=message):
      page_of(tmp_path, files, **clips | {'masks': {name: masks}})
  again = json.loads((tmp_path / 'ours.json').read_text()) | {'name': 'same', 'dataset_name': 'one'}
  files = report_files.write(tmp_path, a=again, b=again | {'dataset_name': 'two'})
  with pytest.raises(UsageError, match='several score files'):
    page_of(tmp_path, files, **clips | {'masks': {'same': masks}})
  assert len(page_of(tmp_path, files, **clips | {'masks': {'a': masks, 'b': masks}}).all('img')) == 16


def test_an_earlier_page_is_kept_unless_told_otherwise(tmp_path):
  files = report_files.write(tmp_path, ours=report_files.flat(0.5))
  page = tmp_path / 'page.html'
  page.write_text('mine')
  with pytest.raises(UsageError, match='output exists'):
    write_report(files, page)
  broken = report_files.write(tmp_path, broken={})
  with pytest.raises(DataError, match='not a score file'):
    write_report(broken, page, overwrite=True)
  assert page.read_text() == 'mine'
  write_report(files, page, overwrite=True)
  assert page.read_text().startswith('<!doctype html>')
  for output, message in ((files[0], 'replace a score file'), (tmp_path, 'must be a file')):
    with pytest.raises(UsageError, match=message):
      write_report(files, output, overwrite=True)
  with pytest.raises(DataError, match='cannot be written'):
    write_report(files, page / 'x.html')
  with pytest.raises(UsageError, match='no score file'):
    write_report([], page, overwrite=True)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['broken.json', 'ours.json', 'page.html']


def test_without_jinja_the_extra_is_named(tmp_path, monkeypatch):
  from adnet_jax.report import html

  html._environment.cache_clear()
  monkeypatch.setitem(sys.modules, 'jinja2', None)
  with pytest.raises(AdnetError, match=r'adnet-jax\[report\]') as caught:
    write_report(report_files.write(tmp_path, ours=report_files.flat(0.5)), tmp_path / 'page.html')
  assert caught.value.exit_code == 2


@given(st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.2, 0.5, 1.0])), max_size=60))
def test_the_first_of_the_worst_frames_is_the_worst(values):
  worst = worst_frames(values)
  defined = [value for value in values if value is not None]
  assert [j for _, j in worst] == sorted(j for _, j in worst)
  assert len(worst) <= 4 and all(values[index] == j for index, j in worst)
  if defined:
    assert worst[0] == (values.index(min(defined)), min(defined))
    places = sorted(index for index, _ in worst)
    assert all(b - a >= max(1, len(values) // 16) for a, b in itertools.pairwise(places))
  else:
    assert worst == []


def test_both_outlines_show_even_where_they_agree():
  rgb = np.full((*report_files.SHAPE, 3), 90, np.uint8)
  for truth, prediction in ((0, 0), (0, 0.5)):
    image = draw_outlines(rgb, report_files.ellipse(0, truth), report_files.ellipse(0, prediction))
    for colour in (TRUE_COLOUR, PREDICTED_COLOUR):
      assert (image == colour).all(axis=-1).sum() > 100
  np.testing.assert_array_equal(image[0, 0], rgb[0, 0])
  assert draw_outlines(np.zeros((1080, 1920, 3), np.uint8), np.zeros((10, 10), bool), np.zeros((5, 5), bool)).shape == (
    225, 400, 3,
  )  # fmt: skip


def test_a_page_of_twenty_clips_stays_small(tmp_path, clips):
  report_files.make_clips(tmp_path, {f'clip{index}': [0.1, 0.2, 0.3, 0.4, 0.5, 0.6] for index in range(18)})
  page = page_of(tmp_path, [tmp_path / 'ours.json'], **clips)
  assert len(page.all('img')) == 20 * 4
  assert (tmp_path / 'page.html').stat().st_size < 1_500_000
