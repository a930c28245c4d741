"""The shared layers against plain formulas."""

from __future__ import annotations

import dataclasses
import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import LM, Tiny, make_batch, make_responses, tiny

from p4lm.errors import UserError
from p4lm.models import position_bias
from p4lm.models.attention import add_bias, attend
from p4lm.models.layers import (
  Dense,
  FeedForward,
  RMSNorm,
  contract,
  dropout,
)
from p4lm.models.position_bias import RelativeBias, row_at
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.models.t5 import T5Config


def random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), 'float32')


@pytest.mark.parametrize('bidirectional', [True, False])
@pytest.mark.parametrize('lengths', [(7, 7), (5, 9), (9, 5), (1, 1)])
def test_relative_bias_is_the_table_by_bucket(bidirectional, lengths):
  bias = RelativeBias(8, 6, 3, bidirectional=bidirectional, rngs=nnx.Rngs(0))
  embedding = np.asarray(bias.embedding[...])

  def bucket(difference):
    # Raffel et al. 2020 with 8 buckets and distances up to 6, by hand: half
    # for each side if there are two, the first half of these exact.
    side, count = 0, 8
    if bidirectional:
      side, count = (4 if difference > 0 else 0), 4
      distance = abs(difference)
    else:
      distance = max(-difference, 0)
    exact = count // 2
    if distance < exact:
      return side + distance
    grown = np.log(distance / exact) / np.log(6 / exact) * (count - exact)
    return side + min(exact + int(grown), count - 1)

  queries, keys = lengths
  table = bias(queries, keys)
  for q in range(queries):
    for m in range(keys):
      np.testing.assert_array_equal(
        table[:, q, m], embedding[bucket(m - q)], err_msg=f'{q} {m}'
      )


def test_bucket_example():
  result = doctest.testmod(position_bias)
  assert result.attempted and not result.failed


def test_a_row_of_the_bias_is_the_tables_row():
  bias = RelativeBias(8, 6, 3, bidirectional=False, rngs=nnx.Rngs(0))
  values = bias.by_distance(9)
  for position in range(9):
    np.testing.assert_array_equal(
      row_at(values, jnp.int32(position)), bias(9, 9)[:, position]
    )


def test_contract_and_its_gradients_are_tensordots():
  x, kernel = random(2, 3, 4, 5), random(4, 5, 6, 7, seed=1)
  weight = random(2, 3, 6, 7, seed=2)
  ours = lambda x, k: (contract(x, k, 2, 'float32') * weight).sum()
  plain = lambda x, k: (jnp.tensordot(x, k, 2) * weight).sum()
  expected, gradients = jax.value_and_grad(plain, (0, 1))(x, kernel)
  value, own = jax.value_and_grad(ours, (0, 1))(x, kernel)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  for mine, theirs in zip(own, gradients):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_bias_gradient_sums_the_batch():
  scores, bias = random(5, 2, 3, 4), random(2, 3, 4, seed=1)
  weight = random(5, 2, 3, 4, seed=2)
  gradient = jax.grad(lambda b: (add_bias(scores, b) * weight).sum())(bias)
  np.testing.assert_allclose(gradient, weight.sum(0), rtol=1e-5, atol=1e-5)


def test_attention_is_softmax_of_products():
  query, key = random(2, 3, 4, 5), random(2, 3, 6, 5, seed=1)
  value, bias = random(2, 3, 6, 5, seed=2), random(3, 4, 6, seed=3)
  mask = np.random.default_rng(4).random((2, 1, 4, 6)) < 0.6
  mask[0, 0, 0] = False
  out = attend(query, key, value, bias=bias, mask=jnp.asarray(mask), scale=0.5)
  for b in range(2):
    for h in range(3):
      for q in range(4):
        keep = mask[b, 0, q]
        logits = 0.5 * np.asarray(key[b, h] @ query[b, h, q]) + bias[h, q]
        weights = np.where(keep, np.exp(logits), 0.0)
        expected = np.asarray(value[b, h]).mean(0)
        if keep.any():
          expected = weights @ np.asarray(value[b, h]) / weights.sum()
        np.testing.assert_allclose(out[b, h, q], expected, atol=1e-5)


def test_norm_and_feed_forward_by_hand():
  x = random(2, 3, 4)
  norm = RMSNorm(4, 1e-6, rngs=nnx.Rngs(0))
  norm.scale[...] = jnp.array([1.0, 2.0, 3.0, 4.0])
  root = np.sqrt((np.asarray(x) ** 2).mean(-1, keepdims=True) + 1e-6)
  expected = np.asarray(x) / root * np.array([[[1.0, 2.0, 3.0, 4.0]]])
  np.testing.assert_allclose(norm(x), expected, rtol=1e-5)
  for activation, gated in (('relu', False), ('gelu', True)):
    ffn = FeedForward(
      4, 6, rngs=nnx.Rngs(1), activation=activation, gated=gated
    )
    hidden = np.asarray(x @ ffn.wi_0.kernel[...])
    if activation == 'relu':
      hidden = np.maximum(hidden, 0)
    else:
      inner = np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)
      hidden = 0.5 * hidden * (1 + np.tanh(inner))
      hidden = hidden * np.asarray(x @ ffn.wi_1.kernel[...])
    np.testing.assert_allclose(
      ffn(x), hidden @ np.asarray(ffn.wo.kernel[...]), atol=1e-5
    )


def test_dense_initialisation_keeps_unit_variance():
  dense = Dense({'embed': 400}, {'heads': 10, 'kv': 30}, rngs=nnx.Rngs(0))
  out = dense(random(50, 400))
  assert out.shape == (50, 10, 30)
  assert abs(float(out.std()) - 1) < 0.03
  assert dense.kernel.get_metadata()['logical_axes'] == ('embed', 'heads', 'kv')


def test_dropout_zeroes_its_share_and_keeps_the_mean():
  x = jnp.ones((200, 100))
  y = dropout(x, 0.25, jax.random.key(0))
  assert abs(float((y == 0).mean()) - 0.25) < 0.01
  assert abs(float(y.mean()) - 1) < 0.02
  assert dropout(x, 0.25, None) is x
  assert dropout(x, 0.0, jax.random.key(0)) is x


def gradients_of(**changes):
  config = dataclasses.replace(tiny().config.lm, **changes)
  model = tiny().model
  for module in (model.lm, model.lm.encoder, model.lm.decoder):
    module.config = config
  graphdef, state = nnx.split(model)
  batch, responses = make_batch(), make_responses()

  @jax.jit
  def loss(state):
    logits = nnx.merge(graphdef, state)(
      batch['prompt_tokens'],
      responses,
      batch['cf_embeddings'],
      batch['cf_kind_ids'],
    )
    return (jax.nn.logsumexp(logits, -1) - logits[..., 0]).mean()

  return jax.value_and_grad(loss)(state)


def test_remat_and_unrolling_change_nothing():
  value, gradients = gradients_of()
  for changes in ({'scan_unroll': 1}, {'remat': True}):
    other, others = gradients_of(**changes)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      others,
      gradients,
    )


def test_bfloat16_computes_near_float32_and_gives_float32_logits():
  expected = tiny().logits(make_batch(), make_responses())
  config = dataclasses.replace(
    tiny().config, lm=dataclasses.replace(LM, dtype='bfloat16')
  )
  graphdef, _ = nnx.split(
    nnx.eval_shape(lambda: Recommender(config, rngs=nnx.Rngs(0)))
  )
  half = Tiny(graphdef, tiny().state, config)
  logits = half.logits(make_batch(), make_responses())
  assert logits.dtype == jnp.float32
  difference = np.abs(logits - expected)
  assert 1e-4 < difference.mean() < 0.03


def test_first_logits_have_unit_variance():
  logits = tiny().logits(make_batch(), make_responses())
  assert 0.7 < float(logits.std()) < 1.4


def test_configurations_survive_json():
  config = tiny().config
  assert RecommenderConfig.from_json(config.to_json()) == config
  text_only = dataclasses.replace(config, adapter=None)
  assert RecommenderConfig.from_json(text_only.to_json()) == text_only


@pytest.mark.parametrize(
  'text, message',
  [
    ('{"d_modle": 3}', "unknown fields .'d_modle'."),
    ('[]', 'expected a JSON object'),
    ('{', 'not JSON'),
    ('{"feed_forward": "swish"}', "feed_forward is 'swish'.*gated-gelu, relu"),
    ('{"num_heads": 0}', 'num_heads is 0'),
  ],
)
def test_bad_configurations_are_named(text, message):
  with pytest.raises(UserError, match=message):
    T5Config.from_json(text)
