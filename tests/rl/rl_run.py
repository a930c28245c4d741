"""Runs `train_rl` on a tiny world, as far as told or until it is killed.

    python rl_run.py WORLD OUTPUT_DIR NAME STEPS KILL_AT

kills itself without warning in iteration KILL_AT, when its rollout has been
collected and logged nowhere yet.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from p4lm.jobs import train_rl
from p4lm.rewards.joint import JointRewardConfig
from p4lm.rewards.weightings import WeightingConfig
from p4lm.rl.critics import CriticConfig
from p4lm.rl.eos import EosContract
from p4lm.rl.kl_anchoring import AdaptiveKl, ReferenceConfig
from p4lm.rl.ppo import PpoConfig
from p4lm.rl.rebel import RebelConfig
from p4lm.rl.reinforce import ReinforceConfig
from p4lm.rl.replay import ReplayConfig
from p4lm.rl.sac import SacConfig
from p4lm.runs import rl_iteration
from p4lm.runs.fitting import FitConfig
from p4lm.training.optimizers import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Run:
  """An algorithm and what goes with it.

  Attributes:
    algorithm: of `train_rl`.
    options: its further arguments.
    stage: what trains.
    mesh_shape: of the run.
    functions: rewards beside the world's.
  """

  algorithm: object
  options: Mapping = dataclasses.field(default_factory=dict)
  stage: str = 'full'
  mesh_shape: str = 'data=1'
  functions: Mapping = dataclasses.field(default_factory=dict)


def brevity(request):
  # Of the size of other rewards, whose rounding the tests' limits are for.
  return -len(request.text) / 64.0


RUNS = {
  'reinforce': Run(
    ReinforceConfig(), {'reference': ReferenceConfig('previous', every=2)}
  ),
  'ppo': Run(
    PpoConfig(),
    {
      'reference': ReferenceConfig('moving_average', decay=0.5),
      'kl_control': AdaptiveKl(target=0.1),
    },
  ),
  'sac': Run(
    SacConfig(
      critic=CriticConfig(updates=2, dropout=0.1, dropout_samples=2),
      replay=ReplayConfig(capacity=24, rows=8),
      policy_updates=2,
    )
  ),
  'conditioned': Run(
    ReinforceConfig(),
    {'weighting': WeightingConfig(levels=4)},
    functions={'brevity': brevity},
  ),
  'rebel': Run(RebelConfig(minibatches=2, epochs=2), stage='lora'),
}


def run(
  world: Path,
  output_dir: Path,
  chosen: Run,
  steps: int,
  optimizer: OptimizerConfig | None = None,
) -> None:
  """`train_rl` from the world's SFT model against its reward."""
  train_rl.train_rl(
    data_dir=str(world / 'data'),
    output_dir=str(output_dir),
    checkpoint=str(world / ('sft_lora' if chosen.stage == 'lora' else 'sft')),
    rewards={'appeal': str(world / 'appeal'), **chosen.functions},
    joint_reward=JointRewardConfig(
      weights={'appeal': 1.0, **dict.fromkeys(chosen.functions, 1.0)}
    ),
    eos_contract=EosContract('score_anyway'),
    training=FitConfig(
      stage=chosen.stage,
      optimizer=optimizer or OptimizerConfig(learning_rate=1e-2),
      steps=steps,
      seed=5,
      mesh_shape=chosen.mesh_shape,
      log_every=1,
      checkpoint_every=2,
    ),
    batch_size=4,
    num_samples=2,
    algorithm=chosen.algorithm,
    **chosen.options,
  )


def die_in(iteration: int) -> None:
  """Kills this process in the given iteration, counted from 1."""
  collect, begun = rl_iteration.collect_rollout, []

  def collect_and_die(*args, **kwargs):
    collected = collect(*args, **kwargs)
    begun.append(None)
    if len(begun) == iteration:
      os.kill(os.getpid(), signal.SIGKILL)
    return collected

  rl_iteration.collect_rollout = collect_and_die


if __name__ == '__main__':
  world, output_dir, name, steps, kill_at = sys.argv[1:]
  die_in(int(kill_at))
  run(Path(world), Path(output_dir), RUNS[name], int(steps))
