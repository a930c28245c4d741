"""Log-probabilities of a rollout's responses, as they were sampled.

The policy that RL improves is the distribution that is sampled from: the
model's logits after temperature, forbidden tokens and truncation. A learner
must replay exactly that one, so both use the sampler's configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from p4lm.decoding.sampler import SamplerConfig
from p4lm.decoding.scoring import score
from p4lm.errors import UserError
from p4lm.rl.rollouts import Rollout
from p4lm.typing import Array

ScoreFn = Callable[[Any, Any, Rollout], Array]


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


def _check_stochastic(config):
  if config.greedy:
    raise UserError(
      'SamplerConfig.greedy gives every sample of a prompt the same response: '
      'set it to False for RL'
    )
