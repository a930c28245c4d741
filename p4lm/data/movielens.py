"""MovieLens releases (100k, 1M, 10M, latest-small, 20M, 25M, 32M) as tables.

The rules, each of which is either an error or a count in the result:

- a rating outside [0.5, 5] or not finite is an error naming file and line;
- a rating of a film that the film list lacks is an error naming line and id,
  or, with `drop_unknown_items`, dropped and counted;
- of several ratings of a film by one user the latest is kept (the last of
  those with the same time), the others are counted;
- repeated film rows, plots and tags of unknown films are dropped and counted.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from p4lm.data import csv_rows, movielens_items, rating_data, tables
from p4lm.data.archives import FileSource, open_source
from p4lm.data.csv_rows import RowFormat
from p4lm.data.plots import read_plots
from p4lm.data.rating_data import RatingData, count
from p4lm.data.tables import ID_TYPE
from p4lm.errors import UserError

RATING_RANGE = (0.5, 5.0)

# {name: the release}; GroupLens' archive of one unpacks to another folder.
_RELEASES = {
  f'ml-{name}': f'ml-{name}'
  for name in (
    '100k',
    '1m',
    '10m',
    '20m',
    '25m',
    '32m',
    'latest',
    'latest-small',
  )
} | {'ml-10M100K': 'ml-10m'}

_RATING_COLUMNS = {
  'userId': ID_TYPE,
  'movieId': ID_TYPE,
  'rating': pa.float32(),
  'timestamp': pa.int64(),
}
_DOUBLE_COLON = ('userId', '', 'movieId', '', 'rating', '', 'timestamp')


@dataclasses.dataclass(frozen=True)
class Layout:
  """File names and row format of a family of releases."""

  ratings: str
  items: str
  tags: str | None
  row_format: RowFormat


LAYOUTS = (
  Layout('ratings.csv', 'movies.csv', 'tags.csv', RowFormat()),
  # Arrow splits at one character: '::' gives an empty column in between.
  Layout(
    'ratings.dat',
    'movies.dat',
    'tags.dat',
    RowFormat(':', header=_DOUBLE_COLON, quoted=False),
  ),
  Layout(
    'u.data',
    'u.item',
    None,
    RowFormat('\t', header=tuple(_RATING_COLUMNS), quoted=False),
  ),
)


@dataclasses.dataclass(frozen=True)
class Release:
  """One release found in a directory or an archive.

  Attributes:
    source: where its files are.
    folder: path within the source, '' for its top.
    layout: which family it is of.
    plots_file: a plots file lying beside it, if there is one.
  """

  source: FileSource
  folder: str
  layout: Layout
  plots_file: Path | None

  def path(self, name: str) -> str:
    return str(PurePosixPath(self.folder) / name)

  def has(self, name: str | None) -> bool:
    return name is not None and self.path(name) in self.source.names()

  def fingerprint(self, plots_file: str | os.PathLike | None) -> dict[str, str]:
    """{file: hash} of everything that reading this release depends on."""
    names = (self.layout.ratings, self.layout.items, self.layout.tags)
    found = {
      name: self.source.fingerprint(self.path(name))
      for name in names
      if self.has(name)
    }
    if plots_file is not None:
      found['plots'] = tables.hash_file(plots_file)
    return found


def find_release(data_dir: str | os.PathLike, name: str = '') -> Release:
  """Finds the ratings in a directory or zip, or one folder below its top.

  Args:
    data_dir: directory or zip archive.
    name: of the release (`ml-25m`): the folder to take when there are several;
      `NAME.zip` in the directory is found too. What lies in a folder that is
      not called by any release may be of any.
  Raises:
    UserError: nothing there, several releases and none is called `name`, or
      one that is called otherwise.
  """
  path = Path(data_dir)
  if name and not (path / name).is_dir() and (path / f'{name}.zip').is_file():
    path = path / f'{name}.zip'
  source = open_source(path)
  found = []
  for layout in LAYOUTS:
    for file in source.names():
      if PurePosixPath(file).name == layout.ratings:
        folder = str(PurePosixPath(file).parent)
        found.append((folder.removeprefix('.'), layout))
  named = [f for f in found if PurePosixPath(f[0]).name == name]
  if len(found) > 1 and len(named) == 1:
    found = named
  if not found:
    wanted = ', '.join(layout.ratings for layout in LAYOUTS)
    raise UserError(
      f'{source.describe()} holds no MovieLens ratings (looked for {wanted}, '
      f'found {", ".join(source.names()[:5]) or "no files"})'
    )
  if len(found) > 1:
    folders = ', '.join(folder or '.' for folder, _ in found)
    raise UserError(
      f'{source.describe()} holds several releases ({folders}); '
      'name one of them in DATA_DIR'
    )
  folder, layout = found[0]
  if name:
    _check_called(name, path, folder)
  return Release(source, folder, layout, _plots_beside(path, folder))


def _check_called(name: str, path: Path, folder: str) -> None:
  """Refuses a name that no release has, and one of another than is there."""
  there = [PurePosixPath(folder).name, path.stem, path.name]
  if name in there:
    return
  releases = [_RELEASES[other] for other in there if other in _RELEASES]
  if name in _RELEASES and all(_RELEASES[name] == r for r in releases):
    return
  near = difflib.get_close_matches(name, releases or _RELEASES, n=1)
  hint = f'; did you mean {near[0]!r}?' if near else '.'
  raise UserError(
    f'no release {name!r} in {path / folder}{hint} '
    "DATASET = 'movielens' takes what is there"
  )


def _plots_beside(path: Path, folder: str) -> Path | None:
  top = path if path.is_dir() else path.parent
  for directory in (top / folder, top, top.parent):
    for name in ('plots.jsonl', 'overviews.jsonl'):
      if (directory / name).is_file():
        return directory / name
  return None


def read_movielens(
  data_dir: str | os.PathLike | Release,
  plots_file: str | os.PathLike | None = None,
  *,
  drop_unknown_items: bool = False,
) -> RatingData:
  """Reads a release, checks every row, and joins the plots.

  Args:
    data_dir: directory, zip archive, or a release found in one.
    plots_file: JSON lines (see `read_plots`), or None for no plots.
    drop_unknown_items: count ratings of unlisted films instead of failing.
  Returns:
    The rows that were kept and how many were not, by reason. An item's plot is
    the overview, '' where there is none.
  Raises:
    UserError: bad input; the message names the file and, where there is one,
      the line.
  """
  release = data_dir if isinstance(data_dir, Release) else None
  release = release or find_release(data_dir)
  if not release.has(release.layout.items):
    raise UserError(
      f'{release.source.describe(release.path(release.layout.items))} is '
      'missing; a release needs its list of films beside the ratings'
    )
  dropped: dict[str, int] = {}
  items = movielens_items.read_items(
    release.source,
    release.path(release.layout.items),
    release.path(release.layout.tags)
    if release.has(release.layout.tags)
    else '',
    dropped,
  )
  if plots_file is not None:
    items = movielens_items.join_plots(items, read_plots(plots_file), dropped)
  ratings = _read_ratings(
    release, items['item_id'].to_pylist(), drop_unknown_items, dropped
  )
  return RatingData(ratings, items, dropped)


def _read_ratings(release, item_ids, drop_unknown_items, dropped) -> pa.Table:
  name = release.path(release.layout.ratings)
  row_format = release.layout.row_format
  table = csv_rows.read_columns(
    release.source, name, _RATING_COLUMNS, row_format
  )

  def fail(is_bad, what, mend):
    line, row = csv_rows.find_row(
      release.source, name, _RATING_COLUMNS, row_format, is_bad
    ) or (0, {})
    raise UserError(
      f'{release.source.describe(name)}, line {line}: {what(row)}; {mend}'
    )

  _check_ratings(table['rating'], fail)
  users = tables.encode_ids(table['userId'])
  items = tables.encode_ids(table['movieId'])
  if '' in users.ids:
    fail(
      lambda row: not row['userId'],
      lambda row: 'userId is empty',
      'every rating needs the id of a user',
    )
  listed = set(item_ids)
  known = np.array([id_ in listed for id_ in items.ids], bool)
  keep = known[items.codes]
  num_unknown = len(keep) - int(keep.sum())
  if num_unknown and not drop_unknown_items:
    fail(
      lambda row: row['movieId'] not in listed,
      lambda row: (
        f'movieId {row["movieId"]!r} is not in '
        f'{release.layout.items} ({num_unknown} such ratings)'
      ),
      'mend the film list or set drop_unknown_items = True',
    )
  count(dropped, 'rating of an unknown item', num_unknown)
  ratings = rating_data.table_of_latest(
    users,
    items,
    table['rating'].to_numpy(),
    table['timestamp'].to_numpy(),
    among=keep,
    dropped=dropped,
  )
  if not len(ratings):
    raise UserError(
      f'{release.source.describe(name)}: no rating is of a film in '
      f'{release.layout.items}'
    )
  return ratings


def _check_ratings(column: pa.ChunkedArray, fail) -> None:
  low, high = RATING_RANGE
  ratings = column.to_numpy()
  # A NaN fails both comparisons.
  if not ((ratings >= low) & (ratings <= high)).all():
    fail(
      lambda row: not low <= float(row['rating']) <= high,
      lambda row: f'rating {row.get("rating")} is outside [{low}, {high}]',
      'mend or remove the row',
    )
