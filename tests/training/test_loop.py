"""The real loop with real checkpoints on a toy loss."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_problem

from p4lm.checkpoints.manager import CheckpointStore
from p4lm.errors import UserError
from p4lm.training import loop
from p4lm.training.metric_writers import MetricWriter, read_metrics
from p4lm.training.preemption import Preempted

STEPS = 12


@pytest.fixture(scope='module')
def step_fn():
  return toy_problem.make_step()


def run(directory, step_fn, steps=STEPS, **options):
  store = CheckpointStore(directory / 'checkpoints', keep=3)
  options = {
    'batches_from': toy_problem.batches_from,
    'log_every': 2,
    'checkpoint_every': 5,
    **options,
  }
  batches_from = options.pop('batches_from')
  return loop.train(
    toy_problem.initial_state(),
    step_fn,
    batches_from,
    steps=steps,
    checkpoints=store,
    metric_writer=MetricWriter(directory, tensorboard=False),
    **options,
  )


@pytest.fixture(scope='module')
def straight(tmp_path_factory, step_fn):
  """(final state, metrics) of a run that nothing interrupts."""
  directory = tmp_path_factory.mktemp('straight')
  state = run(directory, step_fn)
  return state, read_metrics(directory)


def assert_same_bits(state, expected):
  leaves, expected_leaves = (
    jax.tree.leaves(
      (s.step, s.params, s.frozen, s.opt_state, jax.random.key_data(s.key))
    )
    for s in (state, expected)
  )
  assert len(leaves) == len(expected_leaves)
  for leaf, other in zip(leaves, expected_leaves):
    assert leaf.dtype == other.dtype
    np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other))


def is_rate(name):
  return 'per_second' in name or name in ('mfu', 'goodput')


def values_of(metrics):
  """Metrics without the rates, which no two runs share."""
  return [
    {name: value for name, value in row.items() if not is_rate(name)}
    for row in metrics
  ]


def test_the_loop_is_its_steps_in_a_row(straight, step_fn):
  state = toy_problem.initial_state()
  losses = []
  for step in range(STEPS):
    state, metrics = step_fn(state, toy_problem.batch_of(step))
    losses.append(float(metrics['loss']))
  assert_same_bits(straight[0], state)
  logged = {row['step']: row['loss'] for row in straight[1]}
  # Log points are every second step, and the steps that are saved.
  assert list(logged) == [2, 4, 5, 6, 8, 10, 12]
  np.testing.assert_allclose(logged[4], np.mean(losses[2:4]), rtol=1e-6)
  np.testing.assert_allclose(logged[5], losses[4], rtol=1e-6)
  assert {'grad_norm', 'steps_per_second', 'tokens_per_second'} < set(
    straight[1][-1]
  )


@pytest.mark.parametrize('first', [5, 7, 11])
def test_stopping_and_going_on_gives_the_same_bits(
  first, straight, step_fn, tmp_path
):
  """2N steps equal N and a resumed N, wherever the first run ends."""
  run(tmp_path, step_fn, steps=first)
  state = run(tmp_path, step_fn)
  assert_same_bits(state, straight[0])


def test_metrics_after_the_restored_step_are_written_again(
  straight, step_fn, tmp_path
):
  with pytest.raises(RuntimeError, match='pulled'):
    run(tmp_path, step_fn, hooks=[loop.Hook(9, _raise)])
  assert [row['step'] for row in read_metrics(tmp_path)][-1] == 8
  asked = []

  def batches_from(step):
    asked.append(step)
    return toy_problem.batches_from(step)

  run(tmp_path, step_fn, batches_from=batches_from)
  assert asked == [5]
  assert values_of(read_metrics(tmp_path)) == values_of(straight[1])


def _raise(step, state):
  raise RuntimeError('the plug was pulled')


def test_a_finished_run_does_nothing_more(straight, step_fn, tmp_path):
  run(tmp_path, step_fn)
  before = (tmp_path / 'metrics.jsonl').read_bytes()
  state = run(tmp_path, step_fn, batches_from=None)
  assert_same_bits(state, straight[0])
  assert (tmp_path / 'metrics.jsonl').read_bytes() == before
  with pytest.raises(UserError, match='done 12 steps, more than STEPS=8'):
    run(tmp_path, step_fn, steps=8)


def poisoned_batches(at):
  """Batches from which step `at` (counted from 1) gets a NaN."""

  def batches_from(start):
    for step in itertools.count(start):
      batch = toy_problem.batch_of(step)
      if step == at - 1:
        batch['y'][0] = np.nan
      yield batch

  return batches_from


def test_a_nan_names_its_step_and_leaves_the_last_good_checkpoint(
  step_fn, tmp_path
):
  good = run(tmp_path / 'good', step_fn, steps=5)
  with pytest.raises(UserError) as error:
    run(
      tmp_path / 'bad', step_fn, batches_from=poisoned_batches(7), log_every=4
    )
  assert 'loss is nan at step 7' in str(error.value)
  assert 'the checkpoint of step 5 is good' in str(error.value)
  store = CheckpointStore(tmp_path / 'bad' / 'checkpoints')
  template = toy_problem.initial_state()
  step, items = store.restore(template.checkpoint_items())
  assert step == 5
  assert_same_bits(template.with_items(items), good)


def test_a_nan_before_the_first_checkpoint_is_never_saved(step_fn, tmp_path):
  with pytest.raises(UserError, match='at step 5; no checkpoint was saved'):
    run(tmp_path, step_fn, batches_from=poisoned_batches(5), log_every=100)
  assert CheckpointStore(tmp_path / 'checkpoints').latest_step() is None


def test_hooks_run_when_due_and_at_the_end_and_their_metrics_are_logged(
  step_fn, tmp_path
):
  seen = []

  def evaluate(step, state):
    seen.append((step, int(state.step)))
    return {'validation_loss': float(step)}

  run(tmp_path, step_fn, hooks=[loop.Hook(5, evaluate)])
  assert seen == [(5, 5), (10, 10), (12, 12)]
  logged = {
    row['step']: row['validation_loss']
    for row in read_metrics(tmp_path)
    if 'validation_loss' in row
  }
  assert logged == {5: 5.0, 10: 10.0, 12: 12.0}


def test_sigterm_saves_ends_cleanly_and_the_next_start_goes_on(
  straight, step_fn, tmp_path
):
  def terminate(step, state):
    if step == 7:
      os.kill(os.getpid(), signal.SIGTERM)

  handler = signal.getsignal(signal.SIGTERM)
  with pytest.raises(Preempted) as ended:
    run(tmp_path, step_fn, hooks=[loop.Hook(7, terminate)])
  assert ended.value.code == 143
  assert signal.getsignal(signal.SIGTERM) == handler
  # The hook ran after step 7 was done; the next poll is after step 8.
  assert CheckpointStore(tmp_path / 'checkpoints').latest_step() == 8
  assert_same_bits(run(tmp_path, step_fn), straight[0])


class _Counter:
  """Extra state: how many samples were drawn in all."""

  def __init__(self):
    self.drawn = 0

  def checkpoint_items(self):
    return {'rl': {'drawn': self.drawn, 'replay': jnp.full(3, self.drawn)}}

  def restore_items(self, items):
    self.drawn = items['rl']['drawn']
    np.testing.assert_array_equal(items['rl']['replay'], self.drawn)


def test_a_jobs_own_state_is_part_of_the_checkpoint(step_fn, tmp_path):
  for steps, before in ((5, 0), (8, 5)):
    counter = _Counter()

    def drawing_step(state, batch, counter=counter):
      counter.drawn += 2
      return step_fn(state, batch)

    run(tmp_path, drawing_step, steps=steps, extra_state=counter)
    assert counter.drawn == 2 * steps
    assert before < steps


def test_batches_that_end_are_an_error_and_are_closed(step_fn, tmp_path):
  closed = []

  def batches_from(start):
    try:
      for step in range(start, 3):
        yield toy_problem.batch_of(step)
    finally:
      closed.append(True)

  with pytest.raises(UserError, match='ended before step 4'):
    run(tmp_path, step_fn, batches_from=batches_from)
  assert closed == [True]


@pytest.mark.parametrize('name', ['log_every', 'checkpoint_every'])
def test_intervals_must_be_positive(name, step_fn, tmp_path):
  with pytest.raises(UserError, match=f'{name} must be at least 1, got 0'):
    run(tmp_path, step_fn, **{name: 0})


_KILLED = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
import test_loop, toy_problem
test_loop.run(pathlib.Path(sys.argv[2]), toy_problem.make_step(), steps=10**6,
              checkpoint_every=1)
"""


def test_kill_9_in_the_middle_of_a_save_loses_nothing(
  straight, step_fn, tmp_path
):
  """The process is killed while a step's temporary directory is there."""
  process = subprocess.Popen(
    [sys.executable, '-c', _KILLED, pathlib.Path(__file__).parent, tmp_path],
    stderr=subprocess.PIPE,
    text=True,
  )
  directory = tmp_path / 'checkpoints'
  deadline = time.monotonic() + 120
  while process.poll() is None and time.monotonic() < deadline:
    saved = {int(p.name) for p in directory.glob('*') if p.name.isdigit()}
    if saved and max(saved) >= 3 and _unfinished(directory):
      process.kill()
      break
    time.sleep(0.002)
  process.wait()
  assert process.returncode == -signal.SIGKILL, process.stderr.read()[-2000:]
  process.stderr.close()
  assert _unfinished(directory)
  latest = CheckpointStore(directory).latest_step()
  assert 3 <= latest < STEPS
  # The same parameters as a run that was never killed (which saved less often).
  state = run(tmp_path, step_fn)
  assert_same_bits(state, straight[0])
  assert not _unfinished(directory)


def _unfinished(directory):
  return [p.name for p in directory.glob('*') if 'tmp' in p.name]
