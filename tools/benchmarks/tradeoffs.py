"""Section `trade-offs`: what an option that saves work costs in J on validation clips, and what it saves."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.benchmarks.measuring import ROOT, Row, size

SIZES = (0.5, 0.75, 1.0, 1.25)
STILL = (2.0, 4.0, 8.0, 16.0)


@dataclasses.dataclass
class _Setting:
  """One row: a segmenter, or with `still` the default one where frames that hardly changed are not computed."""

  what: str
  segmenter: Any
  still: float | None = None
  scores: list[float] = dataclasses.field(default_factory=list)
  cpu: float = 0.0
  wall: float = 0.0
  computed: int = 0
  frames: int = 0
  reused: int = 0


def add_options(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--davis', metavar='DIR', help='trade-offs: data set with validation clips; default: the bundled clip')
  add('--step', type=int, default=12, metavar='N', help='trade-offs: every Nth frame is scored')
  add('--models', nargs='+', default=[None], metavar='NAME|FILE', help='trade-offs: default: the bundled model')
  add('--sizes', nargs='+', type=size, metavar='WxH', help="trade-offs: default: some around the model's own")


def run(options: argparse.Namespace) -> list[Row]:
  """Mean J over clips and processor time a frame, settings in turns within each clip, each compiled before."""
  from adnet_jax.data import datasets

  root = Path(options.davis or ROOT / 'adnet_jax/assets/sample')
  names = datasets.split(root, 'val' if options.davis else 'train')
  clips = datasets.read_clips(root, names, need_masks=True)
  settings = [setting for model in options.models for setting in _settings(model, options)]
  for clip in clips:
    for setting in settings:
      _measure(setting, clip, options.step, options.frames)
  base = statistics.mean(settings[0].scores)
  rows = [_row(setting, base) for setting in settings]
  title = f'{len(clips)} clips, every {options.step}th frame, {settings[0].computed} frames a row'
  return [{'what': title}, *rows]


def _settings(model: str | None, options: argparse.Namespace) -> Iterator[_Setting]:
  import jax.numpy as jnp

  from adnet_jax import geometry, pretrained, segmenter, weights

  name = model or weights.DEFAULT_MODEL
  devices = pretrained.find_devices(options.device)
  dtype = jnp.dtype(options.dtype or ('float32' if devices[0].platform == 'cpu' else 'bfloat16'))
  module, metadata = weights.load(name, dtype=dtype)
  network = pretrained.Model(module, metadata, devices)
  stem, own = Path(name).stem, metadata.size
  yield _Setting(f'{stem}, {own[0]}x{own[1]}', segmenter.Segmenter(network))
  if metadata.refine:
    yield _Setting(f'{stem}, not refined', segmenter.Segmenter(network, refine=0))
  for other in options.sizes or [geometry.scaled(own, scale) for scale in SIZES]:
    if other != own:
      yield _Setting(f'{stem}, {other[0]}x{other[1]}', segmenter.Segmenter(network, size=other))
  # The same weights: ASPP's dilations follow the stride.
  stride = {8: 16, 16: 8}[metadata.architecture.output_stride]
  architecture = dataclasses.replace(metadata.architecture, output_stride=stride)
  arrays, _ = weights.read_file(weights.find_model(name))
  changed = dataclasses.replace(metadata, architecture=architecture)
  strided = pretrained.Model(weights.build(architecture, arrays, dtype=dtype), changed, devices)
  yield _Setting(f'{stem}, output stride {stride}', segmenter.Segmenter(strided))
  for still in STILL:
    yield _Setting(f'{stem}, --still {still:g}', segmenter.Segmenter(network), still)


def _measure(setting: _Setting, clip: Any, step: int, limit: int | None) -> None:
  """Adds a clip: the first frame is the anchor, the first and last annotated frames are not scored."""
  from adnet_jax import images
  from adnet_jax.data.clip import load_mask
  from adnet_jax.metrics import jaccard

  annotated = clip.annotated[1:-1][:limit]
  scored = annotated[step // 2 :: step] or annotated[:1]
  anchor = images.read_image(clip.frames[0])
  source = {k: k for k in scored} if setting.still is None else _sources(setting, clip, scored)
  needed = sorted(set(source.values()))
  frames = [images.read_image(clip.frames[k]) for k in needed]
  session = setting.segmenter.session(anchor)
  if not setting.computed:
    session.step(frames[0])  # compiles
  masks, wall, cpu = {}, time.perf_counter(), time.process_time()
  for k, frame in zip(needed, frames, strict=True):
    masks[k] = session.step(frame)
  setting.wall, setting.cpu = setting.wall + time.perf_counter() - wall, setting.cpu + time.process_time() - cpu
  setting.computed += len(needed)
  truth = {k: load_mask(clip.masks[k]).values > 0 for k in scored}
  setting.scores.append(statistics.mean(jaccard(masks[source[k]], truth[k]) for k in scored))


def _sources(setting: _Setting, clip: Any, scored: Sequence[int]) -> dict[int, int]:
  """Whose mask each scored frame takes, where every frame of the clip is looked at."""
  from adnet_jax import images, reuse

  stillness, current, found = reuse.Stillness(setting.still or 0.0), 0, {}
  for k in range(scored[-1] + 1):
    if stillness.same(images.read_image(clip.frames[k])):
      setting.reused += 1
    else:
      current = k
    setting.frames += 1
    if k in scored:
      found[k] = current
  return found


def _row(setting: _Setting, base: float) -> Row:
  share = 1 - setting.reused / setting.frames if setting.frames else 1.0
  j = statistics.mean(setting.scores)
  return {
    'what': setting.what,
    'J': j,
    'J change': j - base,
    'CPU s a frame': share * setting.cpu / setting.computed,
    'frames/s': setting.computed / setting.wall / share if share else float('inf'),
    **({'reused': 1 - share} if setting.frames else {}),
  }
