"""The ranking experiments on MovieLens latest-small, as the README shows them.

`implicit` and `irspack` stand beside WALS in one table: their factors are saved
as tables, which `evaluate` reads like those of `fit_cf`.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import scipy.sparse

from p4lm import main
from p4lm.cf.recency import recency_weights
from p4lm.cf.tables import CFTables
from p4lm.data import rating_arrays
from p4lm.data import tables as data_tables

KNOWN = ('train', 'validation')
# Chosen on validation ratings, as the settings of our experiments were.
IMPLICIT = {
  'leave_one_out': dict(
    factors=128, regularization=2.9, alpha=1.5, iterations=12, half_life=1500.0
  ),
  'global_time': dict(
    factors=96, regularization=31.0, alpha=8.0, iterations=20, half_life=300.0
  ),
}


@pytest.fixture(scope='module', params=list(IMPLICIT))
def fitted(request, data_dir, tmp_path_factory):
  """(split rule, data, WALS fitted by its experiment)."""
  release = data_dir / 'movielens' / 'ml-latest-small'
  if not release.is_dir():
    pytest.skip(f'no {release}: unpack GroupLens ml-latest-small there')
  rule = request.param
  root = tmp_path_factory.mktemp(rule)
  run(
    'make_data', 'DATASET=ml-latest-small', f'DATA_DIR={release}',
    f'OUTPUT_DIR={root / "data"}', f'SPLIT_RULE={rule}',
    'make_data.write_texts=False',
  )  # fmt: skip
  run(
    'fit_cf', f'DATA_DIR={root / "data"}', f'OUTPUT_DIR={root / "wals"}',
    file=f'experiments/wals_{rule}.gin',
  )  # fmt: skip
  return rule, root / 'data', root / 'wals'


def run(job, *arguments, file=None):
  files = [f'--gin_file={file}'] if file else []
  bindings = [f'--gin.{argument}' for argument in arguments]
  assert main.main([job, *files, *bindings]) == 0


def evaluate(data, path, rankers):
  rankers = {name: str(source) for name, source in rankers.items()}
  run(
    'evaluate', f'DATA_DIR={data}', f'OUTPUT_DIR={path}', f'RANKERS={rankers}',
    'RankingConfig.half_life_days=200.0',
  )  # fmt: skip
  return json.loads((path / 'results.json').read_text())


def contrast(results, second, metric='ndcg@20'):
  (found,) = [
    c
    for c in results['contrasts']
    if (c['second'], c['criterion']) == (second, metric)
  ]
  return found


def interactions(data, half_life):
  """The known ratings as a matrix of weights, and the ids of its sides."""
  known = rating_arrays.read_ratings(data, KNOWN)
  weights = np.ones(len(known.ratings), np.float32)
  if half_life is not None:
    weights = recency_weights(known.timestamps, half_life).astype(np.float32)
  matrix = scipy.sparse.csr_matrix(
    (weights, (known.users.codes, known.items.codes)),
    (len(known.users.ids), len(known.items.ids)),
  )
  return matrix, known.users.ids, known.items.ids


def save(path, data, users, items, user_ids, item_ids):
  """Factors of another library where `evaluate` finds them."""
  sha256 = data_tables.hash_file(data / 'ratings.parquet')
  path.mkdir(parents=True, exist_ok=True)
  about = {'ratings_sha256': sha256, 'splits': KNOWN}
  (path / 'config.json').write_text(json.dumps(about))
  CFTables(users, items, user_ids, item_ids).save(path)
  return path


def fit_implicit(data, path, half_life, **options):
  from implicit.cpu.als import AlternatingLeastSquares

  matrix, *ids = interactions(data, half_life)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model = AlternatingLeastSquares(random_state=0, num_threads=1, **options)
    model.fit(matrix, show_progress=False)
  return save(path, data, model.user_factors, model.item_factors, *ids)


def fit_irspack(data, path, about):
  """The same objective as ours, with our settings."""
  from irspack import IALSRecommender

  config = about['factorization']
  matrix, *ids = interactions(data, about['half_life_days'])
  model = IALSRecommender(
    matrix, n_components=config['width'], alpha0=config['alpha0'],
    reg=config['regularization'], nu=config['exponent'], loss_type='IALSPP',
    solver_type='CHOLESKY', train_epochs=config['epochs'], n_threads=1,
    random_seed=0,
  )  # fmt: skip
  model.learn()
  return save(path, data, model.get_user_embedding(),
              model.get_item_embedding(), *ids)  # fmt: skip


def test_wals_beats_popularity(fitted, tmp_path):
  _, data, wals = fitted
  results = evaluate(data, tmp_path, {'WALS': wals})
  found = contrast(results, 'Popularity')
  assert found['verdict'] == 'higher', found
  assert found['absolute_increase']['low'] > 0
  assert contrast(results, 'Random')['verdict'] == 'higher'
  assert results['rankers']['WALS']['unknown_users'] == 0


@pytest.mark.filterwarnings('ignore')
def test_other_libraries_in_the_same_table(fitted, tmp_path):
  for name in ('implicit', 'irspack'):
    pytest.importorskip(name, reason=f"pip install {name}, or 'p4lm[parity]'")
  rule, data, wals = fitted
  about = json.loads((wals / 'config.json').read_text())
  places = {name: wals.with_name(name) for name in ('implicit', 'irspack')}
  rankers = {
    'WALS': wals,
    'implicit': fit_implicit(data, places['implicit'], **IMPLICIT[rule]),
    'irspack': fit_irspack(data, places['irspack'], about),
  }
  results = evaluate(data, wals.with_name('ranking'), rankers)
  rows = {name: row['ndcg@20'] for name, row in results['rankers'].items()}
  # The same objective from another start: the same quality.
  assert contrast(results, 'irspack')['verdict'] == 'not apart'
  for name in rankers:
    assert rows[name]['estimate'] > rows['Popularity']['estimate']
