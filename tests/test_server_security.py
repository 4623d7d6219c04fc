"""Who is let in: hosts, origins, tokens; and the headers that keep the page to itself (fault 74)."""

from __future__ import annotations

import http.client
import re

import pytest

pytest.importorskip('uvicorn')
pytest.importorskip('starlette')
pytest.importorskip('python_multipart')
server_kit = pytest.importorskip('server_kit')

from adnet_jax.server import security  # noqa: E402

TOKEN = 'a token of a test'
ASKED = (
  ('GET', '/static/app.js'), ('GET', '/api/about'), ('POST', '/api/jobs'), ('DELETE', '/api/jobs/x'),
  ('GET', '/api/jobs/x/events'), ('GET', '/nothing'),
)  # fmt: skip


@pytest.fixture(scope='module')
def client(tmp_path_factory):
  with server_kit.serving(tmp_path_factory.mktemp('open') / 'jobs', server_kit.FakeWork()) as client:
    yield client


@pytest.fixture(scope='module')
def guarded(tmp_path_factory):
  guard = security.Guard('0.0.0.0', TOKEN)
  with server_kit.serving(tmp_path_factory.mktemp('guarded') / 'jobs', server_kit.FakeWork(), guard=guard) as client:
    yield client


@pytest.mark.parametrize(
  ('host', 'at_home', 'in_the_open'),
  [
    ('127.0.0.1:8008', True, True),
    ('localhost', True, True),
    ('LOCALHOST:1', True, True),
    ('localhost.:8008', True, True),
    ('[::1]:8008', True, True),
    ('127.5.5.5', True, True),
    ('192.168.0.7:8008', False, True),
    ('[fe80::1]:8008', False, True),
    ('myserver', False, True),
    ('evil.example', False, False),
    ('evil.example:8008', False, False),
    ('127.0.0.1.evil.example', False, False),
    ('localhost.evil.example', False, False),
    ('evil.example@127.0.0.1', False, False),
    ('127.0.0.1@evil.example', False, False),
    ('127.0.0.1/evil', False, False),
    ('127.0.0.1:x', False, False),
    ('0x7f000001', False, False),
    ('2130706433', False, False),
    ('', False, False),
    ('[::1', False, False),
  ],
)
def test_hosts(host, at_home, in_the_open, monkeypatch):
  monkeypatch.setattr(security.socket, 'gethostname', lambda: 'MyServer')
  assert security.Guard('127.0.0.1').knows_host(host) is at_home
  assert security.Guard('::1').knows_host(host) is at_home
  assert security.Guard('0.0.0.0', 't').knows_host(host) is in_the_open


@pytest.mark.parametrize(
  ('address', 'alone'),
  [('127.0.0.1', True), ('::1', True), ('localhost', True), ('127.1.2.3', True), ('0.0.0.0', False), ('::', False),
   ('192.168.0.7', False), ('myserver', False), ('', False)],
)  # fmt: skip
def test_which_addresses_need_a_token(address, alone):
  assert security.is_loopback(address) is alone


def test_foreign_hosts_and_origins_are_refused(client):
  own = f'127.0.0.1:{client.port}'
  for headers in (
    {'Host': 'evil.example'},
    {'Host': f'evil.example:{client.port}'},
    {'Origin': 'https://evil.example'},
    {'Origin': 'null'},
    {'Origin': f'http://127.0.0.1:{client.port + 1}'},
    {'Origin': f'file://{own}'},
    {'Origin': f'http://localhost:{client.port}'},
    {'Sec_Fetch_Site': 'cross-site'},
    {'Sec_Fetch_Site': 'same-site', 'Sec_Fetch_Mode': 'no-cors'},
  ):
    for method, path in ASKED:
      answer = client.ask(method, path, b'', **headers)
      assert answer.status == 403 and answer.json['error'], (headers, path)
  for headers in ({}, {'Origin': f'http://{own}'}, {'Sec_Fetch_Site': 'same-origin'}, {'Sec_Fetch_Site': 'none'}):
    assert client.get('/api/about', **headers).status == 200
  # A link on another site may lead to the page, which then asks by itself.
  assert client.get('/', Sec_Fetch_Site='cross-site', Sec_Fetch_Mode='navigate').status == 200
  assert client.get('/api/about', Sec_Fetch_Site='cross-site', Sec_Fetch_Mode='navigate').status == 403


def test_two_hosts_or_none_are_refused(client):
  for hosts in ([], ['localhost', 'evil.example']):
    connection = http.client.HTTPConnection('127.0.0.1', client.port)
    connection.putrequest('GET', '/api/about', skip_host=True)
    for host in hosts:
      connection.putheader('Host', host)
    connection.endheaders()
    assert connection.getresponse().status in (400, 403)
    connection.close()


def test_every_answer_carries_the_policy(client):
  for path in ('/', '/api/about', '/static/app.js', '/nothing', '/api/jobs/nobody'):
    headers = client.get(path).headers
    policy = headers['content-security-policy']
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert 'unsafe' not in policy and '*' not in policy
    assert headers['x-content-type-options'] == 'nosniff' and headers['referrer-policy'] == 'no-referrer'
    assert headers['cross-origin-resource-policy'] == 'same-origin'
    assert 'access-control-allow-origin' not in headers and 'server' not in headers
  assert 'default-src' in client.get('/', Host='evil.example').headers['content-security-policy']


def test_the_page_names_no_other_host(client):
  texts = [client.get('/').body.decode()]
  texts += [client.get(path).body.decode() for path in set(re.findall(r'/static/[\w.]+', texts[0]))]
  assert len(texts) == 4
  for text in texts:
    assert re.findall(r'https?://[^\s"\')]+', text) in ([], ['http://www.w3.org/2000/svg'])
    assert ' style="' not in text and ' onclick' not in text


def test_without_the_token_nothing_is_told(guarded):
  for method, path in ASKED[1:]:
    for headers in ({}, {'Authorization': 'Bearer wrong'}, {'Authorization': f'Basic {TOKEN}'}, {'Cookie': 'adnet=1'}):
      answer = guarded.ask(method, path, b'', **headers)
      assert answer.status == 401 and 'oken' in answer.json['error']
  for path in ('/', '/?token=wrong', '/?token='):
    page = guarded.get(path)
    assert page.status == 401 and b'name="token"' in page.body and TOKEN.encode() not in page.body
  assert guarded.get('/static/style.css').status == 200


def test_the_token_opens_the_page_and_stays_out_of_addresses(guarded):
  assert guarded.get('/api/about', Authorization=f'Bearer {TOKEN}').status == 200
  answer = guarded.get('/?token=a+token+of+a+test')
  assert answer.status == 303 and answer.headers['location'] == '/'
  cookie = answer.headers['set-cookie']
  assert 'httponly' in cookie.lower() and 'samesite=strict' in cookie.lower() and TOKEN not in cookie
  pair = cookie.split(';')[0]
  assert guarded.get('/', Cookie=pair).status == guarded.get('/api/about', Cookie=pair).status == 200
  assert guarded.get('/api/about', Cookie=f'other=1; {pair}; more="x"').status == 200
  assert guarded.get('/api/about', Cookie=pair[:-1]).status == 401
  # The cookie does not help another site.
  assert guarded.get('/api/about', Cookie=pair, Origin='https://evil.example').status == 403
  assert guarded.get('/api/about', Cookie=pair, Host='evil.example').status == 403


def test_a_token_guards_loopback_too_where_it_is_wanted():
  guard = security.Guard('127.0.0.1', TOKEN)
  assert guard.knows_token(TOKEN) and not guard.knows_token('') and not guard.knows_token(None)
  assert security.Guard().knows_token(None)
  assert guard.cookie != security.Guard('127.0.0.1', 'other').cookie
