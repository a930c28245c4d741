"""The ELBO of users' latents against numerical integration, and two camps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, special, stats

from p4lm.ops import preference, variational

USERS = np.array([4, 9, 4, 4, -1])


@pytest.fixture(name='float64')
def _float64():
  with jax.enable_x64(True):
    yield


def points(width, rows=5, seed=0):
  """(chosen, rejected) [rows, 1 + 3 width]."""
  generator = np.random.default_rng(seed)
  return generator.normal(size=(2, rows, 1 + 3 * width))


def parts(sides, width=1):
  """Gaps of bases and slopes, evidence and precisions, in NumPy."""
  gaps, sums = sides[0] - sides[1], sides[0] + sides[1]
  cut = lambda x, k: x[:, 1 + k * width : 1 + (k + 1) * width]
  return (
    gaps[:, 0],
    cut(gaps, 0),
    cut(gaps, 1),
    np.log1p(np.exp(cut(sums, 2))),
  )


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('mean', [-6.0, 0.3, 4.0])
@pytest.mark.parametrize('variance', [0.0, 0.2, 1.0, 9.0])
def test_the_expected_log_sigmoid_is_its_integral(mean, variance):
  scale = np.sqrt(variance)
  wanted, _ = integrate.quad(
    lambda t: stats.norm.pdf(t) * special.log_expit(mean + scale * t), -12, 12
  )
  found = variational.expected_log_sigmoid(
    jnp.array([mean]), jnp.array([variance])
  )
  # 24 nodes; a wide normal reaches the bend of the function from afar.
  np.testing.assert_allclose(
    found, [wanted], rtol=1e-6 if variance <= 1 else 2e-3
  )


def _integrals(q, base, slopes):
  """E_q of a user's log-likelihood, and KL(q || N(0, 1))."""
  gain = lambda z: special.log_expit(base + slopes * z).sum()
  gap = lambda z: q.logpdf(z) - stats.norm.logpdf(z)
  return (
    integrate.quad(lambda z, f=f: q.pdf(z) * f(z), -12, 12)[0]
    for f in (gain, gap)
  )


@pytest.mark.usefixtures('float64')
def test_the_elbo_is_that_of_numerical_integration():
  """One dimension: q, its KL and every likelihood integrated over z."""
  sides = points(1)
  base, slopes, evidence, precisions = parts(sides)
  total, kl_total = 0.0, 0.0
  for user in (4, 9):
    rows = np.flatnonzero(USERS == user)
    precision = 1 + precisions[rows].sum()
    mean = evidence[rows].sum() / precision
    likelihood, kl = _integrals(
      stats.norm(mean, precision**-0.5), base[rows], slopes[rows, 0]
    )
    total += likelihood - kl
    kl_total += kl
  # The pair of nobody has the prior.
  alone, _ = integrate.quad(
    lambda z: stats.norm.pdf(z) * special.log_expit(base[4] + slopes[4, 0] * z),
    -12,
    12,
  )
  loss, kl = variational.variational_preference_loss(
    *map(jnp.asarray, sides),
    jnp.asarray(USERS),
    pair_mask=jnp.ones(5, bool),
  )
  np.testing.assert_allclose(loss, -(total + alone) / 5, rtol=1e-6)
  np.testing.assert_allclose(kl, kl_total / 5, rtol=1e-6)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('seed', range(3))
def test_the_elbo_is_a_bound_that_the_right_encoder_reaches(seed):
  """log p(pairs of a user), and slopes of zero where q is the prior's."""
  sides = points(1, rows=3, seed=seed)
  base, slopes, *_ = parts(sides)
  evidence, _ = integrate.quad(
    lambda z: stats.norm.pdf(z) * special.expit(base + slopes[:, 0] * z).prod(),
    -12,
    12,
  )
  loss = lambda sides: variational.variational_preference_loss(
    sides[0],
    sides[1],
    jnp.zeros(3, jnp.int32),
    pair_mask=jnp.ones(3, bool),
  )[0]
  assert -3 * loss(jnp.asarray(sides)) < np.log(evidence)
  # The best Gaussian, by search over the evidence that the pairs give.
  means, certainties = np.meshgrid(
    np.linspace(-1.5, 1.5, 61), np.linspace(-4, 2, 13)
  )
  tried = np.tile(sides, (means.size, 1, 1, 1))
  tried[:, 0, :, 2], tried[:, 1, :, 2] = means.reshape(-1, 1), 0.0
  tried[..., 3] = certainties.reshape(-1, 1, 1) / 2
  best = jax.jit(jax.vmap(loss))(jnp.asarray(tried)).min()
  assert 0 <= np.log(evidence) + 3 * best < 0.02


@pytest.mark.usefixtures('float64')
def test_a_turned_pair_says_the_opposite_and_no_pair_nothing():
  sides = points(2)
  options = {'pair_mask': jnp.array([True, True, True, False, True])}
  chosen, rejected = map(jnp.asarray, sides)
  found = variational.pair_evidence(chosen, rejected, **options)
  turned = variational.pair_evidence(rejected, chosen, **options)
  np.testing.assert_allclose(found[0], -turned[0])
  np.testing.assert_allclose(found[1], turned[1])
  assert np.all(np.asarray(found[1])[:3] > 0)
  for each in found:
    np.testing.assert_array_equal(each[3], 0)
  mean, precision = variational.posterior(jnp.zeros(2), jnp.zeros(2))
  np.testing.assert_array_equal(mean, 0)
  np.testing.assert_array_equal(precision, 1)


@pytest.mark.usefixtures('float64')
def test_the_order_of_pairs_and_the_numbers_of_users_change_nothing():
  sides, order = points(2), np.array([3, 1, 4, 0, 2])
  loss = lambda sides, users: variational.variational_preference_loss(
    *map(jnp.asarray, sides),
    jnp.asarray(users),
    pair_mask=jnp.ones(5, bool),
  )[0]
  again = loss(sides[:, order], np.where(USERS == 4, 70, USERS)[order])
  np.testing.assert_allclose(again, loss(sides, USERS), rtol=1e-12)
  # Two users in place of one: another posterior each.
  assert abs(loss(sides, np.array([4, 9, 5, 4, -1])) - again) > 1e-3


@pytest.mark.usefixtures('float64')
def test_a_tie_is_half_a_win_and_tells_nothing_of_its_user():
  sides = points(1)
  is_tie = np.array([False, False, True, False, False])
  options = {'pair_mask': jnp.ones(5, bool), 'tie_mask': jnp.asarray(is_tie)}
  loss, kl = variational.variational_preference_loss(
    *map(jnp.asarray, sides), jnp.asarray(USERS), **options
  )
  swapped = np.where(is_tie[:, None], sides[::-1], sides)
  again = variational.variational_preference_loss(
    *map(jnp.asarray, swapped), jnp.asarray(USERS), **options
  )
  np.testing.assert_allclose((loss, kl), again, rtol=1e-12)
  without = variational.variational_preference_loss(
    *map(jnp.asarray, sides),
    jnp.asarray(USERS),
    pair_mask=jnp.asarray(~is_tie),
  )
  np.testing.assert_allclose(5 * kl, 4 * without[1], rtol=1e-12)


def test_padding_may_hold_anything():
  sides = points(1).astype(np.float32)
  mask = jnp.array([True, True, True, False, True])

  def loss(sides):
    return variational.variational_preference_loss(
      *sides, jnp.asarray(USERS), pair_mask=mask
    )[0]

  spoilt = jnp.asarray(sides).at[:, 3].set(jnp.nan)
  value, slope = jax.jit(jax.value_and_grad(loss))(spoilt)
  np.testing.assert_allclose(value, loss(jnp.asarray(sides)), rtol=1e-6)
  assert np.isfinite(slope).all() and not slope[:, 3].any()
  nothing, kl = variational.variational_preference_loss(
    *spoilt, jnp.asarray(USERS), pair_mask=jnp.zeros(5, bool)
  )
  assert nothing == kl == 0


def test_a_number_of_coordinates_that_is_none_is_named():
  for count in (1, 5, 6):
    with pytest.raises(ValueError, match=f'10...*; got {count}'):
      variational.latent_width(count)


def camps(users=40, pairs=12, seed=0):
  """Two camps rank ten items in opposite orders; 10% of labels are wrong."""
  generator = np.random.default_rng(seed)
  sides = np.stack(
    [generator.permutation(10)[:2] for _ in range(users * pairs)]
  )
  rows = np.repeat(np.arange(users), pairs)
  upwards = (rows % 2).astype(bool) ^ (generator.random(len(rows)) < 0.1)
  wins = np.where(upwards[:, None], np.sort(sides), -np.sort(-sides))
  return rows, wins[:, 1], wins[:, 0]


def fit(loss, table, steps=300):
  optimizer = optax.adam(0.05)

  @jax.jit
  def step(table, state):
    updates, state = optimizer.update(jax.grad(loss)(table), state)
    return optax.apply_updates(table, updates), state

  state = optimizer.init(table)
  for _ in range(steps):
    table, state = step(table, state)
  return table


def test_two_opposed_camps_are_told_apart_where_one_score_is_at_chance():
  """Judged on new pairs of the same users, by the mean of q alone."""
  users, chosen, rejected = camps()
  new_users, new_chosen, new_rejected = camps(seed=1)
  every = jnp.ones(len(users), bool)
  start = jnp.asarray(
    0.3 * np.random.default_rng(2).normal(size=(10, 4)), jnp.float32
  )
  scores = fit(
    lambda s: preference.bradley_terry_loss(
      s[chosen], s[rejected], pair_mask=every
    ),
    start[:, 0],
  )
  single = np.mean(scores[new_chosen] > scores[new_rejected])
  assert 0.4 < single < 0.6

  table = fit(
    lambda t: variational.variational_preference_loss(
      t[chosen], t[rejected], jnp.asarray(users), pair_mask=every
    )[0],
    start,
  )
  found = variational.pair_evidence(
    table[chosen], table[rejected], pair_mask=every
  )
  sums = [jax.ops.segment_sum(each, users, num_segments=40) for each in found]
  latents, _ = variational.posterior(*sums)
  rewards = lambda items: variational.latent_rewards(
    table[items], latents[new_users]
  )
  # 90% of the labels are right.
  assert np.mean(rewards(new_chosen) > rewards(new_rejected)) > 0.85
  # The camps lie on either side of the prior's mean.
  sign = np.sign(latents[0, 0])
  assert np.all(
    np.sign(latents[:, 0]) == sign * np.where(np.arange(40) % 2, -1, 1)
  )
