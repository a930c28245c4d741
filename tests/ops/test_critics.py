"""Soft values against dynamic programming and hand calculations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.ops import critics

ALPHA = 0.4


def _tree(seed=3, vocabulary=3, length=3):
  """A tree of all strings of three tokens: prior log-probs and rewards."""
  generator = np.random.default_rng(seed)
  shapes = [(vocabulary,) * (depth + 1) for depth in range(length)]
  prior = [
    jax.nn.log_softmax(jnp.asarray(generator.normal(size=shape)))
    for shape in shapes
  ]
  rewards = jnp.asarray(generator.normal(size=shapes[-1]))
  return prior, rewards


def test_dynamic_programming_is_the_tilted_prior():
  """P4LM's Eqs. 6-8, from the last token to the first; V = 3, N = 3."""
  with jax.enable_x64(True):
    prior, rewards = _tree()
    q_values, best, values = rewards, [], None
    for level in reversed(prior):
      values = critics.optimal_state_values(q_values, level, alpha=ALPHA)
      logits = critics.optimal_logits(q_values, level, alpha=ALPHA)
      best.insert(0, jax.nn.log_softmax(logits))
      # The policy's own value is the best one, for every state.
      np.testing.assert_allclose(
        critics.policy_state_values(q_values, best[0], level, alpha=ALPHA),
        values,
        rtol=1e-12,
      )
      q_values = values
    strings = list(itertools.product(range(3), repeat=3))
    log_mu, log_p = (
      np.array(
        [
          sum(level[s[: d + 1]] for d, level in enumerate(levels))
          for s in strings
        ]
      )
      for levels in (best, prior)
    )
    tilted = log_p + np.array([rewards[s] for s in strings]) / ALPHA
    log_z = np.log(np.exp(tilted).sum())
    np.testing.assert_allclose(log_mu, tilted - log_z, rtol=1e-10)
    np.testing.assert_allclose(values, ALPHA * log_z, rtol=1e-12)
    mu = np.exp(log_mu)
    objective = mu @ (
      np.array([rewards[s] for s in strings]) - ALPHA * (log_mu - log_p)
    )
    np.testing.assert_allclose(values, objective, rtol=1e-12)


def _example(rows=2, length=3, vocabulary=4):
  generator = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)
  q_values = draw(2, rows, length, vocabulary)
  prior = jax.nn.log_softmax(draw(rows, length, vocabulary))
  policy = jax.nn.log_softmax(draw(rows, length, vocabulary))
  return q_values, prior, policy


def test_no_policy_is_worth_more_than_the_best_one():
  q_values, prior, policy = _example()
  worth = critics.policy_state_values(q_values[0], policy, prior, alpha=ALPHA)
  best = critics.optimal_state_values(q_values[0], prior, alpha=ALPHA)
  assert np.all(worth < best)


def test_the_gradient_of_distillation_is_the_finite_difference_of_the_kl():
  """P4LM's Eq. 9: KL(pi || mu*) written out in NumPy."""
  with jax.enable_x64(True):
    generator = np.random.default_rng(4)
    table, target = generator.normal(size=(2, 1, 2, 4))
    mask = jnp.ones((1, 2), bool)

    def loss(table):
      return critics.distillation_loss(
        jax.nn.log_softmax(table), jnp.asarray(target), response_mask=mask
      )

    def kl(table):
      pi = np.exp(table) / np.exp(table).sum(-1, keepdims=True)
      mu = np.exp(target) / np.exp(target).sum(-1, keepdims=True)
      return (pi * np.log(pi / mu)).sum()

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(table))
    for index in np.ndindex(table.shape):
      moved = [table.copy(), table.copy()]
      moved[0][index] += 1e-6
      moved[1][index] -= 1e-6
      slope = (kl(moved[0]) - kl(moved[1])) / 2e-6
      np.testing.assert_allclose(gradient[index], slope, atol=1e-8)
    np.testing.assert_allclose(loss(jnp.asarray(table)), kl(table), rtol=1e-12)
    np.testing.assert_allclose(loss(jnp.asarray(target)), 0.0, atol=1e-12)


def test_the_paper_s_eq_5_is_alpha_times_eq_9():
  """E_pi[alpha log(pi / p) - Q] and KL(pi || mu*) differ by a constant."""
  q_values, prior, policy = _example(rows=1)
  mask = jnp.ones((1, 3), bool)

  def eq_5(table):
    logps = jax.nn.log_softmax(table)
    return -critics.policy_state_values(
      q_values[0], logps, prior, alpha=ALPHA
    ).sum()

  def eq_9(table):
    target = critics.optimal_logits(q_values[0], prior, alpha=ALPHA)
    return critics.distillation_loss(
      jax.nn.log_softmax(table), target, response_mask=mask
    )

  np.testing.assert_allclose(
    jax.grad(eq_5)(policy), ALPHA * jax.grad(eq_9)(policy), rtol=1e-4, atol=1e-7
  )


def test_at_the_optimum_the_value_error_is_zero_for_any_action():
  """Q - alpha log(mu* / p) = V for every action, so for any data (Eq. 4)."""
  q_values, prior, _ = _example()
  values = critics.optimal_state_values(q_values[0], prior, alpha=ALPHA)
  best = jax.nn.log_softmax(
    critics.optimal_logits(q_values[0], prior, alpha=ALPHA)
  )
  every = q_values[0] - ALPHA * (best - prior)
  np.testing.assert_allclose(
    every, np.broadcast_to(values[..., None], every.shape), atol=1e-5
  )


def test_unsupported_actions_change_nothing():
  q_values, prior, policy = _example()
  support = jnp.arange(4) != 2
  support = jnp.broadcast_to(support, prior.shape)
  spoilt = jnp.where(support, q_values[0], jnp.nan)
  for function in (critics.optimal_state_values, critics.optimal_logits):
    np.testing.assert_array_equal(
      function(spoilt, prior, alpha=ALPHA, support=support),
      function(q_values[0], prior, alpha=ALPHA, support=support),
    )
  # By hand: the sum leaves token 2 out.
  kept = jnp.exp(prior + q_values[0] / ALPHA)[..., jnp.array([0, 1, 3])]
  np.testing.assert_allclose(
    critics.optimal_state_values(
      q_values[0], prior, alpha=ALPHA, support=support
    ),
    ALPHA * np.log(kept.sum(axis=-1)),
    rtol=1e-5,
  )


def test_what_the_prior_never_says_counts_nowhere():
  q_values, prior, _ = _example()
  prior = prior.at[..., 1].set(-jnp.inf)
  spoilt = q_values[0].at[..., 1].set(jnp.nan)
  value = lambda q: critics.optimal_state_values(q, prior, alpha=ALPHA).sum()
  found, gradient = jax.value_and_grad(value)(spoilt)
  assert np.isfinite(found)
  assert np.isfinite(gradient).all()
  assert not np.any(gradient[..., 1])


def test_twins_are_at_most_each_of_them():
  q_values, *_ = _example()
  least = critics.pessimistic(q_values)
  assert np.all(least <= q_values[0]) and np.all(least <= q_values[1])
  assert np.any(least < q_values[0]) and np.any(least < q_values[1])
  np.testing.assert_allclose(
    critics.pessimistic(q_values, 'mean'), q_values.sum(axis=0) / 2, rtol=1e-6
  )
  with pytest.raises(ValueError, match="'min' or 'mean', got 'max'"):
    critics.pessimistic(q_values, 'max')


def test_targets_end_with_the_response():
  rewards = jnp.array([[0.0, 2.0, jnp.nan], [0.0, 0.0, 1.0]])
  values = jnp.array([[9.0, 4.0, jnp.nan], [9.0, 5.0, 6.0]])
  mask = jnp.array([[True, True, False], [True, True, True]])
  np.testing.assert_array_equal(
    critics.temporal_targets(rewards, values, response_mask=mask),
    [[4, 2, 0], [5, 6, 1]],
  )


def test_the_penalty_is_zero_where_q_says_nothing():
  """Equal Q for all actions: log sum p exp(Q) - Q = 0, also by hand below."""
  _, prior, _ = _example(rows=1, length=1)
  actions, mask = jnp.array([[2]]), jnp.ones((1, 1), bool)
  penalty = lambda q: critics.conservative_penalty(
    q, actions, prior, response_mask=mask
  )
  np.testing.assert_allclose(penalty(jnp.full((1, 1, 1, 4), 3.0)), 0, atol=1e-6)
  one = jnp.zeros((1, 1, 1, 4)).at[..., 0].set(1.0)
  p = float(jnp.exp(prior[0, 0, 0]))
  np.testing.assert_allclose(penalty(one), np.log(1 - p + p * np.e), rtol=1e-5)
  gradient = jax.grad(penalty)(jnp.zeros((1, 1, 1, 4)))[0, 0, 0]
  expected = np.exp(prior[0, 0]) - np.eye(4)[2]
  np.testing.assert_allclose(gradient, expected, atol=1e-6)
