"""`adnet prepare`: a raw data set to a prepared one, so that a preparation that broke off goes on where it was.

Everything grows in the folder .NAME.preparing beside the output, with a line in a journal for every finished clip, and
becomes the output at the end by one renaming. What is written is planned in records.py and read by prepared.py.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from adnet_jax import __version__, environment, images
from adnet_jax.data import datasets, prepared, records
from adnet_jax.data.clip import first_ten, load_mask
from adnet_jax.errors import DataError, UsageError

_JOURNAL = 'journal.jsonl'


def prepare(
  kind: str, source: str | Path, output: str | Path, *, resume: bool = False, progress: bool = False
) -> dict[str, Any]:
  """Writes a raw data set as records that TFDS and this program read.

  A preparation that broke off goes on, also without being told. Every file that was written before is compared with
  the checksum it had then.

  Args:
    kind: davis2016, fbms59, visal or folder.
    source: the raw data set.
    output: folder to write; appears when everything is in it.
    resume: an output that is complete is no error, but is compared with the source.
    progress: draw a progress bar on stderr.

  Returns:
    `kind`, `output`, `splits` ({name: number of clips}), `clips`, `frames`, `annotations` and `masks_only` (numbers;
    the last are annotations of frames that are not there), `kept` (clips that an earlier run had written), `warnings`.

  Raises:
    UsageError: unknown kind; the output holds something; the extra `tfds` is not installed.
    DataError: what lies in the source is not such a data set; files that cannot be read, or have changed since an
      earlier run (fault 68); a place that cannot be written.
  """
  source, output = Path(source), Path(output)
  _check(kind, source, output, resume)
  plan = records.plan_records(kind, source)
  if prepared.is_prepared(output):
    entries = {entry['name']: entry for entry in prepared.read_index(output)['clips']}
    _check_clips(list(entries), plan, output)
    _check_unchanged(plan, entries, output)
    return _summary(plan, output, len(entries), [])
  work = output.resolve().with_name(f'.{output.resolve().name}.preparing')
  try:
    work.mkdir(parents=True, exist_ok=True)
    entries = _read_journal(work, plan)
    kept, merged = len(entries), []
    _check_unchanged(plan, entries, work)
    total = sum(len(part.records) for parts in plan.clips.values() for part in parts)
    bar = environment.progress_bar(f'preparing {kind}', total) if progress else contextlib.nullcontext(lambda: None)
    with bar as advance:
      for name, parts in plan.clips.items():
        if name in entries:
          _skip(parts, advance)
          continue
        merged += [_check_readable(part, advance) for part in parts]
        entries[name] = records.describe(plan, name)
        for part in parts:
          _write_shard(part, work / part.shard)
        _append(work, entries[name], [work / part.shard for part in parts])
    finish(plan, work, (entries[name] for name in plan.clips))
    if output.is_dir():
      output.rmdir()
    os.replace(work, output)
    (output / _JOURNAL).unlink()
  except OSError as error:
    advice = f'{error.strerror or error}; what was written is kept, the same command goes on'
    raise DataError('prepared data set cannot be written', work, advice) from error
  return _summary(plan, output, kept, [name for name in merged if name])


def finish(plan: records.Plan, folder: Path, entries: Iterable[Mapping[str, Any]]) -> None:
  """Writes what TFDS and this program know a folder of shards by: dataset_info.json, features.json, clips.json."""
  tfds = prepared.import_tfds()
  builder = builder_class(plan.kind)(data_dir=folder)
  builder.info.set_file_format('array_record', override=True)
  shards: dict[str, list[records.Part]] = {}
  for part in (part for parts in plan.clips.values() for part in parts):
    shards.setdefault(part.split, []).append(part)
  splits = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[len(part.records) for part in parts],
      num_bytes=sum((folder / part.shard).stat().st_size for part in parts),
      filename_template=tfds.core.ShardedFileTemplate(
        data_dir=tfds.core.Path(folder), dataset_name=plan.kind, split=split, filetype_suffix='array_record'
      ),
    )
    for split, parts in shards.items()
  ]
  builder.info.set_splits(tfds.core.SplitDict(splits))
  builder.info.write_to_directory(folder)
  write_index(folder, plan.kind, entries)


def write_index(folder: Path, kind: str, entries: Iterable[Mapping[str, Any]]) -> None:
  """Writes clips.json, whole or not at all."""
  index = {'format': prepared.FORMAT, 'kind': kind, 'version': __version__, 'clips': list(entries)}
  temporary = folder / f'.{prepared.INDEX}'
  temporary.write_text(json.dumps(index, ensure_ascii=False, separators=(',', ':')) + '\n', encoding='utf-8')
  os.replace(temporary, folder / prepared.INDEX)


def builder_class(kind: str) -> Any:
  """The TFDS builder of a kind of data set; UsageError where TFDS is not installed."""
  prepared.import_tfds()
  return import_module(f'adnet_jax.data.builders.{kind}.{kind}_dataset_builder').Builder


def _check(kind: str, source: Path, output: Path, resume: bool) -> None:
  if kind not in datasets.KINDS:
    raise UsageError('unknown kind of data set', kind, f'one of {", ".join(datasets.KINDS)}')
  prepared.import_tfds()
  if not source.is_dir():
    raise DataError('data set folder not found', source, 'give the folder that holds the raw data set')
  if prepared.is_prepared(source):
    raise DataError('is a prepared data set already', source, 'give the folder that holds the raw data set')
  if output.resolve().is_relative_to(source.resolve()):
    raise UsageError('the output lies in the source', output, 'choose a folder outside of it')
  if output.exists() and not output.is_dir():
    raise UsageError('output is a file', output, 'choose a folder')
  if output.is_dir() and any(output.iterdir()):
    if not prepared.is_prepared(output):
      raise UsageError(
        'output folder already holds something', output, 'choose an empty one; --resume is for prepared data sets'
      )
    if not resume:
      advice = 'add --resume to compare it with the source, or choose another folder'
      raise UsageError('output folder already holds a prepared data set', output, advice)


def _read_journal(work: Path, plan: records.Plan) -> dict[str, Any]:
  """Entries of the clips that are written already; a journal is begun where there is none."""
  path = work / _JOURNAL
  header = {'format': prepared.FORMAT, 'kind': plan.kind, 'clips': list(plan.clips)}
  lines = []
  for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else []:
    try:
      lines.append(json.loads(line))
    except ValueError:
      break  # cut off in the middle of a write
  if not lines:
    path.write_text(json.dumps(header) + '\n', encoding='utf-8')
    return {}
  before, *done = lines
  if (before['format'], before['kind']) != (header['format'], header['kind']):
    what = f'a preparation of {before["kind"]} has been interrupted there'
    raise DataError(what, work, 'go on with it, or remove that folder')
  _check_clips(before['clips'], plan, work)
  # Whole lines only, or the next would be appended to half a line.
  temporary = work / f'.{_JOURNAL}'
  temporary.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
  os.replace(temporary, path)
  sizes = {file.name: file.stat().st_size for file in work.iterdir()}
  whole = [line for line in done if all(sizes.get(shard) == size for shard, size in line['sizes'].items())]
  return {line['entry']['name']: line['entry'] for line in whole}


def _append(work: Path, entry: Mapping[str, Any], shards: Iterable[Path]) -> None:
  line = {'entry': entry, 'sizes': {shard.name: shard.stat().st_size for shard in shards}}
  with (work / _JOURNAL).open('a', encoding='utf-8') as journal:
    journal.write(json.dumps(line) + '\n')
    journal.flush()
    os.fsync(journal.fileno())


def _check_clips(before: list[str], plan: records.Plan, where: Path) -> None:
  gone = [name for name in before if name not in plan.clips]
  added = [name for name in plan.clips if name not in before]
  if gone or added:
    changes = [f'{what}: {first_ten(names)}' for what, names in (('gone', gone), ('added', added)) if names]
    raise DataError(f'clips of the source have changed, {"; ".join(changes)}', where, _advice(where))


def _check_unchanged(plan: records.Plan, entries: Mapping[str, Mapping[str, Any]], where: Path) -> None:
  """Compares every file of these clips with the checksum it had when it was written (fault 68)."""
  changed: list[str] = []
  with ThreadPoolExecutor() as pool:
    for name, now in zip(entries, pool.map(lambda name: records.describe(plan, name), entries), strict=True):
      old, new = records.checksums(entries[name]), records.checksums(now)
      changed += [f'{path}{_change(path, old, new)}' for path in sorted(old | new) if old.get(path) != new.get(path)]
  if changed:
    what = f'{len(changed)} source files have changed since they were written: {first_ten(changed)}'
    raise DataError(what, plan.root, _advice(where))


def _change(path: str, old: Mapping[str, str], new: Mapping[str, str]) -> str:
  return ' (gone)' if path not in new else ' (new)' if path not in old else ''


def _advice(where: Path) -> str:
  return f'restore the source, or remove {where} to prepare it again'


def _check_readable(part: records.Part, advance: Callable[[], None]) -> str | None:
  """Decodes every file of a part; names a mask of several objects, if there is one (fault 58).

  Raises:
    DataError: files that cannot be read or do not fit, the first ten named.
  """

  def outcome(record: records.Record) -> str | bool:
    try:
      if record.frame is not None and record.truth is not None:
        datasets.read_pair(record.frame, record.truth)
      elif record.frame is not None:
        images.read_image(record.frame)
      mask = None if record.truth is None else load_mask(record.truth)
      return mask is not None and mask.kind == 'labels' and not mask.binary
    except DataError as error:
      return f'{error.where}, {error.what}'

  outcomes = []
  with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
    for found in pool.map(outcome, part.records):
      outcomes.append(found)
      advance()
  wrong = [found for found in outcomes if isinstance(found, str)]
  if wrong:
    raise DataError(
      f'{len(wrong)} files cannot be used: {first_ten(wrong, "; ")}',
      part.clip.name,
      'repair or remove them; the same command goes on',
    )
  merged = [record.stem for record, found in zip(part.records, outcomes, strict=True) if found]
  return f'{part.clip.name}/{merged[0]}' if merged else None


def _skip(parts: Iterable[records.Part], advance: Callable[[], None]) -> None:
  for part in parts:
    for _ in part.records:
      advance()


def _write_shard(part: records.Part, path: Path) -> None:
  """Writes a shard, whole or not at all."""
  from array_record.python.array_record_module import ArrayRecordWriter

  tfds = prepared.import_tfds()
  features = prepared.features()
  serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
  temporary = path.with_name(f'.{path.name}')
  try:
    writer = ArrayRecordWriter(str(temporary), 'group_size:1')
    for _, fields in records.examples(part):
      example = serializer.get_tf_example(features.encode_example(fields))
      writer.write(example.SerializeToString(deterministic=True))  # the same bytes in every run
    writer.close()
  except RuntimeError as error:  # what ArrayRecord makes of a full disk
    raise OSError(' '.join(str(error).split())[:200]) from error
  with temporary.open('rb') as file:
    os.fsync(file.fileno())
  os.replace(temporary, path)


def _summary(plan: records.Plan, output: Path, kept: int, merged: list[str]) -> dict[str, Any]:
  found = [record for parts in plan.clips.values() for part in parts for record in part.records]
  splits = [name for names in plan.splits.values() for name in names]
  warnings = list(plan.warnings)
  if merged:
    warnings.append(f'masks with more than two values, as {merged[0]}: all but 0 merged to one foreground')
  return {
    'kind': plan.kind,
    'output': str(output),
    'splits': {name: splits.count(name) for name in dict.fromkeys(splits)},
    'clips': len(plan.clips),
    'frames': sum(record.frame is not None for record in found),
    'annotations': sum(record.truth is not None for record in found),
    'masks_only': sum(record.frame is None for record in found),
    'kept': kept,
    'warnings': warnings,
  }
