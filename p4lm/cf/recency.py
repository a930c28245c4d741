"""Weights of ratings by their age: tastes and catalogues move on."""

from __future__ import annotations

import numpy as np

from p4lm.errors import UserError

_DAY = 86400.0
_MOST_HALVINGS = 60.0


def recency_weights(timestamps, half_life_days: float) -> np.ndarray:
  """2^(-age / half-life), age in days before the newest; float64 [M].

  Never below 2^-60, so that a user who has long been away keeps a vector.

  >>> recency_weights([0, 86400, 172800], half_life_days=1.0).tolist()
  [0.25, 0.5, 1.0]

  Args:
    timestamps: int [M], seconds.
    half_life_days: days in which a weight is halved.
  Raises:
    UserError: the half-life is not positive.
  """
  if not half_life_days > 0:
    raise UserError(
      f'half_life_days is {half_life_days}; it must be a positive number of '
      'days, or None to weigh all ratings alike'
    )
  timestamps = np.asarray(timestamps, np.float64)
  ages = (timestamps.max(initial=-np.inf) - timestamps) / _DAY
  return np.exp2(-np.minimum(ages / half_life_days, _MOST_HALVINGS))
