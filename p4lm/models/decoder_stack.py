"""The layers of a decoder-only model, its prompts' keys and its cache.

The prompt goes through the stack once and leaves its keys and values. The
response follows, beginning with the prompt's last token, whose output is the
first response logit:

  prompt     p0 p1 p2 p3 -  -        n = 4 tokens, two of padding
  kept       k0 k1 k2                 of each layer, for every response
  response               p3 r0 r1     inputs at positions n-1, n, n+1
  predicts               r0 r1 r2

So teacher forcing and stepwise decoding feed the same inputs, and the last
prompt token takes the place that T5 gives to pad.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.models import layers
from p4lm.models.attention import Attention
from p4lm.models.decoder_config import DecoderConfig
from p4lm.models.decoder_views import layer_view, layer_views, stacked_views
from p4lm.models.grouped_attention import KeyPart, attend_parts
from p4lm.models.layers import RMSNorm, dropout, fold
from p4lm.models.rope import rotate
from p4lm.partitioning.rules import constrain
from p4lm.typing import Array, Bool, Float, Key


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('keys', 'values', 'mask', 'last', 'start'),
  meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class PromptKeys:
  """What the stack made of a batch of prompts.

  Attributes:
    keys, values: float [layers,B,J,P,K].
    mask: bool [B,P], True on tokens but the last one, which the response
      begins with.
    last: float [B,D], the embedding of that last token.
    start: int32 [B], its position; 0 for a prompt without tokens, which then
      begins with the embedding of pad.
  """

  keys: Array
  values: Array
  mask: Array
  last: Array
  start: Array

  def repeat(self, num_samples: int) -> 'PromptKeys':
    """Each prompt `num_samples` times: row b*G+g is copy g of prompt b."""
    repeat = lambda x: jnp.repeat(x, num_samples, axis=0)
    return PromptKeys(
      keys=jnp.repeat(self.keys, num_samples, axis=1),
      values=jnp.repeat(self.values, num_samples, axis=1),
      mask=repeat(self.mask),
      last=repeat(self.last),
      start=repeat(self.start),
    )


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('step', 'prompt', 'keys', 'values'),
  meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class ResponseCache:
  """Keys and values of R responses on their way, over B prompts.

  Attributes:
    step: int32 [], the place in the response that the next token takes.
    prompt: of the B prompts, R = B*G.
    keys, values: a float [R,J,L,K] for each layer; one array a layer, so that
      a step writes one position of each in place.
  """

  step: Array
  prompt: PromptKeys
  keys: tuple[Array, ...]
  values: tuple[Array, ...]


class Layer(nnx.Module):
  """Self-attention and a gated feed-forward, each normed and added."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, num_layers: int):
    norm = functools.partial(_norm, config, rngs=rngs, num_layers=num_layers)
    self.attention_norm = norm()
    self.attention = Attention(
      config.d_model,
      config.num_heads,
      config.d_kv,
      rngs=rngs,
      dtype=config.dtype,
      layers=num_layers,
      num_kv_heads=config.num_kv_heads,
    )
    heads = dict(width=config.d_kv, axis='kv')
    self.query_norm = norm(**heads) if config.qk_norm else None
    self.key_norm = norm(**heads) if config.qk_norm else None
    self.attention_post_norm = norm() if config.post_norms else None
    self.ffn_norm = norm()
    self.ffn = layers.FeedForward(
      config.d_model,
      config.d_ff,
      rngs=rngs,
      activation=config.activation,
      gated=True,
      dtype=config.dtype,
      layers=num_layers,
    )
    self.ffn_post_norm = norm() if config.post_norms else None
    self.config = config

  def queries_keys_values(self, x: Array, angle: Array):
    """q [R,H,Q,K], k and v [R,J,Q,K] of the residual stream, turned."""
    y = self.attention_norm(x)
    query = self.attention.queries(y)
    key, value = self.attention.keys_values(y)
    if self.query_norm is not None:
      query, key = self.query_norm(query), self.key_norm(key)
    return rotate(query, angle), rotate(key, angle), value

  def finish(self, x, query, parts, key=None):
    """Attention to the parts, then the feed-forward; x [R,Q,D]."""
    rate = self.config.dropout_rate
    context = attend_parts(
      query,
      parts,
      scale=self.config.attention_scale,
      soft_cap=self.config.attention_soft_cap,
      dropout_rate=rate,
      dropout_key=fold(key, 0),
      implementation=self.config.attention,
    )
    y = self.attention.output(context)
    if self.attention_post_norm is not None:
      y = self.attention_post_norm(y)
    x += dropout(y, rate, fold(key, 1))
    y = self.ffn(self.ffn_norm(x), dropout_rate=rate, dropout_key=fold(key, 2))
    if self.ffn_post_norm is not None:
      y = self.ffn_post_norm(y)
    return x + dropout(y, rate, fold(key, 3))


class Decoder(nnx.Module):
  """The stack; takes embedded tokens."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.layers = Layer(config, rngs=rngs, num_layers=config.num_layers)
    self.final_norm = _norm(config, rngs=rngs)
    self.config = config

  def read_prompt(
    self,
    embedded: Float[Array, 'B P D'],
    mask: Bool[Array, 'B P'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> PromptKeys:
    """Keys and values of right-padded prompts; `mask` is False on padding."""
    batch, length = mask.shape
    positions = jnp.arange(length)[None]
    last = jnp.maximum(mask.sum(axis=1) - 1, 0)
    views = layer_views(
      self.config,
      positions,
      [positions],
      [mask],
      causal=not self.config.bidirectional_prompt,
    )

    def step(layer, x, inputs):
      kind, _, key = inputs
      view = views[kind]
      x = constrain(x, 'batch', 'length', None)
      query, keys, values = layer.queries_keys_values(x, view.angle)
      parts = [KeyPart(keys, values, *view.masks)]
      return layer.finish(x, query, parts, key), (keys, values)

    x = embedded.astype(self.config.dtype)
    _, (keys, values) = self._scan(x, step, None, dropout_key)
    rows = jnp.arange(batch)
    return PromptKeys(
      keys=keys,
      values=values,
      mask=mask & (positions != last[:, None]),
      last=embedded[rows, last],
      start=last.astype(jnp.int32),
    )

  def __call__(
    self,
    embedded: Float[Array, 'R L D'],
    prompt: PromptKeys,
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'R L D']:
    """Hidden states of R = B*G responses, every position at once.

    Args:
      embedded: inputs, of which the first is the prompts' `last`.
      prompt: of the B prompts.
      dropout_key: None for no dropout.
    """
    copies = embedded.shape[0] // prompt.mask.shape[0]
    start = jnp.repeat(prompt.start, copies)[:, None]
    positions = start + jnp.arange(embedded.shape[1])[None]
    views = layer_views(
      self.config,
      positions,
      [jnp.arange(prompt.mask.shape[1])[None], positions],
      [jnp.repeat(prompt.mask, copies, axis=0), None],
    )

    def step(layer, x, inputs):
      kind, (prompt_keys, prompt_values), key = inputs
      view = views[kind]
      x = constrain(x, 'batch', 'length', None)
      query, keys, values = layer.queries_keys_values(x, view.angle)
      parts = [
        KeyPart(prompt_keys, prompt_values, view.masks[0]),
        KeyPart(keys, values, view.masks[1]),
      ]
      return layer.finish(x, query, parts, key), None

    x = embedded.astype(self.config.dtype)
    kept = (prompt.keys, prompt.values)
    x, _ = self._scan(x, step, kept, dropout_key)
    return self.final_norm(x)

  def read_together(
    self,
    prompt: Float[Array, 'B P D'],
    mask: Bool[Array, 'B P'],
    response: Float[Array, 'B L D'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B L D']:
    """Hidden states of one response to each prompt, both read in one pass.

    What `read_prompt` and calling the stack compute, with every weight read
    once. Between the two, the prompt's last token has two places: prompts see
    it in theirs, responses in their own.

                   p0 p1 p2 -  | p2 r0      n = 3 tokens, one of padding
      p1 (causal)  x  x        |
      p2 again     x  x        | x
      r0           x  x        | x  x

    Args:
      prompt: embedded and right-padded.
      mask: False on padding.
      response: inputs, of which the first is the prompt's last token.
      dropout_key: None for no dropout.
    """
    length = mask.shape[1]
    places = jnp.arange(length)[None]
    last = jnp.maximum(mask.sum(axis=1) - 1, 0)[:, None]
    positions = last + jnp.arange(response.shape[1])[None]
    causal = not self.config.bidirectional_prompt
    of_prompt = layer_views(
      self.config, places, [places], [mask], causal=causal
    )
    of_response = layer_views(
      self.config,
      positions,
      [places, positions],
      [mask & (places != last), None],
    )
    views = stacked_views(of_prompt, of_response)

    def step(layer, x, inputs):
      kind, _, key = inputs
      view = views[kind]
      x = constrain(x, 'batch', 'length', None)
      query, keys, values = layer.queries_keys_values(x, view.angle)
      parts = [KeyPart(keys, values, *view.masks)]
      return layer.finish(x, query, parts, key), None

    x = jnp.concatenate([prompt, response], axis=1).astype(self.config.dtype)
    x, _ = self._scan(x, step, None, dropout_key)
    return self.final_norm(x[:, length:])

  def start_cache(
    self, prompt: PromptKeys, length: int, num_samples: int
  ) -> ResponseCache:
    """An empty cache for `length` tokens of `num_samples` rows a prompt."""
    config = self.config
    rows = prompt.mask.shape[0] * num_samples
    shape = (rows, config.num_kv_heads, length, config.d_kv)
    empty = jnp.zeros(shape, config.dtype)
    empty = constrain(empty, 'batch', 'kv_heads', 'length', 'kv')
    empty = (empty,) * config.num_layers
    return ResponseCache(jnp.int32(0), prompt, empty, empty)

  def decode_step(
    self, cache: ResponseCache, embedded: Float[Array, 'R D']
  ) -> tuple[Float[Array, 'R D'], ResponseCache]:
    """Hidden states of the next position, and the cache with it."""
    prompt, length = cache.prompt, cache.keys[0].shape[2]
    copies = embedded.shape[0] // prompt.mask.shape[0]
    start = jnp.repeat(prompt.start, copies)[:, None]
    view_of = functools.partial(
      layer_view,
      self.config,
      start + cache.step,
      [
        jnp.arange(prompt.mask.shape[1])[None],
        start + jnp.arange(length)[None],
      ],
      [jnp.repeat(prompt.mask, copies, axis=0), None],
    )
    views = {local: view_of(local) for local in (False, True)}
    x = embedded[:, None].astype(self.config.dtype)
    all_keys, all_values = [], []
    for i in range(self.config.num_layers):
      layer = layers.layer_slice(self.layers, i)
      view = views[self.config.is_local(i)]
      x = constrain(x, 'batch', 'length', None)
      query, key, value = layer.queries_keys_values(x, view.angle)
      write = jax.lax.dynamic_update_slice_in_dim
      keys = write(cache.keys[i], key, cache.step, 2)
      values = write(cache.values[i], value, cache.step, 2)
      parts = [
        KeyPart(prompt.keys[i], prompt.values[i], view.masks[0]),
        KeyPart(keys, values, view.masks[1]),
      ]
      x = layer.finish(x, query, parts)
      all_keys.append(keys)
      all_values.append(values)
    cache = ResponseCache(
      cache.step + 1, prompt, tuple(all_keys), tuple(all_values)
    )
    return self.final_norm(x)[:, 0], cache

  def _scan(self, x, step, inputs, dropout_key):
    """Runs the stack; a step gets (kind, its slice of inputs, key)."""
    config = self.config
    kinds = jnp.array([config.is_local(i) for i in range(config.num_layers)])
    keys = None
    if dropout_key is not None:
      keys = jax.random.split(dropout_key, config.num_layers)
    return layers.scan_layers(
      self.layers,
      x,
      step,
      (kinds.astype(jnp.int32), inputs, keys),
      remat=config.remat,
      unroll=config.scan_unroll or True,
    )


def _norm(
  config: DecoderConfig,
  *,
  rngs: nnx.Rngs,
  num_layers: int | None = None,
  width: int | None = None,
  axis: str = 'embed',
) -> RMSNorm:
  return RMSNorm(
    width or config.d_model,
    config.layer_norm_epsilon,
    rngs=rngs,
    layers=num_layers,
    axis=axis,
    unit_offset=config.unit_offset_norm,
  )
