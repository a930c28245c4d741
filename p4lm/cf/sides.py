"""The entries of a factorization by row, from either side."""

from __future__ import annotations

import dataclasses

import numpy as np

from p4lm.cf.buckets import plan_buckets
from p4lm.cf.half_step import HalfStep
from p4lm.cf.placement import place
from p4lm.cf.rows import CompressedRows, Interactions, compress


class Side:
  """One side's rows: how they are batched, placed and regularized."""

  def __init__(self, rows: CompressedRows, config, mesh):
    self.counts = rows.counts
    self.lambdas = config.row_regularization(rows.counts, rows.num_columns)
    self._buckets = plan_buckets(rows.counts, config.width)
    self.placement = place(rows.num_rows, self._buckets, mesh)
    self._config = config

  def half_step(self, rows, columns_at, root_weights, targets) -> HalfStep:
    """Ready to be solved for tables whose rows lie at `columns_at`.

    Args:
      rows: this side's entries; they are not kept.
      columns_at: int [C].
      root_weights, targets: float [M], see `scaled_terms`, unsorted.
    """
    return HalfStep(
      rows,
      self._buckets,
      self.placement,
      columns_at,
      root_weights[rows.order],
      targets[rows.order],
      self.lambdas,
      width=self._config.width,
      dtype=self._config.dtype,
      alpha0=self._config.alpha0,
      solver=self._config.solver,
    )


def observed_terms(interactions, config, biases):
  """Confidences c and targets p of the entries, each float64 [M].

  Raises:
    UserError: an implicit strength is negative.
  """
  values = np.asarray(interactions.values, np.float64)
  if config.mode == 'explicit':
    expected = biases.expected(interactions.user_rows, interactions.item_rows)
    targets, weights = values - expected, np.ones_like(values)
  else:
    targets, weights = np.ones_like(values), config.confidences(values)
  if interactions.weights is not None:
    weights = np.asarray(interactions.weights, np.float64)
  return weights, targets


def scaled_terms(weights, targets, config):
  """sqrt(c) and sqrt(c) p in the precision of the fit."""
  root = np.sqrt(weights)
  return root.astype(config.dtype), (root * targets).astype(config.dtype)


def by_user(interactions: Interactions) -> CompressedRows:
  """The entries sorted by user."""
  return compress(
    interactions.user_rows,
    interactions.item_rows,
    interactions.num_users,
    interactions.num_items,
  )


def transposed(interactions: Interactions) -> Interactions:
  """The same entries with users for items and items for users."""
  return dataclasses.replace(
    interactions,
    user_rows=interactions.item_rows,
    item_rows=interactions.user_rows,
    num_users=interactions.num_items,
    num_items=interactions.num_users,
  )
