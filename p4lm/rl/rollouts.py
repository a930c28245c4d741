"""Rollouts: prompts, sampled responses and what they earned.

prompts  [M, P]    M prompts, each once
samples  [B, L]    B = M * G rows, row b * G + g is sample g of prompt b
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from p4lm.errors import UserError
from p4lm.ops.masks import ends_with_eos
from p4lm.rewards.joint import JointValues
from p4lm.rewards.terms import RewardRequest
from p4lm.rl.eos import EosContract, apply_eos_contract, overlong_prices
from p4lm.rl.phases import PhaseClock
from p4lm.typing import Array

PROMPT_FEATURES = ('prompt_tokens', 'cf_embeddings', 'cf_kind_ids')


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=(
    'prompt_tokens',
    'cf_embeddings',
    'cf_kind_ids',
    'response_tokens',
    'response_mask',
    'behavior_logps',
    'reference_logps',
    'rewards',
    'valid',
    'kl_coefficients',
    'values',
  ),
  meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Rollout:
  """A sampled batch; a pytree of arrays, so a train step takes it as it is.

  Attributes:
    prompt_tokens: int [M, P].
    cf_embeddings: float [M, N, E].
    cf_kind_ids: int [M, N].
    response_tokens: int [B, L], EOS included.
    response_mask: bool [B, L], True counts.
    behavior_logps: float [B, L], under the distribution sampled from.
    reference_logps: float [B, L], of the frozen anchor model.
    rewards: float [B], at EOS.
    valid: bool [B], False for samples that must not be learned from.
    kl_coefficients: float [B], in place of the algorithm's own coefficient;
      None for that.
    values: float [B, L], a critic's, of the state before each token; None for
      algorithms without a critic.
  """

  prompt_tokens: Array
  cf_embeddings: Array
  cf_kind_ids: Array
  response_tokens: Array
  response_mask: Array
  behavior_logps: Array
  reference_logps: Array
  rewards: Array
  valid: Array
  kl_coefficients: Array | None = None
  values: Array | None = None

  @property
  def group_size(self) -> int:
    """G, samples a prompt."""
    return self.response_tokens.shape[0] // self.prompt_tokens.shape[0]

  @property
  def prompts(self) -> dict[str, Array]:
    """The prompt features, as a model's batch."""
    return {name: getattr(self, name) for name in PROMPT_FEATURES}


def rollout_shapes(
  features: Mapping[str, Any], group_size: int, length: int
) -> Rollout:
  """A rollout of `jax.ShapeDtypeStruct`s.

  Args:
    features: arrays or shapes of M prompts.
    group_size: G, responses a prompt.
    length: L.
  """
  rows = features['prompt_tokens'].shape[0] * group_size
  of = jax.ShapeDtypeStruct
  logps = of((rows, length), np.float32)
  return Rollout(
    **{name: features[name] for name in PROMPT_FEATURES},
    response_tokens=of((rows, length), np.int32),
    response_mask=of((rows, length), np.bool_),
    behavior_logps=logps,
    reference_logps=logps,
    rewards=of((rows,), np.float32),
    valid=of((rows,), np.bool_),
  )


class Samples(Protocol):
  """What a sampler returns, B rows."""

  response_tokens: Array
  response_mask: Array
  logps: Array


@dataclasses.dataclass(frozen=True)
class Collected:
  """A rollout and, for the logs, what it was made of.

  Attributes:
    rollout: what a learner needs.
    texts: B decoded responses.
    judged: the joint reward and its terms, before the EOS contract.
    metrics: reward terms, lengths, shares and the seconds of each phase (of
      the reference what the host still waited for it), ready to be logged.
  """

  rollout: Rollout
  texts: Sequence[str]
  judged: JointValues
  metrics: Mapping[str, float]


def collect_rollout(
  prompts: Mapping[str, Any],
  subjects: Sequence[RewardRequest],
  key: Array,
  *,
  sample_fn: Callable[[Mapping[str, Any], Array], Samples],
  reference_fn: Callable[[Mapping[str, Any], Array, Array], Array],
  decode_fn: Callable[[np.ndarray], str],
  reward_fn: Callable[[Sequence[RewardRequest]], JointValues],
  eos_id: int,
  eos_contract: EosContract | None = None,
) -> Collected:
  """Samples responses to M prompts, scores and judges them.

  Args:
    prompts: at least `prompt_tokens` [M, P], `cf_embeddings` [M, N, E] and
      `cf_kind_ids` [M, N].
    subjects: M requests, each with the item and user of its prompt; their
      text is replaced by the responses.
    key: consumed by the sampler.
    sample_fn: (prompts, key) -> samples of B = M * G rows.
    reference_fn: (prompts, response_tokens, response_mask) -> log-
      probabilities [B, L] under the anchor.
    decode_fn: tokens [L] of one row -> text.
    reward_fn: the joint reward.
    eos_id: of the vocabulary.
    eos_contract: None for the paper's rule.
  Raises:
    UserError: `subjects` does not fit the prompts, or a reward term fails.
  """
  clock = PhaseClock()
  prompts = {name: prompts[name] for name in PROMPT_FEATURES}
  rows = len(prompts['prompt_tokens'])
  if len(subjects) != rows:
    raise UserError(
      f'subjects must name the item and user of each of {rows} prompts, got '
      f'{len(subjects)}'
    )
  samples = sample_fn(prompts, key)
  # Dispatched before the host starts to decode and judge texts.
  reference_logps = reference_fn(
    prompts, samples.response_tokens, samples.response_mask
  )
  tokens = np.asarray(samples.response_tokens)
  clock.ends('sample')
  finished = np.asarray(
    ends_with_eos(samples.response_tokens, samples.response_mask, eos_id)
  )
  texts = [decode_fn(row) for row in tokens]
  group_size = len(texts) // rows
  judged = reward_fn(
    [
      dataclasses.replace(subjects[row // group_size], text=text)
      for row, text in enumerate(texts)
    ]
  )
  contract = eos_contract or EosContract()
  rewards, valid = apply_eos_contract(
    judged.total, judged.valid, finished, contract
  )
  lengths = np.asarray(samples.response_mask).sum(axis=1)
  prices = overlong_prices(lengths, tokens.shape[1], contract)
  clock.ends('judge')
  jax.block_until_ready(reference_logps)
  clock.ends('reference')
  rollout = Rollout(
    **prompts,
    response_tokens=samples.response_tokens,
    response_mask=samples.response_mask,
    behavior_logps=samples.logps,
    reference_logps=reference_logps,
    rewards=rewards - prices,
    valid=valid,
  )
  kl = sampled_kl(samples.logps, reference_logps, samples.response_mask, valid)
  metrics = dict(judged.metrics) | {
    'rollout/kl': kl if np.isfinite(kl) else 0.0,
    'rollout/length': float(lengths.mean()),
    'rollout/share_finished': float(finished.mean()),
    'rollout/share_valid': float(valid.mean()),
    'rollout/share_distinct': len(set(texts)) / len(texts),
    'rollout/share_empty': float(np.mean([not t.strip() for t in texts])),
    **clock.metrics,
  }
  return Collected(rollout, texts, judged, metrics)


def sampled_kl(
  behavior_logps: Array,
  reference_logps: Array,
  response_mask: Array,
  valid: np.ndarray,
) -> float:
  """Mean log-ratio of whole valid responses, nats; NaN when none is valid."""
  gap = np.asarray(behavior_logps) - np.asarray(reference_logps)
  per_response = np.where(np.asarray(response_mask), gap, 0.0).sum(axis=1)
  kept = per_response[np.asarray(valid)]
  return float(kept.mean()) if len(kept) else float('nan')
