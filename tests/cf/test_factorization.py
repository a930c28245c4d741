"""ALS against dense linear algebra, and what a fit promises."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from p4lm.cf import half_step, objective, sides
from p4lm.cf.biases import fit_biases
from p4lm.cf.buckets import plan_buckets
from p4lm.cf.factorization import (
  FactorizationConfig,
  Interactions,
  fit,
  fold_in,
)
from p4lm.cf.placement import one_device_mesh, place, place_evenly
from p4lm.cf.solvers import Solver
from p4lm.errors import UserError

USERS, ITEMS, WIDTH = 23, 17, 6


@pytest.fixture(scope='module')
def interactions():
  """About 120 entries; the last user and the last two items have none."""
  generator = np.random.default_rng(3)
  dense = generator.random((USERS, ITEMS)) < 0.35
  dense[-1], dense[:, -2:] = False, False
  dense[0, :-2] = True
  users, items = np.nonzero(dense)
  order = generator.permutation(len(users))
  values = generator.integers(1, 11, len(users)) / 2
  return Interactions(
    users[order].astype(np.int32),
    items[order].astype(np.int32),
    values,
    USERS,
    ITEMS,
  )


IMPLICIT = FactorizationConfig(
  width=WIDTH, epochs=4, alpha0=0.3, regularization=0.05, exponent=0.7,
  confidence='linear', confidence_scale=0.5, dtype='float64', init_scale=1.0,
)  # fmt: skip
EXPLICIT = dataclasses.replace(
  IMPLICIT, mode='explicit', alpha0=0.0, regularization=0.1, exponent=1.0
)


@pytest.fixture(scope='module')
def models(interactions):
  return {c.mode: fit(interactions, c) for c in (IMPLICIT, EXPLICIT)}


def dense_terms(interactions, config):
  """C [USERS, ITEMS] and P [USERS, ITEMS] as full matrices."""
  biases = None
  if config.mode == 'explicit':
    biases = fit_biases(interactions, config.bias_regularization)
  weights, targets = sides.observed_terms(interactions, config, biases)
  C, P = np.zeros((USERS, ITEMS)), np.zeros((USERS, ITEMS))
  C[interactions.user_rows, interactions.item_rows] = weights
  P[interactions.user_rows, interactions.item_rows] = targets
  return C, P


def dense_half_step(C, P, Y, config):
  """Normal equations row by row, written from the objective."""
  solved = np.zeros((len(C), Y.shape[1]))
  for u in range(len(C)):
    n = np.count_nonzero(C[u])
    ridge = (
      config.regularization * (n + config.alpha0 * len(Y)) ** config.exponent
    )
    A = (Y.T * C[u]) @ Y + config.alpha0 * Y.T @ Y + ridge * np.eye(Y.shape[1])
    solved[u] = np.linalg.solve(A, Y.T @ (C[u] * P[u])) if n else 0
  return solved


def dense_objective(C, P, X, Y, config):
  ridges = [
    config.regularization
    * (np.count_nonzero(M, axis=1) + config.alpha0 * M.shape[1])
    ** config.exponent
    for M in (C, C.T)
  ]
  S = X @ Y.T
  return (
    np.sum(C * (P - S) ** 2)
    + config.alpha0 * np.sum(S**2)
    + ridges[0] @ np.sum(X**2, 1)
    + ridges[1] @ np.sum(Y**2, 1)
  )


@pytest.mark.parametrize('config', [IMPLICIT, EXPLICIT], ids=lambda c: c.mode)
def test_fit_equals_dense_als(interactions, models, config):
  C, P = dense_terms(interactions, config)
  start = np.random.default_rng(config.seed).standard_normal((USERS, WIDTH))
  X = start * config.init_scale / np.sqrt(WIDTH)
  for _ in range(config.epochs):
    Y = dense_half_step(C.T, P.T, X, config)
    X = dense_half_step(C, P, Y, config)
  model = models[config.mode]
  np.testing.assert_allclose(model.user_embeddings, X, atol=1e-9)
  np.testing.assert_allclose(model.item_embeddings, Y, atol=1e-9)
  expected = dense_objective(C, P, X, Y, config)
  assert model.objectives[-1] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('mode', ['implicit', 'explicit'])
def test_objective_never_rises(models, mode):
  objectives = models[mode].objectives
  assert len(objectives) == 2 * IMPLICIT.epochs
  assert np.all(np.diff(objectives) <= 1e-9 * objectives[0])
  assert objectives[-1] < 0.9 * objectives[0]


def test_half_step_is_the_minimum(interactions, models):
  """Central differences of the objective vanish at the solved users."""
  C, P = dense_terms(interactions, IMPLICIT)
  X = models['implicit'].user_embeddings
  Y = models['implicit'].item_embeddings
  for u, e in ((0, 0), (5, 3), (11, 5)):
    step = np.zeros_like(X)
    step[u, e] = 1e-5
    up = dense_objective(C, P, X + step, Y, IMPLICIT)
    down = dense_objective(C, P, X - step, Y, IMPLICIT)
    assert abs(up - down) / 2e-5 < 1e-5


def test_observed_objective_by_chunks(interactions, models, monkeypatch):
  monkeypatch.setattr(objective, '_CHUNK', 7)
  C, P = dense_terms(interactions, IMPLICIT)
  weights, targets = sides.observed_terms(interactions, IMPLICIT, None)
  X = models['implicit'].user_embeddings
  Y = models['implicit'].item_embeddings
  found = objective.observed_objective(
    interactions.user_rows, interactions.item_rows, weights, targets, X, Y
  )
  assert found == pytest.approx(np.sum(C * (P - X @ Y.T) ** 2), rel=1e-12)


@pytest.fixture(scope='module')
def half_step_of(interactions):
  """Half steps of the users by any solver, from given items and users."""

  def solve(config, longest, Y, X=None):
    mesh = one_device_mesh()
    side = sides.by_user(interactions)
    buckets = plan_buckets(side.counts, config.width, longest=longest)
    place_users = place(USERS, buckets, mesh)
    place_items = place_evenly(ITEMS, mesh)
    terms = sides.scaled_terms(
      *sides.observed_terms(interactions, config, None), config
    )
    with jax.enable_x64(True):
      step = half_step.HalfStep(
        side,
        buckets,
        place_users,
        place_items.positions,
        *(term[side.order] for term in terms),
        config.row_regularization(side.counts, ITEMS),
        width=config.width,
        dtype='float64',
        alpha0=config.alpha0,
        solver=config.solver,
      )
      X = None if X is None else place_users.put(X)
      X, squared = step(place_items.put(Y), X)
      return place_users.get(X), squared

  return solve


@pytest.mark.parametrize('longest', [1, 3, 2048])
@pytest.mark.parametrize('width', [2, 40])
def test_every_way_solves_the_same_system(
  interactions, half_step_of, width, longest
):
  """Width 40 solves in entries, 2 in factors; short segments loop."""
  config = dataclasses.replace(IMPLICIT, width=width)
  C, P = dense_terms(interactions, config)
  Y = np.random.default_rng(1).standard_normal((ITEMS, width))
  X, squared = half_step_of(config, longest, Y)
  np.testing.assert_allclose(X, dense_half_step(C, P, Y, config), atol=1e-9)
  expected = np.sum(C * (P - X @ Y.T) ** 2)
  assert squared == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize('longest', [3, 2048])
@pytest.mark.parametrize(
  'solver',
  [Solver('cg', cg_steps=60), Solver('block', block_width=40)],
  ids=lambda solver: solver.name,
)
def test_inexact_solvers_end_at_the_exact_rows(
  interactions, half_step_of, solver, longest
):
  """Many conjugate gradients, or one block of all factors."""
  config = dataclasses.replace(IMPLICIT, width=12, solver=solver)
  C, P = dense_terms(interactions, config)
  generator = np.random.default_rng(1)
  Y = generator.standard_normal((ITEMS, 12))
  X = generator.standard_normal((USERS, 12))
  X[-1] = 0
  found, squared = half_step_of(config, longest, Y, X)
  expected = dense_half_step(C, P, Y, config)
  np.testing.assert_allclose(found, expected, atol=1e-8)
  residual = np.sum(C * (P - expected @ Y.T) ** 2)
  assert squared == pytest.approx(residual, rel=1e-8)


@pytest.mark.parametrize('longest', [3, 2048])
def test_a_sweep_minimises_over_each_block_of_the_eigenbasis(
  interactions, half_step_of, longest
):
  config = dataclasses.replace(
    IMPLICIT, width=7, solver=Solver('block', block_width=3)
  )
  C, P = dense_terms(interactions, config)
  generator = np.random.default_rng(2)
  Y = generator.standard_normal((ITEMS, 7))
  X = generator.standard_normal((USERS, 7))
  found, squared = half_step_of(config, longest, Y, X)
  Q = np.linalg.eigh(Y.T @ Y)[1]
  V = Y @ Q
  lambdas = config.row_regularization((C > 0).sum(1), ITEMS)
  expected = X @ Q
  for u in range(USERS):
    A = V.T @ (C[u][:, None] * V) + config.alpha0 * V.T @ V
    A += lambdas[u] * np.eye(7)
    b = V.T @ (C[u] * P[u])
    x = expected[u]
    for part in (slice(0, 3), slice(3, 6), slice(6, 7)):
      gradient = b - A @ x
      x[part] += np.linalg.solve(A[part, part], gradient[part])
  expected = expected @ Q.T
  # A user without entries gets no row at all.
  expected[(C > 0).sum(1) == 0] = 0
  np.testing.assert_allclose(found, expected, atol=1e-9)
  residual = np.sum(C * (P - expected @ Y.T) ** 2)
  assert squared == pytest.approx(residual, rel=1e-9)


@pytest.mark.parametrize('longest', [3, 2048])
def test_conjugate_gradients_minimise_over_the_krylov_space(
  interactions, half_step_of, longest
):
  """Two preconditioned steps: the best x + span(p0, D^-1 A p0), by hand."""
  config = dataclasses.replace(
    IMPLICIT, width=6, solver=Solver('cg', cg_steps=2)
  )
  C, P = dense_terms(interactions, config)
  generator = np.random.default_rng(3)
  Y = generator.standard_normal((ITEMS, 6))
  X = generator.standard_normal((USERS, 6))
  found, _ = half_step_of(config, longest, Y, X)
  shared, Q = np.linalg.eigh(Y.T @ Y)
  V = Y @ Q
  lambdas = config.row_regularization((C > 0).sum(1), ITEMS)
  for u in np.flatnonzero((C > 0).sum(1)):
    D = config.alpha0 * shared + lambdas[u]
    A = V.T @ (C[u][:, None] * V) + np.diag(D)
    b, x = V.T @ (C[u] * P[u]), Q.T @ X[u]
    first = (b - A @ x) / D
    K = np.stack([first, A @ first / D], 1)
    x = x + K @ np.linalg.solve(K.T @ A @ K, K.T @ (b - A @ x))
    np.testing.assert_allclose(found[u], Q @ x, atol=1e-8)


@pytest.mark.parametrize('name', ['cg', 'block'])
def test_inexact_fits_never_raise_the_objective(interactions, models, name):
  solver = Solver(name, cg_steps=2, block_width=2)
  config = dataclasses.replace(IMPLICIT, solver=solver, epochs=60)
  objectives = np.array(fit(interactions, config).objectives)
  assert np.all(np.diff(objectives) <= 1e-9 * objectives[0])
  exact = fit(interactions, dataclasses.replace(IMPLICIT, epochs=60))
  assert objectives[-1] == pytest.approx(exact.objectives[-1], rel=1e-3)


def test_rows_without_entries_are_zero_and_counted(models):
  for model in models.values():
    assert (model.empty_users, model.empty_items) == (1, 2)
    assert not model.user_embeddings[-1].any()
    assert not model.item_embeddings[-2:].any()
    assert np.isfinite(model.user_embeddings).all()


@pytest.mark.parametrize('mode', ['implicit', 'explicit'])
def test_fold_in_of_training_rows_is_their_half_step(
  interactions, models, mode
):
  model = models[mode]
  chosen = np.array([4, 0, 22])  # the last has no entry
  kept = np.isin(interactions.user_rows, chosen)
  position = {u: p for p, u in enumerate(chosen)}
  new = Interactions(
    np.array([position[u] for u in interactions.user_rows[kept]], np.int32),
    interactions.item_rows[kept],
    interactions.values[kept],
    len(chosen),
    ITEMS,
  )
  folded = fold_in(new, model)
  np.testing.assert_allclose(
    folded.embeddings, model.user_embeddings[chosen], atol=1e-12
  )
  if mode == 'explicit':
    np.testing.assert_allclose(folded.biases, model.biases.users[chosen])


def test_fold_in_of_items(interactions, models):
  model = models['implicit']
  C, P = dense_terms(interactions, IMPLICIT)
  expected = dense_half_step(C.T, P.T, model.user_embeddings, IMPLICIT)
  folded = fold_in(interactions, model, side='item')
  np.testing.assert_allclose(folded.embeddings, expected, atol=1e-9)


def test_float32_agrees(interactions, models):
  single = fit(interactions, dataclasses.replace(IMPLICIT, dtype='float32'))
  assert single.user_embeddings.dtype == np.float32
  double = models['implicit']
  np.testing.assert_allclose(
    single.user_embeddings, double.user_embeddings, atol=2e-4
  )
  assert single.objectives[-1] == pytest.approx(double.objectives[-1], rel=1e-5)


def test_killed_fit_goes_on_to_the_same_tables(interactions, models, tmp_path):
  path = tmp_path / 'fit.npz'

  class Killed(Exception):
    pass

  def kill(epoch, _):
    if epoch == 2:
      raise Killed

  with pytest.raises(Killed):
    fit(interactions, IMPLICIT, checkpoint_path=path, on_epoch=kill)
  epochs = []
  model = fit(
    interactions, IMPLICIT, checkpoint_path=path,
    on_epoch=lambda epoch, _: epochs.append(epoch),
  )  # fmt: skip
  assert epochs == [2, 3, 4]
  whole = models['implicit']
  assert np.array_equal(model.user_embeddings, whole.user_embeddings)
  assert np.array_equal(model.item_embeddings, whole.item_embeddings)
  assert model.objectives == whole.objectives
  with pytest.raises(UserError, match='other data or another configuration'):
    other = dataclasses.replace(IMPLICIT, regularization=0.2)
    fit(interactions, other, checkpoint_path=path)
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(UserError, match='no readable checkpoint'):
    fit(interactions, IMPLICIT, checkpoint_path=path)


def test_biases_are_the_ridge_solution(interactions, monkeypatch):
  """Ten sweeps are near the solution of the dense ridge regression."""
  from p4lm.cf import biases as biases_lib

  monkeypatch.setattr(biases_lib, '_SWEEPS', 200)
  biases = fit_biases(interactions, 2.0)
  M = len(interactions.values)
  X = np.zeros((M, USERS + ITEMS))
  X[np.arange(M), interactions.user_rows] = 1
  X[np.arange(M), USERS + interactions.item_rows] = 1
  left = interactions.values - interactions.values.mean()
  solved = np.linalg.solve(X.T @ X + 2 * np.eye(USERS + ITEMS), X.T @ left)
  np.testing.assert_allclose(biases.users, solved[:USERS], atol=1e-9)
  np.testing.assert_allclose(biases.items, solved[USERS:], atol=1e-9)


def test_explicit_mode_finds_planted_factors():
  """Ratings of rank two on 60% of the cells predict the other 40%."""
  generator = np.random.default_rng(0)
  X, Y = generator.normal(size=(60, 2)), generator.normal(size=(50, 2))
  full = 3.5 + X @ Y.T
  seen = generator.random(full.shape) < 0.6
  users, items = np.nonzero(seen)
  model = fit(
    Interactions(users, items, full[seen], 60, 50),
    FactorizationConfig(
      width=4, epochs=60, mode='explicit', alpha0=0, regularization=1e-3,
      bias_regularization=1.0, init_scale=1.0,
    ),
  )  # fmt: skip
  others = np.nonzero(~seen)
  error = np.sqrt(np.mean((model.predict(*others) - full[others]) ** 2))
  assert error < 0.1 < 1.0 < full.std()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(values=np.array([1.0, np.nan])), r'values\[1\] is nan'),
    (dict(values=np.array([1.0, -2.0])), r'values\[1\] is -2'),
    (dict(weights=np.array([-1.0, 1.0])), r'weights\[0\] is -1'),
    (dict(weights=np.array([1.0, np.inf])), r'weights\[1\] is inf'),
    (dict(item_rows=np.array([0, 3])), r'item_rows\[1\] is 3'),
    (dict(user_rows=np.array([0])), 'user_rows has shape'),
  ],
)
def test_bad_interactions(change, message):
  good = dict(
    user_rows=np.array([0, 1]), item_rows=np.array([0, 1]),
    values=np.ones(2), num_users=2, num_items=3,
  )  # fmt: skip
  with pytest.raises(UserError, match=message):
    fit(Interactions(**(good | change)), IMPLICIT)


def test_bad_configuration_and_empty_input():
  for change in (
    dict(regularization=0.0), dict(alpha0=-1.0), dict(mode='both'),
    dict(width=0), dict(exponent=float('nan')),
  ):  # fmt: skip
    with pytest.raises(UserError, match=next(iter(change))):
      FactorizationConfig(**change)
  none = np.zeros(0, np.int32)
  with pytest.raises(UserError, match='no interactions'):
    fit(Interactions(none, none, np.zeros(0), 2, 2), IMPLICIT)


def test_overflow_is_an_error_not_a_nan():
  huge = Interactions(
    np.array([0, 1]), np.array([0, 1]), np.array([1e30, -1e30]), 2, 2
  )
  config = FactorizationConfig(width=2, mode='explicit', alpha0=0)
  with pytest.raises(UserError, match='objective is'):
    fit(huge, config)


_DEVICES = """
import sys, jax, numpy as np
from p4lm.cf.factorization import FactorizationConfig, Interactions, fit
n = int(sys.argv[1])
assert len(jax.devices()) == n
mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',)) if n > 1 else None
generator = np.random.default_rng(0)
users, items = np.nonzero(generator.random((50, 40)) < 0.3)
data = Interactions(users, items, np.ones(len(users)), 50, 40)
model = fit(data, FactorizationConfig(width=16, epochs=3), mesh=mesh)
np.savez(sys.argv[2], users=model.user_embeddings, items=model.item_embeddings)
"""


def test_any_number_of_devices_gives_one_devices_tables(tmp_path, repository):
  import os

  found = {}
  for count in (1, 2, 8):
    flags = f'--xla_force_host_platform_device_count={count}'
    path = tmp_path / f'{count}.npz'
    subprocess.run(
      [sys.executable, '-c', _DEVICES, str(count), str(path)],
      env=os.environ | {'XLA_FLAGS': flags},
      cwd=repository,
      check=True,
      timeout=120,
    )
    found[count] = np.load(path)
  for name in ('users', 'items'):
    assert np.abs(found[1][name]).max() > 0.1
    for count in (2, 8):
      np.testing.assert_allclose(found[1][name], found[count][name], atol=1e-5)
