"""Options of `adnet serve` and the call behind them; imports nothing heavy."""

from __future__ import annotations

import argparse

from adnet_jax import DEFAULT_MODEL, options
from adnet_jax.errors import UsageError


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `adnet serve`."""
  add = parser.add_argument
  add('--host', default='127.0.0.1', help='address to listen at (default: 127.0.0.1, this machine alone)')
  add('--port', type=options.whole, default=8008, help='0: any that is free (default: 8008)')
  add('--token', help='that the page asks for (default: none, or a made-up one where others can reach --host)')
  add('--model', default=DEFAULT_MODEL, metavar='NAME|FILE', help=f'see adnet info (default: {DEFAULT_MODEL})')
  add('--size', type=options.size, metavar='WxH', help="network's size, aspect not kept (default: the model's)")
  add('--device', choices=('cpu', 'gpu', 'tpu'), help='default: what JAX prefers')
  add('--max-upload', type=options.natural, default=2000, metavar='MB', help='largest file that is taken (2000)')
  add('--max-frames', type=options.natural, default=60_000, metavar='N', help='longest video that is taken (60000)')


def run(a: argparse.Namespace) -> None:
  """Serves the page until a signal ends it; the exit code is that signal's."""
  if a.token == '' or (a.token is not None and not a.token.isascii()):
    raise UsageError('the token is empty or holds other than ASCII signs', '--token', 'give another, or leave it out')
  try:
    import python_multipart  # noqa: F401
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
  except ImportError as error:
    what = f'the page needs {error.name}, which is not installed'
    raise UsageError(what, advice="pip install 'adnet-jax[serve]'") from error
  from adnet_jax import weights

  weights.check_is_file(weights.find_model(a.model))

  from adnet_jax.server import run, uploads

  limits = uploads.Limits(bytes=a.max_upload * 10**6, frames=a.max_frames)
  status = run.serve(a.host, a.port, a.token, model=a.model, size=a.size, device=a.device, limits=limits)
  raise SystemExit(status)
