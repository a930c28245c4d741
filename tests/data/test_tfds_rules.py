"""The rules for rows that come from TFDS, fed through the real pipe.

A program that copies hand-made streams stands in for the one that parses the
records.
"""

import sys

import numpy as np
import pyarrow as pa
import pytest

from p4lm.data import rating_data, tfds_columns, tfds_movielens
from p4lm.data.tables import EncodedIds
from p4lm.errors import UserError

FILMS = [('2', 'Jumanji (1995)', ['Adventure']), ('10', 'Heat (1995)', [])]
COPY = """
import shutil, sys
shutil.copyfileobj(open(sys.argv[1], 'rb'), sys.stdout.buffer)
"""
FAIL = """
import sys
print('some log', file=sys.stderr)
print('the records are gone', file=sys.stderr)
sys.exit({status})
"""


def _stream(target, schema, batches):
  with pa.ipc.new_stream(target, schema) as writer:
    for rows in batches:
      columns = list(zip(*rows)) or [[] for _ in schema]
      arrays = [
        pa.array(column, pa.string()).dictionary_encode()
        if pa.types.is_dictionary(field.type)
        else pa.array(column, field.type)
        for column, field in zip(columns, schema)
      ]
      writer.write_batch(pa.record_batch(arrays, schema=schema))


@pytest.fixture
def read(tmp_path, monkeypatch):
  """Reads films and batches of ratings as if they came from TFDS."""

  def call(batches, films=FILMS, **options):
    path = tmp_path / 'streams'
    with path.open('wb') as target:
      _stream(target, tfds_columns.FILM_SCHEMA, [films])
      _stream(target, tfds_columns.RATING_SCHEMA, batches)
    command = (sys.executable, '-c', COPY, str(path))
    monkeypatch.setattr(tfds_movielens, '_PROGRAM', command)
    prepared = tfds_movielens.Prepared(
      '25m', tmp_path, tmp_path / '25m-movies', tmp_path / '25m-ratings'
    )
    return tfds_movielens.read_prepared(prepared, **options)

  return call


def _rows(table):
  return list(zip(*(column.to_pylist() for column in table.columns)))


@pytest.mark.parametrize('seed', range(4))
def test_rows_are_sorted_and_the_latest_kept_in_any_order(read, seed):
  """Against plain Python; ids in three dictionaries that differ."""
  rng = np.random.default_rng(seed)
  rows = [
    (str(rng.integers(1, 15)), str(rng.choice([2, 10, 30])),
     float(rng.integers(1, 11)) / 2, int(rng.integers(0, 3)))
    for _ in range(120)
  ]  # fmt: skip
  latest = {}
  for user, film, rating, time in sorted(rows, key=lambda row: row[:1:-1]):
    latest[int(user), int(film)] = (rating, time)
  expected = [
    (str(user), str(film), *value)
    for (user, film), value in sorted(latest.items())
  ]
  batches = [rows[:50], rows[50:51], rows[51:]]
  data = read(batches, [*FILMS, ('30', 'Up', [])])
  assert _rows(data.ratings) == expected
  older = len(rows) - len(expected)
  assert data.dropped == {'duplicate (user, item), an older rating': older}


def test_ids_need_not_be_numbers(read):
  films = [('b', 'B', []), ('10', 'Ten', []), ('9', 'Nine', [])]
  rows = [('x', film, 1.0, 0) for film in ('b', '10', '9')]
  data = read([rows], films)
  assert data.ratings['item_id'].to_pylist() == ['9', '10', 'b']
  assert data.items['item_id'].to_pylist() == ['9', '10', 'b']


def test_a_film_listed_twice_counts_once(read):
  films = [FILMS[1], FILMS[0], ('2', 'Another', [])]
  data = read([[('1', '2', 1.0, 0)]], films)
  assert data.items['title'].to_pylist() == ['Another', 'Heat (1995)']
  assert data.dropped == {'repeated row of an item': 1}


def test_ratings_of_unlisted_films_fail_or_are_counted(read):
  rows = [('1', '2', 4.0, 0), ('3', '77', 2.0, 5), ('3', '77', 2.0, 4)]
  with pytest.raises(
    UserError,
    match=r"25m-ratings: the rating 2 of film '77' by user '3' is of a film "
    r'that is not in .*25m-movies \(2 such ratings\).*drop_unknown_items',
  ):
    read([rows])
  data = read([rows], drop_unknown_items=True)
  assert _rows(data.ratings) == [('1', '2', 4.0, 0)]
  assert data.dropped == {'rating of an unknown item': 2}
  with pytest.raises(UserError, match='no rating is of a film in .*25m-movies'):
    read([rows[1:]], drop_unknown_items=True)


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    (('1', '2', 5.5, 0), "the rating 5.5 of film '2' by user '1' is outside"),
    (('1', '2', 0.0, 0), "the rating 0 of film '2' by user '1' is outside"),
    (('1', '2', float('nan'), 0), 'the rating nan of film'),
    (('', '2', 4.0, 0), "user_id is empty in the rating 4 of film '2'"),
    (('1', '', 4.0, 0), "movie_id is empty in the rating 4 of film ''"),
  ],
)
def test_bad_ratings_are_errors(read, row, message):
  with pytest.raises(UserError, match=message):
    read([[('1', '10', 4.0, 0), row]])


@pytest.mark.parametrize(
  ('films', 'message'),
  [
    ([], '25m-movies: it lists no films'),
    ([FILMS[0], ('', 'Heat', [])], '25m-movies: a film has an empty movie_id'),
  ],
)
def test_films_without_rows_or_ids_are_errors(read, films, message):
  with pytest.raises(UserError, match=message):
    read([[('1', '2', 4.0, 0)]], films)


def test_a_process_that_fails_is_told(tmp_path, monkeypatch):
  prepared = tfds_movielens.Prepared('25m', tmp_path, tmp_path, tmp_path)

  def fail(status):
    command = (sys.executable, '-c', FAIL.format(status=status))
    monkeypatch.setattr(tfds_movielens, '_PROGRAM', command)
    with pytest.raises(UserError) as error:
      tfds_movielens.read_prepared(prepared)
    return str(error.value)

  assert fail(tfds_columns.USER_ERROR) == 'the records are gone'
  assert fail(1).splitlines() == [
    f'reading {prepared.describe()} failed (exit status 1):',
    'some log',
    'the records are gone',
  ]
  assert 'exit status 0' in fail(0)


def test_the_latest_of_some_rows_is_a_table():
  """`rating_data.table_of_latest` counts only among the rows it may keep."""
  codes = np.array([0, 0, 1, 1], np.int32)
  dropped = {}
  table = rating_data.table_of_latest(
    EncodedIds(codes, ['a', 'b']),
    EncodedIds(codes, ['x', 'y']),
    np.array([1, 2, 3, 4], np.float32),
    np.array([9, 8, 7, 8]),
    among=np.array([True, True, False, True]),
    dropped=dropped,
  )
  assert _rows(table) == [('a', 'x', 1.0, 9), ('b', 'y', 4.0, 8)]
  assert dropped == {'duplicate (user, item), an older rating': 1}
