"""The compiled steps of training jobs, on arrays that are only described.

The functions are those that the jobs compile; nothing is allocated, so a model
of any size can be lowered on any machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from p4lm.decoding.sampler import SamplerConfig, sample
from p4lm.decoding.scoring import score
from p4lm.errors import UserError
from p4lm.models import lora
from p4lm.models.adapter import AdapterConfig
from p4lm.models.flops import Shapes, UpdateFlops
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.models.reward_model import RewardModel, RewardModelConfig
from p4lm.partitioning.shardings import describe_batch
from p4lm.rewards.kinds import PAIRWISE
from p4lm.rewards.losses import RewardLossConfig, make_reward_loss
from p4lm.rl.reinforce import ReinforceConfig, make_reinforce_loss
from p4lm.rl.rollouts import Rollout
from p4lm.rl.scoring import policy_score_fn
from p4lm.runs import fitting, step_flops
from p4lm.runs.model_losses import maximum_likelihood, scores_of

# Any id will do for a program that is never run.
_EOS = 1


@dataclasses.dataclass(frozen=True)
class ModelPlan:
  """The model of a planned job.

  Attributes:
    sizes: of the language model; its vocab_size is taken as it stands.
    prompt_length, response_length: P and L in tokens.
    cf_width: E of the CF vectors; 0 for a model of text alone.
    vectors: N, CF vectors of a prompt.
    adapter_width: hidden width of the adapters; the model's by default.
    tokens_per_vector: soft tokens of each vector.
  """

  sizes: Any
  prompt_length: int
  response_length: int
  cf_width: int = 0
  vectors: int = 2
  adapter_width: int | None = None
  tokens_per_vector: int = 1

  @property
  def adapter(self) -> AdapterConfig | None:
    if not self.cf_width:
      return None
    return AdapterConfig(
      self.cf_width,
      self.adapter_width or self.sizes.d_model,
      tokens_per_vector=self.tokens_per_vector,
    )

  @property
  def recommender(self) -> RecommenderConfig:
    last = self.sizes.vocab_size - 1
    return RecommenderConfig(self.sizes, self.adapter, soft_token_id=last)

  def prompts(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Prompt features of `rows` examples."""
    vectors = self.vectors if self.cf_width else 0
    return {
      'prompt_tokens': tokens(rows, self.prompt_length),
      'cf_embeddings': array((rows, vectors, self.cf_width)),
      'cf_kind_ids': tokens(rows, vectors),
    }

  def shapes(self, prompts: int, rows: int) -> Shapes:
    return Shapes(
      prompts,
      rows,
      self.prompt_length,
      self.response_length,
      self.vectors if self.cf_width else 0,
    )


@dataclasses.dataclass(frozen=True)
class PlannedStep:
  """A function that a job compiles, and what it is called with.

  Attributes:
    job: such as 'train_rl'.
    parts: what it does, with the FLOPs of each on all devices (None of a
      model that no rule counts); two for sampling, which reads prompts and
      then draws tokens in a loop that may end early.
    lower: () -> jax.stages.Lowered, for the mesh that it was planned for.
    shapes: of a batch.
    state: the described model and optimizer that it reads.
    beside: described arrays of the job that stay in memory meanwhile.
    trains: whether it has a backward pass.
    accumulate: microbatches that a batch is cut into.
  """

  job: str
  parts: dict[str, UpdateFlops | None]
  lower: Callable[[], Any]
  shapes: Shapes
  state: Any
  beside: Any = ()
  trains: bool = False
  accumulate: int = 1


def supervised_steps(
  plan: ModelPlan,
  mesh: jax.sharding.Mesh,
  *,
  training: fitting.FitConfig,
  batch_size: int,
  lora_rank: int = 8,
  lora_alpha: float = 16.0,
) -> list[PlannedStep]:
  """The update of `train_lm`."""
  module = _recommender(plan, training.stage, lora_rank, lora_alpha)
  fit = fitting.prepare_abstract(module, training, mesh)
  batch = {
    **plan.prompts(batch_size),
    'response_tokens': tokens(batch_size, plan.response_length),
    'response_mask': array((batch_size, plan.response_length), bool),
  }
  counted = step_flops.supervised_flops(
    plan.recommender, **step_flops.trained_part(fit.state)
  )
  return [
    _update(
      'train_lm',
      fit,
      maximum_likelihood(fit.graphdef),
      describe_batch(batch, mesh),
      counted and counted(batch),
      plan.shapes(batch_size, batch_size),
    )
  ]


def reward_steps(
  plan: ModelPlan,
  mesh: jax.sharding.Mesh,
  *,
  kind: str,
  training: fitting.FitConfig,
  batch_size: int,
  loss: RewardLossConfig | None = None,
  num_heads: int = 1,
) -> list[PlannedStep]:
  """The update of `train_reward`."""
  of = plan.recommender
  config = RewardModelConfig(
    of.lm, of.adapter, of.soft_token_id, kind, num_heads
  )
  module = nnx.eval_shape(lambda: RewardModel(config, rngs=nnx.Rngs(0)))
  fit = fitting.prepare_abstract(module, training, mesh)
  responses = tokens(batch_size, plan.response_length)
  batch, sides = plan.prompts(batch_size), 1
  if kind in PAIRWISE:
    batch |= {'chosen_tokens': responses, 'rejected_tokens': responses}
    sides = 2
  else:
    batch |= {'response_tokens': responses, 'labels': array((batch_size,))}
  counted = step_flops.reward_update_flops(config)
  return [
    _update(
      f'train_reward {kind}',
      fit,
      make_reward_loss(kind, scores_of(fit.graphdef), loss),
      describe_batch(batch, mesh),
      counted and counted(batch),
      plan.shapes(batch_size, sides * batch_size),
    )
  ]


def reinforce_steps(
  plan: ModelPlan,
  mesh: jax.sharding.Mesh,
  *,
  training: fitting.FitConfig,
  batch_size: int,
  num_samples: int = 4,
  algorithm: ReinforceConfig | None = None,
  temperature: float = 1.0,
  top_p: float = 1.0,
  lora_rank: int = 8,
  lora_alpha: float = 16.0,
) -> list[PlannedStep]:
  """Sampling, the anchor's log-probabilities and the update of `train_rl`.

  Policy, optimizer and anchor are all in memory during each; the reward
  models, which have sizes of their own, are not planned.

  Raises:
    UserError: an algorithm other than REINFORCE, or one with a critic.
  """
  algorithm = algorithm or ReinforceConfig()
  if not isinstance(algorithm, ReinforceConfig):
    raise UserError(
      f'compile_pod plans REINFORCE; train_rl has {type(algorithm).__name__}: '
      'give --gin_file=runs/train_rl.gin'
    )
  sampler = SamplerConfig(
    max_length=plan.response_length,
    temperature=temperature,
    top_p=top_p,
    num_samples=num_samples,
  )
  module = _recommender(plan, training.stage, lora_rank, lora_alpha)
  fit = fitting.prepare_abstract(module, training, mesh)
  policy = (fit.state.params, fit.state.frozen)
  prompts = describe_batch(plan.prompts(batch_size), mesh)
  rollout = _rollout(plan, prompts, batch_size * num_samples, mesh)
  key = jax.eval_shape(lambda: jax.random.key(0))
  replayed = dataclasses.replace(sampler, top_p=1.0)
  answers = (rollout.response_tokens, rollout.response_mask)
  counted = step_flops.reinforce_parts(
    plan.recommender,
    plan.shapes(batch_size, batch_size * num_samples),
    **step_flops.trained_part(fit.state),
  )
  options = dict(shapes=plan.shapes(batch_size, batch_size * num_samples))
  return [
    PlannedStep(
      'train_rl',
      {part: counted and counted[part] for part in ('prefill', 'decode')},
      lambda: sample.lower(fit.graphdef, policy, prompts, key, sampler, _EOS),
      state=policy,
      beside=(fit.state.opt_state, policy),
      **options,
    ),
    PlannedStep(
      'train_rl',
      {'anchor': counted and counted['anchor']},
      lambda: score.lower(
        fit.graphdef, policy, prompts, *answers, replayed, _EOS
      ),
      state=policy,
      beside=(fit.state.opt_state, policy),
      **options,
    ),
    _update(
      'train_rl',
      fit,
      make_reinforce_loss(
        policy_score_fn(fit.graphdef, sampler, _EOS), algorithm
      ),
      rollout,
      counted and counted['update'],
      beside=policy,
      **options,
    ),
  ]


def tokens(rows: int, length: int) -> jax.ShapeDtypeStruct:
  """int32 [rows, length]."""
  return jax.ShapeDtypeStruct((rows, length), jnp.int32)


def array(shape: tuple[int, ...], dtype=jnp.float32) -> jax.ShapeDtypeStruct:
  """A described array, float32 by default."""
  return jax.ShapeDtypeStruct(shape, dtype)


def _recommender(plan, stage, lora_rank, lora_alpha) -> nnx.Module:
  def make():
    module = Recommender(plan.recommender, rngs=nnx.Rngs(0))
    if stage == 'lora':
      lora.apply_lora(module, lora_rank, lora_alpha, rngs=nnx.Rngs(0))
    return module

  return nnx.eval_shape(make)


def _update(job, fit, loss_fn, batch, counted, shapes, beside=()):
  step = fit.step_of(loss_fn)
  return PlannedStep(
    job,
    {'update': counted},
    lambda: step.lower(fit.state, batch),
    shapes,
    state=fit.state,
    beside=beside,
    trains=True,
    accumulate=fit.config.accumulate,
  )


def _rollout(plan, prompts, rows, mesh) -> Rollout:
  length = plan.response_length
  answers = {
    'response_tokens': tokens(rows, length),
    'response_mask': array((rows, length), bool),
    'behavior_logps': array((rows, length)),
    'reference_logps': array((rows, length)),
    'rewards': array((rows,)),
    'valid': array((rows,), bool),
  }
  return Rollout(**prompts, **describe_batch(answers, mesh))
