r"""Offsets of explicit ratings: r_ui is near mu + b_u + b_i.

They are fitted before the factors, by exact alternating minimisation of

  sum_obs (r_ui - mu - b_u - b_i)^2 + lambda_b (sum_u b_u^2 + sum_i b_i^2),

so b_u = sum_i (r_ui - mu - b_i) / (lambda_b + n_u), and likewise for items.
The factors then explain what is left.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path

import numpy as np

from p4lm.errors import UserError

_SWEEPS = 10
_FILE = 'biases.npz'


@dataclasses.dataclass(frozen=True)
class Biases:
  """The mean and the offsets of users and items.

  Attributes:
    mean: float, mu.
    users: float64 [U]; 0 for a user without ratings.
    items: float64 [I].
  """

  mean: float
  users: np.ndarray
  items: np.ndarray

  def expected(self, user_rows, item_rows) -> np.ndarray:
    """mu + b_u + b_i of each pair, float64 [M]."""
    return self.mean + self.users[user_rows] + self.items[item_rows]

  def save(self, directory) -> None:
    """Writes `biases.npz`, whole."""
    partial = Path(directory) / '.biases.partial.npz'
    np.savez(partial, mean=self.mean, users=self.users, items=self.items)
    os.replace(partial, Path(directory) / _FILE)

  @classmethod
  def load(cls, directory) -> Biases:
    """Reads what `save` wrote.

    Raises:
      UserError: it is missing or damaged.
    """
    path = Path(directory) / _FILE
    try:
      with np.load(path, allow_pickle=False) as file:
        return cls(float(file['mean']), file['users'], file['items'])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
      raise UserError(
        f'{path} is missing or damaged ({error}); remove the directory and run '
        'fit_cf again'
      ) from error


def fit_biases(interactions, regularization: float) -> Biases:
  """Fits the offsets; ends with the users, whose rule `user_biases` repeats.

  >>> from p4lm.cf.rows import Interactions
  >>> ratings = Interactions(
  ...   np.array([0, 1]), np.array([0, 0]), np.array([5.0, 3.0]), 2, 1)
  >>> fit_biases(ratings, regularization=1.0).users.tolist()
  [0.5, -0.5]

  Args:
    interactions: Interactions with M ratings.
    regularization: lambda_b, in ratings: how many ratings at the mean each
      user and item is given beforehand.
  Returns:
    The biases. Without any rating all are 0.
  """
  rows, columns = interactions.user_rows, interactions.item_rows
  values = np.asarray(interactions.values, np.float64)
  mean = float(values.mean()) if len(values) else 0.0
  users = np.zeros(interactions.num_users)
  items = np.zeros(interactions.num_items)
  for _ in range(_SWEEPS):
    items = _offsets(
      columns, values - mean - users[rows], items, regularization
    )
    users = _offsets(
      rows, values - mean - items[columns], users, regularization
    )
  return Biases(mean, users, items)


def user_biases(interactions, biases: Biases, regularization: float):
  """Offsets float64 [U] of (new) users given the items' biases."""
  values = np.asarray(interactions.values, np.float64)
  left = values - biases.mean - biases.items[interactions.item_rows]
  zeros = np.zeros(interactions.num_users)
  return _offsets(interactions.user_rows, left, zeros, regularization)


def _offsets(rows, left, like, regularization) -> np.ndarray:
  sums = np.bincount(rows, weights=left, minlength=len(like))
  counts = np.bincount(rows, minlength=len(like))
  # Without regularisation a row without ratings would be 0/0.
  return sums / np.maximum(counts + regularization, np.finfo(float).tiny)
