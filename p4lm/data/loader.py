"""Batches of cached tasks, shuffled globally and addressed by step.

The batch of step s depends on the seed and on s alone: resuming needs no
iterator state, and the number of hosts may change. The examples of a mixture
share one shuffle, so each task is drawn in proportion to its size and an epoch
has every example once.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import grain
import jax
import numpy as np

from p4lm.data.records import decode_record
from p4lm.errors import UserError

Converter = Callable[[Mapping, Sequence[str]], dict[str, np.ndarray]]
Batch = dict[str, np.ndarray]

# Converted examples are kept when all of them fit: small data sets are read
# many times.
_KEEP_BYTES = 512 * 1024 * 1024
# Records that are read at a time where a split is read through.
_READ_ROWS = 4096
# Batches made ahead of the training step, so that it never waits for one.
_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class TaskInfo:
  """What `info.json` of a cached task says.

  Attributes:
    name: of the task.
    cf_kinds: 'user' or 'item' for each CF vector of an example, in order.
    num_examples: by split.
  """

  name: str
  cf_kinds: tuple[str, ...]
  num_examples: dict[str, int]

  @classmethod
  def load(cls, cache_dir, task: str) -> TaskInfo:
    """Reads it; UserError when the task is not cached in `cache_dir`."""
    path = Path(cache_dir) / task / 'info.json'
    try:
      info = json.loads(path.read_text())
    except FileNotFoundError as error:
      raise UserError(
        f'task {task!r} is not cached in {cache_dir} (no {path}); run '
        'p4lm cache_tasks'
      ) from error
    except ValueError as error:
      raise UserError(
        f'{path} is damaged ({error}); remove {path.parent} and run '
        'p4lm cache_tasks'
      ) from error
    return cls(task, tuple(info['cf_kinds']), dict(info['num_examples']))


class Examples:
  """Random access to the converted examples of one split of some tasks.

  Args:
    cache_dir: where the tasks are cached.
    tasks: names; their examples follow each other.
    split: such as 'train'.
    converter: (example, cf_kinds) -> features of fixed shapes.
  Raises:
    UserError: a task is not cached, or no task has an example in the split.
  """

  def __init__(
    self, cache_dir, tasks: Sequence[str], split: str, converter: Converter
  ):
    self._converter = converter
    self._infos, self._sources = [], []
    for task in tasks:
      info = TaskInfo.load(cache_dir, task)
      if info.num_examples.get(split):
        path = Path(cache_dir) / task / f'{split}.array_record'
        self._infos.append(info)
        self._sources.append(_open_source(path, info.num_examples[split]))
    if not self._sources:
      raise UserError(
        f'no example in split {split!r} of {", ".join(tasks)} in {cache_dir}'
      )
    sizes = [len(source) for source in self._sources]
    self._starts = np.array([0, *itertools.accumulate(sizes)])
    self._kept = self._allocate()
    self._is_kept = np.zeros(len(self), bool)

  def __len__(self) -> int:
    return int(self._starts[-1])

  def values(self, name: str) -> list:
    """A feature of every cached example, as it was before any conversion."""
    found = []
    for source in self._sources:
      for start in range(0, len(source), _READ_ROWS):
        rows = range(start, min(start + _READ_ROWS, len(source)))
        records = source.__getitems__(list(rows))
        found += [decode_record(record)[name] for record in records]
    return found

  def batch(self, indices: np.ndarray) -> Batch:
    """Features of the examples at int64 [B] `indices`, stacked on axis 0."""
    if self._kept is None:
      return _stack(self._convert(indices))
    missing = np.unique(indices[~self._is_kept[indices]])
    if len(missing):
      for name, values in _stack(self._convert(missing)).items():
        self._kept[name][missing] = values
      self._is_kept[missing] = True
    return {name: values[indices] for name, values in self._kept.items()}

  def _convert(self, indices: np.ndarray) -> list[Batch]:
    tasks = np.searchsorted(self._starts, indices, side='right') - 1
    features: list[Batch] = [{}] * len(indices)
    for task in np.unique(tasks):
      rows = np.flatnonzero(tasks == task)
      records = self._sources[task].__getitems__(
        (indices[rows] - self._starts[task]).tolist()
      )
      kinds = self._infos[task].cf_kinds
      for row, record in zip(rows, records):
        features[row] = self._converter(decode_record(record), kinds)
    return features

  def _allocate(self) -> Batch | None:
    """Room for all converted examples (memory is only taken as it fills)."""
    firsts = self._convert(self._starts[:-1])
    shapes = [{n: np.shape(v) for n, v in f.items()} for f in firsts]
    for info, shape in zip(self._infos[1:], shapes[1:]):
      if shape != shapes[0]:
        raise UserError(
          f'tasks {self._infos[0].name} and {info.name} cannot be mixed: their '
          f'features are {shapes[0]} and {shape}'
        )
    first = {name: np.asarray(value) for name, value in firsts[0].items()}
    if sum(v.nbytes for v in first.values()) * len(self) > _KEEP_BYTES:
      return None
    return {
      name: np.zeros((len(self), *value.shape), value.dtype)
      for name, value in first.items()
    }


def load_batches(
  cache_dir,
  tasks: Sequence[str],
  split: str,
  converter: Converter,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  *,
  shuffle: bool = True,
  order: Sequence[int] | None = None,
  process_index: int | None = None,
  process_count: int | None = None,
) -> Iterator[Batch]:
  """Endless training batches from `start_step` on, a new shuffle an epoch.

  Batches are made in a thread of their own, a few ahead. With several
  processes each gets its consecutive part of every batch.

  Args:
    cache_dir, tasks, split, converter: see `Examples`.
    batch_size: B of all processes together; an epoch may end within a batch.
    seed: of the shuffles.
    start_step: the first batch is that of this step.
    shuffle: False for the order of the cache.
    order: the example at any position, such as `order.GroupedOrder`, in place
      of the shuffle.
    process_index, process_count: JAX's by default.
  Yields:
    Feature name -> array [B / process_count, ...].
  Raises:
    UserError: see `Examples`; or a batch size that is not positive, or that
      the processes do not divide.
  """
  index = jax.process_index() if process_index is None else process_index
  count = jax.process_count() if process_count is None else process_count
  if batch_size < 1 or batch_size % count:
    raise UserError(
      f'BATCH_SIZE must be a positive multiple of the {count} process(es), '
      f'got {batch_size}'
    )
  examples = Examples(cache_dir, tasks, split, converter)
  if order is None:
    order = grain.MapDataset.range(len(examples))
    if shuffle:
      order = order.shuffle(seed=seed)
    order = order.repeat()
  size = batch_size // count

  def batches():
    for step in itertools.count(start_step):
      first = step * batch_size + index * size
      rows = [order[position] for position in range(first, first + size)]
      yield examples.batch(np.array(rows, np.int64))

  return _ahead(batches())


def iterate_once(
  cache_dir,
  tasks: Sequence[str],
  split: str,
  converter: Converter,
  batch_size: int,
  max_examples: int | None = None,
) -> Iterator[Batch]:
  """Every example once, in order; the last batch is filled up.

  Args:
    cache_dir, tasks, split, converter: see `Examples`.
    batch_size: B.
    max_examples: read only so many.
  Yields:
    Batches with `example_mask` bool [B], False on the filling: copies of the
    last example whose `response_mask`, if there is one, is all False.
  """
  examples = Examples(cache_dir, tasks, split, converter)
  count = min(len(examples), max_examples or len(examples))
  for start in range(0, count, batch_size):
    rows = np.arange(start, start + batch_size)
    batch = examples.batch(np.minimum(rows, count - 1))
    mask = rows < count
    if 'response_mask' in batch:
      batch['response_mask'] = batch['response_mask'] & mask[:, None]
    yield {**batch, 'example_mask': mask}


def _open_source(path: Path, num_examples: int):
  try:
    source = grain.sources.ArrayRecordDataSource([str(path)])
    found = len(source)
  except Exception as error:
    # ArrayRecord reports a file cut short by several kinds of exception.
    raise UserError(
      f'{path} cannot be read ({str(error).splitlines()[0]}); remove '
      f'{path.parent} and run p4lm cache_tasks'
    ) from error
  if found != num_examples:
    raise UserError(
      f'{path} holds {found} examples, info.json says {num_examples}; remove '
      f'{path.parent} and run p4lm cache_tasks'
    )
  return source


def _stack(rows: Sequence[Batch]) -> Batch:
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
  """The same batches, made by a thread that runs a few ahead."""
  made: queue.Queue = queue.Queue(_AHEAD)
  ended = threading.Event()

  def put(item) -> bool:
    while not ended.is_set():
      try:
        made.put(item, timeout=0.1)
        return True
      except queue.Full:
        continue
    return False

  def make():
    try:
      for batch in batches:
        if not put((batch, None)):
          return
    except BaseException as error:
      # The training thread raises it where it asks for the batch.
      put((None, error))

  thread = threading.Thread(target=make, name='loader', daemon=True)
  thread.start()
  try:
    while True:
      batch, error = made.get()
      if error is not None:
        raise error
      yield batch
  finally:
    ended.set()
    thread.join()
