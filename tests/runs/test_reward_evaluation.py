"""What a report says, by enumeration: best of n, baselines, agreement."""

import itertools

import numpy as np
import pytest

from p4lm.evaluation import reward_page
from p4lm.rewards.baselines import TokenExamples
from p4lm.runs import reward_evaluation
from p4lm.runs.reward_evaluation import ScoredSplit


def labelled(count, seed, kind='nli', skill=2.0):
  """Two responses a premise; scores are right in proportion to `skill`."""
  generator = np.random.default_rng(seed)
  prompts = np.repeat(generator.integers(2, 50, (count // 2, 5)), 2, axis=0)
  responses = generator.integers(2, 50, (count, 4))
  responses[np.arange(count) % 3 == 0, 3:] = 0
  noise = generator.normal(size=count)
  if kind == 'relevance':
    labels = generator.normal(size=count)
    scores = labels + noise
  else:
    labels = generator.integers(0, 2, count).astype(float)
    scores = skill * (2 * labels - 1) + 3 * noise
  return ScoredSplit(TokenExamples(prompts, (responses,), labels), (scores,))


def paired(texts, scores, comparisons, prompts=None):
  """Comparisons (winner, loser) between texts of given scores."""
  won, lost = np.array(comparisons).T
  prompt = np.zeros(len(won), int) if prompts is None else np.array(prompts)
  return ScoredSplit(
    TokenExamples(
      prompt[:, None] + 3, (texts[won], texts[lost]), np.ones(len(won))
    ),
    (scores[won], scores[lost]),
  )


def test_the_test_split_judges_and_validation_gives_the_temperature():
  train, validation, test = (labelled(400, seed) for seed in range(3))
  found = reward_evaluation.evaluate_reward(
    'nli', train.examples, {'validation': validation, 'test': test}
  )
  assert found['judged_by'] == 'test'
  logits, labels = test.scores[0], test.examples.labels
  tau = found['validation']['temperature']
  assert found['test']['temperature'] == tau > 1
  scaled = 1 / (1 + np.exp(-logits / tau))
  np.testing.assert_allclose(
    found['test']['brier_scaled'], np.mean((scaled - labels) ** 2)
  )
  np.testing.assert_allclose(
    found['test']['accuracy'], np.mean((logits > 0) == labels)
  )
  majority = found['baselines']['majority']
  rate = train.examples.labels.mean()
  side = labels.mean() if rate > 0.5 else 1 - labels.mean()
  np.testing.assert_allclose(majority['accuracy'], side)
  after = found['reliability']['after']
  gaps = np.subtract(after['frequencies'], after['probabilities'])
  np.testing.assert_allclose(
    np.sum(np.abs(gaps) * after['counts']) / len(labels),
    found['test']['ece_scaled'],
  )


def test_without_a_test_split_validation_judges_crosswise():
  train, validation = labelled(400, 0), labelled(400, 1)
  found = reward_evaluation.evaluate_reward(
    'nli', train.examples, {'validation': validation}
  )
  assert found['judged_by'] == 'validation' and 'test' not in found
  # Both responses of a premise are in one half.
  numbers = validation.prompt_numbers
  assert (numbers[::2] == numbers[1::2]).all()
  assert found['validation']['nll_scaled'] < found['validation']['nll']


def test_best_of_n_of_labelled_texts_is_the_mean_over_subsets():
  split = labelled(8, 4)
  found = reward_evaluation._best_of_n('nli', split)
  assert found['n'] == [1, 2, 4, 8]
  scores, labels = split.scores[0], split.examples.labels
  for n, value in zip(found['n'], found['model']):
    picks = [
      labels[max(subset, key=lambda i: scores[i])]
      for subset in itertools.combinations(range(8), n)
    ]
    np.testing.assert_allclose(value, np.mean(picks))


def test_best_of_n_of_preferences_is_over_the_texts_of_a_prompt():
  texts = np.array([[5, 1, 0], [5, 6, 1], [7, 1, 0], [8, 9, 1]])
  scores = np.array([0.3, 2.0, -1.0, 1.0])
  comparisons = [(1, 0), (1, 2), (0, 2), (3, 1), (3, 2)]
  split = paired(texts, scores, comparisons)
  worth = {0: 1 / 2, 1: 2 / 3, 2: 0.0, 3: 1.0}
  found = reward_evaluation._best_of_n('appeal', split)
  assert found['n'] == [1, 2, 4]
  for n, value in zip(found['n'], found['model']):
    picks = [
      worth[max(subset, key=lambda i: scores[i])]
      for subset in itertools.combinations(range(4), n)
    ]
    np.testing.assert_allclose(value, np.mean(picks))
  # Texts of two prompts are not compared: two texts each, so n ends at 2.
  split = paired(texts, scores, [(1, 0), (3, 2)], prompts=[0, 1])
  found = reward_evaluation._best_of_n('personalization', split)
  assert found['n'] == [1, 2]
  np.testing.assert_allclose(found['model'], [0.5, 1.0])


def test_agreement_of_pairs_and_of_texts():
  texts = np.arange(8).reshape(4, 2) + 2
  split = paired(texts, np.array([1.0, 0.0, 3.0, 2.0]), [(0, 1), (2, 3)])
  # The order of texts: 0, 2 (chosen), 1, 3 (rejected).
  other = np.array([10.0, 1.0, 20.0, 0.5])
  found = reward_evaluation.agreement('appeal', split, other, np.ones(4, bool))
  assert found['same_choice'] == 0.5
  np.testing.assert_allclose(
    found['correlation'], np.corrcoef([1, 3, 0, 2], other)[0, 1]
  )
  partly = reward_evaluation.agreement(
    'appeal', split, other, np.array([True, True, False, True])
  )
  assert partly['same_choice'] == 1.0 and partly['count'] == 3
  nothing = reward_evaluation.agreement(
    'appeal', split, other, np.zeros(4, bool)
  )
  assert nothing == {'count': 0}


@pytest.mark.parametrize('kind', ['nli', 'relevance', 'appeal'])
def test_the_page_of_every_kind(kind):
  if kind == 'appeal':
    generator = np.random.default_rng(0)
    texts = generator.integers(2, 40, (30, 6))
    comparisons = [
      (a, b) for a, b in generator.integers(0, 30, (80, 2)) if a != b
    ]
    split = paired(texts, generator.normal(size=30), comparisons)
    train, held_out = split.examples, {'validation': split}
  else:
    train = labelled(60, 0, kind).examples
    held_out = {
      'validation': labelled(60, 1, kind), 'test': labelled(60, 2, kind),
    }  # fmt: skip
  content = reward_evaluation.evaluate_reward(kind, train, held_out)
  content |= {'kind': kind, 'split': 'train'}
  content['agreement'] = {
    '<b>other</b>': {'count': 3, 'correlation': -0.25},
    'third': {'count': 0, 'problem': 'it needs a plot'},
  }
  html = reward_page.to_html(content)
  assert f'The {kind} reward' in html
  assert '&lt;b&gt;other&lt;/b&gt;' in html and '<b>other</b>' not in html
  assert '−0.250' in html and 'it needs a plot' in html
  pictures = {'nli': 2, 'appeal': 2, 'relevance': 1}[kind]
  assert html.count('data:image/svg+xml') == pictures
  header, body = reward_page.figure_cells(content)
  assert [len(row) for row in body] == [len(header)] * len(body)
  assert body[0][0] == kind
  screen = reward_page.to_text(content)
  for name in content['baselines']:
    assert name in screen
