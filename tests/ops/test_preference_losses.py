import jax
import jax.numpy as jnp
import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize

from p4lm.ops import preference


def _fit_scores(comparisons, items, **options):
  """Scores that minimise the loss over (winner, loser) rows; item 0 is 0."""
  winners, losers = np.array(comparisons).T
  with jax.enable_x64(True):

    def loss(free):
      scores = jnp.concatenate([jnp.zeros(1), free])
      return preference.bradley_terry_loss(
        scores[winners],
        scores[losers],
        pair_mask=jnp.ones(len(winners), bool),
        **options,
      )

    value_and_grad = jax.jit(jax.value_and_grad(loss))

    def float64(free):
      value, slope = value_and_grad(jnp.asarray(free))
      return float(value), np.asarray(slope)

    found = optimize.minimize(
      float64,
      np.zeros(items - 1),
      jac=True,
      method='BFGS',
      options={'gtol': 1e-10},
    )
  return np.concatenate([[0.0], found.x])


def test_seven_wins_of_ten_give_a_gap_of_log_seven_thirds():
  scores = _fit_scores([(1, 0)] * 7 + [(0, 1)] * 3, items=2)
  np.testing.assert_allclose(scores[1], np.log(7 / 3), atol=1e-8)


def test_a_cycle_fits_equal_scores():
  scores = _fit_scores([(0, 1), (1, 2), (2, 0)], items=3)
  np.testing.assert_allclose(scores, np.zeros(3), atol=1e-8)


def test_many_items_equal_statsmodels_logit():
  generator = np.random.default_rng(11)
  items, rows = 6, 400
  truth = generator.normal(size=items)
  left = generator.integers(0, items, rows)
  right = (left + generator.integers(1, items, rows)) % items
  left_wins = generator.random(rows) < 1 / (
    1 + np.exp(truth[right] - truth[left])
  )
  design = np.zeros((rows, items))
  design[np.arange(rows), left] = 1
  design[np.arange(rows), right] = -1
  fitted = sm.Logit(left_wins.astype(float), design[:, 1:]).fit(
    disp=False, tol=1e-12
  )
  winners = np.where(left_wins, left, right)
  losers = np.where(left_wins, right, left)
  scores = _fit_scores(list(zip(winners, losers)), items)
  np.testing.assert_allclose(scores[1:], fitted.params, atol=1e-6)


def test_margin_moves_the_gap_by_the_margin():
  scores = _fit_scores([(1, 0)] * 7 + [(0, 1)] * 3, items=2)
  # With the margin on the winner's pairs alone the optimum solves
  # 7 sigmoid(m - g) = 3 sigmoid(g); with m = 0 it is log(7/3).
  comparisons = [(1, 0)] * 7 + [(0, 1)] * 3
  margin = jnp.array([0.5] * 7 + [0.0] * 3)
  moved = _fit_scores(comparisons, items=2, margin=margin)[1]
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  np.testing.assert_allclose(
    7 * sigmoid(0.5 - moved), 3 * sigmoid(moved), rtol=1e-7
  )
  assert moved > scores[1]


def test_flip_rate_is_unbiased_for_the_true_labels():
  with jax.enable_x64(True):
    gap = jnp.array([1.7])
    zero, one = jnp.zeros(1), jnp.ones(1, bool)

    def loss(chosen, rejected, **options):
      return preference.bradley_terry_loss(
        chosen, rejected, pair_mask=one, **options
      )

    f = 0.15
    expected = (1 - f) * loss(gap, zero, flip_rate=f) + f * loss(
      zero, gap, flip_rate=f
    )
    np.testing.assert_allclose(expected, loss(gap, zero), rtol=1e-12)


def test_label_smoothing_mixes_both_orders():
  with jax.enable_x64(True):
    gap, zero, one = jnp.array([0.9]), jnp.zeros(1), jnp.ones(1, bool)
    found = preference.bradley_terry_loss(
      gap, zero, pair_mask=one, label_smoothing=0.2
    )
    np.testing.assert_allclose(
      found, 0.8 * np.log1p(np.exp(-0.9)) + 0.2 * np.log1p(np.exp(0.9))
    )


def test_a_shift_changes_nothing_unless_centred():
  chosen, rejected = jnp.array([1.0, 2.0]), jnp.array([0.5, 3.0])
  both = jnp.ones(2, bool)
  loss = preference.bradley_terry_loss(chosen, rejected, pair_mask=both)
  shifted = preference.bradley_terry_loss(
    chosen + 4, rejected + 4, pair_mask=both
  )
  np.testing.assert_allclose(shifted, loss, rtol=1e-6)
  centred = preference.bradley_terry_loss(
    chosen, rejected, pair_mask=both, centring=0.1
  )
  # (1.5^2 + 5^2) / 2 = 13.625
  np.testing.assert_allclose(centred - loss, 1.3625, rtol=1e-6)


def test_huge_gaps_have_linear_loss_and_unit_slope():
  wrong = jax.value_and_grad(
    lambda c: preference.bradley_terry_loss(
      c, jnp.zeros(1), pair_mask=jnp.ones(1, bool)
    )
  )
  value, slope = wrong(jnp.array([-1e6]))
  assert value == 1e6
  assert slope[0] == -1
  value, slope = wrong(jnp.array([1e6]))
  assert value == 0
  assert slope[0] == 0


def test_shapes_that_differ_are_all_named():
  with pytest.raises(ValueError, match=r'\(2,\).*\(3,\).*\(2,\)'):
    preference.bradley_terry_loss(
      jnp.zeros(2), jnp.zeros(3), pair_mask=jnp.ones(2, bool)
    )


@pytest.mark.parametrize(
  'options,named',
  [
    ({'label_smoothing': 0.5}, 'label_smoothing'),
    ({'flip_rate': -0.1}, 'flip_rate'),
    ({'flip_rate': 0.1, 'label_smoothing': 0.1}, 'two answers'),
    ({'centring': -1.0}, 'centring'),
  ],
)
def test_options_out_of_range_are_named(options, named):
  with pytest.raises(ValueError, match=named):
    preference.bradley_terry_loss(
      jnp.zeros(2), jnp.zeros(2), pair_mask=jnp.ones(2, bool), **options
    )


def test_accuracy_counts_a_tie_as_half_and_skips_padding():
  accuracy = preference.preference_accuracy(
    jnp.array([2.0, 1.0, 0.0, jnp.nan]),
    jnp.array([1.0, 1.0, 3.0, 0.0]),
    pair_mask=jnp.array([True, True, True, False]),
  )
  np.testing.assert_allclose(accuracy, 0.5)
