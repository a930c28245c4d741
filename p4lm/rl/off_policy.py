"""A learner that keeps what was sampled and learns from draws of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from p4lm.ops import critics as critic_ops
from p4lm.ops import masks
from p4lm.rl.critics import (
  CriticNetwork,
  ensemble_q,
  make_critic_update,
)
from p4lm.rl.learner import Metrics, Workbench
from p4lm.rl.objective import loss_weight, minibatches
from p4lm.rl.replay import Replay
from p4lm.rl.rollouts import Rollout
from p4lm.training.state import TrainState
from p4lm.typing import PyTree


class OffPolicyLearner:
  """Critics from a replay, and a policy that follows them.

  Each iteration adds the rollout to the replay, draws rows from it, updates the
  critics on parts of them, and then the policy on parts of the same rows
  towards `algorithm.policy_logits` of the new critics.

  Args:
    bench: the policy, the anchor and the compiled step.
    algorithm: a `SoftOptimalConfig` or a descendant.
    network: the critics.
  """

  def __init__(self, bench: Workbench, algorithm: Any, network: CriticNetwork):
    config = algorithm.critic
    optimizer = optax.chain(
      optax.clip_by_global_norm(config.clip_norm),
      optax.adam(config.learning_rate),
    )
    self._bench = bench
    self._state = (
      network.params,
      jax.tree.map(jnp.copy, network.params),
      bench.place(jax.jit(optimizer.init)(network.params)),
    )
    self._key = bench.key
    self._replay = Replay(algorithm.replay, bench.example)
    self._fit = jax.jit(
      _make_fit(bench, algorithm, network, optimizer), donate_argnums=0
    )
    self._step = bench.step_of(*_policy_objective(bench, algorithm))

  def observe(self, rollout: Rollout) -> None:
    """Adds trajectories of any policy to the replay."""
    self._replay.add(rollout)

  def learn(
    self, state: TrainState, rollout: Rollout
  ) -> tuple[TrainState, Metrics]:
    """Adds the rollout to the replay and improves on a draw of it."""
    self.observe(rollout)
    return self.improve(state)

  def improve(self, state: TrainState) -> tuple[TrainState, Metrics]:
    """Updates of the critics, then of the policy, from what is there."""
    drawn = self._replay.draw()
    self._state, targets, critic_metrics = self._fit(
      self._state,
      self._bench.anchor.params,
      (state.params, state.frozen),
      self._bench.place_batch(drawn),
      jax.random.fold_in(self._key, state.step),
    )
    state, metrics = self._step(
      state, {'rollout': drawn, 'target_logits': targets}
    )
    metrics = {**metrics, **critic_metrics, 'replay_rows': len(self._replay)}
    return state, metrics

  def items(self) -> dict[str, PyTree]:
    """Critics, their slow copies, moments, and the replay."""
    params, slow, opt_state = self._state
    return {
      'critic_params': params,
      'slow_critic_params': slow,
      'critic_opt_state': opt_state,
      'replay': self._replay.items(),
    }

  def restore(self, items: Mapping[str, PyTree]) -> None:
    """Takes back what `items` gave."""
    self._state = (
      items['critic_params'],
      items['slow_critic_params'],
      items['critic_opt_state'],
    )
    self._replay.restore(items['replay'])


def _make_fit(bench, algorithm, network, optimizer):
  """Critic updates on parts of the rows, then the policy's targets."""
  config = algorithm.critic
  update = make_critic_update(network, bench, algorithm, optimizer)

  def fit(state, anchor_params, policy, rollout, key):
    parts_key, updates_key, target_key = jax.random.split(key, 3)
    parts = minibatches(
      rollout,
      parts_key,
      prompts=rollout.prompt_tokens.shape[0],
      epochs=1,
      count=config.updates,
    )

    def body(state, inputs):
      part, key = inputs
      return update(state, anchor_params, policy, part, key)

    keys = jax.random.split(updates_key, config.updates)
    state, metrics = jax.lax.scan(body, state, (parts, keys))
    targets = algorithm.policy_logits(
      ensemble_q(network, config, state[0], anchor_params, rollout, target_key),
      bench.anchor.logps_fn(anchor_params, rollout),
    )
    return state, targets, jax.tree.map(jnp.mean, metrics)

  return fit


def _policy_objective(bench, algorithm):
  """(loss_fn, plan) of the policy's updates on {rollout, target_logits}."""

  def plan(params, frozen, batch, key):
    del params, frozen
    rows = batch['rollout'].prompt_tokens.shape[0]
    return minibatches(
      batch, key, prompts=rows, epochs=1, count=algorithm.policy_updates
    )

  def loss_fn(params, frozen, batch, key):
    del key
    rollout = batch['rollout']
    policy_logps = bench.distribution_fn(params, frozen, rollout)
    mask = rollout.response_mask & rollout.valid[:, None]
    loss = critic_ops.distillation_loss(
      policy_logps,
      batch['target_logits'],
      response_mask=mask,
      direction=algorithm.direction,
      aggregation=algorithm.aggregation,
    )
    return loss, {
      'reward': masks.masked_mean(rollout.rewards, rollout.valid),
      'loss_weight': loss_weight(mask, algorithm.aggregation),
    }

  return loss_fn, (plan if algorithm.policy_updates > 1 else None)
