"""Conservative critics on the tiny problem: gradient and fixed point."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize, special

from p4lm.rl.cql import CqlConfig
from p4lm.rl.critics import CriticConfig, Judged, make_critic_update
from p4lm.rl.replay import ReplayConfig

pytestmark = pytest.mark.usefixtures('float64')

ALPHA = 0.3
COUNT = 15
CONTEXTS = 2


def _config(weight):
  return CqlConfig(
    kl_coefficient=ALPHA,
    conservative_weight=weight,
    critic=CriticConfig(target_decay=0.5),
    replay=ReplayConfig(capacity=64, rows=32),
  )


def _data(mdp, responses):
  """One trajectory a row, the same responses in both contexts."""
  contexts = np.repeat(np.arange(CONTEXTS), len(responses))
  rollout = mdp.rollout(jnp.tile(jnp.array(responses), 2), contexts=contexts)
  assert rollout.group_size == 1
  return rollout


def _visits(mdp, responses):
  """{row of the table: how often each token was taken there}, a context."""
  found = {}
  for response in responses:
    length = int(mdp.mask[response].sum())
    tokens = [int(token) for token in mdp.tokens[response, :length]]
    for place, token in enumerate(tokens):
      row = mdp.prefix_row(tuple(tokens[:place]))
      found.setdefault(row, np.zeros(3))[token] += 1
  return found


@pytest.mark.parametrize('weight', [0.4, 2.0])
def test_the_gradient_is_the_soft_policy_less_the_data(mdp, weight):
  """Of the penalty: sum over visits of mu_Q(a|s) - 1{a taken}, per token."""
  responses = [0, 0, 3, 7, 9, 14]
  rollout = _data(mdp, responses)
  rows = mdp.prefix_rows(rollout.response_tokens)
  prior = jax.nn.log_softmax(jnp.asarray(mdp.reference))
  at = (rollout.prompt_tokens[:, :1], rows)
  judged = Judged(
    rollout=rollout,
    mask=rollout.response_mask,
    prior_logps=prior[at],
    policy_logps=None,
    target_q=None,
    target_v=None,
  )
  table = np.random.default_rng(3).normal(size=(2, CONTEXTS, 13, 3))

  def penalty(table):
    q_values = table[:, *at]
    return _config(weight).extra_loss(judged, q_values, None)[0]

  found = jax.grad(penalty)(jnp.asarray(table))
  visits = _visits(mdp, responses)
  tokens = CONTEXTS * sum(counts.sum() for counts in visits.values())
  exact = np.zeros_like(table)
  for row, counts in visits.items():
    mu = special.softmax(
      np.asarray(prior)[:, row] + table[:, :, row] / ALPHA, -1
    )
    exact[:, :, row] = weight * (counts.sum() * mu - counts) / tokens
  np.testing.assert_allclose(found, exact, atol=1e-12)


def _solved(mdp, responses, weight):
  """Q of every visited state by its first-order condition, leaves first.

      n(a) (Q(a) - y(a)) + w (n mu_Q(a) - n(a)) = 0    for each token a

  y is the reward where the response ends, else the soft value of what follows.
  """
  prior = special.log_softmax(mdp.reference, axis=-1)
  visits = _visits(mdp, responses)
  q_values = np.full((CONTEXTS, 13, 3), np.nan)
  prefixes = sorted(
    {
      tuple(int(t) for t in mdp.tokens[r, :place])
      for r in responses
      for place in range(int(mdp.mask[r].sum()))
    },
    key=len,
    reverse=True,
  )
  for context in range(CONTEXTS):
    for prefix in prefixes:
      row = mdp.prefix_row(prefix)
      targets = np.zeros(3)
      for token in range(3):
        after = (*prefix, token)
        if token == mdp.eos_id or len(after) == 3:
          [response] = [
            r
            for r in range(COUNT)
            if mdp.begins(r, after) and mdp.mask[r].sum() == len(after)
          ]
          targets[token] = mdp.rewards[context, response]
        else:
          below = mdp.prefix_row(after)
          targets[token] = ALPHA * special.logsumexp(
            prior[context, below] + q_values[context, below] / ALPHA
          )
      counts, log_p = visits[row], prior[context, row]

      def condition(q, counts=counts, log_p=log_p, targets=targets):
        mu = special.softmax(log_p + q / ALPHA)
        return counts * (q - targets) + weight * (counts.sum() * mu - counts)

      found = optimize.root(condition, targets, tol=1e-12)
      assert found.success
      q_values[context, row] = found.x
  return q_values


@pytest.mark.parametrize('weight', [0.0, 0.2])
def test_the_critics_settle_where_their_condition_holds(
  mdp, make_bench, make_critics, weight
):
  """Every response, some of them more often; weight 0 is fitted Q."""
  responses = [*range(COUNT), 0, 0, 3, 9, 9, 14]
  rollout = _data(mdp, responses)
  bench, network = make_bench(optax.sgd(0.1)), make_critics()
  optimizer = optax.adam(optax.exponential_decay(0.1, 400, 0.1))
  update = make_critic_update(network, bench, _config(weight), optimizer)
  policy = (jnp.asarray(mdp.start), None)

  @jax.jit
  def settle(params):
    state = (params, params, optimizer.init(params))
    step = lambda state, key: update(
      state, bench.anchor.params, policy, rollout, key
    )
    keys = jax.random.split(jax.random.key(0), 2400)
    return jax.lax.scan(step, state, keys)[0][0]

  q_values = np.asarray(settle(network.params)['q'])
  exact = _solved(mdp, responses, weight)
  known = ~np.isnan(exact)
  assert known.sum() == CONTEXTS * 3 * 7
  for head in q_values:
    np.testing.assert_allclose(head[known], exact[known], atol=1e-4)
  if weight == 0:
    # Without the penalty this is dynamic programming: V(start) = alpha log Z.
    prior = special.log_softmax(mdp.reference, axis=-1)
    for context in range(CONTEXTS):
      value = ALPHA * special.logsumexp(
        prior[context, 0] + exact[context, 0] / ALPHA
      )
      _, best = mdp.optimum(ALPHA, context)
      np.testing.assert_allclose(value, best, rtol=1e-10)
