"""Fits the CF embeddings that become soft tokens: ratings -> tables.

wals       weighted alternating least squares, exact half steps over all pairs
two_tower  two neural towers, trained by sampled softmax on positive pairs
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from p4lm import output_directory
from p4lm.cf.factorization import Factorization, FactorizationConfig
from p4lm.cf.solvers import Solver
from p4lm.cf.tables import CFTables
from p4lm.data.atomic import write_json
from p4lm.errors import UserError
from p4lm.models.two_tower import TwoTowerConfig
from p4lm.runs import cf_ratings, cf_report
from p4lm.runs.fitting import FitConfig
from p4lm.runs.two_tower_fit import SampledSoftmaxConfig, TwoTowerMethod
from p4lm.runs.wals_fit import Wals
from p4lm.training.optimizers import OptimizerConfig

METHODS = ('wals', 'two_tower')
_TOWER_TRAINING = FitConfig(
  stage='full',
  optimizer=OptimizerConfig('adagrad', 0.1, schedule='linear', eps=1e-6),
  steps=1000,
  seed=0,
)


def fit_cf(
  *,
  data_dir: str,
  output_dir: str,
  method: str = 'wals',
  width: int = 64,
  positive_rating: float = 0.0,
  half_life_days: float | None = None,
  splits: Sequence[str] = ('train',),
  seed: int = 0,
  epochs: int = 15,
  mode: str = 'explicit',
  alpha0: float = 0.0,
  regularization: float = 0.1,
  exponent: float = 1.0,
  confidence: str = 'constant',
  confidence_scale: float = 1.0,
  bias_regularization: float = 5.0,
  solver: Solver | None = None,
  two_tower: TwoTowerConfig | None = None,
  sampling: SampledSoftmaxConfig | None = None,
  training: FitConfig | None = None,
) -> None:
  """Fits user and item embeddings on the training ratings.

  Writes `user_embeddings.npy`, `item_embeddings.npy`, `ids.json` and
  `tables.json` (see CFTables), what embeds further users (`biases.npz` for
  explicit ratings, `history_tower.npz` for towers of histories), `config.json`,
  `metrics.jsonl` (the objective by epoch, the loss by step) and `fit.json`
  (what was fitted and how well it predicts the validation ratings, unless they
  are fitted too). The tables hold the users and items that have ratings in the
  fitted splits; `evaluate` ranks the test ratings with them. Started again, a
  killed fit goes on after its last epoch or checkpoint and a finished one is
  kept.

  Args:
    data_dir: tables of `make_data`.
    output_dir: directory of the tables.
    method: 'wals', whose half steps share their rows among all devices, or
      'two_tower'.
    width: E, numbers in an embedding.
    positive_rating: implicit feedback (wals in mode 'implicit', two_tower):
      lower ratings are no interaction.
    half_life_days: wals in mode 'implicit': the weight of a rating is halved
      for every so many days that it is older than the newest; None weighs all
      alike.
    splits: whose ratings are fitted: ('train',), or ('train', 'validation')
      once the configuration is chosen.
    seed: of wals' first embeddings.
    epochs: wals: epochs of two half steps each.
    mode: wals: 'explicit' factorizes what mean and biases leave of the ratings;
      'implicit' the fact that an item was rated at all.
    alpha0: wals: weight of all pairs, rated or not.
    regularization: wals: lambda.
    exponent: wals: nu: lambda grows with (ratings of the row + alpha0
      columns)^nu.
    confidence: wals: weight of an implicit entry: 'constant', 'linear' or
      'log'.
    confidence_scale: wals: scale of the latter two.
    bias_regularization: wals: ratings at the mean that each bias starts from.
    solver: wals: 'cholesky' solves each row exactly; 'cg' and 'block' take
      cheaper steps, which pays from some 256 factors on.
    two_tower: two_tower: shape of the towers.
    sampling: two_tower: batches, negatives and weights.
    training: two_tower: optimizer, steps, seed and mesh; Adagrad by default.
  Raises:
    UserError: the ratings are missing or empty, a parameter is out of range,
      the test split is to be fitted, the loss is not finite, or `output_dir`
      holds tables of another fit.
  """
  if method == 'wals':
    config = FactorizationConfig(
      width=width, epochs=epochs, mode=mode, alpha0=alpha0,
      regularization=regularization, exponent=exponent, confidence=confidence,
      confidence_scale=confidence_scale,
      bias_regularization=bias_regularization, seed=seed,
      solver=solver or Solver(),
    )  # fmt: skip
    chosen = Wals(config, positive_rating, half_life_days)
  elif method == 'two_tower':
    if half_life_days is not None:
      raise UserError(
        f'half_life_days is {half_life_days} but METHOD is two_tower; it '
        "weighs interactions of wals in mode 'implicit'"
      )
    chosen = TwoTowerMethod(
      width,
      two_tower or TwoTowerConfig(),
      sampling or SampledSoftmaxConfig(),
      training or _TOWER_TRAINING,
      positive_rating,
    )
  else:
    raise UserError(f'METHOD is {method!r}; choose one of {", ".join(METHODS)}')
  cf_ratings.check_fitted_splits(splits)
  directory = output_directory.claim(output_dir)
  about = _plain(
    chosen.about()
    | {
      'splits': list(splits),
      'ratings_sha256': cf_ratings.ratings_sha256(data_dir),
    }
  )
  if _is_finished(directory, about):
    print(f'fit_cf: {directory} holds these tables already, kept')
    return
  fitted = cf_ratings.read_splits(
    data_dir,
    splits,
    chosen.threshold,
    half_life_days=half_life_days,
    confidences=chosen.confidences,
  )
  model = chosen.fit(fitted.interactions, directory, about)
  tables = CFTables(
    model.user_embeddings, model.item_embeddings, fitted.user_ids,
    fitted.item_ids, scale='raw',
  )  # fmt: skip
  report = _about_fit(fitted) | chosen.progress(model, directory)
  if 'validation' not in splits:
    report |= _about_validation(data_dir, chosen, fitted, model, tables)
  # The tables last: they vouch for the rest.
  write_json(directory / 'config.json', about)
  write_json(directory / 'fit.json', report)
  chosen.save(model, directory)
  tables.save(directory)
  chosen.clear(directory)
  print(cf_report.summary(report))


def _about_fit(fitted: cf_ratings.SplitRatings) -> dict:
  found = fitted.interactions
  return {
    'users': found.num_users,
    'items': found.num_items,
    'train_ratings': len(found.values),
    'empty_users': found.num_users - len(np.unique(found.user_rows)),
    'empty_items': found.num_items - len(np.unique(found.item_rows)),
  }


def _about_validation(data_dir, chosen, fitted, model, tables) -> dict:
  """How well the fit predicts the validation ratings, where it can."""
  validation = cf_ratings.read_splits(
    data_dir, ('validation',), chosen.threshold
  )
  known = cf_ratings.known_pairs(fitted, validation)
  found = {
    'validation_ratings': len(known.values),
    'validation_ratings_of_unknown_ids': (
      len(validation.interactions.values) - len(known.values)
    ),
  }
  if not len(known.values):
    return found
  if isinstance(model, Factorization) and model.biases is not None:
    return found | cf_report.rating_error(known, model)
  return found | cf_report.ranking_quality(data_dir, chosen.threshold, tables)


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


def _plain(about: dict) -> dict:
  """As it will be read again: JSON has no tuples."""
  return json.loads(json.dumps(about))
