"""One iteration of RL: sample, judge, price, learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from flax import nnx

from p4lm.data.vocabulary import Vocabulary
from p4lm.decoding.sampler import SamplerConfig, sample
from p4lm.models.language_model import LMConfig
from p4lm.rewards.joint import JointReward
from p4lm.rl.eos import EosContract
from p4lm.rl.learner import Learner, Workbench
from p4lm.rl.phases import PhaseClock
from p4lm.rl.rollouts import Collected, Rollout, collect_rollout
from p4lm.rl.run_state import RlState
from p4lm.rl.scoring import (
  anchor_of,
  policy_distribution_fn,
  policy_score_fn,
  reference_fn,
)
from p4lm.runs import fitting
from p4lm.runs.sample_log import SampleLog
from p4lm.training.state import TrainState
from p4lm.training.step import FLOPS

# Keys of sampling differ from those of the update (which folds the step in).
_SAMPLING = 1_000_003
_LEARNING = 1_000_033


def workbench(
  fit: fitting.Fit,
  start: nnx.State,
  sizes: LMConfig,
  sampler: SamplerConfig,
  eos_id: int,
  example: Rollout,
) -> Workbench:
  """What an algorithm's learner is made of.

  Args:
    fit: the policy and its optimizer.
    start: first values of what trains.
    sizes: of the policy.
    sampler: how it is sampled, which the learner replays.
    eos_id: ends a response.
    example: shapes of a rollout.
  """
  return Workbench(
    step_of=fit.step_of,
    score_fn=policy_score_fn(fit.graphdef, sampler, eos_id),
    distribution_fn=policy_distribution_fn(fit.graphdef, sampler, eos_id),
    anchor=anchor_of(
      fit.graphdef,
      (start, fit.state.frozen),
      sampler,
      eos_id,
      width=sizes.d_model,
      vocabulary_size=sizes.vocab_size,
    ),
    place=fit.place,
    place_batch=fit.place_batch,
    key=jax.random.fold_in(fit.state.key, _LEARNING),
    example=example,
  )


@dataclasses.dataclass(frozen=True)
class Iteration:
  """(state, prompts) -> (state, metrics).

  Attributes:
    fit: the policy.
    start: first values of what trains.
    sampler: draws responses.
    vocabulary: reads them.
    joint: judges them.
    rl: what they are paid, and what the KL is measured to.
    learner: learns from them.
    eos_contract: what a response without EOS earns.
    samples: gets rows of each `samples_every`-th iteration.
    samples_every: iterations.
    flops: of the model on a rollout; None where they are not counted.
  """

  fit: fitting.Fit
  start: nnx.State
  sampler: SamplerConfig
  vocabulary: Vocabulary
  joint: JointReward
  rl: RlState
  learner: Learner
  eos_contract: EosContract | None
  samples: SampleLog
  samples_every: int = 1
  flops: Callable[[Rollout], float] | None = None

  def __call__(
    self, state: TrainState, batch: Mapping
  ) -> tuple[TrainState, dict]:
    step = int(state.step)
    self.rl.begin(state)
    collected = self._collected(state, batch, step)
    clock = PhaseClock()
    rollout = self.rl.priced(collected.rollout)
    state, metrics = self.learner.learn(state, rollout)
    metrics = {**metrics, **self.rl.end(rollout, collected.judged)}
    if step % self.samples_every == 0:
      rows = _sample_rows(collected, batch, self.sampler.num_samples)
      self.samples.append(step, rows)
    if self.flops is not None:
      metrics = {**metrics, FLOPS: self.flops(collected.rollout)}
    jax.block_until_ready(state.params)
    clock.ends('update')
    return state, {**metrics, **collected.metrics, **clock.metrics}

  def _collected(self, state: TrainState, batch, step: int) -> Collected:
    graphdef, eos_id = self.fit.graphdef, self.vocabulary.eos_id
    return collect_rollout(
      batch['features'],
      batch['subjects'],
      jax.random.fold_in(jax.random.fold_in(state.key, _SAMPLING), step),
      sample_fn=lambda features, key: sample(
        graphdef,
        (state.params, state.frozen),
        self.fit.place_batch(features),
        key,
        self.sampler,
        eos_id,
      ),
      reference_fn=reference_fn(
        graphdef,
        (self.rl.reference_params(self.start), state.frozen),
        self.sampler,
        eos_id,
      ),
      decode_fn=self.vocabulary.decode,
      reward_fn=lambda requests: self.rl.paid(self.joint(requests)),
      eos_id=eos_id,
      eos_contract=self.eos_contract,
    )


def _sample_rows(
  collected: Collected, batch: Mapping, num_samples: int
) -> Iterator[dict]:
  """One JSON row a sample: ids, weights, text, every reward term, log-ratio."""
  rollout = collected.rollout
  mask = np.asarray(rollout.response_mask)
  log_ratio = np.asarray(rollout.behavior_logps) - np.asarray(
    rollout.reference_logps
  )
  kl = np.where(mask, log_ratio, 0.0).sum(axis=1)
  for row, text in enumerate(collected.texts):
    subject = batch['subjects'][row // num_samples]
    told = {} if subject.shares is None else {'weights': subject.shares}
    yield {
      'user_id': subject.user_id,
      'item_id': subject.item_id,
      **told,
      'text': text,
      'reward': round(float(rollout.rewards[row]), 5),
      'valid': bool(rollout.valid[row]),
      'kl': round(float(kl[row]), 5),
      'terms': {
        name: round(float(term.values[row]), 5)
        for name, term in collected.judged.by_term.items()
      },
    }
