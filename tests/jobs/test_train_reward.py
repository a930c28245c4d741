"""train_reward on files of judged texts: from JSON lines to the report."""

import copy
import dataclasses
import hashlib
import importlib
import json
import random
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import LM

from p4lm.data import cache, tables
from p4lm.errors import UserError
from p4lm.jobs.make_data import make_data
from p4lm.jobs.train_reward import train_reward
from p4lm.ops.preference import general_preference
from p4lm.rewards import rules
from p4lm.rewards.joint import JointReward, JointRewardConfig
from p4lm.rewards.outputs import RewardOutput
from p4lm.rewards.terms import RewardRequest, evaluate_term
from p4lm.runs.fitting import FitConfig
from p4lm.runs.held_out_texts import held_out_requests
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


def requests(*texts, plot='House 3 has a red door. It is old.'):
  return [RewardRequest(text, 'i', 'u', {'plot': plot}) for text in texts]


def test_rewards_of_your_own_stand_beside_checkpoints(rewards):
  def words(request):
    return len(request.text.split())

  terms = load_reward_terms(
    {
      'nli': rewards / 'nli',
      'words': words,
      'short': rules.length_term(fewest_words=1, most_words=2),
    },
    batch_size=4,
  )
  joint = JointReward(
    terms, JointRewardConfig({'nli': 1.0, 'words': 0.1, 'short': 0.0})
  )
  texts = requests('the door is red.', 'the door.')
  found = joint(texts)
  np.testing.assert_allclose(found.by_term['words'].values, [4, 2])
  np.testing.assert_allclose(found.by_term['short'].values, [-1, 0])
  nli = found.by_term['nli']
  np.testing.assert_allclose(found.total, nli.values + [0.4, 0.2], rtol=1e-6)
  # The hash tells which checkpoint answered.
  files = (rewards / 'nli' / 'checkpoints' / '3' / 'files.json').read_bytes()
  assert nli.checkpoint == hashlib.sha256(files).hexdigest()
  assert found.by_term['words'].checkpoint == ''


def test_a_calibrated_probability_is_that_of_the_report(rewards):
  report = json.loads((rewards / 'nli' / 'report.json').read_text())
  options = {'logit': 'logit', 'scaled': RewardOutput('logit', calibrated=True)}
  values = {
    name: evaluate_term(
      load_reward_terms({'nli': rewards / 'nli'}, outputs={'nli': output})[0],
      requests('the door is red.', 'the roof is blue.'),
    ).values
    for name, output in options.items()
  }
  np.testing.assert_allclose(
    values['scaled'],
    values['logit'] / report['test']['temperature'],
    rtol=1e-5,
  )


def test_entailment_by_sentences_reads_the_model_sentence_by_sentence(rewards):
  read = lambda output, texts: (
    evaluate_term(
      load_reward_terms({'nli': rewards / 'nli'}, outputs={'nli': output})[0],
      texts,
    ).values
  )
  both = requests('The door is red. The roof is blue.')
  each = requests('The door is red.', 'The roof is blue.')
  by_sentence = read(RewardOutput('probability', sentences='min'), both)
  np.testing.assert_allclose(
    by_sentence, [read('probability', each).min()], rtol=1e-5
  )


def test_rewards_that_do_not_fit_are_refused(rewards):
  appeal = rewards / 'appeal'
  for given, options, message in (
    ({'nli': appeal}, {}, "reward 'nli': .* holds a 'appeal' reward"),
    (
      {'appeal': appeal},
      {'outputs': {'appeal': RewardOutput(sentences='min')}},
      "'appeal' has no premise",
    ),
    ({'appeal': appeal}, {'outputs': {'apeal': 'score'}}, 'not there: apeal'),
  ):
    with pytest.raises(UserError, match=message):
      load_reward_terms(given, **options)


def test_a_tie_is_learned_from_and_not_judged_by(tmp_path):
  """Ties are rows of the task and of the loss, and of no figure."""
  rows = [
    {**row, 'winner': 'tie'} if number % 3 == 0 else row
    for number, row in enumerate(preference_rows())
  ]
  make_data(
    output_dir=str(tmp_path / 'data'),
    dataset='preferences',
    data_dir=write(tmp_path / 'pairs.jsonl', rows),
    vocabulary_size=300,
  )
  counts = tables.read_manifest(tmp_path / 'data')['counts']
  assert (counts['pairs'], counts['ties']) == (40, 20)
  movielens = importlib.import_module('tasks.movielens')
  found = {
    split: movielens._Rows(str(tmp_path / 'data'), 1).of('appeal', split)
    for split in movielens.REWARD_SPLITS
  }
  labels = [row['label'] for rows in found.values() for row in rows]
  assert sorted(set(labels)) == [0.5, 1.0] and labels.count(0.5) == 20
  batch = {
    'prompt_tokens': np.full((3, 1), 3),
    'chosen_tokens': np.array([[5], [6], [7]]),
    'rejected_tokens': np.array([[8], [9], [4]]),
    'labels': np.array([1.0, 0.5, 1.0]),
    'example_mask': np.ones(3, bool),
  }
  split = read_split([batch], 'appeal')
  np.testing.assert_array_equal(split.examples.sides[0].ravel(), [5, 7])


def test_a_general_preference_from_training_to_its_term(data, tmp_path):
  """The term's reward is the mean log-odds against the held-out texts."""
  report = train(
    data, tmp_path / 'a', 'appeal', num_heads=4, preference='general'
  )
  assert len(report['population']) == 4
  assert report['validation']['mean_score'] == 0.0
  [term] = load_reward_terms({'appeal': tmp_path / 'a'}, batch_size=4)
  held_out = {
    split: held_out_requests(data, 'appeal', split)
    for split in ('validation', 'test')
  }
  values = evaluate_term(term, held_out['validation']).values
  np.testing.assert_allclose(values.mean(), 0, atol=1e-5)
  # The term's points, read with the population's coordinates one by one.
  points = {
    split: np.stack(
      [
        evaluate_term(_reading(term, axis), requests).values
        for axis in range(4)
      ],
      axis=1,
    )
    for split, requests in held_out.items()
  }
  chosen, rejected = jnp.split(jnp.asarray(points['test']), 2)
  gaps = np.asarray(general_preference(chosen, rejected))
  np.testing.assert_allclose(
    report['test']['nll'], np.mean(np.log1p(np.exp(-gaps))), rtol=1e-4
  )
  np.testing.assert_allclose(
    report['population'], points['validation'].mean(axis=0), atol=1e-5
  )


def _reading(term, axis):
  """The term with a population whose score is one coordinate of a point."""
  population = np.zeros(4)
  population[axis ^ 1] = -1.0 if axis % 2 else 1.0
  found = copy.copy(term)
  found.config = dataclasses.replace(term.config, population=tuple(population))
  return found
