import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from p4lm.ops import supervised


def test_token_cross_entropy_equals_scipy():
  generator = np.random.default_rng(0)
  logits = generator.normal(size=(2, 3, 4))
  tokens = generator.integers(0, 4, (2, 3))
  mask = np.array([[True, True, False], [True, False, False]])
  losses = -np.take_along_axis(
    special.log_softmax(logits, axis=-1), tokens[..., None], axis=-1
  )[..., 0]
  normalisers = special.logsumexp(logits, axis=-1)
  with jax.enable_x64(True):
    found = supervised.token_cross_entropy(
      jnp.asarray(logits), jnp.asarray(tokens), response_mask=jnp.asarray(mask)
    )
    np.testing.assert_allclose(found, losses[mask].mean(), rtol=1e-12)
    found = supervised.token_cross_entropy(
      jnp.asarray(logits),
      jnp.asarray(tokens),
      response_mask=jnp.asarray(mask),
      z_loss=0.01,
    )
    expected = (losses + 0.01 * normalisers**2)[mask].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_token_accuracy_counts_kept_tokens():
  logits = jnp.eye(3)[None]
  accuracy = supervised.token_accuracy(
    logits,
    jnp.array([[0, 0, 2]]),
    response_mask=jnp.array([[True, True, False]]),
  )
  assert accuracy == 0.5


def test_binary_cross_entropy_by_hand():
  logits, labels = np.array([-2.0, 0.5, 4.0]), np.array([0.0, 1.0, 0.25])
  p = special.expit(logits)
  smoothed = 0.9 * labels + 0.05
  expected = -(smoothed * np.log(p) + (1 - smoothed) * np.log(1 - p)).mean()
  with jax.enable_x64(True):
    found = supervised.binary_cross_entropy(
      jnp.asarray(logits),
      jnp.asarray(labels),
      example_mask=jnp.ones(3, bool),
      label_smoothing=0.1,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_binary_cross_entropy_of_a_certain_wrong_answer_is_its_logit():
  loss = supervised.binary_cross_entropy(
    jnp.array([1e5]), jnp.zeros(1), example_mask=jnp.ones(1, bool)
  )
  assert loss == 1e5


def test_binary_accuracy():
  accuracy = supervised.binary_accuracy(
    jnp.array([1.0, -1.0, 2.0, jnp.nan]),
    jnp.array([1.0, 0.0, 0.0, 1.0]),
    example_mask=jnp.array([True, True, True, False]),
  )
  np.testing.assert_allclose(accuracy, 2 / 3, rtol=1e-6)


def test_huber_equals_scipy():
  errors = np.array([-3.0, -0.2, 0.0, 0.7, 5.0])
  with jax.enable_x64(True):
    found = supervised.huber_loss(
      jnp.asarray(errors),
      jnp.zeros(5),
      example_mask=jnp.ones(5, bool),
      delta=0.5,
    )
    np.testing.assert_allclose(found, special.huber(0.5, errors).mean())


def test_pearson_equals_numpy_and_is_zero_for_a_constant():
  generator = np.random.default_rng(1)
  a, b = generator.normal(size=(2, 9)).astype(np.float32)
  mask = np.arange(9) < 7
  found = supervised.pearson_correlation(
    jnp.where(mask, a, jnp.nan), jnp.asarray(b), example_mask=jnp.asarray(mask)
  )
  expected = np.corrcoef(a[mask], b[mask])[0, 1]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  constant = supervised.pearson_correlation(
    jnp.full(9, 0.1), jnp.asarray(b), example_mask=jnp.asarray(mask)
  )
  assert constant == 0


def test_bad_options_are_named():
  one, mask = jnp.zeros(1), jnp.ones(1, bool)
  with pytest.raises(ValueError, match='delta'):
    supervised.huber_loss(one, one, example_mask=mask, delta=0.0)
  with pytest.raises(ValueError, match='label_smoothing'):
    supervised.binary_cross_entropy(
      one, one, example_mask=mask, label_smoothing=1.0
    )
  with pytest.raises(ValueError, match=r'targets \(2,\)'):
    supervised.squared_error(one, jnp.zeros(2), example_mask=mask)
