"""MovieLens files in every layout, whole and broken."""

import collections
import csv
import io
import json
import os
import zipfile

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.data import movielens
from p4lm.data.archives import DirectorySource, open_source
from p4lm.data.csv_rows import RowFormat, find_row, read_columns
from p4lm.errors import UserError

MOVIES = (
  'movieId,title,genres\n1,Heat (1995),Action|Crime\n2,"Big, The",Comedy\n'
)
RATINGS = 'userId,movieId,rating,timestamp\n7,1,4.0,100\n8,2,0.5,90\n'
TAGS = 'userId,movieId,tag,timestamp\n7,1,Heist ,1\n8,1,heist,2\n7,1,LA,3\n'
PLOTS = (
  '{"movieId": 1, "overview": "A  thief\\nplans.", '
  '"keywords": ["Heist", "LA"]}\n'
  '\n{"movieId": "2", "overview": null}\n'
)


def _write(directory, **files):
  """Writes files; `_` stands for a dot in the names."""
  directory.mkdir(exist_ok=True)
  for name, text in files.items():
    data = text if isinstance(text, bytes) else text.encode()
    (directory / name.replace('_', '.')).write_bytes(data)
  return directory


def _release(directory, **files):
  whole = {'movies_csv': MOVIES, 'ratings_csv': RATINGS, 'tags_csv': TAGS}
  return _write(directory, **(whole | files))


def _rows(table):
  names = ('user_id', 'item_id', 'rating', 'timestamp')
  return list(zip(*(table[name].to_pylist() for name in names)))


EXPECTED = [('7', '1', 4.0, 100), ('8', '2', 0.5, 90)]


def test_a_release_is_read(tmp_path):
  release = _release(tmp_path / 'ml', plots_jsonl=PLOTS)
  data = movielens.read_movielens(release, release / 'plots.jsonl')
  assert _rows(data.ratings) == EXPECTED
  assert data.items.to_pylist() == [
    {
      'item_id': '1', 'title': 'Heat (1995)', 'year': 1995,
      'genres': ['Action', 'Crime'], 'tags': ['heist', 'la'],
      'keywords': ['heist', 'la'], 'plot': 'A thief plans.',
    },
    {
      'item_id': '2', 'title': 'Big, The', 'year': None,
      'genres': ['Comedy'], 'tags': [], 'keywords': [], 'plot': '',
    },
  ]  # fmt: skip
  assert data.dropped == {}


@pytest.mark.parametrize(
  'header',
  [
    '\ufeffuserId,movieId,rating,timestamp',
    'user_id,movie_id,rating,timestamp',
    'USERID,MOVIEID,RATING,TIMESTAMP',
    '"userId","movieId","rating","timestamp"',
    ' userId , movieId,rating,timestamp',
  ],
)
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_header_variants_are_one(tmp_path, header, end):
  text = header + RATINGS[RATINGS.index('\n') :].rstrip('\n')
  text = text.replace('\n', end)
  data = movielens.read_movielens(_release(tmp_path, ratings_csv=text))
  assert _rows(data.ratings) == EXPECTED


def test_columns_may_come_in_any_order_among_others(tmp_path):
  text = 'x,timestamp,rating,movieId,userId\nq,100,4.0,1,7\nq,90,0.5,2,8\n'
  data = movielens.read_movielens(_release(tmp_path, ratings_csv=text))
  assert _rows(data.ratings) == EXPECTED


def test_one_million_layout(tmp_path):
  _write(
    tmp_path,
    ratings_dat='7::1::4::100\n8::2::0.5::90\n',
    movies_dat='1::Léon: The Pro (1994)::Crime|Drama\n2::Big::Comedy\n'.encode(
      'latin-1'
    ),
    tags_dat='7::1::a::b::5\n',
  )
  data = movielens.read_movielens(tmp_path)
  assert _rows(data.ratings) == EXPECTED
  assert data.items['title'].to_pylist() == ['Léon: The Pro (1994)', 'Big']
  assert data.items['genres'].to_pylist() == [['Crime', 'Drama'], ['Comedy']]
  assert data.items['tags'].to_pylist() == [['a::b'], []]


def test_hundred_thousand_layout(tmp_path):
  flags = lambda *on: '|'.join(str(int(i in on)) for i in range(19))
  _write(
    tmp_path,
    u_data='7\t1\t4\t100\n8\t2\t0.5\t90\n',
    u_item=f'1|Heat (1995)|01-Jan-1995||http|{flags(1, 6)}\n'
    f'2|Big|||x|{flags(0)}\n',
  )
  data = movielens.read_movielens(tmp_path)
  assert _rows(data.ratings) == EXPECTED
  assert data.items['genres'].to_pylist() == [['Action', 'Crime'], []]


def _zip(path, members):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, text in members.items():
      archive.writestr(name, text)
  return path


def test_a_zip_is_read_in_place(tmp_path):
  path = _zip(
    tmp_path / 'ml-x.zip',
    {'ml-x/movies.csv': MOVIES, 'ml-x/ratings.csv': RATINGS,
     '__MACOSX/ml-x/ratings.csv': 'junk'},
  )  # fmt: skip
  data = movielens.read_movielens(path)
  assert _rows(data.ratings) == EXPECTED
  assert os.listdir(tmp_path) == ['ml-x.zip']


@pytest.mark.parametrize(
  'name', ['../evil.csv', '/etc/evil', 'a/../../evil', 'C:/evil', '..\\evil']
)
def test_zip_members_that_escape_are_refused(tmp_path, name):
  path = _zip(
    tmp_path / 'x.zip', {'ratings.csv': RATINGS, 'movies.csv': MOVIES, name: ''}
  )
  with pytest.raises(UserError, match="leaves the archive's directory"):
    movielens.read_movielens(path)
  assert os.listdir(tmp_path) == ['x.zip']


def test_zip_links_are_refused(tmp_path):
  path = tmp_path / 'x.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    link = zipfile.ZipInfo('ratings.csv')
    link.external_attr = 0o120777 << 16
    archive.writestr(link, '/etc/passwd')
  with pytest.raises(UserError, match='leaves the archive'):
    open_source(path)


def test_half_written_zips_are_told(tmp_path):
  members = {'movies.csv': MOVIES, 'ratings.csv': RATINGS + '7,2,1.0,5\n' * 999}
  whole = _zip(tmp_path / 'x.zip', members).read_bytes()
  for size in (0, 10, len(whole) // 2, len(whole) - 5):
    (tmp_path / 'x.zip').write_bytes(whole[:size])
    with pytest.raises(UserError, match='x.zip is no whole zip archive'):
      movielens.read_movielens(tmp_path / 'x.zip')


def test_damage_inside_a_zip_is_told(tmp_path):
  path = _zip(
    tmp_path / 'x.zip', {'movies.csv': MOVIES, 'ratings.csv': RATINGS}
  )
  data = bytearray(path.read_bytes())
  with zipfile.ZipFile(path) as archive:
    info = archive.getinfo('ratings.csv')
  start = info.header_offset + 30 + len('ratings.csv')
  data[start + 8] ^= 0xFF
  path.write_bytes(bytes(data))
  with pytest.raises(UserError, match=r'x.zip:ratings.csv is no whole zip'):
    movielens.read_movielens(path)


_HEAD = 'userId,movieId,rating,timestamp\n'


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ({'ratings_csv': ''}, r'ratings.csv is empty'),
    ({'ratings_csv': '\ufeff'}, r'ratings.csv is empty'),
    ({'ratings_csv': _HEAD}, r'ratings.csv has a header but no rows'),
    ({'movies_csv': ''}, r'movies.csv is empty'),
    ({'movies_csv': 'movieId,title,genres\n'}, r'movies.csv has a header but'),
    (
      {'ratings_csv': 'userId,movieId,stars,timestamp\n7,1,4,1\n'},
      r"ratings.csv: column 'rating' is missing; found userId, movieId, stars",
    ),
    (
      {'ratings_csv': 'userId,movieId,ratings,timestamp\n7,1,4,1\n'},
      r"is 'ratings' meant",
    ),
    (
      {'movies_csv': 'movieId,genres\n1,x\n'},
      r"movies.csv: column 'title' is missing; found movieId, genres",
    ),
    (
      {'ratings_csv': RATINGS + '7,2,good,5\n'},
      r"ratings.csv, line 4: rating must be a number, got 'good'",
    ),
    (
      {'ratings_csv': RATINGS + '7,2,,5\n'},
      r"line 4: rating must be a number, got ''",
    ),
    (
      {'ratings_csv': RATINGS + '7,2,3.0,5.5\n'},
      r"line 4: timestamp must be a whole number, got '5.5'",
    ),
    (
      {'ratings_csv': RATINGS + '7,2,3.0\n'},
      r'line 4: 3 values where the header has 4',
    ),
    ({'ratings_csv': RATINGS + '7,2,5.5,5\n'}, r'4: rating 5.5 is outside'),
    ({'ratings_csv': RATINGS + '7,2,0,5\n'}, r'4: rating 0 is outside'),
    ({'ratings_csv': RATINGS + '7,2,nan,5\n'}, r'4: rating nan is outside'),
    ({'ratings_csv': RATINGS + '7,2,inf,5\n'}, r'4: rating inf is outside'),
    (
      {'ratings_csv': RATINGS + '7,99,3,5\n8,98,3,5\n'},
      r"line 4: movieId '99' is not in movies.csv \(2 such ratings\)",
    ),
    ({'ratings_csv': RATINGS + ',2,3,5\n'}, r'line 4: userId is empty'),
    (
      {'ratings_csv': RATINGS.encode('utf-16')},
      r'ratings.csv, line 1: the text is UTF-16',
    ),
    (
      {'movies_csv': (MOVIES + '3,Léon,Crime\n').encode('latin-1')},
      r'movies.csv, line 4: the text is not utf-8 \(byte 0xe9\)',
    ),
    (
      {'ratings_csv': RATINGS.encode() + b'\xff\xff,2,3,5\n'},
      r'ratings.csv, line 4: the text is not utf-8',
    ),
    (
      {'tags_csv': 'userId,movieId,timestamp\n1,1,1\n'},
      r"tags.csv: column 'tag' is missing",
    ),
    (
      {'plots_jsonl': PLOTS + '{"movieId": 1, \n'},
      r'plots.jsonl, line 4 is no JSON',
    ),
    (
      {'plots_jsonl': '{"movieId": 1}\n'},
      r"plots.jsonl, line 1: key 'overview' is missing; found movieId",
    ),
    ({'plots_jsonl': '[1]\n'}, r'line 1: expected a JSON object'),
    (
      {'plots_jsonl': '{"movieId": 1.5, "overview": ""}\n'},
      r'line 1: movieId must be an id, got 1.5',
    ),
    (
      {'plots_jsonl': '{"movieId": 1, "overview": 3}\n'},
      r'line 1: overview must be a string',
    ),
    (
      {'plots_jsonl': '{"movieId": 1, "overview": "", "keywords": "x"}\n'},
      r'line 1: keywords must be a list',
    ),
    ({'plots_jsonl': ''}, r'plots.jsonl holds no plots'),
    (
      {'plots_jsonl': '{"movieId": 99, "overview": "x"}\n'},
      r'no plot is of a film in this release',
    ),
    (
      {'plots_jsonl': '{"movieId": 1, "overview": "é"}\n'.encode('latin-1')},
      r'plots.jsonl, line 1: the text is not utf-8',
    ),
  ],
)  # fmt: skip
def test_bad_input_is_told_with_file_and_line(tmp_path, files, message):
  release = _release(tmp_path / 'ml', **files)
  plots = release / 'plots.jsonl'
  with pytest.raises(UserError, match=message):
    movielens.read_movielens(release, plots if plots.exists() else None)


def test_a_missing_film_list_is_told(tmp_path):
  _write(tmp_path, ratings_csv=RATINGS)
  with pytest.raises(UserError, match='movies.csv is missing'):
    movielens.read_movielens(tmp_path)


def test_no_release_is_told(tmp_path):
  _write(tmp_path, notes_txt='x')
  with pytest.raises(UserError, match=r'no MovieLens ratings .*notes.txt'):
    movielens.read_movielens(tmp_path)
  with pytest.raises(UserError, match='does not exist'):
    movielens.read_movielens(tmp_path / 'nowhere')


def test_a_release_is_found_one_folder_below_and_by_name(tmp_path):
  _release(tmp_path / 'ml-a')
  found = movielens.find_release(tmp_path)
  assert found.folder == 'ml-a' and found.plots_file is None
  _release(tmp_path / 'ml-b')
  (tmp_path / 'overviews.jsonl').write_text(PLOTS)
  with pytest.raises(UserError, match=r'several releases \(ml-a, ml-b\)'):
    movielens.find_release(tmp_path)
  found = movielens.find_release(tmp_path, 'ml-b')
  assert found.folder == 'ml-b'
  assert found.plots_file == tmp_path / 'overviews.jsonl'
  _zip(tmp_path / 'ml-c.zip', {'ml-c/ratings.csv': RATINGS})
  assert movielens.find_release(tmp_path, 'ml-c').folder == 'ml-c'


def test_a_release_of_another_name_is_not_taken(tmp_path):
  _release(tmp_path / 'ml-10M100K')
  for name in ('ml-10m', 'ml-10M100K', ''):
    assert movielens.find_release(tmp_path, name).folder == 'ml-10M100K'
  for name in ('ml-10mm', 'ml-25m'):
    message = f"no release '{name}' in .*; did you mean 'ml-10m'"
    with pytest.raises(UserError, match=message):
      movielens.find_release(tmp_path, name)


def test_what_is_called_by_no_release_may_be_any(tmp_path):
  _release(tmp_path / 'copy')
  for directory in (tmp_path, tmp_path / 'copy'):
    assert movielens.find_release(directory, 'ml-25m')
    with pytest.raises(UserError, match="did you mean 'ml-25m'"):
      movielens.find_release(directory, 'ml-25mm')


def test_drops_are_counted_by_reason(tmp_path):
  release = _release(
    tmp_path,
    movies_csv=MOVIES + '1,Again,Drama\n',
    ratings_csv=RATINGS + '7,1,2.0,300\n7,1,3.0,200\n8,99,1,1\n8,2,5,90\n',
    tags_csv=TAGS + '1,99,x,1\n1,1,  ,1\n',
    plots_jsonl=PLOTS + PLOTS.split('\n')[0]
    + '\n{"movieId": 98, "overview": "x"}\n',
  )  # fmt: skip
  data = movielens.read_movielens(
    release, release / 'plots.jsonl', drop_unknown_items=True
  )
  # The latest rating is kept; of two at the same time the later line.
  assert _rows(data.ratings) == [('7', '1', 2.0, 300), ('8', '2', 5.0, 90)]
  assert data.dropped == {
    'duplicate (user, item), an older rating': 3,
    'rating of an unknown item': 1,
    'repeated row of an item': 1,
    'tag of an unknown item': 1,
    'empty tag': 1,
    'plot of an unknown item': 1,
    'repeated plot of an item': 1,
  }


def test_nothing_is_left_of_only_unknown_items(tmp_path):
  release = _release(tmp_path, ratings_csv=_HEAD + '7,99,4.0,1\n')
  with pytest.raises(UserError, match='no rating is of a film'):
    movielens.read_movielens(release, drop_unknown_items=True)


_IDS = st.integers(1, 6)
_RATING_ROWS = st.lists(
  st.tuples(
    _IDS, _IDS, st.integers(1, 10).map(lambda h: h / 2), st.integers(0, 5)
  ),
  min_size=1,
  max_size=40,
)


@settings(deadline=None, max_examples=60)
@given(_RATING_ROWS, st.sampled_from(['csv', 'dat', 'zip']))
def test_reading_equals_a_dictionary(tmp_path_factory, rows, kind):
  """Against an independent reading: a dictionary filled in order of time."""
  directory = tmp_path_factory.mktemp('release')
  movies = [(i, f'Film {i}', 'Drama') for i in range(1, 7)]
  if kind == 'dat':
    lines = lambda table: ''.join(
      '::'.join(map(str, row)) + '\n' for row in table
    )
    _write(directory, ratings_dat=lines(rows), movies_dat=lines(movies))
  else:
    files = {
      'ratings.csv': _csv(_HEAD.strip().split(','), rows),
      'movies.csv': _csv(['movieId', 'title', 'genres'], movies),
    }
    if kind == 'zip':
      directory = _zip(directory / 'ml.zip', files)
    else:
      _write(directory, **{n.replace('.', '_'): t for n, t in files.items()})
  data = movielens.read_movielens(directory)
  latest = {}
  for user, item, rating, time in rows:
    old = latest.get((str(user), str(item)), (0, -1))
    if time >= old[1]:
      latest[str(user), str(item)] = (rating, time)
  read = {(u, i): (r, t) for u, i, r, t in _rows(data.ratings)}
  assert read == latest
  assert len(data.ratings) == len(latest)
  assert sum(data.dropped.values()) == len(rows) - len(latest)


def _csv(header, rows):
  text = io.StringIO()
  csv.writer(text).writerows([header, *rows])
  return text.getvalue()


# Titles as people type them: quotes, commas, line breaks, other scripts.
_TITLES = st.text(
  st.characters(codec='utf-8', exclude_characters='\r\x00'), max_size=12
)


@settings(deadline=None, max_examples=60)
@given(st.lists(_TITLES, min_size=1, max_size=8))
def test_any_title_survives(tmp_path_factory, titles):
  directory = tmp_path_factory.mktemp('titles')
  movies = [(i, title, 'Drama') for i, title in enumerate(titles)]
  _write(
    directory,
    ratings_csv=_HEAD + '1,0,4.0,1\n',
    movies_csv=_csv(['movieId', 'title', 'genres'], movies),
  )
  items = movielens.read_movielens(directory).items
  assert items['title'].to_pylist() == [title.strip() for title in titles]


@settings(deadline=None, max_examples=60)
@given(
  st.lists(
    st.tuples(_IDS, _TITLES, st.lists(st.text(max_size=6), max_size=3)),
    max_size=8,
  )
)
def test_plots_survive_json(tmp_path_factory, records):
  from p4lm.data.plots import read_plots

  path = tmp_path_factory.mktemp('plots') / 'plots.jsonl'
  lines = [
    json.dumps({'movieId': i, 'overview': o, 'keywords': k}, ensure_ascii=i % 2)
    for i, o, k in records
  ]
  path.write_bytes('\n'.join(lines).encode())
  if not records:
    with pytest.raises(UserError, match='holds no plots'):
      read_plots(path)
    return
  read = read_plots(path)
  first = {}
  for item, overview, keywords in records:
    first.setdefault(str(item), (overview, keywords))
  assert read.plots.keys() == first.keys()
  assert read.num_duplicates == len(records) - len(first)
  for item, (overview, keywords) in first.items():
    assert read.plots[item].overview == ' '.join(overview.split())
    words = [' '.join(k.lower().split()) for k in keywords]
    assert list(read.plots[item].keywords) == list(
      dict.fromkeys(filter(None, words))
    )


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_the_first_bad_row_is_named(tmp_path_factory, data):
  """A row made bad at a random place is found at its line."""
  directory = tmp_path_factory.mktemp('bad')
  rows = [f'{u},{i},3.5,9' for u in range(1, 9) for i in (1, 2)]
  place = data.draw(st.integers(0, len(rows) - 1))
  rows[place] = data.draw(
    st.sampled_from(['1,1,9,9', '1,1,x,9', '1,1,3.5', '1,1,3.5,', '1,5,3.5,9'])
  )
  release = _release(directory, ratings_csv=_HEAD + '\n'.join(rows) + '\n')
  with pytest.raises(UserError, match=f'line {place + 2}:'):
    movielens.read_movielens(release)


def test_tags_come_most_frequent_first_and_are_limited(tmp_path):
  counts = {f't{i:02}': i for i in range(1, 20)}
  rows = [(user, 1, tag, 1) for tag, n in counts.items() for user in range(n)]
  text = _csv(['userId', 'movieId', 'tag', 'timestamp'], rows)
  data = movielens.read_movielens(_release(tmp_path, tags_csv=text))
  expected = collections.Counter(counts).most_common(12)
  assert data.items['tags'][0].as_py() == [tag for tag, _ in expected]


def test_find_row_reads_quoted_lines(tmp_path):
  _write(tmp_path, x_csv='a,b\n1,"two\nlines"\n3,four\n')
  source = DirectorySource(tmp_path)
  types = {'b': pa.string(), 'a': pa.int32()}
  found = find_row(
    source, 'x.csv', types, RowFormat(), lambda row: row['a'] == '3'
  )
  assert found == (4, {'b': 'four', 'a': '3'})
  table = read_columns(source, 'x.csv', types)
  assert table.to_pydict() == {'b': ['two\nlines', 'four'], 'a': [1, 3]}


def test_fingerprints_follow_the_bytes(tmp_path):
  release = _release(tmp_path / 'ml', plots_jsonl=PLOTS)
  before = movielens.find_release(release).fingerprint(release / 'plots.jsonl')
  assert sorted(before) == ['movies.csv', 'plots', 'ratings.csv', 'tags.csv']
  (release / 'tags.csv').write_text(TAGS + '1,2,x,1\n')
  after = movielens.find_release(release).fingerprint(release / 'plots.jsonl')
  assert {n for n in before if before[n] != after[n]} == {'tags.csv'}
