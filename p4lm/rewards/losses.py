"""Training losses of the reward kinds, as functions for a train step.

Each factory takes `apply_fn(params, frozen, prompt_tokens, response_tokens,
cf_embeddings, cf_kind_ids) -> scores [R]` and returns `loss_fn(params, frozen,
batch, key) -> (loss, metrics)`. Batches are dicts:

  nli, relevance               response_tokens int [B, L], labels float [B]
  appeal, personalization      chosen_tokens, rejected_tokens int [B, L]
  all                          prompt_tokens int [B, P], cf_embeddings
                               [B, N, E], cf_kind_ids [B, N], example_mask
                               bool [B] (optional)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from p4lm.ops import masks, preference, supervised
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
    huber_delta: relevance; None takes the squared error.
  """

  label_smoothing: float = 0.0
  flip_rate: float = 0.0
  margin: float = 0.0
  centring: float = 0.0
  huber_delta: float | None = None


def make_reward_loss(
  kind: str, apply_fn: ApplyFn, config: RewardLossConfig | None = None
) -> LossFn:
  """The loss that trains a reward model of this kind.

  nli: binary cross-entropy of the logit against labels 0 and 1. appeal and
  personalization: Bradley-Terry on pairs. relevance: squared or Huber error
  against the target.

  Raises:
    UserError: an unknown kind.
  """
  check_kind(kind)
  config = config or RewardLossConfig()
  if kind in CLASSIFIED:
    return _classification_loss(apply_fn, config)
  if kind in PAIRWISE:
    return _pairwise_loss(apply_fn, config)
  return _regression_loss(apply_fn, config)


def _classification_loss(apply_fn, config):
  def loss_fn(params, frozen, batch, key):
    del key
    logits = _scores(apply_fn, params, frozen, batch, batch['response_tokens'])
    labels, mask = batch['labels'], _example_mask(batch)
    loss = supervised.binary_cross_entropy(
      logits,
      labels,
      example_mask=mask,
      label_smoothing=config.label_smoothing,
    )
    nll = supervised.binary_cross_entropy(logits, labels, example_mask=mask)
    accuracy = supervised.binary_accuracy(logits, labels, example_mask=mask)
    tokens = _tokens(batch, batch['response_tokens'])
    return loss, {'nll': nll, 'accuracy': accuracy, 'tokens': tokens}

  return loss_fn


def _pairwise_loss(apply_fn, config):
  def loss_fn(params, frozen, batch, key):
    del key
    # Both sides are responses to one prompt, which is encoded once.
    sides = jnp.stack([batch['chosen_tokens'], batch['rejected_tokens']], 1)
    tokens = sides.reshape(-1, sides.shape[-1])
    scores = _scores(apply_fn, params, frozen, batch, tokens)
    chosen, rejected = scores.reshape(-1, 2).T
    mask = _example_mask(batch)
    loss = preference.bradley_terry_loss(
      chosen,
      rejected,
      pair_mask=mask,
      margin=config.margin,
      label_smoothing=config.label_smoothing,
      flip_rate=config.flip_rate,
      centring=config.centring,
    )
    metrics = {
      'nll': preference.bradley_terry_loss(chosen, rejected, pair_mask=mask),
      'accuracy': preference.preference_accuracy(
        chosen, rejected, pair_mask=mask
      ),
      'mean_score': masks.masked_mean(chosen + rejected, mask) / 2,
      'tokens': _tokens(batch, tokens),
    }
    return loss, metrics

  return loss_fn


def _regression_loss(apply_fn, config):
  def loss_fn(params, frozen, batch, key):
    del key
    scores = _scores(apply_fn, params, frozen, batch, batch['response_tokens'])
    targets, mask = batch['labels'], _example_mask(batch)
    error = supervised.squared_error(scores, targets, example_mask=mask)
    loss = error
    if config.huber_delta is not None:
      loss = supervised.huber_loss(
        scores, targets, example_mask=mask, delta=config.huber_delta
      )
    metrics = {
      'squared_error': error,
      'correlation': supervised.pearson_correlation(
        jax.lax.stop_gradient(scores), targets, example_mask=mask
      ),
      'tokens': _tokens(batch, batch['response_tokens']),
    }
    return loss, metrics

  return loss_fn


def _scores(apply_fn, params, frozen, batch, response_tokens):
  return apply_fn(
    params,
    frozen,
    batch['prompt_tokens'],
    response_tokens,
    batch['cf_embeddings'],
    batch['cf_kind_ids'],
  )


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
