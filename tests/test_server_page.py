"""One video on the web page in a real browser, wide and light or narrow and dark; skipped where there is none."""

# Fixtures come by import:
# ruff: noqa: F811

from __future__ import annotations

import zipfile

import pytest

pytest.importorskip('uvicorn')
pytest.importorskip('starlette')
pytest.importorskip('python_multipart')
pytest.importorskip('playwright.sync_api')

import server_kit
from page_kit import (  # noqa: F401
  FRAMES,
  accessible,
  browser,
  click_at,
  client,
  done,
  eventually,
  needs_chromium,
  page,
  pixel,
  root,
  show,
  state,
  upload,
  video,
  visit,
  worker,
)

pytestmark = needs_chromium


def test_from_a_video_to_its_files(page, video, worker, tmp_path):
  accessible(page)
  page.locator('summary').click()
  page.get_by_label('Transparent video (WebM)').check()
  accessible(page)
  worker.hold()
  upload(page, video)
  state(page, 'running')
  assert page.locator('#name').inner_text() == 'my dog.mp4'
  assert worker.also == ('webm',)
  # The masks come one by one while the job runs, and the newest is shown.
  for k in range(3):
    worker.steps.release()
    eventually(page, '+document.getElementById("picture").dataset.frame', k)
    eventually(page, 'document.getElementById("picture").dataset.mask', '1')
    eventually(page, 'document.getElementById("status").textContent.includes("' + f'{k + 1} of 12 masks")')
  assert page.get_by_role('button', name='Follow').get_attribute('aria-pressed') == 'true'
  assert page.locator('#files li').count() == 0
  accessible(page)
  worker.go_on()
  state(page, 'done')
  assert page.locator('#status').inner_text().startswith('Done: 12 masks')
  eventually(page, 'document.getElementById("said").textContent.startsWith("Done")')
  accessible(page)
  names = page.locator('#files a').evaluate_all('links => links.map(link => link.download)')
  assert names == ['my dog-masks.zip', 'my dog-summary.json']
  with page.expect_download() as download:
    page.get_by_role('link', name='Masks').click()
  download.value.save_as(tmp_path / 'masks.zip')
  assert download.value.suggested_filename.endswith('masks.zip')
  with zipfile.ZipFile(tmp_path / 'masks.zip') as archive:
    assert len(archive.namelist()) == FRAMES


def test_the_slider_wipes_from_original_over_mask_to_cut_out(page, video):
  done(page, video)
  show(page, 5)
  disc, outside = (0.2 + 0.6 * 5 / (FRAMES - 1), 0.5), (0.95, 0.1)
  wipe = page.get_by_role('slider', name='Wipe')
  page.get_by_role('button', name='Original').click()
  eventually(page, 'document.getElementById("tag-right").textContent', 'Original')
  red, _, _, alpha = pixel(page, 'picture', *disc)
  assert red > 180 and alpha == 255 and 0 < sum(pixel(page, 'picture', *outside)[:3]) < 400
  page.get_by_role('button', name='Mask').click()
  eventually(page, 'document.getElementById("tag-left").textContent', 'Mask')
  assert pixel(page, 'picture', *disc) == [255, 255, 255, 255] and pixel(page, 'picture', *outside) == [0, 0, 0, 255]
  page.get_by_role('button', name='Cut-out').click()
  eventually(page, 'document.getElementById("tag-left").textContent', 'Cut-out')
  red, green, _, alpha = pixel(page, 'picture', *disc)
  assert red > 180 and green < 220 and alpha == 255 and pixel(page, 'picture', *outside)[3] == 0
  assert page.get_by_role('button', name='Cut-out').get_attribute('aria-pressed') == 'true'
  # By keyboard, and between two stops: what comes next on the left of the line, what was before on its right.
  wipe.focus()
  for key in ('Home', *['ArrowRight'] * 25):
    page.keyboard.press(key)
  assert wipe.input_value() == '25' and wipe.get_attribute('aria-valuetext').startswith('Mask on the left 50 percent')
  eventually(page, 'document.getElementById("tag-right").textContent', 'Original')
  assert pixel(page, 'picture', 0.1, 0.1) == [0, 0, 0, 255] and sum(pixel(page, 'picture', 0.9, 0.1)[:3]) > 0


def test_another_anchor_runs_the_job_again(page, video, worker):
  done(page, video)
  assert page.locator('#film .anchor').get_attribute('aria-label') == 'Frame 0, the anchor'
  last = page.locator('#film button').last
  last.focus()
  page.keyboard.press('Enter')
  eventually(page, 'document.getElementById("picture").dataset.frame', '11')
  assert last.get_attribute('aria-current') == 'true'
  accessible(page)
  before = len(worker.anchors)
  page.get_by_role('button', name='Segment again from frame 11').click()
  eventually(page, 'document.getElementById("picture").dataset.mask', '2')
  state(page, 'done')
  assert worker.anchors[before:] == [11]
  assert page.locator('#anchor-number').inner_text() == 'frame 11'
  assert page.locator('#film .anchor').get_attribute('aria-label') == 'Frame 11, the anchor'
  # Frames between the small pictures are chosen by the slider.
  show(page, 7)
  assert page.get_by_role('button', name='Segment again from frame 7').is_enabled()
  show(page, 11)
  assert page.get_by_role('button', name='Frame 11 is the anchor').is_disabled()


def test_a_click_shows_the_similarity_over_the_other_frame(page, video):
  done(page, video)
  show(page, 5)
  page.get_by_role('button', name='Cut-out').click()
  with page.expect_response('**/similarity?*') as asked:
    click_at(page, '#picture', 0.97, 0.04)
  assert 'frame=5&x=62&y=1&of=frame' in asked.value.url
  eventually(page, 'document.getElementById("peak").textContent', 'Pixel 62, 1 of frame 5 (cross), most alike in the '
             'anchor: 63, 0 (ring).')  # fmt: skip
  bright, dark = pixel(page, 'anchor', 0.9, 0.1), pixel(page, 'anchor', 0.1, 0.9)
  assert sum(bright[:3]) > sum(dark[:3]) + 100
  assert 'alike' in page.locator('#said').inner_text()
  accessible(page)
  # The other way round, and it follows the frame.
  click_at(page, '#anchor', 0.04, 0.96)
  eventually(page, 'document.getElementById("tag-left").textContent', 'Similarity')
  eventually(page, 'document.getElementById("peak").textContent.endsWith("frame 5: 0, 47 (ring).")')
  assert sum(pixel(page, 'picture', 0.1, 0.9)[:3]) > sum(pixel(page, 'picture', 0.9, 0.1)[:3]) + 100
  with page.expect_response('**/similarity?frame=6&*'):
    show(page, 6)
  page.get_by_role('button', name='Hide similarity').click()
  eventually(page, 'document.getElementById("tag-left").textContent', 'Cut-out')
  assert page.locator('#hint').is_visible()


def test_similarity_by_keyboard(page, video):
  done(page, video)
  page.locator('#anchor').focus()
  for key in ('ArrowRight', 'ArrowRight', 'ArrowUp'):
    page.keyboard.press(key)
  with page.expect_response('**/similarity?*') as asked:
    page.keyboard.press('Enter')
  assert 'x=36&y=22&of=anchor' in asked.value.url
  eventually(page, 'document.getElementById("tag-left").textContent', 'Similarity')
  page.keyboard.press('Escape')
  eventually(page, 'document.getElementById("tag-left").textContent', 'Mask')


def test_cancel_in_the_middle_removes_everything(page, video, worker, root):
  worker.hold()
  before = set(root.iterdir())
  upload(page, video)
  state(page, 'running')
  worker.steps.release()
  eventually(page, 'document.getElementById("picture").dataset.mask', '1')
  (folder,) = set(root.iterdir()) - before
  page.get_by_role('button', name='Cancel').click()
  page.get_by_role('alert').filter(has_text='cancelled').wait_for()
  assert page.locator('#drop').is_visible() and page.url.endswith('/')
  server_kit.until(lambda: not folder.exists())
  accessible(page)


def test_playing_goes_through_the_frames(page, video):
  done(page, video)
  show(page, 0)
  page.get_by_role('button', name='Play').click()
  eventually(page, '+document.getElementById("picture").dataset.frame > 3')
  page.get_by_role('button', name='Pause').click()
  assert page.get_by_role('button', name='Play').is_visible()
