"""Adapters, and soft tokens at their placeholders."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from p4lm.errors import UserError
from p4lm.models.adapter import (
  AdapterConfig,
  CFAdapter,
  adapt,
  make_adapters,
  scale_adapters,
)
from p4lm.models.soft_tokens import (
  check_soft_token_id,
  check_soft_tokens,
  embed_prompt,
  insert_soft_tokens,
)

_ = 9  # The placeholder.


def test_soft_tokens_stand_at_their_placeholders():
  tokens = jnp.array([[4, _, 5, _, 6], [_, _, 7, 0, 0]])
  embedded = jnp.zeros((2, 5, 1)).at[:].set(tokens[..., None])
  soft = jnp.array([[[10.0], [11.0]], [[20.0], [21.0]]])
  result = jax.jit(insert_soft_tokens, static_argnums=3)(
    embedded, tokens, soft, _
  )
  np.testing.assert_array_equal(
    result[..., 0], [[4, 10, 5, 11, 6], [20, 21, 7, 0, 0]]
  )


def test_counts_that_differ_stay_within_their_row():
  tokens = jnp.array([[_, _, _], [4, _, 5], [4, 5, 6]])
  embedded = jnp.zeros((3, 3, 1)).at[:].set(tokens[..., None])
  soft = jnp.arange(10.0, 16.0).reshape(3, 2, 1)
  result = insert_soft_tokens(embedded, tokens, soft, _)
  np.testing.assert_array_equal(
    result[..., 0], [[10, 11, _], [4, 12, 5], [4, 5, 6]]
  )


def test_each_soft_token_gets_its_own_gradient_and_words_theirs():
  tokens = jnp.array([[4, _, 5, _]])
  weight = jnp.array([[[1.0], [2.0], [3.0], [4.0]]])

  def total(embedded, soft):
    return (insert_soft_tokens(embedded, tokens, soft, _) * weight).sum()

  embedded, soft = jnp.ones((1, 4, 1)), jnp.ones((1, 2, 1))
  words, vectors = jax.grad(total, (0, 1))(embedded, soft)
  np.testing.assert_array_equal(words[0, :, 0], [1, 0, 3, 0])
  np.testing.assert_array_equal(vectors[0, :, 0], [2, 4])


def test_vectors_and_kinds_permute_together():
  config = AdapterConfig(cf_width=5, hidden_width=7, tokens_per_vector=2)
  adapters = make_adapters(config, 6, rngs=nnx.Rngs(0))
  vectors = jax.random.normal(jax.random.key(0), (4, 3, 5))
  kinds = jnp.array([[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1]])
  soft = adapt(adapters, vectors, kinds).reshape(4, 3, 2, 6)
  order = jnp.array([2, 0, 1])
  permuted = adapt(adapters, vectors[:, order], kinds[:, order])
  np.testing.assert_allclose(
    permuted.reshape(4, 3, 2, 6), soft[:, order], atol=1e-6
  )
  for row in range(4):
    for n in range(3):
      own = adapters['user' if kinds[row, n] == 0 else 'item']
      np.testing.assert_allclose(
        soft[row, n], own(vectors[row : row + 1, n : n + 1])[0, 0], atol=1e-6
      )


def test_an_adapter_is_a_three_layer_relu_network():
  config = AdapterConfig(cf_width=5, hidden_width=7)
  adapter = CFAdapter(config, 6, rngs=nnx.Rngs(0))
  first, second = adapter.hidden
  for layer in (first, second, adapter.output):
    layer.bias[...] = layer.bias[...] + 0.3
  x = np.random.default_rng(0).normal(size=(2, 1, 5)).astype('float32')
  hidden = x * 5**0.5
  for layer in (first, second):
    kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
    hidden = np.maximum(hidden @ kernel + bias[None, None], 0)
  kernel = np.asarray(adapter.output.kernel[...])[:, 0]
  expected = hidden @ kernel + 0.3
  np.testing.assert_allclose(
    adapter(jnp.asarray(x))[:, :, 0], expected, atol=1e-5
  )


@pytest.mark.parametrize('kind', ['ffn', 'linear'])
def test_first_soft_tokens_are_as_long_as_word_embeddings(kind):
  config = AdapterConfig(cf_width=64, hidden_width=256, kind=kind)
  adapters = make_adapters(config, 128, rngs=nnx.Rngs(0))
  vectors = jax.random.normal(jax.random.key(0), (200, 1, 64))
  vectors /= jnp.linalg.norm(vectors, axis=-1, keepdims=True)
  size = lambda: float(jnp.sqrt((adapters['user'](vectors) ** 2).mean()))
  assert 0.8 < size() < 1.25
  before = size()
  scale_adapters(adapters, 7.0)
  np.testing.assert_allclose(size(), 7.0 * before, rtol=1e-5)


def test_wrong_counts_name_the_row():
  tokens = np.array([[_, 4, _], [4, _, 0], [_, _, _]])
  check_soft_tokens(tokens[:1], _, 2)
  with pytest.raises(UserError, match='row 1 has 1 .* for 2 .*2 of 3 rows'):
    check_soft_tokens(tokens, _, 2)


def test_bad_settings_are_named():
  with pytest.raises(UserError, match="kind is 'mlp'.*ffn, linear"):
    AdapterConfig(cf_width=5, hidden_width=7, kind='mlp')
  with pytest.raises(UserError, match='cf_width is 0'):
    AdapterConfig(cf_width=0, hidden_width=7)
  adapter = CFAdapter(AdapterConfig(5, 7), 6, rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match='width 4, the adapter takes 5'):
    adapter(jnp.ones((1, 1, 4)))
  with pytest.raises(UserError, match='soft_token_id is 64, outside of the 64'):
    check_soft_token_id(64, 64)
  tokens = jnp.ones((1, 3), jnp.int32)
  vectors, kinds = jnp.ones((1, 2, 5)), jnp.zeros((1, 2), jnp.int32)
  with pytest.raises(UserError, match='2 vectors .* no adapters'):
    embed_prompt(jnp.ones((1, 3, 6)), tokens, None, vectors, kinds, _)
