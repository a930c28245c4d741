"""P4LM's fine-tuning: RL on the joint reward, anchored to SFT by KL.

One iteration samples G responses to each prompt, judges them with the reward
models, scores them under the frozen anchor, and lets the algorithm learn from
them: one step up the reward less the KL penalty, several, or steps from a
replay of all that was sampled so far.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from p4lm import output_directory
from p4lm.decoding.sampler import SamplerConfig
from p4lm.models.selection import split_trainable
from p4lm.rewards.joint import JointReward, JointRewardConfig
from p4lm.rewards.weightings import WeightingConfig
from p4lm.rl.eos import EosContract
from p4lm.rl.kl_anchoring import AdaptiveKl, ReferenceConfig
from p4lm.rl.learner import Algorithm
from p4lm.rl.reinforce import ReinforceConfig
from p4lm.rl.rollouts import rollout_shapes
from p4lm.rl.run_state import RlState
from p4lm.rl.thresholds import ThresholdConfig
from p4lm.runs import fitting, model_directory, step_flops
from p4lm.runs.conditioning import conditioned
from p4lm.runs.offline_samples import observe, offline_rollouts
from p4lm.runs.reward_sources import check_reward_sources
from p4lm.runs.reward_terms import load_reward_terms
from p4lm.runs.rl_iteration import Iteration, workbench
from p4lm.runs.rl_prompts import RlPrompts
from p4lm.runs.sample_log import SampleLog


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
  joint = JointReward(
    load_reward_terms(
      rewards, batch_size=batch_size * num_samples, outputs=reward_outputs
    ),
    joint_reward,
  )
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
  algorithm = algorithm or ReinforceConfig()
  for choice in filter(None, (reference, kl_control)):
    choice.check_fits(algorithm)
  prompts = RlPrompts(
    dataclasses.replace(anchor, card=card), data_dir, batch_size,
    training.seed, weighting,
  )  # fmt: skip
  # Nothing is written before all that a user may have to mend is known.
  model_directory.write_card(directory, card, anchor.vocabulary)

  fit = fitting.prepare(
    anchor.module(), directory, training, algorithm.updates_per_step
  )
  # What trains has its first values here; the rest is the policy's own, so that
  # with LoRA the anchor costs no second model.
  _, start, _ = split_trainable(anchor.module(), training.stage)
  start, anchor = fit.place(start), anchor.described()
  vocabulary, sizes = anchor.vocabulary, anchor.config.lm
  shapes = rollout_shapes(prompts.shapes(), num_samples, card.response_length)
  learner = algorithm.learner(
    workbench(fit, start, sizes, sampler, vocabulary.eos_id, shapes)
  )
  if offline_samples is not None:
    observe(
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
  iterate = Iteration(
    fit, start, sampler, vocabulary, joint, rl, learner, eos_contract, samples,
    samples_every, step_flops.of_algorithm(algorithm, anchor.config, fit.state),
  )  # fmt: skip

  def batches_from(step: int):
    samples.drop_from(step)
    return prompts.batches_from(step)

  fit.run(iterate, batches_from, rl)
