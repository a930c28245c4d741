r"""The iALS objective, computed exactly in float64, for any two tables.

  L = sum_{(u,i) observed} c_ui (p_ui - x_u.y_i)^2
    + alpha0 sum_{all u,i} (x_u.y_i)^2
    + sum_u lambda_u |x_u|^2 + sum_i lambda_i |y_i|^2

(Hu et al. 2008 in the form of Rendle et al. 2021, "iALS++", eq. 2.) The sum
over all pairs is the inner product of the two Gram matrices.
"""

from __future__ import annotations

import numpy as np

from p4lm.errors import UserError

_CHUNK = 1 << 16


def row_regularization(
  counts, num_columns, *, alpha0, regularization, exponent
):
  """lambda of each row: lambda (n + alpha0 C)^nu, scaled by frequency.

  n is the number of observed entries of the row and C the number of columns.
  nu = 0 is one constant lambda; nu = 1 scales with the entries' total weight
  (with alpha0 = 0 that is ALS-WR's lambda n of Zhou et al. 2008). irspack and
  iALS++ use this scaling. Training and fold-in share this one function, so a
  folded-in training row equals its half step.

  >>> row_regularization(
  ...   [4, 0], 100, alpha0=0.05, regularization=0.1, exponent=1.0).tolist()
  [0.9, 0.5]

  Args:
    counts: int [R], n of each row.
    num_columns: C.
    alpha0: weight of all entries.
    regularization: lambda.
    exponent: nu.
  Returns:
    float64 [R].
  """
  total = np.asarray(counts, np.float64) + alpha0 * num_columns
  return regularization * total**exponent


def confidences(values, *, rule, scale) -> np.ndarray:
  """c of implicit entries: 'constant' 1, 'linear' 1 + s v, 'log' 1 + s log1p v.

  >>> confidences([0.0, 2.0], rule='linear', scale=0.5).tolist()
  [1.0, 2.0]

  Args:
    values: float [M], strengths v.
    rule: name of the rule.
    scale: s.
  Returns:
    float64 [M].
  Raises:
    UserError: a strength is negative.
  """
  values = np.asarray(values, np.float64)
  if len(values) and values.min() < 0:
    raise UserError(
      f'values[{int(values.argmin())}] is {values.min()}; the implicit mode '
      "takes strengths >= 0. Drop it, or use mode='explicit'"
    )
  rules = {
    'constant': lambda v: np.ones_like(v),
    'linear': lambda v: 1 + scale * v,
    'log': lambda v: 1 + scale * np.log1p(v),
  }
  return rules[rule](values)


def shared_objective(users, items, user_lambdas, item_lambdas, alpha0) -> float:
  """The part of the objective that no observed entry enters."""
  users = np.asarray(users, np.float64)
  items = np.asarray(items, np.float64)
  pairs = np.sum((users.T @ users) * (items.T @ items)) if alpha0 else 0.0
  ridge = user_lambdas @ np.sum(users**2, 1) + item_lambdas @ np.sum(
    items**2, 1
  )
  return float(alpha0 * pairs + ridge)


def observed_objective(user_rows, item_rows, weights, targets, users, items):
  """sum over observed c (p - x.y)^2, read in chunks of entries.

  Args:
    user_rows, item_rows: int [M].
    weights: float [M], c.
    targets: float [M], p.
    users, items: float [U, E] and [I, E].
  Returns:
    float.
  """
  total = 0.0
  for start in range(0, len(targets), _CHUNK):
    part = slice(start, start + _CHUNK)
    rows = np.asarray(users[user_rows[part]], np.float64)
    columns = np.asarray(items[item_rows[part]], np.float64)
    errors = targets[part] - np.einsum('me,me->m', rows, columns)
    total += float(np.sum(weights[part] * errors**2))
  return total
