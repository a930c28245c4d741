"""Reward checkpoints and functions as terms, with a model that is redone."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from p4lm.data.vocabulary import Vocabulary
from p4lm.errors import UserError
from p4lm.rewards import outputs, rules
from p4lm.rewards.baselines import TokenExamples
from p4lm.rewards.outputs import RewardOutput
from p4lm.rewards.terms import RewardRequest, evaluate_term
from p4lm.runs import reward_evaluation, reward_report, reward_terms
from p4lm.runs.reward_evaluation import ScoredSplit

ITEM = {'title': 'Harbour', 'plot': 'Ann finds a map. Bob sells boats.'}
TEXTS = ('Ann sells a map. Bob finds it.', 'Boats')
REQUESTS = [RewardRequest(text, 'i', 'u', ITEM) for text in TEXTS]


class Sines(nnx.Module):
  """Head k says the sine of k times the number of tokens."""

  def __init__(self):
    self.factors = nnx.Param(jnp.arange(1.0, 5.0))

  def head_scores(self, prompts, responses, cf_embeddings, cf_kind_ids):
    lengths = (responses != 0).sum(axis=1).astype(jnp.float32)
    return jnp.sin(lengths[:, None] * self.factors[...][None])


@pytest.fixture(name='vocabulary', scope='module')
def _vocabulary(tmp_path_factory):
  path = tmp_path_factory.mktemp('terms') / 'vocabulary.model'
  return Vocabulary.train([*TEXTS, ITEM['plot']] * 3, path, size=300)


@pytest.fixture(name='heads')
def _heads(vocabulary):
  lengths = [1 + len(vocabulary.encode(text)) for text in TEXTS]
  return np.sin(np.array(lengths)[:, None] * np.arange(1.0, 5.0))


def points(seed):
  """A split of pairs whose heads are points in two planes."""
  generator = np.random.default_rng(seed)
  tokens = tuple(generator.integers(2, 9, (2, 40, 5)))
  examples = TokenExamples(np.full((40, 1), 3), tokens, np.ones(40))
  heads = generator.normal(size=(2, 40, 4)).astype(np.float32)
  return ScoredSplit(examples, tuple(heads))


@pytest.fixture(name='report')
def _report(tmp_path):
  splits, population = reward_evaluation.against_population(
    {'validation': points(0), 'test': points(1)}
  )
  content = reward_evaluation.evaluate_reward(
    'appeal', points(2).examples, splits
  )
  content['population'] = population.tolist()
  reward_report.write_reward_report(tmp_path, 'appeal', 'train', content)
  return content | {'splits': splits}


@pytest.fixture(name='read')
def _read(tmp_path, monkeypatch, vocabulary, report):
  """Calls the one term of a directory that is said to hold `Sines`."""

  def read(output='score', kind='appeal', is_general=False):
    model = types.SimpleNamespace(
      config=types.SimpleNamespace(
        kind=kind, is_general=is_general, is_variational=False
      ),
      card=types.SimpleNamespace(prompt_length=60, response_length=40),
      vocabulary=vocabulary,
      module=Sines,
      cf_lookup=None,
      tokens_per_vector=1,
      directory=tmp_path,
      step=3,
      identity='abcd',
    )
    monkeypatch.setattr(reward_terms, 'load_model', lambda *a, **k: model)
    [term] = reward_terms.load_reward_terms(
      {kind: tmp_path}, batch_size=2, outputs={kind: output}
    )
    return evaluate_term(term, REQUESTS)

  return read


def test_heads_are_read_as_told(read, heads, capsys):
  np.testing.assert_allclose(read().values, heads.mean(axis=1), rtol=1e-5)
  least = read(RewardOutput(heads='min'))
  np.testing.assert_allclose(least.values, heads.min(axis=1), rtol=1e-5)
  np.testing.assert_allclose(least.spread, heads.std(axis=1), rtol=1e-5)
  assert least.checkpoint == 'abcd'
  assert 'step 3, checkpoint abcd' in capsys.readouterr().out


def test_log_odds_are_divided_by_the_temperature_of_the_report(
  read, heads, report
):
  found = read(RewardOutput('probability', calibrated=True))
  np.testing.assert_allclose(
    found.values,
    special.expit(heads.mean(axis=1) / report['test']['temperature']),
    rtol=1e-5,
  )


def test_points_are_read_against_the_population_of_the_report(
  read, heads, report
):
  found = read(is_general=True)
  np.testing.assert_allclose(
    found.values,
    outputs.against_population(heads, np.array(report['population'])),
    rtol=1e-4,
    atol=1e-6,
  )


def test_the_report_of_points(report):
  """Its log-odds are those of pairs, its scores those of a population."""
  gaps = report['splits']['test'].gaps.astype(np.float64)
  np.testing.assert_allclose(
    report['test']['nll'], np.mean(np.log1p(np.exp(-gaps))), rtol=1e-6
  )
  np.testing.assert_allclose(report['test']['accuracy'], np.mean(gaps > 0))
  scores = np.concatenate(report['splits']['validation'].scores)
  np.testing.assert_allclose(scores.mean(), 0, atol=1e-6)
  assert report['validation']['mean_score'] == 0.0


def test_entailment_can_be_asked_by_sentence(read):
  found = read(RewardOutput('probability', sentences='mean'), kind='nli')
  assert found.counts['sentences'] == 3
  assert found.valid.all() and found.checkpoint == 'abcd'
  with pytest.raises(UserError, match="'appeal' has no premise"):
    read(RewardOutput(sentences='mean'))


def test_functions_and_terms_of_your_own():
  found = reward_terms.load_reward_terms(
    {
      'words': lambda request: len(request.text.split()),
      'short': rules.length_term(fewest_words=1, most_words=2),
    }
  )
  assert [term.name for term in found] == ['words', 'short']
  words, short = (evaluate_term(term, REQUESTS).values for term in found)
  np.testing.assert_allclose(words, [7, 1])
  np.testing.assert_allclose(short, [-2.5, 0])


def test_a_function_that_throws_is_named():
  [term] = reward_terms.load_reward_terms({'odd': lambda request: 1 / 0})
  with pytest.raises(UserError, match="'odd' failed on a batch of 2 texts"):
    evaluate_term(term, REQUESTS)


def test_outputs_of_rewards_that_are_not_there_are_named():
  with pytest.raises(UserError, match='not there: wrods; the rewards are wor'):
    reward_terms.load_reward_terms(
      {'words': lambda request: 1}, outputs={'wrods': 'score'}
    )
