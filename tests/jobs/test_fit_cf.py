"""The job: what it writes, going on after a kill, keeping, refusing."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p4lm import configuration
from p4lm.cf.factorization import FactorizationConfig, Interactions, fit
from p4lm.cf.tables import CFTables
from p4lm.data import rating_arrays
from p4lm.errors import UserError
from p4lm.jobs.fit_cf import fit_cf
from p4lm.runs import wals_fit

USERS, ITEMS = 50, 40


@pytest.fixture(scope='module')
def ratings_dir(tmp_path_factory):
  """Ratings of planted rank 2; user 'new' has no training rating."""
  generator = np.random.default_rng(0)
  tastes, films = (
    generator.normal(size=(USERS, 2)),
    generator.normal(size=(ITEMS, 2)),
  )
  users, items = np.nonzero(generator.random((USERS, ITEMS)) < 0.6)
  stars = np.clip(3 + tastes @ films.T, 0.5, 5)[users, items]
  split = np.where(np.arange(len(users)) % 5 == 0, 'validation', 'train')
  table = pa.table(
    {
      'user_id': [f'u{u}' for u in users] + ['new'],
      'item_id': [str(i) for i in items] + ['0'],
      'rating': pa.array([*stars, 3.0], pa.float32()),
      'timestamp': pa.array(range(len(users) + 1), pa.int64()),
      'split': [*split, 'validation'],
    }
  )
  path = tmp_path_factory.mktemp('data')
  pq.write_table(table, path / 'ratings.parquet')
  return path


OPTIONS = dict(width=4, epochs=6, regularization=0.02, seed=1)


def read_metrics(directory):
  lines = (directory / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope='module')
def fitted(ratings_dir, tmp_path_factory):
  directory = tmp_path_factory.mktemp('fitted') / 'cf'
  fit_cf(data_dir=str(ratings_dir), output_dir=str(directory), **OPTIONS)
  return directory


def test_writes_tables_of_the_training_ids(ratings_dir, fitted):
  tables = CFTables.load(fitted)
  train = rating_arrays.read_ratings(ratings_dir, ['train'])
  assert tables.user_ids == train.users.ids
  assert tables.item_ids == train.items.ids
  assert 'new' not in tables.user_ids
  assert tables.width == 4
  report = json.loads((fitted / 'fit.json').read_text())
  assert report['validation_ratings_of_unknown_ids'] == 1
  assert report['empty_users'] == report['empty_items'] == 0
  assert report['validation_rmse'] < 0.6 * report['validation_rmse_biases']
  objectives = [line['objective'] for line in read_metrics(fitted)]
  assert [line['step'] for line in read_metrics(fitted)] == list(range(1, 7))
  assert objectives == sorted(objectives, reverse=True)
  assert objectives[-1] == report['objective']
  with np.load(fitted / 'biases.npz', allow_pickle=False) as biases:
    assert biases['users'].shape == (len(tables.user_ids),)
  assert not (fitted / 'fit.npz').exists()


def test_killed_job_ends_with_the_same_bits(
  ratings_dir, fitted, tmp_path, monkeypatch
):
  directory = tmp_path / 'cf'
  write = wals_fit.MetricWriter.write

  def die(self, epoch, metrics):
    write(self, epoch, metrics)
    if epoch == 3:
      raise KeyboardInterrupt

  monkeypatch.setattr(wals_fit.MetricWriter, 'write', die)
  with pytest.raises(KeyboardInterrupt):
    fit_cf(data_dir=str(ratings_dir), output_dir=str(directory), **OPTIONS)
  monkeypatch.undo()
  assert (directory / 'fit.npz').exists()
  with pytest.raises(UserError, match='no finished CF tables'):
    CFTables.load(directory)
  fit_cf(data_dir=str(ratings_dir), output_dir=str(directory), **OPTIONS)
  assert CFTables.load(directory).sha256 == CFTables.load(fitted).sha256
  assert (directory / 'fit.json').read_text() == (
    fitted / 'fit.json'
  ).read_text()
  # Only the time that an epoch took may differ.
  lines = [
    [(line['step'], line['objective']) for line in read_metrics(found)]
    for found in (directory, fitted)
  ]
  assert lines[0] == lines[1]
  assert all(line['epoch_secs'] > 0 for line in read_metrics(directory))


def test_finished_tables_are_kept_and_others_refused(
  ratings_dir, fitted, capsys, monkeypatch
):
  monkeypatch.setattr(wals_fit, 'fit', None)
  fit_cf(data_dir=str(ratings_dir), output_dir=str(fitted), **OPTIONS)
  assert 'kept' in capsys.readouterr().out
  with pytest.raises(UserError, match='of other ratings or another config'):
    fit_cf(
      data_dir=str(ratings_dir), output_dir=str(fitted), **OPTIONS | {'seed': 2}
    )


def test_implicit_mode_reports_ranking(ratings_dir, tmp_path, capsys):
  fit_cf(
    data_dir=str(ratings_dir), output_dir=str(tmp_path), mode='implicit',
    width=4, epochs=2, alpha0=0.1, regularization=0.01, positive_rating=3.5,
  )  # fmt: skip
  report = json.loads((tmp_path / 'fit.json').read_text())
  assert 0 < report['validation_ndcg@20'] <= 1
  gain = report['validation_ndcg@20_gain']
  assert gain['low'] <= gain['estimate'] <= gain['high']
  assert gain['estimate'] == pytest.approx(
    report['validation_ndcg@20'] - report['validation_ndcg@20_popularity']
  )
  assert 'NDCG@20' in capsys.readouterr().out
  with pytest.raises(UserError, match='positive_rating 5.5'):
    fit_cf(
      data_dir=str(ratings_dir), output_dir=str(tmp_path / 'none'),
      mode='implicit', positive_rating=5.5,
    )  # fmt: skip


def test_a_half_life_weighs_ratings_by_age(ratings_dir, tmp_path):
  """Timestamps are whole seconds: a half-life of 100 s is 2^(-age / 100)."""
  fit_cf(
    data_dir=str(ratings_dir), output_dir=str(tmp_path), mode='implicit',
    width=4, epochs=3, alpha0=0.1, confidence='linear', confidence_scale=0.5,
    half_life_days=100 / 86400,
  )  # fmt: skip
  train = rating_arrays.read_ratings(ratings_dir, ['train'])
  ages = (train.timestamps.max() - train.timestamps).astype(float)
  assert ages.max() > 500
  weights = (1 + 0.5 * train.ratings.astype(float)) * 0.5 ** (ages / 100)
  expected = fit(
    Interactions(
      train.users.codes, train.items.codes, train.ratings,
      len(train.users.ids), len(train.items.ids), weights,
    ),
    FactorizationConfig(width=4, epochs=3, alpha0=0.1, regularization=0.1),
  )  # fmt: skip
  tables = CFTables.load(tmp_path)
  np.testing.assert_allclose(
    tables.user_embeddings, expected.user_embeddings, rtol=1e-4, atol=1e-7
  )
  np.testing.assert_allclose(
    tables.item_embeddings, expected.item_embeddings, rtol=1e-4, atol=1e-7
  )


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(splits=('train', 'test')), 'the test ratings judge'),
    (dict(splits=()), 'splits is'),
    (dict(splits='train'), "splits is 'train'"),
    (dict(half_life_days=30.0), "the mode is 'explicit'"),
    (dict(half_life_days=-1.0, mode='implicit'), 'half_life_days is -1'),
  ],
)
def test_bad_options_leave_nothing(ratings_dir, tmp_path, options, message):
  with pytest.raises(UserError, match=message):
    fit_cf(
      data_dir=str(ratings_dir), output_dir=str(tmp_path / 'cf'), **options
    )
  left = list((tmp_path / 'cf').glob('*')) if (tmp_path / 'cf').exists() else []
  assert not [path for path in left if path.name != '.running']


def test_missing_ratings(tmp_path):
  with pytest.raises(UserError, match='ratings.parquet does not exist'):
    fit_cf(data_dir=str(tmp_path), output_dir=str(tmp_path / 'cf'))


def test_runs_from_its_gin_file(ratings_dir, fitted, tmp_path):
  configuration.run(
    'fit_cf',
    [],
    [
      f'DATA_DIR={ratings_dir}',
      f'OUTPUT_DIR={tmp_path}',
      'SEED=1',
      'fit_cf.width=4',
      'fit_cf.epochs=6',
      'fit_cf.regularization=0.02',
    ],
  )
  assert CFTables.load(tmp_path).sha256 == CFTables.load(fitted).sha256
  assert (tmp_path / 'config.gin').exists()
