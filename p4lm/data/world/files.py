"""Writes a world's ratings and items in the MovieLens file formats."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from p4lm.data.world import lexicon
from p4lm.data.world.ratings import stream_ratings
from p4lm.data.world.simulate import TAGS, World

_STARS = pa.array([f'{half / 2:.1f}' for half in range(11)])
_TAGS_PER_ITEM = 3


def write_movielens_files(world: World, directory: str | os.PathLike) -> None:
  """Writes movies, ratings, tags and links (.csv) and plots.jsonl.

  Headers and number formats are those of MovieLens latest and 25M. Ratings go
  out chunk by chunk, by user and then by time: memory does not grow with
  their number. A line of plots.jsonl is an object of movieId (a number),
  title, overview and keywords (a list).

  Args:
    world: the catalogue is written, the archive is not.
    directory: created if missing; files in it are overwritten.
  """
  os.makedirs(directory, exist_ok=True)
  _write_ratings(world, os.path.join(directory, 'ratings.csv'))
  _write_movies(world, os.path.join(directory, 'movies.csv'))
  _write_tags(world, os.path.join(directory, 'tags.csv'))
  _write_links(world, os.path.join(directory, 'links.csv'))
  _write_plots(world, os.path.join(directory, 'plots.jsonl'))


def genres_of(values: np.ndarray) -> list[str]:
  """MovieLens genres of an item's values, sorted: ['Crime', 'Western']."""
  names = [lexicon.VALUE_NAMES[value] for value in values]
  genres = {names[0].split(':')[1]}
  genres.update(g for n, g in lexicon.SECOND_GENRES.items() if n in names)
  return sorted(genres)


def _write_ratings(world: World, path: str) -> None:
  schema = pa.schema(
    [
      ('userId', pa.int64()),
      ('movieId', pa.int64()),
      ('rating', pa.string()),
      ('timestamp', pa.int64()),
    ]
  )
  options = pa_csv.WriteOptions(include_header=False, quoting_style='none')
  with open(path, 'wb') as file:
    # Arrow would put the names between quotes.
    file.write((','.join(schema.names) + '\n').encode())
    with pa_csv.CSVWriter(file, schema, write_options=options) as writer:
      for chunk in stream_ratings(world):
        halves = np.round(2 * chunk.stars).astype(np.int8)
        columns = [
          pa.array(chunk.users + 1, pa.int64()),
          pa.array(chunk.items + 1, pa.int64()),
          _STARS.take(pa.array(halves)),
          pa.array(chunk.timestamps),
        ]
        writer.write_table(pa.table(columns, schema=schema))


def _write_movies(world: World, path: str) -> None:
  with open(path, 'w', encoding='utf-8', newline='') as file:
    file.write('movieId,title,genres\n')
    for item in range(world.num_items):
      genres = '|'.join(genres_of(world.attributes[item]))
      file.write(f'{item + 1},{world.titles[item]},{genres}\n')


def _write_tags(world: World, path: str) -> None:
  """Three true labels an item, each by another user, by user and time."""
  rng = np.random.default_rng([world.config.seed, TAGS])
  rows = []
  for item in range(world.num_items):
    values = rng.permutation(world.attributes[item])[:_TAGS_PER_ITEM]
    users = rng.choice(world.num_users, _TAGS_PER_ITEM, replace=False)
    times = rng.integers(1_400_000_000, 1_500_000_000, size=_TAGS_PER_ITEM)
    for user, time, value in zip(users, times, values):
      rows.append((int(user) + 1, int(time), item + 1, lexicon.label_of(value)))
  with open(path, 'w', encoding='utf-8', newline='') as file:
    file.write('userId,movieId,tag,timestamp\n')
    for user, time, movie, tag in sorted(rows):
      file.write(f'{user},{movie},{tag},{time}\n')


def _write_links(world: World, path: str) -> None:
  with open(path, 'w', encoding='utf-8', newline='') as file:
    file.write('movieId,imdbId,tmdbId\n')
    for item in range(world.num_items):
      file.write(f'{item + 1},{9_000_000 + item},{900_000 + item}\n')


def _write_plots(world: World, path: str) -> None:
  with open(path, 'w', encoding='utf-8') as file:
    for item in range(world.num_items):
      line = {
        'movieId': item + 1,
        'title': world.titles[item],
        'overview': world.plots[item],
        'keywords': [lexicon.label_of(v) for v in world.attributes[item]],
      }
      file.write(json.dumps(line) + '\n')
