"""What training jobs minimise, as functions of a module's states."""

from __future__ import annotations

from collections.abc import Callable

from flax import nnx

from p4lm.ops.supervised import token_accuracy, token_cross_entropy
from p4lm.training.step import LossFn


def maximum_likelihood(graphdef: nnx.GraphDef) -> LossFn:
  """Cross-entropy of a recommender's responses, a mean over counted tokens."""

  def loss_fn(params, frozen, batch, key):
    model = nnx.merge(graphdef, params, frozen)
    logits = model(
      batch['prompt_tokens'],
      batch['response_tokens'],
      batch['cf_embeddings'],
      batch['cf_kind_ids'],
      dropout_key=key,
    )
    tokens, mask = batch['response_tokens'], batch['response_mask']
    loss = token_cross_entropy(logits, tokens, response_mask=mask)
    metrics = {
      'accuracy': token_accuracy(logits, tokens, response_mask=mask),
      'loss_weight': mask.sum(),
      'tokens': mask.sum() + (batch['prompt_tokens'] != 0).sum(),
    }
    return loss, metrics

  return loss_fn


def scores_of(graphdef: nnx.GraphDef) -> Callable:
  """(params, frozen, prompts, responses, CF vectors, kinds) -> [R, K].

  The scores of every head of a reward model; options such as `dropout_key`
  are handed on.
  """

  def apply_fn(params, frozen, *inputs, **options):
    model = nnx.merge(graphdef, params, frozen)
    return model.head_scores(*inputs, **options)

  return apply_fn
