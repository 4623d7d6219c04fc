"""Foreign weights to our tree: the only place that knows the names used by PyTorch files.

Sources: the five released AD-Net files, ResNet trunks (torchvision's and the deep stem), EfficientNet-Lite trunks.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adnet_jax import __version__, foreign, weights
from adnet_jax import normalization as rules
from adnet_jax.errors import UsageError, WeightsError
from adnet_jax.models import adnet, efficientnet, resnet

# File stems of the released networks and the row of Table 1 they are.
RELEASED = {'base': 'baseline', 'intra': 'intra_frame', 'concat': 'anchor', 'inter': 'anchor_diffusion', 'ad': 'full'}
RELEASED_SIZE = (857, 481)
BATCH_NORMS = ('abs', 'plain')
# Parts of ImageNet classifiers, which are left out.
HEADS = ('fc.', '_fc.', '_conv_head.', '_bn1.')


@dataclasses.dataclass(frozen=True)
class Source:
  """Where one of our convolutions lies in a foreign file.

  Attributes:
    conv: prefix of `.weight`.
    norm: prefix of BatchNorm's tensors; None where there is none.
    bias: whether the convolution has a `.bias` of its own.
    plain: whether BatchNorm's weight is the scale even in a file whose other scales are |weight| + eps.
  """

  conv: str
  norm: str | None = None
  bias: bool = False
  plain: bool = False

  def names(self) -> list[str]:
    found = [f'{self.conv}.weight'] + ([f'{self.conv}.bias'] if self.bias else [])
    if self.norm:
      found += [f'{self.norm}.{leaf}' for leaf in ('weight', 'bias', 'running_mean', 'running_var')]
    return found


def trunk_sources(backbone: str, stem: str) -> dict[str, Source]:
  """Our trunk's convolutions, 'layer1/0/conv1', and their names in a torchvision-like or EfficientNet-Lite file."""
  if backbone in efficientnet.WIDTH_DEPTH:
    return _efficientnet_sources(backbone)
  sources = {f'conv{i}': Source(f'conv{i}', f'bn{i}') for i in ((1, 2, 3) if stem == 'deep' else (1,))}
  kind, repeats = resnet.BLOCKS[backbone]
  expansion = resnet.EXPANSION[kind]
  inputs = 128 if stem == 'deep' else 64
  for layer, (width, count) in enumerate(zip(resnet.WIDTHS, repeats, strict=True), 1):
    for i in range(count):
      for conv in range(1, 4 if kind == 'bottleneck' else 3):
        sources[f'layer{layer}/{i}/conv{conv}'] = Source(f'layer{layer}.{i}.conv{conv}', f'layer{layer}.{i}.bn{conv}')
      if i == 0 and (layer > 1 or inputs != width * expansion):
        sources[f'layer{layer}/0/downsample'] = Source(f'layer{layer}.0.downsample.0', f'layer{layer}.0.downsample.1')
  return sources


def _efficientnet_sources(backbone: str) -> dict[str, Source]:
  sources, number = {'stem': Source('_conv_stem', '_bn0', plain=True)}, 0
  for stage, (repeats, _, _, expansion, _) in enumerate(efficientnet.scaled_stages(backbone)):
    for i in range(repeats):
      ours, theirs = f'stages/{stage}/{i}', f'_blocks.{number}'
      if expansion > 1:
        sources[f'{ours}/expand'] = Source(f'{theirs}._expand_conv', f'{theirs}._bn0', plain=True)
      sources[f'{ours}/depthwise'] = Source(f'{theirs}._depthwise_conv', f'{theirs}._bn1', plain=True)
      sources[f'{ours}/project'] = Source(f'{theirs}._project_conv', f'{theirs}._bn2', plain=True)
      number += 1
  return sources


def released_sources(architecture: adnet.Architecture) -> dict[str, Source]:
  """Every convolution of a network and its names in a released file, which `base` gives no `features.` prefix."""
  prefix = '' if architecture.variant == 'baseline' else 'features.'
  sources = {
    f'backbone/{ours}': dataclasses.replace(theirs, conv=prefix + theirs.conv, norm=prefix + str(theirs.norm))
    for ours, theirs in trunk_sources(architecture.backbone, architecture.stem).items()
  }
  for i in range(1, 5):
    sources[f'aspp/conv{i}'] = Source(f'{prefix}head.0.conv{i}.0', f'{prefix}head.0.conv{i}.1')
  sources['aspp/image_pooling'] = Source(f'{prefix}head.0.image_pooling.1', f'{prefix}head.0.image_pooling.2')
  sources['aspp/projection'] = Source(f'{prefix}head.0.conv_bn_dropout.0', f'{prefix}head.0.conv_bn_dropout.1')
  sources['embedding'] = Source(f'{prefix}head.1', bias=True)
  if architecture.auxiliary:
    sources['auxiliary/conv'] = Source(f'{prefix}dsn.0', f'{prefix}dsn.1')
    sources['auxiliary/logits'] = Source(f'{prefix}dsn.3', bias=True)
  if architecture.variant != 'baseline':
    sources['classifier/hidden'] = Source('cls.0', 'cls.1', bias=True)
    sources['classifier/logits'] = Source('cls.3', bias=True)
  return sources


def to_tree(
  state: Mapping[str, np.ndarray], sources: Mapping[str, Source], batch_norm: str, epsilon: float
) -> dict[str, np.ndarray]:
  """Our arrays from a foreign state whose names are complete.

  Args:
    state: names to arrays, kernels (out, in, kh, kw).
    sources: our convolutions and where they lie.
    batch_norm: 'abs' where the effective scale is |weight| + eps (in-place activated BatchNorm), else 'plain'.
    epsilon: BatchNorm's.

  Returns:
    Our names to float32 arrays, kernels (kh, kw, in, out). A convolution's bias before BatchNorm moves into the
    running mean, which is the same function.
  """
  tree: dict[str, np.ndarray] = {}
  for ours, theirs in sources.items():
    tree[f'{ours}/kernel'] = state[f'{theirs.conv}.weight'].transpose(2, 3, 1, 0)
    bias = state[f'{theirs.conv}.bias'] if theirs.bias else np.float32(0)
    if theirs.norm is None:
      tree[f'{ours}/bias'] = np.asarray(bias)
      continue
    scale = state[f'{theirs.norm}.weight']
    absolute = batch_norm == 'abs' and not theirs.plain
    tree[f'{ours}/scale'] = np.abs(scale) + np.float32(epsilon) if absolute else scale
    tree[f'{ours}/bias'] = state[f'{theirs.norm}.bias']
    mean = state[f'{theirs.norm}.running_mean']
    tree[f'{ours}/mean'] = mean - bias
    tree[f'{ours}/var'] = state[f'{theirs.norm}.running_var']
  return tree


def identify_trunk(state: Mapping[str, np.ndarray], path: object) -> tuple[str, str]:
  """Backbone and stem of a trunk's state (no prefix); WeightsError where it is none of ours (fault 35)."""
  if '_conv_stem.weight' in state:
    blocks = 1 + max((int(name.split('.')[1]) for name in state if name.startswith('_blocks.')), default=-1)
    for name in efficientnet.WIDTH_DEPTH:
      if blocks == sum(stage[0] for stage in efficientnet.scaled_stages(name)):
        return name, 'efficientnet'
  counts = tuple(len({name.split('.')[1] for name in state if name.startswith(f'layer{i}.')}) for i in range(1, 5))
  kind = 'bottleneck' if 'layer1.0.conv3.weight' in state else 'basic'
  for name, shape in resnet.BLOCKS.items():
    if shape == (kind, counts):
      return name, 'deep' if 'conv2.weight' in state else 'conv7x7'
  seen = ', '.join(list(state)[:5]) or 'no tensors'
  raise WeightsError(
    f'holds no AD-Net or known backbone, but: {seen}', path, 'see docs/architecture.md for what is read'
  )


def _strict(state, sources, architecture, batch_norm, path) -> dict[str, np.ndarray]:
  """`to_tree` with every name and shape checked in both directions, in the file's own names."""
  ours = weights.shapes(architecture)
  expected = {}
  for name, source in sources.items():
    kh, kw, inputs, outputs = ours[f'{name}/kernel']
    for theirs in source.names():
      expected[theirs] = (outputs, inputs, kh, kw) if theirs == f'{source.conv}.weight' else (outputs,)
  weights.check_arrays({name: array.shape for name, array in state.items()}, expected, path)
  weights.check_finite(state, path)
  return to_tree(state, sources, batch_norm, architecture.batch_norm_eps)


def read_any(name_or_path: str | Path) -> weights.Initial:
  """Weights to start training from, of every kind that `weights.read_initial` names, in our names."""
  path = foreign.find_source(name_or_path)
  weights.check_is_file(path)
  if path.suffix == '.safetensors' and not weights.looks_like_pytorch(path):
    arrays, strings = weights.read_file(path)
    if weights.has_metadata(strings):
      arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
      return weights.Initial(arrays, weights.parse_metadata(strings, path))
  return from_foreign(foreign.read_state(path), path)


def from_foreign(
  state: Mapping[str, np.ndarray],
  path: Path,
  *,
  variant: str | None = None,
  batch_norm: str | None = None,
  normalization: str | None = None,
  output_stride: int = 8,
) -> weights.Initial:
  """A foreign state as our arrays and metadata; what the options mean is said at `convert`."""
  for value, allowed, option in (
    (variant, tuple(adnet.VARIANTS), 'variant'),
    (batch_norm, BATCH_NORMS, 'batch-norm'),
    (normalization, rules.NAMES, 'normalization'),
    (output_stride, (8, 16), 'output-stride'),
  ):
    if value is not None and value not in allowed:
      raise UsageError(f'unknown {option} {value!r}', f'--{option}', f'one of {", ".join(map(str, allowed))}')
  if any(re.match(r'(features\.)?head\.|features\.|cls\.', name) for name in state):
    return _adnet(state, path, variant, batch_norm or 'abs', normalization or 'released', output_stride)
  backbone, stem = identify_trunk(state, path)
  if variant is not None:
    raise UsageError(f'the file holds an ImageNet trunk ({backbone}), not {variant}', '--variant', 'leave it out')
  state = {name: array for name, array in state.items() if not name.startswith(HEADS)}
  sources = {f'backbone/{ours}': theirs for ours, theirs in trunk_sources(backbone, stem).items()}
  architecture = adnet.Architecture(backbone=backbone, stem=stem)
  tree = _strict(state, sources, architecture, batch_norm or 'plain', path)
  licence = 'Apache-2.0' if stem == 'efficientnet' else 'terms of the source of the file'
  return weights.Initial(
    tree,
    weights.Trunk(
      backbone,
      stem,
      normalization or weights.default_normalization(stem),
      f'ImageNet trunk from {path.name}',
      licence,
      f'adnet-jax {__version__}',
    ),
  )


def convert(
  name_or_path: str | Path,
  out: str | Path,
  *,
  variant: str | None = None,
  batch_norm: str | None = None,
  normalization: str | None = None,
  output_stride: int = 8,
  origin: str | None = None,
  licence: str | None = None,
  overwrite: bool = False,
) -> weights.Metadata | weights.Trunk:
  """Converts a released AD-Net file, or an ImageNet trunk, to our model file.

  A trunk becomes a file of the trunk alone, which `init.weights` reads and nothing else does.

  Args:
    name_or_path: .pth or .safetensors with PyTorch's names, or the name of a trunk of the `convert` extra.
    out: model file to write.
    variant: which row of Table 1; needed where neither shapes nor the file's name tell.
    batch_norm: 'abs' or 'plain'; None decides by the names: AD-Net's are 'abs', ImageNet's 'plain'.
    normalization: input normalisation; None for that of the file's kind.
    output_stride: 8 or 16, which no file tells; the released networks have 8. A trunk has none yet.
    origin, licence: text for the metadata; None for what is known of the file's kind.
    overwrite: whether `out` may exist.

  Returns:
    The metadata written.

  Raises:
    UsageError: the variant cannot be told; an option has an unknown value; `out` exists; an extra is not installed.
    WeightsError: faults 31-38.
  """
  out = Path(out)
  weights.check_output(out, overwrite)
  path = foreign.find_source(name_or_path)
  found = from_foreign(
    foreign.read_state(path),
    path,
    variant=variant,
    batch_norm=batch_norm,
    normalization=normalization,
    output_stride=output_stride,
  )
  metadata = dataclasses.replace(
    found.metadata, origin=origin or found.metadata.origin, licence=licence or found.metadata.licence
  )
  weights.save(out, found.arrays, metadata, overwrite=overwrite)
  return metadata


def _adnet(state, path, variant, batch_norm, normalization, output_stride) -> weights.Initial:
  prefix = 'features.' if any(name.startswith('features.') for name in state) else ''
  trunk = {
    name.removeprefix(prefix): array
    for name, array in state.items()
    if name.startswith(prefix) and not name.startswith((f'{prefix}head.', f'{prefix}dsn.', 'cls.'))
  }
  backbone, stem = identify_trunk(trunk, path)

  def size(names: dict[str, int], default: int) -> int:
    """What most tensors say: one misshapen tensor shall be named, not believed."""
    sides = [state[name].shape[axis] for name, axis in names.items() if name in state and state[name].ndim > axis]
    return collections.Counter(sides).most_common(1)[0][0] if sides else default

  head = f'{prefix}head.0.'
  aspp_width = size({**{f'{head}conv{i}.0.weight': 0 for i in range(1, 5)}, f'{head}conv_bn_dropout.0.weight': 0}, 512)
  classified = any(name.startswith('cls.') for name in state)
  votes = {'cls.0.weight': 0, 'cls.0.bias': 0, 'cls.3.weight': 1, f'{prefix}head.1.bias': 0} if classified else {}
  embedding = size(votes, adnet.Architecture.embedding)
  auxiliary = {f'{prefix}dsn.3.bias': 0, f'{prefix}dsn.3.weight': 0, f'{prefix}head.1.bias': 0}
  architecture = adnet.Architecture(
    variant=_variant_of(state, path, variant, embedding),
    backbone=backbone,
    stem=stem,
    output_stride=output_stride,
    aspp_width=aspp_width,
    embedding=embedding,
    auxiliary=size(auxiliary, 0) if any(name.startswith(f'{prefix}dsn.') for name in state) else 0,
  )
  tree = _strict(state, released_sources(architecture), architecture, batch_norm, path)
  return weights.Initial(
    tree,
    weights.Metadata(
      architecture,
      normalization,
      RELEASED_SIZE,
      f'AD-Net weights from {path.name}',
      'terms of the source of the file; research use',
      f'adnet-jax {__version__}',
    ),
  )


def _variant_of(state: Mapping[str, np.ndarray], path: Path, variant: str | None, embedding: int) -> str:
  """The row of Table 1: by names and shapes where they tell, else by `variant` or the released file's name."""
  by_name = RELEASED.get(path.stem.lower())
  joined: Any = state.get('cls.0.weight')
  if not any(name.startswith(('cls.', 'features.')) for name in state):
    told = {'baseline'}
  elif joined is not None and joined.ndim == 4:
    told = {name for name, parts in adnet.VARIANTS.items() if parts and len(parts) * embedding == joined.shape[1]}
  else:
    told = set()  # what says it is missing or misshapen: every answer ends in that message
  if not told:
    return variant or by_name or 'full'
  if variant is not None and variant not in told:
    raise UsageError(f'the file is {" or ".join(sorted(told))}, not {variant}', '--variant', 'correct it')
  if len(told) == 1:
    return told.pop()
  if variant or by_name in told:
    return variant or str(by_name)
  raise UsageError('the file fits several variants', path, f'say which: --variant {" | ".join(sorted(told))}')
