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


def test_many_items_equal_the_mm_algorithm():
  """Hunter 2004: p_i = wins_i / sum_j n_ij / (p_i + p_j), until it stands."""
  generator = np.random.default_rng(4)
  strengths = generator.normal(size=5)
  comparisons = []
  for first, second in generator.integers(0, 5, (300, 2)):
    if first != second:
      odds = np.exp(strengths[first] - strengths[second])
      is_first = generator.random() < odds / (1 + odds)
      sides = (first, second) if is_first else (second, first)
      comparisons.append(sides)
  wins = np.zeros((5, 5))
  np.add.at(wins, tuple(np.array(comparisons).T), 1)
  chances = np.ones(5)
  for _ in range(2000):
    met = (wins + wins.T) / (chances[:, None] + chances[None])
    chances = wins.sum(axis=1) / met.sum(axis=1)
    chances /= chances.sum()
  fitted = _fit_scores(comparisons, 5)
  np.testing.assert_allclose(
    fitted, np.log(chances) - np.log(chances[0]), atol=1e-6
  )


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
    ({'tie_odds': -1.0}, 'tie_odds'),
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


def _davidson(gap, odds):
  """P(first), P(second), P(tie) by Davidson's formula."""
  shares = np.array([np.exp(gap / 2), np.exp(-gap / 2), odds])
  return shares / shares.sum()


@pytest.mark.parametrize('odds', [0.3, 2.0])
@pytest.mark.parametrize('gap', [-1.5, 0.0, 4.0])
def test_ties_have_davidsons_probabilities(gap, odds):
  with jax.enable_x64(True):
    wins, loses, ties = _davidson(gap, odds)
    found = [
      preference.bradley_terry_loss(
        jnp.array([first]),
        jnp.array([second]),
        pair_mask=jnp.ones(1, bool),
        tie_mask=jnp.array([tie]),
        tie_odds=odds,
        # A tie has no winner whose margin or label could be wrong.
        **({'margin': 3.0, 'flip_rate': 0.2} if tie else {}),
      )
      for first, second, tie in (
        (gap, 0.0, False), (0.0, gap, False), (gap, 0.0, True),
        (0.0, gap, True),
      )
    ]  # fmt: skip
    np.testing.assert_allclose(
      np.exp(-np.array(found)), [wins, loses, ties, ties], rtol=1e-12
    )


def test_among_what_is_no_tie_the_odds_are_bradley_and_terrys():
  """Seven wins, three losses: log(7/3) whatever the ties between equals."""
  with jax.enable_x64(True):
    winners = np.array([1] * 7 + [0] * 3)

    def loss(free, tie_odds):
      scores = jnp.concatenate([jnp.zeros(1), free])
      return preference.bradley_terry_loss(
        scores[winners],
        scores[1 - winners],
        pair_mask=jnp.ones(10, bool),
        tie_mask=jnp.zeros(10, bool),
        tie_odds=tie_odds,
      )

    gap = jnp.array([np.log(7 / 3)])
    assert abs(jax.grad(loss)(gap, 0.0)[0]) < 1e-12
    # Odds of a tie lift both sides' surprise, most where the gap is small, so
    # the same wins speak for a wider gap.
    assert jax.grad(loss)(gap, 1.0)[0] < -0.01


def test_without_odds_a_tie_is_half_a_win():
  with jax.enable_x64(True):
    gap = jnp.array([1.3])
    zero, one = jnp.zeros(1), jnp.ones(1, bool)
    tie = preference.bradley_terry_loss(gap, zero, pair_mask=one, tie_mask=one)
    won, lost = (
      preference.bradley_terry_loss(*sides, pair_mask=one)
      for sides in ((gap, zero), (zero, gap))
    )
    np.testing.assert_allclose(tie, (won + lost) / 2, rtol=1e-12)


def test_ties_pull_scores_together():
  comparisons = [(1, 0)] * 7 + [(0, 1)] * 3
  alone = _fit_scores(comparisons, items=2)[1]
  ties = jnp.array([False] * 10 + [True] * 10)
  with_ties = _fit_scores(
    [*comparisons, *[(1, 0)] * 10], items=2, tie_mask=ties, tie_odds=1.0
  )[1]
  assert 0 < with_ties < alone
  # The optimum by enumeration of the likelihood on a grid.
  grid = np.linspace(0, 2, 20001)
  likelihood = [np.log(_davidson(gap, 1.0)) @ [7, 3, 10] for gap in grid]
  np.testing.assert_allclose(with_ties, grid[np.argmax(likelihood)], atol=2e-4)


CYCLE = np.array([(0, 1), (1, 2), (2, 0)])


def test_a_cycle_is_fitted_by_points_in_the_plane():
  """Where scores on a line are equal, every pair is told right."""
  first, second = CYCLE.T

  def loss(points):
    gaps = preference.general_preference(points[first], points[second])
    return preference.bradley_terry_loss(
      gaps, jnp.zeros(3), pair_mask=jnp.ones(3, bool)
    )

  points = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))
  step = jax.jit(lambda p: p - 0.5 * jax.grad(loss)(p))
  for _ in range(500):
    points = step(points)
  gaps = preference.general_preference(points[first], points[second])
  assert (np.asarray(gaps) > 2).all()
  line = _fit_scores(CYCLE, items=3)
  np.testing.assert_allclose(line[first] - line[second], 0, atol=1e-8)


def test_general_preferences_are_skew_symmetric_and_linear():
  generator = np.random.default_rng(1)
  a, b, c = jnp.asarray(generator.normal(size=(3, 5, 4)), jnp.float32)
  found = preference.general_preference(a, b)
  turn = np.zeros((4, 4))
  turn[[0, 2], [1, 3]], turn[[1, 3], [0, 2]] = 1, -1
  expected = [np.asarray(x) @ turn @ np.asarray(y) for x, y in zip(a, b)]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(found, -preference.general_preference(b, a))
  np.testing.assert_array_equal(preference.general_preference(a, a), 0)
  mean = preference.general_preference(a, (b + c) / 2)
  both = found + preference.general_preference(a, c)
  np.testing.assert_allclose(mean, both / 2, rtol=1e-4, atol=1e-5)


def test_general_preferences_hold_bradley_and_terrys():
  """A second coordinate of one turns scores on a line into the same gaps."""
  scores = jnp.array([0.3, -1.0, 2.0])
  points = jnp.stack([scores, jnp.ones(3)], axis=1)
  first, second = CYCLE.T
  np.testing.assert_allclose(
    preference.general_preference(points[first], points[second]),
    scores[first] - scores[second],
    rtol=1e-6,
  )


def test_general_preferences_need_even_coordinates():
  with pytest.raises(ValueError, match='even number of coordinates, got 3'):
    preference.general_preference(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
