"""Foreign weights to our tree: the only place that knows the names used by PyTorch files.

Sources: the five released AD-Net files, ResNet trunks (torchvision's and the deep stem), EfficientNet-Lite trunks.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from adnet_jax import __version__
from adnet_jax import weights
from adnet_jax.errors import UsageError, WeightsError
from adnet_jax.models import adnet
from adnet_jax.models import efficientnet
from adnet_jax.models import resnet

# File stems of the released networks and the row of Table 1 they are.
RELEASED = {'base': 'baseline', 'intra': 'intra_frame', 'concat': 'anchor', 'inter': 'anchor_diffusion', 'ad': 'full'}
RELEASED_SIZE = (857, 481)
BATCH_NORMS = ('abs', 'plain')


@dataclasses.dataclass(frozen=True)
class Source:
  """Where one of our convolutions lies in a foreign file.

  Attributes:
    conv: prefix of `.weight`.
    norm: prefix of BatchNorm's tensors; None where there is none.
    bias: whether the convolution has a `.bias` of its own.
  """

  conv: str
  norm: str | None = None
  bias: bool = False

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
  sources, number = {'stem': Source('_conv_stem', '_bn0')}, 0
  for stage, (repeats, _, _, expansion, _) in enumerate(efficientnet.scaled_stages(backbone)):
    for i in range(repeats):
      ours, theirs = f'stages/{stage}/{i}', f'_blocks.{number}'
      if expansion > 1:
        sources[f'{ours}/expand'] = Source(f'{theirs}._expand_conv', f'{theirs}._bn0')
      sources[f'{ours}/depthwise'] = Source(f'{theirs}._depthwise_conv', f'{theirs}._bn1')
      sources[f'{ours}/project'] = Source(f'{theirs}._project_conv', f'{theirs}._bn2')
      number += 1
  return sources


def released_sources(architecture: adnet.Architecture) -> dict[str, Source]:
  """Every convolution of a network and its names in a released file, which `base` gives no `features.` prefix."""
  prefix = '' if architecture.variant == 'baseline' else 'features.'
  sources = {f'backbone/{ours}': Source(prefix + theirs.conv, prefix + str(theirs.norm))
             for ours, theirs in trunk_sources(architecture.backbone, architecture.stem).items()}
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


def to_tree(state: Mapping[str, np.ndarray], sources: Mapping[str, Source], batch_norm: str,
            epsilon: float) -> dict[str, np.ndarray]:
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
  tree = {}
  for ours, theirs in sources.items():
    tree[f'{ours}/kernel'] = state[f'{theirs.conv}.weight'].transpose(2, 3, 1, 0)
    bias = state[f'{theirs.conv}.bias'] if theirs.bias else None
    if theirs.norm is None:
      tree[f'{ours}/bias'] = bias
      continue
    scale = state[f'{theirs.norm}.weight']
    tree[f'{ours}/scale'] = np.abs(scale) + np.float32(epsilon) if batch_norm == 'abs' else scale
    tree[f'{ours}/bias'] = state[f'{theirs.norm}.bias']
    mean = state[f'{theirs.norm}.running_mean']
    tree[f'{ours}/mean'] = mean if bias is None else mean - bias
    tree[f'{ours}/var'] = state[f'{theirs.norm}.running_var']
  return tree


def read_state(path: str | Path) -> dict[str, np.ndarray]:
  """A .pth or safetensors file as names to float32 arrays, wrappers and prefixes taken off (faults 31-33, 37).

  Raises:
    WeightsError: not a readable weights file, or pickled code in it, which is never executed.
    UsageError: PyTorch, which reads .pth files, is not installed.
  """
  path = Path(path)
  weights.check_is_file(path)
  if path.suffix == '.safetensors':
    state = dict(weights.read_file(path)[0])
  else:
    state = _read_pickled(path)
  for prefix in ('module.',):
    if state and all(name.startswith(prefix) for name in state):
      state = {name[len(prefix):]: array for name, array in state.items()}
  return {name: np.asarray(array, np.float32) for name, array in state.items()
          if not name.endswith('num_batches_tracked')}


def _read_pickled(path: Path) -> dict[str, np.ndarray]:
  try:
    import torch  # an extra: only foreign files need it
  except ImportError as error:
    raise UsageError('PyTorch is needed to read .pth files', path, "pip install 'adnet-jax[torch]'") from error
  try:
    state = torch.load(path, map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as error:
    text = str(error)
    if 'WeightsUnpickler' in text or 'Unsupported global' in text or 'weights_only' in text.lower():
      named = re.search(r'GLOBAL ([\w.]+)', text)
      if named or 'Unsupported' in text:
        raise WeightsError(f'holds pickled code ({named.group(1) if named else "unsupported"}), which is not executed',
                           path, 'use a file with tensors only') from error
    raise WeightsError(f'damaged, or no PyTorch file, {path.stat().st_size} bytes found', path,
                       'fetch it again') from error
  except (RuntimeError, OSError, ValueError, EOFError, KeyError, AttributeError, IndexError, TypeError) as error:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise WeightsError(f'damaged, or no PyTorch file, {path.stat().st_size} bytes found: {first}', path,
                       'fetch it again') from error
  for wrapper in ('state_dict', 'model'):
    if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
      state = state[wrapper]
  if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
    raise WeightsError('holds no state dictionary of tensors', path, 'save model.state_dict()')
  return {str(name): value.detach().to(torch.float32).numpy() for name, value in state.items()}


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
  raise WeightsError(f'holds no AD-Net or known backbone, but: {seen}', path, 'see docs/architecture.md for what is read')


def read_trunk(path: str | Path, *, batch_norm: str | None = None) -> tuple[dict[str, np.ndarray], str, str]:
  """An ImageNet trunk: our arrays under 'backbone/...', its backbone and its stem; the ImageNet head is left out."""
  state = read_state(path)
  backbone, stem = identify_trunk(state, path)
  heads = ('fc.', '_fc.', '_conv_head.', '_bn1.')
  state = {name: array for name, array in state.items() if not name.startswith(heads)}
  sources = trunk_sources(backbone, stem)
  epsilon = efficientnet.EPSILON if stem == 'efficientnet' else adnet.Architecture.batch_norm_eps
  expected = {f'backbone/{ours}': theirs for ours, theirs in sources.items()}
  architecture = adnet.Architecture(backbone=backbone, stem=stem)
  tree = _strict(state, expected, architecture, batch_norm or 'plain', epsilon, path)
  return tree, backbone, stem


def _strict(state, sources, architecture, batch_norm, epsilon, path) -> dict[str, np.ndarray]:
  """`to_tree` with every name and shape checked in both directions, in the file's own names."""
  ours = weights.shapes(architecture)
  expected = {}
  for name, source in sources.items():
    kh, kw, inputs, outputs = ours[f'{name}/kernel']
    for foreign in source.names():
      expected[foreign] = (outputs, inputs, kh, kw) if foreign == f'{source.conv}.weight' else (outputs,)
  weights.check_arrays({name: array.shape for name, array in state.items()}, expected, path)
  weights.check_finite(state, path)
  return to_tree(state, sources, batch_norm, epsilon)


def convert(path: str | Path, out: str | Path, *, variant: str | None = None, batch_norm: str | None = None,
            normalization: str | None = None, origin: str | None = None, licence: str | None = None,
            overwrite: bool = False) -> weights.Metadata:
  """Converts a released AD-Net file, or an ImageNet trunk, to our model file.

  A trunk becomes a file of the trunk alone, which `init.weights` reads and nothing else does.

  Args:
    path: .pth or .safetensors with PyTorch's names.
    out: model file to write.
    variant: which row of Table 1; needed where neither names nor the file's name tell.
    batch_norm: 'abs' or 'plain'; None decides by the names: AD-Net's are 'abs', ImageNet's 'plain'.
    normalization: input normalisation; None for that of the file's kind.
    origin, licence: text for the metadata; None for what is known of the file's kind.
    overwrite: whether `out` may exist.

  Returns:
    The metadata written.

  Raises:
    UsageError: the variant cannot be told; `out` exists.
    WeightsError: faults 31-38.
  """
  path, out = Path(path), Path(out)
  if out.exists() and not overwrite:
    raise UsageError('output exists', out, 'remove it or add --overwrite')
  state = read_state(path)
  is_adnet = any(re.match(r'(features\.)?(head|cls)\.', name) for name in state)
  if is_adnet:
    tree, metadata = _convert_adnet(state, path, variant, batch_norm, normalization)
  else:
    tree, metadata = _convert_trunk(path, batch_norm, normalization)
  metadata = dataclasses.replace(metadata, origin=origin or metadata.origin, licence=licence or metadata.licence)
  weights.save(out, tree, metadata, overwrite=overwrite)
  return metadata


def _convert_adnet(state, path, variant, batch_norm, normalization):
  prefix = 'features.' if any(name.startswith('features.') for name in state) else ''
  found = _variant_of(state, path, variant, prefix)
  if (found == 'baseline') == bool(prefix):
    raise WeightsError(f'names do not fit the variant {found}', path,
                       'the baseline has no features. prefix, all others do')
  trunk = {name[len(prefix):]: array for name, array in state.items()
           if name.startswith(prefix) and not name.startswith((f'{prefix}head.', f'{prefix}dsn.', 'cls.'))}
  backbone, stem = identify_trunk(trunk, path)

  def outputs(name: str, default: int) -> int:
    return state[name].shape[0] if name in state else default

  architecture = adnet.Architecture(
      variant=found, backbone=backbone, stem=stem, aspp_width=outputs(f'{prefix}head.0.conv1.0.weight', 512),
      embedding=outputs('cls.0.weight', 128), auxiliary=outputs(f'{prefix}dsn.3.weight', 0))
  tree = _strict(state, released_sources(architecture), architecture, batch_norm or 'abs', architecture.batch_norm_eps,
                 path)
  return tree, weights.Metadata(
      architecture, normalization or 'released', RELEASED_SIZE, f'AD-Net weights from {path.name}',
      'terms of the source of the file', f'adnet-jax {__version__}')


def _variant_of(state, path, variant, prefix) -> str:
  """The row of Table 1: by names and shapes where they tell, else by `variant` or the released file's name."""
  if variant is not None and variant not in adnet.VARIANTS:
    raise UsageError(f'unknown variant {variant!r}', '--variant', f'one of {", ".join(adnet.VARIANTS)}')
  if 'cls.0.weight' not in state:
    told = {'baseline'}
  else:
    width = state[f'{prefix}head.1.weight'].shape[0] if f'{prefix}head.1.weight' in state else 128
    parts = state['cls.0.weight'].shape[1] // max(width, 1)
    told = {name for name, inputs in adnet.VARIANTS.items() if len(inputs) == parts}
  if variant is not None:
    if told and variant not in told:
      raise UsageError(f'the file is {" or ".join(sorted(told))}, not {variant}', '--variant', 'leave it out or correct it')
    return variant
  if len(told) == 1:
    return told.pop()
  by_name = RELEASED.get(path.stem.lower())
  if by_name in told:
    return str(by_name)
  raise UsageError('the file fits several variants', path, f'say which: --variant {" | ".join(sorted(told))}')


def _convert_trunk(path, batch_norm, normalization):
  tree, backbone, stem = read_trunk(path, batch_norm=batch_norm)
  architecture = adnet.Architecture(variant='baseline', backbone=backbone, stem=stem)
  licence = 'Apache-2.0' if stem == 'efficientnet' else 'terms of the source of the file'
  return tree, weights.Metadata(architecture, normalization or weights.default_normalization(stem), RELEASED_SIZE,
                                f'ImageNet trunk from {path.name}', licence, f'adnet-jax {__version__}')
