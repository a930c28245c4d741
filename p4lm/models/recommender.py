"""The recommender: a language model that reads CF vectors as soft tokens."""

import dataclasses

from flax import nnx

from p4lm.models.adapter import AdapterConfig, make_adapters
from p4lm.models.config_json import JsonConfig
from p4lm.models.language_model import (
  Cache,
  EncodedPrompts,
  LMConfig,
  make_language_model,
)
from p4lm.models.soft_tokens import check_soft_token_id, embed_prompt
from p4lm.typing import Array, Bool, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class RecommenderConfig(JsonConfig):
  """A language model and its adapters.

  Attributes:
    lm: the language model.
    adapter: None for a model of text alone.
    soft_token_id: the placeholder in prompts, the vocabulary's
      `soft_token_id`.
  """

  lm: LMConfig
  adapter: AdapterConfig | None
  soft_token_id: int

  def __post_init__(self):
    check_soft_token_id(self.soft_token_id, self.lm.vocab_size)


class Recommender(nnx.Module):
  """A language model with CF adapters.

  Prompts are right-padded with the language model's `pad_id`, which is 0 but
  for models that have a word there.

  Every method takes `cf_embeddings` float [B,N,E] and `cf_kind_ids` int [B,N]
  (index into CF_KINDS); N is 0 for a prompt of text alone.
  """

  def __init__(self, config: RecommenderConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.lm = make_language_model(config.lm, rngs=rngs)
    self.adapters = make_adapters(
      config.adapter,
      config.lm.d_model,
      rngs=rngs,
      stddev=config.lm.embedding_stddev,
    )

  def __call__(
    self,
    prompt_tokens: Int[Array, 'B P'],
    response_tokens: Int[Array, 'R L'],
    cf_embeddings: Float[Array, 'B N E'],
    cf_kind_ids: Int[Array, 'B N'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'R L V']:
    """float32 logits of each response token given all before it.

    R is B, or B*G with the G responses of a prompt in consecutive rows; the
    prompt is encoded once.
    """
    hidden = self.read(
      prompt_tokens,
      response_tokens,
      cf_embeddings,
      cf_kind_ids,
      dropout_key=dropout_key,
    )
    return self.logits(hidden)

  def read(
    self,
    prompt_tokens: Int[Array, 'B P'],
    response_tokens: Int[Array, 'R L'],
    cf_embeddings: Float[Array, 'B N E'],
    cf_kind_ids: Int[Array, 'B N'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'R L D']:
    """The decoder's last hidden states of responses to prompts."""
    embedded, mask = self._embedded(prompt_tokens, cf_embeddings, cf_kind_ids)
    return self.lm.read(
      embedded, mask, response_tokens, dropout_key=dropout_key
    )

  def encode(
    self,
    prompt_tokens: Int[Array, 'B P'],
    cf_embeddings: Float[Array, 'B N E'],
    cf_kind_ids: Int[Array, 'B N'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> EncodedPrompts:
    """The prompt, its placeholders replaced by soft tokens, read."""
    embedded, mask = self._embedded(prompt_tokens, cf_embeddings, cf_kind_ids)
    return self.lm.encode(embedded, mask, dropout_key=dropout_key)

  def decode(
    self,
    encoded: EncodedPrompts,
    response_tokens: Int[Array, 'R L'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'R L V']:
    """float32 logits of each response token by teacher forcing."""
    hidden = self.decode_hidden(
      encoded, response_tokens, dropout_key=dropout_key
    )
    return self.logits(hidden)

  def decode_hidden(
    self,
    encoded: EncodedPrompts,
    response_tokens: Int[Array, 'R L'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'R L D']:
    """The decoder's last hidden states, what logits and values come from."""
    return self.lm.decode_hidden(
      encoded, response_tokens, dropout_key=dropout_key
    )

  def logits(self, hidden: Float[Array, '*B D']) -> Float[Array, '*B V']:
    """float32 logits of hidden states."""
    return self.lm.logits(hidden)

  def start_cache(
    self, encoded: EncodedPrompts, length: int, num_samples: int = 1
  ) -> Cache:
    """An empty cache for `length` tokens of `num_samples` rows a prompt."""
    return self.lm.start_cache(encoded, length, num_samples)

  def decode_step(
    self, cache: Cache, tokens: Int[Array, 'R']
  ) -> tuple[Float[Array, 'R V'], Cache]:
    """Logits of the token after `tokens`; the first `tokens` are pad."""
    return self.lm.decode_step(cache, tokens)

  def _embedded(
    self, prompt_tokens, cf_embeddings, cf_kind_ids
  ) -> tuple[Float[Array, 'B P D'], Bool[Array, 'B P']]:
    """Prompts with soft tokens in their places, and where they have tokens."""
    embedded = embed_prompt(
      self.lm.token_embedder(prompt_tokens),
      prompt_tokens,
      self.adapters,
      cf_embeddings,
      cf_kind_ids,
      self.config.soft_token_id,
    )
    return embedded, prompt_tokens != self.config.lm.pad_id
