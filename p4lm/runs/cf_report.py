"""How well CF embeddings predict the validation ratings."""

from __future__ import annotations

import numpy as np

from p4lm.cf.factorization import Factorization
from p4lm.cf.rows import Interactions
from p4lm.cf.tables import CFTables
from p4lm.evaluation import ranking
from p4lm.runs.held_out import read_held_out
from p4lm.runs.rankers import popularity_ranker, ranker_of_tables

_TOP = 20


def rating_error(known: Interactions, model: Factorization) -> dict:
  """RMSE of the model, of the biases alone and of the training mean."""
  values = np.asarray(known.values, np.float64)
  pairs = known.user_rows, known.item_rows
  guesses = {
    'validation_rmse': model.predict(*pairs),
    'validation_rmse_biases': model.biases.expected(*pairs),
    'validation_rmse_mean': np.full_like(values, model.biases.mean),
  }
  return {
    name: float(np.sqrt(np.mean((values - guess) ** 2)))
    for name, guess in guesses.items()
  }


def ranking_quality(data_dir, positive_rating: float, tables: CFTables) -> dict:
  """NDCG@20 of embeddings and of popularity, and their paired difference.

  Args:
    data_dir: tables of `make_data`.
    positive_rating: lower validation ratings are not relevant.
    tables: of a fit on the training ratings, raw.
  """
  held_out = read_held_out(
    data_dir, split='validation', relevant_rating=positive_rating
  )
  metric = f'ndcg@{_TOP}'
  results = {
    name: ranking.evaluate_lists(
      ranker.top(held_out, _TOP), held_out.truth, [_TOP]
    )
    for name, ranker in (
      ('model', ranker_of_tables(held_out, tables)),
      ('popularity', popularity_ranker(held_out)),
    )
  }
  (gain,) = ranking.contrasts(results, [('model', 'popularity')], [metric])
  return {
    f'validation_{metric}': results['model'].means()[metric],
    f'validation_{metric}_popularity': results['popularity'].means()[metric],
    f'validation_{metric}_gain': gain.difference.as_dict(),
    'validation_users': len(held_out.user_ids),
    'conventions': ranking.CONVENTIONS,
  }


def summary(report: dict) -> str:
  """One line of a report of `fit_cf`."""
  head = (
    f'fit_cf: {report["users"]} users, {report["items"]} items, '
    f'{report["train_ratings"]} ratings'
  )
  if 'validation_rmse' in report:
    return (
      f'{head}; validation RMSE {report["validation_rmse"]:.4f} '
      f'(biases alone {report["validation_rmse_biases"]:.4f})'
    )
  if f'validation_ndcg@{_TOP}' in report:
    return (
      f'{head}; validation NDCG@{_TOP} {report[f"validation_ndcg@{_TOP}"]:.4f} '
      f'(popularity {report[f"validation_ndcg@{_TOP}_popularity"]:.4f})'
    )
  if 'validation_ratings' in report:
    return f'{head}; no validation rating to predict'
  return f'{head}; validation ratings among them'
