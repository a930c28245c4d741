"""Whole runs of the job: killed and started again, and compiled once."""

import contextlib
import dataclasses
import json
import logging
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import rl_run  # noqa: E402
import tiny_run  # noqa: E402

from p4lm.checkpoints.manager import CheckpointStore  # noqa: E402
from p4lm.errors import UserError  # noqa: E402
from p4lm.rl.rebel import RebelConfig  # noqa: E402
from p4lm.training.leaf_names import named_leaves  # noqa: E402


@pytest.fixture(name='world', scope='module')
def _world(tmp_path_factory):
  root = tmp_path_factory.mktemp('world')
  tiny_run.make_tiny_run(root)
  return root


def _saved(directory):
  """Every array of the newest checkpoint, and its step."""
  store = CheckpointStore(directory / 'checkpoints')
  step, items = store.restore_any()
  return step, {
    f'{item}/{name}': np.asarray(array)
    for item, arrays in items.items()
    for name, array in arrays.items()
  }


def _metrics(directory):
  lines = (directory / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@contextlib.contextmanager
def compilations(monkeypatch, caplog):
  """[programs compiled before each iteration, ..., in all] of a run."""
  count = lambda: sum(
    'Finished XLA compilation' in record.getMessage()
    for record in caplog.records
  )
  found, collect = [], rl_run.rl_iteration.collect_rollout

  def collect_and_count(*args, **kwargs):
    found.append(count())
    return collect(*args, **kwargs)

  with monkeypatch.context() as patch, jax.log_compiles():
    patch.setattr(rl_run.rl_iteration, 'collect_rollout', collect_and_count)
    with caplog.at_level(logging.WARNING, logger='jax'):
      yield found
  found.append(count())


@pytest.mark.parametrize('name', rl_run.RUNS)
def test_killed_and_started_again_changes_no_bit(
  name, world, tmp_path, monkeypatch, caplog
):
  """Four iterations at once; two, a lost third, kill -9, and two again."""
  chosen = rl_run.RUNS[name]
  with compilations(monkeypatch, caplog) as compiled_before:
    rl_run.run(world, tmp_path / 'whole', chosen, 4)
  # Before each of four iterations, and in all.
  assert compiled_before[1] > compiled_before[0]
  assert compiled_before[2] == compiled_before[3] == compiled_before[4]

  command = [sys.executable, str(HERE / 'rl_run.py'), str(world)]
  died = subprocess.run(
    [*command, str(tmp_path / 'killed'), name, '4', '4'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
  assert _saved(tmp_path / 'killed')[0] == 2
  rl_run.run(world, tmp_path / 'killed', chosen, 4)

  (step, whole), (again_step, again) = (
    _saved(tmp_path / which) for which in ('whole', 'killed')
  )
  assert step == again_step == 4
  assert whole.keys() == again.keys()
  for key, array in whole.items():
    np.testing.assert_array_equal(array, again[key], err_msg=key)
  assert whole['rl/counters/prompts'] == 16
  assert whole['rl/counters/samples'] == 32
  samples = [
    (tmp_path / which / 'samples.jsonl').read_bytes()
    for which in ('whole', 'killed')
  ]
  assert samples[0] == samples[1]
  rows = _metrics(tmp_path / 'killed')
  assert [row['step'] for row in rows] == [1, 2, 3, 4]
  phases = {
    f'secs/{name}' for name in ('sample', 'judge', 'reference', 'update')
  }
  assert all(phases <= row.keys() for row in rows)


class _Seen(Exception):
  """Carries what a learner would have been made of."""


@dataclasses.dataclass(frozen=True)
class _Looking(RebelConfig):
  """Stops the job where it would begin."""

  def learner(self, bench):
    raise _Seen(bench)


def test_an_anchor_of_lora_holds_the_factors_alone(world, tmp_path):
  with pytest.raises(_Seen) as seen:
    rl_run.run(world, tmp_path, rl_run.Run(_Looking(), stage='lora'), 1)
  bench = seen.value.args[0]
  factors, base = bench.anchor.params
  fit = bench.step_of.__self__
  ours, policys = jax.tree.leaves(base), jax.tree.leaves(fit.state.frozen)
  assert len(ours) > 10
  assert all(mine is its for mine, its in zip(ours, policys, strict=True))
  names = named_leaves(factors)
  assert names and all('lora_' in name for name in names)
  # The policy's factors are its own: updates take their memory.
  for mine, its in zip(
    jax.tree.leaves(factors), jax.tree.leaves(fit.state.params), strict=True
  ):
    assert mine is not its
    np.testing.assert_array_equal(mine, its)


def test_samples_of_a_file_need_a_replay(world, tmp_path):
  chosen = rl_run.Run(
    RebelConfig(), {'offline_samples': str(tmp_path / 'samples.jsonl')}
  )
  with pytest.raises(UserError, match='an algorithm with a replay'):
    rl_run.run(world, tmp_path / 'out', chosen, 1)
