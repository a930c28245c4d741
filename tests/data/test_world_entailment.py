"""Entailment: reading solves it, a bag of words does not."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.optimize import minimize

from p4lm.data.world import (
  GoldScorer,
  WorldConfig,
  build_text_tables,
  build_world,
  lexicon,
)
from p4lm.data.world.gold import world_parser


@pytest.fixture(scope='module')
def world():
  return build_world(WorldConfig())


@pytest.fixture(scope='module')
def rows(world):
  """The entailment table as numpy columns."""
  ids = {'user_id': ['1', '2'], 'item_id': ['1', '2']}
  everyone = {
    'user_id': [str(1 + u) for u in range(world.num_users)],
    'item_id': ['3'] * world.num_users,
  }
  config = WorldConfig(
    num_pitches=10, num_pairs=10, num_relevance=10, num_rl_prompts=10
  )
  tables = build_text_tables(world, pa.table(everyone), pa.table(ids), config)
  table = tables['entailment'].to_pydict()
  return {name: np.array(column) for name, column in table.items()}


def test_labels_are_balanced_and_premises_are_plots(world, rows):
  assert abs(rows['label'].mean() - 0.5) < 0.03
  for item, premise in zip(rows['item_id'][:500], rows['premise']):
    assert premise == world.plots[int(item) - 1]


def test_gold_truth_and_a_reader_of_the_premise_solve_it(world, rows):
  gold = GoldScorer.of_world(world).score(
    rows['hypothesis'].tolist(),
    ['1'] * len(rows['label']),
    rows['item_id'].tolist(),
  )
  assert ((gold['precision'] == 1) == rows['label']).all()
  # Nothing but the texts: every claim of the one is a claim of the other.
  parser = world_parser()
  for premise, hypothesis, label in zip(
    rows['premise'], rows['hypothesis'], rows['label']
  ):
    claims = set(parser.parse(hypothesis))
    entailed = bool(claims) and claims <= set(parser.parse(premise))
    assert entailed == label, (premise, hypothesis)


def test_a_bag_of_words_does_not_solve_it(rows):
  """Logistic regression on both bags and their overlap, held-out items."""
  features = _bag_features(rows['premise'], rows['hypothesis'])
  train = rows['split'] == 'train'
  weights = _fit_logistic(features[train], rows['label'][train])
  accuracy = np.mean((features @ weights > 0) == rows['label'])
  held_out = np.mean((features @ weights > 0)[~train] == rows['label'][~train])
  assert accuracy < 0.85 and held_out < 0.85, (accuracy, held_out)
  # It does learn: texts without claims alone give it an edge over guessing.
  assert np.mean((features @ weights > 0)[train] == rows['label'][train]) > 0.52


def test_knowing_every_synonym_is_not_enough_either(rows):
  """What a perfect bag does: are all claimed words mentioned in the plot?

  It knows which words mean the same, and that a text without claims entails
  nothing, but neither order nor denial. Swapped roles and denied values, the
  misreadings, fool it each time.
  """
  parser = world_parser()
  phrases = _noun_values()
  wrong = misread = 0
  for premise, hypothesis, label in zip(
    rows['premise'], rows['hypothesis'], rows['label']
  ):
    claims = [_name(value) for value in parser.parse(hypothesis)]
    mentioned = _mentions(premise, phrases)
    guess = bool(claims) and set(claims) <= mentioned
    wrong += guess != label
    misread += guess and not label
  assert wrong == misread  # It never misses what is entailed.
  assert wrong > 0.02 * len(rows['label']), wrong / len(rows['label'])


def test_hypotheses_alone_tell_little(rows):
  """Claims are chosen before their truth: no marginal gives the label away."""
  features = _bag_features([''] * len(rows['label']), rows['hypothesis'])
  parser = world_parser()
  claiming = np.array([bool(parser.parse(h)) for h in rows['hypothesis']])
  train = (rows['split'] == 'train') & claiming
  test = (rows['split'] != 'train') & claiming
  weights = _fit_logistic(features[train], rows['label'][train])
  accuracy = np.mean((features[test] @ weights > 0) == rows['label'][test])
  assert accuracy < 0.65, accuracy


def _bag_features(premises, hypotheses) -> np.ndarray:
  """Word counts of each text, their overlap in number and share, a constant."""
  texts = [*premises, *hypotheses]
  bags = [lexicon.split_words(text) for text in texts]
  words = sorted({word for bag in bags for word in bag})
  column = {word: index for index, word in enumerate(words)}
  num = len(premises)
  features = np.zeros((num, 2 * len(words) + 3), np.float32)
  for row in range(num):
    for part in (0, 1):
      for word in bags[row + part * num]:
        features[row, part * len(words) + column[word]] += 1
    shared = set(bags[row]) & set(bags[row + num])
    features[row, -3] = len(shared)
    features[row, -2] = len(shared) / max(1, len(set(bags[row + num])))
    features[row, -1] = 1
  return features


def _fit_logistic(features, labels, ridge=1.0) -> np.ndarray:
  signs = 2.0 * labels - 1

  def loss(weights):
    margins = signs * (features @ weights)
    slopes = -signs / (1 + np.exp(np.clip(margins, -50, 50)))
    value = np.logaddexp(0, -margins).sum() + ridge * weights @ weights / 2
    return value, features.T @ slopes + ridge * weights

  start = np.zeros(features.shape[1])
  result = minimize(
    loss, start, jac=True, method='L-BFGS-B', options={'maxiter': 100}
  )
  return result.x


def _name(value: int) -> str:
  """What a value is called whoever plays it: 'thief' for hero and rival."""
  facet, name = lexicon.VALUE_NAMES[value].split(':')
  return name if facet in ('hero', 'rival') else f'{facet}:{name}'


def _noun_values() -> dict[str, str]:
  """Each phrase of each value, without articles -> `_name` of the value."""
  return {
    ' '.join(lexicon.drop_articles(phrase.split())): _name(value)
    for value in range(lexicon.NUM_VALUES)
    for phrase in lexicon.VALUE_PHRASES[value]
  }


def _mentions(premise: str, phrases: dict[str, str]) -> set[str]:
  words = lexicon.drop_articles(lexicon.split_words(premise))
  text = f' {" ".join(words)} '
  return {name for phrase, name in phrases.items() if f' {phrase} ' in text}
