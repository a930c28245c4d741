"""Decoder-only models: Llama 3 and Gemma 1, 2, 3 (text) in Flax NNX.

One stack whose switches are those of `DecoderConfig`. It answers to the same
methods as `models.t5`, so that what trains, samples and scores knows no
difference: `encode` reads the prompt once, `decode_hidden` and `decode_step`
continue it by responses, any number to a prompt.

Sources: Llama (Touvron et al. 2023; Llama 3, 2024), Gemma (2024), Gemma 2
(2024: soft caps, local and global layers in turn, norms on both sides),
Gemma 3 (2025: five local layers to a global one, norms of queries and keys,
other rotary bases). A prompt that sees itself both ways is PaliGemma's.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from p4lm.models import layers
from p4lm.models.decoder_config import DecoderConfig
from p4lm.models.decoder_stack import Decoder, PromptKeys, ResponseCache
from p4lm.models.embedding import TokenEmbedder
from p4lm.models.layers import fold
from p4lm.partitioning.rules import constrain
from p4lm.typing import Array, Bool, Float, Int, Key

__all__ = ['DecoderConfig', 'DecoderOnly', 'PromptKeys', 'ResponseCache']


class DecoderOnly(nnx.Module):
  """Embeddings, stack and logits."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.config = config
    scale = 1.0
    if config.scale_embeddings:
      # Rounded to the type of the computation, as the published models do.
      scale = float(np.asarray(config.d_model**0.5, jnp.dtype(config.dtype)))
    self.token_embedder = TokenEmbedder(
      config.vocab_size,
      config.d_model,
      rngs=rngs,
      stddev=config.d_model**-0.5,
      scale=scale,
    )
    self.decoder = Decoder(config, rngs=rngs)
    self.logits_dense = (
      None
      if config.tie_embeddings
      else layers.Dense(
        {'embed': config.d_model},
        {'vocab': config.vocab_size},
        rngs=rngs,
        dtype=config.dtype,
        output_dtype='float32',
      )
    )

  def encode(
    self,
    embedded: Float[Array, 'B P D'],
    mask: Bool[Array, 'B P'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> PromptKeys:
    """Reads embedded, right-padded prompts; `mask` is False on padding."""
    return self.decoder.read_prompt(embedded, mask, dropout_key=dropout_key)

  def decode_hidden(
    self,
    encoded: PromptKeys,
    response_tokens: Int[Array, 'R L'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'R L D']:
    """The last hidden states by teacher forcing.

    Position t has seen the prompt and the tokens before t: the responses are
    shifted right inside, behind their prompt's last token.
    """
    copies = response_tokens.shape[0] // encoded.last.shape[0]
    embedded = self._inputs(
      jnp.repeat(encoded.last, copies, axis=0), response_tokens
    )
    return self.decoder(embedded, encoded, dropout_key=dropout_key)

  def read(
    self,
    embedded: Float[Array, 'B P D'],
    mask: Bool[Array, 'B P'],
    response_tokens: Int[Array, 'R L'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'R L D']:
    """`encode` and `decode_hidden`; one pass where R is B.

    Weights that are split over devices are then gathered, and their gradients
    reduced, once and not twice.
    """
    if response_tokens.shape[0] != embedded.shape[0]:
      keys = (fold(dropout_key, 0), fold(dropout_key, 1))
      encoded = self.encode(embedded, mask, dropout_key=keys[0])
      return self.decode_hidden(encoded, response_tokens, dropout_key=keys[1])
    last = jnp.maximum(mask.sum(axis=1) - 1, 0)
    response = self._inputs(
      embedded[jnp.arange(len(last)), last], response_tokens
    )
    return self.decoder.read_together(
      embedded, mask, response, dropout_key=dropout_key
    )

  def _inputs(
    self, last: Float[Array, 'R D'], response_tokens: Int[Array, 'R L']
  ) -> Float[Array, 'R L D']:
    """The prompt's last token, then the response's but for its last."""
    rest = self.token_embedder(response_tokens[:, :-1])
    return jnp.concatenate([last[:, None], rest.astype(last.dtype)], axis=1)

  def logits(self, hidden: Float[Array, '*B D']) -> Float[Array, '*B V']:
    """float32 logits of hidden states."""
    if self.logits_dense is not None:
      logits = self.logits_dense(hidden)
    else:
      table = self.token_embedder.embedding[...].astype(hidden.dtype)
      logits = jnp.einsum(
        '...d,vd->...v', hidden, table, preferred_element_type=jnp.float32
      )
    cap = self.config.final_soft_cap
    if cap:
      logits = jnp.tanh(logits / cap) * cap
    middle = ('length',) * (logits.ndim - 2)
    return constrain(logits, 'batch', *middle, 'vocab')

  def start_cache(
    self, encoded: PromptKeys, length: int, num_samples: int = 1
  ) -> ResponseCache:
    """An empty cache for `length` tokens of `num_samples` rows a prompt."""
    return self.decoder.start_cache(encoded, length, num_samples)

  def decode_step(
    self, cache: ResponseCache, tokens: Int[Array, 'R']
  ) -> tuple[Float[Array, 'R V'], ResponseCache]:
    """Logits of the token after `tokens`.

    The first step reads the prompts' last tokens, whatever `tokens` are.
    """
    last = cache.prompt.last
    first = jnp.repeat(last, tokens.shape[0] // last.shape[0], axis=0)
    embedded = self.token_embedder(tokens).astype(first.dtype)
    embedded = jnp.where(cache.step == 0, first, embedded)
    hidden, cache = self.decoder.decode_step(cache, embedded)
    return self.logits(hidden), cache
