"""Fits the CF embeddings that become soft tokens: ratings -> tables."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tqdm

from p4lm import output_directory
from p4lm.cf.factorization import (
  Factorization,
  FactorizationConfig,
  Interactions,
  fit,
)
from p4lm.cf.recency import recency_weights
from p4lm.cf.tables import CFTables
from p4lm.data import tables as data_tables
from p4lm.errors import UserError
from p4lm.evaluation import ranking
from p4lm.runs.held_out import positions, read_held_out
from p4lm.runs.rankers import popularity_ranker, ranker_of_tables
from p4lm.training.metric_writers import MetricWriter

_TOP = 20
# The test split judges what was fitted.
_FITTED_SPLITS = ('train', 'validation')


def fit_cf(
  *,
  data_dir: str,
  output_dir: str,
  width: int = 64,
  epochs: int = 15,
  mode: str = 'explicit',
  alpha0: float = 0.0,
  regularization: float = 0.1,
  exponent: float = 1.0,
  confidence: str = 'constant',
  confidence_scale: float = 1.0,
  bias_regularization: float = 5.0,
  positive_rating: float = 0.0,
  half_life_days: float | None = None,
  splits: Sequence[str] = ('train',),
  seed: int = 0,
) -> None:
  """Fits user and item embeddings by weighted ALS on the training ratings.

  Writes `user_embeddings.npy`, `item_embeddings.npy`, `ids.json` and
  `tables.json` (see CFTables), `biases.npz` in the explicit mode,
  `config.json`, `metrics.jsonl` (the objective by epoch) and `fit.json` (what
  was fitted and how well it predicts the validation ratings, unless they are
  fitted too). The tables hold the users and items that have ratings in these
  splits; `evaluate` ranks the test ratings with them. Started again, a killed
  fit goes on after its last epoch and a finished one is kept. The rows of a
  half step are shared by all devices.

  Args:
    data_dir: tables of `make_data`.
    output_dir: directory of the tables.
    width: E, numbers in an embedding.
    epochs: epochs of two half steps each.
    mode: 'explicit' factorizes what mean and biases leave of the ratings;
      'implicit' the fact that an item was rated at all.
    alpha0: weight of all pairs, rated or not.
    regularization: lambda.
    exponent: nu: lambda grows with (ratings of the row + alpha0 columns)^nu.
    confidence: weight of an implicit entry: 'constant', 'linear' or 'log'.
    confidence_scale: scale of the latter two.
    bias_regularization: ratings at the mean that each bias starts from.
    positive_rating: implicit mode: lower ratings are no interaction.
    half_life_days: implicit mode: the weight of a rating is halved for every
      so many days that it is older than the newest; None weighs all alike.
    splits: whose ratings are fitted: ('train',), or ('train', 'validation')
      once the configuration is chosen.
    seed: of the first user embeddings.
  Raises:
    UserError: the ratings are missing or empty, a parameter is out of range,
      the test split is to be fitted,
      or `output_dir` holds tables of another fit.
  """
  config = FactorizationConfig(
    width=width, epochs=epochs, mode=mode, alpha0=alpha0,
    regularization=regularization, exponent=exponent, confidence=confidence,
    confidence_scale=confidence_scale,
    bias_regularization=bias_regularization, seed=seed,
  )  # fmt: skip
  _check_options(config, half_life_days, splits)
  directory = output_directory.claim(output_dir)
  about = _describe(data_dir, config, positive_rating, half_life_days, splits)
  if _is_finished(directory, about):
    print(f'fit_cf: {directory} holds these tables already, kept')
    return
  train = _read(data_dir, splits, config, positive_rating, half_life_days)
  model = _fit_with_progress(train.interactions, config, directory)
  tables = CFTables(
    model.user_embeddings, model.item_embeddings, train.user_ids,
    train.item_ids, scale='raw',
  )  # fmt: skip
  report = _about_fit(train, model)
  if 'validation' not in splits:
    report |= _about_validation(
      data_dir, config, positive_rating, train, model, tables
    )
  _save(directory, about, report, tables, model)
  print(_summary(report))


def _check_options(config, half_life_days, splits) -> None:
  wrong = [name for name in splits if name not in _FITTED_SPLITS]
  if isinstance(splits, str) or not splits or wrong:
    raise UserError(
      f'splits is {splits!r}; fit on {_FITTED_SPLITS[:1]} or {_FITTED_SPLITS}: '
      'the test ratings judge'
    )
  if half_life_days is not None and config.mode != 'implicit':
    raise UserError(
      f'half_life_days is {half_life_days} but the mode is {config.mode!r}; '
      "it weighs interactions of mode 'implicit'"
    )


@dataclasses.dataclass(frozen=True)
class _Ratings:
  """Interactions with the ids behind their rows."""

  interactions: Interactions
  user_ids: list[str]
  item_ids: list[str]


def _read(
  data_dir, splits, config, positive_rating, half_life_days=None
) -> _Ratings:
  ratings = data_tables.read_ratings(data_dir, splits)
  users, items = ratings.users, ratings.items
  if not len(ratings.ratings):
    raise UserError(
      f'{data_dir}/ratings.parquet has no row of split {" or ".join(splits)}'
    )
  kept = slice(None)
  if config.mode == 'implicit' and positive_rating > 0:
    kept = ratings.ratings >= positive_rating
    if not kept.any():
      raise UserError(
        f'no rating of {" or ".join(splits)} in {data_dir} is >= '
        f'positive_rating {positive_rating}; lower it'
      )
  weights = None
  if half_life_days is not None:
    weights = config.confidences(ratings.ratings[kept]) * recency_weights(
      ratings.timestamps[kept], half_life_days
    )
  interactions = Interactions(
    users.codes[kept],
    items.codes[kept],
    ratings.ratings[kept],
    len(users.ids),
    len(items.ids),
    weights,
  )
  return _Ratings(interactions, users.ids, items.ids)


def _fit_with_progress(interactions, config, directory) -> Factorization:
  devices = jax.devices()
  mesh = None
  if len(devices) > 1:
    mesh = jax.sharding.Mesh(np.array(devices), ('data',))
  bar = tqdm.tqdm(
    total=config.epochs, desc='fit_cf', unit='epoch', disable=None
  )
  with bar, MetricWriter(directory) as writer:
    epochs = []

    def on_epoch(epoch: int, objective: float) -> None:
      if not epochs:
        # The first epoch seen may be one that an earlier start finished.
        writer.drop_after(epoch - 1)
      epochs.append(epoch)
      writer.write(epoch, {'objective': objective})
      bar.set_postfix(objective=f'{objective:.6g}')
      bar.update(epoch - bar.n)

    return fit(
      interactions,
      config,
      mesh=mesh,
      checkpoint_path=directory / 'fit.npz',
      on_epoch=on_epoch,
    )


def _about_fit(train: _Ratings, model: Factorization) -> dict:
  return {
    'users': len(train.user_ids),
    'items': len(train.item_ids),
    'train_ratings': len(train.interactions.values),
    'empty_users': model.empty_users,
    'empty_items': model.empty_items,
    'objective': model.objectives[-1],
    'objectives': list(model.objectives),
  }


def _about_validation(
  data_dir, config, positive_rating, train, model, tables
) -> dict:
  """How well the fit predicts the validation ratings, where it can."""
  ratings = data_tables.read_ratings(data_dir, ['validation'])
  lowest = positive_rating if config.mode == 'implicit' else -np.inf
  known = _known_pairs(train, ratings, lowest)
  unknown = int(np.sum(ratings.ratings >= lowest)) - len(known.values)
  found = {
    'validation_ratings': len(known.values),
    'validation_ratings_of_unknown_ids': unknown,
  }
  if not len(known.values):
    return found
  if config.mode == 'explicit':
    return found | _rating_error(known, model)
  return found | _ranking_quality(data_dir, positive_rating, tables)


def _known_pairs(train: _Ratings, other, lowest: float) -> Interactions:
  """Other ratings, at least `lowest`, in the rows of the training ids."""
  users = positions(other.users.ids, train.user_ids)[other.users.codes]
  items = positions(other.items.ids, train.item_ids)[other.items.codes]
  kept = (users >= 0) & (items >= 0) & (other.ratings >= lowest)
  return Interactions(
    users[kept],
    items[kept],
    other.ratings[kept],
    len(train.user_ids),
    len(train.item_ids),
  )


def _rating_error(known, model) -> dict:
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


def _ranking_quality(data_dir, positive_rating, tables) -> dict:
  """NDCG@20 of the model and of popularity, and their paired difference."""
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


def _summary(report: dict) -> str:
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


def _save(directory: Path, about, report, tables, model: Factorization) -> None:
  """Writes everything, the tables last: they vouch for the rest."""
  _write_json(directory / 'config.json', about)
  _write_json(directory / 'fit.json', report)
  if model.biases is not None:
    model.biases.save(directory)
  tables.save(directory)
  (directory / 'fit.npz').unlink(missing_ok=True)


def _describe(data_dir, config, positive_rating, half_life_days, splits):
  """What the tables depend on; equal descriptions give equal tables."""
  path = Path(data_dir) / 'ratings.parquet'
  if not path.is_file():
    raise UserError(
      f'{path} does not exist; DATA_DIR must be a directory that make_data '
      'wrote'
    )
  return {
    'factorization': dataclasses.asdict(config),
    'positive_rating': positive_rating,
    'half_life_days': half_life_days,
    'splits': list(splits),
    'ratings_sha256': data_tables.hash_file(path),
  }


def _is_finished(directory: Path, about: dict) -> bool:
  """Whether the tables of this fit are there.

  Raises:
    UserError: the tables of another fit are there, or damaged ones.
  """
  if not (directory / 'tables.json').exists():
    return False
  try:
    found = json.loads((directory / 'config.json').read_text())
  except (OSError, ValueError):
    found = None
  if found != about:
    raise UserError(
      f'OUTPUT_DIR {directory} holds CF tables of other ratings or another '
      'configuration; choose another --gin.OUTPUT_DIR'
    )
  CFTables.load(directory)
  return True


def _write_json(path: Path, value) -> None:
  partial = path.with_name(f'.{path.name}.partial')
  partial.write_text(json.dumps(value, indent=2) + '\n')
  os.replace(partial, path)
