"""Generated ratings as TensorFlow Datasets prepares MovieLens 25M."""

from __future__ import annotations

import numpy as np

# The classes that TFDS gives films; a film has the first and the last here.
GENRES = ('Drama', 'Comedy', 'Film-Noir')
_VERSION = '0.1.1'
_CHUNK = 1 << 17
# Shards of at least 64 MB, as many as a power of two allows.
_SHARDS = 64


def write(directory, pairs, items: int, values, days) -> None:
  """Writes `movielens/25m-ratings` and `25m-movies` as TFRecords of Examples.

  Ids are numbers of a fixed number of digits, so that all records of a table
  have one length and only some of their bytes differ.
  """
  import tensorflow_datasets as tfds

  genre = tfds.features.ClassLabel(names=list(GENRES))
  film = {
    'movie_id': tfds.features.Tensor(shape=(), dtype=np.str_),
    'movie_title': tfds.features.Tensor(shape=(), dtype=np.str_),
    'movie_genres': tfds.features.Sequence(genre),
  }
  rating = film | {
    'user_id': tfds.features.Tensor(shape=(), dtype=np.str_),
    'user_rating': tfds.features.Tensor(shape=(), dtype=np.float32),
    'timestamp': tfds.features.Tensor(shape=(), dtype=np.int64),
  }
  at = directory / 'movielens'
  ids = np.arange(items)
  _write_table(at / '25m-movies' / _VERSION, film, {'movie_id': ids}, 1)
  columns = {
    'movie_id': pairs % items,
    'user_id': pairs // items,
    'user_rating': values,
    'timestamp': 1_000_000_000 + 86400 * days,
  }
  _write_table(at / '25m-ratings' / _VERSION, rating, columns, _SHARDS)


def _write_table(directory, features, columns, num_shards: int) -> None:
  import tensorflow as tf
  import tensorflow_datasets as tfds

  directory.mkdir(parents=True)
  record, places = _template(features)
  bounds = np.linspace(0, len(columns['movie_id']), num_shards + 1).astype(int)
  for shard, (start, end) in enumerate(zip(bounds, bounds[1:])):
    name = f'movielens-train.tfrecord-{shard:05d}-of-{num_shards:05d}'
    with tf.io.TFRecordWriter(str(directory / name)) as writer:
      for first in range(start, end, _CHUNK):
        rows = slice(first, min(first + _CHUNK, end))
        lines = np.tile(record, (rows.stop - rows.start, 1))
        for name, column in columns.items():
          written = _BYTES[name](column[rows])
          at = places[name]
          lines[:, at : at + written.shape[1]] = written
        for line in lines:
          writer.write(line.tobytes())
  split = tfds.core.SplitInfo(
    name='train',
    shard_lengths=np.diff(bounds).tolist(),
    num_bytes=len(record) * int(bounds[-1]),
    filename_template=tfds.core.ShardedFileTemplate(
      data_dir=directory,
      dataset_name='movielens',
      split='train',
      filetype_suffix='tfrecord',
    ),
  )
  tfds.folder_dataset.write_metadata(
    data_dir=directory,
    features=tfds.features.FeaturesDict(features),
    split_infos=[split],
    version=_VERSION,
    check_data=False,
  )


def _template(features) -> tuple[np.ndarray, dict[str, int]]:
  """A record, uint8 [its length], and where each varying value begins."""
  import tensorflow as tf

  train, feature = tf.train, tf.train.Feature
  values = {
    'movie_title': feature(
      bytes_list=train.BytesList(value=[b'What It Is, and What Not (1999)'])
    ),
    'movie_genres': feature(
      int64_list=train.Int64List(value=[0, len(GENRES) - 1])
    ),
    'movie_id': feature(bytes_list=train.BytesList(value=[b'100000'])),
    'user_id': feature(bytes_list=train.BytesList(value=[b'200000'])),
    'user_rating': feature(float_list=train.FloatList(value=[3.0])),
    'timestamp': feature(int64_list=train.Int64List(value=[1_000_000_000])),
  }
  values = {name: values[name] for name in features}
  example = train.Example(features=train.Features(feature=values))
  record = example.SerializeToString(deterministic=True)
  places = {}
  for name in values.keys() & _BYTES.keys():
    entry = values[name].SerializeToString()
    width = _BYTES[name](np.zeros(1, np.int64)).shape[1]
    places[name] = record.index(entry) + len(entry) - width
  return np.frombuffer(record, np.uint8), places


def _digits(ids: np.ndarray) -> np.ndarray:
  """Six digits of 100000 + id, ASCII, uint8 [N, 6]."""
  powers = 10 ** np.arange(5, -1, -1)
  return (48 + (100_000 + ids[:, None]) // powers % 10).astype(np.uint8)


def _varint(values: np.ndarray) -> np.ndarray:
  """Five bytes of numbers in [2^28, 2^35), the lowest first, uint8 [N, 5]."""
  groups = values[:, None] >> np.arange(0, 35, 7) & 127
  return (groups | [128, 128, 128, 128, 0]).astype(np.uint8)


def _float(values: np.ndarray) -> np.ndarray:
  return values.astype('<f4').view(np.uint8).reshape(-1, 4)


_BYTES = {
  'movie_id': _digits,
  'user_id': _digits,
  'user_rating': _float,
  'timestamp': _varint,
}
