"""On-policy learners reach the closed form's value from their own samples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from p4lm.rl.on_policy import OnPolicyLearner
from p4lm.rl.ppo import PpoConfig
from p4lm.rl.rebel import RebelConfig
from p4lm.rl.reinforce import ReinforceConfig
from p4lm.rl.value_baseline import ValueBaseline, ValueConfig
from p4lm.training.state import TrainState

pytestmark = pytest.mark.usefixtures('float64')

BETA = 0.3
CASES = {
  'rebel': (RebelConfig(kl_coefficient=BETA, eta=1.0, epochs=4), 250, 0.1),
  'ppo': (
    PpoConfig(
      kl_coefficient=BETA, baseline='leave_one_out', standardise='none'
    ),
    400,
    0.05,
  ),
  'learned_baseline': (
    ReinforceConfig(kl_coefficient=BETA, baseline='value'),
    1000,
    0.05,
  ),
}


def _baseline(mdp, algorithm):
  """A table of values in place of a head on a language model."""

  def values_fn(table, anchor_params, rollout):
    contexts = jnp.repeat(rollout.prompt_tokens[:, 0], rollout.group_size)
    rows = mdp.prefix_rows(rollout.response_tokens)
    return table[contexts[:, None], rows]

  config = ValueConfig(learning_rate=0.05, updates=2)
  return ValueBaseline(values_fn, jnp.zeros((2, 13)), None, config, algorithm)


@pytest.mark.parametrize('name', CASES)
def test_own_samples_lead_to_the_closed_form_optimum(mdp, make_bench, name):
  """Two contexts, 32 samples each."""
  algorithm, iterations, rate = CASES[name]
  updates = iterations * algorithm.updates_per_step
  bench = make_bench(optax.adam(optax.linear_schedule(rate, 0.0, updates)))
  values = _baseline(mdp, algorithm) if name == 'learned_baseline' else None
  learner = OnPolicyLearner(bench, algorithm.objective(mdp.score_fn), values)

  @jax.jit
  def sample(table, key):
    logps = jnp.stack([mdp.response_logps(table, c) for c in range(2)])
    draws = jax.random.categorical(key, logps[:, None, :], shape=(2, 32))
    return mdp.rollout(draws.reshape(-1), behavior=table, contexts=(0, 1))

  optimizer = optax.adam(optax.linear_schedule(rate, 0.0, updates))
  state = TrainState.create(
    jnp.asarray(mdp.reference), optimizer, jax.random.key(0)
  )
  for key in jax.random.split(jax.random.key(1), iterations):
    state, metrics = learner.learn(state, sample(state.params, key))
  assert all(np.isfinite(float(value)) for value in metrics.values())
  assert int(state.step) == iterations
  for context in range(2):
    _, value = mdp.optimum(BETA, context)
    found = mdp.objective(state.params, BETA, context)
    assert 0 <= value - found <= 0.01 * abs(value)
