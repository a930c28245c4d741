"""How heads become one reward, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from p4lm.errors import UserError
from p4lm.ops import preference
from p4lm.rewards import outputs
from p4lm.rewards.joint import JointReward, JointRewardConfig
from p4lm.rewards.kinds import prompt_builder
from p4lm.rewards.learned import LearnedTerm, LearnedTermConfig
from p4lm.rewards.outputs import RewardOutput
from p4lm.rewards.terms import RewardRequest, evaluate_term

SCORES = np.array([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]], np.float32)
# Deviations from the mean 3: -2, -1, 3.
DEVIATION = np.sqrt(14 / 3)


@pytest.mark.parametrize(
  ('output', 'expected'),
  [
    (RewardOutput(), [3.0, 4.0]),
    (RewardOutput(heads='min'), [1.0, 4.0]),
    (RewardOutput(heads='lower'), [3 - DEVIATION, 4.0]),
    (RewardOutput(heads='lower', std_weight=0.5), [3 - DEVIATION / 2, 4.0]),
  ],
)
def test_heads_become_one(output, expected):
  value, spread = outputs.combined(SCORES, output)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(spread, [DEVIATION, 0.0], rtol=1e-6)
  assert value.dtype == spread.dtype == np.float32


def test_reading_log_odds():
  logits = np.array([-800.0, -1.0, 0.0, 3.0, 800.0])
  scaled = logits / 2
  np.testing.assert_allclose(
    outputs.read(logits, 'probability', 2.0), special.expit(scaled)
  )
  np.testing.assert_allclose(
    outputs.read(logits, 'log_probability', 2.0), special.log_expit(scaled)
  )
  np.testing.assert_array_equal(outputs.read(logits, 'logit', 2.0), scaled)
  np.testing.assert_array_equal(outputs.read(logits, 'score', 2.0), logits)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'output': 'odds'}, "output must be one of .* got 'odds'"),
    ({'heads': 'max'}, "heads must be one of .* got 'max'"),
    ({'std_weight': -1.0}, 'std_weight must be 0 or more, got -1'),
    ({'std_weight': np.nan}, 'std_weight must be 0 or more'),
    ({'calibrated': True}, "take output 'logit'"),
  ],
)
def test_what_cannot_be_is_named(options, message):
  with pytest.raises(UserError, match=message):
    RewardOutput(**options)


def _ensemble(params, prompts, responses, cf_embeddings, cf_kind_ids):
  """Head k says (k + 1) times the number of tokens."""
  lengths = (responses != 0).sum(axis=1).astype(jnp.float32)
  return lengths[:, None] * jnp.arange(1.0, 4.0)[None] * params


def test_a_term_of_an_ensemble_tells_its_doubt_and_its_checkpoint(vocabulary):
  """Only the spread differs between a sure and an unsure text."""
  term = LearnedTerm(
    'appeal',
    _ensemble,
    jnp.float32(1.0),
    LearnedTermConfig(8, 8, batch_size=2, heads='min', population_mean=1.0),
    vocabulary=vocabulary,
    build_prompt=prompt_builder('appeal'),
    checkpoint='ab12',
  )
  requests = [RewardRequest(text, 'i', 'u') for text in ('a', 'a a a', '')]
  answer = evaluate_term(term, requests)
  lengths = np.array(
    [1 + len(vocabulary.encode(request.text)) for request in requests]
  )
  np.testing.assert_allclose(answer.values, lengths - 1.0)
  np.testing.assert_allclose(answer.spread, lengths * np.sqrt(2 / 3), rtol=1e-6)
  assert answer.checkpoint == 'ab12'
  joint = JointReward([term], JointRewardConfig(weights={'appeal': 1.0}))
  found = joint(requests)
  np.testing.assert_allclose(
    found.metrics['reward/appeal/spread'],
    (lengths * np.sqrt(2 / 3)).mean(),
    rtol=1e-6,
  )
  assert found.by_term['appeal'].checkpoint == 'ab12'


@pytest.mark.parametrize('heads', [1, None])
def test_a_single_head_logs_no_doubt(vocabulary, heads):
  """Scores [R] and [R, 1] alike."""

  def apply_fn(*inputs):
    scores = _ensemble(*inputs)[:, :1]
    return scores if heads else scores[:, 0]

  term = LearnedTerm(
    'appeal',
    apply_fn,
    jnp.float32(1.0),
    LearnedTermConfig(8, 8, batch_size=2),
    vocabulary=vocabulary,
    build_prompt=prompt_builder('appeal'),
  )
  joint = JointReward([term], JointRewardConfig(weights={'appeal': 1.0}))
  found = joint([RewardRequest(text, 'i', 'u') for text in ('a', 'a a')])
  assert found.metrics['reward/appeal/std'] > 0
  assert 'reward/appeal/spread' not in found.metrics


def test_points_against_a_population_are_means_over_its_members():
  generator = np.random.default_rng(0)
  points, members = generator.normal(size=(2, 6, 4))
  gaps = preference.general_preference(
    jnp.repeat(jnp.asarray(points), 6, axis=0),
    jnp.tile(jnp.asarray(members), (6, 1)),
  ).reshape(6, 6)
  np.testing.assert_allclose(
    outputs.against_population(points, members.mean(axis=0)),
    gaps.mean(axis=1),
    rtol=1e-4,
    atol=1e-6,
  )
  np.testing.assert_allclose(
    outputs.against_population(points, points.mean(axis=0)).mean(), 0,
    atol=1e-12,
  )  # fmt: skip
