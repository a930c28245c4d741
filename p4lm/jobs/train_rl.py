"""P4LM's fine-tuning: REINFORCE on the joint reward, anchored to SFT by KL.

One iteration samples G responses to each prompt, judges them with the reward
models, scores them under the frozen anchor, and takes one step up the reward
less the KL penalty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import jax
import numpy as np

from p4lm import output_directory
from p4lm.data import tables
from p4lm.data.catalogue import Catalogue
from p4lm.data.order import epoch_rows
from p4lm.decoding.sampler import SamplerConfig, sample
from p4lm.errors import UserError
from p4lm.rewards.joint import JointReward, JointRewardConfig
from p4lm.rewards.terms import RewardRequest
from p4lm.rl.eos import EosContract
from p4lm.rl.reinforce import ReinforceConfig, make_reinforce_loss
from p4lm.rl.rollouts import Collected, collect_rollout
from p4lm.rl.scoring import policy_score_fn, reference_fn
from p4lm.runs import fitting, model_directory, step_flops
from p4lm.runs.reward_terms import load_reward_terms
from p4lm.runs.sample_log import SampleLog
from p4lm.runs.task_prompts import writing_request
from p4lm.training.step import FLOPS
from p4lm.writers.checkpoint import CheckpointWriter

# Keys of sampling differ from those of the update (which folds the step in).
_SAMPLING = 1_000_003


def train_rl(
  *,
  data_dir: str,
  output_dir: str,
  checkpoint: str,
  rewards: Mapping[str, str],
  training: fitting.FitConfig,
  batch_size: int,
  num_samples: int = 4,
  algorithm: ReinforceConfig | None = None,
  joint_reward: JointRewardConfig | None = None,
  reward_outputs: Mapping[str, str] | None = None,
  eos_contract: EosContract | None = None,
  temperature: float = 1.0,
  top_p: float = 1.0,
  response_length: int | None = None,
  samples_every: int = 1,
) -> None:
  """REINFORCE + KL from an SFT checkpoint against trained rewards.

  Args:
    data_dir: tables of `make_data`; prompts are its `rl_prompts`.
    output_dir: gets checkpoints, metrics and `samples.jsonl`.
    checkpoint: train_lm directory: the policy's start and its anchor.
    rewards: {kind: train_reward directory}.
    training: what trains, the optimizer, the iterations (steps), the seed and
      the mesh. Stage 'lora' trains updates that `checkpoint` has.
    batch_size: prompts an iteration.
    num_samples: G, responses a prompt.
    algorithm: KL coefficient and estimator, baseline.
    joint_reward: weights and normalisation; the paper's by default.
    reward_outputs: {kind: how its score is read}, see `LearnedTermConfig`.
    eos_contract: what a response without EOS earns.
    temperature, top_p: of sampling; the learner replays both exactly.
    response_length: L; the checkpoint's by default.
    samples_every: iterations between written samples.
  Raises:
    UserError: bad input, rewards of another vocabulary, a NaN loss.
  """
  directory = output_directory.claim(output_dir)
  anchor = model_directory.load_model(checkpoint, kind='recommender')
  card = model_directory.continued(anchor, training.stage, response_length)
  sampler = SamplerConfig(
    max_length=card.response_length,
    temperature=temperature,
    top_p=top_p,
    num_samples=num_samples,
  )
  eos_id = anchor.vocabulary.eos_id
  terms = load_reward_terms(
    rewards,
    vocabulary_sha256=anchor.vocabulary.sha256,
    batch_size=batch_size * num_samples,
    outputs=reward_outputs,
  )
  joint = JointReward(terms, joint_reward)
  prompts = _Prompts(anchor, data_dir, batch_size, training.seed)
  # Nothing is written before all that a user may have to mend is known.
  model_directory.write_card(directory, card, anchor.vocabulary)

  fit = fitting.prepare(anchor.module(), directory, training)
  update = fit.step_of(
    make_reinforce_loss(
      policy_score_fn(fit.graphdef, sampler, eos_id), algorithm
    )
  )
  reference = reference_fn(anchor.graphdef, anchor.params, sampler, eos_id)
  samples = SampleLog(directory / 'samples.jsonl')
  counted = step_flops.model_flops(
    step_flops.reinforce_flops(
      anchor.config, **step_flops.trained_part(fit.state)
    )
  )

  def iterate(state, batch):
    step = int(state.step)
    collected = collect_rollout(
      batch['features'],
      batch['subjects'],
      jax.random.fold_in(jax.random.fold_in(state.key, _SAMPLING), step),
      sample_fn=lambda features, key: sample(
        fit.graphdef,
        (state.params, state.frozen),
        features,
        key,
        sampler,
        eos_id,
      ),
      reference_fn=reference,
      decode_fn=anchor.vocabulary.decode,
      reward_fn=joint,
      eos_id=eos_id,
      eos_contract=eos_contract,
    )
    state, metrics = update(state, collected.rollout)
    if step % samples_every == 0:
      samples.append(step, _sample_rows(collected, batch, num_samples))
    if counted is not None:
      metrics = {**metrics, FLOPS: counted(collected.rollout)}
    return state, {**metrics, **collected.metrics}

  def batches_from(start: int):
    samples.drop_from(start)
    return prompts.batches_from(start)

  fit.run(iterate, batches_from)


class _Prompts:
  """Prompts for policies to answer, shuffled each epoch, addressed by step."""

  def __init__(self, anchor, data_dir: str, batch_size: int, seed: int):
    self._anchor = anchor
    self._catalogue = Catalogue.load(data_dir)
    self._rows = tables.read_table(data_dir, 'rl_prompts').to_pylist()
    self._batch_size, self._seed = batch_size, seed
    if not self._rows:
      raise UserError(f'{data_dir}: rl_prompts.parquet has no rows')
    self._features = CheckpointWriter(
      graphdef=anchor.graphdef,
      params=anchor.params,
      vocabulary=anchor.vocabulary,
      cf_lookup=anchor.cf_lookup,
      prompt_length=anchor.card.prompt_length,
      batch_size=batch_size,
      length_bucket=anchor.card.prompt_length,
    ).features

  def batches_from(self, start: int) -> Iterator[dict]:
    """{'features': arrays, 'subjects': requests} of step `start` and on."""
    for indices in epoch_rows(
      len(self._rows), self._batch_size, self._seed, start
    ):
      rows = [self._rows[index] for index in indices]
      requests = [
        writing_request(
          self._anchor, self._catalogue, row['user_id'], row['item_id']
        )
        for row in rows
      ]
      subjects = [
        RewardRequest(
          text='',
          item_id=row['item_id'],
          user_id=row['user_id'],
          item=self._catalogue.item(row['item_id']),
        )
        for row in rows
      ]
      yield {'features': self._features(requests), 'subjects': subjects}


def _sample_rows(
  collected: Collected, batch: Mapping, num_samples: int
) -> Iterator[dict]:
  """One JSON row a sample: ids, text, every reward term, log-ratio."""
  rollout = collected.rollout
  mask = np.asarray(rollout.response_mask)
  log_ratio = np.asarray(rollout.behavior_logps) - np.asarray(
    rollout.reference_logps
  )
  kl = np.where(mask, log_ratio, 0.0).sum(axis=1)
  for row, text in enumerate(collected.texts):
    subject = batch['subjects'][row // num_samples]
    yield {
      'user_id': subject.user_id,
      'item_id': subject.item_id,
      'text': text,
      'reward': round(float(rollout.rewards[row]), 5),
      'valid': bool(rollout.valid[row]),
      'kl': round(float(kl[row]), 5),
      'terms': {
        name: round(float(term.values[row]), 5)
        for name, term in collected.judged.by_term.items()
      },
    }
