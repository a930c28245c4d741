"""FLOPs on paper: counted by hand, and against compiled programs."""

from __future__ import annotations

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from p4lm.models import flops
from p4lm.models.adapter import AdapterConfig
from p4lm.models.flops import Flops, LanguageModelSizes, Shapes, Stack
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.models.t5 import T5Config

# Wide enough that products are nearly all of the work; only ever compiled.
LM = T5Config(
  vocab_size=2048,
  d_model=512,
  d_ff=1024,
  num_heads=4,
  d_kv=64,
  num_encoder_layers=1,
  num_decoder_layers=1,
  scan_unroll=0,
)
ADAPTER = AdapterConfig(cf_width=32, hidden_width=256)
SHAPES = Shapes(
  prompts=4, rows=8, prompt_length=48, response_length=32, vectors=2
)


def test_a_decoder_only_layer_counted_by_hand():
  # D = 4, 2 heads of width 3 that share one key head, hidden 5, not gated.
  stack = Stack(
    layers=1, width=4, hidden=5, heads=2, kv_heads=1, head_width=3, gated=False
  )
  lm = LanguageModelSizes(decoder=(stack,), encoder=(), vocab_size=7)
  counted = flops.forward_flops(lm, Shapes(1, 2, 3, 2))
  # A prompt of 3 and two responses of 2: query and output 4 x 6 each, key and
  # value 4 x 3 each, feed-forward 4 x 5 twice.
  assert counted.maps == 2 * 7 * (24 + 24 + 12 + 12 + 20 + 20)
  # 3 x 3 pairs in the prompt, 2 x 5 in a response, each 6 multiply-adds for
  # the score and 6 for the value.
  assert counted.attention == 2 * (9 + 2 * 10) * (6 + 6)
  assert counted.logits == 2 * 4 * 4 * 7
  assert counted.total == 1568 + 696 + 224
  # One response to each prompt is read in one pass of 5 positions.
  alone = flops.forward_flops(lm, Shapes(2, 2, 3, 2))
  assert alone.attention == 2 * (2 * 5 * 5) * (6 + 6)
  assert alone.maps == 2 * 10 * (24 + 24 + 12 + 12 + 20 + 20)


def test_an_encoder_decoder_counted_by_hand():
  sizes = dict(width=2, hidden=3, heads=1, kv_heads=1, head_width=2)
  encoder = Stack(layers=2, **sizes)
  decoder = Stack(layers=1, cross=True, **sizes)
  lm = LanguageModelSizes((decoder,), (encoder,), vocab_size=5)
  # One prompt of 4 with two responses of 3.
  counted = flops.forward_flops(lm, Shapes(1, 2, 4, 3))
  attention, ffn = 4 * 4, 3 * 6
  in_encoder = 2 * 2 * 4 * (attention + ffn)
  in_decoder = 2 * 6 * (attention + ffn)
  # Queries and outputs at 6 positions, keys and values once at the prompt's 4.
  across = 2 * (6 * 8 + 4 * 8)
  assert counted.maps == in_encoder + in_decoder + across
  pairs = 2 * 4 * 4 + 2 * 3 * 3 + 2 * 3 * 4
  assert counted.attention == pairs * 2 * (2 + 2)
  assert counted.logits == 2 * 6 * 2 * 5


def test_adapters_counted_by_hand():
  adapter = AdapterConfig(cf_width=3, hidden_width=4, tokens_per_vector=2)
  counted = flops.adapter_flops(adapter, 5, Shapes(2, 2, 1, 1, vectors=3))
  # Six vectors through two adapters of 3 x 4, 4 x 4 and 4 x 10.
  assert counted.total == 2 * 6 * 2 * (12 + 16 + 40)
  assert flops.adapter_flops(adapter, 5, Shapes(2, 2, 1, 1)) == Flops()


def test_what_is_frozen_needs_half_of_the_backward_pass():
  forward = Flops(maps=8.0, attention=2.0, logits=4.0, adapters=1.0)
  whole = flops.update_flops(forward)
  assert (whole.forward, whole.backward) == (15.0, 30.0)
  adapters = flops.update_flops(forward, trained_share=0.0)
  assert adapters.backward == 30.0 - (8.0 + 4.0)
  assert whole.model == whole.executed == 45.0


def compiled_flops(config, shapes, stage='full'):
  """XLA's count of an update's forward and backward pass, without loops."""
  model = nnx.eval_shape(
    lambda: Recommender(
      RecommenderConfig(config, ADAPTER, soft_token_id=3), rngs=nnx.Rngs(0)
    )
  )
  trained = nnx.Param
  if stage == 'adapters':
    trained = nnx.All(nnx.Param, nnx.PathContains('adapters'))
  graphdef, params, frozen = nnx.split(model, trained, ...)
  tokens = lambda rows, length: jax.ShapeDtypeStruct((rows, length), jnp.int32)
  batch = (
    tokens(shapes.prompts, shapes.prompt_length),
    tokens(shapes.rows, shapes.response_length),
    jax.ShapeDtypeStruct((shapes.prompts, 2, 32), jnp.float32),
    tokens(shapes.prompts, 2),
  )

  def loss(params, frozen, batch):
    logits = nnx.merge(graphdef, params, frozen)(*batch)
    return jax.nn.logsumexp(logits, axis=-1).mean()

  program = jax.jit(jax.grad(loss)).lower(params, frozen, batch).compile()
  return program.cost_analysis()['flops']


@pytest.mark.parametrize('remat', [False, True])
def test_an_update_within_five_per_cent_of_its_compiled_program(remat):
  config = dataclasses.replace(LM, remat=remat)
  forward = flops.forward_flops(flops.sizes_of(config), SHAPES, adapter=ADAPTER)
  counted = flops.update_flops(forward)
  assert (counted.recomputed > 0) == remat
  found = compiled_flops(config, SHAPES)
  assert counted.executed == pytest.approx(found, rel=0.05)


def test_training_adapters_alone_within_five_per_cent():
  # Nothing flows back through the first layer's attention of the decoder to
  # itself; in a loop over layers it does, and three layers hide it.
  config = dataclasses.replace(LM, num_decoder_layers=3)
  forward = flops.forward_flops(flops.sizes_of(config), SHAPES, adapter=ADAPTER)
  counted = flops.update_flops(forward, trained_share=0.0)
  found = compiled_flops(config, SHAPES, stage='adapters')
  assert counted.executed == pytest.approx(found, rel=0.05)


def test_drawing_a_token_within_five_per_cent_of_its_compiled_program():
  model = nnx.eval_shape(
    lambda: Recommender(
      RecommenderConfig(LM, ADAPTER, soft_token_id=3), rngs=nnx.Rngs(0)
    )
  )
  graphdef, params = nnx.split(model)
  sizes = flops.sizes_of(LM)
  batch = (
    jax.ShapeDtypeStruct((4, 48), jnp.int32),
    jax.ShapeDtypeStruct((4, 2, 32), jnp.float32),
    jax.ShapeDtypeStruct((4, 2), jnp.int32),
  )

  def start(params, batch):
    model = nnx.merge(graphdef, params)
    return model.start_cache(model.encode(*batch), 32, 2)

  def step(params, cache, tokens):
    return nnx.merge(graphdef, params).decode_step(cache, tokens)

  lowered = jax.jit(start).lower(params, batch)
  prefill = flops.prefill_flops(sizes, SHAPES, adapter=ADAPTER).total
  found = lowered.compile().cost_analysis()['flops']
  assert prefill == pytest.approx(found, rel=0.05)
  cache = jax.eval_shape(start, params, batch)
  tokens = jax.ShapeDtypeStruct((8,), jnp.int32)
  lowered = jax.jit(step).lower(params, cache, tokens)
  found = lowered.compile().cost_analysis()['flops']
  one = flops.decode_flops(sizes, SHAPES, 1).total
  assert one == pytest.approx(found, rel=0.05)
  assert flops.decode_flops(sizes, SHAPES, 7).total == 7 * one


def test_lora_factors_count_their_own_products():
  sizes = flops.sizes_of(LM)
  plain = flops.forward_flops(sizes, SHAPES)
  low = flops.forward_flops(sizes, SHAPES, lora_rank=4)
  assert low.maps == plain.maps
  encoder, decoder = sizes.encoder[0], sizes.decoder[0]
  own = sum(a + b for a, b in encoder.query_maps() + encoder.key_maps())
  hidden = sum(a + b for a, b in encoder.feed_forward_maps())
  prompt, response = 4 * 48, 8 * 32
  per_rank = (own + hidden) * (prompt + response)
  across = sum(a + b for a, b in decoder.query_maps()) * response
  across += sum(a + b for a, b in decoder.key_maps()) * prompt
  assert low.low_rank == 2 * 4 * (per_rank + across)


def test_a_decoder_only_configuration_is_known_by_its_sizes():
  names = 'num_layers d_model d_ff num_heads num_kv_heads d_kv vocab_size remat'
  sizes = dict(zip(names.split(), [2, 8, 16, 4, 1, 6, 32, True]))
  lm = flops.sizes_of(types.SimpleNamespace(**sizes))
  [stack] = lm.decoder
  assert lm.encoder == () and lm.vocab_size == 32
  assert stack.query_maps() == [(8, 24), (24, 8)]
  assert stack.key_maps() == [(8, 6), (8, 6)]
  assert stack.feed_forward_maps() == [(8, 16), (8, 16), (16, 8)]
  assert stack.layers == 2 and stack.remat and not stack.cross


def test_a_configuration_without_a_rule_is_told():
  assert flops.is_counted(LM) and not flops.is_counted(object())
  with pytest.raises(TypeError, match='FLOPs of a object'):
    flops.sizes_of(object())
