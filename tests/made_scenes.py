"""Made-up scenes for the tests of pruning: objects as rectangles that move, with their detections."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from adnet_jax.instances import Instances

SHAPE = 120, 200
Box = tuple[int, int, int, int]  # x, y, width, height
Scene = Sequence[Sequence[Box]]  # per frame

SMALL: Box = (170, 90, 14, 12)


def scene(frames: int = 24, *, speed: float = 5, pan: float = 0, small: Box | None = SMALL) -> list[list[Box]]:
  """A large object that moves to the right, and a small one that stands; the camera pans by `pan` pixels a frame."""
  result = []
  for number in range(frames):
    boxes = [(round(5 + speed * number), 20, 40, 50)]
    if small is not None:
      x, y, width, height = small
      x = round(x - pan * number)
      if x >= 0:
        boxes.append((x, y, width, height))
    result.append(boxes)
  return result


def rectangle(box: Box, shape: tuple[int, int] = SHAPE) -> np.ndarray:
  x, y, width, height = box
  mask = np.zeros(shape, bool)
  mask[y : y + height, x : x + width] = True
  return mask


def union(boxes: Sequence[Box], shape: tuple[int, int] = SHAPE) -> np.ndarray:
  return np.any([rectangle(box, shape) for box in boxes] or [np.zeros(shape, bool)], axis=0)


def instances(boxes: Scene, classes: Sequence[Sequence[int]] | None = None) -> Instances:
  corners = [np.array([(x, y, x + w, y + h) for x, y, w, h in one], np.float64).reshape(-1, 4) for one in boxes]
  areas = [np.array([w * h for _, _, w, h in one], np.float64) for one in boxes]
  return Instances.gather(corners, areas, None if classes is None else [np.array(one, np.int64) for one in classes])


def write_masks(folder: Path, boxes: Scene, shape: tuple[int, int] = SHAPE) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  for number, one in enumerate(boxes):
    Image.fromarray(union(one, shape).astype(np.uint8) * 255).save(folder / f'{number:05d}.png')


def rle(mask: np.ndarray) -> dict:
  encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {'size': list(mask.shape), 'counts': encoded['counts'].decode('ascii')}


def detections(clips: Mapping[str, Scene], shape: tuple[int, int] = SHAPE, category: int = 1) -> dict:
  """The content of a detector's file that finds every object of every frame."""
  content: dict = {'images': [], 'annotations': []}
  for clip, boxes in clips.items():
    for number, one in enumerate(boxes):
      image = len(content['images'])
      size = {'width': shape[1], 'height': shape[0]}
      content['images'].append({'id': image, 'file_name': f'{clip}/{number:05d}.jpg', **size})
      for box in one:
        content['annotations'].append(
          {
            'id': len(content['annotations']),
            'image_id': image,
            'category_id': category,
            'bbox': list(box),
            'score': 0.9,
            'segmentation': rle(rectangle(box, shape)),
          }
        )
  return content


def write_json(path: Path, content: object) -> Path:
  path.write_text(json.dumps(content), encoding='utf-8')
  return path
