"""Half steps against two independent libraries."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse

from p4lm.cf.factorization import FactorizationConfig, Interactions, fit

USERS, ITEMS, WIDTH = 40, 30, 5


@pytest.fixture(scope='module')
def matrix():
  generator = np.random.default_rng(7)
  dense = (generator.random((USERS, ITEMS)) < 0.3) * generator.integers(
    1, 6, (USERS, ITEMS)
  )
  dense[0, 0] = dense[0, 0] or 1
  return scipy.sparse.csr_matrix(dense.astype(float))


def as_interactions(matrix) -> Interactions:
  coo = matrix.tocoo()
  return Interactions(coo.row, coo.col, coo.data, *matrix.shape)


def first_users(config):
  generator = np.random.default_rng(config.seed)
  scale = config.init_scale / np.sqrt(config.width)
  return generator.standard_normal((USERS, config.width)) * scale


@pytest.mark.filterwarnings('ignore')
def test_constant_lambda_equals_implicit(matrix):
  """implicit weighs missing pairs 1 and observed ones alpha v, with target 1.

  With c = 1 ours is (1 - s)^2 + a0 s^2 = (1 + a0) (s - 1 / (1 + a0))^2 + const
  on observed pairs and a0 s^2 on the others. With s = s' / (1 + a0) and all
  times (1 + a0)^2 / a0, these are (1 + a0) / a0 (s' - 1)^2 and s'^2.
  """
  als = pytest.importorskip(
    'implicit.cpu.als', reason="pip install implicit, or 'p4lm[test]'"
  )
  a0, ridge = 0.25, 0.4
  config = FactorizationConfig(
    width=WIDTH, epochs=5, alpha0=a0, regularization=ridge, exponent=0.0,
    dtype='float64', init_scale=1.0,
  )  # fmt: skip
  ones = matrix.copy()
  ones.data[:] = 1
  ours = fit(as_interactions(ones), config)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    theirs = als.AlternatingLeastSquares(
      factors=WIDTH, regularization=ridge * (1 + a0) / a0, alpha=(1 + a0) / a0,
      dtype=np.float64, use_cg=False, use_native=True, iterations=5,
      num_threads=1,
    )  # fmt: skip
    # It solves its users first, so it is given our matrix transposed.
    theirs.user_factors = np.zeros((ITEMS, WIDTH))
    theirs.item_factors = first_users(config) * np.sqrt(1 + a0)
    theirs.fit(ones.T.tocsr(), show_progress=False)
  scale = np.sqrt(1 + a0)
  np.testing.assert_allclose(
    ours.item_embeddings, theirs.user_factors / scale, atol=1e-8
  )
  np.testing.assert_allclose(
    ours.user_embeddings, theirs.item_factors / scale, atol=1e-8
  )


@pytest.mark.filterwarnings('ignore')
def test_frequency_scaled_lambda_equals_irspack(matrix):
  irspack = pytest.importorskip(
    'irspack', reason="pip install irspack, or 'p4lm[test]'"
  )
  config = FactorizationConfig(
    width=WIDTH, epochs=3, alpha0=0.2, regularization=0.05, exponent=1.0,
    confidence='constant', init_scale=1.0,
  )  # fmt: skip
  ones = matrix.copy()
  ones.data[:] = 1
  ours = fit(as_interactions(ones), config)
  theirs = irspack.IALSRecommender(
    ones, n_components=WIDTH, alpha0=0.2, reg=0.05, nu=1.0,
    loss_type='IALSPP', solver_type='CHOLESKY', train_epochs=1,
    prediction_time_max_cg_steps=20, n_threads=1,
  )  # fmt: skip
  theirs.learn()
  # The half step: users from our items.
  theirs.trainer.core_trainer.item = ours.item_embeddings
  found = theirs.compute_user_embedding(ones)
  np.testing.assert_allclose(found, ours.user_embeddings, atol=1e-5)
