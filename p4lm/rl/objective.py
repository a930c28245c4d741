"""What an on-policy algorithm makes of a rollout, and what they all share.

An algorithm gives an `Objective`: a loss, and where one rollout is learned from
several times, a plan that cuts it into minibatches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from p4lm.errors import UserError
from p4lm.ops import kl, logprobs, masks, policy_gradient
from p4lm.rl.rollouts import Rollout
from p4lm.typing import Array, PyTree

ScoreFn = Callable[[Any, Any, Rollout], Array]
LossFn = Callable[[Any, Any, Any, Array], tuple[Array, dict[str, Array]]]
PlanFn = Callable[[Any, Any, Rollout, Array], PyTree]


@dataclasses.dataclass(frozen=True)
class Objective:
  """How a rollout moves the parameters; arguments of `make_train_step`.

  Attributes:
    loss_fn: (params, frozen, batch, key) -> (loss, metrics); the batch is the
      rollout, or one of the plan's.
    plan: (params, frozen, rollout, key) -> batches stacked along a new leading
      axis, made with the parameters before the first update; None for one
      update on the rollout itself.
  """

  loss_fn: LossFn
  plan: PlanFn | None = None


def check_choices(config: Any, choices: dict[str, tuple[str, ...]]) -> None:
  """Raises UserError for a field of a config that is none of its choices."""
  for name, known in choices.items():
    if getattr(config, name) not in known:
      raise UserError(
        f'{type(config).__name__}.{name} must be one of {", ".join(known)}, '
        f'got {getattr(config, name)!r}'
      )


def check_at_least(config: Any, least: float, *names: str) -> None:
  """Raises UserError for a number of a config that is smaller, or NaN."""
  for name in names:
    if not getattr(config, name) >= least:
      raise UserError(
        f'{type(config).__name__}.{name} must be {least:g} or more, got '
        f'{getattr(config, name)}'
      )


def learnable(rollout: Rollout, policy_logps: Array) -> Array:
  """bool [B]: valid samples whose every token the learner can replay."""
  known = jnp.isfinite(policy_logps) | ~rollout.response_mask
  return rollout.valid & jnp.all(known, axis=1)


def kl_coefficients(rollout: Rollout, coefficient: float) -> Array | float:
  """The rollout's own [B, 1], or the algorithm's one for all."""
  if rollout.kl_coefficients is None:
    return coefficient
  return rollout.kl_coefficients[:, None]


def token_penalties(
  rollout: Rollout, policy_logps: Array, mask: Array, config: Any
) -> Array:
  """What each token pays, float32 [B, L]: KL in the reward, and entropy.

  Args:
    rollout: B samples.
    policy_logps: float [B, L], constants.
    mask: bool [B, L], tokens of samples to learn from.
    config: has kl_coefficient, kl_estimator, kl_in and entropy_coefficient.
  """
  penalties = config.entropy_coefficient * masks.hide(policy_logps, mask)
  if config.kl_in == 'reward':
    estimates = kl.kl_estimates(
      policy_logps,
      rollout.reference_logps,
      mask=mask,
      estimator=config.kl_estimator,
    )
    penalties += kl_coefficients(rollout, config.kl_coefficient) * estimates
  return penalties


def kl_in_loss(
  policy_logps: Array,
  rollout: Rollout,
  mask: Array,
  *,
  coefficient: float,
  estimator: str,
  aggregation: str = 'response',
) -> Array:
  """A differentiable KL penalty times its coefficient, float32 []."""
  own = rollout.kl_coefficients
  penalty = kl.kl_loss(
    policy_logps,
    rollout.reference_logps,
    mask=mask,
    estimator=estimator,
    aggregation=aggregation,
    row_weights=own,
  )
  return penalty if own is not None else coefficient * penalty


def capped_ratios(
  learner_logps: Array,
  behavior_logps: Array,
  mask: Array,
  cap: float | None,
) -> Array:
  """Importance ratios of tokens, at most `cap`; one for all without a cap."""
  if cap is None:
    return jnp.ones((), learner_logps.dtype)
  ratios = policy_gradient.importance_ratios(
    learner_logps, behavior_logps, response_mask=mask
  )
  return jnp.minimum(ratios, cap)


def loss_weight(mask: Array, aggregation: str) -> Array:
  """What a mean over a microbatch weighs among its neighbours' means."""
  counted = mask if aggregation == 'token' else jnp.any(mask, axis=1)
  return jnp.sum(counted, dtype=jnp.float32)


def update_metrics(
  rollout: Rollout,
  policy_logps: Array,
  advantages: Array,
  valid: Array,
  mask: Array,
) -> dict[str, Array]:
  """What every algorithm logs of an update; scalars."""

  def per_response(values):
    return masks.masked_mean(jnp.sum(values, axis=1), valid)

  def divergence(estimator):
    return per_response(
      kl.kl_estimates(
        policy_logps, rollout.reference_logps, mask=mask, estimator=estimator
      )
    )

  drift = logprobs.logprob_drift(policy_logps, rollout.behavior_logps, mask)
  return {
    'reward': masks.masked_mean(rollout.rewards, valid),
    'kl': divergence('k1'),
    'kl_k3': divergence('k3'),
    'token_entropy': -masks.masked_mean(policy_logps, mask),
    'response_length': per_response(mask),
    'advantage_std': masks.masked_std(advantages, mask),
    'share_valid': jnp.mean(valid, dtype=policy_logps.dtype),
    'tokens': (rollout.prompt_tokens != 0).sum() + rollout.response_mask.sum(),
    **drift,
  }


def minibatches(
  batch: PyTree, key: Array, *, prompts: int, epochs: int, count: int
) -> PyTree:
  """Cuts a batch into `epochs * count` minibatches, shuffled each epoch.

  Prompts are shuffled; the samples of a prompt stay together:

      [M, ...] -> [K, M / count, ...]    K = epochs * count
      [B, ...] -> [K, B / count, ...]    B = M * G

  Args:
    batch: arrays of M or M * G rows.
    key: of the shuffles.
    prompts: M.
    epochs: passes over the batch.
    count: minibatches a pass; divides M.
  Raises:
    UserError: `count` does not divide M.
  """
  if prompts % count:
    raise UserError(
      f'minibatches={count} does not divide the {prompts} prompts of an '
      'iteration; choose a divisor, or another BATCH_SIZE'
    )
  keys = jax.random.split(key, epochs)
  orders = jax.vmap(lambda k: jax.random.permutation(k, prompts))(keys)
  rows = orders.reshape(epochs * count, prompts // count)

  def cut(x):
    # Sizes in full: a batch of text alone has features without entries.
    group, rest = x.shape[0] // prompts, x.shape[1:]
    chosen = x.reshape(prompts, group, *rest)[rows]
    return chosen.reshape(len(rows), rows.shape[1] * group, *rest)

  return jax.tree.map(cut, batch)
