"""T5 1.0 and 1.1 (Raffel et al. 2020; Shazeer 2020) in Flax NNX.

What sets T5 apart: RMS norm before each block and at the end, no biases, no
1/sqrt(d) in attention (the query initialisation holds it), a relative position
bias that all layers of a stack share, and decoding that starts from pad.
Version 1.1 has a gated-GELU feed-forward layer and an output projection of
its own; 1.0 has ReLU and takes the embedding, scaled by d_model ** -0.5.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.models import layers
from p4lm.models.embedding import TokenEmbedder
from p4lm.models.t5_cache import DecodeCache, Encoded
from p4lm.models.t5_config import T5Config
from p4lm.models.t5_stacks import Decoder, Encoder
from p4lm.partitioning.rules import constrain
from p4lm.typing import Array, Bool, Float, Int, Key

__all__ = ['DecodeCache', 'Encoded', 'T5', 'T5Config']

# Pad is the token 0 and, shifted in from the left, the decoder's first input.
PAD_ID = 0


class T5(nnx.Module):
  """Encoder, decoder, embeddings and logits."""

  def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
    self.config = config
    self.token_embedder = TokenEmbedder(
      config.vocab_size, config.d_model, rngs=rngs
    )
    self.encoder = Encoder(config, rngs=rngs)
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
  ) -> Encoded:
    """Encodes embedded prompts; `mask` is False on padding."""
    hidden = self.encoder(embedded, mask, dropout_key=dropout_key)
    return Encoded(hidden, mask)

  def decode_hidden(
    self,
    encoded: Encoded,
    response_tokens: Int[Array, 'R L'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'R L D']:
    """The decoder's last hidden states by teacher forcing.

    Position t has seen the prompt and the tokens before t: the responses are
    shifted right by one pad inside.
    """
    shifted = jnp.pad(
      response_tokens[:, :-1], ((0, 0), (1, 0)), constant_values=PAD_ID
    )
    embedded = self.token_embedder(shifted)
    return self.decoder(embedded, encoded, dropout_key=dropout_key)

  def read(
    self,
    embedded: Float[Array, 'B P D'],
    mask: Bool[Array, 'B P'],
    response_tokens: Int[Array, 'R L'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'R L D']:
    """`encode` and `decode_hidden`."""
    keys = (None, None)
    if dropout_key is not None:
      keys = jax.random.split(dropout_key)
    encoded = self.encode(embedded, mask, dropout_key=keys[0])
    return self.decode_hidden(encoded, response_tokens, dropout_key=keys[1])

  def logits(self, hidden: Float[Array, '*B D']) -> Float[Array, '*B V']:
    """float32 logits of hidden states."""
    if self.logits_dense is not None:
      logits = self.logits_dense(hidden)
    else:
      table = self.token_embedder.embedding[...].astype(hidden.dtype)
      scaled = hidden * self.config.d_model**-0.5
      logits = jnp.einsum(
        '...d,vd->...v', scaled, table, preferred_element_type=jnp.float32
      )
    middle = ('length',) * (logits.ndim - 2)
    return constrain(logits, 'batch', *middle, 'vocab')

  def start_cache(
    self, encoded: Encoded, length: int, num_samples: int = 1
  ) -> DecodeCache:
    """An empty cache for `length` tokens of `num_samples` rows a prompt."""
    return self.decoder.start_cache(encoded, length, num_samples)

  def decode_step(
    self, cache: DecodeCache, tokens: Int[Array, 'R']
  ) -> tuple[Float[Array, 'R V'], DecodeCache]:
    """Logits of the token after `tokens`; the first `tokens` are pad."""
    embedded = self.token_embedder(tokens)
    hidden, cache = self.decoder.decode_step(cache, embedded)
    return self.logits(hidden), cache
