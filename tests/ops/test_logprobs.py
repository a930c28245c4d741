import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from p4lm.ops import logprobs


def _logits(shape, seed=0, scale=3.0):
  return scale * np.random.default_rng(seed).normal(size=shape)


def test_token_logprobs_equal_scipy_in_float64():
  logits = _logits((2, 3, 5))
  tokens = np.array([[0, 4, 2], [1, 1, 3]])
  expected = np.take_along_axis(
    special.log_softmax(logits / 0.7, axis=-1), tokens[..., None], axis=-1
  )[..., 0]
  with jax.enable_x64(True):
    logps = logprobs.token_logprobs(
      jnp.asarray(logits), jnp.asarray(tokens), temperature=0.7
    )
    assert logps.dtype == jnp.float64
    np.testing.assert_allclose(logps, expected, rtol=1e-13)


def test_token_logprobs_do_not_depend_on_neighbours_or_padding():
  logits = jnp.asarray(_logits((4, 6, 5)), jnp.float32)
  tokens = jnp.asarray(np.random.default_rng(1).integers(0, 5, (4, 6)))
  whole = logprobs.token_logprobs(logits, tokens)
  alone = logprobs.token_logprobs(logits[2:3, :4], tokens[2:3, :4])
  np.testing.assert_array_equal(whole[2:3, :4], alone)


def test_bfloat16_logits_are_normalised_in_float32():
  logits = jnp.asarray(_logits((1, 4, 300)), jnp.bfloat16)
  tokens = jnp.array([[0, 1, 2, 3]])
  logps = logprobs.token_logprobs(logits, tokens)
  exact = logprobs.token_logprobs(logits.astype(jnp.float32), tokens)
  assert logps.dtype == jnp.float32
  np.testing.assert_array_equal(logps, exact)


def test_huge_logits_stay_finite_with_finite_gradients():
  logits = jnp.array([[[1e30, -1e30, 0.0]]])
  tokens = jnp.array([[0]])
  value, slope = jax.value_and_grad(
    lambda z: jnp.sum(logprobs.token_logprobs(z, tokens))
  )(logits)
  assert value == 0
  np.testing.assert_array_equal(slope, np.zeros((1, 1, 3)))


def test_tokens_that_are_never_drawn_leave_the_others_renormalised():
  logits = jnp.log(jnp.array([[[0.5, 0.3, 0.2]]])).at[0, 0, 2].set(-jnp.inf)

  def logp(z, token):
    return logprobs.token_logprobs(z, jnp.array([[token]]))[0, 0]

  kept, slope = jax.value_and_grad(logp)(logits, 0)
  np.testing.assert_allclose(kept, np.log(0.625), rtol=1e-6)
  np.testing.assert_allclose(slope, [[[0.375, -0.375, 0.0]]], atol=1e-6)
  assert logp(logits, 2) == -np.inf


def test_drift_is_the_gap_of_counted_tokens():
  policy = jnp.array([[-1.0, -2.0, jnp.nan]])
  behavior = jnp.array([[-1.5, -2.1, 3.0]])
  mask = jnp.array([[True, True, False]])
  drift = logprobs.logprob_drift(policy, behavior, mask)
  np.testing.assert_allclose(drift['drift_mean'], 0.3, rtol=1e-5)
  np.testing.assert_allclose(drift['drift_max'], 0.5, rtol=1e-5)
  np.testing.assert_allclose(drift['ratio_max'], np.exp(0.5), rtol=1e-5)


def test_sequence_logprobs_skip_padding():
  logps = jnp.array([[-1.0, -2.0, jnp.nan], [jnp.inf, jnp.nan, 0.0]])
  mask = jnp.array([[True, True, False], [False, False, False]])
  value, slope = jax.value_and_grad(
    lambda x: jnp.sum(logprobs.sequence_logprobs(x, mask))
  )(logps)
  assert value == -3
  np.testing.assert_array_equal(slope, [[1, 1, 0], [0, 0, 0]])


def test_token_entropies_equal_scipy():
  logits = _logits((2, 3, 5))
  logits[0, 0, 1:] = -np.inf  # a certain token
  expected = special.entr(special.softmax(logits / 2.0, axis=-1)).sum(-1)
  with jax.enable_x64(True):
    found = logprobs.token_entropies(jnp.asarray(logits), temperature=2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_drift_of_nothing_is_zero():
  nan = jnp.full((2, 3), jnp.nan)
  drift = logprobs.logprob_drift(nan, nan, jnp.zeros((2, 3), bool))
  assert drift['drift_mean'] == 0
  assert drift['drift_max'] == 0


@pytest.mark.parametrize('temperature', [0.0, -1.0, float('nan')])
def test_temperature_out_of_range_is_named(temperature):
  with pytest.raises(ValueError, match='temperature must be above 0'):
    logprobs.token_logprobs(
      jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), int), temperature=temperature
    )
