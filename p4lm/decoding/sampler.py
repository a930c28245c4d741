"""Drawing responses with a cache, in one compiled loop."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.decoding.behavior import (
  SamplerConfig,
  behavior_logits,
  draw,
  largest,
)
from p4lm.decoding.held_weights import hold_weights
from p4lm.models.language_model import EncodedPrompts
from p4lm.models.recommender import Recommender
from p4lm.ops.masks import response_mask_of
from p4lm.typing import Array, Float, Int, Key, PyTree

# What rows hold behind their EOS, and what a decoder that wants a first token
# begins with.
PAD_ID = 0

__all__ = ['SampledResponses', 'SamplerConfig', 'sample', 'sample_encoded']


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('response_tokens', 'response_mask', 'logps'),
  meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class SampledResponses:
  """Responses to B prompts, G each: row b*G+g is sample g of prompt b.

  Attributes:
    response_tokens: int32 [B*G,L]; after EOS, pad (0).
    response_mask: bool [B*G,L], True for drawn tokens, EOS included. A row
      without an EOS was cut at L and is True throughout.
    logps: float32 [B*G,L], log-probability of each drawn token under the
      behaviour distribution; 0 where the mask is False.
  """

  response_tokens: Array
  response_mask: Array
  logps: Array


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def sample(
  model_graphdef: nnx.GraphDef,
  params: PyTree,
  batch: Mapping[str, Array],
  key: Key[Array, ''],
  config: SamplerConfig,
  eos_id: int,
) -> SampledResponses:
  """Draws G responses to each prompt of a batch.

  Compiled once for each (model, batch shape, config). The prompt is encoded
  once, its keys and values are kept once for all G samples, and the loop ends
  as soon as every row has drawn EOS. The randomness of a row depends on `key`
  and the row's index alone, not on the rows beside it.

  Args:
    model_graphdef: of a Recommender.
    params: its state, or a tuple of states that nnx.merge puts together (such
      as trainable and frozen).
    batch: `prompt_tokens` int [B,P], `cf_embeddings` float [B,N,E] and
      `cf_kind_ids` int [B,N]; further features are ignored.
    key: of this batch; the same key gives the same responses.
    config: lengths, truncation and G.
    eos_id: ends a response, as the config's stop_ids do.
  """
  model = merge_model(model_graphdef, params)
  encoded = model.encode(
    batch['prompt_tokens'], batch['cf_embeddings'], batch['cf_kind_ids']
  )
  return sample_encoded(model, encoded, key, config, eos_id)


def merge_model(model_graphdef: nnx.GraphDef, params: PyTree) -> Recommender:
  """The model of a graphdef and one state, or a tuple of states."""
  states = params if isinstance(params, tuple) else (params,)
  return nnx.merge(model_graphdef, *states)


def sample_encoded(
  model: Recommender,
  encoded: EncodedPrompts,
  key: Key[Array, ''],
  config: SamplerConfig,
  eos_id: int,
) -> SampledResponses:
  """As `sample`, from encoded prompts; for use under jit."""
  model = hold_weights(model)
  length = config.max_length
  rows = encoded.mask.shape[0] * config.num_samples
  uniforms = _uniforms(key, rows, length)
  cache = model.start_cache(encoded, length, config.num_samples)

  def unfinished(loop):
    step, _, done, *_ = loop
    return (step < length) & ~jnp.all(done)

  def extend(loop):
    step, previous, done, tokens, logps, cache = loop
    logits, cache = model.decode_step(cache, previous)
    token, logp = _choose(logits, uniforms[step], step, config, eos_id)
    token = jnp.where(done, PAD_ID, token)
    logp = jnp.where(done, 0.0, logp)
    tokens = tokens.at[step].set(token)
    logps = logps.at[step].set(logp)
    for end in (eos_id, *config.stop_ids):
      done |= token == end
    return step + 1, token, done, tokens, logps, cache

  # Time leads, so that a step writes one contiguous row.
  loop = (
    jnp.int32(0),
    jnp.full(rows, PAD_ID, jnp.int32),
    jnp.zeros(rows, bool),
    jnp.full((length, rows), PAD_ID, jnp.int32),
    jnp.zeros((length, rows), jnp.float32),
    cache,
  )
  *_, tokens, logps, _ = jax.lax.while_loop(unfinished, extend, loop)
  tokens, logps = tokens.T, logps.T
  mask = response_mask_of(tokens, eos_id, config.stop_ids)
  return SampledResponses(tokens, mask, logps)


def _choose(
  logits: Float[Array, 'R V'],
  uniform: Float[Array, 'R'],
  step: Int[Array, ''],
  config: SamplerConfig,
  eos_id: int,
) -> tuple[Int[Array, 'R'], Float[Array, 'R']]:
  logits = behavior_logits(logits, step, config, eos_id)
  token = largest(logits) if config.greedy else draw(logits, uniform)
  logit = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
  return token, logit - jax.nn.logsumexp(logits, axis=-1)


def _uniforms(
  key: Key[Array, ''], rows: int, length: int
) -> Float[Array, 'L R']:
  row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
  by_row = jax.vmap(lambda row_key: jax.random.uniform(row_key, (length,)))
  return by_row(row_keys).T
