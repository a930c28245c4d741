"""Planned steps are those that jobs compile, and cost what paper says."""

from __future__ import annotations

import jax
import pytest

from p4lm.errors import UserError
from p4lm.models.t5 import T5Config
from p4lm.partitioning.mesh import make_mesh
from p4lm.pods import memory
from p4lm.pods.chips import chip_named
from p4lm.pods.topologies import Topology, get_topology
from p4lm.runs import planned_steps, pod_reports
from p4lm.runs.fitting import FitConfig
from p4lm.runs.planned_steps import ModelPlan
from p4lm.training.optimizers import OptimizerConfig

LM = T5Config(
  vocab_size=1024,
  d_model=256,
  d_ff=512,
  num_heads=4,
  d_kv=64,
  num_encoder_layers=2,
  num_decoder_layers=2,
  remat=True,
)
PLAN = ModelPlan(LM, prompt_length=48, response_length=32, cf_width=16)


def training(stage='full', **options):
  return FitConfig(stage, OptimizerConfig('adamw'), 10, 0, **options)


@pytest.fixture(scope='module')
def here():
  """This machine's first device, as if it were a pod of one chip."""
  devices = tuple(jax.devices()[:1])
  return Topology('here', chip_named('v5e'), devices, compiles=True)


def compiled(here, make, **options):
  mesh = make_mesh('data=1', devices=here.devices)
  steps = make(PLAN, mesh, **options)
  return steps, [
    one for s in steps for one in pod_reports.compiled_reports(s, here, mesh)
  ]


def test_the_update_of_train_lm(here):
  [step], [found] = compiled(
    here,
    planned_steps.supervised_steps,
    training=training(accumulate=2),
    batch_size=4,
  )
  assert (found.job, found.step, found.mesh) == ('train_lm', 'update', 'data=1')
  assert found.source == 'compiled' and found.fits
  # Products alone are counted on both sides: nothing is left to differ.
  assert found.flops == pytest.approx(found.paper_flops, rel=0.01)
  assert found.model_flops < found.paper_flops
  # Microbatches around the layers of encoder and decoder, there and back.
  assert sorted(found.loops.values()) == [2, 2, 2, 2, 2]
  # Parameters and two moments of each; the batch is some kilobytes.
  weights = memory.bytes_a_chip(step.state.params)
  state = memory.bytes_a_chip(step.state)
  assert state == pytest.approx(3 * weights, rel=1e-3)
  assert found.memory['arguments'] == pytest.approx(state, rel=1e-2)
  assert found.memory['aliased'] == pytest.approx(state, rel=1e-2)


def test_the_update_of_train_lm_with_lora(here):
  _, [found] = compiled(
    here,
    planned_steps.supervised_steps,
    training=training('lora'),
    batch_size=4,
    lora_rank=8,
  )
  assert found.flops == pytest.approx(found.paper_flops, rel=0.05)


def test_the_update_of_train_reward(here, kind='nli'):
  _, [found] = compiled(
    here,
    planned_steps.reward_steps,
    kind=kind,
    training=training(),
    batch_size=4,
  )
  assert found.job == f'train_reward {kind}'
  assert found.flops == pytest.approx(found.paper_flops, rel=0.05)


def test_the_parts_of_train_rl(here):
  steps, found = compiled(
    here,
    planned_steps.reinforce_steps,
    training=training(),
    batch_size=2,
    num_samples=4,
  )
  names = ['prefill', 'decode', 'anchor', 'update']
  assert [one.step for one in found] == names
  for one in found:
    assert one.flops == pytest.approx(one.paper_flops, rel=0.05), one.step
  # The optimizer and the anchor stay in memory while texts are drawn.
  policy = memory.bytes_a_chip(steps[0].state)
  assert found[0].memory['beside'] == pytest.approx(3 * policy, rel=1e-3)
  assert found[3].memory['beside'] == policy


def test_nothing_is_allocated():
  """A model of 1.2 trillion parameters is planned in a moment."""
  huge = T5Config(
    d_model=65536, d_ff=262144, num_heads=512, d_kv=128, remat=True
  )
  pod = get_topology('v5p:8x8x8')
  mesh = make_mesh('fsdp=128,model=4', devices=pod.devices)
  [step] = planned_steps.supervised_steps(
    ModelPlan(huge, 64, 64), mesh, training=training(), batch_size=128
  )
  [found] = pod_reports.paper_reports(step, pod, mesh, huge)
  whole = sum(leaf.size for leaf in jax.tree.leaves(step.state.params))
  assert whole > 1.2e12
  assert found.memory['arguments'] == pytest.approx(
    3 * 4 * whole / 512, rel=1e-3
  )
  assert found.fits


def test_a_plan_on_paper_counts_by_hand():
  pod = get_topology('v5e:2x2')
  mesh = make_mesh('fsdp=2,model=2', devices=pod.devices)
  [step] = planned_steps.supervised_steps(
    PLAN, mesh, training=training(), batch_size=4
  )
  [found] = pod_reports.paper_reports(step, pod, mesh, LM)
  rows = {(row['kind'], row['axes']): row for row in found.collectives}
  weights = sum(leaf.size for leaf in jax.tree.leaves(step.state.params))
  # Gathered forward and backward, float32, half of it on each model shard.
  assert rows['all-gather', 'fsdp']['bytes'] == 2 * 4 * weights / 2
  assert rows['reduce-scatter', 'fsdp']['bytes'] == 4 * weights / 2
  # Two a layer in the encoder, three in the decoder; forward, again for
  # remat, backward; two rows of 48 or 32 positions of width 256.
  stream = 3 * 2 * (2 * 2 * 48 + 3 * 2 * 32) * 256 * 4
  assert rows['all-reduce', 'model']['bytes'] == stream
  assert found.flops == found.paper_flops


def test_drawing_tokens_on_paper_counts_by_hand():
  pod = get_topology('v5e:2x2')
  mesh = make_mesh('fsdp=2,model=2', devices=pod.devices)
  steps = planned_steps.reinforce_steps(
    PLAN, mesh, training=training(), batch_size=4, num_samples=2
  )
  _, found = pod_reports.paper_reports(steps[0], pod, mesh, LM)
  rows = {(row['kind'], row['axes']): row for row in found.collectives}
  # Two decoder layers: eight maps of attention, three of the feed-forward; the
  # embeddings and the output.
  weights = 2 * (8 * 256 * 256 + 3 * 256 * 512) + 2 * 1024 * 256
  # Gathered once for all 32 tokens, float32, half of it on each model shard.
  assert rows['all-gather', 'fsdp']['bytes'] == 4 * weights / 2
  # Of two layers, keys and values of 4 heads of width 64 at 8 rows of 32 and
  # 4 prompts of 48 positions, over four chips.
  cache = 2 * 2 * 4 * 64 * (8 * 32 + 4 * 48) * 4 / 4
  held = found.memory['temporaries'] - 4 * weights / 2 - cache
  # What is left are a layer's arrays, which decoding has too.
  assert 0 < held < cache
  # Each token reads both.
  read = 32 * (4 * weights / 2 + cache) / chip_named('v5e').hbm_bandwidth
  assert read < found.secs['memory'] < 1.5 * read


@pytest.mark.parametrize(
  'mesh, message',
  [
    ('model=8', "'heads' axis of size 4 cannot be split over model=8"),
    ('data=8', 'BATCH_SIZE: the feature .* has 4 rows'),
  ],
)
def test_meshes_that_do_not_divide_are_refused_before_any_work(mesh, message):
  pod = get_topology('v5e:2x4')
  mesh = make_mesh(mesh, devices=pod.devices)
  with pytest.raises(UserError, match=message):
    planned_steps.supervised_steps(
      PLAN, mesh, training=training(), batch_size=4
    )
