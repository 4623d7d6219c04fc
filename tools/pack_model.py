"""Makes a trained model file ready to ship, or the mean of several: half precision, with size, origin and terms.

  python tools/pack_model.py runs/compact/final.safetensors -o adnet_jax/assets/models/adnet-compact.safetensors \
      --size 641x353 --origin 'who trained it on what' --licence 'its terms'
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from adnet_jax import exits, metadata, options, weights
from adnet_jax.errors import UsageError


def main(argv: list[str] | None = None) -> int:
  """Runs the tool and returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('inputs', type=Path, nargs='+', metavar='IN.safetensors', help='several: their mean is packed')
  parser.add_argument('-o', '--output', type=Path, required=True, metavar='OUT.safetensors')
  parser.add_argument('--size', metavar='WxH', help='recommended input size (default: as in the input)')
  parser.add_argument('--refine', type=options.reach, metavar='N', help='refinement (default: as in the input)')
  parser.add_argument('--origin', help='where the weights come from (default: as in the input)')
  parser.add_argument('--licence', help='their terms (default: as in the input)')
  parser.add_argument('--dtype', default='float16', choices=('float16', 'float32'))
  parser.add_argument('--overwrite', action='store_true')
  arguments = parser.parse_args(argv)
  return exits.guarded(lambda: pack(arguments))


def pack(a: argparse.Namespace) -> None:
  """Reads, averages, changes the metadata, drops the auxiliary head, which only training uses, and writes."""
  files = [weights.read_file(path) for path in a.inputs]
  parsed = [metadata.parse_metadata(strings, path) for path, (_, strings) in zip(a.inputs, files, strict=True)]
  for path, each in zip(a.inputs, parsed, strict=True):
    if not isinstance(each, metadata.Metadata):
      raise UsageError('a trunk, not a model', path, 'name a trained model')
    if each.architecture != getattr(parsed[0], 'architecture', None):
      raise UsageError('another network than the first', path, 'only weights of one network have a mean')
  found, arrays = parsed[0], files[0][0]
  assert isinstance(found, metadata.Metadata)
  if len(files) > 1:
    arrays = {name: np.asarray(sum(np.float32(each[name]) for each, _ in files) / len(files)) for name in arrays}
  arrays = {name: array for name, array in arrays.items() if not name.startswith('auxiliary/')}
  size = found.size
  if a.size:
    width, _, height = a.size.partition('x')
    size = int(width), int(height)
  packed = dataclasses.replace(
    found,
    architecture=dataclasses.replace(found.architecture, auxiliary=0),
    size=size,
    refine=found.refine if a.refine is None else a.refine,
    origin=a.origin or found.origin,
    licence=a.licence or found.licence,
  )
  weights.save(a.output, arrays, packed, dtype=a.dtype, overwrite=a.overwrite)
  print(weights.describe(a.output))


if __name__ == '__main__':
  sys.exit(main())
