r"""Weighted alternating least squares with the exact iALS objective.

Minimises `objective.py`'s L over user and item tables by exact half steps
(`half_step.py`): an epoch solves all items, then all users. The users come
last, so folding in a training row against the final items gives that row. Two
inexact solvers (`solvers.py`) take steps towards the same minimum.

Two modes say what an observed entry means:

  implicit  p = 1 with confidence c from the configuration's rule; the weight
            alpha0 of all pairs pulls unobserved ones to 0.
  explicit  p = rating - mu - b_u - b_i (`biases.py`), c = 1, alpha0 usually 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from p4lm.cf import epochs as epochs_lib
from p4lm.cf import objective, sides
from p4lm.cf.biases import Biases, fit_biases, user_biases
from p4lm.cf.placement import one_device_mesh, place_evenly
from p4lm.cf.rows import Interactions
from p4lm.cf.solvers import Solver
from p4lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class FactorizationConfig:
  """What is minimised and how.

  Attributes:
    width: E.
    epochs: number of epochs (two half steps each).
    mode: 'implicit' or 'explicit'.
    alpha0: weight of all pairs, observed or not; at least 0.
    regularization: lambda, positive.
    exponent: nu of the frequency scaling lambda_u = lambda (n_u + alpha0 I)^nu;
      0 is one lambda for all, 1 scales with the entries.
    confidence: c of an implicit entry with strength v: 'constant' 1, 'linear'
      1 + s v, 'log' 1 + s log(1 + v). Ignored where weights are given.
    confidence_scale: s.
    bias_regularization: lambda_b of the explicit mode's offsets.
    init_scale: the first users are normal with this expected norm.
    dtype: 'float32', or 'float64' for tests.
    seed: of the first users.
    solver: of the rows; exact by default.
  """

  width: int = 64
  epochs: int = 15
  mode: Literal['implicit', 'explicit'] = 'implicit'
  alpha0: float = 0.1
  regularization: float = 0.01
  exponent: float = 1.0
  confidence: Literal['constant', 'linear', 'log'] = 'constant'
  confidence_scale: float = 1.0
  bias_regularization: float = 5.0
  init_scale: float = 0.1
  dtype: Literal['float32', 'float64'] = 'float32'
  seed: int = 0
  solver: Solver = dataclasses.field(default_factory=Solver)

  def __post_init__(self):
    _check_one_of('mode', self.mode, ('implicit', 'explicit'))
    _check_one_of('confidence', self.confidence, ('constant', 'linear', 'log'))
    _check_one_of('dtype', self.dtype, ('float32', 'float64'))
    for name in ('width', 'epochs'):
      if getattr(self, name) < 1:
        raise UserError(f'{name} is {getattr(self, name)}; it must be >= 1')
    for name in ('alpha0', 'confidence_scale', 'bias_regularization'):
      value = getattr(self, name)
      if not (math.isfinite(value) and value >= 0):
        raise UserError(f'{name} is {value}; it must be finite and >= 0')
    for name in ('regularization', 'init_scale'):
      value = getattr(self, name)
      if not (math.isfinite(value) and value > 0):
        raise UserError(
          f'{name} is {value}; it must be positive (a row with fewer entries '
          'than factors has no unique solution without it)'
        )
    if not math.isfinite(self.exponent):
      raise UserError(f'exponent is {self.exponent}; it must be finite')

  @classmethod
  def from_fields(cls, fields: Mapping[str, Any]) -> FactorizationConfig:
    """The configuration of `dataclasses.asdict`, or of a JSON file of it."""
    fields = dict(fields)
    solver = Solver(**fields.pop('solver', {}))
    return cls(**fields, solver=solver)

  def row_regularization(self, counts, num_columns) -> np.ndarray:
    """lambda of rows with these counts, float64 [R]."""
    return objective.row_regularization(
      counts,
      num_columns,
      alpha0=self.alpha0,
      regularization=self.regularization,
      exponent=self.exponent,
    )

  def confidences(self, values) -> np.ndarray:
    """c of implicit entries with these strengths, float64 [M]."""
    return objective.confidences(
      values, rule=self.confidence, scale=self.confidence_scale
    )


@dataclasses.dataclass(frozen=True)
class Factorization:
  """A fitted model.

  Attributes:
    user_embeddings: [U, E] in the configuration's dtype; zero for users
      without entries.
    item_embeddings: [I, E], likewise.
    biases: offsets of the explicit mode, else None.
    objectives: L after every half step of this and earlier starts, two an
      epoch (items, users).
    empty_users: number of users without entries.
    empty_items: number of items without entries.
    config: what it was fitted with.
  """

  user_embeddings: np.ndarray
  item_embeddings: np.ndarray
  biases: Biases | None
  objectives: tuple[float, ...]
  empty_users: int
  empty_items: int
  config: FactorizationConfig

  def predict(self, user_rows, item_rows) -> np.ndarray:
    """x_u.y_i, plus mu + b_u + b_i in the explicit mode; float64 [M]."""
    x = np.asarray(self.user_embeddings[user_rows], np.float64)
    y = np.asarray(self.item_embeddings[item_rows], np.float64)
    scores = np.einsum('me,me->m', x, y)
    if self.biases is not None:
      scores += self.biases.expected(user_rows, item_rows)
    return scores


def fit(
  interactions: Interactions,
  config: FactorizationConfig,
  *,
  mesh=None,
  checkpoint_path=None,
  on_epoch: Callable[[int, float], None] | None = None,
) -> Factorization:
  """Fits both tables; goes on from `checkpoint_path` where it exists.

  Args:
    interactions: observed entries. A pair given twice counts twice.
    config: see FactorizationConfig.
    mesh: jax.sharding.Mesh whose axis 'data' shares the rows, or None.
    checkpoint_path: npz file written atomically after each epoch. A fit that
      was killed and started again ends with the same tables, bit for bit.
    on_epoch: called with (finished epochs, L) after each epoch, and once at
      the start if epochs were restored.
  Returns:
    The fitted model.
  Raises:
    UserError: bad interactions, no entry at all, a checkpoint of another fit,
      or a half step that overflowed.
  """
  if not len(interactions.values):
    raise UserError('there are no interactions to factorize')
  biases = _biases(interactions, config)
  weights, targets = sides.observed_terms(interactions, config, biases)
  fingerprint = _fingerprint(interactions, weights, targets, config)
  terms = sides.scaled_terms(weights, targets, config)
  # Of the size of the data, and no longer needed.
  del weights, targets
  with _precision(config):
    problem = _Problem(interactions, *terms, config, mesh)
    del terms
    state = epochs_lib.restore_or_start(
      checkpoint_path,
      fingerprint=fingerprint,
      start=lambda: _first_users(interactions, config),
    )
    if state.epoch and on_epoch is not None:
      on_epoch(state.epoch, state.objectives[-1])
    while state.epoch < config.epochs:
      state = problem.run_epoch(state)
      if checkpoint_path is not None:
        epochs_lib.save(checkpoint_path, state)
      if on_epoch is not None:
        on_epoch(state.epoch, state.objectives[-1])
  return Factorization(
    user_embeddings=state.users,
    item_embeddings=state.items,
    biases=biases,
    objectives=state.objectives,
    empty_users=int(np.sum(problem.user_side.counts == 0)),
    empty_items=int(np.sum(problem.item_side.counts == 0)),
    config=config,
  )


@dataclasses.dataclass(frozen=True)
class FoldedIn:
  """Rows for new users (or items) against a fitted model.

  Attributes:
    embeddings: [R, E]; zero for a row without entries.
    biases: float64 [R] in the explicit mode, else None.
  """

  embeddings: np.ndarray
  biases: np.ndarray | None


def fold_in(
  interactions: Interactions,
  model: Factorization,
  *,
  side: Literal['user', 'item'] = 'user',
  mesh=None,
) -> FoldedIn:
  """Embeds new rows by one exact half step with training's lambda scaling.

  Args:
    interactions: entries of the new rows. For side 'user', `user_rows` number
      the new users and `item_rows` are rows of the model's items; for side
      'item' the other way round.
    model: fitted model, which stays as it is.
    side: which rows are new.
    mesh: as in `fit`.
  Returns:
    The rows. For training users they equal `model.user_embeddings`, if those
    were fitted by the exact solver.
  Raises:
    UserError: the known side's size differs from the model's.
  """
  config = dataclasses.replace(model.config, solver=Solver())
  biases = model.biases
  known = model.item_embeddings if side == 'user' else model.user_embeddings
  if side == 'item':
    interactions = sides.transposed(interactions)
    if biases is not None:
      biases = Biases(biases.mean, biases.items, biases.users)
  if interactions.num_items != len(known):
    other = 'item' if side == 'user' else 'user'
    raise UserError(
      f'the entries to fold in name {interactions.num_items} {other}s but the '
      f'model has {len(known)}; number them by the rows of the model'
    )
  if biases is not None:
    offsets = user_biases(interactions, biases, config.bias_regularization)
    biases = Biases(biases.mean, offsets, biases.items)
  weights, targets = sides.observed_terms(interactions, config, biases)
  mesh = mesh or one_device_mesh()
  with _precision(config):
    rows = sides.by_user(interactions)
    new = sides.Side(rows, config, mesh)
    table = place_evenly(len(known), mesh)
    terms = sides.scaled_terms(weights, targets, config)
    solve = new.half_step(rows, table.positions, *terms)
    embeddings, squared = solve(table.put(known))
    embeddings = new.placement.get(embeddings)
  if not math.isfinite(squared):
    raise UserError('folding in overflowed; check the size of the values')
  return FoldedIn(embeddings, None if biases is None else biases.users)


class _Problem:
  """Both sides of one factorization."""

  def __init__(self, interactions, root_weights, targets, config, mesh):
    mesh = mesh or one_device_mesh()
    self._config = config
    by_user = sides.by_user(interactions)
    by_item = sides.by_user(sides.transposed(interactions))
    self.user_side = sides.Side(by_user, config, mesh)
    self.item_side = sides.Side(by_item, config, mesh)
    user_rows = self.user_side.placement.positions
    item_rows = self.item_side.placement.positions
    terms = root_weights, targets
    self._solve_users = self.user_side.half_step(by_user, item_rows, *terms)
    self._solve_items = self.item_side.half_step(by_item, user_rows, *terms)

  def run_epoch(self, state):
    user_place, item_place = self.user_side.placement, self.item_side.placement
    users = user_place.put(state.users)
    items = item_place.put(state.items) if len(state.items) else None
    items, squared = self._solve_items(users, items)
    found = item_place.get(items)
    after_items = self._objective(state.users, found, squared, state.epoch)
    users, squared = self._solve_users(items, users)
    users, items = user_place.get(users), found
    after_users = self._objective(users, items, squared, state.epoch)
    return dataclasses.replace(
      state,
      epoch=state.epoch + 1,
      users=users,
      items=items,
      objectives=(*state.objectives, after_items, after_users),
    )

  def _objective(self, users, items, squared, epoch) -> float:
    value = squared + objective.shared_objective(
      users,
      items,
      self.user_side.lambdas,
      self.item_side.lambdas,
      self._config.alpha0,
    )
    if not math.isfinite(value):
      raise UserError(
        f'the objective is {value} in epoch {epoch + 1}: '
        f'{self._config.dtype} overflowed or a system was singular. Raise '
        f'regularization (now {self._config.regularization}) or check the '
        'size of the values'
      )
    return value


def _biases(interactions, config) -> Biases | None:
  if config.mode == 'implicit':
    return None
  return fit_biases(interactions, config.bias_regularization)


def _first_users(interactions, config) -> np.ndarray:
  generator = np.random.default_rng(config.seed)
  shape = (interactions.num_users, config.width)
  scale = config.init_scale / math.sqrt(config.width)
  return (generator.standard_normal(shape) * scale).astype(config.dtype)


def _fingerprint(interactions, weights, targets, config) -> str:
  """Hash of everything that the tables depend on, but the epochs."""
  fields = dataclasses.asdict(config) | {
    'epochs': None,
    'shape': (int(interactions.num_users), int(interactions.num_items)),
  }
  digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
  for array, dtype in (
    (interactions.user_rows, np.int64),
    (interactions.item_rows, np.int64),
    (weights, np.float64),
    (targets, np.float64),
  ):
    digest.update(np.ascontiguousarray(array, dtype))
  return digest.hexdigest()


def _precision(config):
  if config.dtype == 'float64':
    return jax.enable_x64(True)
  return contextlib.nullcontext()


def _check_one_of(name, value, valid) -> None:
  if value not in valid:
    raise UserError(f'{name} is {value!r}; choose one of {", ".join(valid)}')
