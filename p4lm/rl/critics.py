"""Critics of the off-policy algorithms: heads on the anchor's hidden states.

A critic is a value of every token at every position, Q [K, B, L, V], of K heads
(twins or more); with dropout each head is several. Targets are those of a copy
of the heads that follows them slowly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from p4lm.errors import UserError
from p4lm.models.layers import dropout
from p4lm.models.value_head import ActionValueHead, ValueHead
from p4lm.ops import critics as critic_ops
from p4lm.ops import masks
from p4lm.rl.eos import rewards_at_end
from p4lm.rl.learner import Workbench
from p4lm.rl.objective import check_at_least, check_choices
from p4lm.rl.rollouts import Rollout
from p4lm.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class CriticConfig:
  """Heads, how their targets are made and how fast they learn.

  Attributes:
    heads: K, 2 for twins.
    pessimism: of the K values 'min' or 'mean' counts.
    dropout: share of each hidden state that is zeroed, in training and for
      targets.
    dropout_samples: masks for the targets of each head: an ensemble of K times
      as many (0 dropout: 1).
    target_decay: share of the slow copy that stays at each update.
    learning_rate: of Adam.
    updates: updates an iteration, each on an equal part of the drawn rows.
    clip_norm: gradients longer than this are scaled down to it.
  """

  heads: int = 2
  pessimism: str = 'min'
  dropout: float = 0.0
  dropout_samples: int = 1
  target_decay: float = 0.99
  learning_rate: float = 1e-3
  updates: int = 1
  clip_norm: float = 10.0

  def __post_init__(self):
    check_choices(self, {'pessimism': ('min', 'mean')})
    check_at_least(self, 1, 'heads', 'dropout_samples', 'updates')
    check_at_least(self, 0, 'learning_rate', 'dropout', 'target_decay')
    for name in ('dropout', 'target_decay'):
      check_below_one(self, name)


def check_below_one(config: Any, name: str) -> None:
  """Raises UserError for a share of a config that is 1 or more."""
  if not getattr(config, name) < 1:
    raise UserError(
      f'{type(config).__name__}.{name} must be below 1, got '
      f'{getattr(config, name)}'
    )


@dataclasses.dataclass(frozen=True)
class CriticNetwork:
  """The functions of critics; any will do that have these shapes.

  Attributes:
    params: of both functions.
    q_fn: (params, anchor parameters, rollout, key or None) -> [K, B, L, V].
    v_fn: (params, anchor parameters, rollout) -> [B, L].
  """

  params: PyTree
  q_fn: Callable[[PyTree, PyTree, Rollout, Array | None], Array]
  v_fn: Callable[[PyTree, PyTree, Rollout], Array]


def heads_on_anchor(bench: Workbench, config: CriticConfig) -> CriticNetwork:
  """Linear heads on the anchor's states: Q, and V for those who learn it."""
  rngs = nnx.Rngs(bench.key)
  anchor = bench.anchor
  q_def, q_params = nnx.split(
    ActionValueHead(
      anchor.width, anchor.vocabulary_size, config.heads, rngs=rngs
    )
  )
  v_def, v_params = nnx.split(ValueHead(anchor.width, rngs=rngs))

  def q_fn(params, anchor_params, rollout, key):
    hidden = anchor.hidden_fn(anchor_params, rollout)
    hidden = dropout(hidden, config.dropout, key)
    return nnx.merge(q_def, params['q'])(hidden)

  def v_fn(params, anchor_params, rollout):
    hidden = anchor.hidden_fn(anchor_params, rollout)
    return nnx.merge(v_def, params['v'])(hidden)

  return CriticNetwork(bench.place({'q': q_params, 'v': v_params}), q_fn, v_fn)


def ensemble_q(
  network: CriticNetwork,
  config: CriticConfig,
  params: PyTree,
  anchor_params: PyTree,
  rollout: Rollout,
  key: Array,
) -> Array:
  """The one Q [B, L, V] that counts of all heads and dropout masks."""
  if not config.dropout:
    q_values = network.q_fn(params, anchor_params, rollout, None)
    return critic_ops.pessimistic(q_values, config.pessimism)
  masks_ = [
    network.q_fn(params, anchor_params, rollout, each)
    for each in jax.random.split(key, config.dropout_samples)
  ]
  return critic_ops.pessimistic(jnp.concatenate(masks_), config.pessimism)


@dataclasses.dataclass(frozen=True)
class Judged:
  """What a batch looks like to the critics' losses.

  Attributes:
    rollout: R trajectories of one sample a prompt.
    mask: bool [R, L], tokens to learn from.
    prior_logps: float [R, L, V], of the anchor.
    policy_logps: float [R, L, V], of the policy as it is, constants.
    target_q: float [R, L, V], of the slow critics.
    target_v: float [R, L], of the slow state values.
  """

  rollout: Rollout
  mask: Array
  prior_logps: Array
  policy_logps: Array
  target_q: Array
  target_v: Array


def make_critic_update(
  network: CriticNetwork,
  bench: Workbench,
  algorithm: Any,
  optimizer: optax.GradientTransformation,
):
  """(state, anchor params, policy states, rollout, key) -> (state, metrics).

  The state is (params, slow params, optimizer state). Q is regressed on
  r + V(s'), with `algorithm.next_values` for V; the algorithm adds its own
  terms by `algorithm.extra_loss`.
  """
  config = algorithm.critic

  def update(state, anchor_params, policy, rollout, key):
    params, slow, opt_state = state
    slow_key, key = jax.random.split(key)
    judged = _judge(slow, anchor_params, policy, rollout, slow_key)
    targets = critic_ops.temporal_targets(
      rewards_at_end(masks.hide(rollout.rewards, rollout.valid), judged.mask),
      algorithm.next_values(judged),
      response_mask=judged.mask,
    )

    def loss_fn(params):
      q_values = network.q_fn(params, anchor_params, rollout, key)
      actions = jnp.broadcast_to(rollout.response_tokens, q_values.shape[:-1])
      taken = critic_ops.action_values(q_values, actions)
      loss = critic_ops.critic_loss(taken, targets, mask=judged.mask)
      values = network.v_fn(params, anchor_params, rollout)
      extra, metrics = algorithm.extra_loss(judged, q_values, values)
      metrics['critic_loss'] = loss
      metrics['q_taken'] = masks.masked_mean(taken[0], judged.mask)
      return loss + extra, metrics

    gradient, metrics = jax.grad(loss_fn, has_aux=True)(params)
    metrics['critic_grad_norm'] = optax.tree.norm(gradient)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    decay = config.target_decay
    slow = jax.tree.map(lambda s, p: p + decay * (s - p), slow, params)
    return (params, slow, opt_state), metrics

  def _judge(slow, anchor_params, policy, rollout, key):
    constant = jax.lax.stop_gradient
    return Judged(
      rollout=rollout,
      mask=rollout.response_mask & rollout.valid[:, None],
      prior_logps=constant(bench.anchor.logps_fn(anchor_params, rollout)),
      policy_logps=constant(bench.distribution_fn(*policy, rollout)),
      target_q=constant(
        ensemble_q(network, config, slow, anchor_params, rollout, key)
      ),
      target_v=constant(network.v_fn(slow, anchor_params, rollout)),
    )

  return update
