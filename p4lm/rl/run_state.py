"""RL's own part of a checkpoint: the item `rl`.

    rl/counters/prompts, samples      int64, how many so far
    rl/coefficient                    float64, of an adaptive KL
    rl/multipliers/TERM               float64, of rewards with a threshold
    rl/reference/...                  parameters of a reference that moves
    rl/learner/...                    critics, their targets and moments, replay

Where sampling stands needs no state of its own: iteration s draws with a key
made of the run's key and s, and prompts are addressed by s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from p4lm.rewards.joint import JointValues
from p4lm.rl.kl_anchoring import (
  AdaptiveKl,
  MovingReference,
  ReferenceConfig,
)
from p4lm.rl.learner import Learner
from p4lm.rl.rollouts import Rollout, sampled_kl
from p4lm.rl.thresholds import Multipliers, ThresholdConfig
from p4lm.training.state import TrainState
from p4lm.typing import PyTree


class RlState:
  """Everything that an iteration changes beside the policy's TrainState.

  Args:
    learner: its items are part of the checkpoint.
    params: the policy's first parameters.
    coefficient: the algorithm's KL coefficient, the controller's first.
    reference: None for the SFT policy.
    controller: None for a fixed coefficient.
    thresholds: of rewards, None for none.
  """

  def __init__(
    self,
    learner: Learner,
    params: PyTree,
    coefficient: float,
    reference: ReferenceConfig | None = None,
    controller: AdaptiveKl | None = None,
    thresholds: ThresholdConfig | None = None,
  ):
    self._learner = learner
    self._controller = controller
    self._coefficient = np.float64(coefficient)
    self._counters = {'prompts': np.int64(0), 'samples': np.int64(0)}
    self._multipliers = None
    if thresholds is not None and thresholds.thresholds:
      self._multipliers = Multipliers(thresholds)
    self._reference = None
    if reference is not None and reference.moves:
      self._reference = MovingReference(reference, params)

  def begin(self, state: TrainState) -> None:
    """Before an iteration samples."""
    if self._reference is not None:
      self._reference.before(int(state.step), state.params)

  def reference_params(self, anchor: PyTree) -> PyTree:
    """Trained part of the reference's parameters: the anchor's, or its own."""
    return anchor if self._reference is None else self._reference.params

  def paid(self, judged: JointValues) -> JointValues:
    """The joint reward, with what thresholds add to it."""
    return (
      judged if self._multipliers is None else self._multipliers.paid(judged)
    )

  def priced(self, rollout: Rollout) -> Rollout:
    """The rollout with the coefficient of an adaptive KL."""
    if self._controller is None:
      return rollout
    rows = rollout.rewards.shape[0]
    coefficients = np.full(rows, self._coefficient, np.float32)
    return dataclasses.replace(rollout, kl_coefficients=coefficients)

  def end(self, rollout: Rollout, judged: JointValues) -> dict[str, float]:
    """After the rollout was learned from: counts, steers; what to log."""
    self._counters['prompts'] += rollout.prompt_tokens.shape[0]
    self._counters['samples'] += rollout.response_tokens.shape[0]
    logged = self._multipliers.follow(judged) if self._multipliers else {}
    if self._controller is None:
      return logged
    kl = sampled_kl(
      rollout.behavior_logps,
      rollout.reference_logps,
      rollout.response_mask,
      rollout.valid,
    )
    used = float(self._coefficient)
    self._coefficient = np.float64(self._controller.after(used, kl))
    return {**logged, 'kl_coefficient': used}

  def checkpoint_items(self) -> dict[str, PyTree]:
    """The item `rl`."""
    rl = {'counters': dict(self._counters), 'learner': self._learner.items()}
    if self._controller is not None:
      rl['coefficient'] = self._coefficient
    if self._multipliers is not None:
      rl['multipliers'] = dict(self._multipliers.values)
    if self._reference is not None:
      rl['reference'] = self._reference.params
    return {'rl': rl}

  def restore_items(self, items: Mapping[str, PyTree]) -> None:
    """Takes back what `checkpoint_items` gave."""
    rl = items['rl']
    self._counters = {
      name: np.int64(count) for name, count in rl['counters'].items()
    }
    self._learner.restore(rl['learner'])
    if self._controller is not None:
      self._coefficient = np.float64(rl['coefficient'])
    if self._multipliers is not None:
      self._multipliers.values = {
        name: np.float64(value) for name, value in rl['multipliers'].items()
      }
    if self._reference is not None:
      self._reference.params = rl['reference']
