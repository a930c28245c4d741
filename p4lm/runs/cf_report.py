"""How well CF embeddings predict the ratings that were held out."""

from __future__ import annotations

import numpy as np

from p4lm.cf.factorization import Factorization
from p4lm.cf.rows import Interactions
from p4lm.evaluation import ranking, statistics

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


def ranking_quality(
  seen: Interactions, known: Interactions, user_embeddings, item_embeddings
) -> dict:
  """NDCG@20 of embeddings and of popularity, and their paired difference.

  Args:
    seen: training entries, which never enter a list; their counts are the
      popularity.
    known: held-out entries, the relevant ones.
    user_embeddings, item_embeddings: float [U, E] and [I, E].
  """
  rated = ranking.ItemLists.from_pairs(
    seen.user_rows, seen.item_rows, seen.num_users
  )
  truth = ranking.ItemLists.from_pairs(
    known.user_rows, known.item_rows, seen.num_users
  )
  popularity = np.bincount(seen.item_rows, minlength=seen.num_items)
  found = {}
  for name, users, items in (
    ('model', user_embeddings, item_embeddings),
    ('popularity', np.ones((seen.num_users, 1)), popularity[:, None]),
  ):
    top = ranking.top_items(users, items, _TOP, exclude=rated)
    result = ranking.evaluate_lists(top, truth, [_TOP])
    values = result.values[f'ndcg@{_TOP}']
    found[name] = values[~np.isnan(values)]
  gain = found['model'] - found['popularity']
  (interval,) = statistics.mean_intervals(gain, samples=2000)
  return {
    f'validation_ndcg@{_TOP}': float(found['model'].mean()),
    f'validation_ndcg@{_TOP}_popularity': float(found['popularity'].mean()),
    f'validation_ndcg@{_TOP}_gain': interval.as_dict(),
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
  return f'{head}; no validation rating to predict'
