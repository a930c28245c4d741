"""Reward models: a T5 encoder, one pooled vector, a small scoring head.

The scores of all kinds are unbounded real numbers; what they mean lies in the
loss that trains them: log-odds for `nli`, Bradley-Terry utilities for `appeal`
and `personalization`, the target's own units for `relevance`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.errors import UserError
from p4lm.models.adapter import AdapterConfig, make_adapters
from p4lm.models.attention import MASKED
from p4lm.models.config_json import JsonConfig
from p4lm.models.layers import Dense
from p4lm.models.recommender import Recommender
from p4lm.models.soft_tokens import check_soft_token_id, embed_prompt
from p4lm.models.t5 import PAD_ID, T5Config, TokenEmbedder
from p4lm.models.t5_stacks import Encoder
from p4lm.typing import Array, Bool, Float, Int, Key

REWARD_KINDS = ('nli', 'appeal', 'personalization', 'relevance')
POOLINGS = ('mean', 'max', 'attention')


@dataclasses.dataclass(frozen=True)
class RewardModelConfig(JsonConfig):
  """A reward model's shape.

  Attributes:
    encoder: the T5 whose encoder is used; its decoder sizes are ignored.
    adapter: None for a reward of text alone.
    soft_token_id: the placeholder in inputs.
    kind: 'nli', 'appeal', 'personalization' or 'relevance'.
    num_heads: scoring heads on the pooled vector; their mean is the score and
      their spread a measure of how sure it is.
    pooling: 'mean' or 'max' over the input's tokens, or 'attention' with a
      learned query.
  """

  encoder: T5Config
  adapter: AdapterConfig | None
  soft_token_id: int
  kind: str
  num_heads: int = 1
  pooling: str = 'mean'

  def __post_init__(self):
    for name, known in (('kind', REWARD_KINDS), ('pooling', POOLINGS)):
      if getattr(self, name) not in known:
        raise UserError(
          f'RewardModelConfig.{name} is {getattr(self, name)!r}; it must be'
          f' one of {", ".join(known)}.'
        )
    if self.num_heads < 1:
      raise UserError(
        f'RewardModelConfig.num_heads is {self.num_heads}; it must be at'
        ' least 1.'
      )
    check_soft_token_id(self.soft_token_id, self.encoder.vocab_size)


class RewardModel(nnx.Module):
  """Scores a text, with CF vectors as soft tokens where the kind has them.

  Its encoder, token_embedder and adapters have the parameter names and shapes
  of a Recommender's.
  """

  def __init__(self, config: RewardModelConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.token_embedder = TokenEmbedder(config.encoder, rngs=rngs)
    self.encoder = Encoder(config.encoder, rngs=rngs)
    width = config.encoder.d_model
    self.adapters = make_adapters(config.adapter, width, rngs=rngs)
    self.pool_query = (
      Dense({'embed': width}, {'scores': 1}, rngs=rngs)
      if config.pooling == 'attention'
      else None
    )
    self.head_hidden = Dense(
      {'embed': width}, {'mlp': width}, rngs=rngs, use_bias=True
    )
    # A small output keeps first scores near 0, where every loss is gentle.
    self.head_output = Dense(
      {'mlp': width},
      {'scores': config.num_heads},
      rngs=rngs,
      stddev=0.1 * width**-0.5,
      use_bias=True,
    )

  def __call__(
    self,
    tokens: Int[Array, 'B P'],
    cf_embeddings: Float[Array, 'B N E'],
    cf_kind_ids: Int[Array, 'B N'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B']:
    """float32 scores, the mean of the heads."""
    return self.head_scores(
      tokens, cf_embeddings, cf_kind_ids, dropout_key=dropout_key
    ).mean(axis=-1)

  def head_scores(
    self,
    tokens: Int[Array, 'B P'],
    cf_embeddings: Float[Array, 'B N E'],
    cf_kind_ids: Int[Array, 'B N'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'B K']:
    """float32 scores of every head; tokens are right-padded with 0."""
    embedded = embed_prompt(
      self.token_embedder(tokens),
      tokens,
      self.adapters,
      cf_embeddings,
      cf_kind_ids,
      self.config.soft_token_id,
    )
    mask = tokens != PAD_ID
    hidden = self.encoder(embedded, mask, dropout_key=dropout_key)
    pooled = self._pool(hidden.astype(jnp.float32), mask)
    return self.head_output(jax.nn.gelu(self.head_hidden(pooled)))

  def _pool(
    self, hidden: Float[Array, 'B P D'], mask: Bool[Array, 'B P']
  ) -> Float[Array, 'B D']:
    kept = mask[..., None]
    if self.config.pooling == 'max':
      top = jnp.where(kept, hidden, MASKED).max(axis=1)
      return jnp.where(mask.any(axis=1, keepdims=True), top, 0.0)
    if self.pool_query is not None:
      scores = jnp.where(kept, self.pool_query(hidden), MASKED)
      return (jax.nn.softmax(scores, axis=1) * hidden).sum(axis=1)
    total = jnp.where(kept, hidden, 0.0).sum(axis=1)
    return total / jnp.maximum(kept.sum(axis=1), 1)


def init_from_recommender(
  reward_model: RewardModel, recommender: Recommender
) -> None:
  """Copies a recommender's encoder, embeddings and adapters, in place.

  The head (and an attention pooling's query) keep their own values. Adapters
  are copied where both models have them.

  Raises:
    UserError: the recommender has LoRA factors that are not folded in, or the
      two differ in a parameter's shape; the message names it.
  """
  pairs = [
    ('encoder', reward_model.encoder, recommender.lm.encoder),
    (
      'token_embedder',
      reward_model.token_embedder,
      recommender.lm.token_embedder,
    ),
  ]
  if reward_model.adapters is not None and recommender.adapters is not None:
    pairs.append(('adapters', reward_model.adapters, recommender.adapters))
  for name, target, source in pairs:
    wanted = dict(nnx.to_flat_state(nnx.state(target)))
    given = dict(nnx.to_flat_state(nnx.state(source)))
    for path in sorted(set(wanted) | set(given), key=str):
      shapes = [
        side[path].get_value().shape if path in side else 'absent'
        for side in (given, wanted)
      ]
      if shapes[0] != shapes[1]:
        raise UserError(
          f'The reward model cannot start from this recommender:'
          f' {name}/{"/".join(map(str, path))} is {shapes[0]} there and'
          f' {shapes[1]} here; give both the same encoder and adapter sizes'
          ' (and fold LoRA first).'
        )
    nnx.update(target, nnx.state(source))
