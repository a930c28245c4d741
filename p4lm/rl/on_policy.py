"""A learner that uses each rollout at once and forgets it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from p4lm.rl.learner import Metrics, Workbench
from p4lm.rl.objective import Objective
from p4lm.rl.rollouts import Rollout
from p4lm.rl.value_baseline import ValueBaseline
from p4lm.training.state import TrainState
from p4lm.typing import PyTree


class OnPolicyLearner:
  """Steps of an objective on each rollout; with a learned baseline, its too.

  Args:
    bench: makes the compiled step.
    objective: of the algorithm.
    values: the learned baseline, or None.
  """

  def __init__(
    self,
    bench: Workbench,
    objective: Objective,
    values: ValueBaseline | None = None,
  ):
    self._step = bench.step_of(objective.loss_fn, objective.plan)
    self._values = values

  def learn(
    self, state: TrainState, rollout: Rollout
  ) -> tuple[TrainState, Metrics]:
    """One step of the policy, with the values as they were before theirs."""
    if self._values is None:
      return self._step(state, rollout)
    rollout = dataclasses.replace(rollout, values=self._values(rollout))
    value_metrics = self._values.fit(rollout)
    state, metrics = self._step(state, rollout)
    return state, {**metrics, **value_metrics}

  def items(self) -> dict[str, PyTree]:
    """The learned baseline's."""
    return {} if self._values is None else self._values.items()

  def restore(self, items: Mapping[str, PyTree]) -> None:
    """Takes back what `items` gave."""
    if self._values is not None:
      self._values.restore(items)
