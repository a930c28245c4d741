"""Tiny models and batches for the tests of models, partitioning, decoding."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from p4lm.models.adapter import AdapterConfig
from p4lm.models.decoder_config import DecoderConfig
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.models.t5 import T5Config
from p4lm.partitioning.build import build_model

LM = T5Config(
  vocab_size=64,
  d_model=16,
  d_ff=24,
  num_heads=2,
  d_kv=6,
  num_encoder_layers=2,
  num_decoder_layers=2,
  relative_attention_max_distance=20,
  # Compiles in half the time; a test of its own holds it against the loop.
  scan_unroll=0,
)
SOFT = 63
ADAPTER = AdapterConfig(cf_width=5, hidden_width=12)
CONFIG = RecommenderConfig(lm=LM, adapter=ADAPTER, soft_token_id=SOFT)
# Everything that Gemma 2 and 3 have, with windows shorter than the prompts.
DECODER = DecoderConfig(
  vocab_size=64,
  d_model=16,
  d_ff=24,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  d_kv=6,
  activation='gelu',
  unit_offset_norm=True,
  post_norms=True,
  qk_norm=True,
  scale_embeddings=True,
  tie_embeddings=True,
  attention_soft_cap=5.0,
  final_soft_cap=6.0,
  sliding_window=4,
  global_every=3,
  rope_local_base=100.0,
  scan_unroll=0,
)
DECODER_CONFIG = RecommenderConfig(
  lm=DECODER, adapter=ADAPTER, soft_token_id=SOFT
)


def make_batch(batch=3, prompt=9, vectors=2, seed=0):
  """Prompts with a placeholder at 1 and 3, of different lengths."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(2, 60, (batch, prompt))
  tokens[:, 1 : 1 + 2 * vectors : 2] = SOFT
  for row in range(batch):
    tokens[row, prompt - row % 4 :] = 0
  vectors_ = rng.normal(size=(batch, vectors, 5)) * 5**-0.5
  kinds = np.tile(np.arange(vectors) % 2, (batch, 1))
  return {
    'prompt_tokens': jnp.asarray(tokens, jnp.int32),
    'cf_embeddings': jnp.asarray(vectors_, jnp.float32),
    'cf_kind_ids': jnp.asarray(kinds, jnp.int32),
  }


def make_responses(rows=3, length=7, seed=1):
  """Responses without padding."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(2, 60, (rows, length)), jnp.int32)


@dataclasses.dataclass
class Tiny:
  """A tiny recommender, and functions that call it compiled."""

  graphdef: nnx.GraphDef
  state: nnx.State
  config: RecommenderConfig = CONFIG

  @property
  def model(self) -> Recommender:
    """A module of its own over the same arrays."""
    return nnx.merge(self.graphdef, self.state, copy=True)

  def logits(self, batch, responses):
    return _logits(self.graphdef, self.state, batch, responses)


@jax.jit(static_argnums=0)
def _logits(graphdef, state, batch, responses):
  return nnx.merge(graphdef, state)(
    batch['prompt_tokens'],
    responses,
    batch['cf_embeddings'],
    batch['cf_kind_ids'],
  )


@functools.cache
def tiny() -> Tiny:
  """A tiny recommender with both adapters, the same to every caller."""
  make = lambda: Recommender(CONFIG, rngs=nnx.Rngs(0))
  return Tiny(*build_model(make, seed=3))


@functools.cache
def tiny_decoder(**changes) -> Tiny:
  """A tiny decoder-only recommender, its sizes changed as given."""
  lm = dataclasses.replace(DECODER, **changes)
  config = dataclasses.replace(DECODER_CONFIG, lm=lm)
  make = lambda: Recommender(config, rngs=nnx.Rngs(0))
  return Tiny(*build_model(make, seed=3), config)
