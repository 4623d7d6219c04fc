"""What travels with weights in a model file's metadata: strings to typed fields and back; knows nothing of arrays.

A file of format 1 holds a whole network (`Metadata`), or an ImageNet trunk alone to start training from (`Trunk`,
whose metadata says variant 'trunk').
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from adnet_jax import normalization as rules
from adnet_jax.errors import WeightsError
from adnet_jax.models import adnet

FORMAT = '1'
TRUNK = 'trunk'
_TRUNK_KEYS = ('format', 'variant', 'backbone', 'stem', 'normalization', 'origin', 'licence', 'created_by')
_MODEL_KEYS = (
  *_TRUNK_KEYS,
  'output_stride',
  'multi_grid',
  'aspp_width',
  'embedding',
  'batch_norm_eps',
  'activation',
  'size',
)


@dataclasses.dataclass(frozen=True)
class Metadata:
  """What travels with the weights.

  Attributes:
    architecture: the network's shape.
    normalization: a name of normalization.py: what the input must look like.
    size: recommended (width, height) of the input.
    refine: recommended reach of the refinement along edges, in pixels of the input; 0 for none (refinement.py).
    origin: where the weights come from.
    licence: their terms.
    created_by: program and version that wrote the file.
  """

  architecture: adnet.Architecture
  normalization: str
  size: tuple[int, int]
  origin: str
  licence: str
  created_by: str
  refine: int = 0

  def to_strings(self) -> dict[str, str]:
    """The metadata of a safetensors file: strings to strings."""
    a = self.architecture
    return {
      'format': FORMAT,
      'variant': a.variant,
      'backbone': a.backbone,
      'stem': a.stem,
      'output_stride': str(a.output_stride),
      'multi_grid': ','.join(map(str, a.multi_grid)),
      'aspp_width': str(a.aspp_width),
      'embedding': str(a.embedding),
      'batch_norm_eps': repr(a.batch_norm_eps),
      'activation': a.activation,
      'auxiliary': str(a.auxiliary),
      'normalization': self.normalization,
      'size': f'{self.size[0]}x{self.size[1]}',
      'origin': self.origin,
      'licence': self.licence,
      'created_by': self.created_by,
      **({'refine': str(self.refine)} if self.refine else {}),
    }


@dataclasses.dataclass(frozen=True)
class Trunk:
  """What travels with an ImageNet trunk, whose file has no head and is no model yet; fields as those of Metadata."""

  backbone: str
  stem: str
  normalization: str
  origin: str
  licence: str
  created_by: str

  def to_strings(self) -> dict[str, str]:
    """The metadata of a safetensors file: strings to strings."""
    return {'format': FORMAT, 'variant': TRUNK, **dataclasses.asdict(self)}


def has_metadata(strings: Mapping[str, str]) -> bool:
  """Whether a safetensors file is of our kind; others may have a `format` too, such as 'pt'."""
  return strings.get('format', '').isdigit()


def parse_metadata(strings: Mapping[str, str], path: object) -> Metadata | Trunk:
  """The inverse of `to_strings`; WeightsError names what is missing, wrong, or newer than this program (fault 36)."""
  if not has_metadata(strings):
    raise WeightsError('no adnet-jax metadata in the file', path, 'convert foreign weights with: adnet convert')
  if strings['format'] != FORMAT:
    raise WeightsError(
      f'model format {strings["format"]}, this version reads {FORMAT}', path, 'install a newer adnet-jax'
    )
  is_trunk = strings.get('variant') == TRUNK
  missing = [name for name in (_TRUNK_KEYS if is_trunk else _MODEL_KEYS) if name not in strings]
  if missing:
    raise WeightsError(f'metadata missing: {", ".join(missing)}', path, 'write the file again with: adnet convert')
  try:
    if strings['normalization'] not in rules.NAMES:
      raise ValueError(f'normalization is {strings["normalization"]!r}')
    if is_trunk:
      adnet.Architecture(backbone=strings['backbone'], stem=strings['stem'])
      return Trunk(**{field.name: strings[field.name] for field in dataclasses.fields(Trunk)})
    architecture = adnet.Architecture(
      variant=strings['variant'],
      backbone=strings['backbone'],
      stem=strings['stem'],
      output_stride=int(strings['output_stride']),
      multi_grid=tuple(int(g) for g in strings['multi_grid'].split(',')),
      aspp_width=int(strings['aspp_width']),
      embedding=int(strings['embedding']),
      batch_norm_eps=float(strings['batch_norm_eps']),
      activation=strings['activation'],
      auxiliary=int(strings.get('auxiliary', '0')),
    )
    width, height = (int(n) for n in strings['size'].split('x'))
    if min(width, height) < 1:
      raise ValueError(f'size is {strings["size"]!r}')
    refine = int(strings.get('refine', '0'))
    if not 0 <= refine <= 1024:
      raise ValueError(f'refine is {refine}')
  except ValueError as error:
    raise WeightsError(
      f'metadata that this version does not understand: {error}',
      path,
      'install a newer adnet-jax, or write the file again',
    ) from error
  return Metadata(
    architecture,
    strings['normalization'],
    (width, height),
    strings['origin'],
    strings['licence'],
    strings['created_by'],
    refine,
  )


def default_normalization(stem: str) -> str:
  """The input normalisation of ImageNet weights with this stem (docs/architecture.md)."""
  return 'efficientnet' if stem == 'efficientnet' else 'torchvision'
