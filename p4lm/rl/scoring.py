"""Log-probabilities of a rollout's responses, as they were sampled.

The policy that RL improves is the distribution that is sampled from: the
model's logits after temperature, forbidden tokens and truncation. A learner
must replay exactly that one, so both use the sampler's configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.decoding.behavior import SamplerConfig, behavior_logits
from p4lm.decoding.sampler import merge_model
from p4lm.decoding.scoring import score
from p4lm.errors import UserError
from p4lm.rl.learner import Anchor, DistributionFn
from p4lm.rl.objective import ScoreFn
from p4lm.typing import Array


def policy_score_fn(
  graphdef: nnx.GraphDef, config: SamplerConfig, eos_id: int
) -> ScoreFn:
  """(params, frozen, rollout) -> policy log-probabilities float32 [B, L].

  Each prompt is encoded once for its G samples.

  Args:
    graphdef: of the recommender whose states are `params` and `frozen`.
    config: what the rollout was sampled with.
    eos_id: of the vocabulary.
  Raises:
    UserError: a greedy configuration, which has nothing to learn from.
  """
  _check_stochastic(config)

  def score_fn(params, frozen, rollout):
    return score(
      graphdef,
      (params, frozen),
      rollout.prompts,
      rollout.response_tokens,
      rollout.response_mask,
      config,
      eos_id,
    )

  return score_fn


def reference_fn(
  graphdef: nnx.GraphDef, params: Any, config: SamplerConfig, eos_id: int
) -> Callable[[Mapping[str, Any], Array, Array], Array]:
  """(prompts, response_tokens, response_mask) -> anchor log-probs [B, L].

  Temperature and forbidden tokens are the policy's, so that an unchanged
  policy has a KL of zero. Truncation is not applied: a token that the anchor's
  own top-k or top-p would drop has a small probability, not none, and the KL
  stays finite.

  Args:
    graphdef: of the anchor.
    params: its state, or a tuple of states.
    config: what the policy is sampled with.
    eos_id: of the vocabulary.
  """
  _check_stochastic(config)
  config = dataclasses.replace(config, top_k=0, top_p=1.0)

  def reference_logps(prompts, response_tokens, response_mask):
    return score(
      graphdef,
      params,
      prompts,
      response_tokens,
      response_mask,
      config,
      eos_id,
    )

  return reference_logps


def policy_distribution_fn(
  graphdef: nnx.GraphDef, config: SamplerConfig, eos_id: int
) -> DistributionFn:
  """(params, frozen, rollout) -> log-probabilities float32 [B, L, V].

  Of every token at each position, at the sampler's temperature and without
  truncation. [B, L, V] floats are 4 B L V bytes: 0.5 GB for 64 responses of 64
  tokens and 32,000 pieces, and as much again for the gradient; microbatches
  (`FitConfig.accumulate`) divide it.

  Args:
    graphdef: of the recommender whose states are `params` and `frozen`.
    config: of the sampler.
    eos_id: of the vocabulary.
  """
  config = dataclasses.replace(config, top_k=0, top_p=1.0)

  def distribution_fn(params, frozen, rollout):
    model = merge_model(graphdef, (params, frozen))
    logits = model(
      rollout.prompt_tokens,
      rollout.response_tokens,
      rollout.cf_embeddings,
      rollout.cf_kind_ids,
    )
    position = jnp.arange(rollout.response_tokens.shape[1])[None, :]
    return jax.nn.log_softmax(behavior_logits(logits, position, config, eos_id))

  return distribution_fn


def anchor_of(
  graphdef: nnx.GraphDef,
  params: tuple[Any, Any],
  config: SamplerConfig,
  eos_id: int,
  *,
  width: int,
  vocabulary_size: int,
) -> Anchor:
  """The SFT model as critics read it.

  Args:
    graphdef: of the policy.
    params: the anchor's trained and frozen states. With LoRA the second one is
      the policy's own.
    config: of the sampler.
    eos_id: of the vocabulary.
    width: D.
    vocabulary_size: V.
  """
  distribution_fn = policy_distribution_fn(graphdef, config, eos_id)

  def hidden_fn(params, rollout):
    model = merge_model(graphdef, params)
    encoded = model.encode(
      rollout.prompt_tokens, rollout.cf_embeddings, rollout.cf_kind_ids
    )
    return model.decode_hidden(encoded, rollout.response_tokens)

  return Anchor(
    params=params,
    hidden_fn=hidden_fn,
    logps_fn=lambda params, rollout: distribution_fn(*params, rollout),
    width=width,
    vocabulary_size=vocabulary_size,
  )


def _check_stochastic(config):
  if config.greedy:
    raise UserError(
      'SamplerConfig.greedy gives every sample of a prompt the same response: '
      'set it to False for RL'
    )
