"""make_data: the world and a release, whole, again, and broken."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from p4lm import main
from p4lm.data import splits, tables
from p4lm.data.vocabulary import Vocabulary
from p4lm.data.world import GoldScorer, WorldConfig
from p4lm.errors import UserError
from p4lm.jobs.make_data import make_data
from p4lm.writers.template import TemplateConfig

WORLD = WorldConfig(
  num_users=40,
  num_items=60,
  num_archive_items=20,
  num_ratings=1200,
  num_pitches=60,
  num_pairs=60,
  num_entailment=60,
  num_relevance=60,
  num_rl_prompts=40,
)
WRITER = TemplateConfig(
  num_pitches=60,
  num_pairs=60,
  num_entailment=60,
  num_relevance=60,
  num_rl_prompts=40,
  min_theme_items=1,
)
SMALL = {'world': WORLD, 'num_evaluation_pairs': 20, 'vocabulary_size': 700}
TEXT_TABLES = ('texts', 'pairs', 'relevance', 'rl_prompts')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  directory = tmp_path_factory.mktemp('world') / 'data'
  make_data(output_dir=str(directory), seed=3, **SMALL)
  return directory


def _hashes(directory):
  return {
    path.relative_to(directory).as_posix(): tables.hash_file(path)
    for path in directory.rglob('*')
    if path.is_file()
  }


def test_every_table_is_there_and_the_manifest_is_true(made):
  manifest = tables.read_manifest(made)
  # The world's raters always prefer one text.
  for name in tables.SCHEMAS.keys() - {'ties'}:
    assert len(tables.read_table(made, name)) == manifest['counts'][name]
  files = {
    name: {
      'sha256': hashlib.sha256((made / name).read_bytes()).hexdigest(),
      'bytes': (made / name).stat().st_size,
    }
    for name in _hashes(made)
    if name != 'manifest.json'
  }
  assert manifest['files'] == files
  assert manifest['dataset'] == 'world' and manifest['seed'] == 3
  assert manifest['parameters']['texts']['seed'] == 3
  ratings = tables.read_table(made, 'ratings')
  assert manifest['split_hash'] == splits.split_hash(ratings)
  assert manifest['dropped'] == {}


def test_the_world_does_not_leak(made):
  texts = {name: tables.read_table(made, name) for name in TEXT_TABLES}
  pairs = tables.read_table(made, 'evaluation_pairs')
  assert len(pairs) == 20
  splits.check_leakage(tables.read_table(made, 'ratings'), pairs, texts)


def test_vocabulary_and_truth_can_be_loaded(made):
  vocabulary = Vocabulary.load(made / 'vocabulary.model')
  assert vocabulary.size <= 700
  text = tables.read_table(made, 'texts')['text'][0].as_py()
  assert vocabulary.decode(vocabulary.encode(text)) == text
  pairs = tables.read_table(made, 'evaluation_pairs').to_pydict()
  scores = GoldScorer.load(made).score(
    pairs['writer_text'], pairs['user_id'], pairs['item_id']
  )
  assert np.mean(scores['precision']) > 0.5


def test_the_same_parameters_give_the_same_bytes(made, tmp_path):
  make_data(output_dir=str(tmp_path / 'data'), seed=3, **SMALL)
  assert _hashes(tmp_path / 'data') == _hashes(made)


def test_again_it_does_nothing(made, capsys):
  before = {p: p.stat().st_mtime_ns for p in made.rglob('*')}
  make_data(output_dir=str(made), seed=3, **SMALL)
  assert 'already made' in capsys.readouterr().out
  assert before == {p: p.stat().st_mtime_ns for p in made.rglob('*')}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'seed': 4}, 'seed: 3 there, 4 now'),
    (
      {'world': dataclasses.replace(WORLD, num_pairs=59)},
      'texts.num_pairs: 60 there, 59 now',
    ),
    ({'test_share': 0.3}, 'test_share: 0.2 there, 0.3 now'),
  ],
)
def test_another_data_set_is_kept(made, change, message):
  before = _hashes(made)
  with pytest.raises(UserError, match=message):
    make_data(output_dir=str(made), **({'seed': 3, **SMALL} | change))
  assert _hashes(made) == before


def test_a_damaged_directory_is_told(made, tmp_path):
  shutil.copytree(made, tmp_path / 'data')
  (tmp_path / 'data' / 'texts.parquet').unlink()
  with pytest.raises(UserError, match='damaged: texts.parquet is missing'):
    make_data(output_dir=str(tmp_path / 'data'), seed=3, **SMALL)


MOVIES = ''.join(
  f'{i},"Film {i}, The ({1980 + i})",{"Crime|Drama" if i % 2 else "War"}\n'
  for i in range(1, 21)
)
PLOTS = ''.join(
  json.dumps(
    {
      'movieId': i,
      'overview': f'A quiet nurse from T{i} finds a map. She follows it.',
      'keywords': ['heist'] if i % 3 else ['alien'],
    }
  )
  + '\n'
  for i in range(1, 20)
)
RATINGS = ''.join(
  f'{u},{i},{4.5 if (u + i) % 2 else 2.0},{100 * u + i}\n'
  for u in range(1, 31)
  for i in range(1, 21)
)


@pytest.fixture
def release(tmp_path):
  """A directory with ml-tiny/ and its plots beside it."""
  folder = tmp_path / 'source' / 'ml-tiny'
  folder.mkdir(parents=True)
  (folder / 'movies.csv').write_text('movieId,title,genres\n' + MOVIES)
  (folder / 'ratings.csv').write_text(
    'userId,movieId,rating,timestamp\n' + RATINGS
  )
  (folder.parent / 'overviews.jsonl').write_text(PLOTS)
  return folder.parent


def _make(release, target, **changes):
  arguments = {
    'dataset': 'movielens',
    'data_dir': str(release),
    'writer': WRITER,
    'num_evaluation_pairs': 15,
    'vocabulary_size': 700,
  }
  return make_data(output_dir=str(target), **(arguments | changes))


def test_a_release_is_made(release, tmp_path, capsys):
  manifest = _make(release, tmp_path / 'data')
  assert manifest['counts']['ratings'] == 600
  assert manifest['counts']['items_with_plot'] == 19
  pairs = tables.read_table(tmp_path / 'data', 'evaluation_pairs')
  assert len(pairs) == len(set(pairs['user_id'].to_pylist())) == 15
  items = tables.read_table(tmp_path / 'data', 'items')
  assert items['plot'][0].as_py() == (
    'Genres: crime, drama. Themes: heist. '
    'A quiet nurse from T1 finds a map. She follows it.'
  )
  printed = capsys.readouterr().out
  assert '600 ratings of 30 users, 20 items (19 with a plot)' in printed
  assert 'nothing was dropped' in printed


def test_a_zip_gives_the_same_tables(release, tmp_path):
  _make(release, tmp_path / 'one')
  path = tmp_path / 'ml-tiny.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    for file in (release / 'ml-tiny').iterdir():
      archive.write(file, f'ml-tiny/{file.name}')
  plots = str(release / 'overviews.jsonl')
  _make(path, tmp_path / 'two', plots_file=plots)
  one, two = _hashes(tmp_path / 'one'), _hashes(tmp_path / 'two')
  # The manifests tell a zip's checksums from hashes of files.
  assert one.pop('manifest.json') != two.pop('manifest.json')
  assert one == two


def test_drops_are_reported(release, tmp_path, capsys):
  with open(release / 'ml-tiny' / 'ratings.csv', 'a') as file:
    file.write('1,1,3.0,1\n1,99,3.0,1\n')
  with pytest.raises(UserError, match="line 603: movieId '99'"):
    _make(release, tmp_path / 'data')
  manifest = _make(release, tmp_path / 'data', drop_unknown_items=True)
  assert sum(manifest['dropped'].values()) == 2
  printed = capsys.readouterr().out
  assert 'dropped 1: rating of an unknown item' in printed
  assert 'dropped 1: duplicate (user, item), an older rating' in printed


def test_changed_inputs_are_another_data_set(release, tmp_path):
  _make(release, tmp_path / 'data')
  with open(release / 'ml-tiny' / 'ratings.csv', 'a') as file:
    file.write('31,1,3.0,1\n')
  with pytest.raises(UserError, match='inputs.ratings.csv'):
    _make(release, tmp_path / 'data')


def test_ratings_alone_need_no_plots(release, tmp_path):
  (release / 'overviews.jsonl').unlink()
  with pytest.raises(UserError, match='give PLOTS_FILE'):
    _make(release, tmp_path / 'data')
  _make(release, tmp_path / 'data', write_texts=False)
  assert sorted(os.listdir(tmp_path / 'data')) == [
    'items.parquet', 'manifest.json', 'ratings.parquet'
  ]  # fmt: skip


def test_a_given_vocabulary_is_copied(made, release, tmp_path):
  given = made / 'vocabulary.model'
  manifest = _make(release, tmp_path / 'data', vocabulary=str(given))
  copied = tmp_path / 'data' / 'vocabulary.model'
  assert copied.read_bytes() == given.read_bytes()
  inputs = manifest['parameters']['inputs']
  assert inputs['vocabulary'] == Vocabulary.load(given).sha256
  assert manifest['parameters']['vocabulary_size'] is None


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'dataset': 'world', 'data_dir': 'x'}, "'world', which has no DATA_DIR"),
    ({'dataset': 'movielens', 'data_dir': None}, 'needs DATA_DIR'),
    ({'dataset': 'netflix'}, "no dataset 'netflix'"),
    ({'dataset': 'ml-25m', 'data_dir': '/nowhere'}, 'does not exist'),
    ({'plots_file': '/nowhere/x.jsonl'}, 'PLOTS_FILE /nowhere/x.jsonl'),
    ({'vocabulary': '/nowhere/x.model'}, 'cannot read the vocabulary'),
    ({'test_share': 1.5}, 'leave a share to train on'),
  ],
)
def test_bad_arguments_leave_nothing(release, tmp_path, arguments, message):
  with pytest.raises(UserError, match=message):
    _make(release, tmp_path / 'new' / 'data', **arguments)
  assert sorted(os.listdir(tmp_path)) == ['source']


def test_a_bad_plot_late_in_the_run_leaves_nothing(release, tmp_path):
  with open(release / 'overviews.jsonl', 'a') as file:
    file.write('{"movieId": 20, ')
  with pytest.raises(UserError, match='overviews.jsonl, line 20 is no JSON'):
    _make(release, tmp_path / 'data')
  assert sorted(os.listdir(tmp_path)) == ['source']


def test_foreign_files_are_told_before_any_work(release, tmp_path):
  (tmp_path / 'data').mkdir()
  (tmp_path / 'data' / 'thesis.txt').write_text('mine')
  with pytest.raises(UserError, match=r'other files \(thesis.txt\)'):
    _make(release, tmp_path / 'data')


def test_killed_at_any_time_it_starts_again(made, tmp_path):
  """Whatever kill -9 leaves, the next run gives the same bytes."""
  target = tmp_path / 'data'
  code = (
    'import sys, json\n'
    'from p4lm.data.world import WorldConfig\n'
    'from p4lm.jobs.make_data import make_data\n'
    f'world = WorldConfig(**json.loads({json.dumps(_plain(WORLD))!r}))\n'
    f'make_data(output_dir={str(target)!r}, seed=3, world=world,\n'
    '          num_evaluation_pairs=20, vocabulary_size=700)\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True
  )
  # The first line is printed while the staging directory is being filled.
  process.stdout.readline()
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stdout.close()
  assert not (target / 'manifest.json').exists()
  time.sleep(0.05)
  make_data(output_dir=str(target), seed=3, **SMALL)
  assert os.listdir(tmp_path) == ['data']
  assert _hashes(target) == _hashes(made)


def _plain(config):
  values = dataclasses.asdict(config)
  return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def test_the_command_line_makes_data(tmp_path, capsys):
  target = tmp_path / 'data'
  arguments = ['make_data', f'--gin.OUTPUT_DIR={target}', '--gin.SEED=1']
  sizes = dataclasses.asdict(WORLD)
  for name in ('num_users', 'num_items', 'num_archive_items', 'num_ratings',
               'num_pitches', 'num_pairs', 'num_entailment', 'num_relevance',
               'num_rl_prompts'):  # fmt: skip
    arguments.append(f'--gin.WorldConfig.{name}={sizes[name]}')
  assert main.main(arguments) == 0
  assert tables.read_manifest(target)['seed'] == 1
  assert (target / 'config.gin').is_file()
  assert main.main(arguments) == 0
  assert 'already made' in capsys.readouterr().out
  arguments[2] = '--gin.SEED=2'
  assert main.main(arguments) == 1
  assert 'holds another experiment' in capsys.readouterr().err
