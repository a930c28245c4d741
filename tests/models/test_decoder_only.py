"""Decoder-only recommenders: padding, sharing, soft tokens, decoding."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import (
  DECODER,
  DECODER_CONFIG,
  SOFT,
  make_batch,
  make_responses,
  tiny_decoder,
)

from p4lm.decoding.behavior import SamplerConfig
from p4lm.decoding.sampler import sample
from p4lm.decoding.scoring import score
from p4lm.errors import UserError
from p4lm.models import lora
from p4lm.models.decoder_config import DecoderConfig
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.models.reward_model import RewardModel, RewardModelConfig
from p4lm.models.selection import parameter_name
from p4lm.models.t5 import T5Config
from p4lm.partitioning.build import build_model

BOTH_WAYS = {'bidirectional_prompt': True}


@pytest.fixture(scope='module', params=[{}, BOTH_WAYS], ids=['causal', 'both'])
def model(request):
  return tiny_decoder(**request.param)


def padded(batch, pads):
  tokens = jnp.pad(batch['prompt_tokens'], ((0, 0), (0, pads)))
  return {**batch, 'prompt_tokens': tokens}


def test_cached_steps_equal_teacher_forcing(model):
  batch, responses = make_batch(), make_responses(rows=6)

  @jax.jit
  def stepwise(state):
    module = nnx.merge(model.graphdef, state)
    cache = module.start_cache(module.encode(**batch), 7, num_samples=2)
    previous = jnp.full(6, 9)  # What the first step is given does not matter.
    outputs = []
    for position in range(7):
      logits, cache = module.decode_step(cache, previous)
      outputs.append(logits)
      previous = responses[:, position]
    return jnp.stack(outputs, axis=1)

  found = stepwise(model.state)
  wanted = model.logits(batch, responses)
  assert np.abs(wanted).max() > 0.5
  np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_batch_size_and_padding_change_nothing(model):
  batch, responses = make_batch(batch=4), make_responses(rows=4)
  wanted = model.logits(batch, responses)
  longer = jnp.pad(responses, ((0, 0), (0, 3)))
  found = model.logits(padded(batch, 6), longer)[:, :7]
  np.testing.assert_allclose(found, wanted, atol=1e-5)
  for row in range(4):
    alone = {name: value[row : row + 1] for name, value in batch.items()}
    found = model.logits(alone, responses[row : row + 1])
    np.testing.assert_allclose(found[0], wanted[row], atol=1e-5)


def test_responses_share_their_prompt(model):
  batch, responses = make_batch(), make_responses(rows=6)
  shared = model.logits(batch, responses)
  copied = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), batch)
  np.testing.assert_allclose(shared, model.logits(copied, responses), atol=1e-5)

  def repeated(state):
    module = nnx.merge(model.graphdef, state)
    return module.decode(module.encode(**batch).repeat(2), responses)

  np.testing.assert_allclose(jax.jit(repeated)(model.state), shared, atol=1e-5)


def test_one_pass_over_prompt_and_response_is_two(model):
  """Logits and gradients, with a prompt of nothing among the others."""
  batch, responses = make_batch(), make_responses()
  empty = batch['prompt_tokens'].at[2].set(0)
  batch = {**batch, 'prompt_tokens': empty}

  def in_one(module):
    return module(response_tokens=responses, **batch)

  def in_two(module):
    return module.decode(module.encode(**batch), responses)

  def found(read):
    def loss(state):
      logits = read(nnx.merge(model.graphdef, state))
      return jnp.square(jax.nn.log_softmax(logits)).mean(), logits

    return jax.jit(jax.grad(loss, has_aux=True))(model.state)

  (one_gradient, one), (two_gradient, two) = found(in_one), found(in_two)
  np.testing.assert_allclose(one, two, atol=1e-5)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(two_gradient))
  for left, right in zip(
    jax.tree.leaves(one_gradient), jax.tree.leaves(two_gradient)
  ):
    np.testing.assert_allclose(left, right, atol=1e-5 * largest)


def test_what_a_token_sees(model):
  """A later token changes earlier keys of a prompt both ways, and no other."""
  batch, responses = make_batch(batch=1), make_responses(rows=1)
  keys = jax.jit(
    lambda state, batch: nnx.merge(model.graphdef, state).encode(**batch).keys
  )
  tokens = batch['prompt_tokens']
  other = {**batch, 'prompt_tokens': tokens.at[0, -1].set(5)}
  changed = np.abs(keys(model.state, batch) - keys(model.state, other)).max(
    (0, 1, 2, 4)
  )
  assert changed[-1] > 1e-3
  both_ways = model.config.lm.bidirectional_prompt
  # Two local layers of a window of four, below the last keys: six tokens back.
  assert (changed[2:-1] > 1e-6).all() == both_ways
  assert (changed[:2] == 0).all()
  assert (changed[:-1] == 0).all() == (not both_ways)

  later = responses.at[0, 3].set(SOFT - 1)
  before, after = model.logits(batch, responses), model.logits(batch, later)
  np.testing.assert_array_equal(before[:, :4], after[:, :4])
  assert (np.abs(before - after)[0, 4:].max(-1) > 1e-4).all()


def test_a_window_hides_what_is_far():
  """One local layer: a token four places back is out of a window of four."""
  model = tiny_decoder(num_layers=1, global_every=2)
  batch = make_batch(batch=1, prompt=9, vectors=0)
  responses = make_responses(rows=1, length=5)
  wanted = model.logits(batch, responses)
  for place in range(4, 9):
    tokens = batch['prompt_tokens'].at[0, place].set(5)
    found = model.logits({**batch, 'prompt_tokens': tokens}, responses)
    changed = np.abs(found - wanted)[0].max(-1) > 1e-6
    # Logit t comes from position 8 + t, which sees 3 places before itself.
    assert changed.tolist() == [place >= 8 + t - 3 for t in range(5)]


def test_soft_tokens_stand_at_their_placeholders(model):
  batch, responses = make_batch(), make_responses()
  wanted = model.logits(batch, responses)
  swapped = {**batch, 'cf_embeddings': batch['cf_embeddings'][:, ::-1]}
  assert np.abs(model.logits(swapped, responses) - wanted).max() > 1e-3
  # A placeholder at the end is the input that the response begins with.
  tokens = jnp.array([[5, 6, SOFT]])
  vectors = jnp.array([[[1.0, 0, 0, 0, 0]]])
  kinds = jnp.zeros((1, 1), jnp.int32)
  last = dict(prompt_tokens=tokens, cf_embeddings=vectors, cf_kind_ids=kinds)
  changed = {**last, 'cf_embeddings': -vectors}
  found = [model.logits(b, responses[:1]) for b in (last, changed)]
  assert np.abs(found[0] - found[1]).max() > 1e-3


def test_a_prompt_of_nothing_begins_with_pad():
  model, responses = tiny_decoder(), make_responses()
  text = dict(
    cf_embeddings=jnp.zeros((3, 0, 5)), cf_kind_ids=jnp.zeros((3, 0), int)
  )
  nothing = {**text, 'prompt_tokens': jnp.zeros((3, 4), jnp.int32)}
  # Prefixed to the response as its first token, pad makes a prompt of itself.
  pads_are_words = dataclasses.replace(
    DECODER_CONFIG, lm=dataclasses.replace(DECODER, pad_id=-1)
  )

  @jax.jit
  def explicit(state):
    module = nnx.merge(model.graphdef, state)
    module.config = pads_are_words
    return module(jnp.zeros((3, 1), jnp.int32), responses, **text)

  np.testing.assert_allclose(
    model.logits(nothing, responses), explicit(model.state), atol=1e-5
  )


def test_a_model_may_have_a_word_at_zero():
  model = tiny_decoder(pad_id=-1)
  batch = make_batch(batch=1, prompt=6, vectors=0)
  tokens = batch['prompt_tokens'].at[0, -1].set(0)
  responses = make_responses(rows=1)
  wanted = model.logits({**batch, 'prompt_tokens': tokens}, responses)
  for pad, same in ((-1, True), (0, False)):
    more = jnp.pad(tokens, ((0, 0), (0, 3)), constant_values=pad)
    found = model.logits({**batch, 'prompt_tokens': more}, responses)
    assert np.allclose(found, wanted, atol=1e-5) == same


def test_replaying_a_sample_gives_its_log_probabilities():
  model, batch = tiny_decoder(), make_batch()
  config = SamplerConfig(8, temperature=1.2, top_p=0.9, num_samples=3)
  drawn = sample(
    model.graphdef, model.state, batch, jax.random.key(0), config, 7
  )
  replayed = score(
    model.graphdef,
    model.state,
    batch,
    drawn.response_tokens,
    drawn.response_mask,
    config,
    7,
  )
  np.testing.assert_allclose(
    np.exp(np.asarray(replayed - drawn.logps)), 1.0, atol=1e-5
  )


@pytest.mark.parametrize(
  'changes', [{'scan_unroll': 1}, {'scan_unroll': 1, 'remat': True}]
)
def test_loops_and_recomputation_change_no_gradient(changes):
  batch, responses = make_batch(), make_responses()

  def gradient(model):
    def loss(state):
      logits = nnx.merge(model.graphdef, state)(
        batch['prompt_tokens'],
        responses,
        batch['cf_embeddings'],
        batch['cf_kind_ids'],
      )
      logps = jax.nn.log_softmax(logits)
      return -jnp.take_along_axis(logps, responses[..., None], -1).mean()

    return nnx.to_flat_state(jax.jit(jax.grad(loss))(model.state))

  wanted = dict(gradient(tiny_decoder()))
  for path, found in gradient(tiny_decoder(**changes)):
    value = wanted[path].get_value()
    assert np.abs(value).max() > 0, path
    np.testing.assert_allclose(found.get_value(), value, atol=1e-6)


def test_bfloat16_computes_the_same_roughly():
  batch, responses = make_batch(), make_responses()
  wanted = tiny_decoder().logits(batch, responses)
  found = tiny_decoder(dtype='bfloat16').logits(batch, responses)
  assert found.dtype == jnp.float32
  assert 0 < np.abs(found - wanted).max() < 0.1


def test_lora_finds_the_stack_and_keeps_the_function():
  module = tiny_decoder().model
  names = lora.apply_lora(module, 2, 4.0, rngs=nnx.Rngs(0))
  assert len(names) == 7
  assert 'lm/decoder/layers/attention/query' in names
  batch, responses = make_batch(), make_responses()
  arguments = (
    batch['prompt_tokens'],
    responses,
    batch['cf_embeddings'],
    batch['cf_kind_ids'],
  )
  graphdef, state = nnx.split(module)
  found = jax.jit(lambda state: nnx.merge(graphdef, state)(*arguments))(state)
  wanted = tiny_decoder().logits(batch, responses)
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_reward_model_reads_with_it():
  config = RewardModelConfig(
    DECODER, DECODER_CONFIG.adapter, SOFT, kind='personalization'
  )
  graphdef, state = build_model(lambda: RewardModel(config, rngs=nnx.Rngs(0)))

  @jax.jit
  def scores(state, batch, responses):
    module = nnx.merge(graphdef, state)
    return module(
      batch['prompt_tokens'],
      responses,
      batch['cf_embeddings'],
      batch['cf_kind_ids'],
    )

  batch, responses = make_batch(), make_responses(rows=6)
  wanted = scores(state, batch, responses)
  longer = jnp.pad(responses, ((0, 0), (0, 2)))
  found = scores(state, padded(batch, 3), longer)
  assert wanted.shape == (6,) and np.ptp(wanted) > 1e-3
  np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_fresh_soft_tokens_are_as_large_as_words():
  for config in (DECODER, dataclasses.replace(DECODER, scale_embeddings=False)):
    wide = dataclasses.replace(config, d_model=256)
    recommender = dataclasses.replace(DECODER_CONFIG, lm=wide)
    graphdef, state = build_model(
      lambda config=recommender: Recommender(config, rngs=nnx.Rngs(0))
    )
    module = nnx.merge(graphdef, state)
    words = np.std(module.lm.token_embedder(jnp.arange(64)))
    vectors = np.random.default_rng(0).normal(size=(64, 1, 5)) * 5**-0.5
    soft = np.std(module.adapters['user'](jnp.asarray(vectors, 'float32')))
    assert 0.5 < soft / words < 2


def test_json_tells_the_families_apart():
  text = DECODER_CONFIG.to_json()
  assert RecommenderConfig.from_json(text) == DECODER_CONFIG
  t5 = dataclasses.replace(DECODER_CONFIG, lm=T5Config())
  assert RecommenderConfig.from_json(t5.to_json()) == t5
  # Written before there were two families.
  values = json.loads(t5.to_json())
  del values['lm']['family']
  assert RecommenderConfig.from_json(json.dumps(values)) == t5
  values['lm']['family'] = 'mamba'
  with pytest.raises(UserError, match="'mamba'.*t5, decoder"):
    RecommenderConfig.from_json(json.dumps(values))


@pytest.mark.parametrize(
  'changes, named',
  [
    ({'num_kv_heads': 3}, 'num_kv_heads is 3.*divisor of num_heads 4'),
    ({'d_kv': 5}, 'd_kv is 5.*even'),
    ({'activation': 'relu6'}, "activation is 'relu6'"),
    ({'sliding_window': -1}, 'sliding_window is -1'),
  ],
)
def test_a_bad_size_is_named(changes, named):
  with pytest.raises(UserError, match=f'DecoderConfig.{named}'):
    DecoderConfig(**{**dataclasses.asdict(DECODER), **changes})


def test_every_parameter_is_of_the_stack_or_beside_it():
  names = {
    parameter_name(path) for path, _ in nnx.to_flat_state(tiny_decoder().state)
  }
  stack = {name for name in names if name.startswith('lm/decoder/layers/')}
  assert len(stack) == 7 + 6
  assert {n for n in names - stack if n.startswith('lm/')} == {
    'lm/token_embedder/embedding',
    'lm/decoder/final_norm/scale',
  }
