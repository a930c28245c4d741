"""Generated ratings of the shapes of MovieLens releases, in their layout."""

from __future__ import annotations

import pathlib
import sys

import numpy as np

# Users, items and ratings of MovieLens 1M, 10M and 25M.
SHAPES = {
  'small': (300, 200, 5_000),
  '1m': (6_040, 3_706, 1_000_209),
  '10m': (69_878, 10_677, 10_000_054),
  '25m': (162_541, 59_047, 25_000_095),
}
_HALF_STARS = np.arange(1, 11) / 2


def write(directory: pathlib.Path, size: str, seed: int = 0) -> None:
  """Writes ratings.csv and movies.csv.

  Users are log-normal in how much they rate and items follow a power law, as
  in the real releases; pairs are distinct; moments are uniform over ten years.
  """
  import pyarrow as pa
  from pyarrow import csv

  users, items, count = SHAPES[size]
  generator = np.random.default_rng(seed)
  pairs = distinct_pairs(generator, users, items, count)
  directory.mkdir(parents=True, exist_ok=True)
  table = pa.table(
    {
      'userId': pairs // items + 1,
      'movieId': pairs % items + 1,
      'rating': generator.choice(_HALF_STARS, count),
      'timestamp': 1_000_000_000 + generator.integers(0, 315_360_000, count),
    }
  )
  bare = csv.WriteOptions(quoting_style='none')
  csv.write_csv(table, directory / 'ratings.csv', bare)
  films = pa.table(
    {
      'movieId': np.arange(1, items + 1),
      'title': [
        f'Film {item} ({1950 + item % 70})' for item in range(1, items + 1)
      ],
      'genres': ['Drama|Comedy'] * items,
    }
  )
  csv.write_csv(films, directory / 'movies.csv', bare)


def distinct_pairs(generator, users: int, items: int, count: int) -> np.ndarray:
  """user * items + item of `count` distinct pairs, int64, in random order."""
  by_user = generator.lognormal(0.0, 1.0, users)
  by_item = (np.arange(items) + 30.0) ** -1.1
  pairs = np.zeros(0, np.int64)
  while len(pairs) < count:
    more = int(1.3 * (count - len(pairs))) + 1000
    drawn = generator.choice(users, more, p=by_user / by_user.sum()) * items
    drawn += generator.choice(items, more, p=by_item / by_item.sum())
    pairs = np.unique(np.concatenate([pairs, drawn]))
  return generator.permutation(pairs)[:count]


def read_matrix(directory: str, size: str):
  """The ratings as a scipy CSR matrix of ones, float32 [users, items]."""
  import scipy.sparse
  from pyarrow import csv

  users, items, _ = SHAPES[size]
  table = csv.read_csv(pathlib.Path(directory) / 'ratings.csv')
  rows = table['userId'].to_numpy().astype(np.int32) - 1
  columns = table['movieId'].to_numpy().astype(np.int32) - 1
  ones = np.ones(len(rows), np.float32)
  return scipy.sparse.csr_matrix((ones, (rows, columns)), (users, items))


if __name__ == '__main__':
  write(pathlib.Path(sys.argv[1]), sys.argv[2])
