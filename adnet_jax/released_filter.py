"""Instance pruning as the authors' released program has it, as functions of arrays; knows no files.

Counts and distances are in pixels of the mask, as published: the program was made for 854 x 480. It takes a box as
COCO's x, y, x + width, y + height. Where it would stop with an error, this was decided: a frame without a box keeps
the flag of suppression as one with a single box does, and every clip starts without suppression (the program carries
the flag over from the clip before, and has none in the first one). Read to understand: yz93/anchor-diff-VOS,
detection_filter.py and eval.py; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np

from adnet_jax.instances import Instances
from adnet_jax.postprocess import OPENING_SIDE, released_step
from adnet_jax.tracks import box_iou, count_overlaps

BOXES_A_FRAME = 3  # on average: a clip with no more is not pruned
TRAINING_FRAMES = 69.3  # mean length of the 30 training clips of DAVIS-2016

STATIC_AREA = 47_000
STATIC_IOU = 0.6
STATIC_SHARE = 0.4  # of TRAINING_FRAMES

TARGET_AREA = 10_000
TARGET_DOMINANCE = 2  # times the second largest
TARGET_ASPECT = 3  # width to height
LAST_START = 20  # number of the last frame at which suppression may first start

SUPPRESSED_IOU = 0.1
SUPPRESSED_SHARE = 3  # times smaller than the target
CENTRAL = (300, 600)  # x of what counts as central
FAR = 200  # sum of both coordinates' distances

BOX_COUNTS = (40_000, 100_000)
BOX_DILATION_SIDE = 31
BOX_AREA = 30_000
BOX_IOU = 0.3


def filter_instances(clip: Instances, target_classes: Collection[int]) -> tuple[list[str | None], int | None]:
  """Which instances the program's detection filter removes.

  Args:
    clip: m instances; their areas are not looked at, the program takes those of boxes.
    target_classes: the detector's numbers for persons and cars, of which a frame's target has to be one.

  Returns:
    reasons: for each of the m instances 'static', 'suppressed', or None where it is kept.
    unmasked: number of the frame from which on nothing is removed, as suppression would have started late; or None.
  """
  reasons: list[str | None] = [None] * len(clip.frame)
  if len(reasons) <= BOXES_A_FRAME * clip.frames:
    return reasons, None
  areas = _box_areas(clip.boxes)
  for row in np.flatnonzero(_static(clip, areas)):
    reasons[row] = 'static'
  nth_largest = np.sort(areas)[-clip.frames]
  suppress = started = False
  for number, rows in enumerate(clip.by_frame()):
    boxes, sizes, classes = clip.boxes[rows], areas[rows], clip.classes[rows]
    if len(sizes) > 1:
      order = np.argsort(sizes, kind='stable')
      target, second = order[-1], order[-2]
      dominant = sizes[target] > max(TARGET_AREA, TARGET_DOMINANCE * sizes[second], nth_largest)
      suppress = dominant and classes[target] in target_classes and _aspect(boxes[target]) < TARGET_ASPECT
      if suppress and not started:
        started = True
        if number > LAST_START:
          return [*reasons[: rows.start], *[None] * (len(reasons) - rows.start)], number
      if suppress:
        for row in np.flatnonzero(_suppressed(boxes, sizes, classes, target)):
          reasons[rows.start + row] = reasons[rows.start + row] or 'suppressed'
  return reasons, None


def step(pruned: np.ndarray, reference: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
  """One frame under pruning: box filter, then the gate of the frame before.

  Args:
    pruned: (h, w) bool, the prediction times the pruning mask.
    reference: (h, w) bool, the second result of the call for the frame before; None for a clip's first frame.

  Returns:
    mask: (h, w) bool, what the program writes.
    reference: (h, w) bool for the next frame: box-filtered, without the gate.
  """
  boxed = keep_largest_box(pruned, reference)
  # As logits of 0 and 1, between which the program's threshold lies.
  return released_step(boxed.astype(np.float32), reference)


def keep_largest_box(foreground: np.ndarray, previous: np.ndarray | None) -> np.ndarray:
  """The filter on the prediction that the program applies under pruning, with detections or without.

  Args:
    foreground: (h, w) bool, the prediction times the pruning mask.
    previous: (h, w) bool, the result of this call for the frame before; None for a clip's first frame. One of another
      size counts as none.

  Returns:
    (h, w) bool. Where the foreground counts between 40,000 and 100,000 pixels, both exclusive, and, opened with a 15x15
    and dilated with a 31x31 square, has several outer contours, the largest of more than 30,000 pixels whose box
    overlaps `previous` with IoU > .3: what lies in that box. Otherwise the foreground itself.
  """
  low, high = BOX_COUNTS
  if not low < np.count_nonzero(foreground) < high:
    return foreground
  opening, dilation = (np.ones((side, side), np.uint8) for side in (OPENING_SIDE, BOX_DILATION_SIDE))
  grown = cv2.dilate(cv2.morphologyEx(foreground.astype(np.uint8), cv2.MORPH_OPEN, opening), dilation)
  contours, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
  areas = [cv2.contourArea(contour) for contour in contours]
  if len(contours) < 2 or max(areas) <= BOX_AREA:
    return foreground
  left, top, width, height = cv2.boundingRect(contours[int(np.argmax(areas))])
  box = np.zeros(foreground.shape, bool)
  box[top : top + height, left : left + width] = True
  known = previous is not None and previous.shape == box.shape
  if known and np.count_nonzero(previous & box) / np.count_nonzero(previous | box) <= BOX_IOU:
    return foreground
  return foreground & box


def _static(clip: Instances, areas: np.ndarray) -> np.ndarray:
  largest = np.zeros(len(areas), bool)
  for rows in clip.by_frame():
    largest[rows] = areas[rows] == areas[rows].max(initial=0)
  candidates = np.flatnonzero((areas <= STATIC_AREA) & ~largest)
  counts = count_overlaps(clip.boxes[candidates], clip.boxes, STATIC_IOU, edge=1)
  static = np.zeros(len(areas), bool)
  static[candidates] = counts > STATIC_SHARE * TRAINING_FRAMES
  return static


def _suppressed(boxes: np.ndarray, sizes: np.ndarray, classes: np.ndarray, target: int) -> np.ndarray:
  """Of the (n, 4) boxes of a frame: small or outlying ones of the target's class that do not overlap it."""
  centres = (boxes[:, :2] + boxes[:, 2:]) / 2
  outlying = ((centres[:, 0] < CENTRAL[0]) | (centres[:, 0] > CENTRAL[1])) & (
    np.abs(centres - centres[target]).sum(axis=1) > FAR
  )
  apart = box_iou(boxes, boxes[target : target + 1], edge=1)[:, 0] <= SUPPRESSED_IOU
  return (classes == classes[target]) & apart & ((sizes < sizes[target] // SUPPRESSED_SHARE) | outlying)


def _box_areas(boxes: np.ndarray) -> np.ndarray:
  return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _aspect(box: np.ndarray) -> float:
  return (box[2] - box[0]) / (box[3] - box[1])
