"""Columns of a MovieLens that TensorFlow Datasets prepared, as Arrow streams.

The file is a program: `python -m p4lm.data.tfds_columns FILMS RATINGS` reads
two directories of prepared records and writes two Arrow streams, one after the
other, to its standard output. It is a process of its own because TensorFlow
needs one: no process that trains, or starts others that do, may load it.

TFDS reads its records one by one. Here thousands are cut (`tfrecords`) and
parsed together by threads ahead, and of a rating only the four values that it
is: its film's title and genres, which TFDS repeats in each rating, are skipped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pyarrow as pa

from p4lm import child_process
from p4lm.data import ahead, tfrecords
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
# Records of an ArrayRecord file that are parsed together: 12 MB of them.
_ROWS = 1 << 16


def write_films(builder_dir: str, target: BinaryIO) -> None:
  """Writes id, title and genres of every film, in TFDS' order.

  Args:
    builder_dir: a version of `movielens/NAME-movies`.
    target: gets an Arrow stream in FILM_SCHEMA.
  Raises:
    UserError: the directory is damaged or of another data set.
  """
  import tensorflow as tf

  info = _info(builder_dir, FILM_SCHEMA)
  names = pa.array(info.features['movie_genres'].feature.names, pa.string())
  features = {
    'movie_id': tf.io.FixedLenFeature([], tf.string),
    'movie_title': tf.io.FixedLenFeature([], tf.string),
    'movie_genres': tf.io.RaggedFeature(tf.int64),
  }

  def columns(batch: dict) -> list[pa.Array]:
    genres = batch['movie_genres']
    return [
      _strings(batch['movie_id']),
      _strings(batch['movie_title']),
      pa.ListArray.from_arrays(
        pa.array(genres.row_splits.numpy(), pa.int32()),
        names.take(pa.array(genres.flat_values.numpy())),
      ),
    ]

  _write(builder_dir, info, features, columns, FILM_SCHEMA, target)


def write_ratings(builder_dir: str, target: BinaryIO) -> None:
  """Writes user, film, rating and time of every rating, in TFDS' order.

  Args:
    builder_dir: a version of `movielens/NAME-ratings`.
    target: gets an Arrow stream in RATING_SCHEMA.
  Raises:
    UserError: the directory is damaged or of another data set.
  """
  import tensorflow as tf

  info = _info(builder_dir, RATING_SCHEMA)
  features = {
    'user_id': tf.io.FixedLenFeature([], tf.string),
    'movie_id': tf.io.FixedLenFeature([], tf.string),
    'user_rating': tf.io.FixedLenFeature([], tf.float32),
    'timestamp': tf.io.FixedLenFeature([], tf.int64),
  }

  def columns(batch: dict) -> list[pa.Array]:
    return [
      _ids(batch['user_id']),
      _ids(batch['movie_id']),
      pa.array(batch['user_rating'].numpy(), pa.float32()),
      pa.array(batch['timestamp'].numpy(), pa.int64()),
    ]

  _write(builder_dir, info, features, columns, RATING_SCHEMA, target)


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
  features: dict,
  columns: Callable[[dict], list[pa.Array]],
  schema: pa.Schema,
  target: BinaryIO,
) -> None:
  """Parses the records in batches and writes each as soon as it is there."""
  import tensorflow as tf

  num_rows, wanted = 0, info.splits['train'].num_examples
  blocks = _blocks(info)

  def parse(block) -> pa.RecordBatch:
    batch = tf.io.parse_example(_serialized(block), features)
    return pa.record_batch(columns(batch), schema=schema)

  with pa.ipc.new_stream(target, schema) as writer:
    try:
      for batch in ahead.in_order(blocks, parse):
        num_rows += len(batch)
        writer.write_batch(batch)
    except (
      tf.errors.OpError,
      pa.ArrowInvalid,
      OSError,
      RuntimeError,
      UserError,
    ) as error:
      raise _damaged(builder_dir, error) from error
    if num_rows != wanted:
      problem = f'{num_rows} records where TFDS counted {wanted}'
      raise _damaged(builder_dir, problem)


def _blocks(info) -> Iterator[tfrecords.Block | list[bytes]]:
  """The serialized tf.train.Examples of all shards, some at a time."""
  paths = [os.fspath(path) for path in info.splits['train'].filepaths]
  # Before it wrote down the format, TFDS knew one alone.
  file_format = info.file_format.value if info.file_format else 'tfrecord'
  readers = {'tfrecord': tfrecords.read, 'array_record': _array_records}
  if file_format not in readers:
    raise UserError(
      f'{info.data_dir} is prepared in the file format {file_format!r}; '
      "prepare it in TFDS' default 'tfrecord', or in 'array_record'"
    )
  return readers[file_format](paths)


def _serialized(block: tfrecords.Block | list[bytes]):
  """A string tensor [R]."""
  import tensorflow as tf

  if isinstance(block, list):
    return tf.constant(block)
  places = block.places
  return tf.strings.substr(block.data, places.starts, places.lengths)


def _array_records(paths: list[str]) -> Iterator[list[bytes]]:
  from array_record.python import array_record_module

  for path in paths:
    reader = array_record_module.ArrayRecordReader(path)
    try:
      for start in range(0, reader.num_records(), _ROWS):
        end = min(start + _ROWS, reader.num_records())
        yield reader.read(start, end)
    finally:
      reader.close()


def _ids(tensor) -> pa.DictionaryArray:
  """Texts of which many are equal."""
  import tensorflow as tf

  ids, codes = tf.unique(tensor)
  return pa.DictionaryArray.from_arrays(pa.array(codes.numpy()), _strings(ids))


def _strings(tensor) -> pa.Array:
  return pa.array(tensor.numpy(), pa.binary()).cast(pa.string())


def _damaged(builder_dir, problem: object) -> UserError:
  # Of TensorFlow's errors the first line tells; a traceback may follow.
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
      import tensorflow  # noqa: F401
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
