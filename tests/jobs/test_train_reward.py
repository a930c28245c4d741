"""train_reward on files of judged texts: from JSON lines to the report."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest
from tiny_models import LM

from p4lm.data import cache, tables
from p4lm.errors import UserError
from p4lm.jobs.make_data import make_data
from p4lm.jobs.train_reward import train_reward
from p4lm.rewards.terms import RewardRequest, evaluate_term
from p4lm.runs.fitting import FitConfig
from p4lm.runs.judgement_data import JudgementConfig
from p4lm.runs.reward_evaluation import read_split
from p4lm.runs.reward_terms import load_reward_terms
from p4lm.training.optimizers import OptimizerConfig

COLOURS = ('red', 'green', 'blue', 'white')
THINGS = ('door', 'roof', 'boat', 'coat', 'lamp')


def nli_rows():
  """Entailed iff the colour is the same."""
  rows = []
  for number in range(40):
    draw = random.Random(number)
    thing, colour = draw.choice(THINGS), draw.choice(COLOURS)
    for said in draw.sample(COLOURS, 3):
      label = 'entailment' if said == colour else 'contradiction'
      rows.append(
        {
          'premise': f'House {number} has a {colour} {thing}.',
          'hypothesis': f'the {thing} of house {number} is {said}.',
          'label': label,
        }
      )
  return rows


def preference_rows():
  """The longer of two texts wins, mostly."""
  rows = []
  for number in range(60):
    draw = random.Random(number)
    short, long = f'Go {number}.', f'Go {number}, since it is {number} good.'
    sides = (long, short) if draw.random() < 0.5 else (short, long)
    right = draw.random() < 0.8
    winner = 'a1' if (sides[0] == long) == right else 'a2'
    rows.append(
      {'argument1': sides[0], 'argument2': sides[1], 'winner': winner}
    )
  return rows


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


@pytest.fixture(name='data', scope='module')
def _data(tmp_path_factory):
  """One data directory with both tables, its tasks cached in one process."""
  root = tmp_path_factory.mktemp('judged')
  options = {'vocabulary_size': 300, 'judgements': JudgementConfig()}
  for name, rows in (('nli', nli_rows()), ('preferences', preference_rows())):
    make_data(
      output_dir=str(root / name),
      dataset=name,
      data_dir=write(root / f'{name}.jsonl', rows),
      **options,
    )
  shutil.copy(root / 'preferences' / 'pairs.parquet', root / 'nli')
  cache.cache_tasks(
    'tasks.movielens',
    ['movielens_nli', 'movielens_appeal'],
    root / 'nli',
    root / 'nli' / 'tasks',
  )
  return root / 'nli'


def train(data, output_dir, kind, **options):
  train_reward(
    kind=kind,
    data_dir=str(data),
    output_dir=str(output_dir),
    model=LM,
    training=FitConfig(
      stage='full',
      optimizer=OptimizerConfig('adafactor', 1e-2),
      steps=3,
      seed=0,
    ),
    batch_size=8,
    prompt_length=24,
    response_length=24,
    **options,
  )
  return json.loads((output_dir / 'report.json').read_text())


@pytest.fixture(name='rewards', scope='module')
def _rewards(data, tmp_path_factory):
  root = tmp_path_factory.mktemp('rewards')
  train(data, root / 'nli', 'nli')
  others = {'entailment': str(root / 'nli'), 'itself': str(root / 'appeal')}
  train(data, root / 'appeal', 'appeal')
  shutil.copytree(root / 'appeal', root / 'copy')
  (root / 'copy' / 'report.json').unlink()
  train(data, root / 'copy', 'appeal', others=others)
  return root


def test_the_report_judges_by_the_test_split(data, rewards):
  report = json.loads((rewards / 'nli' / 'report.json').read_text())
  counts = tables.read_manifest(data)['counts']
  assert report['judged_by'] == 'test'
  assert report['test']['count'] == counts['splits']['test'] == 24
  assert report['validation']['count'] == counts['splits']['validation'] == 12
  entailed = counts['entailed']['test'] / 24
  assert report['test']['share_positive'] == pytest.approx(entailed)
  assert set(report['baselines']) == {'majority', 'length', 'bag of tokens'}
  assert report['best_of_n']['n'] == [1, 2, 4, 8, 16]
  assert report['best_of_n']['model'][0] == pytest.approx(entailed)
  page = (rewards / 'nli' / 'report' / 'index.html').read_text()
  assert 'Reliability' in page and 'bag of tokens' in page


def test_the_scores_of_the_report_are_those_of_the_term(data, rewards):
  """The logits that were judged are what a joint reward will read."""
  report = json.loads((rewards / 'nli' / 'report.json').read_text())
  rows = tables.read_table(data, 'entailment').to_pylist()
  test = [row for row in rows if row['split'] == 'test']
  [term] = load_reward_terms(
    {'nli': rewards / 'nli'}, outputs={'nli': 'logit'}, batch_size=8
  )
  found = evaluate_term(
    term,
    [
      RewardRequest(row['hypothesis'], '', '', {'plot': row['premise']})
      for row in test
    ],
  )
  labels = np.array([row['label'] for row in test])
  logits = found.values.astype(np.float64)
  nll = np.mean(np.logaddexp(0, logits) - labels * logits)
  np.testing.assert_allclose(report['test']['nll'], nll, rtol=1e-5)
  accuracy = np.mean((logits > 0) == labels)
  np.testing.assert_allclose(report['test']['accuracy'], accuracy)


def test_other_rewards_are_compared(rewards):
  report = json.loads((rewards / 'copy' / 'report.json').read_text())
  assert report['kind'] == 'appeal'
  texts = 2 * report['test']['count']
  itself = report['agreement']['itself']
  assert itself['count'] == texts and itself['same_choice'] == 1.0
  assert itself['correlation'] == pytest.approx(1.0, abs=1e-5)
  # Preferences without items have no plot to be entailed by.
  assert report['agreement']['entailment']['count'] == 0
  assert 'needs the item' in report['agreement']['entailment']['problem']


def test_a_training_that_ended_before_its_report_makes_it(rewards):
  """The copy had its checkpoints and no report: the same figures again."""
  first, again = (
    json.loads((rewards / name / 'report.json').read_text())
    for name in ('appeal', 'copy')
  )
  for name in ('validation', 'test', 'baselines', 'best_of_n', 'reliability'):
    assert first[name] == again[name], name


def test_others_must_hold_rewards_before_anything_is_trained(
  data, rewards, tmp_path
):
  with pytest.raises(UserError, match='nowhere holds no model'):
    train(data, tmp_path / 'a', 'nli', others={'x': str(tmp_path / 'nowhere')})
  (tmp_path / 'b').mkdir()
  shutil.copy(rewards / 'nli' / 'model.json', tmp_path / 'b')
  with pytest.raises(UserError, match='b has no report.json: its training'):
    train(data, tmp_path / 'a', 'nli', others={'x': str(tmp_path / 'b')})
  assert not (tmp_path / 'a').exists()


def test_padding_of_the_last_batch_is_left_out():
  batch = {
    'prompt_tokens': np.full((3, 2), 4),
    'response_tokens': np.array([[5, 1], [6, 1], [6, 1]]),
    'labels': np.array([1.0, 0.0, 0.0]),
    'example_mask': np.array([True, True, False]),
  }
  split = read_split([batch], 'nli', lambda batch, tokens: tokens[:, 0])
  np.testing.assert_array_equal(split.scores[0], [5, 6])
  np.testing.assert_array_equal(split.examples.labels, [1, 0])
  assert dataclasses.asdict(read_split([batch], 'nli'))['scores'] == ()
