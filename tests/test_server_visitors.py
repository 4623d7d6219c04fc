"""Visitors of the web page in a real browser: several, gone, come back, with odd files; skipped where there is none."""

# Fixtures come by import:
# ruff: noqa: F811

from __future__ import annotations

import pytest

pytest.importorskip('uvicorn')
pytest.importorskip('starlette')
pytest.importorskip('python_multipart')
pytest.importorskip('playwright.sync_api')

import numpy as np
import server_kit
from page_kit import (  # noqa: F401
  NARROW,
  Worker,
  accessible,
  browser,
  click_at,
  client,
  done,
  eventually,
  needs_chromium,
  page,
  root,
  show,
  state,
  upload,
  video,
  visit,
  worker,
)

from adnet_jax.server import security

pytestmark = needs_chromium


def test_two_users_see_their_own_places_and_videos(visit, worker, video, tmp_path):
  worker.hold()
  first, second = visit(), visit(*NARROW)
  upload(first, video, 'first.mp4')
  state(first, 'running')
  upload(second, server_kit.write_video(tmp_path / 'x.mp4', 5, seed=3), 'second.mp4')
  state(second, 'queued')
  assert second.locator('#status').inner_text() == 'Waiting, next in line'
  # There is something to look at already.
  eventually(second, 'document.getElementById("picture").dataset.frame', '0')
  accessible(second)
  worker.go_on()
  state(first, 'done')
  state(second, 'done')
  assert first.locator('#name').inner_text() == 'first.mp4' and '12 masks' in first.locator('#status').inner_text()
  assert second.locator('#name').inner_text() == 'second.mp4' and '5 masks' in second.locator('#status').inner_text()


def test_a_job_is_found_again_after_a_reload_and_removed_at_the_end(visit, video, root):
  page = visit()
  done(page, video)
  page.reload()
  state(page, 'done')
  eventually(page, 'document.getElementById("picture").dataset.frame', '0')
  folder = root / page.url.split('#')[1]
  assert folder.is_dir()
  page.get_by_role('button', name='Remove').click()
  page.get_by_role('alert').filter(has_text='removed').wait_for()
  assert not folder.exists()


def test_a_closed_browser_ends_its_job(visit, worker, video, root):
  worker.hold()
  page = visit()
  upload(page, video)
  state(page, 'running')
  folder = root / page.url.split('#')[1]
  page.wait_for_timeout(2500)
  assert folder.is_dir()
  page.close()
  server_kit.until(lambda: not folder.exists())
  worker.go_on()


def test_what_is_no_video_is_said_and_another_may_be_dropped(visit, tmp_path, video):
  (tmp_path / 'text.mp4').write_text('no video')
  page = visit(complains=True)  # the browser itself notes every answer that is an error
  upload(page, tmp_path / 'text.mp4')
  page.get_by_role('alert').filter(has_text='not a video').wait_for()
  page.evaluate(
    """bytes => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], 'dropped.mp4', {type: 'video/mp4'}));
      for (const kind of ['dragover', 'drop']) {
        document.body.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: transfer}));
      }
    }""",
    list(video.read_bytes()),
  )
  state(page, 'done')
  assert page.locator('#name').inner_text() == 'dropped.mp4'


def test_markup_in_a_name_is_text(visit, video):
  page = visit()
  name = '<img src=x onerror="document.title=1">&amp;.mp4'
  done(page, video, name)
  assert page.locator('#name').inner_text() == name
  assert page.locator('#name *').count() == 0 and name in page.title()
  accessible(page)


def test_the_token_is_asked_for(visit, tmp_path):
  guard = security.Guard('127.0.0.1', 'secret')
  with server_kit.serving(tmp_path / 'jobs', Worker(), guard=guard) as client:
    page = visit(complains=True, port=client.port)
    accessible(page)
    page.get_by_label('Token').fill('secret')
    page.get_by_role('button', name='Open the page').click()
    page.locator('#drop').wait_for()
    eventually(page, 'document.getElementById("about").textContent.startsWith("Model tiny")')
    assert 'secret' not in page.url


def test_colours_differ_between_dark_and_light(visit):
  backgrounds = {
    visit(390, scheme).evaluate('getComputedStyle(document.body).backgroundColor') for scheme in ('dark', 'light')
  }
  assert len(backgrounds) == 2
  assert np.ptp([sum(map(int, text[4:-1].split(','))) for text in backgrounds]) > 400


def test_a_film_with_cuts_has_an_anchor_for_each_shot(page, video, worker):
  page.locator('summary').click()
  page.get_by_label('A film with cuts').check()
  accessible(page)
  done(page, video)
  assert worker.auto
  assert page.locator('#film .anchor').evaluate_all('all => all.map(one => +one.dataset.frame)') == [0, 5]
  show(page, 4)
  assert page.locator('#anchor-number').inner_text() == 'frame 0'
  show(page, 7)
  assert page.locator('#anchor-number').inner_text() == 'frame 5'
  assert page.get_by_role('button', name='Segment again from frame 7').is_enabled()


def test_back_leads_to_the_results_before_another_video(page, video, worker):
  done(page, video)
  address = page.url
  page.get_by_role('button', name='Another video').click()
  page.locator('#drop').wait_for()
  page.go_back()
  state(page, 'done')
  assert page.url == address and page.locator('#files li').count() == 2
  # A job that is under way ends by Cancel alone, or it would hold the line.
  page.get_by_role('button', name='Another video').click()
  worker.hold()
  upload(page, video)
  state(page, 'running')
  assert not page.get_by_role('button', name='Another video').is_visible()


def test_on_a_phone_the_answer_to_a_tap_comes_into_view(visit, video):
  page = visit(*NARROW)
  page.set_viewport_size({'width': 390, 'height': 500})
  done(page, video)
  page.evaluate('scrollTo(0, 0)')
  click_at(page, '#picture', 0.5, 0.1)
  eventually(page, 'document.getElementById("anchor").getBoundingClientRect().bottom <= innerHeight')
