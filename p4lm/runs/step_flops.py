"""FLOPs of the training jobs' steps, from their configurations and batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from flax import nnx

from p4lm.models import flops
from p4lm.models.flops import Flops, Shapes, UpdateFlops
from p4lm.models.recommender import RecommenderConfig
from p4lm.models.reward_model import RewardModelConfig
from p4lm.models.selection import parameter_name
from p4lm.rl.learner import Algorithm
from p4lm.rl.reinforce import ReinforceConfig
from p4lm.rl.rollouts import Rollout
from p4lm.training.state import TrainState

BatchFlops = Callable[[Mapping], UpdateFlops]


def model_flops(count: BatchFlops | None) -> Callable[[Mapping], float] | None:
  """What MFU counts of a step: batch -> FLOPs; None for None."""
  return None if count is None else lambda batch: count(batch).model


def supervised_flops(
  config: RecommenderConfig, *, trained_share: float = 1.0, lora_rank: int = 0
) -> BatchFlops | None:
  """Batch of `train_lm` -> FLOPs; None for a model that no rule counts."""
  if not flops.is_counted(config.lm):
    return None

  def count(batch):
    forward = recommender_forward(
      config,
      Shapes(
        *_rows(batch['prompt_tokens'], batch['response_tokens']),
        vectors=batch['cf_embeddings'].shape[1],
      ),
      lora_rank=lora_rank,
    )
    return flops.update_flops(forward, trained_share=trained_share)

  return count


def reward_update_flops(config: RewardModelConfig) -> BatchFlops | None:
  """Batch of `train_reward` -> FLOPs; None for a model that is not counted."""
  if not flops.is_counted(config.lm):
    return None

  def count(batch):
    pairs = 'chosen_tokens' in batch
    responses = batch['chosen_tokens' if pairs else 'response_tokens']
    prompts, rows, prompt_length, length = _rows(
      batch['prompt_tokens'], responses
    )
    shapes = Shapes(
      prompts,
      2 * rows if pairs else rows,
      prompt_length,
      length,
      batch['cf_embeddings'].shape[1],
    )
    return flops.update_flops(reward_forward(config, shapes))

  return count


def reinforce_flops(
  config: RecommenderConfig, *, trained_share: float = 1.0, lora_rank: int = 0
) -> Callable[[Rollout], UpdateFlops] | None:
  """Rollout -> FLOPs of an iteration; None for a model that is not counted.

  The policy's work: drawing the responses (up to the longest one, where the
  sampler stops), the anchor's log-probabilities, and the update. What the
  reward models take is left out.
  """
  if not flops.is_counted(config.lm):
    return None

  def count(rollout):
    parts = reinforce_parts(
      config,
      rollout_shapes(rollout),
      steps=int(np.asarray(rollout.response_mask).sum(axis=1).max()),
      trained_share=trained_share,
      lora_rank=lora_rank,
    )
    fields = ('forward', 'backward', 'recomputed')
    return UpdateFlops(
      *(sum(getattr(part, name) for part in parts.values()) for name in fields)
    )

  return count


def of_algorithm(
  algorithm: Algorithm, config: RecommenderConfig, state: TrainState
) -> Callable[[Rollout], float] | None:
  """What MFU counts of an iteration of RL; None where nobody counts it.

  Updates of several passes or of other models are not counted.
  """
  if not isinstance(algorithm, ReinforceConfig):
    return None
  if algorithm.baseline == 'value':
    return None
  return model_flops(reinforce_flops(config, **trained_part(state)))


def reinforce_parts(
  config: RecommenderConfig,
  shapes: Shapes,
  *,
  steps: int | None = None,
  trained_share: float = 1.0,
  lora_rank: int = 0,
) -> dict[str, UpdateFlops] | None:
  """FLOPs of an iteration: 'prefill', 'decode', 'anchor' and 'update'.

  Args:
    config: of policy and anchor.
    shapes: of a rollout.
    steps: tokens drawn of each response; all of its length by default.
    trained_share, lora_rank: of the policy.
  Returns:
    None for a model that no rule counts.
  """
  if not flops.is_counted(config.lm):
    return None
  lm, rank = flops.sizes_of(config.lm), {'lora_rank': lora_rank}
  forward = recommender_forward(config, shapes, **rank)
  prefill = flops.prefill_flops(lm, shapes, adapter=config.adapter, **rank)
  steps = shapes.response_length if steps is None else steps
  drawn = flops.decode_flops(lm, shapes, steps, **rank)
  return {
    'prefill': UpdateFlops(prefill.total, 0.0, 0.0),
    'decode': UpdateFlops(drawn.total, 0.0, 0.0),
    'anchor': UpdateFlops(forward.total, 0.0, 0.0),
    'update': flops.update_flops(forward, trained_share=trained_share),
  }


def rollout_shapes(rollout: Rollout) -> Shapes:
  """The shapes of a rollout's arrays."""
  return Shapes(
    *_rows(rollout.prompt_tokens, rollout.response_tokens),
    vectors=rollout.cf_embeddings.shape[1],
  )


def recommender_forward(
  config: RecommenderConfig, shapes: Shapes, *, lora_rank: int = 0
) -> Flops:
  """FLOPs of a recommender's log-probabilities of responses."""
  return flops.forward_flops(
    flops.sizes_of(config.lm),
    shapes,
    adapter=config.adapter,
    lora_rank=lora_rank,
  )


def reward_forward(config: RewardModelConfig, shapes: Shapes) -> Flops:
  """FLOPs of a reward model's scores.

  It reads one position more than the response has, scores the response's
  tokens, and reads everything twice where it contrasts the user.
  """
  lm = flops.sizes_of(config.lm)
  longer = Shapes(
    shapes.prompts,
    shapes.rows,
    shapes.prompt_length,
    shapes.response_length + 1,
    shapes.vectors,
  )
  positions = shapes.rows * shapes.response_length
  read = flops.forward_flops(
    lm, longer, adapter=config.adapter, scored=False
  ) + flops.logits_flops(lm, positions)
  width = config.lm.d_model
  features = 2 if config.contrasts_user else 1
  head = 2 * positions * width * (width + features + config.num_heads)
  return read.times(features) + Flops(adapters=head)


def trained_part(state: TrainState) -> dict[str, float]:
  """What of a model trains: `trained_share` and `lora_rank`.

  Biases, norms, adapters and LoRA factors have no share: their gradients take
  no product of the size of a layer's.
  """
  trained = _weights(state.params)
  whole = trained + _weights(state.frozen)
  return {
    'trained_share': trained / whole if whole else 0.0,
    'lora_rank': max(_rank(state.params), _rank(state.frozen)),
  }


def _rank(state: nnx.State) -> int:
  """The rank of a state's LoRA factors; 0 without any."""
  for path, variable in nnx.to_flat_state(state):
    if path[-1] == 'lora_a':
      return variable.get_value().shape[-1]
  return 0


def _weights(state: nnx.State) -> int:
  return sum(
    math.prod(variable.get_value().shape)
    for path, variable in nnx.to_flat_state(state)
    if path[-1] == 'kernel' and 'adapters' not in parameter_name(path)
  )


def _rows(prompts, responses) -> tuple[int, int, int, int]:
  """B, R, P and L of token arrays."""
  return (
    prompts.shape[0],
    responses.shape[0],
    prompts.shape[1],
    responses.shape[1],
  )
