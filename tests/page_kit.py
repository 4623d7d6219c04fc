"""The web page's visitors in a real browser without a screen: fixtures and steps that its tests share."""

from __future__ import annotations

import importlib.util
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip('uvicorn')
pytest.importorskip('starlette')
pytest.importorskip('python_multipart')
server_kit = pytest.importorskip('server_kit')

from chromium import launched, needs_chromium  # noqa: E402, F401

from adnet_jax import sources, writers  # noqa: E402
from adnet_jax.server import jobs, work  # noqa: E402

WIDE, NARROW = (1280, 'light'), (390, 'dark')
FRAMES = 12
SERIOUS = ('serious', 'critical')


class Worker:
  """Takes what is bright and red for foreground; with `steps` it waits for a release before each frame's mask."""

  def __init__(self):
    self.steps: threading.Semaphore | None = None
    self.anchors: list[int] = []
    self.also: tuple[str, ...] = ()
    self.auto = False

  def hold(self) -> None:
    self.steps = threading.Semaphore(0)

  def go_on(self) -> None:
    steps, self.steps = self.steps, None
    if steps is not None:
      steps.release(1000)

  def __call__(self, run: jobs.Run) -> None:
    self.anchors.append(run.anchor)
    self.also, self.auto = run.also, run.auto
    if run.auto:
      run.anchors = [0, 5]
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
  with launched() as chromium:
    yield chromium


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
