"""The encoder and decoder stacks of T5."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.models import layers
from p4lm.models.attention import Attention, attend
from p4lm.models.layers import dropout, fold
from p4lm.models.library_attention import OWN
from p4lm.models.position_bias import RelativeBias, row_at
from p4lm.models.t5_cache import DecodeCache, Encoded
from p4lm.models.t5_config import FEED_FORWARD, T5Config
from p4lm.partitioning.rules import constrain
from p4lm.typing import Array, Bool, Float, Key


class EncoderLayer(nnx.Module):
  """Self-attention and feed-forward, each normed first and added."""

  def __init__(self, config: T5Config, *, rngs: nnx.Rngs, num_layers: int):
    options = dict(rngs=rngs, num_layers=num_layers)
    self.attention_norm = _norm(config, **options)
    self.attention = _attention(config, **options)
    self.ffn_norm = _norm(config, **options)
    self.ffn = _feed_forward(config, **options)
    self.dropout_rate = config.dropout_rate
    self.implementation = config.attention

  def __call__(self, x, bias, mask, key=None):
    rate = self.dropout_rate
    y = self.attention_norm(x)
    context = attend(
      self.attention.queries(y),
      *self.attention.keys_values(y),
      bias=bias,
      mask=mask,
      dropout_rate=rate,
      dropout_key=fold(key, 0),
      implementation=self.implementation,
    )
    x += dropout(self.attention.output(context), rate, fold(key, 1))
    y = self.ffn(self.ffn_norm(x), dropout_rate=rate, dropout_key=fold(key, 2))
    return x + dropout(y, rate, fold(key, 3))


class Encoder(nnx.Module):
  """The encoder stack; takes embedded tokens."""

  def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
    self.relative_bias = _relative_bias(
      config, config.num_encoder_layers, rngs, bidirectional=True
    )
    self.layers = EncoderLayer(
      config, rngs=rngs, num_layers=config.num_encoder_layers
    )
    self.final_norm = _norm(config, rngs=rngs)
    self.config = config

  def __call__(
    self,
    embedded: Float[Array, 'B P D'],
    mask: Bool[Array, 'B P'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B P D']:
    """Hidden states; those at padding are finite and mean nothing."""
    config = self.config
    x = embedded.astype(config.dtype)
    x = dropout(x, config.dropout_rate, fold(dropout_key, 0))
    length = x.shape[1]
    bias_of, embeddings = _bias_by_layer(self.relative_bias, length)
    keys = _layer_keys(dropout_key, config.num_encoder_layers)

    def step(layer, x, inputs):
      key, embedding = inputs
      x = constrain(x, 'batch', 'length', None)
      bias = bias_of(embedding)
      return layer(x, bias, mask[:, None, None, :], key), None

    x, _ = layers.scan_layers(
      self.layers,
      x,
      step,
      (keys, embeddings),
      remat=config.remat,
      unroll=_unroll(config),
    )
    x = self.final_norm(x)
    return dropout(x, config.dropout_rate, fold(dropout_key, 1))


class DecoderLayer(nnx.Module):
  """Causal self-attention, attention to the prompt, feed-forward."""

  def __init__(self, config: T5Config, *, rngs: nnx.Rngs, num_layers: int):
    options = dict(rngs=rngs, num_layers=num_layers)
    self.self_attention_norm = _norm(config, **options)
    self.self_attention = _attention(config, **options)
    self.cross_attention_norm = _norm(config, **options)
    self.cross_attention = _attention(config, **options)
    self.ffn_norm = _norm(config, **options)
    self.ffn = _feed_forward(config, **options)
    self.dropout_rate = config.dropout_rate
    self.implementation = config.attention

  def __call__(self, x, bias, causal, encoded: Encoded, key=None):
    """Teacher forcing: x [R,L,D] with every position at once."""
    rate = self.dropout_rate
    y = self.self_attention_norm(x)
    context = attend(
      self.self_attention.queries(y),
      *self.self_attention.keys_values(y),
      bias=bias,
      mask=causal,
      dropout_rate=rate,
      dropout_key=fold(key, 0),
      implementation=self.implementation,
    )
    x += dropout(self.self_attention.output(context), rate, fold(key, 1))
    keys, values = self.cross_attention.keys_values(encoded.hidden)
    y = self._cross(
      x, keys, values, encoded.mask, fold(key, 2), self.implementation
    )
    x += dropout(y, rate, fold(key, 3))
    return self._feed_forward(x, fold(key, 4))

  def decode_step(self, x, bias, mask, self_keys, self_values, cross, step):
    """One position: x [R,1,D]. Returns x and the extended caches."""
    y = self.self_attention_norm(x)
    key, value = self.self_attention.keys_values(y)
    self_keys = jax.lax.dynamic_update_slice_in_dim(self_keys, key, step, 2)
    self_values = jax.lax.dynamic_update_slice_in_dim(
      self_values, value, step, 2
    )
    context = attend(
      self.self_attention.queries(y),
      self_keys,
      self_values,
      bias=bias,
      mask=mask,
    )
    x += self.self_attention.output(context)
    x += self._cross(x, *cross)
    return self._feed_forward(x), self_keys, self_values

  def _cross(self, x, keys, values, mask, key=None, implementation=OWN):
    # R = B*G rows ask B prompts: the G rows of a prompt become G*Q queries
    # of one attention, so a prompt's keys are read once for all of them.
    query = self.cross_attention.queries(self.cross_attention_norm(x))
    rows, heads, length, width = query.shape
    prompts = keys.shape[0]
    grouped = query.reshape(prompts, rows // prompts, heads, length, width)
    grouped = jnp.swapaxes(grouped, 1, 2).reshape(prompts, heads, -1, width)
    context = attend(
      grouped,
      keys,
      values,
      mask=mask[:, None, None, :],
      dropout_rate=self.dropout_rate,
      dropout_key=key,
      implementation=implementation,
    )
    context = context.reshape(prompts, heads, rows // prompts, length, width)
    context = jnp.swapaxes(context, 1, 2).reshape(query.shape)
    return self.cross_attention.output(context)

  def _feed_forward(self, x, key=None):
    rate = self.dropout_rate
    y = self.ffn(self.ffn_norm(x), dropout_rate=rate, dropout_key=fold(key, 0))
    return x + dropout(y, rate, fold(key, 1))


class Decoder(nnx.Module):
  """The decoder stack; takes embedded tokens, already shifted right."""

  def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
    self.relative_bias = _relative_bias(
      config, config.num_decoder_layers, rngs, bidirectional=False
    )
    self.layers = DecoderLayer(
      config, rngs=rngs, num_layers=config.num_decoder_layers
    )
    self.final_norm = _norm(config, rngs=rngs)
    self.config = config

  def __call__(
    self,
    embedded: Float[Array, 'R L D'],
    encoded: Encoded,
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'R L D']:
    """Hidden states of R = B*G rows over B encoded prompts."""
    config = self.config
    x = embedded.astype(config.dtype)
    x = dropout(x, config.dropout_rate, fold(dropout_key, 0))
    length = x.shape[1]
    bias_of, embeddings = _bias_by_layer(self.relative_bias, length)
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
    keys = _layer_keys(dropout_key, config.num_decoder_layers)

    def step(layer, x, inputs):
      key, embedding = inputs
      x = constrain(x, 'batch', 'length', None)
      return layer(x, bias_of(embedding), causal, encoded, key), None

    x, _ = layers.scan_layers(
      self.layers,
      x,
      step,
      (keys, embeddings),
      remat=config.remat,
      unroll=_unroll(config),
    )
    x = self.final_norm(x)
    return dropout(x, config.dropout_rate, fold(dropout_key, 1))

  def start_cache(
    self, encoded: Encoded, length: int, num_samples: int
  ) -> DecodeCache:
    """An empty cache for `length` tokens of `num_samples` rows a prompt."""
    config = self.config
    cross = [
      self._layer(i).cross_attention.keys_values(encoded.hidden)
      for i in range(config.num_decoder_layers)
    ]
    rows = encoded.hidden.shape[0] * num_samples
    shape = (rows, config.num_heads, length, config.d_kv)
    empty = jnp.zeros(shape, config.dtype)
    empty = constrain(empty, 'batch', 'heads', 'length', 'kv')
    empty = (empty,) * len(cross)
    return DecodeCache(
      step=jnp.int32(0),
      self_keys=empty,
      self_values=empty,
      cross_keys=tuple(keys for keys, _ in cross),
      cross_values=tuple(values for _, values in cross),
      cross_mask=encoded.mask,
      position_bias=self.relative_bias.by_distance(length),
    )

  def decode_step(
    self, cache: DecodeCache, embedded: Float[Array, 'R D']
  ) -> tuple[Float[Array, 'R D'], DecodeCache]:
    """Hidden states of the next position, and the cache with it."""
    x = embedded[:, None, :].astype(self.config.dtype)
    biases = _rows_at(cache, self.config.num_decoder_layers)
    mask = jnp.arange(cache.self_keys[0].shape[2]) <= cache.step
    self_keys, self_values = [], []
    for i in range(self.config.num_decoder_layers):
      cross = cache.cross_keys[i], cache.cross_values[i], cache.cross_mask
      x = constrain(x, 'batch', 'length', None)
      x, keys, values = self._layer(i).decode_step(
        x,
        biases[i],
        mask[None, None, None],
        cache.self_keys[i],
        cache.self_values[i],
        cross,
        cache.step,
      )
      self_keys.append(keys)
      self_values.append(values)
    cache = dataclasses.replace(
      cache,
      step=cache.step + 1,
      self_keys=tuple(self_keys),
      self_values=tuple(self_values),
    )
    return self.final_norm(x)[:, 0], cache

  def _layer(self, index: int) -> DecoderLayer:
    return layers.layer_slice(self.layers, index)


def _norm(
  config: T5Config, *, rngs: nnx.Rngs, num_layers: int | None = None
) -> layers.RMSNorm:
  return layers.RMSNorm(
    config.d_model, config.layer_norm_epsilon, rngs=rngs, layers=num_layers
  )


def _attention(
  config: T5Config, *, rngs: nnx.Rngs, num_layers: int
) -> Attention:
  return Attention(
    config.d_model,
    config.num_heads,
    config.d_kv,
    rngs=rngs,
    dtype=config.dtype,
    # The root of d_kv that other models divide their scores by.
    query_stddev=(config.d_model * config.d_kv) ** -0.5,
    layers=num_layers,
  )


def _feed_forward(
  config: T5Config, *, rngs: nnx.Rngs, num_layers: int
) -> layers.FeedForward:
  activation, gated = FEED_FORWARD[config.feed_forward]
  return layers.FeedForward(
    config.d_model,
    config.d_ff,
    rngs=rngs,
    activation=activation,
    gated=gated,
    dtype=config.dtype,
    layers=num_layers,
  )


def _relative_bias(
  config: T5Config, num_layers: int, rngs: nnx.Rngs, *, bidirectional: bool
) -> RelativeBias:
  return RelativeBias(
    config.relative_attention_num_buckets,
    config.relative_attention_max_distance,
    config.num_heads,
    bidirectional=bidirectional,
    rngs=rngs,
    layers=num_layers if config.relative_bias_per_layer else None,
  )


def _bias_by_layer(relative_bias: RelativeBias, length: int):
  """(f, inputs of the loop over layers): f(a layer's input) is its bias."""
  embedding = relative_bias.embedding[...]
  if embedding.ndim == 3:
    return lambda layer: relative_bias.table(layer, length, length), embedding
  shared = relative_bias(length, length)
  return lambda _: shared, None


def _rows_at(cache: DecodeCache, num_layers: int) -> list[Array]:
  """The bias [H,1,L] of each layer at the cache's position."""
  by_distance = cache.position_bias
  if by_distance.ndim == 2:
    return [row_at(by_distance, cache.step)[:, None, :]] * num_layers
  return [row_at(layer, cache.step)[:, None, :] for layer in by_distance]


def _layer_keys(key: Key[Array, ''] | None, num_layers: int):
  return None if key is None else jax.random.split(fold(key, 2), num_layers)


def _unroll(config: T5Config) -> int | bool:
  return config.scan_unroll or True
