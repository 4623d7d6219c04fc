"""The configuration: every key with its default, type, range and source; knows nothing of what the values do.

A file in configs/ calls `default()` and changes fields in its `get_config()`. Keys that do not exist, values of the
wrong type or out of range, and combinations that cannot work are `UsageError`s (faults 1-4).
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
import traceback
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from adnet_jax.errors import UsageError


class Key(NamedTuple):
  """A configuration key: its default, what it may hold, and where the default comes from."""

  default: Any
  allowed: Callable[[Any], bool]
  range: str
  source: str


def _number(low: float, high: float, *, open_low: bool = False) -> Callable[[Any], bool]:
  return lambda v: (v > low if open_low else v >= low) and v <= high


def _one_of(*values: Any) -> tuple[Callable[[Any], bool], str]:
  return (lambda v: v in values), ' or '.join(map(repr, values))


_ANY_TEXT = (lambda v: True), 'text'
_INFINITY = float('inf')

KEYS: dict[str, Key] = {
  'data.root': Key('', *_ANY_TEXT, 'a data set, raw or prepared: docs/data.md'),
  'data.stills': Key('', *_ANY_TEXT, 'folder with images/ and masks/; empty for none (the paper uses none)'),
  'data.stills_fraction': Key(0.0, _number(0, 1), '0 to 1', 'share of pairs made of one photograph; paper: 0'),
  'data.anchor': Key(
    'first',
    *_one_of('first', 'random'),
    'anchor of a training pair: the first frame as in the paper, or any; paper Sec. 4.1',
  ),
  'data.crop': Key(481, _number(17, 4097), '17 to 4097 pixels', 'not in the paper; ours'),
  'data.rotation': Key(0.51, _number(0, 1), '0 to 1', 'probability of no rotation; paper Sec. 4'),
  'data.flip': Key(0.0, _number(0, 1), '0 to 1', 'probability of mirroring; the paper mentions none'),
  'data.colour': Key(0.0, _number(0, 1), '0 to 1', 'strength of colour jitter; the paper mentions none'),
  'data.workers': Key(-1, _number(-1, 256), '-1 (a thread a core, up to 16) or threads', 'ours'),
  'data.cache': Key(
    'auto', *_one_of('auto', 'none', 'memory'), 'decoded frames kept: up to a quarter of the free memory, none, all'
  ),
  'data.max_unreadable': Key(10, _number(0, _INFINITY), '0 to any number', 'unreadable frames that are replaced; ours'),
  'model.variant': Key(
    'full', *_one_of('baseline', 'intra_frame', 'anchor', 'anchor_diffusion', 'full'), 'paper Table 1'
  ),
  'model.backbone': Key(
    'resnet101',
    *_one_of(
      *('resnet10', 'resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152'),
      *('efficientnet_lite0', 'efficientnet_lite2'),
    ),
    'paper Sec. 4',
  ),
  'model.stem': Key('deep', *_one_of('deep', 'conv7x7', 'efficientnet'), 'the released networks'),
  'model.output_stride': Key(8, *_one_of(8, 16), 'paper Sec. 4'),
  'model.multi_grid': Key(
    (1, 2, 4), lambda v: len(v) > 0 and all(g > 0 for g in v), 'positive factors', 'DeepLabv3; the released networks'
  ),
  'model.aspp_width': Key(512, _number(1, 4096), '1 to 4096', 'the released networks'),
  'model.embedding': Key(128, _number(1, 4096), '1 to 4096', 'paper Sec. 4'),
  'model.auxiliary': Key(False, lambda v: True, 'True or False', 'auxiliary head and its loss; ours: off'),
  'model.dtype': Key('float32', *_one_of('float32', 'bfloat16'), 'compute dtype; ours'),
  'model.remat': Key(False, lambda v: True, 'True or False', 'blocks are computed again for their gradient; ours: off'),
  'model.normalization': Key(
    '',
    *_one_of('', 'released', 'torchvision', 'efficientnet'),
    "input normalisation; empty: that of init.weights, else the backbone's own",
  ),
  'init.weights': Key(
    '', *_ANY_TEXT, 'model file or name, ImageNet trunk (.pth, .safetensors), or a checkpoint folder; empty: random'
  ),
  'optim.lr': Key(0.005, _number(0, 1e3, open_low=True), 'above 0', 'paper Sec. 4'),
  'optim.momentum': Key(0.9, lambda v: 0 <= v < 1, '0 to below 1', 'not in the paper; ours'),
  'optim.weight_decay': Key(0.0005, _number(0, 1), '0 to 1', 'paper Sec. 4'),
  'optim.power': Key(0.9, _number(0, 10), '0 to 10', 'paper Sec. 4'),
  'optim.horizon': Key(40_000, _number(1, _INFINITY), 'at least 1', 'paper Sec. 4: (1 - step / horizon)^power'),
  'optim.backbone_lr_factor': Key(1.0, _number(0, 100), '0 to 100', 'ours; the paper has one rate'),
  'optim.batch_norm': Key('train', *_one_of('train', 'frozen'), "statistics of the trunk's BatchNorm"),
  'optim.frozen_stages': Key(0, _number(0, 7), '0 to 7', 'leading trunk stages that do not learn; ours: none'),
  'optim.ema': Key(0.0, lambda v: 0 <= v < 1, '0 (off) to below 1', 'decay of averaged weights; ours: off'),
  'optim.both_directions': Key(
    False, lambda v: True, 'True or False', 'also predict the anchor with the frame as its anchor; the paper: no'
  ),
  'optim.jaccard': Key(
    0.0, _number(0, 100), '0 to 100', 'weight of the soft Jaccard loss beside the BCE; the paper: no such loss'
  ),
  'steps': Key(30_000, _number(1, _INFINITY), 'at least 1', 'paper Sec. 4'),
  'batch': Key(8, _number(1, _INFINITY), 'at least 1', 'paper Sec. 4'),
  'accumulate': Key(1, _number(1, _INFINITY), 'at least 1', 'parts that a batch is computed in; ours'),
  'max_skipped': Key(10, _number(0, _INFINITY), 'at least 0', 'non-finite steps in a row before training stops'),
  'seed': Key(0, _number(0, 2**31 - 1), '0 to 2^31 - 1', 'ours'),
  'devices': Key(0, _number(0, _INFINITY), '0 (all) or a number', 'ours'),
  'checkpoint.every': Key(500, _number(1, _INFINITY), 'at least 1', 'steps between checkpoints; ours'),
  'checkpoint.keep': Key(3, _number(1, _INFINITY), 'at least 1', 'checkpoints kept; ours'),
  'observe.images_every': Key(500, _number(0, _INFINITY), '0 (never) or steps', 'pictures in TensorBoard; ours'),
  'observe.profile_steps': Key(
    (),
    lambda v: v == () or (len(v) == 2 and 0 <= v[0] < v[1]),
    '() or (first, first step after)',
    'steps whose execution is profiled; ours',
  ),
  'evaluate.every': Key(0, _number(0, _INFINITY), '0 (only at the end) or steps', 'ours'),
  'evaluate.protocol': Key('paper', *_one_of('paper', 'released'), 'docs/evaluation.md'),
  'evaluate.scales': Key(
    (1.0,),
    lambda v: all(0 < s <= 8 for s in v),
    'factors above 0, at most 8',
    'paper: (.75, 1, 1.5) for its best figures',
  ),
  'evaluate.mirror': Key(False, lambda v: True, 'True or False', 'paper: True for its best figures'),
  'evaluate.size': Key(
    (),
    lambda v: len(v) in (0, 2) and all(8 <= n <= 8192 for n in v),
    '() or (width, height)',
    "ours; () is the model's own size",
  ),
  'evaluate.refine': Key(
    -1,
    lambda v: v in (-1, 0) or 4 <= v <= 1024,
    "-1 (what the model's file says), 0 (none), 4 to 1024 pixels of the network's input",
    'ours; the paper: none',
  ),
}


def default() -> ml_collections.ConfigDict:
  """The paper's configuration. Any key and type can be set on it: `load` and `validate` say what is wrong, by name."""
  config = ml_collections.ConfigDict(type_safe=False)
  for name, key in KEYS.items():
    *groups, leaf = name.split('.')
    node = config
    for group in groups:
      if group not in node:
        node[group] = ml_collections.ConfigDict(type_safe=False)
      node = node[group]
    node[leaf] = key.default
  return config


def load(path: str | Path, overrides: Iterable[str] = ()) -> ml_collections.ConfigDict:
  """Runs `get_config()` of the Python file, applies `KEY=VALUE` overrides and validates.

  Raises:
    UsageError: the file is missing or fails; a key is unknown; a value has the wrong type or range.
  """
  path = Path(path)
  if not path.is_file():
    raise UsageError('configuration file not found', path, 'see configs/ for those that exist')
  path = path.resolve()  # as tracebacks name it
  spec = importlib.util.spec_from_file_location('adnet_config', path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config()
  except SyntaxError as error:
    raise UsageError(
      f'Python error in the configuration: {error.msg}', f'{path}, line {error.lineno}', 'correct the file'
    ) from error
  except Exception as error:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f'{path}, line {lines[-1]}' if lines else str(path)
    key = re.match(r"""['"\\]+(\w+)['"\\]""", str(error)) if isinstance(error, AttributeError | KeyError) else None
    if key is not None:  # read from a ConfigDict that has it not
      raise UsageError(f'unknown configuration key {key[1]!r}', where, _nearest(key[1])) from error
    what = f'{type(error).__name__} in the configuration: {" ".join(str(error).split())}'
    raise UsageError(what, where, 'correct the file') from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise UsageError('get_config() does not return a ConfigDict', path, 'start from adnet_jax.config.default()')
  for override in overrides:
    _override(config, override)
  return validate(config)


def _override(config: ml_collections.ConfigDict, text: str) -> None:
  name, equals, value = text.partition('=')
  if not equals:
    raise UsageError('override without a value', name, f'write --config.{name}=VALUE')
  if name not in KEYS:
    raise UsageError('unknown configuration key', name, _nearest(name))
  _set(config, name, _parse(name, value))


def _parse(name: str, text: str) -> Any:
  """The text of a command line as a value of the key's type."""
  example = KEYS[name].default
  try:
    if isinstance(example, bool):
      return {'true': True, '1': True, 'false': False, '0': False}[text.lower()]
    if isinstance(example, int):
      return int(text)
    if isinstance(example, float):
      return float(text)
    if isinstance(example, tuple):
      parts = text.strip('()[] ').replace('x', ',').split(',')
      kind = float if name == 'evaluate.scales' else int
      return tuple(kind(part) for part in parts if part.strip())
  except (KeyError, ValueError) as error:
    raise UsageError(f'{text!r} is no {_kind(example)}', name, f'allowed: {KEYS[name].range}') from error
  return text


def validate(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns `config`, whose keys, types, ranges and combinations are right; raises UsageError otherwise."""
  flat = flatten(config)
  for name, value in flat.items():
    if name not in KEYS:
      raise UsageError('unknown configuration key', name, _nearest(name))
    example = KEYS[name].default
    if isinstance(example, tuple) and isinstance(value, list):
      value = tuple(value)
    if isinstance(example, float) and isinstance(value, int) and not isinstance(value, bool):
      value = float(value)
    if name == 'evaluate.scales' and isinstance(value, tuple):
      value = tuple(float(scale) if isinstance(scale, int) else scale for scale in value)
    if type(value) is not type(example):
      raise UsageError(f'{value!r} is no {_kind(example)}', name, f'allowed: {KEYS[name].range}')
    try:
      allowed = KEYS[name].allowed(value)
    except TypeError:
      allowed = False
    if not allowed:
      raise UsageError(f'{value!r} is out of range', name, f'allowed: {KEYS[name].range}')
    _set(config, name, value)
  missing = [name for name in KEYS if name not in flat]
  if missing:
    raise UsageError('configuration key missing', missing[0], 'start from adnet_jax.config.default()')
  _check_combinations(flatten(config))
  return config


def _check_combinations(c: dict[str, Any]) -> None:
  if c['steps'] > c['optim.horizon']:
    raise UsageError(
      f'steps={c["steps"]} is beyond optim.horizon={c["optim.horizon"]}',
      'steps, optim.horizon',
      'the learning rate would be negative; raise the horizon',
    )
  if c['devices'] and c['batch'] % c['devices']:
    raise UsageError(
      f'batch={c["batch"]} is not divisible by devices={c["devices"]}', 'batch, devices', 'choose a multiple'
    )
  if c['batch'] % c['accumulate']:
    raise UsageError(
      f'batch={c["batch"]} is not divisible by accumulate={c["accumulate"]}', 'batch, accumulate', 'choose a multiple'
    )
  if not c['evaluate.scales']:
    raise UsageError(
      'evaluate.scales is empty while a protocol averages over it',
      'evaluate.scales, evaluate.protocol',
      'give at least one factor, such as 1.0',
    )
  if (c['model.stem'] == 'efficientnet') != c['model.backbone'].startswith('efficientnet'):
    raise UsageError(
      f'model.stem={c["model.stem"]!r} does not go with model.backbone={c["model.backbone"]!r}',
      'model.stem, model.backbone',
      "'efficientnet' for EfficientNet-Lite, 'deep' or 'conv7x7' for ResNet",
    )


def check_training(config: ml_collections.ConfigDict) -> None:
  """What a training needs of a validated configuration beyond what all uses of it need.

  Raises:
    UsageError: no data set is named, or photographs are to be drawn and no folder of them is named.
  """
  if not config.data.root:
    raise UsageError('no data set to train on', 'data.root', 'name its folder, as --config.data.root=DAVIS')
  if config.data.stills_fraction > 0 and not config.data.stills:
    raise UsageError(
      f'data.stills_fraction={config.data.stills_fraction} without data.stills',
      'data.stills_fraction, data.stills',
      'name the folder of photographs',
    )


def flatten(config: Any) -> dict[str, Any]:
  """{'optim.lr': .005, ...} of a ConfigDict."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      flat.update({f'{name}.{inner}': v for inner, v in flatten(value).items()})
    else:
      flat[name] = value
  return flat


def to_json(config: ml_collections.ConfigDict) -> str:
  """The configuration as JSON with sorted, flat keys."""
  return json.dumps(flatten(config), indent=2, sort_keys=True)


def _set(config: ml_collections.ConfigDict, name: str, value: Any) -> None:
  *groups, leaf = name.split('.')
  node = config
  for group in groups:
    node = node[group]
  with node.ignore_type():
    node[leaf] = value


def _nearest(name: str) -> str:
  def ends_in(leaves: Collection[str]) -> list[str]:
    return difflib.get_close_matches(name, [key for key in KEYS if key.split('.')[-1] in leaves], n=1, cutoff=0)

  leaf = name.split('.')[-1]
  best = ends_in([leaf]) or difflib.get_close_matches(name, KEYS, n=1, cutoff=0.75)
  best = best or ends_in(difflib.get_close_matches(leaf, {key.split('.')[-1] for key in KEYS}, n=1, cutoff=0.6))
  return f'did you mean {best[0]}?' if best else f'known keys: {", ".join(KEYS)}'


def _kind(example: Any) -> str:
  return {bool: 'True or False', int: 'whole number', float: 'number', str: 'text', tuple: 'list'}[type(example)]
