r"""Draws what the embeddings find alike: Figs. 1, 3 and 10 of the paper, for any model file and any data set.

  python tools/similarity.py fig1 --davis DAVIS --clips car-roundabout --frame 40 -o fig1.png
  python tools/similarity.py fig3 --davis DAVIS --baseline base.safetensors -o fig3.png
  python tools/similarity.py fig10 --davis DAVIS --clips dog,camel --map softmax -o fig10.png

--davis is a folder in DAVIS' layout (JPEGImages/480p/CLIP, Annotations/480p/CLIP), --model a name or file as for
`adnet segment`. Beside fig3's picture lies what it draws, clip by clip, as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package as it stands here

from adnet_jax import DEFAULT_MODEL, exits, geometry, images, similarity  # noqa: E402
from adnet_jax.data import datasets  # noqa: E402
from adnet_jax.data.clip import load_mask  # noqa: E402
from adnet_jax.errors import DataError, UsageError  # noqa: E402
from adnet_jax.images import File  # noqa: E402
from adnet_jax.report import figures as drawing  # noqa: E402
from adnet_jax.report import similarity_figures as figures  # noqa: E402
from adnet_jax.similarity import Place  # noqa: E402

if TYPE_CHECKING:
  from adnet_jax import exported, pretrained

  Model = pretrained.Model | exported.ExportedModel

# As in the paper's Fig. 1: a car that moves, one that is parked, the road.
FIG1_CLIP, FIG1_FRAME, FIG1_POINTS = 'car-roundabout', '00040', (Place(255, 384), Place(246, 104), Place(430, 640))
FIG1_SHAPE = (480, 854)
BATCH = 4
NO_BASELINE = 'no baseline given: this model only'


# --------------------------------------------------------------------------------------------- from files to arrays


def read_clips(root: Path, names: Sequence[str] | None = None) -> list[datasets.Clip]:
  """The named clips of a data set, or those of its validation (or test) list that are on disk."""
  present = datasets.truth_of(root) if names else {}
  unknown = [name for name in names or () if name not in present]
  if unknown:
    raise UsageError(f'no such clip: {", ".join(unknown)}', '--clips', f'{root} has {", ".join(sorted(present))}')
  return datasets.read_clips(root, names or datasets.split(root, 'val'), need_masks=True)


def embed(model: Model, frames: Sequence[np.ndarray], size: geometry.Size | None = None) -> np.ndarray:
  """Embeddings X of frames of one clip.

  Args:
    model: any variant; the baseline's embeddings are the output of its ASPP.
    frames: (H, W, 3) uint8 RGB.
    size: (width, height) of the network's input; None for what segmentation takes by default.

  Returns:
    (n, h, w, c) float32.
  """
  height, width = frames[0].shape[:2]
  resized = geometry.resize_frames(frames, size or geometry.network_size((width, height), model.metadata.size))
  return np.asarray(model.embed(resized), np.float32)


def read_truth(source: Any) -> np.ndarray:
  """Foreground of an annotation, a file or what stands for one, (H, W) bool."""
  return load_mask(source).truth()


def frame_numbers(clip: datasets.Clip) -> list[int]:
  """Each frame's distance from the first, by its name's number where every name is one."""
  stems = [path.stem for path in clip.frames]
  numbers = [int(stem) for stem in stems] if all(map(str.isdecimal, stems)) else list(range(len(stems)))
  return [number - numbers[0] for number in numbers]


def find_frame(clip: datasets.Clip, stem: str) -> File:
  """The file of a clip's frame; a number may lack its leading zeros."""
  for path in clip.frames:
    if path.stem == stem or (stem.isdecimal() and path.stem.isdecimal() and int(stem) == int(path.stem)):
      return path
  stems = f'{clip.frames[0].stem} to {clip.frames[-1].stem}'
  raise UsageError(f'clip {clip.name} has no frame {stem!r}', '--frame', f'its frames are {stems}')


# ------------------------------------------------------------------------------------------------------------ Fig. 3


def clip_distances(
  model: Model, clip: datasets.Clip, size: geometry.Size | None = None, progress: Callable[[], None] = lambda: None
) -> dict[int, float]:
  """`similarity.distances_from_anchor` of a clip's annotated frames; the anchor is its first frame."""
  directions: dict[int, np.ndarray | None] = {}
  numbers = frame_numbers(clip)
  annotated = clip.annotated if clip.masks[0] is not None else []
  for start in range(0, len(annotated), BATCH):
    chosen = annotated[start : start + BATCH]
    frames = [images.read_image(clip.frames[k]) for k in chosen]
    # Padded rather than compiled anew.
    embeddings = embed(model, [*frames, *[frames[-1]] * (BATCH - len(frames))], size)
    for k, x in zip(chosen, embeddings):
      mask = similarity.foreground_on_grid(read_truth(clip.masks[k]), x.shape[:2])
      directions[numbers[k]] = similarity.mean_direction(x, mask)
      progress()
  return similarity.distances_from_anchor(directions)


def measure_drift(model: Model, clips: Iterable[datasets.Clip], size: geometry.Size | None = None) -> dict[str, Any]:
  """What Fig. 3 draws of a model: {'clips': {name: {distance: value}}, 'mean': [(distance, value, clips), ...]}."""
  from adnet_jax import environment

  curves = {}
  for clip in clips:
    with environment.progress_bar(f'embeddings of {clip.name}', len(clip.annotated)) as advance:
      curves[clip.name] = clip_distances(model, clip, size, advance)
  if not any(curves.values()):
    raise DataError('no clip has foreground in its first frame and in a later one', None, 'Fig. 3 needs annotations')
  return {'clips': curves, 'mean': similarity.mean_over_clips(list(curves.values()))}


def write_figure_3(models: Sequence[Model], clips: Sequence[datasets.Clip], path: Path, size: Any = None) -> None:
  """Draws Fig. 3 with a line a model, and writes what it draws beside it as JSON."""
  labels = [label(model) for model in models]
  if len(set(labels)) < len(labels):
    raise UsageError(f'both models are {labels[0]}', '--model, --baseline', 'give two variants')
  drifts = {name: measure_drift(model, clips, size) for name, model in zip(labels, models)}
  note = '' if 'baseline' in labels else NO_BASELINE
  drawing.save(figures.draw_drift({name: drift['mean'] for name, drift in drifts.items()}, note), path)
  write_whole(path.with_suffix('.json'), json.dumps(drifts, indent=1).encode())


def label(model: Model) -> str:
  """What a model is called in a legend: its row of Table 1."""
  variant = model.metadata.architecture.variant
  return {'full': 'AD-Net', 'baseline': 'baseline'}.get(variant, variant.replace('_', ' '))


# ----------------------------------------------------------------------------------------------------- Figs. 1 and 10


def default_clip(clips: Sequence[datasets.Clip]) -> datasets.Clip:
  """The paper's clip of cars where it is among `clips`, else the first: what Fig. 1 shows if none is named."""
  return next((clip for clip in clips if clip.name == FIG1_CLIP), clips[0])


def figure_1(
  model: Model,
  clip: datasets.Clip,
  frame: str | None = None,
  points: Sequence[Place] | None = None,
  kind: str = 'product',
  size: geometry.Size | None = None,
) -> Any:
  """How alike chosen pixels of a clip's first frame and the pixels of a later one are.

  Args:
    model: any variant.
    clip: its first frame is the anchor.
    frame: stem of the current frame; None for the clip's middle one, or the paper's choice.
    points: pixels of the anchor; None for one of the object and two of the background, or the paper's choice.
    kind: a key of `figures.MAPS`.
    size: as in `embed`.
  """
  anchor = images.read_image(clip.frames[0])
  shape = anchor.shape[:2]
  stems, paper = [path.stem for path in clip.frames], clip.name == FIG1_CLIP and shape == FIG1_SHAPE
  if frame is None:
    frame = FIG1_FRAME if paper and FIG1_FRAME in stems else stems[len(stems) // 2]
  if points is None and not paper:
    if clip.masks[0] is None:
      raise DataError('the first frame has no annotation', clip.name, 'choose anchor pixels with --points X,Y')
    points = similarity.telling_pixels(read_truth(clip.masks[0]))
  points = points or FIG1_POINTS
  outside = [f'{p.x},{p.y}' for p in points if not (0 <= p.y < shape[0] and 0 <= p.x < shape[1])]
  if outside:
    raise UsageError(f'outside the frame of {shape[1]}x{shape[0]}: {", ".join(outside)}', '--points', 'give X,Y in it')
  path = find_frame(clip, frame)
  current = images.read_image(path)
  x0, xt = embed(model, [anchor, current], size)
  queries = np.stack([x0[similarity.to_grid(point, shape, x0.shape[:2])] for point in points])
  maps = similarity.scaled_product(queries, xt)
  maps = similarity.softmax(maps) if kind == 'softmax' else maps
  return figures.draw_anchor_pixels(clip.name, (clip.frames[0].stem, path.stem), (anchor, current), points, maps, kind)


def find_correspondence(
  model: Model, clip: datasets.Clip, kind: str, seed: int = 0, size: geometry.Size | None = None
) -> figures.Correspondence | None:
  """A random foreground pixel of the clip's last frame with an object, and its likeness to each anchor pixel.

  Returns:
    None where no frame but the anchor shows an object on the embeddings' grid.
  """
  anchor = images.read_image(clip.frames[0])
  # By the clip's name, so that the pixel does not depend on which other clips are drawn.
  rng = np.random.default_rng([seed, zlib.crc32(clip.name.encode())])
  for k in reversed([k for k in clip.annotated if k > 0]):
    truth = read_truth(clip.masks[k])
    if not truth.any():
      continue
    distant = images.read_image(clip.frames[k])
    x0, xt = embed(model, [anchor, distant], size)
    place = similarity.random_pixel(similarity.foreground_on_grid(truth, xt.shape[:2]), rng)
    if place is None:
      continue
    if kind == 'softmax':
      found = similarity.received_attention(x0, xt, place)
    else:
      found = similarity.scaled_product(xt[place][None], x0)[0]
    pixel = similarity.to_frame(place, xt.shape[:2], truth.shape)
    return figures.Correspondence(clip.name, clip.frames[k].stem, anchor, distant, pixel, found)
  return None


def figure_10(
  model: Model, clips: Sequence[datasets.Clip], kind: str = 'product', seed: int = 0, size: Any = None
) -> Any:
  """`find_correspondence` of each clip, drawn."""
  found = [one for one in (find_correspondence(model, clip, kind, seed, size) for clip in clips) if one]
  if not found:
    raise DataError('no clip shows its object after the first frame', None, 'Fig. 10 needs annotations')
  return figures.draw_correspondences(found, kind, seed)


# ----------------------------------------------------------------------------------------------------------- writing


def write_whole(path: Path, content: bytes) -> None:
  """Writes a file under a temporary name and renames it; DataError where that cannot be done."""
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    os.replace(temporary, path)
  except OSError as error:
    raise DataError(f'cannot be written: {error.strerror}', path, 'free space or choose another place') from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


# ----------------------------------------------------------------------------------------------------------- command


def network_size(text: str) -> geometry.Size:
  """'641x353' of a command line as (width, height)."""
  try:
    width, height = (int(side) for side in text.lower().split('x'))
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text!r} is not WIDTHxHEIGHT') from None
  if not all(8 <= side <= 8192 for side in (width, height)):
    raise argparse.ArgumentTypeError(f'{text!r} has a side outside 8 to 8192')
  return width, height


def names(text: str) -> list[str]:
  """'a,b' of a command line as its parts."""
  return [part.strip() for part in text.split(',') if part.strip()]


def _point(text: str) -> Place:
  try:
    x, y = (int(part) for part in text.split(','))
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text!r} is not X,Y in pixels') from None
  return Place(y, x)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  add = parser.add_argument
  add('figure', choices=('fig1', 'fig3', 'fig10'))
  add('--davis', type=Path, required=True, metavar='DIR', help="data set in DAVIS' layout")
  add('-o', '--output', type=Path, required=True, metavar='FILE', help='.png, .svg or .pdf')
  add('--model', default=DEFAULT_MODEL, metavar='NAME|FILE', help=f'default: {DEFAULT_MODEL}')
  add('--baseline', metavar='NAME|FILE', help='fig3: the model whose line is drawn beside')
  add('--clips', type=names, metavar='a,b', help='default: the validation clips; fig1 shows one')
  add('--size', type=network_size, metavar='WxH', help="network's input (default: the model's)")
  add('--map', default='product', choices=tuple(figures.MAPS), help='fig1, fig10: what is drawn (default: product)')
  add('--frame', metavar='NNNNN', help="fig1: the current frame (default: the clip's middle one)")
  add('--points', type=_point, nargs='+', metavar='X,Y', help='fig1: anchor pixels (default: chosen by the mask)')
  add('--seed', type=int, default=0, help='fig10: of the choice of pixels')
  add('--device', choices=('cpu', 'gpu', 'tpu'), help='default: what JAX prefers')
  add('--overwrite', action='store_true', help='replace the figure')
  add('--debug', action='store_true', help='print the traceback of an error')
  return parser


def main(argv: list[str] | None = None) -> int:
  """Runs the program and returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv
  return exits.guarded(lambda: _run(_parser().parse_args(argv)), debug='--debug' in argv)


def _run(a: argparse.Namespace) -> None:
  if a.output.exists() and not a.overwrite:
    raise UsageError('output exists', a.output, 'remove it or add --overwrite')
  drawing.new_figure(1, 1)  # said before anything heavy starts
  clips = read_clips(a.davis, a.clips)
  from adnet_jax import environment, pretrained

  environment.set_up(a.device)
  model = pretrained.load_model(a.model, device=a.device)
  if a.figure == 'fig3':
    others = [pretrained.load_model(a.baseline, device=a.device)] if a.baseline else []
    write_figure_3([model, *others], clips, a.output, a.size)
  elif a.figure == 'fig1':
    drawing.save(figure_1(model, default_clip(clips), a.frame, a.points, a.map, a.size), a.output)
  else:
    drawing.save(figure_10(model, clips, a.map, a.seed, a.size), a.output)
  print(a.output)


if __name__ == '__main__':
  sys.exit(main())
