"""From ratings to the ranking table through the command line, as a user."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from p4lm import main
from p4lm.cf.tables import CFTables

RULES = ('random_by_user', 'leave_one_out', 'global_time')


def run(job, *arguments):
  return main.main([job, *(f'--gin.{argument}' for argument in arguments)])


def write_release(path, seed=0):
  """Ratings of 60 users with tastes at random times, as MovieLens' files."""
  generator = np.random.default_rng(seed)
  tastes = generator.normal(size=(60, 2)) @ generator.normal(size=(2, 80))
  popular = generator.normal(size=80)
  rated = tastes + popular + generator.normal(size=(60, 80)) > 1.2
  lines = [
    f'{user + 1},{item + 1},{generator.integers(1, 11) / 2},'
    f'{generator.integers(0, 10**8)}'
    for user, item in zip(*np.nonzero(rated))
  ]
  films = [f'{item + 1},Film {item + 1} (2000),Drama' for item in range(80)]
  path.mkdir(parents=True)
  for name, head, rows in (
    ('ratings', 'userId,movieId,rating,timestamp', lines),
    ('movies', 'movieId,title,genres', films),
  ):
    (path / f'{name}.csv').write_text('\n'.join([head, *rows]) + '\n')
  return path


def make_data(path, rule, seed=0):
  """The tables of such a release, without texts."""
  release = write_release(path.with_name(f'{path.name}_release'), seed)
  assert run(
    'make_data', 'DATASET=movielens', f'DATA_DIR={release}',
    f'OUTPUT_DIR={path}', f'SPLIT_RULE={rule}', 'make_data.write_texts=False',
  ) == 0  # fmt: skip
  return path


def fit(data, path, *arguments):
  assert run(
    'fit_cf', f'DATA_DIR={data}', f'OUTPUT_DIR={path}', 'fit_cf.mode=implicit',
    'fit_cf.width=4', 'fit_cf.epochs=3', 'fit_cf.alpha0=0.1', *arguments,
  ) == 0  # fmt: skip
  return path


def evaluate(data, path, rankers, *arguments):
  rankers = repr({name: str(source) for name, source in rankers.items()})
  return run(
    'evaluate', f'DATA_DIR={data}', f'OUTPUT_DIR={path}', f'RANKERS={rankers}',
    *arguments,
  )  # fmt: skip


@pytest.fixture(scope='module', params=RULES)
def world(request, tmp_path_factory):
  """(directory, data, two fits) of a split rule."""
  root = tmp_path_factory.mktemp(request.param)
  data = make_data(root / 'data', request.param)
  return root, data, fit(data, root / 'cf'), fit(data, root / 'other', 'SEED=1')


def hand_ndcg(data, cf, k):
  """NDCG@k of each user of a fit, by loops over the tables."""
  rows = pq.read_table(data / 'ratings.parquet').to_pylist()
  tables = CFTables.load(cf, scale='raw')
  users = dict(zip(tables.user_ids, tables.user_embeddings))
  rated, held = {}, {}
  for row in rows:
    split = held if row['split'] == 'test' else rated
    split.setdefault(row['user_id'], set()).add(row['item_id'])
  values = {}
  for user in users:
    if user in held:
      scores = tables.item_embeddings @ users[user]
      order = np.argsort(-scores, kind='stable')
      names = [tables.item_ids[row] for row in order]
      names = [name for name in names if name not in rated[user]][:k]
      gain = sum(
        1 / np.log2(rank + 2)
        for rank, name in enumerate(names)
        if name in held[user]
      )
      ideal = sum(1 / np.log2(r + 2) for r in range(min(k, len(held[user]))))
      values[user] = gain / ideal
  return values


def test_one_command_makes_the_table(world, capsys):
  root, data, cf, other = world
  rankers = {'WALS': cf, 'Other': other}
  options = ('CUTOFFS=(5, 10)', 'RankingConfig.samples=200')
  assert evaluate(data, root / 'ranking', rankers, *options) == 0
  screen = capsys.readouterr().out
  results = json.loads((root / 'ranking' / 'results.json').read_text())
  assert list(results['rankers']) == [
    'WALS', 'Other', 'Popularity', 'Recent popularity', 'Random',
  ]  # fmt: skip
  for k in (5, 10):
    expected = hand_ndcg(data, cf, k)
    found = results['rankers']['WALS']
    assert found['users'] == len(expected) > 5
    mean = np.mean(list(expected.values()))
    assert found[f'ndcg@{k}']['estimate'] == pytest.approx(mean, abs=1e-6)
  (gain,) = [
    contrast['absolute_increase']
    for contrast in results['contrasts']
    if (contrast['second'], contrast['criterion']) == ('Other', 'ndcg@10')
  ]
  theirs = hand_ndcg(data, other, 10)
  assert gain['low'] <= gain['estimate'] <= gain['high']
  assert gain['estimate'] == pytest.approx(
    np.mean([value - theirs[user] for user, value in expected.items()]),
    abs=1e-6,
  )
  assert root.name.rstrip('0123456789') == results['facts']['split rule']
  page = (root / 'ranking' / 'report' / 'index.html').read_text()
  markdown = (root / 'ranking' / 'results.md').read_text()
  for text in (screen, page, markdown):
    assert 'NDCG@5' in text and 'ties to the lower row' in text
    assert 'cold users' in text and 'of cold items (misses)' in text
  (line,) = (root / 'ranking' / 'metrics.jsonl').read_text().splitlines()
  metrics = json.loads(line)
  assert metrics['WALS/ndcg_at_10'] == pytest.approx(mean, abs=1e-6)
  assert metrics['Recent_popularity/coverage_at_5'] > 0
  assert (root / 'ranking' / 'config.gin').exists()


def test_the_same_command_gives_the_same_files(world):
  root, data, cf, _ = world
  found = []
  for _ in range(2):
    options = ('RankingConfig.samples=50', 'SEED=3')
    assert evaluate(data, root / 'again', {'WALS': cf}, *options) == 0
    names = ('results.json', 'results.md', 'metrics.jsonl', 'report/index.html')
    found.append([(root / 'again' / name).read_bytes() for name in names])
  assert found[0] == found[1]


def test_fits_that_know_the_validation_ratings(world, tmp_path, capsys):
  _, data, cf, _ = world
  late = fit(data, tmp_path / 'late', "fit_cf.splits=('train', 'validation')")
  about = json.loads((late / 'fit.json').read_text())
  rows = pq.read_table(data / 'ratings.parquet').to_pylist()
  assert about['train_ratings'] == sum(r['split'] != 'test' for r in rows)
  assert not any(name.startswith('validation') for name in about)
  options = ('RankingConfig.samples=50',)
  assert evaluate(data, tmp_path / 'a', {'Late': late}, *options) == 0
  capsys.readouterr()
  assert evaluate(data, tmp_path / 'b', {'Late': late}, 'SPLIT=validation') == 1
  assert "so 'validation' cannot judge" in capsys.readouterr().err
  assert evaluate(data, tmp_path / 'c', {'L': late, 'E': cf}) == 1
  assert 'fitted on different splits' in capsys.readouterr().err


def test_what_fit_cf_reports_is_what_evaluate_finds(world, tmp_path):
  _, data, cf, _ = world
  options = ('SPLIT=validation', 'RankingConfig.samples=2000')
  assert evaluate(data, tmp_path, {'WALS': cf}, *options) == 0
  about = json.loads((cf / 'fit.json').read_text())
  found = json.loads((tmp_path / 'results.json').read_text())
  rows = found['rankers']
  assert rows['WALS']['users'] == about['validation_users']
  for name, key in (('WALS', ''), ('Popularity', '_popularity')):
    mean = about[f'validation_ndcg@20{key}']
    assert rows[name]['ndcg@20']['estimate'] == pytest.approx(mean, rel=1e-12)
  gain = found['contrasts'][0]['absolute_increase']
  assert gain == pytest.approx(about['validation_ndcg@20_gain'], rel=1e-12)


def test_an_explicit_fit_ranks_by_its_biases_too(world, tmp_path):
  _, data, _, _ = world
  cf = fit(data, tmp_path / 'cf', 'fit_cf.mode=explicit')
  assert evaluate(data, tmp_path / 'out', {'Ratings': cf}) == 0
  results = json.loads((tmp_path / 'out' / 'results.json').read_text())
  assert results['rankers']['Ratings']['unknown_users'] == 0


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['CUTOFFS=(0,)'], 'the cut-off k is 0'),
    (['CUTOFFS=20'], '--gin.CUTOFFS=20: '),
    (['SPLIT=train'], "no split 'train' to judge by"),
    (["CONTRASTS=(('WALS', 'ALS'),)"], "CONTRASTS names 'ALS'"),
    (['RankingConfig.relevant_rating=9.0'], 'relevant_rating 9'),
    (['RankingConfig.half_life_days=0.0'], 'half_life_days is 0'),
    (['RankingConfig.samples=0'], 'samples is 0'),
    (["SYSTEMS={'SFT': 'x'}"], 'either SYSTEMS'),
  ],
)
def test_bad_input_is_one_message(world, tmp_path, capsys, arguments, message):
  _, data, cf, _ = world
  assert evaluate(data, tmp_path / 'out', {'WALS': cf}, *arguments) == 1
  error = capsys.readouterr().err
  assert message in error and 'Traceback' not in error
  assert not (tmp_path / 'out' / 'results.json').exists()


def test_other_directories_are_told(world, tmp_path, capsys):
  root, data, cf, _ = world
  other = make_data(tmp_path / 'data', 'leave_one_out', seed=1)
  assert evaluate(other, tmp_path / 'a', {'WALS': cf}) == 1
  assert 'was fitted on other ratings than' in capsys.readouterr().err
  assert evaluate(data, tmp_path / 'b', {'WALS': root / 'data'}) == 1
  assert 'no finished CF tables' in capsys.readouterr().err
  assert evaluate(data, tmp_path / 'c', {'Random': cf}) == 1
  assert (
    "the name 'Random', which is a reference row" in capsys.readouterr().err
  )
  assert evaluate(root, tmp_path / 'd', {'WALS': cf}) == 1
  assert 'manifest.json' in capsys.readouterr().err
  assert evaluate(data, tmp_path / 'e', {}) == 1
  assert 'either SYSTEMS' in capsys.readouterr().err


def test_users_of_whom_nothing_is_known(tmp_path, capsys):
  data = make_data(tmp_path / 'data', 'user_disjoint')
  cf = fit(data, tmp_path / 'cf')
  assert evaluate(data, tmp_path / 'out', {'WALS': cf}) == 1
  error = capsys.readouterr().err
  assert 'has a rating in train' in error and 'another SPLIT_RULE' in error
