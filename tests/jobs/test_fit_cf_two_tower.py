"""fit_cf by two towers: tables, kills, devices, real ratings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p4lm import configuration
from p4lm.cf.tables import CFTables
from p4lm.data import rating_arrays
from p4lm.errors import UserError
from p4lm.jobs import fit_cf as job
from p4lm.jobs.infer import _Prompts
from p4lm.runs import two_tower_fit

USERS, ITEMS, KINDS = 60, 48, 4
STEPS = 60
OPTIONS = {
  'METHOD': 'two_tower',
  'SEED': 1,
  'STEPS': STEPS,
  'BATCH_SIZE': 64,
  'fit_cf.width': 8,
  'FitConfig.log_every': 10,
  'FitConfig.checkpoint_every': 20,
  'SampledSoftmaxConfig.extra_negatives': 16,
  'SampledSoftmaxConfig.history_length': 6,
}


@pytest.fixture(scope='module')
def ratings_dir(tmp_path_factory):
  """Users who rate films of their own kind mostly; 'new' never in training."""
  generator = np.random.default_rng(0)
  same = np.arange(USERS)[:, None] % KINDS == np.arange(ITEMS)[None] % KINDS
  chances = np.where(same, 0.7, 0.06)
  users, items = np.nonzero(generator.random((USERS, ITEMS)) < chances)
  split = np.where(np.arange(len(users)) % 6 == 0, 'validation', 'train')
  table = pa.table(
    {
      'user_id': [f'u{u}' for u in users] + ['new'],
      'item_id': [str(i) for i in items] + ['0'],
      'rating': pa.array([4.0] * (len(users) + 1), pa.float32()),
      'timestamp': pa.array(range(len(users) + 1), pa.int64()),
      'split': [*split, 'validation'],
    }
  )
  path = tmp_path_factory.mktemp('data')
  pq.write_table(table, path / 'ratings.parquet')
  return path


def bindings(data_dir, output_dir, **options):
  values = {'DATA_DIR': data_dir, 'OUTPUT_DIR': output_dir, **OPTIONS}
  return [f'{name}={value}' for name, value in (values | options).items()]


def fit(*arguments, **options):
  configuration.run('fit_cf', [], bindings(*arguments, **options))


def command(*arguments, **options):
  flags = [f'--gin.{b}' for b in bindings(*arguments, **options)]
  return [sys.executable, '-m', 'p4lm.main', 'fit_cf', *flags]


def metrics(directory):
  """Logged rows without the rates, which no two runs share."""
  lines = (directory / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  kept = lambda k: 'per_second' not in k and k != 'goodput'
  return [{k: v for k, v in r.items() if kept(k)} for r in rows]


@pytest.fixture(scope='module')
def fitted(ratings_dir, tmp_path_factory):
  directory = tmp_path_factory.mktemp('fitted') / 'cf'
  fit(ratings_dir, directory)
  return directory


def test_writes_tables_of_the_training_ids(ratings_dir, fitted):
  tables = CFTables.load(fitted, scale='raw')
  train = rating_arrays.read_ratings(ratings_dir, ['train'])
  assert tables.user_ids == train.users.ids
  assert tables.item_ids == train.items.ids
  assert 'new' not in tables.user_ids
  for table in (tables.user_embeddings, tables.item_embeddings):
    assert table.shape[1] == 8
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1.0, rtol=1e-5)
  report = json.loads((fitted / 'fit.json').read_text())
  assert report['train_ratings'] == len(train.ratings)
  assert report['validation_ratings_of_unknown_ids'] == 1
  assert report['empty_users'] == report['empty_items'] == 0
  assert report['steps'] == STEPS
  rows = metrics(fitted)
  assert [row['step'] for row in rows] == [10, 20, 30, 40, 50, 60]
  assert rows[-1]['loss'] == report['loss'] < rows[0]['loss'] - 0.2
  assert report['validation_ndcg@20_gain']['low'] > 0.1
  assert 'item_tower/table' in (fitted / 'model-info.txt').read_text()
  assert not (fitted / 'checkpoints').exists()


def test_items_of_a_kind_are_nearest(fitted):
  tables = CFTables.load(fitted)
  kinds = np.array([int(id_) % KINDS for id_ in tables.item_ids])
  own = np.array([int(id_[1:]) % KINDS for id_ in tables.user_ids])
  best = np.argmax(tables.user_embeddings @ tables.item_embeddings.T, axis=1)
  assert np.mean(kinds[best] == own) > 0.95


def test_a_killed_job_ends_with_the_same_bits(ratings_dir, fitted, tmp_path):
  directory = tmp_path / 'cf'
  arguments = command(ratings_dir, directory)
  process = subprocess.Popen(
    arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
  )
  end = time.monotonic() + 300
  while not (directory / 'checkpoints' / '20').exists():
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < end, 'no checkpoint appeared'
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stderr.close()
  assert not (directory / 'tables.json').exists()
  # Another experiment must not go on from what is there.
  with pytest.raises(UserError, match='holds another experiment'):
    fit(ratings_dir, directory, SEED=2)
  subprocess.run(arguments, check=True, capture_output=True)
  assert CFTables.load(directory).sha256 == CFTables.load(fitted).sha256
  assert metrics(directory) == metrics(fitted)
  for name in ('fit.json', 'config.json'):
    assert (directory / name).read_text() == (fitted / name).read_text()


def test_checkpoints_of_other_ratings_are_refused(
  ratings_dir, tmp_path, monkeypatch
):
  """The command may be the same and the data in DATA_DIR others."""
  data = tmp_path / 'data'
  data.mkdir()
  ratings = pq.read_table(ratings_dir / 'ratings.parquet')
  pq.write_table(ratings, data / 'ratings.parquet')
  monkeypatch.setattr(job, '_about_fit', None)
  with pytest.raises(TypeError):
    fit(data, tmp_path / 'cf')
  assert (tmp_path / 'cf' / 'checkpoints' / '60').exists()
  monkeypatch.undo()
  pq.write_table(ratings.slice(0, 400), data / 'ratings.parquet')
  with pytest.raises(
    UserError, match='checkpoints of a fit with other ratings'
  ):
    fit(data, tmp_path / 'cf')
  pq.write_table(ratings, data / 'ratings.parquet')
  fit(data, tmp_path / 'cf')
  assert CFTables.load(tmp_path / 'cf').width == 8


def test_finished_tables_are_kept_and_others_refused(
  ratings_dir, fitted, capsys, monkeypatch
):
  monkeypatch.setattr(two_tower_fit, 'fit_two_tower', None)
  fit(ratings_dir, fitted)
  assert 'kept' in capsys.readouterr().out
  with pytest.raises(UserError, match='of other ratings or another config'):
    fit(ratings_dir, fitted, STEPS=STEPS + 1)


@pytest.mark.parametrize(
  ('user_tower', 'mesh'),
  [('history', 'data=2,fsdp=2'), ('id', 'fsdp=2,model=2')],
)
def test_four_devices_give_one_devices_tables(
  user_tower, mesh, ratings_dir, tmp_path
):
  tables = {}
  for devices, shape in ((1, 'data=1'), (4, mesh)):
    flags = f'--xla_force_host_platform_device_count={devices}'
    options = {'USER_TOWER': user_tower, 'MESH_SHAPE': shape, 'STEPS': 20}
    options['TwoTowerConfig.hidden_widths'] = '(16,)'
    directory = tmp_path / str(devices)
    subprocess.run(
      command(ratings_dir, directory, **options),
      env={**os.environ, 'XLA_FLAGS': flags},
      check=True,
      capture_output=True,
    )
    tables[devices] = CFTables.load(directory, scale='raw')
  for name in ('user_embeddings', 'item_embeddings'):
    one, four = (getattr(tables[devices], name) for devices in (1, 4))
    np.testing.assert_allclose(four, one, atol=1e-5, err_msg=name)


def test_a_loss_that_is_not_finite_ends_the_job(ratings_dir, tmp_path):
  options = {'LEARNING_RATE': 1e30, 'TwoTowerConfig.normalize': False}
  with pytest.raises(UserError, match='is (nan|inf) at step .*learning rate'):
    fit(ratings_dir, tmp_path, **options, **{'FitConfig.log_every': 1})
  assert not (tmp_path / 'tables.json').exists()


@pytest.mark.parametrize(
  'options, message',
  [
    ({'METHOD': 'als'}, "METHOD is 'als'; choose one of wals, two_tower"),
    ({'USER_TOWER': 'mlp'}, "user_tower is 'mlp'"),
    ({'BATCH_SIZE': 1}, 'batch_size is 1; it must be at least 2'),
    ({'STEPS': 0}, 'STEPS is 0; it must be >= 1'),
    ({'fit_cf.width': 0}, 'width is 0; it must be >= 1'),
    ({'fit_cf.positive_rating': 4.5}, 'positive_rating 4.5; lower it'),
    (
      {'SampledSoftmaxConfig.correction': 'logq'},
      "correction is 'logq'; choose one of importance, posterior, none",
    ),
    (
      {'SampledSoftmaxConfig.user_exponent': -1.0},
      'user_exponent is -1.0; it must be finite and >= 0',
    ),
  ],
)
def test_mistakes_get_one_message(options, message, ratings_dir, tmp_path):
  with pytest.raises(UserError, match=message):
    fit(ratings_dir, tmp_path / 'cf', **options)
  assert not (tmp_path / 'cf' / 'tables.json').exists()


def test_a_batch_that_the_mesh_does_not_divide(ratings_dir, tmp_path):
  flags = '--xla_force_host_platform_device_count=4'
  done = subprocess.run(
    command(ratings_dir, tmp_path, BATCH_SIZE=66),
    env={**os.environ, 'XLA_FLAGS': flags}, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 1
  assert 'batch_size is 66, which cannot be split over the 4' in done.stderr


def test_infer_answers_histories_or_says_why_not(
  ratings_dir, fitted, tmp_path, monkeypatch
):
  """A tower of histories embeds them; one of ids gives an error a request."""
  fit(ratings_dir, tmp_path / 'ids', USER_TOWER='id', STEPS=2)
  monkeypatch.setattr(
    'p4lm.jobs.infer.writing_request',
    lambda *arguments, **options: options['user_vector'],
  )
  history = [{'item_id': '1'}, {'item_id': '5', 'rating': 4}]
  found = {}
  for name, directory in (('history', fitted), ('id', tmp_path / 'ids')):
    model = SimpleNamespace(
      vocabulary=SimpleNamespace(soft_token_id=3),
      card=SimpleNamespace(cf_dir=str(directory)),
      cf_tables=CFTables.load(directory),
    )
    prompts = _Prompts(model, catalogue=object(), task=None)
    found[name] = prompts.of([{'custom_id': 'a', 'history': history}])
  vectors, errors = found['history']
  assert not errors
  np.testing.assert_allclose(np.linalg.norm(vectors[0]), 1.0, rtol=1e-5)
  answers, errors = found['id']
  assert not answers
  assert 'give a user_id instead of a history' in errors[0]


def test_ratings_of_make_data_on_the_command_line(tmp_path):
  p4lm = [sys.executable, '-m', 'p4lm.main']
  world = {'num_users': 40, 'num_items': 40, 'num_archive_items': 20}
  world |= {'num_ratings': 700}
  subprocess.run(
    [
      *p4lm, 'make_data', f'--gin.OUTPUT_DIR={tmp_path / "data"}',
      '--gin.make_data.write_texts=False', '--gin.SPLIT_RULE=leave_one_out',
      *(f'--gin.WorldConfig.{name}={n}' for name, n in world.items()),
    ],
    check=True, capture_output=True,
  )  # fmt: skip
  done = subprocess.run(
    [
      *p4lm, 'fit_cf', '--gin.METHOD=two_tower', '--gin.STEPS=20',
      '--gin.BATCH_SIZE=64', f'--gin.DATA_DIR={tmp_path / "data"}',
      f'--gin.OUTPUT_DIR={tmp_path / "cf"}',
    ],
    check=True, capture_output=True, text=True,
  )  # fmt: skip
  assert 'validation NDCG@20' in done.stdout
  assert ' s left' in done.stderr and 'steps_per_second' in done.stderr
  tables = CFTables.load(tmp_path / 'cf')
  assert len(tables.user_ids) == 40 and tables.width == 64


def test_beats_popularity_on_movielens(data_dir, tmp_path):
  """The last but one rating of each user, from all before it."""
  release = data_dir / 'movielens' / 'ml-latest-small'
  if not release.is_dir():
    pytest.skip(f'no {release}: unpack GroupLens ml-latest-small there')
  configuration.run(
    'make_data',
    [],
    [
      'DATASET=movielens', f'DATA_DIR={release}',
      f'OUTPUT_DIR={tmp_path / "data"}', 'SPLIT_RULE=leave_one_out',
      'make_data.write_texts=False',
    ],
  )  # fmt: skip
  configuration.run(
    'fit_cf',
    [],
    [
      'METHOD=two_tower', f'DATA_DIR={tmp_path / "data"}',
      f'OUTPUT_DIR={tmp_path / "cf"}', 'STEPS=200',
    ],
  )  # fmt: skip
  report = json.loads((tmp_path / 'cf' / 'fit.json').read_text())
  assert report['validation_ratings'] > 580
  assert report['validation_ndcg@20_gain']['low'] > 0
