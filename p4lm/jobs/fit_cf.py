"""Fits the CF embeddings that become soft tokens: ratings -> tables.

wals       weighted alternating least squares, exact half steps over all pairs
two_tower  two neural towers, trained by sampled softmax on positive pairs
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import tqdm

from p4lm import output_directory
from p4lm.cf.factorization import Factorization, FactorizationConfig, fit
from p4lm.cf.tables import CFTables
from p4lm.errors import UserError
from p4lm.models.two_tower import TwoTowerConfig
from p4lm.runs import cf_ratings, cf_report
from p4lm.runs.fitting import FitConfig
from p4lm.runs.two_tower_fit import (
  SampledSoftmaxConfig,
  TwoTowerFit,
  fit_two_tower,
)
from p4lm.training.metric_writers import MetricWriter, read_metrics
from p4lm.training.optimizers import OptimizerConfig

METHODS = ('wals', 'two_tower')


def fit_cf(
  *,
  data_dir: str,
  output_dir: str,
  method: str = 'wals',
  width: int = 64,
  positive_rating: float = 0.0,
  seed: int = 0,
  epochs: int = 15,
  mode: str = 'explicit',
  alpha0: float = 0.0,
  regularization: float = 0.1,
  exponent: float = 1.0,
  confidence: str = 'constant',
  confidence_scale: float = 1.0,
  bias_regularization: float = 5.0,
  two_tower: TwoTowerConfig | None = None,
  sampling: SampledSoftmaxConfig | None = None,
  optimizer: OptimizerConfig | None = None,
  steps: int = 1000,
  mesh_shape: str | None = None,
  log_every: int = 50,
  checkpoint_every: int = 500,
) -> None:
  """Fits user and item embeddings on the training ratings.

  Writes `user_embeddings.npy`, `item_embeddings.npy`, `ids.json` and
  `tables.json` (see CFTables), what embeds further users (`biases.npz` for
  explicit ratings, `history_tower.npz` for towers of histories), `config.json`,
  `metrics.jsonl` (the objective by epoch, the loss by step) and `fit.json`
  (what was fitted and how well it predicts the validation ratings). The tables
  hold the users and items that have training ratings. Started again, a killed
  fit goes on after its last epoch or checkpoint and a finished one is kept.

  Args:
    data_dir: tables of `make_data`.
    output_dir: directory of the tables.
    method: 'wals', whose half steps share their rows among all devices, or
      'two_tower'.
    width: E, numbers in an embedding.
    positive_rating: implicit feedback (wals in mode 'implicit', two_tower):
      lower ratings are no interaction.
    seed: of the first embeddings, and of two_tower's batches.
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
    two_tower: shape of the towers.
    sampling: two_tower: batches, negatives and weights.
    optimizer: two_tower: its name, rate and schedule; Adagrad by default.
    steps: two_tower: updates in all.
    mesh_shape: two_tower: such as 'data=2,fsdp=2'; None puts every device on
      `data`.
    log_every, checkpoint_every: two_tower: in steps.
  Raises:
    UserError: the ratings are missing or empty, a parameter is out of range,
      the loss is not finite, or `output_dir` holds tables of another fit.
  """
  if method == 'wals':
    chosen = _Wals(
      FactorizationConfig(
        width=width, epochs=epochs, mode=mode, alpha0=alpha0,
        regularization=regularization, exponent=exponent,
        confidence=confidence, confidence_scale=confidence_scale,
        bias_regularization=bias_regularization, seed=seed,
      ),
      positive_rating,
    )  # fmt: skip
  elif method == 'two_tower':
    optimizer = optimizer or OptimizerConfig(
      'adagrad', 0.1, schedule='linear', eps=1e-6
    )
    chosen = _TwoTower(
      width,
      two_tower or TwoTowerConfig(),
      sampling or SampledSoftmaxConfig(),
      FitConfig(
        stage='full',
        optimizer=optimizer,
        steps=steps,
        seed=seed,
        mesh_shape=mesh_shape,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
      ),
      positive_rating,
    )
  else:
    raise UserError(f'METHOD is {method!r}; choose one of {", ".join(METHODS)}')
  directory = output_directory.claim(output_dir)
  about = _plain(
    chosen.about() | {'ratings_sha256': cf_ratings.ratings_sha256(data_dir)}
  )
  if _is_finished(directory, about):
    print(f'fit_cf: {directory} holds these tables already, kept')
    return
  train = cf_ratings.read_split(data_dir, 'train', chosen.threshold)
  model = chosen.fit(train.interactions, directory, about)
  report = _report(data_dir, chosen, train, model, directory)
  _save(directory, about, report, train, model)
  print(cf_report.summary(report))


@dataclasses.dataclass(frozen=True)
class _Wals:
  """Weighted ALS."""

  config: FactorizationConfig
  positive_rating: float

  @property
  def threshold(self) -> float | None:
    """The least rating that is read; None for all."""
    return None if self.config.mode == 'explicit' else self.positive_rating

  def about(self) -> dict:
    """What the tables depend on beside the ratings."""
    return {
      'factorization': dataclasses.asdict(self.config),
      'positive_rating': self.positive_rating,
    }

  def fit(self, interactions, directory: Path, about: dict) -> Factorization:
    """Fits with a bar; the state of `fit.npz` knows what it belongs to."""
    del about
    mesh = None
    if len(jax.devices()) > 1:
      mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
    bar = tqdm.tqdm(
      total=self.config.epochs, desc='fit_cf', unit='epoch', disable=None
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
        self.config,
        mesh=mesh,
        checkpoint_path=directory / 'fit.npz',
        on_epoch=on_epoch,
      )

  def progress(self, model: Factorization, directory: Path) -> dict:
    """How the fit went, for the report."""
    del directory
    return {
      'objective': model.objectives[-1],
      'objectives': list(model.objectives),
    }


@dataclasses.dataclass(frozen=True)
class _TwoTower:
  """Two towers and a sampled softmax."""

  width: int
  model: TwoTowerConfig
  sampling: SampledSoftmaxConfig
  fit_config: FitConfig
  positive_rating: float

  def __post_init__(self):
    for name, value in (
      ('width', self.width),
      ('STEPS', self.fit_config.steps),
    ):
      if value < 1:
        raise UserError(f'{name} is {value}; it must be >= 1')

  @property
  def threshold(self) -> float:
    """The least rating that is read."""
    return self.positive_rating

  def about(self) -> dict:
    """What the tables depend on beside the ratings."""
    return {
      'method': 'two_tower',
      'width': self.width,
      'two_tower': dataclasses.asdict(self.model),
      'sampling': dataclasses.asdict(self.sampling),
      'optimizer': dataclasses.asdict(self.fit_config.optimizer),
      'steps': self.fit_config.steps,
      'seed': self.fit_config.seed,
      'positive_rating': self.positive_rating,
    }

  def fit(self, interactions, directory: Path, about: dict) -> TwoTowerFit:
    """Trains; checkpoints belong to the `config.json` that is beside them."""
    found = _read_about(directory)
    if (directory / 'checkpoints').exists() and (
      found is None or found | {'steps': about['steps']} != about
    ):
      raise UserError(
        f'OUTPUT_DIR {directory} holds the checkpoints of a fit with other '
        'ratings or another configuration; choose another --gin.OUTPUT_DIR'
      )
    _write_json(directory / 'config.json', about)
    return fit_two_tower(
      interactions,
      directory,
      width=self.width,
      model=self.model,
      sampling=self.sampling,
      fit_config=self.fit_config,
    )

  def progress(self, model: TwoTowerFit, directory: Path) -> dict:
    """How the training went, for the report."""
    del model
    last = read_metrics(directory)[-1]
    return {'steps': last['step'], 'loss': last['loss']}


def _report(data_dir, chosen, train, model, directory) -> dict:
  validation = cf_ratings.read_split(data_dir, 'validation', chosen.threshold)
  known = cf_ratings.known_pairs(train, validation)
  seen = train.interactions
  if not len(known.values):
    quality = {}
  elif isinstance(model, Factorization) and model.biases is not None:
    quality = cf_report.rating_error(known, model)
  else:
    quality = cf_report.ranking_quality(
      seen, known, model.user_embeddings, model.item_embeddings
    )
  return {
    'users': seen.num_users,
    'items': seen.num_items,
    'train_ratings': len(seen.values),
    'empty_users': seen.num_users - len(np.unique(seen.user_rows)),
    'empty_items': seen.num_items - len(np.unique(seen.item_rows)),
    **chosen.progress(model, directory),
    'validation_ratings': len(known.values),
    'validation_ratings_of_unknown_ids': (
      len(validation.interactions.values) - len(known.values)
    ),
    **quality,
  }


def _save(directory: Path, about, report, train, model) -> None:
  """Writes everything, the tables last: they vouch for the rest."""
  _write_json(directory / 'config.json', about)
  _write_json(directory / 'fit.json', report)
  if isinstance(model, Factorization):
    beside = model.biases
  else:
    beside = model.history_tower
  if beside is not None:
    beside.save(directory)
  tables = CFTables(
    model.user_embeddings, model.item_embeddings, train.user_ids, train.item_ids
  )
  tables.save(directory)
  (directory / 'fit.npz').unlink(missing_ok=True)
  shutil.rmtree(directory / 'checkpoints', ignore_errors=True)


def _is_finished(directory: Path, about: dict) -> bool:
  """Whether the tables of this fit are there.

  Raises:
    UserError: the tables of another fit are there, or damaged ones.
  """
  if not (directory / 'tables.json').exists():
    return False
  if _read_about(directory) != about:
    raise UserError(
      f'OUTPUT_DIR {directory} holds CF tables of other ratings or another '
      'configuration; choose another --gin.OUTPUT_DIR'
    )
  CFTables.load(directory)
  return True


def _read_about(directory: Path) -> dict | None:
  """The `config.json` of an earlier start, if it can be read."""
  try:
    return json.loads((directory / 'config.json').read_text())
  except (OSError, ValueError):
    return None


def _plain(about: dict) -> dict:
  """As it will be read again: JSON has no tuples."""
  return json.loads(json.dumps(about))


def _write_json(path: Path, value) -> None:
  partial = path.with_name(f'.{path.name}.partial')
  partial.write_text(json.dumps(value, indent=2) + '\n')
  os.replace(partial, path)
