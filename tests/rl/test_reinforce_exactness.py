"""REINFORCE + KL against sums over every response of a tiny problem."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.ops import logprobs
from p4lm.rl.reinforce import ReinforceConfig, make_reinforce_loss

pytestmark = pytest.mark.usefixtures('float64')

BETA = 0.3
COUNT = 15


def _expected_gradient(mdp, config, group_size, table=None):
  """E grad loss over every group of responses, each through the real loss."""
  table = jnp.asarray(mdp.start if table is None else table)
  loss_fn = make_reinforce_loss(mdp.score_fn, config)
  groups = jnp.array(list(itertools.product(range(COUNT), repeat=group_size)))

  @jax.jit
  def expectation(table):
    def gradient(group):
      return jax.grad(lambda t: loss_fn(t, None, mdp.rollout(group), None)[0])(
        table
      )

    logps = mdp.response_logps(table)
    weights = jnp.exp(jnp.sum(logps[groups], axis=1))
    return jnp.tensordot(weights, jax.vmap(gradient)(groups), 1)

  return expectation(table)


def _objective_gradient(mdp, beta=BETA):
  return jax.grad(lambda t: mdp.objective(t, beta))(jnp.asarray(mdp.start))


def test_the_responses_are_all_there_is(mdp):
  assert len(mdp.tokens) == COUNT
  total = jnp.sum(jnp.exp(mdp.response_logps(jnp.asarray(mdp.start))))
  np.testing.assert_allclose(total, 1.0, rtol=1e-12)


@pytest.mark.parametrize('credit', ['response', 'to_go'])
def test_expectation_is_the_gradient_of_the_objective(mdp, credit):
  config = ReinforceConfig(kl_coefficient=BETA, baseline='none', credit=credit)
  np.testing.assert_allclose(
    _expected_gradient(mdp, config, group_size=1),
    -_objective_gradient(mdp),
    atol=1e-12,
  )


@pytest.mark.parametrize(
  'baseline,group_size,factor',
  [
    ('none', 2, 1.0),
    ('leave_one_out', 2, 1.0),
    ('leave_one_out', 3, 1.0),
    ('group_mean', 2, 1 / 2),
    ('group_mean', 3, 2 / 3),
    ('batch_mean', 3, 2 / 3),
  ],
)
def test_baselines_scale_the_gradient_as_documented(
  mdp, baseline, group_size, factor
):
  config = ReinforceConfig(kl_coefficient=BETA, baseline=baseline)
  np.testing.assert_allclose(
    _expected_gradient(mdp, config, group_size),
    -factor * _objective_gradient(mdp),
    atol=1e-12,
  )


def test_leave_one_out_is_unbiased_with_credit_to_go(mdp):
  config = ReinforceConfig(kl_coefficient=BETA, credit='to_go')
  np.testing.assert_allclose(
    _expected_gradient(mdp, config, group_size=2),
    -_objective_gradient(mdp),
    atol=1e-12,
  )


def test_entropy_is_added_to_the_objective(mdp):
  config = ReinforceConfig(
    kl_coefficient=0.0, entropy_coefficient=0.2, baseline='none'
  )

  def objective(table):
    logps = mdp.response_logps(table)
    return jnp.sum(jnp.exp(logps) * (mdp.rewards[0] - 0.2 * logps))

  np.testing.assert_allclose(
    _expected_gradient(mdp, config, group_size=1),
    -jax.grad(objective)(jnp.asarray(mdp.start)),
    atol=1e-12,
  )


def test_only_k1_in_the_reward_gives_the_gradient_of_the_objective(mdp):
  for estimator in ('k2', 'k3'):
    config = ReinforceConfig(
      kl_coefficient=BETA, baseline='none', kl_estimator=estimator
    )
    error = _expected_gradient(mdp, config, group_size=1)
    assert np.abs(error + _objective_gradient(mdp)).max() > 0.01


@pytest.mark.parametrize('estimator', ['k2', 'k3'])
def test_kl_in_the_loss_is_the_kl_of_each_token_given_its_prefix(
  mdp, estimator
):
  config = ReinforceConfig(
    kl_coefficient=BETA,
    baseline='none',
    kl_estimator=estimator,
    kl_in='loss',
  )
  start = jnp.asarray(mdp.start)

  def token_divergence(table):
    """Sum over prefixes of P(prefix, held constant) KL(prefix)."""
    policy = jax.nn.log_softmax(table[0])
    anchor = jax.nn.log_softmax(jnp.asarray(mdp.reference)[0])
    if estimator == 'k2':
      divergences = jnp.sum(jnp.exp(policy) * (policy - anchor), axis=1)
    else:
      divergences = jnp.sum(jnp.exp(anchor) * (anchor - policy), axis=1)
    p = jax.nn.softmax(start[0])
    reach = [1.0] + [p[0, a] for a in range(3)]
    reach += [p[0, a] * p[1 + a, b] for a in range(3) for b in range(3)]
    # After EOS, token 1, there is no further position.
    reach = jnp.array(reach)
    ended = [2] + [
      4 + 3 * a + b for a in range(3) for b in range(3) if 1 in (a, b)
    ]
    reach = reach.at[jnp.array(ended)].set(0.0)
    return jnp.sum(reach * divergences)

  reward_part = _objective_gradient(mdp, beta=0.0)
  expected = -reward_part + BETA * jax.grad(token_divergence)(start)
  np.testing.assert_allclose(
    _expected_gradient(mdp, config, group_size=1), expected, atol=1e-12
  )


def test_importance_weights_correct_for_another_behavior(mdp):
  """Responses of one token, where the token's ratio is the response's."""
  policy = jnp.asarray(mdp.start)
  behavior = policy.at[0, 0].add(jnp.array([0.3, -0.2, 0.1]))
  # Whatever comes first, EOS follows for sure: only prefix 0 is random.
  certain = jnp.array([-1e9, 0.0, -1e9])
  policy, behavior = (t.at[0, 1:].set(certain) for t in (policy, behavior))
  config = ReinforceConfig(kl_coefficient=0.0, baseline='none', ratio_cap=1e6)
  loss_fn = make_reinforce_loss(mdp.score_fn, config)

  def gradient(response):
    rollout = mdp.rollout(response[None], behavior=behavior)
    return jax.grad(lambda t: loss_fn(t, None, rollout, None)[0])(policy)

  weights = jnp.exp(mdp.response_logps(behavior))
  gradients = jax.jit(jax.vmap(gradient))(jnp.arange(COUNT))
  found = jnp.tensordot(weights, gradients, 1)
  exact = jax.grad(lambda t: mdp.objective(t, 0.0))(policy)
  np.testing.assert_allclose(found[0, 0], -exact[0, 0], atol=1e-12)
  assert np.abs(exact[0, 0]).max() > 0.01


def _adam_steps(gradient_fn, table, keys, learning_rate):
  """Adam written out, so that the test leans on no optimizer's options."""

  def step(carry, inputs):
    table, first, second = carry
    count, key = inputs
    gradient = gradient_fn(table, key)
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    update = (first / (1 - 0.9**count)) / (
      jnp.sqrt(second / (1 - 0.999**count)) + 1e-8
    )
    rate = learning_rate * (1 - count / (len(keys) + 1))
    return (table - rate * update, first, second), None

  counts = jnp.arange(1.0, len(keys) + 1)
  zeros = jnp.zeros_like(table)
  (table, _, _), _ = jax.lax.scan(step, (table, zeros, zeros), (counts, keys))
  return table


def test_exact_gradients_converge_to_the_closed_form_optimum(mdp):
  loss_fn = make_reinforce_loss(
    mdp.score_fn, ReinforceConfig(kl_coefficient=BETA, baseline='none')
  )

  def gradient(table, key):
    del key
    weights = jnp.exp(mdp.response_logps(table))
    each = jax.vmap(
      lambda r: jax.grad(
        lambda t: loss_fn(t, None, mdp.rollout(r[None]), None)[0]
      )(table)
    )(jnp.arange(COUNT))
    return jnp.tensordot(weights, each, 1)

  keys = jnp.zeros((400, 2), jnp.uint32)
  table = jax.jit(lambda t: _adam_steps(gradient, t, keys, 0.2))(
    jnp.asarray(mdp.reference)
  )
  best, value = mdp.optimum(BETA)
  np.testing.assert_allclose(mdp.objective(table, BETA), value, rtol=1e-4)
  np.testing.assert_allclose(
    jnp.exp(mdp.response_logps(table)), best, atol=1e-3
  )


def test_sampled_rollouts_converge_to_the_closed_form_optimum(mdp):
  """Two contexts, 32 samples each, leave-one-out: the method as it is run."""
  loss_fn = make_reinforce_loss(
    mdp.score_fn, ReinforceConfig(kl_coefficient=BETA)
  )

  def gradient(table, key):
    logps = jnp.stack([mdp.response_logps(table, c) for c in range(2)])
    draws = jax.random.categorical(key, logps[:, None, :], shape=(2, 32))
    rollout = mdp.rollout(draws.reshape(-1), behavior=table, contexts=(0, 1))
    return jax.grad(lambda t: loss_fn(t, None, rollout, None)[0])(table)

  keys = jax.random.split(jax.random.key(0), 1000)
  table = jax.jit(lambda t: _adam_steps(gradient, t, keys, 0.05))(
    jnp.asarray(mdp.reference)
  )
  for context in range(2):
    _, value = mdp.optimum(BETA, context)
    found = mdp.objective(table, BETA, context)
    assert 0 <= value - found <= 0.01 * abs(value)


def test_at_the_optimum_every_sample_has_the_same_return(mdp):
  """r - beta log(policy / reference) = beta log Z: advantages vanish."""
  table = mdp.table_of(mdp.optimum(BETA)[0])
  loss_fn = make_reinforce_loss(
    mdp.score_fn, ReinforceConfig(kl_coefficient=BETA)
  )
  gradient = jax.jit(
    jax.grad(
      lambda t: loss_fn(t, None, mdp.rollout(jnp.arange(COUNT)), None)[0]
    )
  )(jnp.asarray(table))
  np.testing.assert_allclose(gradient, np.zeros_like(table), atol=1e-10)


def test_the_policy_of_the_rollout_has_no_drift(mdp):
  rollout = mdp.rollout(jnp.arange(COUNT))
  _, metrics = make_reinforce_loss(mdp.score_fn)(
    jnp.asarray(mdp.start), None, rollout, None
  )
  assert metrics['drift_max'] == 0
  assert metrics['ratio_max'] == 1
  found = logprobs.sequence_logprobs(
    rollout.behavior_logps - rollout.reference_logps, rollout.response_mask
  )
  np.testing.assert_allclose(metrics['kl'], jnp.mean(found), rtol=1e-12)
