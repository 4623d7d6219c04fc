"""From the options of `adnet segment` to a run over a manifest; knows the command line's names and nothing else."""

from __future__ import annotations

import argparse

from adnet_jax import segment_command, weights
from adnet_jax.errors import UsageError
from adnet_jax.fleet import job, run
from adnet_jax.manifest import is_manifest


def segment(a: argparse.Namespace, threshold: float) -> None:
  """Runs `adnet segment MANIFEST.jsonl`; `threshold` is that of the options or the protocol's."""
  if not is_manifest(a.inputs):
    what = 'only a manifest, MANIFEST.jsonl, is shared out to workers'
    raise UsageError(what, '--engine, --workers, --address', 'leave them out, or write a manifest')
  if len(a.inputs) > 1:
    raise UsageError('a manifest and other inputs', ', '.join(a.inputs[:3]), 'give one manifest alone')
  if a.engine != 'ray' and (a.workers or a.address):
    raise UsageError('workers are those of Ray', '--workers, --address', 'add --engine ray')
  model = weights.find_model(a.model)
  weights.check_is_file(model)
  segmenter = {
    # A known name is looked up by each worker, in its own installation.
    'name_or_path': a.model if str(a.model) in weights.known_models() else model.absolute(),
    'protocol': a.protocol,
    'scales': a.scales,
    'mirror': a.mirror,
    'size': a.size,
    'threshold': threshold,
    'batch': a.batch,
    'refine': a.refine,
  }
  run.segment_manifest(
    a.inputs[0],
    job.Job(
      out=a.output.absolute(),
      outputs=segment_command.outputs_of(a),
      segmenter=segmenter,
      model_name=str(a.model),
      reading={'start': a.start, 'end': a.end, 'every': a.every, 'skip_bad': a.skip_bad},
      treatment=segment_command.treatment_of(a),
      device=a.device,
      cache=segment_command.cache_of(a),
    ),
    engine=a.engine or 'plain',
    workers=a.workers,
    address=a.address,
  )
