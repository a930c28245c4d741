"""GRPO as published against a sum over every group, written in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from p4lm.rl.grpo import GrpoConfig

pytestmark = pytest.mark.usefixtures('float64')

BETA = 0.3
COUNT = 15
# What p4lm.ops.advantages adds to a deviation.
FLOOR = 1e-6


def _tokens(mdp, response):
  """(state's row of the table, token) along a response."""
  length = int(mdp.mask[response].sum())
  tokens = [int(token) for token in mdp.tokens[response, :length]]
  return [
    (mdp.prefix_row(tuple(tokens[:place])), token)
    for place, token in enumerate(tokens)
  ]


def _chances(mdp, logps):
  return np.array(
    [
      np.exp(sum(logps[row, token] for row, token in _tokens(mdp, response)))
      for response in range(COUNT)
    ]
  )


def _mean_advantages(rewards, chances, group_size):
  """E[(r_i - mean) / deviation] of a response over all its companions."""
  found = np.zeros(COUNT)
  for others in itertools.product(range(COUNT), repeat=group_size - 1):
    weight = np.prod(chances[list(others)])
    for response in range(COUNT):
      group = rewards[[response, *others]]
      deviation = np.sqrt(np.mean((group - group.mean()) ** 2)) + FLOOR
      found[response] += weight * (group[0] - group.mean()) / deviation
  return found


def _exact_gradient(mdp, group_size, shares):
  """Of the expected loss in context 0, token by token.

  A token's part of the policy's gradient is its advantage, that of k3 is
  1 - p / pi; both times the gradient of log pi, which is a unit vector less the
  probabilities.

  Args:
    shares: {length: weight of a token of a response so long}.
  """
  logps = special.log_softmax(mdp.start[0], axis=-1)
  anchor = special.log_softmax(mdp.reference[0], axis=-1)
  chances = _chances(mdp, logps)
  np.testing.assert_allclose(chances.sum(), 1)
  advantages = _mean_advantages(mdp.rewards[0], chances, group_size)
  gradient = np.zeros_like(mdp.start)
  for response, chance in enumerate(chances):
    tokens = _tokens(mdp, response)
    for row, token in tokens:
      ratio = np.exp(anchor[row, token] - logps[row, token])
      slope = BETA * (1 - ratio) - advantages[response]
      score = np.eye(3)[token] - np.exp(logps[row])
      gradient[0, row] += chance * shares[len(tokens)] * slope * score
  return gradient


def _expected_gradient(mdp, config, group_size):
  """E grad loss over every group, each through the real loss."""
  objective = config.objective(mdp.score_fn)
  groups = jnp.array(list(itertools.product(range(COUNT), repeat=group_size)))

  @jax.jit
  def expectation(table):
    def gradient(group):
      rollout = mdp.rollout(group)
      return jax.grad(lambda t: objective.loss_fn(t, None, rollout, None)[0])(
        table
      )

    logps = mdp.response_logps(table)
    weights = jnp.exp(jnp.sum(logps[groups], axis=1))
    return jnp.tensordot(weights, jax.vmap(gradient)(groups), 1)

  return expectation(jnp.asarray(mdp.start))


@pytest.mark.parametrize(
  'aggregation,shares',
  [
    ('response_mean', {1: 1, 2: 1 / 2, 3: 1 / 3}),
    ('response', {1: 1, 2: 1, 3: 1}),
  ],
)
@pytest.mark.parametrize('group_size', [2, 3])
def test_expectation_is_the_sum_over_all_groups(
  mdp, group_size, aggregation, shares
):
  config = GrpoConfig(kl_coefficient=BETA, aggregation=aggregation)
  exact = _exact_gradient(mdp, group_size, shares)
  np.testing.assert_allclose(
    _expected_gradient(mdp, config, group_size), exact, atol=1e-12
  )
  assert np.abs(exact).max() > 0.01


def test_a_group_that_earned_the_same_moves_by_its_kl_alone(mdp):
  """Equal rewards have no deviation to be divided by."""
  response = 4
  rollout = mdp.rollout(jnp.full(3, response))
  objective = GrpoConfig(kl_coefficient=BETA).objective(mdp.score_fn)
  found = jax.grad(lambda t: objective.loss_fn(t, None, rollout, None)[0])(
    jnp.asarray(mdp.start)
  )
  logps = special.log_softmax(mdp.start[0], axis=-1)
  anchor = special.log_softmax(mdp.reference[0], axis=-1)
  tokens = _tokens(mdp, response)
  exact = np.zeros_like(mdp.start)
  for row, token in tokens:
    slope = BETA * (1 - np.exp(anchor[row, token] - logps[row, token]))
    exact[0, row] += slope * (np.eye(3)[token] - np.exp(logps[row]))
  np.testing.assert_allclose(found, exact / len(tokens), atol=1e-12)
