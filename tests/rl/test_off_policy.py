"""Off-policy algorithms on the tiny CoMDP, through their learners."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from p4lm.errors import UserError
from p4lm.ops import critics as critic_ops
from p4lm.rl.cql import CqlConfig
from p4lm.rl.critics import (
  CriticConfig,
  CriticNetwork,
  Judged,
  ensemble_q,
)
from p4lm.rl.in_sample import InSampleConfig
from p4lm.rl.kl_anchoring import AdaptiveKl, ReferenceConfig
from p4lm.rl.off_policy import OffPolicyLearner
from p4lm.rl.replay import Replay, ReplayConfig
from p4lm.rl.sac import SacConfig
from p4lm.rl.soft_optimal import SoftOptimalConfig
from p4lm.training.state import TrainState

pytestmark = pytest.mark.usefixtures('float64')

ALPHA = 0.3
SHORT = {
  'kl_coefficient': ALPHA,
  'critic': CriticConfig(learning_rate=0.05, target_decay=0.8),
  'replay': ReplayConfig(capacity=64, rows=32),
}


def _improve(mdp, make_bench, make_critics, algorithm, data, iterations):
  """The policy's table and the critics after learning from a replay."""
  optimizer = optax.adam(optax.linear_schedule(0.1, 0.0, iterations))
  learner = OffPolicyLearner(make_bench(optimizer), algorithm, make_critics())
  state = TrainState.create(
    jnp.asarray(mdp.reference), optimizer, jax.random.key(0)
  )
  for rollout in data:
    learner.observe(rollout)
  for _ in range(iterations):
    state, metrics = learner.improve(state)
  assert all(np.isfinite(float(value)) for value in metrics.values())
  return state.params, learner.items()


def _all_responses(mdp):
  """Every response once in each context: no policy's distribution."""
  everything = jnp.tile(jnp.arange(15), 2)
  return mdp.rollout(everything, contexts=(0, 1))


def _reached(mdp, table, context):
  """Share of the best value that is lacking, and the chances less the best."""
  best, value = mdp.optimum(ALPHA, context)
  lacking = (value - mdp.objective(table, ALPHA, context)) / abs(value)
  return lacking, jnp.exp(mdp.response_logps(table, context)) - best


@pytest.mark.parametrize(
  'algorithm',
  [
    SoftOptimalConfig(**SHORT),
    SacConfig(**SHORT),
    InSampleConfig(**SHORT, least_chance=1e-6),
  ],
  ids=lambda algorithm: type(algorithm).__name__,
)
def test_offline_data_of_no_policy_lead_to_the_closed_form_optimum(
  mdp, make_bench, make_critics, algorithm
):
  table, _ = _improve(
    mdp, make_bench, make_critics, algorithm, [_all_responses(mdp)], 500
  )
  for context in range(2):
    lacking, differences = _reached(mdp, table, context)
    assert 0 <= lacking <= 0.01
    np.testing.assert_allclose(differences, 0, atol=0.02)


def _judged(mdp, policy, q_values, target_v):
  """Every response in context 0, judged by given tables."""
  rollout = mdp.rollout(jnp.arange(15))
  rollout = dataclasses.replace(
    rollout, prompt_tokens=jnp.zeros((15, 1), jnp.int32)
  )
  rows = mdp.prefix_rows(rollout.response_tokens)
  of = lambda table: jnp.asarray(table)[0][rows]
  return Judged(
    rollout=rollout,
    mask=rollout.response_mask,
    prior_logps=jax.nn.log_softmax(of(mdp.reference)),
    policy_logps=jax.nn.log_softmax(of(policy)),
    target_q=of(q_values),
    target_v=of(target_v),
  )


def test_value_targets_of_data_actions_are_right_at_the_optimum_alone(mdp):
  """The trap of Eq. 4 as printed; over the policy's actions it is right."""
  generator = np.random.default_rng(0)
  q_values = generator.normal(size=mdp.start.shape)
  prior = jax.nn.log_softmax(jnp.asarray(mdp.reference))
  logits = critic_ops.optimal_logits(jnp.asarray(q_values), prior, alpha=ALPHA)
  data, policy = SacConfig(**SHORT, value_actions='data'), SacConfig(**SHORT)
  zeros = np.zeros(mdp.start.shape[:2])
  best = _judged(mdp, logits, q_values, zeros)
  expected = critic_ops.optimal_state_values(
    best.target_q, best.prior_logps, alpha=ALPHA
  )
  for config in (data, policy):
    np.testing.assert_allclose(
      config.value_targets(best), expected, rtol=1e-10, atol=1e-10
    )
  elsewhere = _judged(mdp, mdp.start, q_values, zeros)
  wrong = data.value_targets(elsewhere)
  right = policy.value_targets(elsewhere)
  # Two actions of the same state: the data's targets differ, the policy's not.
  assert np.ptp(np.asarray(right[:, 0])) < 1e-12
  assert np.ptp(np.asarray(wrong[:, 0])) > 0.1


def test_a_conservative_critic_lowers_what_was_not_seen(
  mdp, make_bench, make_critics
):
  """Data without the second token 2 at the start; weight 0 is the plain one."""
  seen = np.flatnonzero(mdp.tokens[:, 0] != 2)
  data = [mdp.rollout(jnp.tile(seen, 2), contexts=(0, 1))]
  q_values = {}
  for weight in (None, 0.0, 1.0):
    algorithm = (
      SoftOptimalConfig(**SHORT)
      if weight is None
      else CqlConfig(**SHORT, conservative_weight=weight)
    )
    _, items = _improve(mdp, make_bench, make_critics, algorithm, data, 60)
    q_values[weight] = np.asarray(items['critic_params']['q'])
  np.testing.assert_allclose(q_values[0.0], q_values[None], atol=1e-9)
  unseen = lambda weight: q_values[weight][:, :, 0, 2]
  assert np.all(unseen(1.0) < unseen(0.0) - 0.1)


def test_an_unsupported_q_touches_neither_values_nor_policy(mdp):
  config = InSampleConfig(**SHORT, least_chance=0.2)
  zeros = np.zeros(mdp.start.shape[:2])
  q_values = np.random.default_rng(0).normal(size=mdp.start.shape)
  clean = _judged(mdp, mdp.start, q_values, zeros)
  support = config.support(clean.prior_logps)
  assert 0 < np.mean(support) < 1
  spoilt = dataclasses.replace(
    clean, target_q=jnp.where(support, clean.target_q, jnp.nan)
  )
  np.testing.assert_array_equal(
    config.next_values(spoilt), config.next_values(clean)
  )
  logits = config.policy_logits(spoilt.target_q, spoilt.prior_logps)
  np.testing.assert_array_equal(
    logits, config.policy_logits(clean.target_q, clean.prior_logps)
  )
  assert np.all(np.isneginf(np.asarray(logits)) == ~np.asarray(support))


def test_an_ensemble_is_the_least_of_all_heads_and_masks():
  """Two heads and three dropout masks; a mask here is its key's number."""
  draws = []

  def q_fn(params, anchor_params, rollout, key):
    noise = 0.0 if key is None else jax.random.uniform(key)
    draws.append(noise)
    return params + noise

  network = CriticNetwork(jnp.array([[1.0, 4.0], [3.0, 2.0]]), q_fn, None)
  config = CriticConfig(dropout=0.5, dropout_samples=3)
  key = jax.random.key(0)
  found = ensemble_q(network, config, network.params, None, None, key)
  assert len({float(draw) for draw in draws}) == 3
  np.testing.assert_allclose(found, jnp.array([1.0, 2.0]) + min(draws))
  plain = ensemble_q(
    network, CriticConfig(pessimism='mean'), network.params, None, None, key
  )
  np.testing.assert_array_equal(plain, [2.0, 3.0])


def test_a_replay_is_a_ring_and_draws_by_number(mdp):
  config = ReplayConfig(capacity=4, rows=50, seed=3)
  replay = Replay(config, mdp.rollout(jnp.arange(2)))
  with pytest.raises(UserError, match='no trajectory was valid yet'):
    replay.draw()
  valid = jnp.array([True, False, True, True, True, True])
  replay.add(mdp.rollout(jnp.arange(6), contexts=(0, 1), valid=valid))
  assert len(replay) == 4
  items = {name: np.array(x) for name, x in replay.items().items()}
  first = replay.draw()
  # Samples 0, 2 of context 0 and 3, 4, 5 of context 1; 0 was overwritten by 5.
  kept = set(zip(first.prompt_tokens[:, 0], first.rewards))
  expected = {
    (context, mdp.rewards[context, k])
    for context, k in ((0, 2), (1, 3), (1, 4), (1, 5))
  }
  assert kept == expected
  assert first.group_size == 1
  second = replay.draw()
  assert not np.array_equal(first.rewards, second.rewards)
  other = Replay(config, mdp.rollout(jnp.arange(2)))
  other.restore(items)
  np.testing.assert_array_equal(other.draw().rewards, first.rewards)
  longer = dataclasses.replace(
    mdp.rollout(jnp.arange(2)), response_tokens=jnp.zeros((2, 5), jnp.int32)
  )
  with pytest.raises(UserError, match=r'response_tokens has rows of \(5,\)'):
    replay.add(longer)


@pytest.mark.parametrize(
  'config,options,named',
  [
    (SoftOptimalConfig, {'kl_coefficient': 0.0}, 'must be above 0'),
    (SoftOptimalConfig, {'policy_updates': 3}, 'does not divide the 64 rows'),
    (SacConfig, {'value_actions': 'all'}, 'policy, data'),
    (CqlConfig, {'conservative_weight': -1.0}, 'conservative_weight'),
    (InSampleConfig, {'least_chance': 0.0}, 'least_chance'),
    (CriticConfig, {'heads': 0}, 'heads must be 1 or more'),
    (CriticConfig, {'target_decay': 1.0}, 'target_decay must be below 1'),
    (ReplayConfig, {'capacity': 0}, 'capacity'),
  ],
)
def test_bad_choices_are_named(config, options, named):
  with pytest.raises(UserError, match=named):
    config(**options)


def test_choices_without_effect_are_refused():
  for choice in (ReferenceConfig('moving_average'), AdaptiveKl(target=1.0)):
    with pytest.raises(UserError, match='SacConfig'):
      choice.check_fits(SacConfig())
