"""Caching SeqIO tasks as ArrayRecord, in a process of its own.

SeqIO needs TensorFlow, which no training process may load. A job that finds a
task missing, or made from other tables, another vocabulary or other code,
starts `python -m p4lm.data.cache`, which runs each task's SeqIO pipeline once
and writes

  CACHE_DIR/TASK/SPLIT.array_record   examples, see `records`
  CACHE_DIR/TASK/info.json            counts, CF kinds, lengths, hashes

A task module has `CF_KINDS` ({task: kinds of its CF vectors}), `MIXTURES`
({mixture: tasks}) and `register(data_dir, vocabulary_path,
tokens_per_vector)`, inside which it imports seqio.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from p4lm import child_process
from p4lm.data import prompts, tables
from p4lm.data.records import encode_record
from p4lm.errors import UserError

_FORMAT = 2
_VOCABULARY = 'vocabulary.model'
_TAIL_LINES = 12
# A large file is as its manifest says; hashing it again at every start of
# every job would take seconds.
_HASHED_BYTES = 64 * 1024 * 1024
# Examples that leave TensorFlow together: each crossing costs 0.1 ms.
_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class CachedTask:
  """A task or mixture that is ready to be read.

  Attributes:
    directory: the cache directory.
    tasks: the member tasks (one, for a task).
    cf_kinds: the kinds of CF vectors that occur in any of them.
  """

  directory: str
  tasks: tuple[str, ...]
  cf_kinds: tuple[str, ...]


def ensure_cached(
  task_module: str,
  task: str,
  data_dir: str | os.PathLike,
  cache_dir: str | os.PathLike | None = None,
  *,
  tokens_per_vector: int = 1,
) -> CachedTask:
  """Caches a task or a mixture's tasks if need be, saying so.

  Args:
    task_module: Python module that registers the task.
    task: a task or a mixture of it.
    data_dir: tables and `vocabulary.model`.
    cache_dir: `DATA_DIR/tasks` by default.
    tokens_per_vector: soft tokens of each CF vector in the prompts.
  Raises:
    UserError: the module or the task does not exist, or caching failed.
  """
  directory = str(cache_dir or Path(data_dir) / 'tasks')
  cache_tasks(
    task_module,
    [task],
    data_dir,
    directory,
    tokens_per_vector=tokens_per_vector,
  )
  module = _import_task_module(task_module)
  members = _members(module, task)
  kinds = {kind for name in members for kind in module.CF_KINDS[name]}
  return CachedTask(directory, members, tuple(sorted(kinds)))


def cache_tasks(
  task_module: str,
  tasks: Sequence[str],
  data_dir: str | os.PathLike,
  cache_dir: str | os.PathLike,
  *,
  vocabulary_path: str | os.PathLike | None = None,
  tokens_per_vector: int = 1,
) -> None:
  """Caches those of `tasks` that are missing or stale.

  All of them in one process, each all or nothing. Two jobs may ask at the same
  time: the second waits and finds the tasks there.

  Args:
    task_module: Python module that registers the tasks.
    tasks: names of tasks and mixtures.
    data_dir: tables of `make_data`.
    cache_dir: gets a directory a task.
    vocabulary_path: `DATA_DIR/vocabulary.model` by default.
    tokens_per_vector: soft tokens of each CF vector in the prompts.
  Raises:
    UserError: unknown names, missing inputs, or the process failed; then the
      message holds its last lines.
  """
  module = _import_task_module(task_module)
  vocabulary_path = vocabulary_path or Path(data_dir) / _VOCABULARY
  names = dict.fromkeys(m for task in tasks for m in _members(module, task))
  source = source_hash(
    task_module, data_dir, vocabulary_path, tokens_per_vector
  )
  if all(is_cached(cache_dir, name, source) for name in names):
    return
  with _locked(Path(cache_dir)):
    missing = [n for n in names if not is_cached(cache_dir, n, source)]
    if missing:
      print(
        f'caching {len(missing)} SeqIO task(s) in {cache_dir} (a process of '
        'its own loads TensorFlow first)',
        flush=True,
      )
      _run_process(
        {
          'task_module': task_module,
          'tasks': missing,
          'data_dir': str(data_dir),
          'vocabulary_path': str(vocabulary_path),
          'cache_dir': str(cache_dir),
          'tokens_per_vector': tokens_per_vector,
          'source': source,
        }
      )


def is_cached(cache_dir: str | os.PathLike, task: str, source: str) -> bool:
  """Whether the task is there, whole, and made from `source`."""
  try:
    info = json.loads((Path(cache_dir) / task / 'info.json').read_text())
  except (OSError, ValueError):
    return False
  return info.get('source') == source and info.get('format') == _FORMAT


def source_hash(
  task_module: str,
  data_dir: str | os.PathLike,
  vocabulary_path: str | os.PathLike,
  tokens_per_vector: int = 1,
) -> str:
  """sha256 of what tasks are made from: tables, vocabulary, prompts, code.

  Raises:
    UserError: `data_dir` was not made by `make_data`, or no vocabulary.
  """
  listed = tables.read_manifest(data_dir).get('files', {})
  hashes = {'tokens_per_vector': tokens_per_vector}
  for path in sorted(Path(data_dir).glob('*.parquet')):
    entry = listed.get(path.name, {})
    trusted = (
      path.stat().st_size > _HASHED_BYTES
      and entry.get('bytes') == path.stat().st_size
    )
    hashes[path.name] = entry['sha256'] if trusted else tables.hash_file(path)
  try:
    hashes['vocabulary'] = tables.hash_file(vocabulary_path)
  except OSError as error:
    raise UserError(
      f'cannot read the vocabulary {vocabulary_path}: {error.strerror}; give '
      'the OUTPUT_DIR of a finished make_data as DATA_DIR'
    ) from error
  code = (prompts.__file__, _import_task_module(task_module).__file__)
  hashes['code'] = [tables.hash_file(path) for path in code]
  text = json.dumps(hashes, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _import_task_module(name: str):
  had_tensorflow = 'tensorflow' in sys.modules
  try:
    module = importlib.import_module(name)
  except ModuleNotFoundError as error:
    raise UserError(
      f'TASK_MODULE {name!r} cannot be imported: {error}'
    ) from error
  for needed in ('CF_KINDS', 'MIXTURES', 'register'):
    if not hasattr(module, needed):
      raise UserError(f'TASK_MODULE {name!r} has no {needed}')
  if 'tensorflow' in sys.modules and not had_tensorflow:
    raise UserError(
      f'TASK_MODULE {name!r} loads TensorFlow when it is imported, which '
      'training processes must not; import seqio inside its register function'
    )
  return module


def _members(module, task: str) -> tuple[str, ...]:
  if task in module.MIXTURES:
    return tuple(module.MIXTURES[task])
  if task not in module.CF_KINDS:
    known = [*module.CF_KINDS, *module.MIXTURES]
    near = difflib.get_close_matches(task, known, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise UserError(
      f'{module.__name__} has no task {task!r}{hint} (it has '
      f'{", ".join(known)})'
    )
  return (task,)


@contextlib.contextmanager
def _locked(cache_dir: Path) -> Iterator[None]:
  """One process at a time makes the tasks of a cache directory."""
  try:
    cache_dir.mkdir(parents=True, exist_ok=True)
    file = (cache_dir / '.lock').open('w')
  except OSError as error:
    raise UserError(
      f'the task cache {cache_dir} cannot be written: {error.strerror}; '
      'choose another with --gin.TASKS_DIR'
    ) from error
  with file:
    fcntl.flock(file, fcntl.LOCK_EX)
    for abandoned in cache_dir.glob('.partial-*'):
      shutil.rmtree(abandoned, ignore_errors=True)
    yield


def _run_process(request: dict) -> None:
  with tempfile.TemporaryFile('w+') as errors:
    process = subprocess.run(
      [sys.executable, '-m', 'p4lm.data.cache', json.dumps(request)],
      env=child_process.tensorflow_environment(),
      stderr=errors,
      check=False,
    )
    errors.seek(0)
    lines = errors.read().splitlines()
  if process.returncode != 0:
    raise UserError(
      f'caching {", ".join(request["tasks"])} failed (exit status '
      f'{process.returncode}):\n' + '\n'.join(lines[-_TAIL_LINES:])
    )


def _cache_main(request: dict) -> None:
  """Runs in the process of its own."""
  try:
    import seqio
    import tensorflow  # noqa: F401
    from absl import flags
  except ImportError as error:
    raise UserError(
      f'caching tasks needs seqio and TensorFlow ({error}); install p4lm with '
      'its requirements, or copy a task cache made elsewhere'
    ) from error
  flags.FLAGS(['p4lm'])  # SeqIO reads absl flags, which must be parsed.
  module = importlib.import_module(request['task_module'])
  module.register(
    request['data_dir'],
    request['vocabulary_path'],
    request['tokens_per_vector'],
  )
  for name in request['tasks']:
    began = time.monotonic()
    info = {
      'format': _FORMAT,
      'task': name,
      'source': request['source'],
      'cf_kinds': list(module.CF_KINDS[name]),
    }
    counts = _cache_one(
      seqio.TaskRegistry.get(name), Path(request['cache_dir']), info
    )
    shown = ', '.join(f'{count:,} {split}' for split, count in counts.items())
    secs = time.monotonic() - began
    print(f'  {name}: {shown} ({secs:.1f} s)', flush=True)


def _cache_one(task, cache_dir: Path, info: dict) -> dict[str, int]:
  """Runs one SeqIO task; returns {split: number of examples}."""
  partial = Path(tempfile.mkdtemp(prefix='.partial-', dir=cache_dir))
  counts, lengths = {}, {}
  for split in task.splits:
    path = partial / f'{split}.array_record'
    counts[split] = _write_split(task, split, path, lengths)
  info = {
    **info,
    'num_examples': counts,
    'lengths': {name: _length_summary(n) for name, n in lengths.items()},
  }
  (partial / 'info.json').write_text(json.dumps(info, indent=2))
  partial.chmod(0o755)
  shutil.rmtree(cache_dir / task.name, ignore_errors=True)
  os.replace(partial, cache_dir / task.name)
  return counts


def _write_split(task, split: str, path: Path, lengths: dict) -> int:
  from array_record.python import array_record_module

  dataset = task.get_dataset(
    sequence_length=None, split=split, shuffle=False, use_cached=False
  )
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  count = 0
  for batch in dataset.ragged_batch(_ROWS):
    columns = {
      name: _column(value, task.output_features.get(name))
      for name, value in batch.items()
    }
    for values in zip(*columns.values()):
      writer.write(encode_record(dict(zip(columns, values))))
      count += 1
    for name in task.output_features:
      lengths.setdefault(name, []).extend(len(row) for row in columns[name])
  writer.close()
  return count


def _column(value, feature) -> list:
  """A feature of a batch as one str, float or int32 vector an example.

  SeqIO has appended the end of sequence where the feature asks for it; records
  are without, since a feature converter cuts to its length before it appends.
  """
  if feature is None:
    plain = value.numpy().tolist()
    return [v.decode() if isinstance(v, bytes) else v for v in plain]
  flat, ends = value.flat_values.numpy(), value.row_splits.numpy()
  dropped = 1 if feature.add_eos else 0
  return [
    flat[start : end - dropped] for start, end in zip(ends[:-1], ends[1:])
  ]


def _length_summary(lengths: Sequence[int]) -> dict[str, float]:
  if not lengths:
    return {}
  return {
    'mean': round(float(np.mean(lengths)), 1),
    'p95': float(np.percentile(lengths, 95)),
    'max': int(max(lengths)),
  }


if __name__ == '__main__':
  child_process.end_with_parent()
  try:
    _cache_main(json.loads(sys.argv[1]))
  except UserError as error:
    sys.exit(str(error))
