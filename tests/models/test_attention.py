"""Attention and its gradients against the formula and automatic ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.models.attention import attend
from p4lm.models.mixing import kept_weights, mix, products


def random(*shape, seed=0):
  return jnp.asarray(
    np.random.default_rng(seed).normal(size=shape), jnp.float32
  )


def plain_attention(query, key, value, bias, mask, scale, kept):
  """The textbook's lines, for JAX to differentiate."""
  scores = scale * (query @ jnp.swapaxes(key, -1, -2)) + bias[None]
  weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
  return (weights * kept) @ value


def gradients(attention, inputs, weight):
  loss = lambda *inputs: (attention(*inputs) * weight).sum()
  return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(*inputs)


@pytest.mark.parametrize('rate', [0.0, 0.4])
def test_gradients_are_those_of_the_formula(rate):
  inputs = (
    random(2, 3, 4, 5),
    random(2, 3, 6, 5, seed=1),
    random(2, 3, 6, 5, seed=2),
    random(3, 4, 6, seed=3),
  )
  mask = np.random.default_rng(4).random((2, 1, 4, 6)) < 0.6
  # A query that looks nowhere moves the values and no score.
  mask[0, 0, 1] = False
  mask, key = jnp.asarray(mask), jax.random.key(0)
  kept = 1.0
  if rate:
    kept = kept_weights((2, 3, 4, 6), rate, key)
    assert 0.1 < float((kept == 0).mean()) < 0.7
  ours = lambda q, k, v, b: attend(
    q, k, v, bias=b, mask=mask, scale=0.7, dropout_rate=rate, dropout_key=key
  )
  plain = lambda q, k, v, b: plain_attention(q, k, v, b, mask, 0.7, kept)
  weight = random(2, 3, 4, 5, seed=5)
  value, own = gradients(ours, inputs, weight)
  expected, others = gradients(plain, inputs, weight)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for mine, theirs in zip(own, others):
    np.testing.assert_allclose(mine, theirs, atol=2e-6)


def test_a_query_that_looks_nowhere_gives_its_scores_no_gradient():
  query, key, value = (random(1, 1, 3, 4, seed=seed) for seed in range(3))
  mask = jnp.array([[[[True, True, True], [False] * 3, [True, False, False]]]])
  loss = lambda q: attend(q, key, value, mask=mask)[0, 0, 1:].sum()
  gradient = jax.grad(loss)(query)
  # The second looks nowhere; the third sees one key, so its weight is 1.
  np.testing.assert_array_equal(gradient[0, 0, 1], np.zeros(4))
  np.testing.assert_array_equal(gradient[0, 0, 2], np.zeros(4))


def test_extreme_scores_stay_finite():
  query = jnp.array([[[[300.0]], [[-300.0]]]])
  key = jnp.array([[[[1.0], [0.0]], [[1.0], [0.0]]]])
  value = jnp.array([[[[1.0], [2.0]], [[1.0], [2.0]]]])
  out, pull = jax.vjp(lambda q: attend(q, key, value), query)
  np.testing.assert_array_equal(out, [[[[1.0]], [[2.0]]]])
  np.testing.assert_array_equal(pull(jnp.ones_like(out))[0], 0 * query)


def test_parts_share_one_softmax():
  # Two queries of each of four rows; rows 2p and 2p+1 share the keys of
  # prompt p. The shared part's scores are laid out as the rows' are.
  scores = random(2, 2, 2, 3), random(2, 2, 2, 5, seed=1)
  shared, own = random(2, 3, 4, seed=2), random(2, 2, 5, 4, seed=3)
  mask = np.random.default_rng(4).random((2, 2, 1, 3)) < 0.6
  mask = jnp.asarray(mask)
  weight = random(2, 2, 2, 4, seed=5)

  def ours(scores, shared, own):
    context = mix(scores, (shared, own), (mask, None), (None, None))
    return (context * weight).sum()

  def plain(scores, shared, own):
    left = jnp.where(mask, scores[0], -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([left, scores[1]], -1), axis=-1)
    repeated = jnp.repeat(shared[:, None], 2, axis=1)
    values = jnp.concatenate([repeated, own], axis=2)
    return ((weights @ values) * weight).sum()

  inputs = (scores, shared, own)
  value, gradient = jax.value_and_grad(ours, (0, 1, 2))(*inputs)
  expected, gradients = jax.value_and_grad(plain, (0, 1, 2))(*inputs)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for mine, theirs in zip(
    jax.tree.leaves(gradient), jax.tree.leaves(gradients)
  ):
    np.testing.assert_allclose(mine, theirs, atol=2e-6)


def test_products_are_float32_sums_of_half_precision_factors():
  query, key = random(2, 3, 64), random(2, 5, 64, seed=1)
  half = query.astype(jnp.bfloat16), key.astype(jnp.bfloat16)
  scores, pull = jax.vjp(products, *half)
  assert scores.dtype == jnp.float32
  exact = [np.asarray(x, np.float64) for x in half]
  np.testing.assert_allclose(
    scores, exact[0] @ exact[1].transpose(0, 2, 1), rtol=1e-5, atol=1e-5
  )
  assert [x.dtype for x in pull(scores)] == [jnp.bfloat16] * 2
