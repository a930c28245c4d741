"""P4LM's fine-tuning: RL on the joint reward, anchored to SFT by KL.

One iteration samples G responses to each prompt, judges them with the reward
models, scores them under the frozen anchor, and lets the algorithm learn from
them: one step up the reward less the KL penalty, several, or steps from a
replay of all that was sampled so far.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from p4lm import output_directory
from p4lm.data import tables
from p4lm.data.catalogue import Catalogue
from p4lm.data.order import epoch_rows
from p4lm.decoding.sampler import SamplerConfig, sample
from p4lm.errors import UserError
from p4lm.models.selection import split_trainable
from p4lm.models.t5_config import T5Config
from p4lm.rewards.joint import JointReward, JointRewardConfig
from p4lm.rewards.terms import RewardRequest
from p4lm.rewards.weightings import WeightingConfig
from p4lm.rl.eos import EosContract
from p4lm.rl.kl_anchoring import AdaptiveKl, ReferenceConfig
from p4lm.rl.learner import Algorithm, Learner, Workbench
from p4lm.rl.off_policy import OffPolicyLearner
from p4lm.rl.phases import PhaseClock
from p4lm.rl.reinforce import ReinforceConfig
from p4lm.rl.rollouts import (
  Collected,
  Rollout,
  collect_rollout,
  rollout_shapes,
)
from p4lm.rl.run_state import RlState
from p4lm.rl.scoring import (
  anchor_of,
  policy_distribution_fn,
  policy_score_fn,
  reference_fn,
)
from p4lm.rl.thresholds import ThresholdConfig
from p4lm.runs import fitting, model_directory, step_flops
from p4lm.runs.conditioning import conditioned
from p4lm.runs.model_directory import LoadedModel
from p4lm.runs.offline_samples import offline_rollouts
from p4lm.runs.reward_sources import check_reward_sources
from p4lm.runs.reward_terms import load_reward_terms
from p4lm.runs.sample_log import SampleLog
from p4lm.runs.task_prompts import writing_request
from p4lm.training.step import FLOPS
from p4lm.writers.checkpoint import CheckpointWriter

# Keys of sampling differ from those of the update (which folds the step in).
_SAMPLING = 1_000_003
_LEARNING = 1_000_033


def train_rl(
  *,
  data_dir: str,
  output_dir: str,
  checkpoint: str,
  rewards: Mapping[str, str],
  training: fitting.FitConfig,
  batch_size: int,
  num_samples: int = 4,
  algorithm: Algorithm | None = None,
  reference: ReferenceConfig | None = None,
  kl_control: AdaptiveKl | None = None,
  thresholds: ThresholdConfig | None = None,
  offline_samples: str | None = None,
  joint_reward: JointRewardConfig | None = None,
  weighting: WeightingConfig | None = None,
  reward_outputs: Mapping[str, str] | None = None,
  eos_contract: EosContract | None = None,
  temperature: float = 1.0,
  top_p: float = 1.0,
  response_length: int | None = None,
  samples_every: int = 1,
) -> None:
  """RL from an SFT checkpoint against trained rewards, REINFORCE by default.

  Args:
    data_dir: tables of `make_data`; prompts are its `rl_prompts`.
    output_dir: gets checkpoints, metrics and `samples.jsonl`.
    checkpoint: train_lm directory: the policy's start and its anchor.
    rewards: {kind: train_reward directory}.
    training: what trains, the optimizer, the iterations (steps), the seed and
      the mesh. Stage 'lora' trains updates that `checkpoint` has.
    batch_size: prompts an iteration.
    num_samples: G, responses a prompt.
    algorithm: a config of `p4lm.rl`: `ReinforceConfig`, `PpoConfig`,
      `GrpoConfig`, `RebelConfig`; `SoftOptimalConfig`, `SacConfig`,
      `CqlConfig`, `InSampleConfig`.
    reference: what the KL is measured to; the SFT policy by default.
    kl_control: steers the algorithm's KL coefficient; None leaves it.
    thresholds: rewards that are kept above a value; None for none.
    offline_samples: a file of rewarded responses (see `runs.offline_samples`)
      that is in the replay from the start.
    joint_reward: weights and normalisation; the paper's by default.
    weighting: trains one policy over many weightings of the rewards, told in
      its prompts, of which `joint_reward` then has the scales; see
      `rewards.weightings`. None for that of `joint_reward` alone.
    reward_outputs: {kind: how its score is read}, see `LearnedTermConfig`.
    eos_contract: what a response without EOS earns.
    temperature, top_p: of sampling; the learner replays both exactly.
    response_length: L; the checkpoint's by default.
    samples_every: iterations between written samples.
  Raises:
    UserError: bad input, rewards of another vocabulary or of other CF
      embeddings, a NaN loss.
  """
  directory = output_directory.claim(output_dir)
  check_reward_sources(rewards, {'the policy': checkpoint})
  anchor = model_directory.load_model(checkpoint, kind='recommender')
  terms = load_reward_terms(
    rewards, batch_size=batch_size * num_samples, outputs=reward_outputs
  )
  joint = JointReward(terms, joint_reward)
  card = conditioned(
    model_directory.continued(anchor, training.stage, response_length),
    anchor.vocabulary,
    weighting,
    joint.weights,
  )
  sampler = SamplerConfig(
    max_length=card.response_length,
    temperature=temperature,
    top_p=top_p,
    num_samples=num_samples,
  )
  eos_id = anchor.vocabulary.eos_id
  algorithm = algorithm or ReinforceConfig()
  for choice in filter(None, (reference, kl_control)):
    choice.check_fits(algorithm)
  prompts = _Prompts(
    dataclasses.replace(anchor, card=card),
    data_dir,
    batch_size,
    training.seed,
    weighting,
  )
  # Nothing is written before all that a user may have to mend is known.
  model_directory.write_card(directory, card, anchor.vocabulary)

  fit = fitting.prepare(
    anchor.module(), directory, training, algorithm.updates_per_step
  )
  # What trains has its first values here; the rest is the policy's own, so that
  # with LoRA the anchor costs no second model.
  _, start, _ = split_trainable(anchor.module(), training.stage)
  start = fit.place(start)
  vocabulary, anchor = anchor.vocabulary, _described(anchor)
  learner = algorithm.learner(
    _workbench(
      fit,
      start,
      anchor.config.lm,
      sampler,
      eos_id,
      rollout_shapes(prompts.shapes(), num_samples, card.response_length),
    )
  )
  if offline_samples is not None:
    _observe(
      learner,
      offline_rollouts(
        offline_samples,
        features_of=prompts.features_of,
        batch_size=batch_size,
        response_length=card.response_length,
        vocabulary=vocabulary,
      ),
    )
  rl = RlState(
    learner, start, algorithm.kl_coefficient, reference, kl_control, thresholds
  )
  samples = SampleLog(directory / 'samples.jsonl')
  counted = None
  # The other algorithms' updates are of several passes or of other models.
  if isinstance(algorithm, ReinforceConfig) and algorithm.baseline != 'value':
    counted = step_flops.model_flops(
      step_flops.reinforce_flops(
        anchor.config, **step_flops.trained_part(fit.state)
      )
    )

  def iterate(state, batch):
    step = int(state.step)
    rl.begin(state)
    collected = collect_rollout(
      batch['features'],
      batch['subjects'],
      jax.random.fold_in(jax.random.fold_in(state.key, _SAMPLING), step),
      sample_fn=lambda features, key: sample(
        fit.graphdef,
        (state.params, state.frozen),
        fit.place_batch(features),
        key,
        sampler,
        eos_id,
      ),
      reference_fn=reference_fn(
        fit.graphdef,
        (rl.reference_params(start), state.frozen),
        sampler,
        eos_id,
      ),
      decode_fn=vocabulary.decode,
      reward_fn=lambda requests: rl.paid(joint(requests)),
      eos_id=eos_id,
      eos_contract=eos_contract,
    )
    clock = PhaseClock()
    rollout = rl.priced(collected.rollout)
    state, metrics = learner.learn(state, rollout)
    metrics = {**metrics, **rl.end(rollout, collected.judged)}
    if step % samples_every == 0:
      samples.append(step, _sample_rows(collected, batch, num_samples))
    if counted is not None:
      metrics = {**metrics, FLOPS: counted(collected.rollout)}
    jax.block_until_ready(state.params)
    clock.ends('update')
    return state, {**metrics, **collected.metrics, **clock.metrics}

  def batches_from(start: int):
    samples.drop_from(start)
    return prompts.batches_from(start)

  fit.run(iterate, batches_from, rl)


def _described(anchor: LoadedModel) -> LoadedModel:
  """The model without its arrays, which the mesh has now."""
  return dataclasses.replace(anchor, params=None)


def _workbench(
  fit: fitting.Fit,
  start: nnx.State,
  sizes: T5Config,
  sampler: SamplerConfig,
  eos_id: int,
  example: Rollout,
) -> Workbench:
  """What the algorithm's learner is made of."""
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


def _observe(learner: Learner, rollouts: Iterator[Rollout]) -> None:
  """Fills a replay; one that a checkpoint has takes its place later."""
  if not isinstance(learner, OffPolicyLearner):
    raise UserError(
      'offline_samples need an algorithm with a replay, such as SacConfig or '
      'SoftOptimalConfig'
    )
  for rollout in rollouts:
    learner.observe(rollout)


class _Prompts:
  """Prompts for policies to answer, shuffled each epoch, addressed by step."""

  def __init__(self, anchor, data_dir, batch_size, seed, weighting=None):
    self._anchor, self._weighting = _described(anchor), weighting
    self._catalogue = Catalogue.load(data_dir)
    self._rows = tables.read_table(data_dir, 'rl_prompts').to_pylist()
    self._batch_size, self._seed = batch_size, seed
    if not self._rows:
      raise UserError(f'{data_dir}: rl_prompts.parquet has no rows')
    self._features = CheckpointWriter(
      graphdef=anchor.graphdef,
      params=None,
      vocabulary=anchor.vocabulary,
      cf_lookup=anchor.cf_lookup,
      prompt_length=anchor.card.prompt_length,
      batch_size=batch_size,
      length_bucket=anchor.card.prompt_length,
      pad_id=anchor.config.lm.pad_id,
    ).features

  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Of the features of a batch."""
    features = next(self.batches_from(0))['features']
    return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, features))

  def batches_from(self, start: int) -> Iterator[dict]:
    """{'features': arrays, 'subjects': requests} of step `start` and on."""
    size = self._batch_size
    orders = epoch_rows(len(self._rows), size, self._seed, start)
    for step, indices in enumerate(orders, start):
      rows = [
        {**self._rows[index], 'weights': self._weights(step * size + place)}
        for place, index in enumerate(indices)
      ]
      subjects = [
        RewardRequest(
          text='',
          item_id=row['item_id'],
          user_id=row['user_id'],
          item=self._catalogue.item(row['item_id']),
          shares=row['weights'],
        )
        for row in rows
      ]
      yield {'features': self.features_of(rows), 'subjects': subjects}

  def _weights(self, number: int) -> dict[str, float] | None:
    """{term: share} told in prompt `number` of the run; None for none."""
    weighted = self._anchor.weighted
    if weighted is None:
      return None
    concentration = self._weighting.concentration
    return weighted.shares(weighted.drawn(concentration, self._seed, number))

  def features_of(self, rows: Sequence[Mapping]) -> dict:
    """Arrays of the prompts of at most `batch_size` (user, item) rows."""
    return self._features(
      [
        writing_request(
          self._anchor,
          self._catalogue,
          row['user_id'],
          row['item_id'],
          weights=row.get('weights'),
        )
        for row in rows
      ]
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
