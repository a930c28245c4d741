"""Fits the CF embeddings that become soft tokens: ratings -> tables."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
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
from p4lm.cf.tables import CFTables
from p4lm.data import tables as data_tables
from p4lm.errors import UserError
from p4lm.evaluation import ranking, statistics
from p4lm.training.metric_writers import MetricWriter

_TOP = 20


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
  seed: int = 0,
) -> None:
  """Fits user and item embeddings by weighted ALS on the training ratings.

  Writes `user_embeddings.npy`, `item_embeddings.npy`, `ids.json` and
  `tables.json` (see CFTables), `biases.npz` in the explicit mode,
  `config.json`, `metrics.jsonl` (the objective by epoch) and `fit.json` (what
  was fitted and how well it predicts the validation ratings). The tables hold
  the users and items that have training ratings. Started again, a killed fit
  goes on after its last epoch and a finished one is kept. The rows of a half
  step are shared by all devices.

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
    seed: of the first user embeddings.
  Raises:
    UserError: the ratings are missing or empty, a parameter is out of range,
      or `output_dir` holds tables of another fit.
  """
  config = FactorizationConfig(
    width=width, epochs=epochs, mode=mode, alpha0=alpha0,
    regularization=regularization, exponent=exponent, confidence=confidence,
    confidence_scale=confidence_scale,
    bias_regularization=bias_regularization, seed=seed,
  )  # fmt: skip
  directory = output_directory.claim(output_dir)
  about = _describe(data_dir, config, positive_rating)
  if _is_finished(directory, about):
    print(f'fit_cf: {directory} holds these tables already, kept')
    return
  train = _read(data_dir, 'train', config, positive_rating)
  model = _fit_with_progress(train.interactions, config, directory)
  report = _report(data_dir, config, positive_rating, train, model)
  _save(directory, about, report, train, model)
  print(_summary(report))


@dataclasses.dataclass(frozen=True)
class _Ratings:
  """Interactions with the ids behind their rows."""

  interactions: Interactions
  user_ids: list[str]
  item_ids: list[str]


def _read(data_dir, split, config, positive_rating) -> _Ratings:
  ratings = data_tables.read_ratings(data_dir, [split])
  users, items = ratings.users, ratings.items
  kept = slice(None)
  if config.mode == 'implicit' and positive_rating > 0:
    kept = ratings.ratings >= positive_rating
    if split == 'train' and not kept.any():
      raise UserError(
        f'no training rating in {data_dir} is >= positive_rating '
        f'{positive_rating}; lower it'
      )
  interactions = Interactions(
    users.codes[kept],
    items.codes[kept],
    ratings.ratings[kept],
    len(users.ids),
    len(items.ids),
  )
  if split == 'train' and not len(interactions.values):
    raise UserError(f'{data_dir}/ratings.parquet has no row of split train')
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


def _report(data_dir, config, positive_rating, train, model) -> dict:
  validation = _read(data_dir, 'validation', config, positive_rating)
  known = _known_pairs(train, validation)
  score = _rating_error if config.mode == 'explicit' else _ranking_quality
  return {
    'users': len(train.user_ids),
    'items': len(train.item_ids),
    'train_ratings': len(train.interactions.values),
    'empty_users': model.empty_users,
    'empty_items': model.empty_items,
    'objective': model.objectives[-1],
    'objectives': list(model.objectives),
    'validation_ratings': len(known.values),
    'validation_ratings_of_unknown_ids': (
      len(validation.interactions.values) - len(known.values)
    ),
    **(score(train, known, model) if len(known.values) else {}),
  }


def _known_pairs(train: _Ratings, other: _Ratings) -> Interactions:
  """The other split's entries in the rows of the training ids."""
  found = other.interactions
  user_row = {id_: row for row, id_ in enumerate(train.user_ids)}
  item_row = {id_: row for row, id_ in enumerate(train.item_ids)}
  users = np.array([user_row.get(i, -1) for i in other.user_ids], np.int32)
  items = np.array([item_row.get(i, -1) for i in other.item_ids], np.int32)
  user_rows, item_rows = users[found.user_rows], items[found.item_rows]
  kept = (user_rows >= 0) & (item_rows >= 0)
  return Interactions(
    user_rows[kept],
    item_rows[kept],
    found.values[kept],
    len(train.user_ids),
    len(train.item_ids),
  )


def _rating_error(train, known, model) -> dict:
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


def _ranking_quality(train, known, model) -> dict:
  """NDCG@20 of the model and of popularity, and their paired difference."""
  seen = train.interactions
  rated = ranking.ItemLists.from_pairs(
    seen.user_rows, seen.item_rows, seen.num_users
  )
  truth = ranking.ItemLists.from_pairs(
    known.user_rows, known.item_rows, seen.num_users
  )
  popularity = np.bincount(seen.item_rows, minlength=seen.num_items)
  found = {}
  for name, users, items in (
    ('model', model.user_embeddings, model.item_embeddings),
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
  return f'{head}; no validation rating to predict'


def _save(directory: Path, about, report, train, model: Factorization) -> None:
  """Writes everything, the tables last: they vouch for the rest."""
  _write_json(directory / 'config.json', about)
  _write_json(directory / 'fit.json', report)
  if model.biases is not None:
    model.biases.save(directory)
  tables = CFTables(
    model.user_embeddings, model.item_embeddings, train.user_ids, train.item_ids
  )
  tables.save(directory)
  (directory / 'fit.npz').unlink(missing_ok=True)


def _describe(data_dir, config, positive_rating) -> dict:
  """What the tables depend on; equal descriptions give equal tables."""
  path = Path(data_dir) / 'ratings.parquet'
  if not path.is_file():
    raise UserError(
      f'{path} does not exist; DATA_DIR must be a directory that make_data '
      'wrote'
    )
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return {
    'factorization': dataclasses.asdict(config),
    'positive_rating': positive_rating,
    'ratings_sha256': digest,
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
