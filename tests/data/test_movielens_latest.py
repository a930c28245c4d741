"""The real latest-small release, against the csv module."""

import csv
import json
import zipfile

import numpy as np
import pytest

from p4lm.data import movielens, splits


@pytest.fixture(scope='module')
def directory(data_dir):
  path = data_dir / 'movielens'
  if not (path / 'ml-latest-small').is_dir():
    pytest.skip(
      f'no {path / "ml-latest-small"}: unpack GroupLens ml-latest-small there'
    )
  return path


@pytest.fixture(scope='module')
def data(directory):
  release = movielens.find_release(directory)
  return movielens.read_movielens(release, release.plots_file)


def test_every_rating_is_read(data, directory):
  with open(directory / 'ml-latest-small' / 'ratings.csv') as file:
    rows = list(csv.reader(file))[1:]
  assert data.ratings['user_id'].to_pylist() == [row[0] for row in rows]
  assert data.ratings['item_id'].to_pylist() == [row[1] for row in rows]
  assert data.ratings['rating'].to_pylist() == [float(row[2]) for row in rows]
  assert data.ratings['timestamp'].to_pylist() == [int(row[3]) for row in rows]
  assert data.dropped == {}


def test_every_film_and_plot_is_read(data, directory):
  with open(directory / 'ml-latest-small' / 'movies.csv') as file:
    rows = {row['movieId']: row for row in csv.DictReader(file)}
  with open(directory / 'overviews.jsonl') as file:
    plots = {str(p['movieId']): p for p in map(json.loads, file)}
  items = data.items.to_pylist()
  assert [item['item_id'] for item in items] == list(rows)
  for item in items:
    row, plot = rows[item['item_id']], plots.get(item['item_id'], {})
    genres = row['genres'].replace('(no genres listed)', '').split('|')
    assert item['title'] == row['title'].strip()
    assert item['genres'] == [g for g in genres if g]
    assert item['plot'] == ' '.join(plot.get('overview', '').split())
    keywords = [' '.join(k.lower().split()) for k in plot.get('keywords', [])]
    assert item['keywords'] == list(dict.fromkeys(filter(None, keywords)))


def test_a_zip_gives_the_same(data, directory, tmp_path):
  path = tmp_path / 'ml-latest-small.zip'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for file in sorted((directory / 'ml-latest-small').iterdir()):
      archive.write(file, f'ml-latest-small/{file.name}')
  zipped = movielens.read_movielens(path, directory / 'overviews.jsonl')
  assert zipped.ratings.equals(data.ratings)
  assert zipped.items.equals(data.items)


def test_two_hundred_users_are_held_out(data):
  ratings = splits.split_ratings(data.ratings, seed=0)
  pairs = splits.choose_evaluation_pairs(ratings, data.items, seed=0)
  splits.check_leakage(ratings, pairs)
  assert len(set(pairs['user_id'].to_pylist())) == len(pairs) == 200
  shares = np.bincount(splits.split_codes(ratings)) / len(ratings)
  np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.003)
