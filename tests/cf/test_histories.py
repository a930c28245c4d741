"""Users without an id are embedded as the fit embedded its own."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p4lm.cf.histories import HistoryEmbedder
from p4lm.cf.tables import CFTables
from p4lm.errors import UserError
from p4lm.jobs.fit_cf import fit_cf
from p4lm.models.two_tower import TwoTowerConfig
from p4lm.runs.fitting import FitConfig
from p4lm.runs.two_tower_fit import SampledSoftmaxConfig
from p4lm.training.optimizers import OptimizerConfig

USERS, ITEMS = 30, 20


@pytest.fixture(scope='module')
def ratings():
  """{user id: [{'item_id', 'rating'}]}, all of the train split."""
  generator = np.random.default_rng(0)
  rated = generator.random((USERS, ITEMS)) < 0.5
  stars = generator.integers(1, 11, (USERS, ITEMS)) / 2
  return {
    f'u{u}': [
      {'item_id': f'i{i}', 'rating': float(stars[u, i])}
      for i in np.flatnonzero(rated[u])
    ]
    for u in range(USERS)
  }


@pytest.fixture(scope='module')
def data_directory(ratings, tmp_path_factory):
  directory = tmp_path_factory.mktemp('data')
  rows = [(user, e) for user, history in ratings.items() for e in history]
  table = pa.table(
    {
      'user_id': [user for user, _ in rows],
      'item_id': [entry['item_id'] for _, entry in rows],
      'rating': pa.array([e['rating'] for _, e in rows], pa.float32()),
      'timestamp': pa.array(range(len(rows)), pa.int64()),
      'split': ['train'] * len(rows),
    }
  )
  pq.write_table(table, directory / 'ratings.parquet')
  return directory


def training(steps):
  optimizer = OptimizerConfig('adagrad', 0.1, schedule='linear', eps=1e-6)
  return FitConfig('full', optimizer, steps, seed=0)


# Ratings below 3 are no interaction, unless the fit is explicit.
FITS = {
  'explicit': dict(epochs=4, mode='explicit', regularization=0.05),
  'implicit': dict(
    epochs=4, mode='implicit', regularization=0.05, positive_rating=3.0
  ),
  'two_tower': dict(
    method='two_tower',
    two_tower=TwoTowerConfig(hidden_widths=(6,)),
    sampling=SampledSoftmaxConfig(batch_size=32, history_length=4),
    training=training(20),
    positive_rating=3.0,
  ),
}


@pytest.fixture(scope='module', params=FITS)
def fitted(request, data_directory):
  directory = data_directory / request.param
  fit_cf(
    data_dir=str(data_directory),
    output_dir=str(directory),
    width=4,
    **FITS[request.param],
  )
  return directory


def test_training_users_get_their_vectors_back(fitted, ratings):
  tables = CFTables.load(fitted)
  embedder = HistoryEmbedder(fitted, tables)
  for user in ('u0', 'u7', 'u29'):
    found = embedder.embed(ratings[user])
    assert found.dtype == np.float32
    np.testing.assert_allclose(
      found, tables.lookup('user', user), rtol=2e-4, atol=2e-5
    )
    np.testing.assert_allclose(
      embedder.embed(ratings[user][::-1]), found, rtol=1e-4, atol=1e-5
    )


def test_a_raw_table_gives_raw_vectors(fitted, ratings):
  tables = CFTables.load(fitted, scale='raw')
  np.testing.assert_allclose(
    HistoryEmbedder(fitted, tables).embed(ratings['u3']),
    tables.user_embeddings[tables.user_ids.index('u3')],
    rtol=2e-4,
    atol=2e-5,
  )


@pytest.mark.parametrize(
  'history, message',
  [
    ([], 'no item'),
    ('i1', 'must be a list'),
    ([{'rating': 4}], 'must be a list'),
    ([{'item_id': 'nowhere', 'rating': 4}], "'nowhere', which no fit"),
    ([{'item_id': 'i1', 'rating': 'good'}], "must be a number, got 'good'"),
    ([{'item_id': 'i1', 'rating': True}], 'must be a number, got True'),
    ([{'item_id': 'i1', 'rating': float('nan')}], 'is nan'),
    ([{'item_id': 'i1', 'rating': 4.0}] * 2, "'i1' twice"),
  ],
)
def test_a_bad_history_is_told(fitted, history, message):
  embedder = HistoryEmbedder(fitted, CFTables.load(fitted))
  with pytest.raises(UserError, match=message):
    embedder.embed(history)


def test_explicit_fits_need_ratings_and_implicit_ones_do_not(fitted):
  embedder = HistoryEmbedder(fitted, CFTables.load(fitted))
  history = [{'item_id': 'i1'}, {'item_id': 'i2'}]
  if fitted.name == 'explicit':
    with pytest.raises(UserError, match='must be a number, got None'):
      embedder.embed(history)
  else:
    seen = [{'item_id': name, 'rating': 3.0} for name in ('i1', 'i2')]
    disliked = {'item_id': 'i3', 'rating': 1.0}
    np.testing.assert_allclose(
      embedder.embed(history), embedder.embed([*seen, disliked]), rtol=1e-6
    )


def test_a_tower_of_ids_refuses_histories(data_directory, tmp_path):
  fit_cf(
    data_dir=str(data_directory), output_dir=str(tmp_path), width=4,
    training=training(2), method='two_tower',
    two_tower=TwoTowerConfig(user_tower='id'),
    sampling=SampledSoftmaxConfig(batch_size=8),
  )  # fmt: skip
  tables = CFTables.load(tmp_path)
  assert np.linalg.norm(tables.lookup('user', 'u3')) > 0
  with pytest.raises(UserError, match="'id', which knows users by their ids"):
    HistoryEmbedder(tmp_path, tables)


def test_a_lost_tower_is_told(fitted, tmp_path):
  about = {
    'method': 'two_tower',
    'two_tower': {'user_tower': 'history'},
    'positive_rating': 0.0,
  }
  (tmp_path / 'config.json').write_text(json.dumps(about))
  with pytest.raises(UserError, match='history_tower.npz is missing'):
    HistoryEmbedder(tmp_path, CFTables.load(fitted))


def test_tables_of_unknown_origin_are_told(fitted, tmp_path):
  with pytest.raises(UserError, match='how its CF tables were fitted'):
    HistoryEmbedder(tmp_path, CFTables.load(fitted))
