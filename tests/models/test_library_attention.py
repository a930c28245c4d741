"""JAX's attention in the place of ours: the same numbers and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import (
  CONFIG,
  DECODER_CONFIG,
  make_batch,
  make_responses,
)

from p4lm.decoding.sampler import SamplerConfig, sample
from p4lm.errors import UserError
from p4lm.models.decoder_config import DecoderConfig
from p4lm.models.recommender import Recommender
from p4lm.models.t5 import T5Config

CONFIGS = {
  't5': CONFIG,
  't5, a bias a layer': dataclasses.replace(
    CONFIG,
    lm=dataclasses.replace(
      CONFIG.lm, relative_bias_per_layer=True, scan_unroll=1, remat=True
    ),
  ),
  # Grouped heads and windows; a cap of the scores is beyond the library.
  'decoder': dataclasses.replace(
    DECODER_CONFIG,
    lm=dataclasses.replace(DECODER_CONFIG.lm, attention_soft_cap=0.0),
  ),
}


def _model(name, attention):
  config = CONFIGS[name]
  lm = dataclasses.replace(config.lm, attention=attention)
  config = dataclasses.replace(config, lm=lm)
  return nnx.split(Recommender(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
  ('name', 'rows'),
  [
    # Three responses to three prompts are read with them; six share their keys.
    *(('t5', 3), ('t5', 6), ('decoder', 3), ('decoder', 6)),
    ('t5, a bias a layer', 3),
  ],
)
def test_logits_and_gradients_are_ours(name, rows, monkeypatch):
  batch, responses = make_batch(), make_responses(rows)
  found, calls, of_jax = [], [], jax.nn.dot_product_attention
  monkeypatch.setattr(
    jax.nn,
    'dot_product_attention',
    lambda *args, **names: calls.append(names) or of_jax(*args, **names),
  )
  for attention in ('own', 'xla'):
    graphdef, state = _model(name, attention)

    def loss(state, graphdef=graphdef):
      logits = nnx.merge(graphdef, state)(
        batch['prompt_tokens'], responses,
        batch['cf_embeddings'], batch['cf_kind_ids'],
      )  # fmt: skip
      logps = jax.nn.log_softmax(logits)
      chosen = jnp.take_along_axis(logps, responses[..., None], -1)
      return -chosen.mean(), logits

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    found.append(step(state))
    assert bool(calls) == (attention == 'xla')
  ((_, ours), our_gradients), ((_, theirs), their_gradients) = found
  np.testing.assert_allclose(theirs, ours, atol=2e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
    their_gradients,
    our_gradients,
  )


def test_cudnn_is_xla_where_there_is_no_cuda():
  batch, responses = make_batch(), make_responses()
  found = [
    nnx.merge(*_model('decoder', attention))(
      batch['prompt_tokens'], responses,
      batch['cf_embeddings'], batch['cf_kind_ids'],
    )
    for attention in ('xla', 'cudnn')
  ]  # fmt: skip
  np.testing.assert_array_equal(*found)


def test_a_sampler_draws_the_same():
  config, drawn = SamplerConfig(max_length=6, num_samples=2), []
  for attention in ('own', 'xla'):
    graphdef, state = _model('decoder', attention)
    drawn.append(sample(graphdef, state, make_batch(), jax.random.key(0),
                        config, 1))  # fmt: skip
  np.testing.assert_array_equal(*(d.response_tokens for d in drawn))


@pytest.mark.parametrize(
  ('make', 'changes', 'message'),
  [
    (T5Config, {'attention': 'flash'}, 'one of own, xla, cudnn'),
    (DecoderConfig, {'attention': 'flash'}, 'one of own, xla, cudnn'),
    (
      T5Config,
      {'attention': 'xla', 'dropout_rate': 0.1},
      "'own' where dropout_rate is above 0",
    ),
    (
      DecoderConfig,
      {'attention': 'xla', 'attention_soft_cap': 50.0},
      "'own' where attention_soft_cap is above 0",
    ),
  ],
)
def test_what_the_library_cannot_do_is_refused(make, changes, message):
  with pytest.raises(UserError, match=message):
    make(**changes)
