"""The estimators by enumeration: every outcome of a small distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.ops import kl


@pytest.fixture(name='two_policies', scope='module')
def _two_policies():
  generator = np.random.default_rng(2)
  return generator.normal(size=5), generator.normal(size=5)


def _exact_kl(first, second):
  logp, logq = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
  return jnp.sum(jnp.exp(logp) * (logp - logq))


def _expected_value(logits, reference, estimator):
  logps = jax.nn.log_softmax(logits)
  values = kl.kl_estimates(
    logps,
    jax.nn.log_softmax(reference),
    mask=jnp.ones(5, bool),
    estimator=estimator,
  )
  return jnp.sum(jnp.exp(logps) * values)


def _expected_loss_gradient(logits, reference, estimator):
  """E_{y ~ policy} grad loss(y), every y through the real loss."""
  probabilities = jax.nn.softmax(logits)

  def loss_of(free, outcome):
    one = jnp.ones((1, 1), bool)
    logps = jax.nn.log_softmax(free)[outcome].reshape(1, 1)
    reference_logps = jax.nn.log_softmax(reference)[outcome].reshape(1, 1)
    return kl.kl_loss(logps, reference_logps, mask=one, estimator=estimator)

  gradients = jax.vmap(jax.grad(loss_of), in_axes=(None, 0))(
    logits, jnp.arange(5)
  )
  return probabilities @ gradients


def test_expected_values(two_policies):
  with jax.enable_x64(True):
    policy, reference = map(jnp.asarray, two_policies)
    exact = _exact_kl(policy, reference)
    for estimator in ('k1', 'k3'):
      np.testing.assert_allclose(
        _expected_value(policy, reference, estimator), exact, rtol=1e-12
      )
    k2 = _expected_value(policy, reference, 'k2')
    assert abs(k2 / exact - 1) > 0.05


def test_k2_as_loss_has_the_reverse_kl_gradient(two_policies):
  with jax.enable_x64(True):
    policy, reference = map(jnp.asarray, two_policies)
    np.testing.assert_allclose(
      _expected_loss_gradient(policy, reference, 'k2'),
      jax.grad(_exact_kl, argnums=0)(policy, reference),
      rtol=1e-10,
      atol=1e-14,
    )


def test_k3_as_loss_has_the_forward_kl_gradient(two_policies):
  with jax.enable_x64(True):
    policy, reference = map(jnp.asarray, two_policies)
    np.testing.assert_allclose(
      _expected_loss_gradient(policy, reference, 'k3'),
      jax.grad(_exact_kl, argnums=1)(reference, policy),
      rtol=1e-10,
      atol=1e-14,
    )


def test_k1_as_loss_would_hold_nothing_back_and_is_refused(two_policies):
  with jax.enable_x64(True):
    policy, reference = map(jnp.asarray, two_policies)
    one = jnp.ones((1, 1), bool)

    def k1(free, outcome):
      logps = jax.nn.log_softmax(free)[outcome].reshape(1, 1)
      return kl.kl_estimates(logps, jnp.zeros((1, 1)), mask=one)[0, 0]

    gradients = jax.vmap(jax.grad(k1), in_axes=(None, 0))(policy, jnp.arange(5))
    expected = jax.nn.softmax(policy) @ gradients
    np.testing.assert_allclose(expected, np.zeros(5), atol=1e-15)
  with pytest.raises(ValueError, match='k1 .* reward, or use k2'):
    kl.kl_loss(jnp.zeros((1, 1)), jnp.zeros((1, 1)), mask=one, estimator='k1')


def test_masked_log_probabilities_may_be_anything():
  logps = jnp.array([[-1.0, jnp.nan], [jnp.nan, jnp.inf]])
  mask = jnp.array([[True, False], [False, False]])
  for estimator, expected in (
    ('k1', 1.0),
    ('k2', 0.5),
    ('k3', np.expm1(-1) + 1),
  ):
    found = kl.kl_estimates(
      logps,
      jnp.array([[-2.0, 0.0], [0.0, 0.0]]),
      mask=mask,
      estimator=estimator,
    )
    np.testing.assert_allclose(found, [[expected, 0], [0, 0]], rtol=1e-6)


def test_k3_keeps_precision_for_close_policies():
  # d^2 / 2 = 5e-9; exp(-d) - 1 + d in float32 without expm1 gives 0.
  found = kl.kl_estimates(
    jnp.array([1e-4]), jnp.zeros(1), mask=jnp.ones(1, bool), estimator='k3'
  )
  np.testing.assert_allclose(found, [5e-9], rtol=0.01)


def test_unknown_estimator():
  with pytest.raises(ValueError, match="'k4'"):
    kl.kl_estimates(
      jnp.zeros(1), jnp.zeros(1), mask=jnp.ones(1, bool), estimator='k4'
    )
