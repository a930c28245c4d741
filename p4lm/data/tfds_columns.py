"""Columns of a MovieLens that TensorFlow Datasets prepared, as Arrow streams.

The file is a program: `python -m p4lm.data.tfds_columns FILMS RATINGS` reads
two directories of prepared records and writes two Arrow streams, one after the
other, to its standard output. It is a process of its own because it starts
others, one a core, that parse a file each: they would begin by importing the
main module of the process that started them, and a user's script may be one.

TensorFlow, which takes longer to load than many data sets to read, is not used.
Of a rating only the four values that it is are parsed: its film's title and
genres, which TFDS repeats in each rating, are skipped.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from p4lm import child_process
from p4lm.data import ahead, tf_examples, tfrecords
from p4lm.errors import UserError

# The exit status of an error that the user can mend, told on stderr.
USER_ERROR = 3

ID_TYPE = pa.dictionary(pa.int32(), pa.string())
FILM_SCHEMA = pa.schema(
  [
    ('movie_id', pa.string()),
    ('movie_title', pa.string()),
    ('movie_genres', pa.list_(pa.string())),
  ]
)
RATING_SCHEMA = pa.schema(
  [
    ('user_id', ID_TYPE),
    ('movie_id', ID_TYPE),
    ('user_rating', pa.float32()),
    ('timestamp', pa.int64()),
  ]
)
# Records of an ArrayRecord file that are parsed together.
_ROWS = 1 << 14
_NUM_ROWS = b'num_rows'


def write_films(builder_dir: str, target: BinaryIO) -> None:
  """Writes id, title and genres of every film, in TFDS' order.

  Args:
    builder_dir: a version of `movielens/NAME-movies`.
    target: gets an Arrow stream in FILM_SCHEMA.
  Raises:
    UserError: the directory is damaged or of another data set.
  """
  info = _info(builder_dir, FILM_SCHEMA)
  names = info.features['movie_genres'].feature.names
  columns = functools.partial(_film_columns, genres=names)
  _write(builder_dir, info, columns, FILM_SCHEMA, target)


def write_ratings(builder_dir: str, target: BinaryIO) -> None:
  """Writes user, film, rating and time of every rating, in TFDS' order.

  Args:
    builder_dir: a version of `movielens/NAME-ratings`.
    target: gets an Arrow stream in RATING_SCHEMA.
  Raises:
    UserError: the directory is damaged or of another data set.
  """
  info = _info(builder_dir, RATING_SCHEMA)
  _write(builder_dir, info, _rating_columns, RATING_SCHEMA, target)


def num_rows(schema: pa.Schema) -> int | None:
  """How many rows TFDS counted, by the schema of a stream."""
  found = (schema.metadata or {}).get(_NUM_ROWS)
  return None if found is None else int(found)


def _film_columns(blocks: Iterable[tfrecords.Block], genres: list[str]):
  ids, titles, lists = [], [], []
  for block in blocks:
    found = tf_examples.parse(block, FILM_SCHEMA.names)
    ids.append(found['movie_id'].texts())
    titles.append(found['movie_title'].texts())
    lists.append(_named(found['movie_genres'].integer_lists(), genres))
  return [ids, titles, lists]


def _rating_columns(blocks: Iterable[tfrecords.Block]):
  users, films, ratings, timestamps = [], [], [], []
  for block in blocks:
    found = tf_examples.parse(block, RATING_SCHEMA.names)
    users.append(found['user_id'].ids())
    films.append(found['movie_id'].ids())
    ratings.append(found['user_rating'].floats())
    timestamps.append(found['timestamp'].integers())
  ids = tf_examples.join_ids
  return [[ids(users)], [ids(films)], ratings, timestamps]


def _named(codes: pa.ListArray, names: list[str]) -> pa.ListArray:
  """Lists of names for those of their places among all names."""
  values = codes.values.to_numpy()
  if len(values) and not 0 <= values.min() <= values.max() < len(names):
    raise tf_examples.NotAnExample(
      f'a genre has a number outside of 0 to {len(names) - 1}'
    )
  named = pa.array(names, pa.string()).take(codes.values)
  return pa.ListArray.from_arrays(codes.offsets, named)


def _info(builder_dir: str, schema: pa.Schema):
  """What TFDS knows of the prepared records; reads its files alone."""
  import tensorflow_datasets as tfds

  try:
    info = tfds.builder_from_directory(builder_dir).info
  except Exception as error:  # Whatever a broken JSON file makes it raise.
    raise _damaged(builder_dir, error) from error
  missing = [name for name in schema.names if name not in info.features]
  if missing or 'train' not in info.splits:
    what = f'feature {missing[0]!r}' if missing else "split 'train'"
    raise UserError(
      f'{builder_dir} has no {what}: it is not the table of MovieLens that '
      'its name says; remove it and prepare it again'
    )
  return info


def _write(
  builder_dir: str,
  info,
  columns: Callable,
  schema: pa.Schema,
  target: BinaryIO,
) -> None:
  """Parses files side by side, and writes each as soon as it is there."""
  num_rows, wanted = 0, info.splits['train'].num_examples
  paths = [os.fspath(path) for path in info.splits['train'].filepaths]
  parse = functools.partial(_parse, _reader(info), columns, schema)
  total = schema.with_metadata({_NUM_ROWS: str(wanted)})
  with pa.ipc.new_stream(target, total) as writer:
    try:
      for batch in _side_by_side(parse, paths):
        num_rows += len(batch)
        writer.write_batch(batch)
    except (
      OSError,
      RuntimeError,
      UserError,
      tf_examples.NotAnExample,
    ) as error:
      raise _damaged(builder_dir, error) from error
    if num_rows != wanted:
      problem = f'{num_rows} records where TFDS counted {wanted}'
      raise _damaged(builder_dir, problem)


def _parse(
  read: Callable, columns: Callable, schema: pa.Schema, path: str
) -> pa.RecordBatch:
  """All records of a file; each column is made of one array or several."""
  arrays = [
    pa.concat_arrays([pa.array(piece, field.type) for piece in pieces])
    for field, pieces in zip(schema, columns(read(path)))
  ]
  return pa.record_batch(arrays, schema=schema)


def _side_by_side(
  parse: Callable, paths: list[str]
) -> Iterator[pa.RecordBatch]:
  """A process a core, if there are files enough to be worth their start."""
  num_processes = min(len(os.sched_getaffinity(0)), len(paths))
  if num_processes < 2:
    yield from map(parse, paths)
    return
  with ProcessPoolExecutor(
    num_processes,
    mp_context=multiprocessing.get_context('spawn'),
    initializer=child_process.end_with,
    initargs=(os.getpid(),),
  ) as pool:
    yield from ahead.in_order(paths, parse, pool)


def _reader(info) -> Callable[[str], Iterator[tfrecords.Block]]:
  # Before it wrote down the format, TFDS knew one alone.
  file_format = info.file_format.value if info.file_format else 'tfrecord'
  readers = {'tfrecord': tfrecords.read, 'array_record': _array_records}
  if file_format not in readers:
    raise UserError(
      f'{info.data_dir} is prepared in the file format {file_format!r}; '
      "prepare it in TFDS' default 'tfrecord', or in 'array_record'"
    )
  return readers[file_format]


def _array_records(path: str) -> Iterator[tfrecords.Block]:
  from array_record.python import array_record_module

  reader = array_record_module.ArrayRecordReader(path)
  try:
    for start in range(0, reader.num_records(), _ROWS):
      end = min(start + _ROWS, reader.num_records())
      records = reader.read(start, end)
      lengths = np.array([len(record) for record in records], np.int64)
      places = tfrecords.Places(np.cumsum(lengths) - lengths, lengths)
      yield tfrecords.Block(b''.join(records), places)
  finally:
    reader.close()


def _damaged(builder_dir: str, problem: object) -> UserError:
  # Of some errors the first line tells; a traceback may follow.
  lines = str(problem).splitlines() or [type(problem).__name__]
  return UserError(
    f'{builder_dir} cannot be read ({lines[0]}); remove it and prepare it again'
  )


def _main(films_dir: str, ratings_dir: str) -> None:
  """Runs in the process of its own."""
  # What libraries print goes to stderr: stdout holds the streams alone.
  with os.fdopen(os.dup(1), 'wb') as target:
    os.dup2(2, 1)
    try:
      import tensorflow_datasets  # noqa: F401
    except ImportError as error:
      raise UserError(
        f'reading TensorFlow Datasets needs tensorflow-datasets ({error}); '
        'install p4lm with its requirements'
      ) from error
    write_films(films_dir, target)
    write_ratings(ratings_dir, target)


if __name__ == '__main__':
  child_process.end_with_parent()
  try:
    _main(*sys.argv[1:])
  except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(USER_ERROR)
