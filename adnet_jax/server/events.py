"""A job's state and its masks as they come, as server-sent events; knows no network and no route."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool

from adnet_jax.server import work
from adnet_jax.server.jobs import CANCELLED, DONE, FAILED, Job, Jobs, mask_path

# Seconds between looks at a job: masks come a few a second at most on the machines that this is for.
PAUSE = 0.1
# Proxies and phones close what is silent.
HEARTBEAT = 10.0
# A reader that comes late fetches what it shows; only the newest masks are sent to it.
BEHIND = 64


async def stream(jobs: Jobs, job: Job) -> AsyncIterator[bytes]:
  """Events of a job: `job` whenever something of it has changed, `mask` for each frame that was computed meanwhile.

  The stream goes on when the job has ended, as it may be run again from another anchor; it ends with a cancelled job
  and with the server.
  """
  run, sent, said, last = job.run, job.run.done, None, time.monotonic()
  with jobs.watching(job):
    yield b'retry: 1000\n\n'
    while not jobs.stopping:
      description = jobs.describe(job)
      if job.run is not run:
        # Whose masks these are is said before the masks, that the last of them is there after them.
        run, sent, said = job.run, 0, description
        yield event('job', description)
      # What is known to be on the disk; more may come while these are sent.
      done = run.done
      for index in range(max(sent, done - BEHIND), done):
        try:
          picture = await run_in_threadpool(work.encode_mask, mask_path(run.folder, index))
        except Exception:  # removed meanwhile: the next look says why
          break
        yield event('mask', {'run': run.number, 'index': index, 'png': base64.b64encode(picture).decode()})
        last = time.monotonic()
      sent = done
      if description != said:
        said, last = description, time.monotonic()
        yield event('job', description)
      if job.state == CANCELLED:
        return
      if time.monotonic() - last > HEARTBEAT:
        last = time.monotonic()
        yield b': still here\n\n'
      await asyncio.sleep(PAUSE if job.state not in (DONE, FAILED) else 3 * PAUSE)


def event(name: str, data: dict[str, Any]) -> bytes:
  """One event; JSON has no line break in it."""
  return f'event: {name}\ndata: {json.dumps(data)}\n\n'.encode()
