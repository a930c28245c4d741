"""T5 with a position bias for each layer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIG, LM, Tiny, make_batch, make_responses, tiny

from p4lm.models.recommender import Recommender
from p4lm.models.selection import parameter_name
from p4lm.partitioning.build import build_model

BIASES = (
  'lm/encoder/relative_bias/embedding',
  'lm/decoder/relative_bias/embedding',
)


@pytest.fixture(scope='module')
def model():
  """The tiny recommender with the shared biases in both of its layers."""
  lm = dataclasses.replace(LM, relative_bias_per_layer=True)
  config = dataclasses.replace(CONFIG, lm=lm)
  graphdef, state = build_model(lambda: Recommender(config, rngs=nnx.Rngs(0)))
  shared = {
    parameter_name(path): variable.get_value()
    for path, variable in nnx.to_flat_state(tiny().state)
  }
  for path, variable in nnx.to_flat_state(state):
    name = parameter_name(path)
    value = shared[name]
    if name in BIASES:
      value = jnp.stack([value, value])
    assert variable.get_value().shape == value.shape, name
    variable.set_value(value)
  return Tiny(graphdef, state, config)


def with_other_last_layer(model):
  """Another bias in the last layer of both stacks."""
  state = jax.tree.map(jnp.copy, model.state)
  for path, variable in nnx.to_flat_state(state):
    if parameter_name(path) in BIASES:
      value = variable.get_value()
      variable.set_value(value.at[1].add(1 + jnp.arange(2.0)[None]))
  return Tiny(model.graphdef, state, model.config)


def test_equal_biases_are_the_shared_one(model):
  batch, responses = make_batch(), make_responses()
  np.testing.assert_allclose(
    model.logits(batch, responses),
    tiny().logits(batch, responses),
    atol=1e-6,
  )


def test_each_layer_has_its_own_when_decoding_too(model):
  batch, responses = make_batch(), make_responses()
  # The same for all distances: a softmax does not see it.
  other = with_other_last_layer(model)
  np.testing.assert_allclose(
    other.logits(batch, responses), model.logits(batch, responses), atol=1e-5
  )
  flat = dict(nnx.to_flat_state(other.state))
  for path, variable in flat.items():
    if parameter_name(path) in BIASES:
      value = variable.get_value()
      tilt = jnp.arange(value.shape[1], dtype=jnp.float32)[:, None]
      variable.set_value(value.at[1].add(tilt))
  wanted = other.logits(batch, responses)
  assert np.abs(wanted - model.logits(batch, responses)).max() > 1e-2

  @jax.jit
  def stepwise(state):
    module = nnx.merge(other.graphdef, state)
    cache = module.start_cache(module.encode(**batch), 7, num_samples=1)
    previous, outputs = jnp.zeros(3, jnp.int32), []
    for position in range(7):
      logits, cache = module.decode_step(cache, previous)
      outputs.append(logits)
      previous = responses[:, position]
    return jnp.stack(outputs, axis=1)

  np.testing.assert_allclose(stepwise(other.state), wanted, atol=1e-5)
