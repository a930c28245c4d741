"""Reward models: a language model that reads a response, and a scoring head.

The prompt (a plot, a user and an item, or nothing) is encoded and the response
decoded, as if the model wrote it. For every token
the head sees the decoder's state after reading it and the log-probability that
the model gave it; the score is the mean of what it makes of each. A model that
can write from a plot starts out knowing which claims surprise it, and the
prompt is encoded once for all responses to it.

A reward of personal fit (`personalization`) also asks what the user adds: the
same text is read once more for nobody, with the user's vector at zero, which is
where an empty history folds in. A writer that learned from what is written to
whom then starts as a judge of it, by the gain

    sum_t log p(y_t | user, item) - log p(y_t | item),

the pointwise mutual information of text and user. DPO's implicit reward has
this form (Rafailov et al. 2023); here the gain is a feature whose weight the
preferences fit, beside the head's own opinion. Both readings are trained: with
the second one held fixed, whatever makes all texts likelier raises the gain of
long ones, and training drifts away.

The scores of all kinds are unbounded real numbers; what they mean lies in the
loss that trains them: log-odds for `nli`, Bradley-Terry utilities for `appeal`
and `personalization`, the target's own units for `relevance`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.errors import UserError
from p4lm.models.adapter import CF_KINDS, AdapterConfig
from p4lm.models.config_json import JsonConfig
from p4lm.models.language_model import LMConfig
from p4lm.models.layers import Dense, normal_parameter
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.models.selection import parameter_name
from p4lm.ops.logprobs import token_logprobs
from p4lm.typing import Array, Bool, Float, Int, Key

_USER = CF_KINDS.index('user')
REWARD_KINDS = ('nli', 'appeal', 'personalization', 'relevance')
PAIRWISE = ('appeal', 'personalization')
PREFERENCES = ('bradley_terry', 'general', 'variational')


@dataclasses.dataclass(frozen=True)
class RewardModelConfig(JsonConfig):
  """A reward model's shape.

  Attributes:
    lm: the language model that reads prompt and response.
    adapter: None for a reward of text alone.
    soft_token_id: the placeholder in prompts.
    kind: 'nli', 'appeal', 'personalization' or 'relevance'.
    num_heads: scoring heads on the same states; their mean is the score and
      their spread a measure of how sure it is.
    preference: what heads are to a kind that is trained on pairs: scores
      ('bradley_terry'), or coordinates of points in num_heads / 2 planes, which
      hold cycles too ('general', see `ops.preference.general_preference`), or
      what a reward with a latent of each user is made of ('variational', see
      `ops.variational`; num_heads is 1 + 3 d).
  """

  lm: LMConfig
  adapter: AdapterConfig | None
  soft_token_id: int
  kind: str
  num_heads: int = 1
  preference: str = 'bradley_terry'

  def __post_init__(self):
    if self.kind not in REWARD_KINDS:
      raise UserError(
        f'RewardModelConfig.kind is {self.kind!r}; it must be one of'
        f' {", ".join(REWARD_KINDS)}.'
      )
    if self.num_heads < 1:
      raise UserError(
        f'RewardModelConfig.num_heads is {self.num_heads}; it must be at'
        ' least 1.'
      )
    if self.preference not in PREFERENCES:
      raise UserError(
        f'RewardModelConfig.preference is {self.preference!r}; it must be one'
        f' of {", ".join(PREFERENCES)}.'
      )
    if self.is_general and (self.num_heads % 2 or self.kind not in PAIRWISE):
      raise UserError(
        "RewardModelConfig.preference 'general' is for the kinds"
        f' {", ".join(PAIRWISE)} and an even num_heads, got {self.kind!r} and'
        f' {self.num_heads}.'
      )
    if self.is_variational and (
      self.num_heads < 4 or self.num_heads % 3 != 1 or self.kind not in PAIRWISE
    ):
      raise UserError(
        "RewardModelConfig.preference 'variational' is for the kinds"
        f' {", ".join(PAIRWISE)} and num_heads 1 + 3 d (4, 7, 10...) with d the'
        f' width of the latent, got {self.kind!r} and {self.num_heads}.'
      )

  @property
  def is_general(self) -> bool:
    """Whether heads are coordinates that hold cycles."""
    return self.preference == 'general'

  @property
  def is_variational(self) -> bool:
    """Whether heads are coordinates that a user's latent makes a score of."""
    return self.preference == 'variational'

  @property
  def contrasts_user(self) -> bool:
    """Whether the text is also read for nobody."""
    return self.kind == 'personalization'

  @property
  def recommender(self) -> RecommenderConfig:
    """The model under the head."""
    return RecommenderConfig(self.lm, self.adapter, self.soft_token_id)


class RewardModel(nnx.Module):
  """Scores responses, with CF vectors as soft tokens where the kind has them.

  `recommender` has the parameters of a Recommender; the head is beside it.
  """

  def __init__(self, config: RewardModelConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.recommender = Recommender(config.recommender, rngs=rngs)
    width = config.lm.d_model
    self.state_hidden = Dense(
      {'embed': width}, {'mlp': width}, rngs=rngs, use_bias=True
    )
    # Log-probabilities reach some -10; the states have entries about 1.
    features = {'features': 2 if config.contrasts_user else 1}
    self.surprise_hidden = Dense(
      features, {'mlp': width}, rngs=rngs, stddev=0.2
    )
    self.gain_weight: nnx.Param | None = nnx.data(None)
    if config.contrasts_user:
      heads = {'scores': config.num_heads}
      self.gain_weight = normal_parameter(rngs, heads, 0.0, mean=1.0)
    self.head_output = Dense(
      {'mlp': width},
      {'scores': config.num_heads},
      rngs=rngs,
      use_bias=True,
    )

  def __call__(
    self,
    prompt_tokens: Int[Array, 'B P'],
    response_tokens: Int[Array, 'R L'],
    cf_embeddings: Float[Array, 'B N E'],
    cf_kind_ids: Int[Array, 'B N'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'R']:
    """float32 scores, the mean of the heads.

    R is B, or B*G with the G responses of a prompt in consecutive rows.
    Prompts and responses are right-padded with the model's `pad_id`.

    Raises:
      UserError: the heads are no scores (preference 'general', 'variational').
    """
    if self.config.is_general or self.config.is_variational:
      raise UserError(
        f'The heads of a reward of preference {self.config.preference!r} are'
        ' coordinates: read them with head_scores.'
      )
    return self.head_scores(
      prompt_tokens,
      response_tokens,
      cf_embeddings,
      cf_kind_ids,
      dropout_key=dropout_key,
    ).mean(axis=-1)

  def head_scores(
    self,
    prompt_tokens: Int[Array, 'B P'],
    response_tokens: Int[Array, 'R L'],
    cf_embeddings: Float[Array, 'B N E'],
    cf_kind_ids: Int[Array, 'B N'],
    *,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'R K']:
    """float32 scores of every head."""
    mask = response_tokens != self.config.lm.pad_id
    states, logps = self._read(
      prompt_tokens, response_tokens, cf_embeddings, cf_kind_ids, dropout_key
    )
    features = [logps]
    if self.config.contrasts_user:
      is_user = (cf_kind_ids == _USER)[..., None]
      _, without = self._read(
        prompt_tokens,
        response_tokens,
        jnp.where(is_user, 0.0, cf_embeddings),
        cf_kind_ids,
        dropout_key,
      )
      features.append(logps - without)
    hidden = self.state_hidden(states.astype(jnp.float32))
    hidden += self.surprise_hidden(jnp.stack(features, axis=-1))
    scores = _mean_over_tokens(self.head_output(jax.nn.gelu(hidden)), mask)
    if self.config.contrasts_user:
      gain = jnp.where(mask, features[1], 0.0).sum(axis=1, keepdims=True)
      scores += gain * self.gain_weight[...][None]
    return scores

  def _read(
    self, prompt_tokens, response_tokens, cf_embeddings, cf_kind_ids, key
  ) -> tuple[Float[Array, 'R L D'], Float[Array, 'R L']]:
    """States after each token, and the log-probability that each one had."""
    lm = self.recommender
    # One more position: the state at t + 1 is the first that has read token t.
    states = lm.read(
      prompt_tokens,
      jnp.pad(response_tokens, ((0, 0), (0, 1))),
      cf_embeddings,
      cf_kind_ids,
      dropout_key=key,
    )
    logps = token_logprobs(lm.logits(states[:, :-1]), response_tokens)
    return states[:, 1:], logps


def _mean_over_tokens(
  scores: Float[Array, 'R L K'], mask: Bool[Array, 'R L']
) -> Float[Array, 'R K']:
  """Means over counted tokens; 0 for a response without any."""
  total = jnp.where(mask[..., None], scores, 0.0).sum(axis=1)
  return total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)


def init_from_recommender(
  reward_model: RewardModel, recommender: Recommender
) -> None:
  """Copies a recommender's language model and adapters, in place.

  The head keeps its own values. Adapters are copied where both models have
  them.

  Raises:
    UserError: the recommender has LoRA factors that are not folded in, or the
      two differ in a parameter's shape; the message names it.
  """
  for name in ('lm', 'adapters'):
    target = getattr(reward_model.recommender, name)
    source = getattr(recommender, name)
    if target is None or source is None:
      continue
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
          f' {name}/{parameter_name(path)} is {shapes[0]} there and'
          f' {shapes[1]} here; give both the same sizes'
          ' (and fold LoRA first).'
        )
    nnx.update(target, nnx.state(source))
