"""The web page in a real browser without a screen, wide and light or narrow and dark; skipped where there is none."""

from __future__ import annotations

import importlib.util
import shutil
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('uvicorn')
pytest.importorskip('starlette')
pytest.importorskip('python_multipart')
playwright = pytest.importorskip('playwright.sync_api')
server_kit = pytest.importorskip('server_kit')

from adnet_jax import sources, writers  # noqa: E402
from adnet_jax.server import jobs, security, work  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium in PATH')
# Without these it asks its maker for updates, which must not be taken for the page's own requests.
QUIET = (
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
)  # fmt: skip
WIDE, NARROW = (1280, 'light'), (390, 'dark')
FRAMES = 12
SERIOUS = ('serious', 'critical')


class Worker:
  """Takes what is bright and red for foreground; with `steps` it waits for a release before each frame's mask."""

  def __init__(self):
    self.steps: threading.Semaphore | None = None
    self.anchors: list[int] = []
    self.also: tuple[str, ...] = ()

  def hold(self) -> None:
    self.steps = threading.Semaphore(0)

  def go_on(self) -> None:
    steps, self.steps = self.steps, None
    if steps is not None:
      steps.release(1000)

  def __call__(self, run: jobs.Run) -> None:
    self.anchors.append(run.anchor)
    self.also = run.also
    for k, frame in enumerate(sources.VideoFile('clip', run.upload)):
      work.write_preview(run.previews, k, frame.image)
      run.read = max(run.read, k + 1)
      while self.steps is not None and not self.steps.acquire(timeout=0.02):
        run.check()
      run.check()
      writers.write_mask(jobs.mask_path(run.folder, k), frame.image[..., 0] > 150)
      run.advance(k + 1)
      time.sleep(0.01)
    work._pack_folders(run.folder, run.check)
    (run.folder / 'summary.json').write_text('{}')


@pytest.fixture(scope='module')
def browser():
  with playwright.sync_playwright() as driver:
    chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
    yield chromium
    chromium.close()


@pytest.fixture(scope='module')
def video(tmp_path_factory):
  return server_kit.write_video(tmp_path_factory.mktemp('video') / 'my dog.mp4', FRAMES)


@pytest.fixture(scope='module')
def worker():
  return Worker()


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('served') / 'jobs'


@pytest.fixture(scope='module')
def client(worker, root):
  times = jobs.Times(grace=2.0)
  with server_kit.serving(root, worker, times=times) as client:
    yield client
    worker.go_on()


@pytest.fixture
def visit(browser, client):
  """Opens the page as a new user; at the end nobody else was asked for anything, and nothing was complained of."""
  opened = []

  def open_page(width=1280, scheme='light', complains=False, port=client.port):
    context = browser.new_context(viewport={'width': width, 'height': 900}, color_scheme=scheme)
    page, requests, complaints = context.new_page(), [], []
    page.set_default_timeout(30_000)
    page.on('request', lambda one: requests.append(one.url))
    page.on('console', lambda one: complaints.append(one.text))
    page.on('pageerror', lambda one: complaints.append(str(one)))
    opened.append((context, requests, [] if complains else complaints, port))
    page.goto(f'http://127.0.0.1:{port}/')
    return page

  yield open_page
  for context, requests, complaints, port in opened:
    context.close()
    assert requests and all(url.startswith((f'http://127.0.0.1:{port}/', 'data:', 'blob:')) for url in requests)
    assert complaints == []


@pytest.fixture(params=[WIDE, NARROW], ids=['wide', 'narrow'])
def page(request, visit, worker):
  yield visit(*request.param)
  worker.go_on()


def upload(page, path, name=None):
  file = {'name': name or path.name, 'mimeType': 'video/mp4', 'buffer': path.read_bytes()}
  page.set_input_files('#file', file)


def state(page, *wanted):
  """Waits for the job's state. The page's policy forbids what `wait_for_function` does."""
  selector = ', '.join(f'#work[data-state="{one}"]' for one in wanted)
  page.wait_for_selector(selector)


def done(page, path, name=None):
  upload(page, path, name)
  state(page, 'done')


def eventually(page, expression, wanted=True):
  found = None
  for _ in range(300):
    found = page.evaluate(expression)
    if found == wanted:
      return
    page.wait_for_timeout(50)
  raise AssertionError(f'{expression}: {found}')


def pixel(page, canvas, x, y):
  """RGBA of a canvas at shares of its width and height."""
  return page.evaluate(
    """([id, x, y]) => {
      const {width, height} = document.getElementById(id);
      const context = new OffscreenCanvas(width, height).getContext('2d', {willReadFrequently: true});
      context.drawImage(document.getElementById(id), 0, 0);
      return [...context.getImageData(Math.floor(x * width), Math.floor(y * height), 1, 1).data];
    }""",
    [canvas, x, y],
  )


def show(page, frame):
  page.locator('#frame').fill(str(frame))
  eventually(page, 'document.getElementById("picture").dataset.frame', str(frame))


def click_at(page, canvas, x, y):
  box = page.locator(canvas).bounding_box()
  page.locator(canvas).click(position={'x': x * box['width'], 'y': y * box['height']})


def accessible(page):
  """No serious fault by axe-core, where it is installed, and no sideways scrolling."""
  assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth')
  found = importlib.util.find_spec('axe_playwright_python')
  if found is None:
    return
  page.evaluate((Path(found.submodule_search_locations[0]) / 'axe.min.js').read_text())
  result = page.evaluate('axe.run()')
  faults = [
    (one['id'], one['impact'], one['help'], [node['html'] for node in one['nodes']]) for one in result['violations']
  ]
  assert [fault for fault in faults if fault[1] in SERIOUS] == []
  assert len(result['passes']) > 10


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
