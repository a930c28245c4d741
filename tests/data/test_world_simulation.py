"""Items, users and ratings of the world, and their MovieLens files."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from p4lm.data.world import (
  WorldConfig,
  build_world,
  lexicon,
  write_movielens_files,
)
from p4lm.data.world.ratings import MEAN_STARS, stream_ratings
from p4lm.errors import UserError


def _ratings(world):
  chunks = list(stream_ratings(world))
  return {
    name: np.concatenate([getattr(chunk, name) for chunk in chunks])
    for name in ('users', 'items', 'stars', 'timestamps')
  }


@pytest.fixture(scope='module')
def world():
  return build_world(WorldConfig(num_archive_items=0))


@pytest.fixture(scope='module')
def ratings(world):
  return _ratings(world)


def test_seed_decides_everything():
  config = WorldConfig(num_users=40, num_items=30, num_ratings=400, seed=7)
  first, second = build_world(config), build_world(config)
  for field in dataclasses.fields(first):
    a, b = getattr(first, field.name), getattr(second, field.name)
    assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
  for a, b in zip(_ratings(first).values(), _ratings(second).values()):
    assert np.array_equal(a, b)
  assert [first.bullets(u) for u in range(40)] == [
    second.bullets(u) for u in range(40)
  ]
  other = build_world(dataclasses.replace(config, seed=8))
  assert other.plots != first.plots
  assert not np.array_equal(other.tastes, first.tastes)


def test_tastes_are_standardised(world):
  assert np.abs(world.tastes.mean(axis=1)).max() < 1e-5
  assert np.abs(world.tastes.std(axis=1) - 1).max() < 1e-5
  assert np.abs(world.tastes.mean(axis=0)).max() < 0.01
  assert (np.sort(world.preferences, axis=1)[:, :5] == -1).all()
  assert (np.sort(world.preferences, axis=1)[:, -5:] == 1).all()
  assert (world.preferences != 0).sum(axis=1).tolist() == [10] * 500


def test_attributes_are_one_value_a_facet_and_plausible(world):
  facets = np.array(lexicon.VALUE_FACETS)[world.attributes]
  assert (facets == np.arange(lexicon.NUM_FACETS)).all()
  hero = world.attributes[:, lexicon.HERO] - lexicon.VALUE_OFFSETS[lexicon.HERO]
  rival = world.attributes[:, lexicon.RIVAL]
  rival = rival - lexicon.VALUE_OFFSETS[lexicon.RIVAL]
  assert (hero != rival).all()
  assert np.allclose(world.plausibility.sum(axis=1), lexicon.NUM_FACETS)
  # Frequencies of a facet given the genre follow the table (chi-square).
  big = build_world(
    WorldConfig(num_items=4000, num_archive_items=0, num_ratings=1000)
  )
  for genre in range(lexicon.FACET_SIZES[0]):
    items = big.attributes[big.attributes[:, 0] == genre]
    for facet in (1, 2, 3, 5, 6, 7):
      start, size = lexicon.VALUE_OFFSETS[facet], lexicon.FACET_SIZES[facet]
      counts = np.bincount(items[:, facet] - start, minlength=size)
      expected = len(items) * big.plausibility[genre, start : start + size]
      # The 1 - 1e-6 quantile with 7 degrees of freedom is 40.5.
      assert np.sum((counts - expected) ** 2 / expected) < 40.5


def test_rating_marginals_are_those_of_movielens(world, ratings):
  stars = ratings['stars']
  assert len(stars) == world.config.num_ratings
  assert set(np.unique(stars)) == {half / 2 for half in range(1, 11)}
  assert 3.3 < stars.mean() < 3.8 and 0.8 < stars.std() < 1.15
  counts = np.bincount(ratings['users'], minlength=500)
  assert np.array_equal(counts, world.rating_counts) and counts.min() >= 20
  # A long tail of items, none of them without a rating.
  by_item = np.sort(np.bincount(ratings['items'], minlength=world.num_items))
  tenth = world.num_items // 10
  assert by_item[0] >= 1
  assert by_item[-tenth:].sum() > 3 * by_item[:tenth].sum()


def test_pairs_are_unique_and_time_goes_on(world, ratings):
  codes = ratings['users'].astype(np.int64) * world.num_items + ratings['items']
  assert len(np.unique(codes)) == len(codes)
  same_user = np.diff(ratings['users']) == 0
  assert (np.diff(ratings['timestamps'])[same_user] > 0).all()


def test_stars_without_noise_are_the_documented_formula():
  world = build_world(
    WorldConfig(
      num_users=300, num_items=60, num_ratings=3000, rating_noise=0, seed=2
    )
  )
  rows = _ratings(world)
  expected = []
  for user, item in zip(rows['users'], rows['items']):
    utility = world.tastes[user, world.attributes[item]].sum() / np.sqrt(8)
    stars = MEAN_STARS + world.user_generosity[user] + world.item_quality[item]
    expected.append(stars + world.config.taste_weight * utility)
  expected = np.clip(np.round(2 * np.array(expected)) / 2, 0.5, 5)
  # A sum in another order may fall on the other side of a rounding edge.
  assert np.mean(expected == rows['stars']) > 0.999


def test_users_rate_popular_and_liked_items_more(world, ratings):
  utility = world.tastes @ world.attribute_indicators().T / np.sqrt(8)
  rated = utility[ratings['users'], ratings['items']].mean()
  assert 0.2 < rated - utility.mean() < 0.6
  counts = np.bincount(ratings['items'], minlength=world.num_items)
  assert np.corrcoef(counts, world.popularity)[0, 1] > 0.9


def test_factorization_recovers_the_tastes(world, ratings):
  """Plain ALS on 70% of the ratings finds what the users like."""
  train = np.random.default_rng(0).random(len(ratings['users'])) < 0.7
  users, items = ratings['users'][train], ratings['items'][train]
  shape = (world.num_users, world.num_items)
  known, stars = np.zeros(shape), np.zeros(shape)
  known[users, items] = 1
  stars[users, items] = ratings['stars'][train] - ratings['stars'].mean()
  for axis in (1, 0):
    mean = stars.sum(axis, keepdims=True) / (2 + known.sum(axis, keepdims=True))
    stars = known * (stars - mean)
  scores = np.matmul(*_least_squares(known, stars, rank=12, ridge=3.0))
  indicators = world.attribute_indicators()
  recovered = scores @ (indicators / indicators.sum(axis=0))
  recovered -= recovered.mean(axis=0)
  recovered -= recovered.mean(axis=1, keepdims=True)
  correlation = np.corrcoef(recovered.ravel(), world.tastes.ravel())[0, 1]
  assert correlation > 0.6, correlation


def _least_squares(known, stars, rank, ridge):
  """Alternating least squares; [U, rank] and [rank, I]."""
  left = None
  right = np.random.default_rng(1).standard_normal((known.shape[1], rank)) / 10
  for _ in range(8):
    left = _solve(known, stars, right, ridge)
    right = _solve(known.T, stars.T, left, ridge)
  return left, right.T


def _solve(known, stars, factors, ridge):
  rank = factors.shape[1]
  outer = (factors[:, :, None] * factors[:, None]).reshape(-1, rank * rank)
  gram = (known @ outer).reshape(-1, rank, rank) + ridge * np.eye(rank)
  return np.linalg.solve(gram, (stars @ factors)[..., None])[..., 0]


def test_movielens_files(tmp_path):
  config = WorldConfig(num_users=300, num_items=40, num_ratings=3000, seed=5)
  world = build_world(config)
  write_movielens_files(world, tmp_path)
  rows = {
    name: list(csv.reader((tmp_path / f'{name}.csv').read_text().splitlines()))
    for name in ('movies', 'ratings', 'tags', 'links')
  }
  assert rows['movies'][0] == ['movieId', 'title', 'genres']
  assert rows['ratings'][0] == ['userId', 'movieId', 'rating', 'timestamp']
  assert rows['tags'][0] == ['userId', 'movieId', 'tag', 'timestamp']
  assert rows['links'][0] == ['movieId', 'imdbId', 'tmdbId']
  drawn = _ratings(world)
  assert rows['ratings'][1:] == [
    [str(user + 1), str(item + 1), f'{stars:.1f}', str(time)]
    for user, item, stars, time in zip(*drawn.values())
  ]
  assert [row[:2] for row in rows['movies'][1:]] == [
    [str(item + 1), world.titles[item]] for item in range(40)
  ]
  lines = (tmp_path / 'plots.jsonl').read_text().splitlines()
  assert len(lines) == 40  # The archive is not written.
  for item, line in enumerate(map(json.loads, lines)):
    assert line['movieId'] == item + 1
    assert line['overview'] == world.plots[item]
    genre = lexicon.VALUE_NAMES[world.attributes[item, 0]].split(':')[1]
    genres = rows['movies'][item + 1][2].split('|')
    # One genre of the facet, and others that no pitch can claim.
    assert set(genres) & set(lexicon.FACETS[0].values) == {genre}
    assert genres == sorted(genres)
    labels = [lexicon.label_of(value) for value in world.attributes[item]]
    assert line['keywords'] == labels
    tags = [row[2] for row in rows['tags'][1:] if row[1] == str(item + 1)]
    assert len(tags) == 3 and set(tags) <= set(labels)
  assert all(1 <= int(row[0]) <= 300 for row in rows['tags'][1:])


def test_large_catalogues_offer_a_part_to_each_chunk(monkeypatch):
  """Above MAX_CANDIDATES the counts, uniqueness and popularity still hold."""
  from p4lm.data.world import ratings as ratings_module

  monkeypatch.setattr(ratings_module, 'MAX_CANDIDATES', 100)
  world = build_world(
    WorldConfig(
      num_users=5000, num_items=300, num_archive_items=0, num_ratings=100_000
    )
  )
  # Counts were drawn with the true bound: cut them to the patched one.
  world.rating_counts[:] = np.minimum(world.rating_counts, 50)
  rows = _ratings(world)
  codes = rows['users'].astype(np.int64) * 300 + rows['items']
  assert len(np.unique(codes)) == len(codes) == world.rating_counts.sum()
  counts = np.bincount(rows['items'], minlength=300)
  assert np.corrcoef(counts, world.popularity)[0, 1] > 0.7


@pytest.mark.parametrize(
  'options, words',
  [
    ({'num_users': 5}, 'at least 10'),
    ({'num_ratings': 10**6}, 'num_ratings is 1000000'),
    ({'hallucination_rate': 1.2}, 'hallucination_rate is 1.2'),
    ({'temperature': 0.0}, 'temperature is 0.0'),
    ({'split_shares': (0.5, 0.5, 0.5)}, 'split_shares'),
    ({'num_pairs': 0}, 'num_pairs is 0'),
    ({'num_archive_items': -1}, 'num_archive_items is -1'),
  ],
)
def test_bad_sizes_are_refused(options, words):
  with pytest.raises(UserError, match=words):
    WorldConfig(**options)
