"""Makes the bundled sample clip: an astronaut walks past a launch pad, filmed by hand; true masks come with it.

Two photographs in the public domain, both inside scikit-image's wheel, become a video: the astronaut is cut out along
a traced outline with a soft matte and is composited, in linear light, over the launch pad. Camera and subject move,
the subject turns and sways, the head moves by itself, the light drifts; shutter, lens and sensor leave their marks.
Knows nothing of the network. The same seed gives the same files, bit for bit, with the same library releases.

  python tools/make_sample_clip.py            # writes adnet_jax/assets/sample
  python tools/make_sample_clip.py -o DIR --frames 8 --seed 3
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

CLIP = 'astronaut'
SIZE = (480, 270)  # width, height
FRAMES = 40
SEED = 7
RATE = 24.0  # frames a second; only the speed of the motion depends on it
SUBFRAMES = 5  # positions averaged over the open shutter
SHUTTER = 0.5  # share of the frame time that the shutter is open
OVERSAMPLE = 2  # linear factor at which frames are composited before they are reduced
JPEG_QUALITY = 90
GAMMA = 2.2

# Outline of astronaut and helmet in the photograph (512 x 512), clockwise from the lower left.
OUTLINE = np.array(
  [
    *[(42, 511), (28, 470), (22, 436), (19, 412), (21, 375), (26, 338), (35, 300), (47, 272), (61, 251), (80, 230)],
    *[(101, 215), (112, 205), (114, 189), (122, 186), (127, 173), (136, 159), (155, 150), (176, 148), (183, 148)],
    *[(181, 133), (174, 128), (170, 117), (159, 104), (154, 86), (154, 66), (161, 49), (175, 37), (191, 32)],
    *[(205, 21), (228, 16), (249, 18), (270, 24), (286, 35), (294, 49), (300, 70), (302, 89), (298, 108), (288, 123)],
    *[(276, 134), (266, 137), (261, 152), (256, 178), (272, 184), (288, 197), (300, 216), (306, 236), (323, 244)],
    *[(340, 258), (349, 277), (355, 291), (359, 310), (363, 333), (362, 349), (371, 347), (394, 344), (417, 344)],
    *[(436, 351), (460, 368), (479, 390), (491, 413), (497, 450), (504, 457), (511, 464), (511, 511)],
  ],
  np.int32,
)
NECK = (228.0, 178.0)  # the head turns about this point of the photograph


@dataclass(frozen=True)
class Subject:
  """A cut-out photograph.

  Attributes:
    colour: (h, w, 3) float32, BGR, linear light 0..1, continued beyond the outline so that edges carry no old backdrop.
    alpha: (h, w) float32, 0..1.
  """

  colour: np.ndarray
  alpha: np.ndarray


def linear(image: np.ndarray) -> np.ndarray:
  """uint8 0..255 to float32 linear light 0..1."""
  return (image.astype(np.float32) / 255) ** GAMMA


def guided_filter(guide: np.ndarray, target: np.ndarray, radius: int, eps: float) -> np.ndarray:
  """Smooths `target` along the edges of a grey `guide` (He et al., 2010); both (h, w) float32 in 0..1."""

  def mean(x: np.ndarray) -> np.ndarray:
    return cv2.blur(x, (2 * radius + 1, 2 * radius + 1))

  guide_mean, target_mean = mean(guide), mean(target)
  slope = (mean(guide * target) - guide_mean * target_mean) / (mean(guide * guide) - guide_mean**2 + eps)
  return mean(slope) * guide + mean(target_mean - slope * guide_mean)


def cut_out(photograph: np.ndarray) -> Subject:
  """Cuts the astronaut out of her photograph.

  Args:
    photograph: (512, 512, 3) uint8, BGR.
  """
  inside = cv2.fillPoly(np.zeros(photograph.shape[:2], np.uint8), [OUTLINE], 1)
  ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11))
  sure, possible = cv2.erode(inside, ellipse), cv2.dilate(inside, ellipse)
  labels = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
  labels[sure == 1], labels[possible == 0] = cv2.GC_FGD, cv2.GC_BGD
  labels[-6:, OUTLINE[0, 0] :] = cv2.GC_FGD  # the photograph's lower edge is no outline
  cv2.setRNGSeed(0)
  cv2.grabCut(photograph, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 6, cv2.GC_INIT_WITH_MASK)
  hard = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
  hard = cv2.medianBlur(hard, 7)

  grey = cv2.cvtColor(photograph, cv2.COLOR_BGR2GRAY).astype(np.float32) / 255
  smooth = cv2.GaussianBlur(hard.astype(np.float32), (0, 0), 1.2)
  alpha = np.clip(smooth, 0, 1)
  hair = np.clip((150 - np.arange(photograph.shape[0], dtype=np.float32)) / 20, 0, 1)[:, None]
  alpha += hair * (guided_filter(grey, smooth, 4, 1e-3) - alpha)
  alpha = np.clip((alpha - 0.15) / 0.75, 0, 1)

  # Colours of the safe inside, spread outwards: a normalised blur at growing widths.
  core = cv2.erode(hard, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))).astype(np.float32)
  colour = linear(photograph)
  spread = colour * core[..., None]
  known = core.copy()
  for sigma in (1.5, 3.0, 6.0, 12.0):
    weight = cv2.GaussianBlur(core, (0, 0), sigma)
    near = cv2.GaussianBlur(colour * core[..., None], (0, 0), sigma) / np.maximum(weight, 1e-6)[..., None]
    new = (known == 0) & (weight > 1e-2)
    spread[new], known[new] = near[new], 1
  return Subject(spread.astype(np.float32), alpha.astype(np.float32))


def ease(x: float) -> float:
  """0..1 to 0..1 with a soft start and stop."""
  return x * x * (3 - 2 * x)


def wander(t: float, seed: tuple[int, int], *rates: float) -> float:
  """A hand's unrest: a sum of sines of the given rates (Hz) with phases drawn from the seed, about -1..1."""
  phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, len(rates))
  return float(sum(np.sin(2 * np.pi * rate * t + phase) for rate, phase in zip(rates, phases)) / len(rates))


def keystone(width: float, height: float, yaw: float, pitch: float) -> np.ndarray:
  """3x3 homography of a slight turn about the centre of a (width, height) rectangle; angles as share of perspective."""
  centre = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]], np.float64)
  turn = np.array([[1, 0, 0], [0, 1, 0], [yaw / width, pitch / height, 1]], np.float64)
  return np.linalg.inv(centre) @ turn @ centre


def similarity(scale: float, degrees: float, source: tuple[float, float], target: tuple[float, float]) -> np.ndarray:
  """3x3 matrix that takes the point `source` to `target`, scaled and turned about it."""
  matrix = np.eye(3)
  matrix[:2] = cv2.getRotationMatrix2D(source, degrees, scale)
  matrix[:2, 2] += np.subtract(target, source)
  return matrix


@dataclass(frozen=True)
class Scene:
  """Where everything is at one instant, in pixels of the finished frame.

  Attributes:
    subject, backdrop: 3x3 homographies from photograph to frame.
    head: the head's turn in degrees.
    light: exposure.
    lamp: x of the warm light that the subject passes.
    focus: blur of the backdrop, sigma in pixels.
  """

  subject: np.ndarray
  backdrop: np.ndarray
  head: float
  light: float
  lamp: float
  focus: float


def scene_at(t: float, length: float, seed: int) -> Scene:
  """The scene at time t (seconds) of a clip of `length` seconds; `seed` draws the hand's unrest."""
  width, height = SIZE
  progress = t / length
  shake = np.array([2.2 * wander(t, (seed, 1), 0.7, 1.9, 3.1), 1.8 * wander(t, (seed, 2), 0.9, 2.3, 3.7)])
  roll = 0.7 * wander(t, (seed, 3), 0.5, 1.3)
  step = 2 * np.pi * 1.75 * t  # two steps a second, nearly

  scale = 0.475 + 0.125 * ease(progress)
  crown = (
    136 + 184 * ease(progress) + 2.5 * np.sin(step / 2) + shake[0],
    61 - 17 * ease(progress) + 2.6 * np.cos(step) + shake[1],
  )
  sway = 1.6 * np.sin(step / 2 + 0.6) + roll
  body = keystone(512, 512, 0.10 * np.sin(step / 2 + 0.2) - 0.08, 0.05 * np.cos(step))
  subject = similarity(scale, sway, (228.0, 16.0), crown) @ body

  zoom = 1.03 + 0.07 * progress
  look = (262 + 96 * ease(progress), 282.0 - 6 * progress)
  turn = keystone(640, 427, 0.06 - 0.12 * progress, 0.02 * wander(t, (seed, 4), 0.6))
  backdrop = similarity(zoom, roll, look, (width / 2 + shake[0], height / 2 + shake[1])) @ turn
  return Scene(
    subject=subject,
    backdrop=backdrop,
    head=2.6 * np.sin(2 * np.pi * 0.55 * t - 0.5) + 0.9 * np.sin(step),
    light=1.0 + 0.10 * np.sin(2 * np.pi * 0.45 * t) + 0.015 * wander(t, (seed, 5), 2.7, 4.3),
    lamp=width * (-0.1 + 1.1 * progress),
    focus=1.15 + 0.35 * np.sin(2 * np.pi * 0.4 * t),
  )


def grid_to(matrix: np.ndarray, head: float | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Coordinates in a photograph of every pixel of the oversampled frame; `head` turns the head by so many degrees."""
  width, height = SIZE
  x, y = np.meshgrid(np.arange(width * OVERSAMPLE), np.arange(height * OVERSAMPLE))
  points = np.stack([(x + 0.5) / OVERSAMPLE, (y + 0.5) / OVERSAMPLE, np.ones_like(x)]).reshape(3, -1)  # (3, pixels)
  px, py, pz = np.linalg.inv(matrix) @ points
  px, py = px / pz, py / pz
  if head is not None:
    weight = np.clip((206 - py) / 52, 0, 1)
    angle = np.deg2rad(head) * weight * weight * (3 - 2 * weight)
    dx, dy = px - NECK[0], py - NECK[1]
    px, py = NECK[0] + np.cos(angle) * dx - np.sin(angle) * dy, NECK[1] + np.sin(angle) * dx + np.cos(angle) * dy
  shape = height * OVERSAMPLE, width * OVERSAMPLE
  return px.reshape(shape).astype(np.float32) - 0.5, py.reshape(shape).astype(np.float32) - 0.5


def composite(subject: Subject, backdrop: np.ndarray, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
  """One instant.

  Args:
    subject: the cut-out.
    backdrop: (h, w, 3) float32, BGR, linear light.
    scene: where both are.

  Returns:
    (H, W, 3) float32 linear light, not clipped, and alpha (H, W) float32 0..1, both oversampled.
  """
  behind = cv2.remap(backdrop, *grid_to(scene.backdrop), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
  behind = cv2.GaussianBlur(np.maximum(behind, 0), (0, 0), scene.focus * OVERSAMPLE)

  grid = grid_to(scene.subject, scene.head)
  layer = np.dstack([subject.colour * subject.alpha[..., None], subject.alpha])
  layer = cv2.remap(layer, *grid, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(0, 0, 0, 0))
  colour, alpha = layer[..., :3], layer[..., 3]

  # Dusk takes the studio's flat white light away; a lamp of the pad passes by; the sky shines around the edges.
  x = (np.arange(alpha.shape[1], dtype=np.float32) + 0.5) / OVERSAMPLE
  lamp = np.exp(-(((x - scene.lamp) / 110) ** 2))[None, :, None]
  y = np.linspace(0, 1, alpha.shape[0], dtype=np.float32)[:, None, None]
  tint = np.array([0.70, 0.60, 0.56], np.float32) * (1.12 - 0.34 * y)
  colour = colour * (tint + lamp * np.array([0.05, 0.16, 0.24], np.float32))
  glow = cv2.GaussianBlur(behind, (0, 0), 9 * OVERSAMPLE)
  rim = alpha * (1 - cv2.GaussianBlur(alpha, (0, 0), 2.5 * OVERSAMPLE))
  frame = colour + behind * (1 - alpha[..., None]) + 0.9 * glow * rim[..., None]
  return frame * scene.light, alpha


def develop(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Lens and sensor: vignette, a soft shoulder in the highlights, photon and read noise.

  Args:
    light: (h, w, 3) float32, BGR, linear light, not clipped.
    rng: draws the noise.

  Returns:
    (h, w, 3) uint8.
  """
  height, width = light.shape[:2]
  y, x = np.mgrid[:height, :width].astype(np.float32)
  radius = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) * 2
  light = light * (1 - 0.28 * radius)[..., None]
  light = np.where(light > 0.7, 0.7 + 0.3 * np.tanh((light - 0.7) / 0.3), light)
  noise = rng.standard_normal(light.shape, np.float32) * 0.6 + rng.standard_normal((height, width, 1), np.float32)
  noise = cv2.GaussianBlur(noise, (0, 0), 0.55) * 1.5
  light = light + noise * np.sqrt(0.00018 * np.maximum(light, 0) + 0.0000006)
  return np.rint(255 * np.clip(light, 0, 1) ** (1 / GAMMA)).astype(np.uint8)


def render(index: int, frames: int, seed: int, subject: Subject, backdrop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Frame `index` of a clip of `frames`: image (h, w, 3) uint8 BGR and true mask (h, w) bool (half covered or more)."""
  # The motion belongs to the whole clip: fewer frames are coarser steps along the same path.
  length = FRAMES / RATE
  interval = length / max(frames, 1)
  times = [(index + SHUTTER * k / SUBFRAMES) * interval for k in range(SUBFRAMES)]
  opened = [composite(subject, backdrop, scene_at(t, length, seed)) for t in times]
  light = cv2.resize(np.mean([c for c, _ in opened], axis=0), SIZE, interpolation=cv2.INTER_AREA)
  alpha = cv2.resize(np.mean([a for _, a in opened], axis=0), SIZE, interpolation=cv2.INTER_AREA)
  return develop(light, np.random.default_rng([seed, index])), alpha >= 0.5


def photographs() -> tuple[np.ndarray, np.ndarray]:
  """The two sources as uint8 BGR: the astronaut (512, 512, 3) and the launch pad (427, 640, 3)."""
  from skimage import data

  return data.astronaut()[..., ::-1].copy(), data.rocket()[..., ::-1].copy()


def prepare(astronaut: np.ndarray, pad: np.ndarray) -> tuple[Subject, np.ndarray]:
  """What `render` needs of the photographs; the dusk is exposed longer than in its own."""
  return cut_out(astronaut), 1.9 * linear(pad)


def make(out: Path, frames: int = FRAMES, seed: int = SEED) -> None:
  """Writes JPEGImages/480p/CLIP/*.jpg and Annotations/480p/CLIP/*.png (0 and 255) below `out`."""
  subject, backdrop = prepare(*photographs())
  images, masks = out / 'JPEGImages' / '480p' / CLIP, out / 'Annotations' / '480p' / CLIP
  images.mkdir(parents=True, exist_ok=True)
  masks.mkdir(parents=True, exist_ok=True)
  for index in range(frames):
    image, mask = render(index, frames, seed, subject, backdrop)
    cv2.imwrite(str(images / f'{index:05d}.jpg'), image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    cv2.imwrite(str(masks / f'{index:05d}.png'), mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
  default = Path(__file__).resolve().parents[1] / 'adnet_jax' / 'assets' / 'sample'
  parser.add_argument('-o', '--out', type=Path, default=default)
  parser.add_argument('--frames', type=int, default=FRAMES)
  parser.add_argument('--seed', type=int, default=SEED)
  options = parser.parse_args()
  make(options.out, options.frames, options.seed)


if __name__ == '__main__':
  main()
