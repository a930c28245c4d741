"""MovieLens through TFDS: its own builders prepare what make_data reads."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tfds_preparation import prepare

from p4lm import main
from p4lm.data import movielens, tables, tfds_movielens, tfrecords
from p4lm.errors import UserError
from p4lm.jobs.make_data import make_data

MOVIES = """movieId,title,genres
2, Jumanji (1995) ,Adventure|Children|Fantasy
7,Nobody Rated (1950),Film-Noir|IMAX
9,"Amélie ""Poulain"" (2001)",(no genres listed)
10,"American President, The (1995)",Comedy
"""
DAT_MOVIES = """1::Toy Story (1995)::Animation|Children's|Comedy
2::Amélie (2001)::Romance
"""
DAT_USERS = """1::F::1::10::48067
2::M::56::16::70072
"""
DAT_RATINGS = """2::1::3::978300300
1::2::5::978300100
1::1::4::978300200
"""


def _ratings():
  """Users 1..12 of films 2, 9, 10; user 10 rates film 9 three times."""
  rows = [
    (user, film, 0.5 + (user + film) % 10 / 2, 1_000_000_000 + 7 * user - film)
    for user in range(1, 13)
    for film in (2, 9, 10)
  ]
  again = rows.index(next(row for row in rows if row[:2] == (10, 9)))
  rows[again : again + 1] = [(10, 9, 1.0, 50), (10, 9, 4.5, 70), (10, 9, 2, 60)]
  return rows


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """Files as GroupLens lays them out: a release of 20m's kind, one of 1m's."""
  directory = tmp_path_factory.mktemp('grouplens')
  (directory / 'ml-20m').mkdir()
  (directory / 'ml-20m' / 'movies.csv').write_text(MOVIES, 'utf-8')
  lines = [','.join(map(str, row)) for row in _ratings()]
  (directory / 'ml-20m' / 'ratings.csv').write_text(
    '\n'.join(['userId,movieId,rating,timestamp', *lines, ''])
  )
  (directory / 'ml-1m').mkdir()
  for name, text in (
    ('movies.dat', DAT_MOVIES), ('users.dat', DAT_USERS),
    ('ratings.dat', DAT_RATINGS),
  ):  # fmt: skip
    (directory / 'ml-1m' / name).write_text(text, 'latin-1')
  return directory


@pytest.fixture(scope='module')
def prepared(source, tmp_path_factory):
  """(TFDS' data directory, its configurations), by the lines of our errors.

  1m is prepared in the other file format, ArrayRecord.
  """
  directory = tmp_path_factory.mktemp('tfds')
  lines = []
  for name in ('20m', '1m'):
    with pytest.raises(UserError, match='with this line of Python:\n') as error:
      tfds_movielens.find_prepared(f'tfds:movielens/{name}', directory)
    lines.append(str(error.value).splitlines()[-1])
  lines[1] = lines[1].replace(
    'data_dir=', "file_format='array_record', data_dir="
  )
  configs = prepare([(source, line) for line in lines])
  return directory, configs


def _read(data_dir, name, **options):
  found = tfds_movielens.find_prepared(f'tfds:movielens/{name}', data_dir)
  return tfds_movielens.read_prepared(found, **options)


def test_every_release_of_tfds_is_named(prepared):
  names = {
    f'{name}-{table}'
    for name in tfds_movielens.RELEASES
    for table in ('movies', 'ratings')
  }
  assert names == set(prepared[1])


def test_a_release_is_that_of_grouplens(prepared, source, tmp_path, capsys):
  """The same tables and splits as from the files; what they should be."""
  plots = tmp_path / 'plots.jsonl'
  plots.write_text('{"movieId": 9, "overview": "A waitress.", "keywords": []}')
  theirs, ours = (
    make_data(
      dataset=dataset, data_dir=str(data_dir), plots_file=str(plots),
      output_dir=str(tmp_path / name), write_texts=False,
    )
    for name, dataset, data_dir in (
      ('files', 'movielens', source / 'ml-20m'),
      ('tfds', 'tfds:movielens/20m', prepared[0]),
    )
  )  # fmt: skip
  assert ours['split_hash'] == theirs['split_hash']
  assert ours['counts'] == theirs['counts']
  assert ours['dropped'] == theirs['dropped']
  assert ours['dropped'] == {'duplicate (user, item), an older rating': 2}
  ratings, items = (
    tables.read_table(tmp_path / 'tfds', name) for name in ('ratings', 'items')
  )
  assert ratings.equals(tables.read_table(tmp_path / 'files', 'ratings'))
  assert items.equals(tables.read_table(tmp_path / 'files', 'items'))
  assert ours['dataset'] == 'tfds:movielens/20m'
  assert sorted(ours['parameters']['inputs']) == [
    '20m-movies/0.1.1', '20m-ratings/0.1.1', 'plots'
  ]  # fmt: skip
  assert items.to_pydict() == {
    'item_id': ['2', '7', '9', '10'],
    'title': [
      'Jumanji (1995)', 'Nobody Rated (1950)', 'Amélie "Poulain" (2001)',
      'American President, The (1995)',
    ],
    'year': [1995, 1950, 2001, 1995],
    'genres': [
      ['Adventure', 'Children', 'Fantasy'], ['Film-Noir', 'IMAX'], [],
      ['Comedy'],
    ],
    'tags': [[]] * 4,
    'keywords': [[]] * 4,
    'plot': ['', '', 'A waitress.', ''],
  }  # fmt: skip
  expected = [
    (str(user), str(film), rating, time)
    for user, film, rating, time in _ratings()
    if time not in (50, 60)
  ]
  assert list(zip(*(c.to_pylist() for c in ratings.columns[:4]))) == expected
  again = ['make_data', '--gin.DATASET=tfds:movielens/20m',
    f'--gin.DATA_DIR={prepared[0]}', f'--gin.PLOTS_FILE={plots}',
    f'--gin.OUTPUT_DIR={tmp_path / "tfds"}',
    '--gin.make_data.write_texts=False']  # fmt: skip
  assert main.main(again) == 0
  assert 'already made' in capsys.readouterr().out


def test_array_records_of_the_old_releases_are_read(prepared, source):
  """In ArrayRecord; Latin-1; and TFDS' own name of one genre."""
  data = _read(prepared[0], '1m')
  theirs = movielens.read_movielens(source / 'ml-1m')
  rows = sorted(theirs.ratings.to_pylist(), key=lambda row: list(row.values()))
  assert data.ratings.to_pylist() == rows
  assert [row['timestamp'] for row in rows] == [978300200, 978300100, 978300300]
  assert data.items['title'].to_pylist() == [
    'Toy Story (1995)',
    'Amélie (2001)',
  ]
  assert data.items['genres'].to_pylist() == [
    ['Animation', 'Children', 'Comedy'], ['Romance']
  ]  # fmt: skip
  assert theirs.items['genres'][0].as_py()[1] == "Children's"


@pytest.mark.parametrize('damage', ['cut', 'changed', 'gone'])
def test_a_half_copied_file_is_an_error(prepared, tmp_path, damage):
  """One message, no traceback, nothing written."""
  shutil.copytree(prepared[0] / 'movielens', tmp_path / 'in' / 'movielens')
  table = tmp_path / 'in' / 'movielens' / '20m-ratings' / '0.1.1'
  [records] = table.glob('*.tfrecord-*')
  data = bytearray(records.read_bytes())
  data[len(data) // 2] ^= 1
  if damage == 'cut':
    os.truncate(records, len(data) // 2)
  elif damage == 'changed':
    records.write_bytes(data)
  else:
    records.unlink()
  with pytest.raises(UserError) as error:
    make_data(
      dataset='tfds:movielens/20m', data_dir=str(tmp_path / 'in'),
      output_dir=str(tmp_path / 'out'), write_texts=False,
    )  # fmt: skip
  message = str(error.value)
  assert message.startswith(f'{table} cannot be read (')
  assert message.endswith('; remove it and prepare it again')
  assert '\n' not in message
  assert not (tmp_path / 'out' / 'manifest.json').exists()


def _cut_into_shards(table, number):
  """Divides the records of the only shard of a prepared table."""
  [whole] = table.glob('*.tfrecord-*')
  data, [block] = whole.read_bytes(), tfrecords.read(whole)
  # A record's length and two checksums are 16 bytes.
  ends = np.cumsum(block.places.lengths + 16)
  parts = np.array_split(np.arange(len(ends)), number)
  prefix, begin = str(whole).rpartition('-00000-of-')[0], 0
  for shard, rows in enumerate(parts):
    path = f'{prefix}-{shard:05}-of-{number:05}'
    pathlib.Path(path).write_bytes(data[begin : ends[rows[-1]]])
    begin = ends[rows[-1]]
  whole.unlink()
  path = table / 'dataset_info.json'
  info = json.loads(path.read_text())
  info['splits'][0]['shardLengths'] = [str(len(rows)) for rows in parts]
  path.write_text(json.dumps(info))


def test_several_shards_are_one_table(prepared, tmp_path):
  """They are parsed in processes of their own; a damaged one is one error."""
  shutil.copytree(prepared[0], tmp_path / 'in')
  for table in ('20m-ratings', '20m-movies'):
    _cut_into_shards(tmp_path / 'in' / 'movielens' / table / '0.1.1', 3)
  found, whole = (
    _read(where, '20m') for where in (tmp_path / 'in', prepared[0])
  )
  assert found.ratings.equals(whole.ratings)
  assert found.items.equals(whole.items)
  [path] = tmp_path.glob('in/movielens/20m-ratings/*/*-00001-of-00003')
  os.truncate(path, path.stat().st_size - 1)
  with pytest.raises(UserError, match='00003 ends within the record at'):
    _read(tmp_path / 'in', '20m')


@pytest.mark.parametrize(
  ('dataset', 'message'),
  [
    ('tfds:movielens/25M', r"did you mean 'tfds:movielens/25m'\?"),
    ('tfds:movielens/25m-ratings', 'leave -ratings and -movies off'),
    ('tfds:movielens/latest', 'one of 100k, 1m, 20m, 25m, latest-small'),
    ('tfds:movielens', 'no dataset .* NAME one of 100k'),
    ('tfds:amazon_us_reviews', "DATASET can be 'tfds:movielens/NAME'"),
    (
      'tfds:movielens/25m',
      'lacks movielens/25m-movies and movielens/25m-ratings, ',
    ),
    ('tfds', "no dataset 'tfds'; .*'tfds:movielens/25m'"),
  ],
)
def test_what_is_not_there_is_one_error(tmp_path, dataset, message):
  (tmp_path / 'in').mkdir()
  with pytest.raises(UserError, match=message):
    make_data(
      dataset=dataset, data_dir=str(tmp_path / 'in'), write_texts=False,
      output_dir=str(tmp_path / 'out'),
    )  # fmt: skip
  assert os.listdir(tmp_path) == ['in']


def test_the_data_directory_is_wanted(tmp_path):
  dataset, target = 'tfds:movielens/25m', str(tmp_path / 'out')
  with pytest.raises(UserError, match='needs DATA_DIR: the data directory of'):
    make_data(dataset=dataset, output_dir=target)
  with pytest.raises(UserError, match='DATA_DIR .*nowhere does not exist'):
    make_data(
      dataset=dataset, data_dir=str(tmp_path / 'nowhere'), output_dir=target
    )
  assert os.listdir(tmp_path) == []


def _touch(directory):
  directory.mkdir(parents=True)
  (directory / 'dataset_info.json').touch()


def test_the_newest_finished_version_is_found(tmp_path):
  top = tmp_path / 'movielens'
  _touch(top / '25m-movies' / '0.1.1')
  _touch(top / '25m-ratings' / 'incomplete.AB_0.1.1')
  (top / '25m-ratings' / '0.1.1').mkdir()
  with pytest.raises(UserError, match='lacks movielens/25m-ratings, and'):
    tfds_movielens.find_prepared('tfds:movielens/25m', tmp_path)
  for version in ('0.1.9', '0.1.10', '0.0.99'):
    _touch(top / '25m-ratings' / version)
  found = tfds_movielens.find_prepared('tfds:movielens/25m', tmp_path)
  assert found.ratings == top / '25m-ratings' / '0.1.10'
  assert found.films == top / '25m-movies' / '0.1.1'


def test_texts_want_a_plots_file(tmp_path):
  for table in ('movies', 'ratings'):
    _touch(tmp_path / 'in' / 'movielens' / f'100k-{table}' / '0.1.1')
  (tmp_path / 'in' / 'plots.jsonl').touch()
  with pytest.raises(UserError, match='no plots: give PLOTS_FILE'):
    make_data(
      dataset='tfds:movielens/100k', data_dir=str(tmp_path / 'in'),
      output_dir=str(tmp_path / 'out'),
    )  # fmt: skip


def test_no_tensorflow_comes_in():
  program = (
    'import sys; import p4lm.jobs.make_data, p4lm.data.tfds_columns; '
    'print([m for m in sys.modules if m.startswith("tensorflow")])'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[]'
