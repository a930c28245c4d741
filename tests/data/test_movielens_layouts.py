"""Every MovieLens release's layout, as a directory and as a zip."""

import csv
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.data import movielens, movielens_extras
from p4lm.errors import UserError

RATINGS = [
  ('1', '10', 4.0, 978300760),
  ('1', '20', 3.0, 978302109),
  ('2', '10', 5.0, 978301968),
  ('3', '30', 1.0, 978300275),
]
MOVIES = [
  ('10', 'Léon: The Professional (1994)', ['Action', 'Crime']),
  ('20', "Amélie, 'Le' Fabuleux (2001)", ['Comedy', 'Romance']),
  ('30', 'Heat', []),
]
TAGS = [('1', '10', 'Hit man', 5), ('2', '10', 'hit man', 6),
        ('2', '20', 'Café, "chic"', 7)]  # fmt: skip
GENRES = ('unknown|Action|Adventure|Animation|Children|Comedy|Crime|'
          'Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|Mystery|Romance|'
          'Sci-Fi|Thriller|War|Western').split('|')  # fmt: skip


def _csv(header, rows, end='\n'):
  text = io.StringIO()
  csv.writer(text, lineterminator=end).writerows([header.split(','), *rows])
  return text.getvalue().encode()


def _colons(rows, encoding):
  lines = ['::'.join(map(str, row)) + '\n' for row in rows]
  return ''.join(lines).encode(encoding)


def _whole(rows):
  return [(u, i, int(r), t) for u, i, r, t in rows]


def _files_100k():
  data = ''.join('\t'.join(map(str, r)) + '\n' for r in _whole(RATINGS))
  items = ''.join(
    '|'.join([i, title, '01-Jan-1995', '', 'http://x',
              *(str(int(g in genres)) for g in GENRES)]) + '\n'
    for i, title, genres in MOVIES
  )  # fmt: skip
  genres = ''.join(f'{name}|{k}\n' for k, name in enumerate(GENRES))
  return {
    'u.data': data.encode(), 'u.item': items.encode('latin-1'),
    'u.genre': genres.encode(), 'u.user': b'1|24|M|technician|85711\n',
    'u1.base': data.encode(), 'u.info': b'3 users\n',
  }  # fmt: skip


def _movies_dat(encoding):
  return _colons(
    [(i, t, '|'.join(g) or '(no genres listed)') for i, t, g in MOVIES],
    encoding,
  )


def _files_1m():
  return {
    'ratings.dat': _colons(_whole(RATINGS), 'latin-1'),
    'movies.dat': _movies_dat('latin-1'),
    'users.dat': b'1::F::1::10::48067\n',
  }


def _files_10m():
  halves = [(u, i, f'{r:g}', t) for u, i, r, t in RATINGS]
  return {
    'ratings.dat': _colons(halves, 'utf-8'),
    'movies.dat': _movies_dat('utf-8'),
    'tags.dat': _colons(TAGS, 'utf-8'),
  }


def _files_csv(genome, end='\n'):
  movies = [(i, t, '|'.join(g) or '(no genres listed)') for i, t, g in MOVIES]
  files = {
    'ratings.csv': _csv('userId,movieId,rating,timestamp', RATINGS, end),
    'movies.csv': _csv('movieId,title,genres', movies, end),
    'tags.csv': _csv('userId,movieId,tag,timestamp', TAGS, end),
    'links.csv': _csv(
      'movieId,imdbId,tmdbId',
      [('10', '0110413', '101'), ('20', '0211915', ''), ('30', '0113277', '9')],
      end,
    ),
  }
  if genome:
    scores = [(i, t, t / 4) for i in ('10', '20') for t in (1, 2)]
    files |= {
      'genome-tags.csv': _csv('tagId,tag', [(1, '007'), (2, 'noir')], end),
      'genome-scores.csv': _csv('movieId,tagId,relevance', scores, end),
    }
  return files


LAYOUTS = {
  'ml-100k': ('ml-100k', _files_100k()),
  'ml-1m': ('ml-1m', _files_1m()),
  'ml-10m': ('ml-10M100K', _files_10m()),
  'ml-latest-small': ('ml-latest-small', _files_csv(genome=False)),
  'ml-20m': ('ml-20m', _files_csv(genome=True, end='\r\n')),
  'ml-25m': ('ml-25m', _files_csv(genome=True)),
  'ml-32m': ('ml-32m', _files_csv(genome=False)),
}


def _release(directory, name, kind):
  """Where DATA_DIR points for a release of this kind."""
  folder, files = LAYOUTS[name]
  if kind == 'zip':
    with zipfile.ZipFile(directory / f'{name}.zip', 'w') as archive:
      for file, data in files.items():
        archive.writestr(f'{folder}/{file}', data)
    return directory / f'{name}.zip'
  (directory / folder).mkdir()
  for file, data in files.items():
    (directory / folder / file).write_bytes(data)
  return directory / folder if kind == 'folder' else directory


@pytest.mark.parametrize('kind', ['folder', 'above', 'zip'])
@pytest.mark.parametrize('name', LAYOUTS)
def test_every_layout_is_read(tmp_path, name, kind):
  data = movielens.read_movielens(_release(tmp_path, name, kind))
  names = ('user_id', 'item_id', 'rating', 'timestamp')
  rows = zip(*(data.ratings[column].to_pylist() for column in names))
  assert list(rows) == RATINGS
  items = data.items.to_pydict()
  assert items['item_id'] == ['10', '20', '30']
  assert items['title'] == [title for _, title, _ in MOVIES]
  assert items['year'] == [1994, 2001, None]
  assert items['genres'] == [genres for _, _, genres in MOVIES]
  has_tags = name not in ('ml-100k', 'ml-1m')
  assert items['tags'] == (
    [['hit man'], ['café, "chic"'], []] if has_tags else [[], [], []]
  )
  assert data.dropped == {}


@pytest.mark.parametrize('kind', ['folder', 'zip'])
@pytest.mark.parametrize('name', LAYOUTS)
def test_links_and_genome_are_read_where_there_are_any(tmp_path, name, kind):
  release = movielens.find_release(_release(tmp_path, name, kind))
  items, dropped = movielens.read_movielens(release).items, {}
  if name in ('ml-100k', 'ml-1m', 'ml-10m'):
    with pytest.raises(UserError, match=r'links.csv is missing: not every rel'):
      movielens_extras.read_links(release, items, dropped)
  else:
    links = movielens_extras.read_links(release, items, dropped)
    assert links.to_pylist() == [
      {'item_id': '10', 'imdb_id': '0110413', 'tmdb_id': '101'},
      {'item_id': '20', 'imdb_id': '0211915', 'tmdb_id': None},
      {'item_id': '30', 'imdb_id': '0113277', 'tmdb_id': '9'},
    ]
  if name not in ('ml-20m', 'ml-25m'):
    with pytest.raises(UserError, match='genome-tags.csv is missing'):
      movielens_extras.read_genome(release, items, dropped)
  else:
    genome = movielens_extras.read_genome(release, items, dropped)
    assert (genome.item_ids, genome.tags) == (['10', '20'], ['007', 'noir'])
    np.testing.assert_array_equal(
      genome.relevance, np.array([[0.25, 0.5]] * 2, np.float32)
    )
  assert dropped == {}


def _with(directory, **files):
  """ml-25m with some tables written anew; `_` stands for a dash."""
  _release(directory, 'ml-25m', 'folder')
  for name, text in files.items():
    path = directory / 'ml-25m' / f'{name.replace("_", "-")}.csv'
    path.write_text(text)
  release = movielens.find_release(directory)
  return release, movielens.read_movielens(release).items


def test_drops_of_links_are_counted(tmp_path):
  text = 'movieId,imdbId,tmdbId\n99,1,1\n10,1,\n10,2,2\n20,,5\n'
  release, items = _with(tmp_path, links=text)
  dropped = {}
  links = movielens_extras.read_links(release, items, dropped)
  assert links.to_pylist() == [
    {'item_id': '10', 'imdb_id': '1', 'tmdb_id': None},
    {'item_id': '20', 'imdb_id': None, 'tmdb_id': '5'},
  ]
  assert dropped == {
    'link of an unknown item': 1, 'repeated link of an item': 1
  }  # fmt: skip


SCORES = 'movieId,tagId,relevance\n'


def test_drops_and_gaps_of_the_genome(tmp_path):
  text = SCORES + '99,1,0.5\n20,2,0.75\n20,2,0.5\n10,1,0\n'
  release, items = _with(tmp_path, genome_scores=text)
  dropped = {}
  genome = movielens_extras.read_genome(release, items, dropped)
  assert genome.item_ids == ['20', '10']
  np.testing.assert_array_equal(
    genome.relevance, np.array([[np.nan, 0.75], [0, np.nan]], np.float32)
  )
  assert dropped == {
    'genome score of an unknown item': 1,
    'repeated genome score of an item and a tag': 1,
  }


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ({'links': ''}, 'links.csv is empty'),
    (
      {'links': 'movieId,imdbId,tmdbId\n10,1,2\n20,tt5,\n'},
      "links.csv, line 3: imdbId must be a whole number, got 'tt5'",
    ),
    (
      {'links': 'movieId,imdbId,tmdbId\n,1,2\n'},
      "links.csv, line 2: movieId must be a whole number, got ''",
    ),
    (
      {'links': 'movieId,imdbId\n10,1\n'},
      "links.csv: column 'tmdbId' is missing",
    ),
    (
      {'links': 'movieId,imdbId,tmdbId\n10,1\n'},
      'links.csv, line 2: 2 values where the header has 3',
    ),
    ({'genome_scores': SCORES + '10,1,1.5\n'}, 'line 2: relevance 1.5 is outs'),
    ({'genome_scores': SCORES + '10,1,nan\n'}, 'line 2: relevance nan is outs'),
    ({'genome_scores': SCORES + '10,1,x\n'}, 'line 2: relevance must be a num'),
    (
      {'genome_scores': SCORES + '10,1,0\n10,9,1\n'},
      "genome-scores.csv, line 3: tagId '9' is not in genome-tags.csv",
    ),
    ({'genome_scores': ''}, 'genome-scores.csv is empty'),
    (
      {'genome_tags': 'tagId,tag\n1,a\n2,b\n1,c\n'},
      "genome-tags.csv: tagId '1' is listed twice",
    ),
  ],
)
def test_bad_extras_are_named(tmp_path, files, message):
  release, items = _with(tmp_path, **files)
  read = (
    movielens_extras.read_links
    if 'links' in files
    else movielens_extras.read_genome
  )
  with pytest.raises(UserError, match=message):
    read(release, items, {})


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_genome_equals_a_dictionary(tmp_path_factory, data):
  films = data.draw(st.permutations(['10', '20', '30', '99']))
  scores = data.draw(
    st.lists(
      st.tuples(
        st.sampled_from(films), st.sampled_from('12'), st.integers(0, 4)
      ),
      min_size=1,
      max_size=12,
    ).filter(lambda rows: any(film != '99' for film, _, _ in rows))
  )
  text = SCORES + ''.join(f'{i},{t},{r / 4}\n' for i, t, r in scores)
  directory = tmp_path_factory.mktemp('genome')
  release, items = _with(directory, genome_scores=text)
  dropped = {}
  genome = movielens_extras.read_genome(release, items, dropped)
  expected = {}
  for film, tag, relevance in scores:
    if film != '99':
      expected.setdefault((film, tag), relevance / 4)
  found = {
    (film, tag): value
    for film, values in zip(genome.item_ids, genome.relevance.tolist())
    for tag, value in zip('12', values)
    if not np.isnan(value)
  }
  assert found == expected
  assert sum(dropped.values()) == len(scores) - len(expected)


def test_the_real_links_are_read(data_dir):
  directory = data_dir / 'movielens' / 'ml-latest-small'
  if not directory.is_dir():
    pytest.skip(f'no {directory}: unpack GroupLens ml-latest-small there')
  release, dropped = movielens.find_release(directory), {}
  items = movielens.read_movielens(release).items
  links = movielens_extras.read_links(release, items, dropped)
  with open(directory / 'links.csv', encoding='utf-8') as file:
    rows = list(csv.reader(file))[1:]
  assert dropped == {}
  assert [
    [row['item_id'], row['imdb_id'], row['tmdb_id'] or '']
    for row in links.to_pylist()
  ] == rows
