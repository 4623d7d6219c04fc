"""Who may ask: host names, origins, the token, and the headers that keep the page to itself; knows no job.

The page listens on loopback unless told otherwise. A web site that the user visits can still send requests there, under
its own origin or, with a name that it points at 127.0.0.1 (DNS rebinding), under what looks like ours. Both are
refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import ipaddress
import socket
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
  'Content-Security-Policy': (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
  ),
  'X-Content-Type-Options': 'nosniff',
  'X-Frame-Options': 'DENY',
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Permissions-Policy': 'camera=(), microphone=(), geolocation=()',
}
# Asked for by the token's own page; nothing of a user is in them.
PUBLIC = '/static/'
TOKEN_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Token wanted · AD-Net</title><link rel="stylesheet" href="/static/style.css">
<link rel="icon" href="/static/icon.svg"></head>
<body class="token"><main><h1>A token is wanted</h1>
<p>The program that serves this page has printed one where it was started.</p>
<form method="get" action="/"><label for="token">Token</label>
<input id="token" name="token" type="password" required autocomplete="off">
<button class="primary">Open the page</button></form></main></body></html>
"""


@dataclasses.dataclass(frozen=True)
class Guard:
  """What is let in.

  Attributes:
    address: that the server is bound to.
    token: that a request has to bring; None for none.
  """

  address: str = '127.0.0.1'
  token: str | None = None

  def knows_host(self, host: str) -> bool:
    """Whether a Host header names this server and not somebody's domain.

    An address cannot be rebound, a name can: of names only those that are this machine's own.
    """
    try:
      parts = urlsplit(f'//{host}')
      name = parts.hostname or ''
      if parts.netloc != host or '@' in host or (parts.port is not None and not parts.port):
        return False
    except ValueError:
      return False
    name = name.rstrip('.').lower()
    if name == 'localhost':
      return True
    try:
      address = ipaddress.ip_address(name)
    except ValueError:
      return not is_loopback(self.address) and name in (socket.gethostname().lower(), self.address.lower())
    return address.is_loopback or not is_loopback(self.address)

  def knows_token(self, given: str | None) -> bool:
    """Whether the token is the one, compared in a time that does not tell."""
    return self.token is None or (given is not None and hmac.compare_digest(given.encode(), self.token.encode()))

  @property
  def cookie(self) -> tuple[str, str]:
    """Name and value of the cookie that stands for the token; the name differs, as ports share their cookies."""
    digest = hashlib.sha256(f'adnet page {self.token}'.encode()).hexdigest()
    return f'adnet-{digest[:8]}', digest[8:]


def is_loopback(address: str) -> bool:
  """Whether only this machine can reach an address that a server is bound to."""
  if address.lower() == 'localhost':
    return True
  try:
    return ipaddress.ip_address(address.split('%')[0]).is_loopback
  except ValueError:
    return False


class Security:
  """ASGI middleware: refuses foreign hosts and origins (403) and missing tokens (401), adds HEADERS to every answer."""

  def __init__(self, app: ASGIApp, guard: Guard):
    self.app, self.guard = app, guard

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] != 'http':
      await self.app(scope, receive, send)
      return

    async def send_guarded(message: Message) -> None:
      if message['type'] == 'http.response.start':
        headers = MutableHeaders(scope=message)
        for name, value in HEADERS.items():
          headers.setdefault(name, value)
      await send(message)

    answer = self._refuse(scope) or self._token(scope)
    await (answer or self.app)(scope, receive, send_guarded)

  def _refuse(self, scope: Scope) -> Response | None:
    headers = Headers(scope=scope)
    hosts = headers.getlist('host')
    if len(hosts) != 1 or not self.guard.knows_host(hosts[0]):
      return _error(403, 'This page answers to the name of its own machine only.')
    origin = headers.get('origin')
    if origin is not None and urlsplit(origin)[:2] not in (('http', hosts[0]), ('https', hosts[0])):
      return _error(403, 'Requests from other sites are refused.')
    # A link that is followed to the page itself is harmless, and a browser names no origin with it.
    opened = headers.get('sec-fetch-mode') == 'navigate' and scope['method'] == 'GET' and scope['path'] == '/'
    if headers.get('sec-fetch-site', 'same-origin') not in ('same-origin', 'none') and not opened:
      return _error(403, 'Requests from other sites are refused.')
    return None

  def _token(self, scope: Scope) -> Response | None:
    if self.guard.token is None or scope['path'].startswith(PUBLIC):
      return None
    headers, page = Headers(scope=scope), scope['path'] == '/'
    name, value = self.guard.cookie
    if page and (asked := parse_qs(scope['query_string'].decode('latin-1')).get('token')):
      if not self.guard.knows_token(asked[0]):
        return HTMLResponse(TOKEN_PAGE, 401)
      # Out of the address, where history and screenshots would keep it.
      answer = RedirectResponse('/', 303)
      answer.set_cookie(name, value, httponly=True, samesite='strict')
      return answer
    kind, _, bearer = headers.get('authorization', '').partition(' ')
    if kind.lower() == 'bearer' and self.guard.knows_token(bearer.strip()):
      return None
    if hmac.compare_digest(_cookie(headers, name).encode(), value.encode()):
      return None
    if page:
      return HTMLResponse(TOKEN_PAGE, 401)
    return _error(401, 'A token is wanted: open the address that was printed, or send "Authorization: Bearer TOKEN".')


def _cookie(headers: Headers, name: str) -> str:
  try:
    found = SimpleCookie(headers.get('cookie', '')).get(name)
  except CookieError:
    return ''
  return found.value if found else ''


def _error(status: int, sentence: str) -> Response:
  return JSONResponse({'error': sentence}, status)
