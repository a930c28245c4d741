"""The films of a MovieLens release: titles, genres, tags, plots."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from p4lm.data import csv_rows, tables
from p4lm.data.archives import FileSource
from p4lm.data.plots import Plot, PlotFile
from p4lm.data.rating_data import count
from p4lm.data.tables import ID_TYPE
from p4lm.errors import UserError

MAX_TAGS = 12
_TAGS = tables.SCHEMAS['items'].field('tags')
_NO_GENRES = ('', '(no genres listed)', 'unknown')
_YEAR = re.compile(r'\((\d{4})(?:\s*[-–]\s*\d{0,4})?\)\s*$')
# u.item has one 0/1 column a genre, in this order, after five others.
_GENRES_100K = (
  'unknown|Action|Adventure|Animation|Children|Comedy|Crime|Documentary|Drama|'
  'Fantasy|Film-Noir|Horror|Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western'
).split('|')


def read_items(
  source: FileSource, name: str, tags_name: str, dropped: dict[str, int]
) -> pa.Table:
  """Reads a film list and the tags that users gave.

  Args:
    source: directory or archive.
    name: movies.csv, movies.dat or u.item within it.
    tags_name: tags.csv or tags.dat, '' for none.
    dropped: {reason: rows}, added to.
  Returns:
    Table in the `items` schema, in the file's order, without plots.
  Raises:
    UserError: bad input, with file and line.
  """
  items = item_table(_item_rows(source, name), dropped)
  if not len(items):
    raise UserError(f'{source.describe(name)} lists no films')
  if not tags_name:
    return items
  ids = items['item_id'].to_pylist()
  tags = _read_tags(source, tags_name, ids, dropped)
  position = items.schema.get_field_index('tags')
  column = pa.array([tags.get(item_id, []) for item_id in ids], _TAGS.type)
  return items.set_column(position, _TAGS, column)


def item_table(
  rows: Iterable[tuple[str, str, Sequence[str]]], dropped: dict[str, int]
) -> pa.Table:
  """Films as a table: years out of titles, genres that say something.

  Args:
    rows: (id, title, genres) of each film; of several rows of one film the
      first counts.
    dropped: {reason: rows}, added to.
  Returns:
    Table in the `items` schema, in the order of `rows`, without tags, keywords
    and plots.
  """
  ids, titles, genres = [], [], []
  seen: set[str] = set()
  for item_id, title, item_genres in rows:
    if item_id in seen:
      count(dropped, 'repeated row of an item')
      continue
    seen.add(item_id)
    ids.append(item_id)
    titles.append(title)
    genres.append([g for g in item_genres if g.lower() not in _NO_GENRES])
  years = [_YEAR.search(title) for title in titles]
  return pa.table(
    {
      'item_id': ids,
      'title': titles,
      'year': [int(year[1]) if year else None for year in years],
      'genres': genres,
      'tags': [[]] * len(ids),
      'keywords': [[]] * len(ids),
      'plot': [''] * len(ids),
    },
    schema=tables.SCHEMAS['items'],
  )


def join_plots(
  items: pa.Table, plot_file: PlotFile, dropped: dict[str, int]
) -> pa.Table:
  """Adds overview and keywords by item id."""
  ids = items['item_id'].to_pylist()
  none = Plot('')
  found = [plot_file.plots.get(item_id, none) for item_id in ids]
  unknown = len(plot_file.plots.keys() - set(ids))
  count(dropped, 'plot of an unknown item', unknown)
  count(dropped, 'repeated plot of an item', plot_file.num_duplicates)
  if unknown == len(plot_file.plots):
    raise UserError(
      'no plot is of a film in this release: movieId of the plots file (e.g. '
      f'{next(iter(plot_file.plots))}) must be those of the film list '
      f'(e.g. {ids[0]})'
    )
  schema = tables.SCHEMAS['items']
  columns = {name: items[name] for name in schema.names}
  columns['keywords'] = [list(plot.keywords) for plot in found]
  columns['plot'] = [plot.overview for plot in found]
  return pa.table(columns, schema=schema)


def _item_rows(source, name) -> Iterator[tuple[str, str, list[str]]]:
  where = source.describe(name)
  if name.endswith('.csv'):
    columns = {
      'movieId': pa.string(),
      'title': pa.string(),
      'genres': pa.string(),
    }
    table = csv_rows.read_columns(source, name, columns)
    for number, row in enumerate(zip(*(c.to_pylist() for c in table.columns))):
      item_id, title, genres = (value.strip() for value in row)
      if not item_id:
        raise UserError(f'{where}, row {number + 2}: movieId is empty')
      yield item_id, title, [g.strip() for g in genres.split('|')]
    return
  is_100k = name.endswith('u.item')
  num_values = 5 + len(_GENRES_100K) if is_100k else 3
  # 100k and 1M are Latin-1, 10M is UTF-8; accents of the one are no characters
  # of the other.
  encoding = 'utf-8' if _is_utf8(source, name) else 'latin-1'
  lines = csv_rows.decoded_lines(source, name, encoding)
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    values = line.rstrip('\r\n').split('|' if is_100k else '::')
    if len(values) != num_values or not values[0]:
      raise UserError(
        f'{where}, line {number}: expected {num_values} values, got '
        f'{len(values)}: {line.strip()[:80]!r}'
      )
    if is_100k:
      flags = zip(_GENRES_100K, values[5:])
      yield values[0], values[1], [g for g, flag in flags if flag == '1']
    else:
      yield values[0], values[1], values[2].split('|')


def _is_utf8(source: FileSource, name: str) -> bool:
  with source.open(name) as file:
    try:
      file.read().decode('utf-8')
    except UnicodeDecodeError:
      return False
  return True


def _read_tags(source, name, item_ids, dropped) -> dict[str, list[str]]:
  """{item id: its tags, most frequent first}, at most MAX_TAGS."""
  if name.endswith('.csv'):
    columns = {'movieId': ID_TYPE, 'tag': pa.string()}
    table = csv_rows.read_columns(source, name, columns, may_be_empty=True)
  else:
    table = _read_dat_tags(source, name)
  known = pc.is_in(
    pc.cast(table['movieId'], pa.string()), pa.array(item_ids, pa.string())
  )
  count(
    dropped,
    'tag of an unknown item',
    len(table) - int(pc.sum(known).as_py() or 0),
  )
  table = table.filter(known)
  tags = pc.utf8_lower(pc.utf8_trim_whitespace(table['tag']))
  tags = pc.replace_substring_regex(tags, r'\s+', ' ')
  count(dropped, 'empty tag', int(np.sum(pc.equal(tags, '').to_numpy())))
  counted = (
    pa.table({'item': pc.cast(table['movieId'], pa.string()), 'tag': tags})
    .filter(pc.not_equal(tags, ''))
    .group_by(['item', 'tag'])
    .aggregate([([], 'count_all')])
    .sort_by(
      [('item', 'ascending'), ('count_all', 'descending'), ('tag', 'ascending')]
    )
  )
  found: dict[str, list[str]] = collections.defaultdict(list)
  for item_id, tag in zip(
    counted['item'].to_pylist(), counted['tag'].to_pylist()
  ):
    if len(found[item_id]) < MAX_TAGS:
      found[item_id].append(tag)
  return found


def _read_dat_tags(source, name) -> pa.Table:
  items, tags = [], []
  for number, line in enumerate(csv_rows.decoded_lines(source, name), 1):
    # A tag may hold '::' itself; ids and time cannot.
    values = line.rstrip('\r\n').split('::')
    if len(values) < 4:
      raise UserError(
        f'{source.describe(name)}, line {number}: expected '
        f'user::movie::tag::time, got {line.strip()[:80]!r}'
      )
    items.append(values[1])
    tags.append('::'.join(values[2:-1]))
  return pa.table({'movieId': pa.array(items, pa.string()), 'tag': tags})
