"""Training losses of the reward kinds, as functions for a train step.

Each factory takes `apply_fn(params, frozen, prompt_tokens, response_tokens,
cf_embeddings, cf_kind_ids) -> scores [R]`, or [R, K] of K heads, and returns
`loss_fn(params, frozen, batch, key) -> (loss, metrics)`. Batches are dicts:

  nli, relevance               response_tokens int [B, L], labels float [B]
  appeal, personalization      chosen_tokens, rejected_tokens int [B, L], labels
                               float [B], 0.5 for a tie (optional), users int
                               [B] for a latent of each user
  all                          prompt_tokens int [B, P], cf_embeddings
                               [B, N, E], cf_kind_ids [B, N], example_mask
                               bool [B] (optional)

Each head of an ensemble has a loss of its own, of which the mean is taken; the
metrics are those of the heads' mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from p4lm.data.judgements import TIE
from p4lm.errors import UserError
from p4lm.ops import masks, preference, supervised, variational
from p4lm.rewards.kinds import CLASSIFIED, PAIRWISE, check_kind
from p4lm.typing import Array

ApplyFn = Callable[[Any, Any, Array, Array, Array, Array], Array]
LossFn = Callable[
  [Any, Any, Mapping[str, Array], Array], tuple[Array, dict[str, Array]]
]


@dataclasses.dataclass(frozen=True)
class RewardLossConfig:
  """Options of the reward losses; each kind reads its own.

  Attributes:
    label_smoothing: nli and pairwise kinds.
    flip_rate: pairwise, the known share of wrong labels.
    margin: pairwise, how far apart the scores should be.
    centring: pairwise, the pull of mean scores to 0.
    tie_odds: pairwise, of a tie (Davidson 1970); 0 counts it as half a win.
    huber_delta: relevance; None takes the squared error.
    kl_weight: preference 'variational', of the latents' KL to their prior; 1
      is the ELBO.
  """

  label_smoothing: float = 0.0
  flip_rate: float = 0.0
  margin: float = 0.0
  centring: float = 0.0
  tie_odds: float = 0.0
  huber_delta: float | None = None
  kl_weight: float = 1.0


def make_reward_loss(
  kind: str,
  apply_fn: ApplyFn,
  config: RewardLossConfig | None = None,
  *,
  with_dropout: bool = False,
  preference_model: str = 'bradley_terry',
) -> LossFn:
  """The loss that trains a reward model of this kind.

  nli: binary cross-entropy of the logit against labels 0 and 1. appeal and
  personalization: Bradley-Terry on pairs. relevance: squared or Huber error
  against the target.

  Args:
    kind: one of REWARD_KINDS.
    apply_fn: scores responses.
    config: options.
    with_dropout: whether apply_fn takes a `dropout_key`; it is then given the
      key of the step.
    preference_model: of pairs, 'bradley_terry', or 'general' or 'variational',
      whose heads are coordinates, see `ops.preference.general_preference` and
      `ops.variational`.
  Raises:
    UserError: an unknown kind, or options that the preference model lacks.
  """
  check_kind(kind)
  config = config or RewardLossConfig()
  if with_dropout:
    score = lambda key, *inputs: apply_fn(*inputs, dropout_key=key)
  else:
    score = lambda key, *inputs: apply_fn(*inputs)
  if kind in CLASSIFIED:
    return _classification_loss(score, config)
  if kind in PAIRWISE:
    if preference_model == 'variational':
      _check_variational(config)
      return _variational_loss(score, config)
    is_general = preference_model == 'general'
    if is_general and config.centring:
      raise UserError(
        'RewardLossConfig.centring settles the free shift of scores; the '
        f"preference model 'general' has none: set it to 0, not "
        f'{config.centring}'
      )
    return _pairwise_loss(score, config, is_general)
  return _regression_loss(score, config)


def _classification_loss(score, config):
  def loss_fn(params, frozen, batch, key):
    logits = _scores(
      score, key, params, frozen, batch, batch['response_tokens']
    )
    labels, mask = batch['labels'], _example_mask(batch)
    loss = supervised.binary_cross_entropy(
      logits,
      _of_heads(labels, logits),
      example_mask=_of_heads(mask, logits),
      label_smoothing=config.label_smoothing,
    )
    mean = logits.mean(axis=1)
    nll = supervised.binary_cross_entropy(mean, labels, example_mask=mask)
    accuracy = supervised.binary_accuracy(mean, labels, example_mask=mask)
    tokens = _tokens(batch, batch['response_tokens'])
    return loss, {'nll': nll, 'accuracy': accuracy, 'tokens': tokens}

  return loss_fn


def _check_variational(config):
  lacking = ('label_smoothing', 'flip_rate', 'margin', 'centring', 'tie_odds')
  for name in lacking:
    if getattr(config, name):
      raise UserError(
        f"RewardLossConfig.{name} is not for the preference model 'variational'"
        f': set it to 0, not {getattr(config, name)}'
      )


def _sides(score, key, params, frozen, batch):
  """Scores [B, K] of the chosen and the rejected side, and all tokens."""
  # Both sides are responses to one prompt, which is encoded once.
  sides = jnp.stack([batch['chosen_tokens'], batch['rejected_tokens']], 1)
  tokens = sides.reshape(-1, sides.shape[-1])
  scores = _scores(score, key, params, frozen, batch, tokens)
  return scores[::2], scores[1::2], tokens


def _variational_loss(score, config):
  def loss_fn(params, frozen, batch, key):
    chosen, rejected, tokens = _sides(score, key, params, frozen, batch)
    mask = _example_mask(batch)
    is_tie = batch.get('labels', jnp.ones(mask.shape)) == TIE
    loss, kl = variational.variational_preference_loss(
      chosen,
      rejected,
      batch['users'],
      pair_mask=mask,
      tie_mask=is_tie,
      kl_weight=config.kl_weight,
    )
    metrics = {
      'elbo_kl': kl,
      # What is known of no user.
      'accuracy_without_user': preference.preference_accuracy(
        chosen[:, 0], rejected[:, 0], pair_mask=mask & ~is_tie
      ),
      'mean_score': masks.masked_mean(chosen[:, 0] + rejected[:, 0], mask) / 2,
      'tokens': _tokens(batch, tokens),
    }
    return loss, metrics

  return loss_fn


def _pairwise_loss(score, config, is_general):
  def loss_fn(params, frozen, batch, key):
    chosen, rejected, tokens = _sides(score, key, params, frozen, batch)
    if is_general:
      gaps = preference.general_preference(chosen, rejected)
      chosen, rejected = gaps[:, None], jnp.zeros_like(gaps)[:, None]
    mask = _example_mask(batch)
    is_tie = batch.get('labels', jnp.ones(mask.shape)) == TIE
    loss = preference.bradley_terry_loss(
      chosen,
      rejected,
      pair_mask=_of_heads(mask, chosen),
      margin=config.margin,
      label_smoothing=config.label_smoothing,
      flip_rate=config.flip_rate,
      centring=config.centring,
      tie_mask=_of_heads(is_tie, chosen),
      tie_odds=config.tie_odds,
    )
    chosen, rejected = chosen.mean(axis=1), rejected.mean(axis=1)
    told = mask & ~is_tie
    metrics = {
      'nll': preference.bradley_terry_loss(chosen, rejected, pair_mask=told),
      'accuracy': preference.preference_accuracy(
        chosen, rejected, pair_mask=told
      ),
      'mean_score': masks.masked_mean(chosen + rejected, mask) / 2,
      'tokens': _tokens(batch, tokens),
    }
    return loss, metrics

  return loss_fn


def _regression_loss(score, config):
  def loss_fn(params, frozen, batch, key):
    scores = _scores(
      score, key, params, frozen, batch, batch['response_tokens']
    )
    targets, mask = batch['labels'], _example_mask(batch)
    of_each = (_of_heads(targets, scores), _of_heads(mask, scores))
    if config.huber_delta is None:
      loss = supervised.squared_error(
        scores, of_each[0], example_mask=of_each[1]
      )
    else:
      loss = supervised.huber_loss(
        scores,
        of_each[0],
        example_mask=of_each[1],
        delta=config.huber_delta,
      )
    mean = scores.mean(axis=1)
    metrics = {
      'squared_error': supervised.squared_error(
        mean, targets, example_mask=mask
      ),
      'correlation': supervised.pearson_correlation(
        jax.lax.stop_gradient(mean), targets, example_mask=mask
      ),
      'tokens': _tokens(batch, batch['response_tokens']),
    }
    return loss, metrics

  return loss_fn


def _scores(score, key, params, frozen, batch, response_tokens):
  """Scores [R, K] of every head."""
  scores = score(
    key,
    params,
    frozen,
    batch['prompt_tokens'],
    response_tokens,
    batch['cf_embeddings'],
    batch['cf_kind_ids'],
  )
  return scores[:, None] if scores.ndim == 1 else scores


def _of_heads(values, scores):
  """[B] as [B, K], the same for every head."""
  return jnp.broadcast_to(values[:, None], scores.shape)


def _tokens(batch, response_tokens):
  """Tokens read of the examples that count; padding is 0."""
  mask = _example_mask(batch)
  sides = jnp.repeat(mask, response_tokens.shape[0] // mask.shape[0])
  prompts = (batch['prompt_tokens'] != 0) & mask[:, None]
  return prompts.sum() + ((response_tokens != 0) & sides[:, None]).sum()


def _example_mask(batch):
  mask = batch.get('example_mask')
  rows = batch['prompt_tokens'].shape[0]
  return jnp.ones(rows, bool) if mask is None else mask
