"""The routes of the web page: what is asked for and what is answered; every decision is made elsewhere."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from adnet_jax import __version__
from adnet_jax.server import events, jobs, maps, security, uploads, work
from adnet_jax.server.refused import Refused, is_full

STATIC = Path(__file__).parent / 'static'
# Small pictures never change within a run; results may carry anything, so they are saved, not shown.
LASTING = {'Cache-Control': 'private, max-age=3600'}
FRESH = {'Cache-Control': 'no-store'}
DOWNLOAD = {**FRESH, 'Content-Security-Policy': "sandbox; default-src 'none'"}


@dataclasses.dataclass(frozen=True)
class Site:
  """What the routes speak for.

  Attributes:
    queue: of jobs.
    similar: maps of similarity.
    limits: of uploads.
    guard: who may ask.
    model: name of the model, to be shown.
  """

  queue: jobs.Jobs
  similar: maps.Maps
  limits: uploads.Limits
  guard: security.Guard
  model: str


def create_app(site: Site) -> Starlette:
  """The ASGI application."""
  routes = [
    Route('/', _page),
    Route('/api/about', _about),
    Route('/api/jobs', _create, methods=['POST']),
    Route('/api/jobs/{id}', _show, methods=['GET']),
    Route('/api/jobs/{id}', _remove, methods=['DELETE']),
    Route('/api/jobs/{id}/anchor', _anchor, methods=['POST']),
    Route('/api/jobs/{id}/events', _events),
    Route('/api/jobs/{id}/similarity', _similarity),
    Route('/api/jobs/{id}/files/{name:path}', _file),
    Mount('/static', StaticFiles(directory=STATIC)),
  ]
  app = Starlette(
    routes=routes,
    middleware=[Middleware(security.Security, guard=site.guard)],
    exception_handlers={Refused: _refused, HTTPException: _http_error, Exception: _defect},
  )
  app.state.site = site
  return app


def _site(request: Request) -> Site:
  return request.app.state.site


def _job(request: Request) -> jobs.Job:
  return _site(request).queue.get(request.path_params['id'])


async def _page(_: Request) -> Response:
  return FileResponse(STATIC / 'index.html', headers={'Cache-Control': 'no-cache'})


async def _about(request: Request) -> Response:
  site = _site(request)
  limits = {'bytes': site.limits.bytes, 'pixels': site.limits.pixels, 'frames': site.limits.frames}
  about = {'version': __version__, 'model': site.model, 'similarity': site.similar.possible, 'limits': limits}
  return JSONResponse(about, headers=FRESH)


async def _create(request: Request) -> Response:
  site = _site(request)
  with site.queue.new_folder() as (job_id, folder):
    path = folder / jobs.UPLOAD
    sent = await uploads.receive(request, path, site.limits)
    also = await run_in_threadpool(work.check_forms, sent.also)
    auto = await run_in_threadpool(work.check_anchor, sent.anchor)
    clip, image = await run_in_threadpool(uploads.check, path, site.limits)
    # Something to look at while others are worked on.
    await run_in_threadpool(work.write_preview, folder / jobs.PREVIEWS, 0, image)
    job = site.queue.add(job_id, folder, sent.name, clip, read=1, also=also, auto=auto)
  return JSONResponse(site.queue.describe(job), 201, headers={**FRESH, 'Location': f'/api/jobs/{job_id}'})


async def _show(request: Request) -> Response:
  return JSONResponse(_site(request).queue.describe(_job(request)), headers=FRESH)


async def _remove(request: Request) -> Response:
  await run_in_threadpool(_site(request).queue.cancel, _job(request))
  return Response(status_code=204)


async def _anchor(request: Request) -> Response:
  site, job = _site(request), _job(request)
  try:
    frame = (await _short_json(request))['frame']
  except (ValueError, KeyError, TypeError):
    raise Refused(422, 'Send the frame as JSON, such as {"frame": 12}.') from None
  if not isinstance(frame, int) or isinstance(frame, bool) or not 0 <= frame < site.limits.frames:
    raise Refused(422, 'The frame is a whole number from 0.')
  uploads.check_space(job.folder.parent, 0, site.limits)
  await run_in_threadpool(site.queue.run_again, job, frame)
  return JSONResponse(site.queue.describe(job), 202, headers=FRESH)


async def _short_json(request: Request) -> Any:
  if request.headers.get('content-type', '').split(';')[0].strip() != 'application/json':
    raise Refused(415, 'Send JSON.')
  body = b''
  async for chunk in request.stream():
    body += chunk
    if len(body) > 1024:
      raise Refused(413, 'The request is too long.')
  return json.loads(body)


async def _events(request: Request) -> Response:
  stream = events.stream(_site(request).queue, _job(request))
  headers = {**FRESH, 'X-Accel-Buffering': 'no'}
  return StreamingResponse(stream, media_type='text/event-stream', headers=headers)


async def _file(request: Request) -> Response:
  job, name = _job(request), request.path_params['name']
  # Nothing of the name is used as a path: it is looked up, or its number is.
  if picture := re.fullmatch(r'(frames|masks)/(\d{1,9})\.(?:jpg|png)', name):
    return await _picture(job, picture[1], int(picture[2]))
  for path in jobs.offered(job):
    if path.name == name:
      return FileResponse(path, filename=name, headers=DOWNLOAD)
  raise Refused(404, 'There is no such file, or not yet.')


async def _picture(job: jobs.Job, kind: str, index: int) -> Response:
  run = job.run
  try:
    if kind == 'frames':
      content = await run_in_threadpool(jobs.preview_path(run.previews, index).read_bytes)
      return Response(content, media_type='image/jpeg', headers=LASTING)
    if index >= run.done:
      raise FileNotFoundError(index)
    content = await run_in_threadpool(work.encode_mask, jobs.mask_path(run.folder, index))
    return Response(content, media_type='image/png', headers=LASTING)
  except FileNotFoundError:
    raise Refused(404, f'Frame {index} is not there, or not yet.') from None


async def _similarity(request: Request) -> Response:
  """A map over the anchor for a pixel of a frame; with of=anchor, over the frame for a pixel of the anchor."""
  site, job = _site(request), _job(request)
  query, size = request.query_params, (job.clip.width, job.clip.height)
  frame = _number(query.get('frame'), 'frame', site.limits.frames)
  x, y = _number(query.get('x'), 'x', size[0]), _number(query.get('y'), 'y', size[1])
  of, form = query.get('of', 'frame'), query.get('format', 'png')
  if of not in ('frame', 'anchor') or form not in ('png', 'json'):
    raise Refused(422, 'of is frame or anchor, format is png or json.')
  if not site.similar.possible:
    raise Refused(409, 'This model compares no pixels.')
  run = job.run
  anchor = run.anchor_of(frame)
  pair = [jobs.preview_path(run.previews, index) for index in (frame, anchor)]
  if not all(path.is_file() for path in pair):
    raise Refused(404, f'Frame {frame} or the anchor is not there, or not yet.')
  asked, over = pair if of == 'frame' else pair[::-1]
  place = (x / max(size[0] - 1, 1), y / max(size[1] - 1, 1))
  values = await run_in_threadpool(site.similar.product, asked, over, place, size)
  row, column = divmod(int(values.argmax()), values.shape[1])
  peak = [round(i * (n - 1) / max(k - 1, 1)) for i, n, k in zip((column, row), size, values.shape[::-1])]
  if form == 'json':
    grid = {'height': values.shape[0], 'width': values.shape[1], 'values': values.round(4).tolist()}
    return JSONResponse({'frame': frame, 'anchor': anchor, 'of': of, 'peak': peak, **grid}, headers=FRESH)
  picture = maps.encode_map(maps.stretched(maps.as_shares(values), work.preview_size(*size)))
  headers = {**FRESH, 'Similarity-Peak': f'{peak[0]},{peak[1]}', 'Similarity-Anchor': str(anchor)}
  return Response(picture, media_type='image/png', headers=headers)


def _number(text: str | None, name: str, end: int) -> int:
  if text is None or not re.fullmatch(r'[0-9]{1,9}', text) or int(text) >= end:
    raise Refused(422, f'{name} is a whole number from 0 to {end - 1}.')
  return int(text)


async def _refused(_: Request, error: Exception) -> Response:
  assert isinstance(error, Refused)
  return JSONResponse({'error': error.sentence}, error.status, headers={**FRESH, **error.headers})


async def _http_error(_: Request, error: Exception) -> Response:
  assert isinstance(error, HTTPException)
  return JSONResponse({'error': f'{error.detail}.'}, error.status_code, headers=error.headers)


async def _defect(_: Request, error: Exception) -> Response:
  if is_full(error):
    return await _refused(_, uploads.disk_full())
  return JSONResponse({'error': 'The program failed at this request: its terminal says how.'}, 500)
