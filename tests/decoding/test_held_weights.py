"""Held weights: other types and places, the same numbers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIG, DECODER_CONFIG, make_batch

from p4lm.decoding.held_weights import hold_weights
from p4lm.models.layers import layer_slice
from p4lm.models.recommender import Recommender
from p4lm.partitioning.build import build_model

CONFIGS = {'t5': CONFIG, 'decoder': DECODER_CONFIG}


@pytest.mark.parametrize('name', CONFIGS)
def test_held_weights_are_rounded_once_and_change_no_logit(name):
  lm = dataclasses.replace(CONFIGS[name].lm, dtype='bfloat16')
  config = dataclasses.replace(CONFIGS[name], lm=lm)
  graphdef, state = build_model(lambda: Recommender(config, rngs=nnx.Rngs(0)))
  types = {}

  @jax.jit
  def logits(state):
    model = nnx.merge(graphdef, state)
    held = hold_weights(model)
    for which, one in (('as they lie', model), ('held', held)):
      layer = layer_slice(one.lm.decoder.layers, 0)
      types[which] = {
        'kernel': layer.ffn.wi_0.kernel.get_value().dtype,
        'norm': layer.ffn_norm.scale.get_value().dtype,
        'table': one.lm.token_embedder.embedding.get_value().dtype,
      }
    cache = model.start_cache(model.encode(**make_batch()), 5, 2)
    tokens = jnp.arange(6)
    # The second step reads a cache that the first has written.
    return [
      one.decode_step(one.decode_step(cache, tokens)[1], tokens)[0]
      for one in (model, held)
    ]

  expected, actual = logits(state)
  np.testing.assert_array_equal(actual, expected)
  assert np.abs(expected).max() > 0.1
  whole = {'kernel': 'float32', 'norm': 'float32', 'table': 'float32'}
  assert types['as they lie'] == whole
  assert types['held'] == {**whole, 'kernel': 'bfloat16'}


@pytest.mark.parametrize('name', CONFIGS)
def test_a_step_cuts_no_weights_out_of_a_stack(name):
  model = Recommender(CONFIGS[name], rngs=nnx.Rngs(0))
  stacked = model.lm.decoder.layers.ffn.wi_0.kernel.get_value().shape
  cache = model.start_cache(model.encode(**make_batch()), 5, 2)

  def cuts(model):
    graphdef, state = nnx.split(model)
    step = jax.make_jaxpr(
      lambda state: nnx.merge(graphdef, state).decode_step(
        cache, jnp.arange(6)
      )[0]
    )(state)
    return sum(
      value.aval.shape == stacked
      for equation in step.eqns
      for value in equation.invars
    )

  assert cuts(model) > 0
  assert cuts(hold_weights(model)) == 0
