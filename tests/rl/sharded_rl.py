"""Run by test_sharded_rl in a process with four fake devices.

    python sharded_rl.py WORLD OUTPUT_DIR

Runs two iterations of each algorithm on one device and on a mesh of four, and
prints as JSON how far they are apart.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import rl_run

from p4lm.checkpoints.manager import CheckpointStore
from p4lm.runs import rl_iteration
from p4lm.training.optimizers import OptimizerConfig

# Nearly linear in the gradient: Adam with a small eps would turn the rounding
# of a zero gradient into a whole step.
OPTIMIZER = OptimizerConfig(learning_rate=0.1, eps=1.0)


def run(world, directory, chosen):
  """Metrics, texts, parameters; and how the sampled tokens were divided."""
  collect, divided = rl_iteration.collect_rollout, []

  def watched(*args, **kwargs):
    collected = collect(*args, **kwargs)
    tokens = collected.rollout.response_tokens
    divided.append(tokens.sharding.shard_shape(tokens.shape)[0])
    return collected

  rl_iteration.collect_rollout = watched
  try:
    rl_run.run(world, directory, chosen, 2, OPTIMIZER)
  finally:
    rl_iteration.collect_rollout = collect
  lines = (directory / 'metrics.jsonl').read_text().splitlines()
  texts = (directory / 'samples.jsonl').read_text().splitlines()
  _, items = CheckpointStore(directory / 'checkpoints').restore_any(['params'])
  return {
    'metrics': [json.loads(line) for line in lines],
    'texts': [json.loads(line)['text'] for line in texts],
    'params': {name: np.asarray(x) for name, x in items['params'].items()},
    'rows': divided,
  }


def compare(world, root, name, chosen):
  """How far the mesh's run is from one device's."""
  start = CheckpointStore(
    world / ('sft_lora' if chosen.stage == 'lora' else 'sft') / 'checkpoints'
  ).restore_any(['params'])[1]['params']
  found = {
    mesh: run(
      world,
      root / f'{name}{mesh}',
      dataclasses.replace(chosen, mesh_shape=mesh),
    )
    for mesh in ('data=1', 'data=2,model=2')
  }
  one, four = found.values()
  apart = lambda first, second: max(
    float(np.abs(np.asarray(first[key]) - np.asarray(second[key])).max())
    for key in second
  )
  return {
    'loss': [row['loss'] for row in one['metrics']],
    'losses_apart': [
      abs(first['loss'] - second['loss'])
      for first, second in zip(one['metrics'], four['metrics'])
    ],
    'same_texts': one['texts'] == four['texts'],
    'moved': apart(start, one['params']),
    'params_apart': apart(one['params'], four['params']),
    'rows': four['rows'],
  }


if __name__ == '__main__':
  assert jax.device_count() == 4
  world, root = map(Path, sys.argv[1:])
  report = {
    name: compare(world, root, name, chosen)
    for name, chosen in rl_run.RUNS.items()
  }
  print('REPORT', json.dumps(report))
