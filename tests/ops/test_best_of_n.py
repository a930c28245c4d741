import itertools

import numpy as np
import pytest

from p4lm.ops import best_of_n


def _enumerated(probabilities, rewards, n):
  """Every sequence of n draws; the first of the best is kept."""
  found = np.zeros(len(probabilities))
  for draws in itertools.product(range(len(probabilities)), repeat=n):
    best = max(draws, key=lambda k: rewards[k])
    found[best] += np.prod([probabilities[k] for k in draws])
  return found


@pytest.mark.parametrize('n', [1, 2, 4])
def test_distribution_equals_enumeration_with_ties(n):
  probabilities = np.array([0.1, 0.4, 0.2, 0.3])
  rewards = np.array([2.0, 1.0, 1.0, -5.0])
  np.testing.assert_allclose(
    best_of_n.best_of_n_distribution(probabilities, rewards, n),
    _enumerated(probabilities, rewards, n),
    rtol=1e-12,
  )


@pytest.mark.parametrize('n,bound', [(2, 0.1931), (4, 0.6363), (16, 1.8351)])
def test_kl_stays_under_the_bound_and_reaches_it(n, bound):
  assert abs(best_of_n.best_of_n_kl_bound(n) - bound) < 1e-4
  generator = np.random.default_rng(0)
  gaps = []
  for outcomes in (5, 50, 20_000):
    probabilities = generator.dirichlet(np.ones(outcomes))
    chosen = best_of_n.best_of_n_distribution(
      probabilities, generator.normal(size=outcomes), n
    )
    kept = chosen > 0
    kl = np.sum(chosen[kept] * np.log(chosen[kept] / probabilities[kept]))
    gaps.append(best_of_n.best_of_n_kl_bound(n) - kl)
  assert min(gaps) >= 0
  assert gaps[-1] < 1e-3


def test_curve_equals_the_mean_over_all_subsets():
  generator = np.random.default_rng(4)
  proxy, true = generator.normal(size=(2, 3, 5))
  ns = (1, 2, 3, 5)
  expected = []
  for n in ns:
    values = [
      true[row, max(subset, key=lambda k: proxy[row, k])]
      for row in range(3)
      for subset in itertools.combinations(range(5), n)
    ]
    expected.append(np.mean(values))
  np.testing.assert_allclose(
    best_of_n.best_of_n_curve(proxy, true, ns), expected, rtol=1e-12
  )


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match='got 6'):
    best_of_n.best_of_n_curve(np.zeros((2, 5)), np.zeros((2, 5)), (6,))
  with pytest.raises(ValueError, match=r'\(2, 5\).*\(2, 4\)'):
    best_of_n.best_of_n_curve(np.zeros((2, 5)), np.zeros((2, 4)), (1,))
  with pytest.raises(ValueError, match='got 0'):
    best_of_n.best_of_n_kl_bound(0)
