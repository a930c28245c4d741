"""What a learner is, and what it is given to work with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from p4lm.rl.objective import ScoreFn
from p4lm.rl.rollouts import Rollout
from p4lm.training.state import TrainState
from p4lm.typing import Array, PyTree

Metrics = Mapping[str, Any]
# (anchor parameters, rollout) -> decoder states [B, L, D], of which position l
# has seen the prompt and the tokens before l.
HiddenFn = Callable[[PyTree, Rollout], Array]
# (parameters, frozen, rollout) -> log-probabilities [B, L, V] of every token.
DistributionFn = Callable[[PyTree, PyTree, Rollout], Array]


class Learner(Protocol):
  """Turns rollouts into updates of the policy.

  What it keeps beside the policy (critics, their targets, a replay) are items
  of the checkpoint, restored bit for bit.
  """

  def learn(
    self, state: TrainState, rollout: Rollout
  ) -> tuple[TrainState, Metrics]:
    """The next state of the policy, and scalars to log."""

  def items(self) -> dict[str, PyTree]:
    """The learner's own state by name; {} for none."""

  def restore(self, items: Mapping[str, PyTree]) -> None:
    """Takes back what `items` gave."""


class Algorithm(Protocol):
  """A configuration that makes a learner.

  Attributes:
    kl_coefficient: alpha or beta, in reward units a nat.
    kl_in: 'reward' or 'loss'.
    updates_per_step: optimizer steps of the policy an iteration.
  """

  kl_coefficient: float
  kl_in: str
  updates_per_step: int

  def learner(self, bench: Workbench) -> Learner: ...


@dataclasses.dataclass(frozen=True)
class Anchor:
  """The SFT model: its distribution, and states for critics to read.

  Critics are heads on the hidden states of this frozen model, not of the
  policy: a value then means the same from one iteration to the next, and no
  second language model is held.

  Attributes:
    params: arguments of the two functions.
    hidden_fn: (params, rollout) -> hidden states [B, L, D].
    logps_fn: (params, rollout) -> log-probabilities [B, L, V] of every token
      at the sampler's temperature, without truncation.
    width: D.
    vocabulary_size: V.
  """

  params: PyTree
  hidden_fn: HiddenFn
  logps_fn: Callable[[PyTree, Rollout], Array]
  width: int
  vocabulary_size: int


@dataclasses.dataclass(frozen=True)
class Workbench:
  """What learners are made of.

  Attributes:
    step_of: (loss_fn, plan=None) -> train step, as `Fit.step_of`.
    score_fn: the policy's log-probabilities [B, L] of a rollout's tokens, as
      they were sampled.
    distribution_fn: the policy's log-probabilities [B, L, V].
    anchor: the SFT model.
    place: puts a learner's own arrays where the policy's devices are.
    place_batch: divides the rows of host arrays among those devices.
    key: random key of the learner's own draws.
    example: shapes of a rollout, for a replay.
  """

  step_of: Callable[..., Any]
  score_fn: ScoreFn
  distribution_fn: DistributionFn
  anchor: Anchor
  place: Callable[[PyTree], PyTree]
  place_batch: Callable[[PyTree], PyTree]
  key: jax.Array
  example: Rollout
