"""Reward models: pooling, invariances, starting from a recommender."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIG, LM, SOFT, make_batch, tiny

from p4lm.errors import UserError
from p4lm.models.lora import apply_lora
from p4lm.models.reward_model import (
  POOLINGS,
  RewardModel,
  RewardModelConfig,
  init_from_recommender,
)
from p4lm.partitioning.build import build_model

REWARD = RewardModelConfig(
  encoder=LM,
  adapter=CONFIG.adapter,
  soft_token_id=SOFT,
  kind='personalization',
)


def build(**changes):
  config = dataclasses.replace(REWARD, **changes)
  make = lambda: RewardModel(config, rngs=nnx.Rngs(0))
  return build_model(make, seed=1)


@jax.jit(static_argnums=0)
def scores(graphdef, state, batch):
  model = nnx.merge(graphdef, state)
  return model(
    batch['prompt_tokens'], batch['cf_embeddings'], batch['cf_kind_ids']
  )


@pytest.mark.parametrize('pooling', POOLINGS)
def test_scores_do_not_see_padding_or_neighbours(pooling):
  model = build(pooling=pooling)
  batch = make_batch(batch=4)
  expected = scores(*model, batch)
  assert expected.shape == (4,) and expected.dtype == jnp.float32
  assert float(expected.std()) > 1e-4
  padded = {
    **batch,
    'prompt_tokens': jnp.pad(batch['prompt_tokens'], ((0, 0), (0, 5))),
  }
  alone = jax.tree.map(lambda x: x[:2], batch)
  np.testing.assert_allclose(scores(*model, padded), expected, atol=2e-6)
  np.testing.assert_allclose(scores(*model, alone), expected[:2], atol=2e-6)


def test_pooling_by_hand():
  hidden = jnp.array([[[1.0, -2.0], [3.0, -4.0], [9.0, 9.0]]])
  mask = jnp.array([[True, True, False]])
  pool = lambda pooling: nnx.merge(*build(pooling=pooling))
  wide = jnp.zeros((1, 3, 16)).at[:, :, :2].set(hidden)
  np.testing.assert_allclose(pool('mean')._pool(wide, mask)[0, :2], [2, -3])
  np.testing.assert_allclose(pool('max')._pool(wide, mask)[0, :2], [3, -2])
  model = pool('attention')
  kernel = jnp.zeros((16, 1)).at[0].set(np.log(3) / 2)
  model.pool_query.kernel[...] = kernel
  # Scores log(3)/2 and 3 log(3)/2: weights 1/4 and 3/4.
  np.testing.assert_allclose(
    model._pool(wide, mask)[0, :2], [2.5, -3.5], atol=1e-6
  )


def test_heads_average_to_the_score():
  graphdef, state = build(num_heads=3)
  model, batch = nnx.merge(graphdef, state), make_batch()
  heads = model.head_scores(
    batch['prompt_tokens'], batch['cf_embeddings'], batch['cf_kind_ids']
  )
  assert heads.shape == (3, 3)
  np.testing.assert_allclose(
    scores(graphdef, state, batch), heads.mean(-1), atol=1e-6
  )


def test_a_reward_model_starts_from_a_recommender():
  model = nnx.merge(*build())
  head = np.array(model.head_hidden.kernel[...])
  init_from_recommender(model, tiny().model)
  for name in ('encoder', 'token_embedder'):
    jax.tree.map(
      np.testing.assert_array_equal,
      nnx.state(getattr(model, name)),
      nnx.state(getattr(tiny().model.lm, name)),
    )
  jax.tree.map(
    np.testing.assert_array_equal,
    nnx.state(model.adapters),
    nnx.state(tiny().model.adapters),
  )
  np.testing.assert_array_equal(model.head_hidden.kernel[...], head)
  text_only = nnx.merge(*build(adapter=None, kind='nli'))
  init_from_recommender(text_only, tiny().model)
  assert text_only.adapters is None


def test_another_shape_is_refused_by_name():
  wider = dataclasses.replace(LM, d_ff=30)
  with pytest.raises(UserError, match=r'ffn/wi_0/kernel is \(2, 16, 24\)'):
    init_from_recommender(nnx.merge(*build(encoder=wider)), tiny().model)
  adapted = tiny().model
  apply_lora(adapted, 2, 4.0, rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match='lora_a is .* absent here'):
    init_from_recommender(nnx.merge(*build()), adapted)


def test_configuration_is_checked_and_survives_json():
  assert RewardModelConfig.from_json(REWARD.to_json()) == REWARD
  with pytest.raises(UserError, match="kind is 'fun'.*nli, appeal"):
    dataclasses.replace(REWARD, kind='fun')
  with pytest.raises(UserError, match="pooling is 'sum'"):
    dataclasses.replace(REWARD, pooling='sum')
  with pytest.raises(UserError, match='num_heads is 0'):
    dataclasses.replace(REWARD, num_heads=0)
