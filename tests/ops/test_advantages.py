import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.ops import advantages


def _loop_leave_one_out(returns, valid, group_size):
  """By definition, one row at a time."""
  found = []
  for row in range(len(returns)):
    start = row - row % group_size
    group = [
      returns[other]
      for other in range(start, start + group_size)
      if other != row and valid[other]
    ]
    batch = [
      returns[other]
      for other in range(len(returns))
      if other != row and valid[other]
    ]
    found.append(np.mean(group or batch or [0.0]))
  return np.array(found)


@pytest.mark.parametrize('seed', range(4))
def test_leave_one_out_equals_its_definition(seed):
  generator = np.random.default_rng(seed)
  returns = generator.normal(size=12).astype(np.float32)
  valid = generator.random(12) < 0.5
  found = advantages.baselines(
    jnp.where(valid, returns, jnp.nan),
    valid=jnp.asarray(valid),
    group_size=3,
    baseline='leave_one_out',
  )
  expected = _loop_leave_one_out(returns, valid, 3)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_group_and_batch_means_skip_invalid_rows():
  returns = jnp.array([1.0, 3.0, jnp.nan, 8.0])
  valid = jnp.array([True, True, False, True])
  group = advantages.baselines(
    returns, valid=valid, group_size=2, baseline='group_mean'
  )
  np.testing.assert_array_equal(group, [2, 2, 8, 8])
  batch = advantages.baselines(
    returns, valid=valid, group_size=2, baseline='batch_mean'
  )
  np.testing.assert_array_equal(batch, [4, 4, 4, 4])
  none = advantages.baselines(
    returns, valid=valid, group_size=2, baseline='none'
  )
  np.testing.assert_array_equal(none, np.zeros(4))


def _standardised(values, **options):
  mean, deviation = advantages.location_and_scale(values, **options)
  return np.asarray((values - mean) / deviation)


def test_standardise_per_batch_and_per_group():
  values = jnp.array([1.0, 3.0, 10.0, 30.0, jnp.nan, 5.0])
  valid = jnp.array([True, True, True, True, False, True])
  kept = np.asarray(valid)
  groups = _standardised(values, valid=valid, group_size=2, over='group')
  np.testing.assert_allclose(groups[kept], [-1, 1, -1, 1, 0], atol=1e-5)
  batch = _standardised(values, valid=valid, group_size=2, over='batch')
  left = np.array([1.0, 3.0, 10.0, 30.0, 5.0])
  expected = (left - left.mean()) / left.std()
  np.testing.assert_allclose(batch[kept], expected, rtol=1e-5)
  none = _standardised(values, valid=valid, group_size=2, over='none')
  np.testing.assert_array_equal(none[kept], left)


def test_equal_rewards_give_zero_advantages():
  values = jnp.full(4, 0.1)
  for over in ('batch', 'group'):
    found = _standardised(
      values, valid=jnp.ones(4, bool), group_size=2, over=over
    )
    np.testing.assert_allclose(found, np.zeros(4), atol=0.02)


def test_token_advantages_by_hand():
  returns, baseline = jnp.array([5.0, 1.0]), jnp.array([2.0, 0.0])
  penalties = jnp.array([[1.0, 2.0, jnp.nan], [0.5, 0.5, 0.5]])
  mask = jnp.array([[True, True, False], [True, True, True]])
  whole = advantages.token_advantages(
    returns, baseline, penalties, response_mask=mask
  )
  np.testing.assert_allclose(whole, [[0, 0, 0], [-0.5, -0.5, -0.5]])
  to_go = advantages.token_advantages(
    returns, baseline, penalties, response_mask=mask, credit='to_go'
  )
  np.testing.assert_allclose(to_go, [[0, 1, 0], [-0.5, 0, 0.5]])


@pytest.mark.parametrize(
  'options,named',
  [
    ({'group_size': 3, 'baseline': 'none'}, 'divide the 4 rows, got 3'),
    ({'group_size': 1, 'baseline': 'leave_one_out'}, 'group_size 1'),
    ({'group_size': 2, 'baseline': 'median'}, 'median'),
  ],
)
def test_bad_options_are_named(options, named):
  with pytest.raises(ValueError, match=named):
    advantages.baselines(jnp.zeros(4), valid=jnp.ones(4, bool), **options)


def test_generalised_advantages_by_hand():
  """Two tokens and three; V = 0 after the last one of each."""
  rewards = jnp.array([[0.0, 4.0, jnp.nan], [1.0, 0.0, 2.0]])
  values = jnp.array([[1.0, 2.0, jnp.nan], [3.0, 1.0, 5.0]])
  mask = jnp.array([[True, True, False], [True, True, True]])
  # deltas: [0 + 2 - 1, 4 - 2] and [1 + 1 - 3, 0 + 5 - 1, 2 - 5]
  for decay, expected in (
    (0.0, [[1, 2, 0], [-1, 4, -3]]),
    (1.0, [[3, 2, 0], [0, 1, -3]]),
    (0.5, [[2, 2, 0], [-1 + 2 - 0.75, 4 - 1.5, -3]]),
  ):
    found = jax.jit(
      lambda r, v, d=decay: advantages.generalised_advantages(
        r, v, response_mask=mask, decay=d
      )
    )(rewards, values)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_with_decay_one_they_are_returns_to_go_less_values():
  generator = np.random.default_rng(0)
  rewards, values = jnp.asarray(generator.normal(size=(2, 4, 5)), jnp.float32)
  mask = jnp.arange(5)[None, :] < jnp.array([5, 3, 1, 0])[:, None]
  found = advantages.generalised_advantages(rewards, values, response_mask=mask)
  for row in range(4):
    for column in range(5):
      to_go = np.where(mask[row], rewards[row], 0)[column:].sum()
      expected = to_go - values[row, column] if mask[row, column] else 0.0
      np.testing.assert_allclose(found[row, column], expected, atol=1e-5)


def test_generalised_advantages_take_no_gradient_from_values():
  ones = jnp.ones((2, 3))
  loss = lambda values: advantages.generalised_advantages(
    ones, values, response_mask=ones > 0
  ).sum()
  assert not np.any(jax.grad(loss)(ones))


def test_a_decay_out_of_range_is_refused():
  ones = jnp.ones((1, 2))
  with pytest.raises(ValueError, match=r'decay must be in \[0, 1\], got 1.5'):
    advantages.generalised_advantages(
      ones, ones, response_mask=ones > 0, decay=1.5
    )
