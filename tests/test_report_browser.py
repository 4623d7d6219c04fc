"""The page in a real browser without a screen; skipped where there is none."""

from __future__ import annotations

import json
import socket
import threading

import pytest
import report_files
from chromium import launched, needs_chromium

from adnet_jax.report.page import write_report

pytestmark = needs_chromium
WRONG = {
  'cat': [0, 0, 0.1, 0.5, 0.2, 0.45, 0, 0],
  'dog': [0, 0, 0, 0, 1.5, 0, 0.3, 0],
  'hen <img src=x>': [0, 0.9, 0, 0, 0.4, 0],
}


@pytest.fixture(scope='module')
def browser():
  with launched() as chromium:
    yield chromium


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with `page.html` of two methods, and their score files."""
  root = tmp_path_factory.mktemp('report')
  report_files.make_clips(root, WRONG)
  report_files.make_clips(root, {clip: shares[::-1] for clip, shares in WRONG.items()}, 'theirs')
  masks = {name: root / name for name in ('ours', 'theirs')}
  files = [root / 'ours.json', root / 'theirs.json']
  write_report(files, root / 'page.html', frames=root / 'frames', truth=root / 'truth', masks=masks)
  return root


@pytest.fixture(params=[(1280, 'light'), (375, 'dark')], ids=['wide', 'phone'])
def page(request, browser, folder):
  """The page opened from disk; at the end nothing may have been asked for, and nothing complained of."""
  width, scheme = request.param
  context = browser.new_context(viewport={'width': width, 'height': 800}, color_scheme=scheme)
  shown = context.new_page()
  requests, complaints = [], []
  shown.on('request', lambda one: requests.append(one.url))
  shown.on('console', lambda one: complaints.append(one.text))
  shown.on('pageerror', lambda one: complaints.append(str(one)))
  address = (folder / 'page.html').as_uri()
  shown.goto(address)
  yield shown
  context.close()
  assert [url for url in requests if not url.startswith('data:')] == [address]
  assert complaints == []


def test_all_pictures_load(page):
  widths = page.eval_on_selector_all('img', 'all => all.map(one => [one.complete, one.naturalWidth])')
  assert len(widths) == 2 * 4 * len(WRONG)
  assert all(complete and width == report_files.SHAPE[1] for complete, width in widths)


def test_the_frame_marked_worst_is_the_worst(page, folder):
  for name in ('ours', 'theirs'):
    clips = json.loads((folder / f'{name}.json').read_text())['clips']
    for clip, entry in clips.items():
      card = page.locator('.clip').filter(has=page.get_by_role('heading', name=clip, exact=True))
      strip = card.locator(f'.strip[data-name="{name}"]')
      values = dict(zip(entry['frames'], entry['J']['per_frame'], strict=True))
      worst = strip.locator('figure.worst')
      assert worst.count() == 1
      assert values[worst.get_attribute('data-frame')] == min(values.values())
      assert f'J {min(values.values()):.3f}' in worst.inner_text()
      assert worst.locator('img').count() == 1


def column(table, index: int) -> list[str]:
  return table.locator('tbody tr').evaluate_all('(rows, i) => rows.map(row => row.cells[i].textContent.trim())', index)


def test_tables_sort_by_mouse_and_by_keyboard(page):
  table = page.get_by_role('region', name='Clips', exact=True).locator('table')
  before = column(table, 0)
  values = column(table, 2)
  heading = table.locator('thead tr').nth(1).locator('th').first
  button = heading.get_by_role('button')
  assert heading.get_attribute('aria-sort') == 'none'
  button.click()
  assert heading.get_attribute('aria-sort') == 'descending'
  assert column(table, 2) == sorted(values, key=float, reverse=True)
  button.focus()
  page.keyboard.press('Enter')
  assert heading.get_attribute('aria-sort') == 'ascending'
  assert column(table, 2) == sorted(values, key=float)
  clip = table.locator('thead th').first
  clip.get_by_role('button').focus()
  page.keyboard.press('Space')
  assert (clip.get_attribute('aria-sort'), heading.get_attribute('aria-sort')) == ('ascending', 'none')
  assert column(table, 0) == sorted(before)
  # The data set's row is no clip.
  assert table.locator('tfoot th').inner_text() == 'data set'


def test_cells_without_a_number_stay_last_both_ways(page):
  table = page.get_by_role('region', name='Table 2. DAVIS-2016 and FBMS, percent').locator('table')
  page.locator('summary', has_text='Table 2').click()
  button = table.locator('thead tr').nth(1).get_by_role('button').nth(4)
  for _ in range(2):
    button.click()
    texts = column(table, 6)
    numbers = [text for text in texts if text[0].isdigit()]
    assert len(numbers) == 6 and texts[:6] == numbers
  assert numbers == sorted(numbers, key=float)


def test_the_page_is_as_wide_as_the_window(page):
  assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth')


def test_the_policy_stops_a_script_that_is_not_the_pages(browser, folder):
  shown = browser.new_page()
  shown.goto((folder / 'page.html').as_uri())
  shown.evaluate("""() => {
    const script = document.createElement('script');
    script.textContent = 'window.stolen = true';
    document.body.append(script);
  }""")
  assert shown.evaluate('window.stolen') is None
  shown.close()


def test_no_request_leaves_the_page_over_http_either(browser, folder):
  text = (folder / 'page.html').read_bytes()
  asked = []
  with socket.create_server(('127.0.0.1', 0)) as server:

    def serve():
      while True:
        try:
          connection, _ = server.accept()
        except OSError:
          return
        with connection:
          if line := connection.recv(65536).split(b'\r\n')[0]:
            asked.append(line)
            head = (
              f'HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n'
            )
            connection.sendall(head.encode() + text)

    threading.Thread(target=serve, daemon=True).start()
    shown = browser.new_page()
    shown.goto(f'http://127.0.0.1:{server.getsockname()[1]}/page.html')
    shown.wait_for_timeout(300)
    shown.close()
    server.shutdown(socket.SHUT_RDWR)
  assert asked == [b'GET /page.html HTTP/1.1']
