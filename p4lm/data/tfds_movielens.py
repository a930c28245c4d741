"""MovieLens as TensorFlow Datasets prepared it: 'tfds:movielens/25m'.

TFDS keeps two tables of a release, `movielens/25m-ratings` and `-movies`, and
of each rating and film what GroupLens' ratings and film list say. It has no
tags, links, tag genome and plots; the demography of 100k and 1m is not read.
Its genre of 1m is Children where GroupLens wrote Children's.

Nothing is downloaded: the user prepares the tables with TFDS itself. A process
of its own reads them (`tfds_columns`) and hands the columns on through a pipe.

TFDS shuffles its records, so rows are put in the order of users and films,
numbers by their value; that is the order of GroupLens' own files from 20m on.
The rules for bad rows are those of `movielens`, but for one: of a user's
ratings of one film at one time the highest counts, since nobody knows which
came last.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from p4lm import child_process
from p4lm.data import (
  movielens_items,
  progress,
  rating_data,
  tables,
  tfds_columns,
)
from p4lm.data.movielens import RATING_RANGE
from p4lm.data.plots import read_plots
from p4lm.data.rating_data import GrowingIds, RatingData, count
from p4lm.data.tables import EncodedIds
from p4lm.errors import UserError

PREFIX = 'tfds:'
# The releases that TFDS has; it has neither 10m, 32m nor the whole latest.
RELEASES = ('100k', '1m', '20m', '25m', 'latest-small')

_PROGRAM = (sys.executable, '-m', 'p4lm.data.tfds_columns')
_VERSION = re.compile(r'(\d+)\.(\d+)\.(\d+)')
_TAIL_LINES = 12


@dataclasses.dataclass(frozen=True)
class Prepared:
  """The two tables of a release in a data directory of TFDS.

  Attributes:
    release: one of RELEASES.
    data_dir: TFDS' data directory.
    films, ratings: the directories of their newest versions.
  """

  release: str
  data_dir: Path
  films: Path
  ratings: Path

  def describe(self) -> str:
    return f"TFDS' movielens/{self.release} in {self.data_dir}"

  def fingerprint(self, plots_file: str | os.PathLike | None) -> dict[str, str]:
    """{table and version: hash of its files}, and the plots'."""
    found = {
      f'{path.parent.name}/{path.name}': _hash_files(path)
      for path in (self.films, self.ratings)
    }
    if plots_file is not None:
      found['plots'] = tables.hash_file(plots_file)
    return found


def release_of(dataset: str) -> str:
  """The release that a DATASET of the form 'tfds:movielens/NAME' names.

  Raises:
    UserError: TFDS has no such one.
  """
  name = dataset.removeprefix(f'{PREFIX}movielens/')
  if name not in RELEASES:
    near = difflib.get_close_matches(name, RELEASES, n=1)
    hint = f"; did you mean '{PREFIX}movielens/{near[0]}'?" if near else '.'
    raise UserError(
      f'no dataset {dataset!r}{hint} Of TensorFlow Datasets, DATASET can be '
      f"'{PREFIX}movielens/NAME' with NAME one of {', '.join(RELEASES)} (both "
      'of its tables are read: leave -ratings and -movies off)'
    )
  return name


def find_prepared(dataset: str, data_dir: str | os.PathLike) -> Prepared:
  """Finds both tables of a release, in their newest versions.

  Args:
    dataset: 'tfds:movielens/NAME'.
    data_dir: TFDS' data directory (its default is ~/tensorflow_datasets).
  Raises:
    UserError: no such data set or directory, or a table is not prepared there;
      then the message has the line that prepares it.
  """
  release, path = release_of(dataset), Path(data_dir)
  if not path.is_dir():
    raise UserError(
      f'DATA_DIR {path} does not exist; for {dataset!r} it is the data '
      'directory of TensorFlow Datasets, by its default ~/tensorflow_datasets'
    )
  found = {
    table: _newest_version(path / 'movielens' / f'{release}-{table}')
    for table in ('movies', 'ratings')
  }
  missing = [table for table, version in found.items() if version is None]
  if missing:
    names = ' and '.join(f'movielens/{release}-{table}' for table in missing)
    raise UserError(
      f'DATA_DIR {path} lacks {names}, and p4lm downloads nothing; prepare '
      f'what {dataset!r} needs with this line of Python:\n'
      f'{prepare_line(release, path)}'
    )
  return Prepared(release, path, found['movies'], found['ratings'])


def prepare_line(release: str, data_dir: Path) -> str:
  """The Python that downloads and prepares both tables of a release."""
  return (
    'import tensorflow_datasets as tfds; '
    f"[tfds.builder('movielens/{release}-' + table, data_dir={str(data_dir)!r})"
    ".download_and_prepare() for table in ('movies', 'ratings')]"
  )


def read_prepared(
  prepared: Prepared,
  plots_file: str | os.PathLike | None = None,
  *,
  drop_unknown_items: bool = False,
) -> RatingData:
  """Reads both tables, checks every row, and joins the plots.

  Args:
    prepared: found by `find_prepared`.
    plots_file: JSON lines with TFDS' movie_id, which is GroupLens' movieId, as
      `movieId` (see `read_plots`), or None for no plots.
    drop_unknown_items: count ratings of unlisted films instead of failing.
  Returns:
    The rows that were kept, by user and film, and how many were not.
  Raises:
    UserError: bad input, or damaged files.
  """
  dropped: dict[str, int] = {}
  films, ratings = _read_streams(prepared)
  rows = sorted(
    (
      (id_.strip(), title.strip(), genres)
      for id_, title, genres in zip(*(c.to_pylist() for c in films.columns))
    ),
    key=lambda row: (_id_order(row[0]), row[1:]),
  )
  if not rows or not all(id_ for id_, *_ in rows):
    what = 'a film has an empty movie_id' if rows else 'it lists no films'
    raise UserError(f'{prepared.films}: {what}; prepare it again')
  items = movielens_items.item_table(rows, dropped)
  if plots_file is not None:
    items = movielens_items.join_plots(items, read_plots(plots_file), dropped)
  table = _checked(
    ratings, items['item_id'].to_pylist(), prepared, drop_unknown_items, dropped
  )
  return RatingData(table, items, dropped)


@dataclasses.dataclass(frozen=True)
class _Ratings:
  """Columns [M], sorted by user, film, time and rating."""

  users: EncodedIds
  items: EncodedIds
  ratings: np.ndarray
  timestamps: np.ndarray


def _newest_version(directory: Path) -> Path | None:
  """`directory/1.2.3` with the highest number that TFDS finished, or None."""
  found = [
    (tuple(int(n) for n in version.groups()), path)
    for path in directory.glob('*/dataset_info.json')
    if (version := _VERSION.fullmatch(path.parent.name))
  ]
  return max(found)[1].parent if found else None


def _hash_files(directory: Path) -> str:
  sizes = {
    path: path.stat().st_size for path in directory.iterdir() if path.is_file()
  }
  hashes = {}
  what = f'hashing {directory.parent.name}'
  with progress.bar(what, sum(sizes.values()), 'B') as shown:
    for path, size in sizes.items():
      hashes[path.name] = tables.hash_file(path)
      shown.update(size)
  text = json.dumps(hashes, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _read_streams(prepared: Prepared) -> tuple[pa.Table, _Ratings]:
  """Films and sorted ratings out of the process that parses them."""
  with tempfile.TemporaryFile('w+') as errors:
    process = subprocess.Popen(
      [*_PROGRAM, str(prepared.films), str(prepared.ratings)],
      env=child_process.reading_environment(),
      stdout=subprocess.PIPE,
      stderr=errors,
    )
    with process:
      try:
        films = pa.ipc.open_stream(process.stdout).read_all()
        ratings = _sorted(*_collected(pa.ipc.open_stream(process.stdout)))
      except (pa.ArrowInvalid, OSError):
        films = ratings = None  # It failed; why is on its stderr.
      except BaseException:
        process.kill()
        raise
    errors.seek(0)
    lines = errors.read().splitlines()
  if process.returncode == tfds_columns.USER_ERROR:
    raise UserError(lines[-1])
  if process.returncode != 0 or ratings is None:
    raise UserError(
      f'reading {prepared.describe()} failed (exit status '
      f'{process.returncode}):\n' + '\n'.join(lines[-_TAIL_LINES:])
    )
  return films, ratings


def _collected(stream: pa.RecordBatchReader) -> tuple:
  """The four columns of all batches: 20 bytes a rating, ids once."""
  users, items, ratings, timestamps = GrowingIds(), GrowingIds(), [], []
  total = tfds_columns.num_rows(stream.schema)
  with progress.bar('reading', total, ' ratings') as shown:
    for batch in stream:
      users.add(pa.chunked_array([batch['user_id']]))
      items.add(pa.chunked_array([batch['movie_id']]))
      ratings.append(batch['user_rating'].to_numpy())
      timestamps.append(batch['timestamp'].to_numpy())
      shown.update(len(batch))
  return (
    users.encoded(),
    items.encoded(),
    np.concatenate([np.zeros(0, np.float32), *ratings]),
    np.concatenate([np.zeros(0, np.int64), *timestamps]),
  )


def _sorted(users, items, ratings, timestamps) -> _Ratings:
  users, items = _with_sorted_ids(users), _with_sorted_ids(items)
  keys = users.codes.astype(np.int64) * len(items.ids) + items.codes
  order = rating_data.stable_order(keys)
  ordered = keys[order]
  if (ordered[1:] == ordered[:-1]).any():
    order = np.lexsort((ratings, timestamps, keys))
  return _Ratings(
    rating_data.select(users, order),
    rating_data.select(items, order),
    ratings[order],
    timestamps[order],
  )


def _with_sorted_ids(encoded: EncodedIds) -> EncodedIds:
  order = sorted(
    range(len(encoded.ids)), key=lambda code: _id_order(encoded.ids[code])
  )
  rank = np.empty(len(order), np.int32)
  rank[order] = np.arange(len(order), dtype=np.int32)
  return EncodedIds(rank[encoded.codes], [encoded.ids[code] for code in order])


def _id_order(id_: str) -> tuple[bool, int, str]:
  """Numbers by value, then other ids by their letters."""
  is_number = id_.isascii() and id_.isdigit()
  return not is_number, int(id_) if is_number else 0, id_


def _checked(
  table: _Ratings, item_ids, prepared: Prepared, drop_unknown_items, dropped
) -> pa.Table:
  """The latest ratings of listed films, by the rules of `movielens`."""
  users, items = table.users, table.items
  where = f'{prepared.ratings}'

  def pair(bad: np.ndarray) -> str:
    row = int(np.flatnonzero(bad)[0])
    user, item = users.ids[users.codes[row]], items.ids[items.codes[row]]
    return (
      f'the rating {table.ratings[row]:g} of film {item!r} by user {user!r}'
    )

  low, high = RATING_RANGE
  is_bad = ~((table.ratings >= low) & (table.ratings <= high))
  if is_bad.any():
    raise UserError(
      f'{where}: {pair(is_bad)} is outside [{low}, {high}]; prepare it again'
    )
  for ids, name in ((users, 'user_id'), (items, 'movie_id')):
    if '' in ids.ids:
      raise UserError(
        f'{where}: {name} is empty in {pair(ids.codes == ids.ids.index(""))}; '
        'prepare it again'
      )
  listed = set(item_ids)
  known = np.array([id_ in listed for id_ in items.ids], bool)[items.codes]
  num_unknown = len(known) - int(known.sum())
  if num_unknown and not drop_unknown_items:
    raise UserError(
      f'{where}: {pair(~known)} is of a film that is not in {prepared.films} '
      f'({num_unknown} such ratings); prepare both from one release or set '
      'drop_unknown_items = True'
    )
  count(dropped, 'rating of an unknown item', num_unknown)
  kept = rating_data.table_of_latest(
    users, items, table.ratings, table.timestamps, among=known, dropped=dropped
  )
  if not len(kept):
    raise UserError(f'{where}: no rating is of a film in {prepared.films}')
  return kept
