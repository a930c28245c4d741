"""What a reward model must beat, against independent fits and by hand."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize, sparse, special

from p4lm.rewards import baselines
from p4lm.rewards.baselines import TokenExamples


def drawn(count=400, width=3, seed=0):
  generator = np.random.default_rng(seed)
  features = generator.normal(size=(count, width))
  logits = features @ [1.0, -2.0, 0.0][:width] + 0.7
  return features, (generator.random(count) < special.expit(logits)) * 1.0


def test_without_a_ridge_it_is_statsmodels():
  features, labels = drawn()
  theirs = sm.Logit(labels, sm.add_constant(features)).fit(disp=False)
  ours = baselines.fit_logistic(features, labels, 1e-12)
  np.testing.assert_allclose(ours.intercept, theirs.params[0], rtol=1e-6)
  np.testing.assert_allclose(ours.weights, theirs.params[1:], rtol=1e-5)
  plain = sm.Logit(labels, features).fit(disp=False)
  ours = baselines.fit_logistic(features, labels, 1e-12, intercept=False)
  np.testing.assert_allclose(ours.weights, plain.params, rtol=1e-5)
  assert ours.intercept == 0


@pytest.mark.parametrize('penalty', [0.5, 20.0])
def test_the_ridge_spares_the_intercept(penalty):
  features, labels = drawn()

  def objective(point):
    logits = features @ point[1:] + point[0]
    loss = -np.log(special.expit(np.where(labels > 0, logits, -logits))).sum()
    return loss + penalty / 2 * (point[1:] ** 2).sum()

  best = optimize.minimize(objective, np.zeros(4), method='Powell', tol=1e-12)
  ours = baselines.fit_logistic(sparse.csr_matrix(features), labels, penalty)
  np.testing.assert_allclose(ours.intercept, best.x[0], atol=1e-5)
  np.testing.assert_allclose(ours.weights, best.x[1:], atol=1e-5)


def test_labels_that_can_be_told_apart_stay_finite():
  features = np.array([[1.0], [2.0], [-1.0], [-2.0]])
  found = baselines.fit_logistic(features, [1, 1, 0, 0], 0.1)
  assert np.isfinite(found(features)).all()
  assert ((found(features) > 0) == [True, True, False, False]).all()
  only = baselines.fit_logistic(features, [1, 1, 1, 1], 0.1)
  assert np.isfinite(only(features)).all() and (only(features) > 3).all()


def entailment(premises, hypotheses, labels):
  return TokenExamples(
    np.array(premises), (np.array(hypotheses),), np.array(labels, float)
  )


def test_the_bag_knows_what_is_new_in_the_response():
  """Label 1 iff token 7 is in both texts: neither text alone tells."""
  generator = np.random.default_rng(0)
  rows = generator.integers(0, 2, (300, 2))
  premises = np.where(rows[:, :1], [[7, 8, 0]], [[8, 9, 0]])
  hypotheses = np.where(rows[:, 1:], [[7, 5, 1]], [[5, 6, 1]])
  labels = rows.prod(axis=1)
  split = entailment(premises, hypotheses, labels)
  found = baselines.classification_baselines(split, {'test': split})
  assert ((found['bag of tokens']['test'] > 0) == labels).mean() == 1.0
  rate = labels.mean()
  np.testing.assert_allclose(
    special.expit(found['majority']['test']), np.full(300, rate)
  )
  assert set(found) == {'majority', 'length', 'bag of tokens'}


def test_bags_by_hand():
  split = entailment([[4, 4, 3, 0]], [[3, 5, 9, 1]], [1])
  bags = baselines._bags(split, 6).toarray().reshape(3, 6)
  np.testing.assert_array_equal(
    bags,
    [
      [0, 0, 0, 1, 1, 0],
      [0, 0, 0, 1, 0, 1],  # 9 was never trained on; 1 ends every response.
      [0, 0, 0, 0, 0, 1],
    ],
  )


def pairs(chosen, rejected):
  return TokenExamples(
    np.full((len(chosen), 1), 3),
    (np.array(chosen), np.array(rejected)),
    np.ones(len(chosen)),
  )


def test_pairs_have_no_intercept_and_swap_signs():
  split = pairs([[5, 6, 1], [6, 7, 1]], [[6, 1, 0], [7, 1, 0]])
  swapped = pairs(split.sides[1], split.sides[0])
  found = baselines.pairwise_baselines(
    split, {'test': split, 'swapped': swapped}
  )
  for name, gaps in found.items():
    np.testing.assert_allclose(gaps['swapped'], -gaps['test'], err_msg=name)
  assert (found['length']['test'] > 0).all()
  assert (found['no opinion']['test'] == 0).all()
  assert found['bag of tokens']['test'][0] > 0


def test_penalties_are_chosen_by_the_first_split():
  """Where training words mean nothing elsewhere, the largest ridge wins."""
  generator = np.random.default_rng(1)
  draw = lambda: entailment(
    generator.integers(2, 60, (80, 4)),
    generator.integers(2, 60, (80, 4)),
    generator.integers(0, 2, 80),
  )
  train, other = draw(), draw()
  size = 60
  strongest = baselines.fit_logistic(
    baselines._bags(train, size), train.labels, max(baselines.PENALTIES)
  )
  found = baselines.classification_baselines(train, {'v': other})
  np.testing.assert_allclose(
    found['bag of tokens']['v'], strongest(baselines._bags(other, size))
  )
