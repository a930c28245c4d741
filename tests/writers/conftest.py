"""A small made-up release to write about."""

import random

import numpy as np
import pyarrow as pa
import pytest

from p4lm.data import splits, tables

GENRES = ('Action', 'Comedy', 'Crime', 'Drama', 'Horror', 'Sci-Fi', 'War')
THEMES = (
  'heist',
  'alien',
  'paris',
  'revenge',
  'wedding',
  'robot',
  'friendship',
)


@pytest.fixture(scope='session')
def items() -> pa.Table:
  """Sixty films; the last two have no plot, the third last no attributes."""
  rng = random.Random(0)
  rows = []
  for i in range(60):
    genres = rng.sample(GENRES, rng.randint(1, 3))
    themes = rng.sample(THEMES, rng.randint(0, 3))
    plot = (
      f'A quiet {rng.choice(["baker", "pilot", "nurse"])} named N{i} finds a '
      f'box in the old town of T{i}. They open it. In the end the people of '
      f'T{i} learn what the box was for.'
    )
    bare = i == 57
    rows.append(
      {
        'item_id': f'i{i}',
        'title': f'Film {i}, The ({1950 + i})',
        'year': 1950 + i,
        'genres': [] if bare else genres,
        'tags': [],
        'keywords': [] if bare else themes,
        'plot': '' if i >= 58 else plot,
      }
    )
  return pa.Table.from_pylist(rows, schema=tables.SCHEMAS['items'])


@pytest.fixture(scope='session')
def ratings(items) -> pa.Table:
  """Forty users with a favourite and a hated genre rate half of the films."""
  rng = np.random.default_rng(0)
  genres = items['genres'].to_pylist()
  rows = []
  for u in range(40):
    liked, hated = rng.permutation(len(GENRES))[:2]
    for i in rng.permutation(len(genres))[:30]:
      stars = 3 + 1.5 * (GENRES[liked] in genres[i])
      stars -= 1.5 * (GENRES[hated] in genres[i])
      stars = np.clip(np.round(2 * (stars + rng.normal(0, 0.5))) / 2, 0.5, 5)
      rows.append((f'u{u}', f'i{i}', stars, 0))
  columns = dict(zip(('user_id', 'item_id', 'rating', 'timestamp'), zip(*rows)))
  columns['rating'] = pa.array(columns['rating'], pa.float32())
  return splits.split_ratings(pa.table(columns), seed=0)


@pytest.fixture(scope='session')
def train(ratings) -> pa.Table:
  """The training ratings."""
  return ratings.filter(pa.array(splits.split_codes(ratings) == splits.TRAIN))
