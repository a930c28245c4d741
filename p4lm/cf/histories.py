"""Vectors of users whom no fit saw, from what they rated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from p4lm.cf.biases import Biases
from p4lm.cf.factorization import Factorization, FactorizationConfig, fold_in
from p4lm.cf.rows import Interactions
from p4lm.cf.tables import CFTables
from p4lm.cf.towers import HistoryTower
from p4lm.errors import UserError

History = Sequence[Mapping[str, object]]


class HistoryEmbedder:
  """Folds histories into the tables of a `fit_cf` directory.

  As the fit itself embeds its users, so that the training ratings of a user
  give back the user's row: by one half step of weighted ALS, its regularisation
  scaled by the history's length (but a fit that weighed ratings by age takes
  all of a history as new), or through the tower of histories of a two-tower
  model. One whose user tower knows ids alone cannot embed histories.

  Args:
    directory: OUTPUT_DIR of `fit_cf`.
    tables: its tables; vectors are scaled as their `lookup` does.
  Raises:
    UserError: the directory does not say how its tables were fitted, or its
      users are known by ids alone.
  """

  def __init__(self, directory, tables: CFTables):
    about = _read_config(Path(directory))
    self._tables = tables
    self._positive_rating = about['positive_rating']
    if about.get('method') == 'two_tower':
      self._is_implicit = True
      self._embed = _through_tower(directory, about)
    else:
      self._is_implicit = about['factorization']['mode'] == 'implicit'
      self._embed = _by_half_step(directory, about, tables)

  def embed(self, history: History) -> np.ndarray:
    """The vector of one user, float32 [E].

    Args:
      history: {'item_id': id, 'rating': number} of each rated item. A fit of
        implicit feedback may leave out the rating, and passes over those that
        are not positive.
    Raises:
      UserError: no usable item, an unknown or repeated one, or a rating that
        is missing or no finite number.
    """
    entries = [self._entry(entry) for entry in _checked(history)]
    if self._is_implicit:
      entries = [e for e in entries if e[1] >= self._positive_rating]
    if not entries:
      raise UserError('history has no item to know the user by')
    rows, values = zip(*entries)
    if len(set(rows)) < len(rows):
      twice = next(row for row in rows if rows.count(row) > 1)
      raise UserError(
        f'history names item {self._tables.item_ids[twice]!r} twice'
      )
    interactions = Interactions(
      user_rows=np.zeros(len(rows), np.int32),
      item_rows=np.array(rows, np.int32),
      values=np.array(values, np.float32),
      num_users=1,
      num_items=len(self._tables.item_ids),
    )
    return self._tables.scale_vectors('user', self._embed(interactions)[0])

  def _entry(self, entry: Mapping) -> tuple[int, float]:
    id_ = str(entry['item_id'])
    row = self._tables.row('item', id_)
    if row is None:
      raise UserError(f'history names item {id_!r}, which no fit has seen')
    if 'rating' not in entry and self._is_implicit:
      return row, max(1.0, self._positive_rating)
    rating = entry.get('rating')
    if isinstance(rating, bool) or not isinstance(rating, int | float):
      raise UserError(
        f'history: the rating of item {id_!r} must be a number, got {rating!r}'
      )
    if not math.isfinite(rating):
      raise UserError(f'history: the rating of item {id_!r} is {rating}')
    return row, float(rating)


def _by_half_step(
  directory, about: dict, tables: CFTables
) -> Callable[[Interactions], np.ndarray]:
  config = FactorizationConfig.from_fields(about['factorization'])
  is_explicit = config.mode == 'explicit'
  model = Factorization(
    user_embeddings=tables.user_embeddings,
    item_embeddings=tables.item_embeddings,
    biases=Biases.load(directory) if is_explicit else None,
    objectives=(),
    empty_users=0,
    empty_items=0,
    config=config,
  )
  return lambda interactions: fold_in(interactions, model).embeddings


def _through_tower(
  directory, about: dict
) -> Callable[[Interactions], np.ndarray]:
  found = about['two_tower']['user_tower']
  if found != 'history':
    raise UserError(
      f'{directory} was fitted with TwoTowerConfig.user_tower={found!r}, which '
      'knows users by their ids alone: give a user_id instead of a history, or '
      "fit with user_tower='history'"
    )
  return HistoryTower.load(directory).embed


def _checked(history) -> History:
  if not isinstance(history, list | tuple) or not all(
    isinstance(entry, Mapping) and 'item_id' in entry for entry in history
  ):
    raise UserError(
      "history must be a list of {'item_id': ..., 'rating': ...}, got "
      f'{str(history)[:80]}'
    )
  return history


def _read_config(directory: Path) -> dict:
  try:
    return json.loads((directory / 'config.json').read_text())
  except (OSError, ValueError) as error:
    raise UserError(
      f'{directory} does not say how its CF tables were fitted '
      f'(config.json: {error}); histories need an OUTPUT_DIR of fit_cf'
    ) from error
