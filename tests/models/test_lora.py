"""LoRA: no change at first, exact merging, one set of base weights."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_models import make_batch, make_responses, tiny

from p4lm.errors import UserError
from p4lm.models.layers import Dense
from p4lm.models.lora import (
  apply_lora,
  fold_lora,
  merge_lora,
  unmerge_lora,
  without_lora,
)
from p4lm.models.selection import parameter_name, split_trainable


def logits(model):
  graphdef, state = nnx.split(model)
  batch = make_batch()
  run = jax.jit(
    lambda state: nnx.merge(graphdef, state)(
      batch['prompt_tokens'],
      make_responses(),
      batch['cf_embeddings'],
      batch['cf_kind_ids'],
    )
  )
  return run(state)


def with_lora(trained=True):
  """The tiny recommender with LoRA, its B factors away from zero."""
  model = tiny().model
  apply_lora(model, 3, 6.0, rngs=nnx.Rngs(1))
  if trained:
    key = jax.random.key(2)
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)):
      key, own = jax.random.split(key)
      if path[-1] == 'lora_b':
        shape = variable.get_value().shape
        nnx.update(
          model,
          nnx.from_flat_state(
            {path: variable.replace(0.1 * jax.random.normal(own, shape))}
          ),
        )
  return model


@pytest.fixture(scope='module')
def base():
  return logits(tiny().model)


@pytest.fixture(scope='module')
def adapted():
  return logits(with_lora())


def test_fresh_lora_changes_nothing(base):
  np.testing.assert_array_equal(logits(with_lora(trained=False)), base)


def test_the_update_is_the_scaled_product(base, adapted):
  assert np.abs(adapted - base).max() > 1e-2
  model = tiny().model
  changed = with_lora()
  pairs = {
    'query': (
      changed.lm.encoder.layers.attention.query,
      model.lm.encoder.layers.attention.query,
      'ldr,lrhk->ldhk',
    ),
    'out': (
      changed.lm.encoder.layers.attention.out,
      model.lm.encoder.layers.attention.out,
      'lhkr,lrd->lhkd',
    ),
  }
  merge_lora(changed)
  for name, (dense, plain, product) in pairs.items():
    delta = np.einsum(product, dense.lora_a[...], dense.lora_b[...])
    change = dense.kernel[...] - plain.kernel[...]
    np.testing.assert_allclose(change, 2.0 * delta, atol=1e-6, err_msg=name)


def test_merging_keeps_the_function_and_unmerging_is_exact(base, adapted):
  model = with_lora()
  merge_lora(model)
  np.testing.assert_allclose(logits(model), adapted, atol=2e-5)
  merge_lora(model)
  np.testing.assert_allclose(logits(model), adapted, atol=2e-5)
  unmerge_lora(model)
  np.testing.assert_array_equal(logits(model), adapted)
  jax.tree.map(
    np.testing.assert_array_equal,
    nnx.state(model),
    nnx.state(with_lora()),
  )


def test_folding_leaves_a_plain_model(adapted):
  model = with_lora()
  fold_lora(model)
  assert nnx.split(model)[0] == tiny().graphdef
  np.testing.assert_allclose(logits(model), adapted, atol=2e-5)


def test_the_reference_shares_the_base_weights(base):
  for merged in (False, True):
    model = with_lora()
    if merged:
      merge_lora(model)
    reference = without_lora(model)
    np.testing.assert_array_equal(logits(reference), base)
    assert (
      reference.lm.token_embedder.embedding.get_value()
      is model.lm.token_embedder.embedding.get_value()
    )
    assert model.lm.encoder.layers.attention.query.lora_a is not None


def test_the_lora_stage_trains_factors_and_adapters():
  _, chosen, frozen = split_trainable(with_lora(), 'lora')
  chosen = [parameter_name(path) for path, _ in nnx.to_flat_state(chosen)]
  frozen = [parameter_name(path) for path, _ in nnx.to_flat_state(frozen)]
  is_lora = lambda name: name.rsplit('/', 1)[-1] in ('lora_a', 'lora_b')
  assert all(is_lora(n) or n.startswith('adapters/') for n in chosen)
  assert not any(is_lora(n) or n.startswith('adapters/') for n in frozen)
  assert sum(map(is_lora, chosen)) == 2 * (4 + 3 + 8 + 3)


def test_targets_choose_maps_and_mistakes_are_named():
  model = tiny().model
  names = apply_lora(
    model, 2, 2.0, [r'self_attention/(query|value)$'], rngs=nnx.Rngs(0)
  )
  stem = 'lm/decoder/layers/self_attention/'
  assert names == [stem + 'query', stem + 'value']
  with pytest.raises(UserError, match='query has LoRA factors already'):
    apply_lora(model, 2, 2.0, ['self_attention/query'], rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match="'q_proj' matches no linear map"):
    apply_lora(model, 2, 2.0, ['q_proj'], rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match='rank is 0'):
    apply_lora(model, 0, 2.0, rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match='no LoRA factors'):
    merge_lora(tiny().model)


class OneMap(nnx.Module):
  """A model of one linear map."""

  def __init__(self):
    self.dense = Dense({'embed': 4}, {'mlp': 5}, rngs=nnx.Rngs(0))


def test_gradients_are_those_of_the_product():
  model = OneMap()
  apply_lora(model, 2, 6.0, ['^dense$'], rngs=nnx.Rngs(1))
  dense = model.dense
  dense.lora_b[...] = jax.random.normal(jax.random.key(0), (2, 5))
  x = jax.random.normal(jax.random.key(1), (3, 4))
  graphdef, factors, rest = nnx.split(dense, nnx.LoRAParam, ...)
  loss = lambda y: (y**3).sum()
  gradient = jax.grad(lambda f: loss(nnx.merge(graphdef, f, rest)(x)))(factors)
  product = lambda a, b: loss(x @ (dense.kernel[...] + 3.0 * a @ b))
  expected = jax.grad(product, (0, 1))(dense.lora_a[...], dense.lora_b[...])
  for name, value in zip(('lora_a', 'lora_b'), expected):
    np.testing.assert_allclose(gradient[name][...], value, rtol=1e-4)
    assert np.abs(value).max() > 0
