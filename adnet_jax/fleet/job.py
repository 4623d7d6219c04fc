"""One clip of many, in whichever process: the settings of a run, its outcome, and what counts as complete."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adnet_jax import pipeline, video
from adnet_jax.clip_files import Outputs, OverlayForm
from adnet_jax.errors import AdnetError, DataError, DeviceError, UsageError, WeightsError
from adnet_jax.manifest import Clip

if TYPE_CHECKING:
  from adnet_jax.segmenter import Segmenter

# In a clip's folder: why it broke off, beside the masks of the frames before.
FAILURE = 'failure.json'
# Beside the clips' folders: what is only of use while a run goes on.
HIDDEN = '.adnet'
# Errors of writing that every other clip would meet too.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclasses.dataclass(frozen=True)
class Job:
  """What is the same for all clips of a run.

  Attributes:
    out: absolute; gets a folder for each clip.
    outputs: as of `segment_clip`.
    segmenter: arguments of `Segmenter.from_pretrained` but the device; paths in it are absolute.
    model_name: for the summaries.
    reading: options of `open_source`.
    treatment: further arguments of `segment_clip`, such as the anchor's number.
    device: 'cpu', 'gpu', 'tpu' or None for what is there.
    cache: whether compiled programs are kept, or where.
  """

  out: Path
  outputs: Outputs
  segmenter: dict[str, Any]
  model_name: str
  reading: dict[str, Any] = dataclasses.field(default_factory=dict)
  treatment: dict[str, Any] = dataclasses.field(default_factory=dict)
  device: str | None = None
  cache: bool | Path = True

  @property
  def hidden(self) -> Path:
    """Folder of what is only of use while a run goes on."""
    return self.out / HIDDEN


@dataclasses.dataclass(frozen=True)
class Fault:
  """Why a clip is not done.

  Attributes:
    scope: whose fault it is: 'clip', 'worker' (another try elsewhere may succeed) or 'run' (so would every clip fail).
    code: exit code that one clip alone would have ended with.
    text: one line.
  """

  scope: str
  code: int
  text: str

  def as_error(self, more: str = '') -> AdnetError:
    """The error of the library that has this code, with more to its text."""
    kinds = {kind.exit_code: kind for kind in (UsageError, DataError, WeightsError, DeviceError)}
    return kinds.get(self.code, AdnetError)(self.text + more)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a clip: its summary or its fault; `notes` are what its process had to say meanwhile."""

  clip: Clip
  summary: dict[str, Any] | None = None
  fault: Fault | None = None
  notes: tuple[str, ...] = ()


def make_segmenter(job: Job) -> Segmenter:
  """Sets this process up and loads the model; raises what `set_up` and `from_pretrained` raise."""
  from adnet_jax import environment
  from adnet_jax.segmenter import Segmenter

  environment.keep_memory()
  environment.set_up(job.device, cache=job.cache)
  return Segmenter.from_pretrained(**job.segmenter, device=job.device)


def segment_into(folder: Path, segmenter: Segmenter, job: Job, clip: Clip, outputs: Outputs) -> Outcome:
  """Segments a clip and writes its files; no Exception comes out of here.

  Args:
    folder: gets the files; where the clip breaks off, FAILURE too.
    segmenter: of `make_segmenter`.
    job: the run.
    clip: which.
    outputs: the job's, or what they are for this folder.
  """
  before = _stamp(folder / 'summary.json')
  try:
    source = video.open_source(clip.input, **job.reading)
    video.check_output([source], job.out / clip.name)
    summary = pipeline.segment_clip(segmenter, source, folder, outputs, model_name=job.model_name, **job.treatment)
    (folder / FAILURE).unlink(missing_ok=True)
  except Exception as error:
    fault = fault_of(error)
    # A summary from before says nothing of this fault.
    if fault.scope == 'clip' and _stamp(folder / 'summary.json') != before:
      with contextlib.suppress(OSError):
        (folder / FAILURE).write_text(json.dumps({'code': fault.code, 'error': fault.text}) + '\n')
    return Outcome(clip, fault=fault)
  return Outcome(clip, summary)


def is_complete(folder: Path, outputs: Outputs) -> bool:
  """Whether a clip's folder holds all that `outputs` wants of it: its summary says so and the files are there."""
  summary = read_summary(folder)
  if summary is None or (folder / FAILURE).exists():
    return False
  frames, warnings = summary.get('frames'), summary.get('warnings', [])
  wanted = ['masks', *(['heatmaps'] if outputs.heatmaps else [])]
  if not frames or any(_count(folder / name) != frames for name in wanted):
    return False
  if outputs.overlay and not OverlayForm().files(folder) and not any('no overlay' in text for text in warnings):
    return False
  return all(form.files(folder) for form in outputs.forms)


def read_summary(folder: Path) -> dict[str, Any] | None:
  """A clip's summary; None where there is none that can be read."""
  try:
    summary = json.loads((folder / 'summary.json').read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return None
  return summary if isinstance(summary, dict) else None


def fault_of(error: Exception) -> Fault:
  """Whose fault an error is, and its line."""
  text = ' '.join(str(error).split())
  if isinstance(error, MemoryError) or type(error).__name__ == 'JaxRuntimeError':
    return Fault('worker', 6, text or 'out of memory')
  if not isinstance(error, AdnetError):
    return Fault('clip', 1, f'{type(error).__name__}: {text} (a defect of adnet-jax)')
  cause: BaseException | None = error
  while cause is not None:
    # A full disk, or an extra that is not installed.
    if getattr(cause, 'errno', None) in NO_ROOM or isinstance(cause, ImportError):
      return Fault('run', error.exit_code, text)
    cause = cause.__cause__
  return Fault('worker' if isinstance(error, DeviceError) else 'clip', error.exit_code, text)


def _count(folder: Path) -> int:
  return sum(not path.name.startswith('.') for path in folder.glob('*.png')) if folder.is_dir() else 0


def _stamp(path: Path) -> tuple[int, int] | None:
  try:
    found = path.stat()
  except OSError:
    return None
  return found.st_ino, found.st_mtime_ns
