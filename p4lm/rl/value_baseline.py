"""A learned baseline: the value of the state before each token.

A linear head on the anchor's hidden states, regressed on the returns to go of
each rollout (less what the KL costs). It reads the frozen anchor and not the
policy, so its gradient moves no language model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from p4lm.models.value_head import ValueHead
from p4lm.ops import masks
from p4lm.ops.advantages import generalised_advantages
from p4lm.rl.eos import rewards_at_end
from p4lm.rl.learner import Workbench
from p4lm.rl.objective import check_at_least, learnable, token_penalties
from p4lm.rl.rollouts import Rollout
from p4lm.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class ValueConfig:
  """How the baseline is learned.

  Attributes:
    learning_rate: of Adam.
    updates: gradient steps on each rollout.
  """

  learning_rate: float = 1e-3
  updates: int = 4

  def __post_init__(self):
    check_at_least(self, 0, 'learning_rate')
    check_at_least(self, 1, 'updates')

  def make(self, bench: Workbench, algorithm: Any) -> ValueBaseline:
    """The baseline of an algorithm, zero at first."""
    graphdef, params = nnx.split(
      ValueHead(bench.anchor.width, rngs=nnx.Rngs(0))
    )

    def values_fn(params, anchor_params, rollout):
      hidden = bench.anchor.hidden_fn(anchor_params, rollout)
      return nnx.merge(graphdef, params)(hidden)

    return ValueBaseline(
      values_fn, bench.place(params), bench.anchor.params, self, algorithm
    )


class ValueBaseline:
  """Values of states, and their regression.

  Args:
    values_fn: (params, anchor parameters, rollout) -> values [B, L].
    params: of the head.
    anchor_params: what `values_fn` reads and nothing changes.
    config: rate and updates.
    algorithm: its KL in the reward and its `value_decay` make the returns.
  """

  def __init__(
    self,
    values_fn: Callable[[PyTree, PyTree, Rollout], Array],
    params: PyTree,
    anchor_params: PyTree,
    config: ValueConfig,
    algorithm: Any,
  ):
    optimizer = optax.adam(config.learning_rate)
    self._state = params, jax.jit(optimizer.init)(params)
    self._anchor_params = anchor_params
    self._values = jax.jit(values_fn)
    fit = make_value_fit(values_fn, optimizer, config, algorithm)
    self._fit = jax.jit(fit, donate_argnums=0)

  def __call__(self, rollout: Rollout) -> Array:
    """float32 [B, L]."""
    return self._values(self._state[0], self._anchor_params, rollout)

  def fit(self, rollout: Rollout) -> dict[str, Array]:
    """Regresses on the returns of a rollout that has values."""
    self._state, metrics = self._fit(self._state, self._anchor_params, rollout)
    return metrics

  def items(self) -> dict[str, PyTree]:
    """Parameters and moments."""
    params, opt_state = self._state
    return {'value_params': params, 'value_opt_state': opt_state}

  def restore(self, items: Mapping[str, PyTree]) -> None:
    """Takes back what `items` gave."""
    self._state = items['value_params'], items['value_opt_state']


def make_value_fit(values_fn, optimizer, config: ValueConfig, algorithm):
  """(state, anchor parameters, rollout) -> (state, metrics).

  The targets are A + V of the values that the rollout came with, the
  decay-weighted returns of generalised advantages; they stay the same while
  the head takes its `updates` steps.
  """

  def fit(state, anchor_params, rollout):
    valid = learnable(rollout, rollout.behavior_logps)
    mask = rollout.response_mask & valid[:, None]
    earned = rewards_at_end(
      masks.hide(rollout.rewards, valid), mask
    ) - token_penalties(rollout, rollout.behavior_logps, mask, algorithm)
    targets = rollout.values + generalised_advantages(
      earned, rollout.values, response_mask=mask, decay=algorithm.value_decay
    )

    def loss_fn(params):
      errors = values_fn(params, anchor_params, rollout) - targets
      # Hidden before the square: NaN times zero is NaN.
      return masks.masked_mean(jnp.square(masks.hide(errors, mask)), mask) / 2

    def update(state, _):
      params, opt_state = state
      loss, gradient = jax.value_and_grad(loss_fn)(params)
      updates, opt_state = optimizer.update(gradient, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), loss

    state, losses = jax.lax.scan(update, state, length=config.updates)
    spread = jnp.square(masks.masked_std(targets, mask))
    unexplained = 2 * losses[0] / jnp.maximum(spread, 1e-12)
    return state, {
      'value_loss': losses[0],
      'value_explained': 1 - unexplained,
    }

  return fit
