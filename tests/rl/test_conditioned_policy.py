"""A policy of many weightings against sums over all responses."""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from p4lm.rewards.joint import JointReward, JointRewardConfig
from p4lm.rewards.terms import CallableTerm, RewardRequest
from p4lm.rewards.weightings import Weighted
from p4lm.rl.eos import EosContract
from p4lm.rl.on_policy import OnPolicyLearner
from p4lm.rl.ppo import PpoConfig
from p4lm.rl.reinforce import ReinforceConfig, make_reinforce_loss
from p4lm.rl.rollouts import collect_rollout
from p4lm.training.state import TrainState

pytestmark = pytest.mark.usefixtures('float64')

BETA = 0.3
COUNT = 15
SCALES = {'first': 2.0, 'second': 0.5}
# Context 0 and context 1 are the same prompt with these weights.
WANTED = ({'first': 3.0, 'second': 1.0}, {'second': 1.0})
SHARES = ((0.75, 0.25), (0.0, 1.0))
# Multiples of 1/16 are exact in the float32 of rewards.
TERMS = np.round(16 * np.random.default_rng(8).normal(size=(2, COUNT))) / 16


@pytest.fixture(name='paid', scope='module')
def _paid(mdp):
  """The problem, each context paid as its prompt's weights say.

  Rewards come through the joint reward of a rollout that holds every response
  once for each prompt.
  """
  rows = {row.tobytes(): k for k, row in enumerate(mdp.tokens)}
  joint = JointReward(
    [
      CallableTerm(name, lambda request, t=table: t[int(request.text)])
      for name, table in zip(SCALES, TERMS)
    ],
    JointRewardConfig(weights=SCALES),
  )
  weighted = Weighted(tuple(SCALES), levels=4)
  rollout = mdp.rollout(jnp.tile(jnp.arange(COUNT), 2), contexts=(0, 1))
  collected = collect_rollout(
    rollout.prompts,
    [
      RewardRequest('', 'i', 'u', shares=weighted.shares(weighted.of(wanted)))
      for wanted in WANTED
    ],
    jax.random.key(0),
    sample_fn=lambda prompts, key: types.SimpleNamespace(
      response_tokens=rollout.response_tokens,
      response_mask=rollout.response_mask,
      logps=rollout.behavior_logps,
    ),
    reference_fn=lambda *_: rollout.reference_logps,
    decode_fn=lambda row: str(rows[row.tobytes()]),
    reward_fn=joint,
    eos_id=mdp.eos_id,
    eos_contract=EosContract('score_anyway'),
  )
  rewards = np.asarray(collected.rollout.rewards, np.float64).reshape(2, COUNT)
  # The same problem for both: only what is paid differs.
  same = {
    name: np.stack([getattr(mdp, name)[0]] * 2)
    for name in ('reference', 'start')
  }
  return dataclasses.replace(mdp, rewards=rewards, **same)


def _objective(mdp, table, context):
  """J_w = E[sum_k w_k c_k r_k - beta log(pi / p)], written out."""
  logps = mdp.response_logps(table, context)
  gap = logps - mdp.response_logps(jnp.asarray(mdp.reference), context)
  gain = -BETA * gap
  for share, scale, term in zip(SHARES[context], SCALES.values(), TERMS):
    gain += share * scale * term
  return jnp.sum(jnp.exp(logps) * gain)


@pytest.mark.parametrize('context', [0, 1])
def test_expectation_is_the_gradient_of_the_objective_of_its_weights(
  paid, context
):
  """Over every pair of responses, with the leave-one-out baseline."""
  loss_fn = make_reinforce_loss(
    paid.score_fn, ReinforceConfig(kl_coefficient=BETA)
  )
  pairs = jnp.array(list(itertools.product(range(COUNT), repeat=2)))
  table = jnp.asarray(paid.start)

  @jax.jit
  def expectation(table):
    def gradient(pair):
      rollout = paid.rollout(pair, contexts=(context,))
      return jax.grad(lambda t: loss_fn(t, None, rollout, None)[0])(table)

    logps = paid.response_logps(table, context)
    chances = jnp.exp(jnp.sum(logps[pairs], axis=1))
    return jnp.tensordot(chances, jax.vmap(gradient)(pairs), 1)

  exact = jax.grad(lambda t: _objective(paid, t, context))(table)
  np.testing.assert_allclose(expectation(table), -exact, atol=1e-12)
  assert np.abs(exact[context]).max() > 0.01


def test_own_samples_lead_to_the_optimum_of_each_weighting(paid, make_bench):
  """One run for both; each prompt ends at p exp(r_w / beta) / Z_w."""
  iterations = 400
  algorithm = PpoConfig(
    kl_coefficient=BETA, baseline='leave_one_out', standardise='none'
  )
  updates = iterations * algorithm.updates_per_step
  optimizer = optax.adam(optax.linear_schedule(0.05, 0.0, updates))
  learner = OnPolicyLearner(
    make_bench(optimizer), algorithm.objective(paid.score_fn)
  )

  @jax.jit
  def sample(table, key):
    logps = jnp.stack([paid.response_logps(table, c) for c in range(2)])
    draws = jax.random.categorical(key, logps[:, None, :], shape=(2, 32))
    return paid.rollout(draws.reshape(-1), behavior=table, contexts=(0, 1))

  state = TrainState.create(
    jnp.asarray(paid.reference), optimizer, jax.random.key(0)
  )
  for key in jax.random.split(jax.random.key(1), iterations):
    state, _ = learner.learn(state, sample(state.params, key))
  earned = []
  for context in range(2):
    value = _objective(paid, state.params, context)
    _, best = paid.optimum(BETA, context)
    assert 0 <= best - value <= 0.01 * abs(best)
    chances = np.exp(np.asarray(paid.response_logps(state.params, context)))
    earned.append(TERMS @ chances)
  # Each weighting earns more of what it weighs more.
  assert earned[0][0] > earned[1][0] + 0.3
  assert earned[1][1] > earned[0][1] + 0.3
