"""The recommender: what trains, what does not matter, shared prompts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_models import LM, SOFT, make_batch, make_responses, tiny

from p4lm.errors import UserError
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.models.selection import (
  parameter_name,
  split_trainable,
  trainable,
)
from p4lm.models.value_head import ValueHead
from p4lm.partitioning.build import build_model


def names(state):
  return {parameter_name(path) for path, _ in nnx.to_flat_state(state)}


def mean_loss(graphdef, *states):
  batch, responses = make_batch(), make_responses()
  logits = nnx.merge(graphdef, *states)(
    batch['prompt_tokens'],
    responses,
    batch['cf_embeddings'],
    batch['cf_kind_ids'],
  )
  logps = jax.nn.log_softmax(logits)
  return -jnp.take_along_axis(logps, responses[..., None], -1).mean()


def test_the_adapters_stage_trains_adapters_and_nothing_else():
  graphdef, adapters, frozen = split_trainable(tiny().model, 'adapters')
  assert all(name.startswith('adapters/') for name in names(adapters))
  assert not any(name.startswith('adapters/') for name in names(frozen))
  before = jax.tree.map(np.array, frozen)
  optimizer = optax.adamw(1e-2)

  @jax.jit
  def step(adapters, moments, frozen):
    loss, gradient = jax.value_and_grad(
      lambda adapters: mean_loss(graphdef, adapters, frozen)
    )(adapters)
    updates, moments = optimizer.update(gradient, moments, adapters)
    return optax.apply_updates(adapters, updates), moments, loss, gradient

  moments, losses = optimizer.init(adapters), []
  for _ in range(5):
    adapters, moments, loss, gradient = step(adapters, moments, frozen)
    losses.append(float(loss))
  for leaf in jax.tree.leaves(gradient):
    assert np.abs(leaf).max() > 0
  assert losses[-1] < losses[0]
  jax.tree.map(np.testing.assert_array_equal, frozen, before)


def test_every_parameter_gets_a_gradient_in_the_full_stage():
  graphdef, params, frozen = split_trainable(tiny().model, 'full')
  assert not nnx.to_flat_state(frozen)
  gradient = jax.jit(jax.grad(lambda p: mean_loss(graphdef, p)))(params)
  for path, variable in nnx.to_flat_state(gradient):
    assert np.abs(variable.get_value()).max() > 0, path


def test_filters_select_by_stage_and_by_name():
  model = tiny().model
  select = lambda stage: names(nnx.state(model, trainable(stage)))
  assert select('re:decoder/.*/kernel$') == {
    name
    for name in names(tiny().state)
    if name.startswith('lm/decoder/layers') and name.endswith('kernel')
  }
  with pytest.raises(UserError, match="'adaptors' is unknown; use adapters"):
    trainable('adaptors')
  with pytest.raises(UserError, match='re:'):
    trainable('re:(')
  with pytest.raises(UserError, match="'lora' selects no parameter"):
    text_only = RecommenderConfig(lm=LM, adapter=None, soft_token_id=SOFT)
    make = lambda: Recommender(text_only, rngs=nnx.Rngs(0))
    split_trainable(nnx.eval_shape(make), 'lora')


def test_users_and_items_have_adapters_of_their_own():
  batch, responses = make_batch(), make_responses()
  swapped = {**batch, 'cf_kind_ids': 1 - batch['cf_kind_ids']}
  other_user = {
    **batch,
    'cf_embeddings': batch['cf_embeddings'].at[:, 0].multiply(-1.0),
  }
  logits = tiny().logits(batch, responses)
  for changed in (swapped, other_user):
    assert np.abs(tiny().logits(changed, responses) - logits).max() > 1e-3


def test_a_response_position_sees_only_what_comes_before():
  batch, responses = make_batch(), make_responses()
  logits = tiny().logits(batch, responses)
  changed = responses.at[:, 4].set(3)
  after = tiny().logits(batch, changed)
  np.testing.assert_array_equal(after[:, :5], logits[:, :5])
  assert np.abs(after[:, 5:] - logits[:, 5:]).max() > 1e-3


def test_padding_the_prompt_changes_nothing():
  batch, responses = make_batch(), make_responses()
  padded = {
    **batch,
    'prompt_tokens': jnp.pad(batch['prompt_tokens'], ((0, 0), (0, 6))),
  }
  np.testing.assert_allclose(
    tiny().logits(padded, responses),
    tiny().logits(batch, responses),
    atol=2e-6,
  )


def test_samples_share_their_prompt():
  batch, responses = make_batch(), make_responses(rows=6)
  grouped = tiny().logits(batch, responses)
  repeated = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), batch)
  np.testing.assert_allclose(
    grouped, tiny().logits(repeated, responses), atol=2e-6
  )
  model = tiny().model
  encoded = model.encode(**batch)
  copies = encoded.repeat(2)
  np.testing.assert_array_equal(copies.hidden[3], encoded.hidden[1])
  np.testing.assert_array_equal(copies.mask[4], encoded.mask[2])


def test_a_model_of_text_alone_takes_no_vectors():
  config = RecommenderConfig(lm=LM, adapter=None, soft_token_id=SOFT)
  make = lambda: Recommender(config, rngs=nnx.Rngs(0))
  model = nnx.merge(*build_model(make))
  batch = make_batch()
  encoded = model.encode(
    batch['prompt_tokens'], jnp.zeros((3, 0, 1)), jnp.zeros((3, 0), int)
  )
  assert encoded.hidden.shape == (3, 9, 16)
  with pytest.raises(UserError, match='has no adapters'):
    model.encode(**batch)


def test_dropout_follows_its_key_and_stops_without_one():
  lm = dataclasses.replace(LM, dropout_rate=0.3)
  config = dataclasses.replace(tiny().config, lm=lm)
  make = lambda: Recommender(config, rngs=nnx.Rngs(0))
  graphdef, _ = nnx.split(nnx.eval_shape(make))
  batch, responses = make_batch(), make_responses()

  @jax.jit
  def logits(state, key):
    return nnx.merge(graphdef, state)(
      batch['prompt_tokens'],
      responses,
      batch['cf_embeddings'],
      batch['cf_kind_ids'],
      dropout_key=key,
    )

  plain = tiny().logits(batch, responses)
  np.testing.assert_array_equal(logits(tiny().state, None), plain)
  first, same, other = (
    logits(tiny().state, jax.random.key(seed)) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, same)
  assert np.abs(first - plain).max() > 0.1
  assert np.abs(first - other).max() > 0.1


def test_building_draws_what_the_constructor_draws():
  make = lambda: Recommender(tiny().config, rngs=nnx.Rngs(5))
  state, eager = tiny().state, nnx.state(make())
  assert jax.tree.structure(eager) == jax.tree.structure(state)
  for (path, ours), (_, theirs) in zip(
    nnx.to_flat_state(state), nnx.to_flat_state(eager)
  ):
    ours, theirs = ours.get_value(), theirs.get_value()
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    if ours.size > 300:
      ratio = float(ours.std() / theirs.std())
      assert 0.8 < ratio < 1.25, path
    elif float(theirs.std()) == 0:
      np.testing.assert_array_equal(ours, theirs, err_msg=str(path))


def test_values_start_at_zero():
  head = ValueHead(4, rngs=nnx.Rngs(0))
  hidden = jnp.ones((2, 3, 4))
  np.testing.assert_array_equal(head(hidden), np.zeros((2, 3)))
  head.output.kernel[...] = jnp.arange(4.0)[:, None]
  np.testing.assert_array_equal(head(hidden), np.full((2, 3), 6.0))
