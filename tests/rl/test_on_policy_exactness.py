"""PPO, GRPO, REBEL and learned baselines against sums over all responses."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.rl.grpo import GrpoConfig
from p4lm.rl.ppo import PpoConfig
from p4lm.rl.rebel import RebelConfig
from p4lm.rl.reinforce import ReinforceConfig
from p4lm.rl.value_baseline import ValueBaseline, ValueConfig

pytestmark = pytest.mark.usefixtures('float64')

BETA = 0.3
COUNT = 15
ONCE = {'epochs': 1, 'minibatches': 1}


def _gradient_of(objective, table, rollout):
  """Of the first update on a rollout, with the parameters that planned it."""

  @jax.jit
  def gradient(table, rollout):
    batch = rollout
    if objective.plan is not None:
      batches = objective.plan(table, None, rollout, jax.random.key(0))
      batch = jax.tree.map(lambda x: x[0], batches)
    return jax.grad(lambda t: objective.loss_fn(t, None, batch, None)[0])(table)

  return gradient(table, rollout)


def _expected_gradient(mdp, config, group_size, change=lambda rollout: rollout):
  """E grad loss over every group of responses of the starting policy."""
  objective = config.objective(mdp.score_fn)
  groups = jnp.array(list(itertools.product(range(COUNT), repeat=group_size)))

  @jax.jit
  def expectation(table):
    gradients = jax.vmap(
      lambda group: _gradient_of(objective, table, change(mdp.rollout(group)))
    )(groups)
    logps = mdp.response_logps(table)
    weights = jnp.exp(jnp.sum(logps[groups], axis=1))
    return jnp.tensordot(weights, gradients, 1)

  return expectation(jnp.asarray(mdp.start))


def _objective_gradient(mdp, beta=BETA):
  return jax.grad(lambda t: mdp.objective(t, beta))(jnp.asarray(mdp.start))


def test_the_first_ppo_update_is_reinforce(mdp):
  config = PpoConfig(
    kl_coefficient=BETA, baseline='leave_one_out', standardise='none', **ONCE
  )
  np.testing.assert_allclose(
    _expected_gradient(mdp, config, group_size=2),
    -_objective_gradient(mdp),
    atol=1e-12,
  )


@pytest.mark.parametrize('choices', [{}, {'kl_in': 'reward'}])
def test_one_update_alone_is_the_first_of_several_for_one_pass(mdp, choices):
  passes = []

  def score_fn(*arguments):
    passes.append(arguments)
    return mdp.score_fn(*arguments)

  rollout = mdp.rollout(jnp.array([0, 3, 9, 14]))
  table = jnp.asarray(mdp.start)
  alone = GrpoConfig(**choices).objective(score_fn)
  assert alone.plan is None
  found = _gradient_of(alone, table, rollout)
  assert len(passes) == 1
  several = GrpoConfig(epochs=2, **choices).objective(score_fn)
  expected = _gradient_of(several, table, rollout)
  assert len(passes) == 3
  np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
  assert np.abs(expected).max() > 0.01
  # A deviation over the whole rollout must not become one over microbatches.
  assert GrpoConfig(standardise='batch').objective(score_fn).plan is not None


def test_grpo_without_its_divisors_is_reinforce_with_a_group_mean(mdp):
  """Dr. GRPO: a mean that includes the own sample costs (n - 1) / n."""
  config = GrpoConfig(
    kl_coefficient=0.0, standardise='none', aggregation='response'
  )
  np.testing.assert_allclose(
    _expected_gradient(mdp, config, group_size=3),
    -2 / 3 * _objective_gradient(mdp, beta=0.0),
    atol=1e-12,
  )


def test_grpo_weighs_each_response_alike_and_in_units_of_its_group(mdp):
  """Two responses: advantages are +1 and -1 whatever the rewards are."""
  short = int(mdp.mask.sum(axis=1).argmin())
  rollout = mdp.rollout(jnp.array([0, short]))
  assert rollout.rewards[0] != rollout.rewards[1]
  objective = GrpoConfig(kl_coefficient=0.0).objective(mdp.score_fn)
  table = jnp.asarray(mdp.start)
  found = _gradient_of(objective, table, rollout)
  sign = jnp.sign(rollout.rewards - rollout.rewards[::-1])
  mask = rollout.response_mask

  def by_hand(table):
    logps = mdp.score_fn(table, None, rollout)
    means = jnp.sum(jnp.where(mask, logps, 0.0), axis=1) / jnp.sum(mask, axis=1)
    return -jnp.mean(sign * means)

  expected = jax.grad(by_hand)(table)
  assert jnp.sum(mask[0]) != jnp.sum(mask[1])
  # 1e-6 is added to the deviation.
  spread = jnp.abs(rollout.rewards[0] - rollout.rewards[1]) / 2
  np.testing.assert_allclose(
    found * (1 + 1e-6 / spread), expected, rtol=1e-9, atol=1e-14
  )


@pytest.mark.parametrize('kl_in,estimator', [('reward', 'k1'), ('loss', 'k3')])
def test_coefficients_of_the_rollout_replace_the_configured_one(
  mdp, kl_in, estimator
):
  choices = {'kl_in': kl_in, 'kl_estimator': estimator}
  rollout = mdp.rollout(jnp.array([0, 3, 9, 14]))
  priced = dataclasses.replace(rollout, kl_coefficients=jnp.full(4, BETA))
  table = jnp.asarray(mdp.start)
  for config in (ReinforceConfig, GrpoConfig):
    fixed = config(kl_coefficient=BETA, **choices).objective(mdp.score_fn)
    other = config(kl_coefficient=9.0, **choices).objective(mdp.score_fn)
    np.testing.assert_allclose(
      _gradient_of(other, table, priced),
      _gradient_of(fixed, table, rollout),
      rtol=1e-12,
      atol=1e-15,
    )


def test_ppo_compares_with_its_own_replay_and_corrects_for_the_sampler(mdp):
  """The sampler's log-probabilities are off by -0.1 a token."""
  config = PpoConfig(
    kl_coefficient=0.0, baseline='none', standardise='none', **ONCE
  )
  rollout = mdp.rollout(jnp.array([0, 3, 9, 14]))
  off = dataclasses.replace(
    rollout, behavior_logps=rollout.behavior_logps - 0.1
  )
  table = jnp.asarray(mdp.start)
  exact = _gradient_of(config.objective(mdp.score_fn), table, rollout)
  ignored = _gradient_of(config.objective(mdp.score_fn), table, off)
  np.testing.assert_allclose(ignored, exact, rtol=1e-12, atol=1e-15)
  for cap, factor in ((2.0, np.exp(0.1)), (1.05, 1.05)):
    corrected = dataclasses.replace(config, ratio_cap=cap)
    found = _gradient_of(corrected.objective(mdp.score_fn), table, off)
    np.testing.assert_allclose(found, factor * exact, rtol=1e-10, atol=1e-15)


def test_the_first_rebel_gradient_is_minus_four_eta_of_the_objective(mdp):
  for pairs, group_size in (('neighbours', 2), ('all', 3)):
    config = RebelConfig(
      eta=0.7, kl_coefficient=BETA, pairs=pairs, epochs=1, minibatches=1
    )
    np.testing.assert_allclose(
      _expected_gradient(mdp, config, group_size),
      -4 * 0.7 * _objective_gradient(mdp),
      atol=1e-12,
    )


def test_rebel_has_no_loss_at_the_step_of_mirror_descent(mdp):
  """pi proportional to pi_t exp(eta R), R = r - beta log(pi_t / reference)."""
  eta, start = 0.7, jnp.asarray(mdp.start)
  objective = RebelConfig(eta=eta, kl_coefficient=BETA, epochs=1).objective(
    mdp.score_fn
  )
  logps = mdp.response_logps(start)
  paid = logps - mdp.response_logps(jnp.asarray(mdp.reference))
  tilted = logps + eta * (mdp.rewards[0] - BETA * paid)
  table = jnp.asarray(mdp.table_of(jax.nn.softmax(tilted)))
  rollout = mdp.rollout(jnp.arange(COUNT))
  batches = objective.plan(start, None, rollout, jax.random.key(0))
  batch = jax.tree.map(lambda x: x[0], batches)
  loss = lambda t: objective.loss_fn(t, None, batch, None)[0]
  assert loss(table) < 1e-20
  assert loss(start) > 0.1
  # A prompt's rewards may be shifted by any constant.
  shifted = batch | {'rewards': batch['rewards'] + 5.0}
  np.testing.assert_allclose(
    objective.loss_fn(start, None, shifted, None)[0], loss(start), rtol=1e-12
  )


def _state_values(mdp, table):
  """V of every state of context 0 under a table, by the tree of responses."""
  chances = np.asarray(jnp.exp(mdp.response_logps(table)))
  anchor = np.asarray(mdp.response_logps(jnp.asarray(mdp.reference)))
  logps = np.log(chances)
  values = np.zeros((2, 13))
  for length in range(3):
    for start in itertools.product((0, 2), repeat=length):
      below = [k for k in range(COUNT) if mdp.begins(k, start)]
      paid = _prefix_gap(mdp, table, start)
      gains = mdp.rewards[0] - BETA * (logps - anchor) + BETA * paid
      weights = chances[below] / chances[below].sum()
      values[0, mdp.prefix_row(start)] = weights @ gains[below]
  return values


def _prefix_gap(mdp, table, start):
  """log(policy / reference) of a prefix: paid before the state."""
  gap = 0.0
  for position, token in enumerate(start):
    row = mdp.prefix_row(start[:position])
    for logits, sign in ((table, 1), (mdp.reference, -1)):
      gap += sign * float(
        jax.nn.log_softmax(jnp.asarray(logits)[0, row])[token]
      )
  return gap


def _with_values(mdp, values):
  """Puts a table's values [2, 13] into rollouts of context 0."""

  def change(rollout):
    rows = mdp.prefix_rows(rollout.response_tokens)
    return dataclasses.replace(rollout, values=jnp.asarray(values)[0][rows])

  return change


@pytest.mark.parametrize('decay,exact', [(1.0, False), (0.6, True)])
def test_a_learned_baseline_is_unbiased(mdp, decay, exact):
  """For any values with decay 1; for any decay if the values are right."""
  values = np.random.default_rng(2).normal(size=(2, 13))
  if exact:
    values = _state_values(mdp, jnp.asarray(mdp.start))
  config = ReinforceConfig(
    kl_coefficient=BETA, baseline='value', value_decay=decay
  )
  found = _expected_gradient(mdp, config, 1, _with_values(mdp, values))
  np.testing.assert_allclose(found, -_objective_gradient(mdp), atol=1e-12)


def test_wrong_values_and_a_small_decay_are_biased(mdp):
  values = np.random.default_rng(2).normal(size=(2, 13))
  config = ReinforceConfig(
    kl_coefficient=BETA, baseline='value', value_decay=0.6
  )
  found = _expected_gradient(mdp, config, 1, _with_values(mdp, values))
  assert np.abs(found + _objective_gradient(mdp)).max() > 0.01


def test_a_learned_baseline_needs_values(mdp):
  objective = ReinforceConfig(baseline='value').objective(mdp.score_fn)
  with pytest.raises(ValueError, match="critic's values"):
    _gradient_of(objective, jnp.asarray(mdp.start), mdp.rollout(jnp.arange(2)))


def test_the_baseline_learns_the_values_of_states(mdp):
  """All 27 strings of tokens, cut at EOS: the uniform policy, exactly."""
  uniform = np.zeros_like(mdp.start)
  strings = itertools.product(range(3), repeat=3)
  cut = [s[: s.index(1) + 1] if 1 in s else s for s in strings]
  responses = [
    next(
      k
      for k in range(COUNT)
      if mdp.begins(k, s) and mdp.mask[k].sum() == len(s)
    )
    for s in cut
  ]
  rollout = mdp.rollout(jnp.array(responses), behavior=uniform)

  def values_fn(params, anchor_params, rollout):
    assert anchor_params is None
    return params[mdp.prefix_rows(rollout.response_tokens)]

  algorithm = ReinforceConfig(kl_coefficient=BETA, baseline='value')
  baseline = ValueBaseline(
    values_fn,
    jnp.zeros(13),
    None,
    ValueConfig(learning_rate=0.05, updates=100),
    algorithm,
  )
  for _ in range(8):
    valued = dataclasses.replace(rollout, values=baseline(rollout))
    metrics = baseline.fit(valued)
  expected = _state_values(mdp, jnp.asarray(uniform))[0]
  reached = [0, 1, 3, 4, 6, 10, 12]
  learned = baseline.items()['value_params']
  np.testing.assert_allclose(
    learned[np.array(reached)], expected[reached], atol=1e-3
  )
  assert metrics['value_loss'] < 1
  assert 0 < metrics['value_explained'] < 1
