"""Further files of MovieLens releases: links to other sites, the tag genome."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from p4lm.data import csv_rows, rating_data, tables
from p4lm.data.csv_rows import RowFormat
from p4lm.data.movielens import Release
from p4lm.data.rating_data import count
from p4lm.data.tables import ID_TYPE
from p4lm.errors import UserError

LINKS = 'links.csv'
GENOME_TAGS = 'genome-tags.csv'
GENOME_SCORES = 'genome-scores.csv'

_LINK_COLUMNS = {name: ID_TYPE for name in ('movieId', 'imdbId', 'tmdbId')}
_TAG_COLUMNS = {'tagId': ID_TYPE, 'tag': pa.string()}
_SCORE_COLUMNS = {
  'movieId': ID_TYPE,
  'tagId': ID_TYPE,
  'relevance': pa.float32(),
}


@dataclasses.dataclass(frozen=True)
class Genome:
  """How much each tag says about each film (Vig et al. 2012).

  Attributes:
    item_ids: the films, I, in the file's order.
    tags: their words, T, in the order of genome-tags.csv.
    relevance: float32 [I, T] in [0, 1], NaN where the file has no score.
  """

  item_ids: list[str]
  tags: list[str]
  relevance: np.ndarray


def read_links(
  release: Release, items: pa.Table, dropped: dict[str, int]
) -> pa.Table:
  """Reads links.csv: the films' ids at IMDb and TMDB.

  Args:
    release: found by `movielens.find_release`.
    items: its films.
    dropped: {reason: rows}, added to: films that are not listed, and further
      rows of a film (the first counts).
  Returns:
    Table with item_id, imdb_id and tmdb_id (strings of digits as in the file,
    null where it has none), in the file's order.
  Raises:
    UserError: no such file (100k, 1M and 10M have none), or bad input.
  """
  table = _read(release, LINKS, _LINK_COLUMNS)
  for column in _LINK_COLUMNS:
    _check_digits(release, column, table[column])
  encoded = tables.encode_ids(table['movieId'])
  keep = _listed(encoded, items)
  count(dropped, 'link of an unknown item', (~keep).sum())
  first = np.zeros(len(keep), bool)
  first[np.unique(encoded.codes, return_index=True)[1]] = True
  count(dropped, 'repeated link of an item', (keep & ~first).sum())
  kept = table.filter(pa.array(keep & first))
  ids = {name: pc.cast(kept[name], pa.string()) for name in _LINK_COLUMNS}
  missing = pa.scalar(None, pa.string())
  return pa.table(
    {
      'item_id': ids['movieId'],
      **{
        f'{site}_id': pc.if_else(pc.equal(column, ''), missing, column)
        for site, column in (('imdb', ids['imdbId']), ('tmdb', ids['tmdbId']))
      },
    }
  )


def read_genome(
  release: Release, items: pa.Table, dropped: dict[str, int]
) -> Genome:
  """Reads genome-tags.csv and genome-scores.csv.

  Args:
    release: found by `movielens.find_release`.
    items: its films.
    dropped: {reason: rows}, added to: scores of films that are not listed,
      and further scores of a film and a tag (the first counts).
  Raises:
    UserError: no such files (20M and 25M have them), or bad input: a tag
      that is not listed or listed twice, a relevance outside [0, 1].
  """
  tags = _read(release, GENOME_TAGS, _TAG_COLUMNS)
  tag_ids = pc.cast(tags['tagId'], pa.string()).to_pylist()
  if len(set(tag_ids)) < len(tag_ids):
    twice = next(id_ for id_ in tag_ids if tag_ids.count(id_) > 1)
    raise UserError(
      f'{release.source.describe(release.path(GENOME_TAGS))}: tagId {twice!r} '
      'is listed twice; remove one of its rows'
    )
  scores = _read(release, GENOME_SCORES, _SCORE_COLUMNS)
  relevance = scores['relevance'].to_numpy()
  if not ((relevance >= 0) & (relevance <= 1)).all():
    _fail(
      release,
      GENOME_SCORES,
      _SCORE_COLUMNS,
      lambda row: not 0 <= float(row['relevance']) <= 1,
      lambda row: f'relevance {row["relevance"]} is outside [0, 1]',
    )
  encoded_tags = tables.encode_ids(scores['tagId'])
  position = {id_: column for column, id_ in enumerate(tag_ids)}
  if not position.keys() >= set(encoded_tags.ids):
    _fail(
      release,
      GENOME_SCORES,
      _SCORE_COLUMNS,
      lambda row: row['tagId'] not in position,
      lambda row: f'tagId {row["tagId"]!r} is not in {GENOME_TAGS}',
    )
  films = tables.encode_ids(scores['movieId'])
  keep = _listed(films, items)
  count(dropped, 'genome score of an unknown item', (~keep).sum())
  films = tables.drop_unused(rating_data.select(films, keep))
  columns = np.array([position[id_] for id_ in encoded_tags.ids], np.int64)
  cells = films.codes.astype(np.int64) * len(tag_ids)
  cells += columns[encoded_tags.codes[keep]]
  cells, first = np.unique(cells, return_index=True)
  repeated = int(keep.sum()) - len(cells)
  count(dropped, 'repeated genome score of an item and a tag', repeated)
  matrix = np.full((len(films.ids), len(tag_ids)), np.nan, np.float32)
  matrix.reshape(-1)[cells] = relevance[keep][first]
  return Genome(films.ids, tags['tag'].to_pylist(), matrix)


def _read(
  release: Release, name: str, columns: Mapping[str, pa.DataType]
) -> pa.Table:
  if not release.has(name):
    raise UserError(
      f'{release.source.describe(release.path(name))} is missing: not every '
      'release has it'
    )
  return csv_rows.read_columns(release.source, release.path(name), columns)


def _listed(encoded: tables.EncodedIds, items: pa.Table) -> np.ndarray:
  listed = set(items['item_id'].to_pylist())
  return np.array([i in listed for i in encoded.ids], bool)[encoded.codes]


def _check_digits(release, column: str, values: pa.ChunkedArray) -> None:
  pattern = '^[0-9]+$' if column == 'movieId' else '^[0-9]*$'
  ids = pa.array(tables.encode_ids(values).ids, pa.string())
  good = set(ids.filter(pc.match_substring_regex(ids, pattern)).to_pylist())
  if len(good) < len(ids):
    _fail(
      release,
      LINKS,
      _LINK_COLUMNS,
      lambda row: row[column] not in good,
      lambda row: f'{column} must be a whole number, got {row[column]!r}',
    )


def _fail(release, name, columns, is_bad, what) -> None:
  path = release.path(name)
  line, row = csv_rows.find_row(
    release.source, path, columns, RowFormat(), is_bad
  ) or (0, {})
  raise UserError(
    f'{release.source.describe(path)}, line {line}: {what(row)}; mend or '
    'remove the row'
  )
