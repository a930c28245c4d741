"""FLOPs of the jobs' steps against compiled programs of the same losses."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from p4lm.models import flops, lora
from p4lm.models.adapter import AdapterConfig
from p4lm.models.flops import Shapes
from p4lm.models.recommender import Recommender, RecommenderConfig
from p4lm.models.reward_model import RewardModel, RewardModelConfig
from p4lm.models.selection import split_trainable
from p4lm.models.t5 import T5Config
from p4lm.rewards.losses import make_reward_loss
from p4lm.rl.rollouts import Rollout
from p4lm.runs import step_flops
from p4lm.training.state import TrainState

LM = T5Config(
  vocab_size=2048,
  d_model=512,
  d_ff=1024,
  num_heads=4,
  d_kv=64,
  num_encoder_layers=1,
  num_decoder_layers=1,
  scan_unroll=0,
)
ADAPTER = AdapterConfig(cf_width=32, hidden_width=256)
CONFIG = RecommenderConfig(LM, ADAPTER, soft_token_id=3)


def abstract(shape, dtype=jnp.int32):
  return jax.ShapeDtypeStruct(shape, dtype)


def prompts_of(rows=4, length=48, vectors=2):
  return {
    'prompt_tokens': abstract((rows, length)),
    'cf_embeddings': abstract((rows, vectors, 32), jnp.float32),
    'cf_kind_ids': abstract((rows, vectors)),
  }


@pytest.mark.parametrize('kind', ['nli', 'appeal', 'personalization'])
def test_a_reward_update_within_five_per_cent(kind):
  pairs = kind != 'nli'
  sides = {'chosen_tokens': abstract((4, 32)), 'rejected_tokens': None}
  sides['rejected_tokens'] = sides['chosen_tokens']
  points = {'response_tokens': abstract((4, 32))}
  points['labels'] = abstract((4,), jnp.float32)
  batch = {**prompts_of(), **(sides if pairs else points)}
  config = RewardModelConfig(LM, ADAPTER, soft_token_id=3, kind=kind)
  model = nnx.eval_shape(lambda: RewardModel(config, rngs=nnx.Rngs(0)))
  graphdef, params = nnx.split(model)

  def apply_fn(params, frozen, *inputs):
    return nnx.merge(graphdef, params)(*inputs)

  loss_fn = make_reward_loss(kind, apply_fn)
  gradient = jax.jit(
    jax.grad(lambda params, batch: loss_fn(params, None, batch, None)[0])
  )
  found = gradient.lower(params, batch).compile().cost_analysis()['flops']
  counted = step_flops.reward_update_flops(config)(batch)
  assert counted.executed == pytest.approx(found, rel=0.05)
  assert step_flops.model_flops(lambda _: counted)(batch) == counted.model


def test_an_rl_iteration_is_its_parts():
  mask = np.zeros((8, 32), bool)
  mask[3, :20] = True
  rollout = Rollout(
    **prompts_of(),
    response_tokens=abstract((8, 32)),
    response_mask=mask,
    behavior_logps=None,
    reference_logps=None,
    rewards=None,
    valid=None,
  )
  shapes = Shapes(4, 8, 48, 32, 2)
  sizes = flops.sizes_of(LM)
  forward = flops.forward_flops(sizes, shapes, adapter=ADAPTER).total
  prefill = flops.prefill_flops(sizes, shapes, adapter=ADAPTER).total
  counted = step_flops.reinforce_flops(CONFIG)(rollout)
  # The sampler stops after the longest response, of 20 tokens.
  drawn = prefill + 20 * flops.decode_flops(sizes, shapes, 1).total
  assert counted.model == pytest.approx(drawn + forward + 3 * forward)


def state_of(model, stage):
  _, params, frozen = split_trainable(model, stage)
  return TrainState(None, params, frozen, None, None)


def test_what_trains_of_a_model():
  model = nnx.eval_shape(lambda: Recommender(CONFIG, rngs=nnx.Rngs(0)))
  part = lambda stage: step_flops.trained_part(state_of(model, stage))
  assert part('full') == {'trained_share': 1.0, 'lora_rank': 0}
  assert part('adapters') == {'trained_share': 0.0, 'lora_rank': 0}
  # Of one encoder layer, one decoder layer and the logits, by hand.
  attention, ffn = 4 * 512 * 256, 3 * 512 * 1024
  whole = 3 * attention + 2 * ffn + 512 * 2048
  logits = part('re:logits_dense')['trained_share']
  assert logits == pytest.approx(512 * 2048 / whole)

  def with_lora():
    model = Recommender(CONFIG, rngs=nnx.Rngs(0))
    lora.apply_lora(model, rank=4, alpha=8, rngs=nnx.Rngs(1))
    return model

  found = step_flops.trained_part(state_of(nnx.eval_shape(with_lora), 'lora'))
  assert found == {'trained_share': 0.0, 'lora_rank': 4}


def test_a_model_that_no_rule_counts_has_no_flops():
  @dataclasses.dataclass
  class Unknown:
    lm: object = None
    adapter: object = None

  assert step_flops.supervised_flops(Unknown()) is None
  assert step_flops.reward_update_flops(Unknown()) is None
  assert step_flops.reinforce_flops(Unknown()) is None
  assert step_flops.model_flops(None) is None


def test_a_supervised_batch_is_counted_by_its_shapes():
  batch = {**prompts_of(), 'response_tokens': abstract((4, 32))}
  counted = step_flops.supervised_flops(CONFIG)(batch)
  shapes = Shapes(4, 4, 48, 32, 2)
  forward = flops.forward_flops(flops.sizes_of(LM), shapes, adapter=ADAPTER)
  assert counted.model == 3 * forward.total
