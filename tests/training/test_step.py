import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_problem

from p4lm.errors import UserError
from p4lm.training.state import TrainState
from p4lm.training.step import make_train_step


def weighted_loss(params, frozen, batch, key):
  """Mean over unmasked tokens, as of a language model."""
  del frozen, key
  error = (batch['x'] @ params['w'] - batch['y']) ** 2
  count = batch['mask'].sum()
  loss = jnp.sum(jnp.where(batch['mask'], error, 0.0)) / jnp.maximum(count, 1)
  return loss, {
    'loss_weight': count,
    'tokens': count,
    'largest': jnp.max(batch['x']),
  }


def plain_loss(params, frozen, batch, key):
  del frozen, key
  error = (batch['x'] @ params['w'] - batch['y']) ** 2
  return jnp.mean(error), {}


def regression_batch(rows=8):
  generator = np.random.default_rng(0)
  x = generator.normal(size=(rows, 3)).astype(np.float32)
  mask = np.array([1, 0, 0, 1, 1, 1, 0, 1] * (rows // 8), bool)
  return {'x': x, 'y': x @ np.array([1.0, -2.0, 0.5], np.float32), 'mask': mask}


def regression_state(optimizer):
  return TrainState.create({'w': jnp.zeros(3)}, optimizer, jax.random.key(0))


def test_sgd_makes_the_step_of_the_hand_written_gradient():
  optimizer = optax.sgd(0.1)
  batch = regression_batch()
  step_fn = make_train_step(plain_loss, optimizer)
  state, metrics = step_fn(regression_state(optimizer), batch)
  gradient = -2 * batch['x'].T @ batch['y'] / 8
  np.testing.assert_allclose(state.params['w'], -0.1 * gradient, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], np.mean(batch['y'] ** 2), 1e-5)
  np.testing.assert_allclose(
    metrics['grad_norm'], np.linalg.norm(gradient), rtol=1e-5
  )
  assert int(state.step) == 1


@pytest.mark.parametrize('loss_fn', [plain_loss, weighted_loss])
@pytest.mark.parametrize('accumulate', [2, 4])
def test_accumulation_equals_one_big_batch(loss_fn, accumulate):
  optimizer = optax.sgd(0.1)
  batch = regression_batch()
  whole, parts = (
    make_train_step(loss_fn, optimizer, accumulate=a)(
      regression_state(optimizer), batch
    )
    for a in (1, accumulate)
  )
  np.testing.assert_allclose(
    parts[0].params['w'], whole[0].params['w'], rtol=1e-5
  )
  for name in ('loss', 'grad_norm'):
    np.testing.assert_allclose(parts[1][name], whole[1][name], rtol=1e-5)
  if loss_fn is weighted_loss:
    assert float(parts[1]['tokens']) == float(whole[1]['tokens']) == 5


def test_an_update_without_any_weight_changes_nothing():
  optimizer = optax.sgd(0.1)
  batch = {**regression_batch(), 'mask': np.zeros(8, bool)}
  step_fn = make_train_step(weighted_loss, optimizer, accumulate=2)
  state, metrics = step_fn(regression_state(optimizer), batch)
  np.testing.assert_array_equal(state.params['w'], 0.0)
  assert float(metrics['loss']) == 0.0


def test_microbatches_must_divide_the_batch():
  step_fn = make_train_step(plain_loss, optax.sgd(0.1), accumulate=3)
  with pytest.raises(UserError, match='accumulate=3.*batch of 8'):
    step_fn(regression_state(optax.sgd(0.1)), regression_batch())


def test_frozen_leaves_are_bit_identical_and_not_used_up():
  state = toy_problem.initial_state()
  frozen = state.frozen['mixer']
  before = np.array(frozen)
  step_fn = toy_problem.make_step()
  for step in range(3):
    state, _ = step_fn(state, toy_problem.batch_of(step))
  assert state.frozen['mixer'] is frozen
  np.testing.assert_array_equal(frozen, before)
  kernel = state.params['dense']['kernel']
  assert not np.array_equal(kernel, [1.0, 2.0, 3.0])


def test_the_callers_parameters_survive_the_first_step():
  params = {'w': jnp.ones(3)}
  optimizer = optax.sgd(0.1)
  state = TrainState.create(params, optimizer, jax.random.key(0))
  make_train_step(plain_loss, optimizer)(state, regression_batch())
  np.testing.assert_array_equal(params['w'], 1.0)
  assert state.params['w'].is_deleted()


def test_randomness_depends_on_the_step_and_not_on_the_path_to_it():
  batch = toy_problem.batch_of(0)
  step_fn = toy_problem.make_step()
  _, first = step_fn(toy_problem.initial_state(), batch)
  _, again = step_fn(toy_problem.initial_state(), batch)
  _, other = step_fn(toy_problem.initial_state(seed=1), batch)
  later = toy_problem.initial_state()
  later = TrainState(
    later.step + 1, later.params, later.frozen, later.opt_state, later.key
  )
  _, next_step = step_fn(later, batch)
  losses = [float(m['loss']) for m in (first, again, other, next_step)]
  assert losses[0] == losses[1]
  assert len(set(losses)) == 3


def test_the_learning_rate_is_that_of_the_update():
  schedule = optax.linear_schedule(1.0, 0.0, 4)
  optimizer = optax.sgd(schedule)
  step_fn = make_train_step(plain_loss, optimizer, schedule=schedule)
  state, rates = regression_state(optimizer), []
  for _ in range(3):
    state, metrics = step_fn(state, regression_batch())
    rates.append(float(metrics['learning_rate']))
  assert rates == [1.0, 0.75, 0.5]


def test_the_update_can_be_compiled_ahead_for_abstract_arguments():
  state, batch = toy_problem.initial_state(), toy_problem.batch_of(0)
  abstract = jax.eval_shape(lambda: (state, batch))
  compiled = toy_problem.make_step().lower(*abstract).compile()
  assert compiled.memory_analysis() is not None


_FOUR_DEVICES = """
import jax, numpy as np, optax, sys
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
sys.path.insert(0, sys.argv[1])
import test_step
from p4lm.training.state import TrainState
from p4lm.training.step import make_train_step

assert jax.device_count() == 4
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ('data', 'model'))

def loss(params, frozen, batch, key):
  hidden = jnp.tanh(batch['x'] @ params['w'])
  return jnp.mean((hidden.sum(-1) - batch['y']) ** 2), {}

def run(sharded, name, accumulate):
  optimizer = getattr(optax, name)(0.01)
  w = jnp.linspace(-1, 1, 3 * 4).reshape(3, 4)
  batch_sharding = None
  if sharded:
    w = jax.device_put(w, NamedSharding(mesh, P(None, 'model')))
    batch_sharding = NamedSharding(mesh, P('data'))
  state = TrainState.create({'w': w}, optimizer, jax.random.key(0))
  step_fn = make_train_step(
    loss, optimizer, accumulate=accumulate, batch_sharding=batch_sharding)
  losses = []
  for _ in range(3):
    state, metrics = step_fn(state, test_step.regression_batch())
    losses.append(float(metrics['loss']))
  return losses, state

for name in ('adam', 'adafactor'):
  for accumulate in (1, 2):
    alone, _ = run(False, name, accumulate)
    losses, state = run(True, name, accumulate)
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    assert state.params['w'].sharding.spec == P(None, 'model')
    moments = [m for m in jax.tree.leaves(state.opt_state) if m.shape == (3, 4)]
    assert moments
    assert all(m.sharding.spec == P(None, 'model') for m in moments), moments
print('same losses')
"""


def test_four_devices_give_one_devices_losses():
  import os
  import pathlib
  import subprocess
  import sys

  flags = '--xla_force_host_platform_device_count=4'
  result = subprocess.run(
    [sys.executable, '-c', _FOUR_DEVICES, str(pathlib.Path(__file__).parent)],
    env={**os.environ, 'XLA_FLAGS': flags},
    capture_output=True,
    text=True,
  )
  assert result.stdout.strip() == 'same losses', result.stderr[-2000:]


def test_a_plan_is_several_updates_in_one_step():
  """Two halves one after the other, as two steps would take them."""
  optimizer = optax.adam(0.1)
  batch = regression_batch()
  seen = []

  def plan(params, frozen, batch, key):
    del frozen
    seen.append((params['w'].shape, jax.random.key_data(key).shape))
    return jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), batch)

  planned = make_train_step(weighted_loss, optimizer, plan=plan)
  state, metrics = planned(regression_state(optimizer), batch)
  single = make_train_step(weighted_loss, optimizer)
  expected, losses = regression_state(optimizer), []
  for half in (slice(0, 4), slice(4, 8)):
    expected, found = single(
      expected, jax.tree.map(lambda x, half=half: x[half], batch)
    )
    losses.append(float(found['loss']))
  np.testing.assert_allclose(state.params['w'], expected.params['w'], rtol=1e-6)
  np.testing.assert_allclose(metrics['loss'], np.mean(losses), rtol=1e-6)
  assert float(metrics['tokens']) == batch['mask'].sum()
  assert int(state.step) == 1
  assert seen == [((3,), (2,))]


def test_microbatches_keep_what_belongs_to_a_row_together():
  """Four prompts of three samples: each microbatch has whole groups."""

  def loss_fn(params, frozen, batch, key):
    del frozen, key
    samples = batch['samples'].reshape(len(batch['prompts']), 3)
    error = samples - params['w'][0] - batch['prompts'][:, None]
    return jnp.mean(error**2), {'worst': jnp.max(jnp.abs(error))}

  prompts = np.arange(4, dtype=np.float32)
  batch = {'prompts': prompts, 'samples': np.repeat(prompts, 3) + 1}
  optimizer = optax.sgd(0.1)
  step_fn = make_train_step(loss_fn, optimizer, accumulate=2)
  _, metrics = step_fn(regression_state(optimizer), batch)
  assert float(metrics['worst']) == 1
  uneven = {'prompts': prompts, 'samples': np.ones(13, np.float32)}
  with pytest.raises(UserError, match='13 rows.*multiple of the batch of 4'):
    step_fn(regression_state(optimizer), uneven)
