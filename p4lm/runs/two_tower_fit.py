"""Trains a two-tower model on positive pairs, by sampled softmax.

Each example is a user and an item that the user rated. Its negatives are the
other items of the batch, and further ones drawn for all examples of the batch,
with the correction for how often each item is drawn (`ops.sampled_softmax`). An
item's frequency among the pairs is known, so it is not estimated from the
stream as by Yi et al. (2019). A batch is part of a shuffle, that is drawn
without replacement, which changes the expected counts of M pairs by 1 / M.

The gradient of a table is dense, and so is its update; with Adagrad rows that
are not in the batch stay as they are, as under a sparse update. On one CPU core
a step of 1,024 pairs at width 64 took 19 ms with the tables of MovieLens 1M
(0.5 million numbers, 1,000 steps an epoch) and 88 ms with those of MovieLens
25M (14 million, 24,000 steps), where passing over the tables is most of it.
Scores grow with the square of the batch: 4,096 pairs took 300 ms, so larger
batches make an epoch longer.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from p4lm.cf.pairs import Negatives, PositivePairs
from p4lm.cf.rows import Interactions
from p4lm.cf.towers import HistoryTower, Layers
from p4lm.data.atomic import write_json
from p4lm.data.order import epoch_rows
from p4lm.errors import UserError
from p4lm.models.two_tower import Tower, TwoTower, TwoTowerConfig
from p4lm.ops.sampled_softmax import Correction, sampled_softmax_loss
from p4lm.partitioning.build import build_model
from p4lm.runs import fitting
from p4lm.training.metric_writers import read_metrics
from p4lm.training.state import TrainState

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class SampledSoftmaxConfig:
  """What a step of the training compares.

  Attributes:
    batch_size: B, pairs a step.
    correction: 'importance', 'posterior' or 'none', see `ops.sampled_softmax`.
    extra_negatives: K items drawn for each batch beside its own.
    negative_exponent: they are drawn in proportion to n_i^exponent; 0 is
      uniform over the catalogue, 1 popularity.
    hide_positives: an item that the user has is no negative of the user.
    history_length: H, items drawn of a longer history at each step.
    user_exponent: a pair weighs n_u^-exponent, for n_u pairs of its user: 0
      gives each pair one voice, 1 each user.
  """

  batch_size: int = 1024
  correction: Correction = 'importance'
  extra_negatives: int = 0
  negative_exponent: float = 0.0
  hide_positives: bool = True
  history_length: int = 32
  user_exponent: float = 0.5

  def __post_init__(self):
    if self.correction not in get_args(Correction):
      raise UserError(
        f'correction is {self.correction!r}; choose one of '
        f'{", ".join(get_args(Correction))}'
      )
    for name, least in (
      ('batch_size', 2),
      ('extra_negatives', 0),
      ('history_length', 1),
    ):
      if getattr(self, name) < least:
        raise UserError(
          f'{name} is {getattr(self, name)}; it must be at least {least}'
        )
    for name in ('negative_exponent', 'user_exponent'):
      if not 0 <= getattr(self, name) < math.inf:
        raise UserError(
          f'{name} is {getattr(self, name)}; it must be finite and >= 0'
        )


@dataclasses.dataclass(frozen=True)
class TwoTowerFit:
  """A trained model as tables.

  Attributes:
    user_embeddings: float32 [U, E]; zero for users without pairs.
    item_embeddings: float32 [I, E]; zero for items without pairs.
    history_tower: embeds further users; None for users known by ids.
  """

  user_embeddings: np.ndarray
  item_embeddings: np.ndarray
  history_tower: HistoryTower | None


@dataclasses.dataclass(frozen=True)
class TwoTowerMethod:
  """Two towers and a sampled softmax, as a method of `fit_cf`.

  Attributes:
    width: E.
    model: shape of the towers.
    sampling: batches, negatives and weights.
    training: optimizer, steps, seed and mesh; stage 'full'.
    positive_rating: lower ratings are no interaction.
  """

  width: int
  model: TwoTowerConfig
  sampling: SampledSoftmaxConfig
  training: fitting.FitConfig
  positive_rating: float = 0.0
  # Ageing is a weight of the squared error of weighted ALS.
  half_life_days: None = None
  confidences: None = None

  def __post_init__(self):
    for name, value in (('width', self.width), ('STEPS', self.training.steps)):
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
      'optimizer': dataclasses.asdict(self.training.optimizer),
      'steps': self.training.steps,
      'seed': self.training.seed,
      'positive_rating': self.positive_rating,
    }

  def fit(
    self, interactions: Interactions, directory: Path, about: dict
  ) -> TwoTowerFit:
    """Trains; checkpoints belong to the `config.json` that is beside them."""
    config = directory / 'config.json'
    try:
      found = json.loads(config.read_text())
    except (OSError, ValueError):
      found = None
    if (directory / 'checkpoints').exists() and (
      found is None or found | {'steps': about['steps']} != about
    ):
      raise UserError(
        f'OUTPUT_DIR {directory} holds the checkpoints of a fit with other '
        'ratings or another configuration; choose another --gin.OUTPUT_DIR'
      )
    write_json(config, about)
    return fit_two_tower(
      interactions,
      directory,
      width=self.width,
      model=self.model,
      sampling=self.sampling,
      fit_config=self.training,
    )

  def progress(self, model: TwoTowerFit, directory: Path) -> dict:
    """How the training went, for the report."""
    del model
    last = read_metrics(directory)[-1]
    return {'steps': last['step'], 'loss': last['loss']}

  def save(self, model: TwoTowerFit, directory: Path) -> None:
    """Writes what embeds further users beside the tables."""
    if model.history_tower is not None:
      model.history_tower.save(directory)

  def clear(self, directory: Path) -> None:
    """Removes what only an unfinished training needs."""
    shutil.rmtree(directory / 'checkpoints', ignore_errors=True)


def fit_two_tower(
  interactions: Interactions,
  directory: Path,
  *,
  width: int,
  model: TwoTowerConfig,
  sampling: SampledSoftmaxConfig,
  fit_config: fitting.FitConfig,
) -> TwoTowerFit:
  """Trains from the newest checkpoint in the directory, or from the start.

  Stopped and started again it ends with the same tables, bit for bit.

  Args:
    interactions: M positive pairs; their values do not count.
    directory: gets checkpoints, metrics and `model-info.txt`.
    width: E.
    model: shape of the towers.
    sampling: batches, negatives and weights.
    fit_config: optimizer, steps, seed and mesh; stage 'full'.
  Returns:
    The tables.
  Raises:
    UserError: no pair at all, a batch that the mesh does not divide, a loss
      that is not finite, or a checkpoint of another model.
  """
  if not len(interactions.user_rows):
    raise UserError('there are no interactions to learn from')
  pairs = PositivePairs(interactions)
  sizes = interactions.num_users, interactions.num_items
  module = nnx.merge(
    *build_model(
      lambda: TwoTower(model, width, *sizes, rngs=nnx.Rngs(0)), fit_config.seed
    )
  )
  fit = fitting.prepare(module, directory, fit_config)
  _check_divisible(sampling, fit.sharding)
  by_history = model.user_tower == 'history'
  source = BatchSource(pairs, sampling, fit_config.seed, by_history=by_history)
  loss_fn = make_sampled_softmax_loss(fit.graphdef, sampling.correction)
  state = fit.run(fit.step_of(loss_fn), source.batches_from)
  return _tables(fit.graphdef, state, interactions, pairs, model)


class BatchSource:
  """The batch of each step, from the seed and the step alone.

  Args:
    pairs: the positive pairs, shuffled anew each epoch.
    sampling: batches, negatives and weights.
    seed: of shuffles, histories and extra negatives.
    by_history: whether users are their histories or their ids.
  """

  def __init__(
    self,
    pairs: PositivePairs,
    sampling: SampledSoftmaxConfig,
    seed: int,
    *,
    by_history: bool,
  ):
    self._pairs, self._sampling, self._seed = pairs, sampling, seed
    self._by_history = by_history
    self._negatives = Negatives.of(
      pairs.item_counts, sampling.extra_negatives, sampling.negative_exponent
    )

  def batches_from(self, start: int) -> Iterator[Batch]:
    """Batches of step `start` and on, without end."""
    size, seed = self._sampling.batch_size, self._seed
    steps = epoch_rows(len(self._pairs), size, seed, start)
    for step, rows in enumerate(steps, start):
      yield self._features(rows, np.random.default_rng([seed, step, 1]))

  def _features(self, rows, generator: np.random.Generator) -> Batch:
    """item_rows [B], log_counts [B], example_weights [B]; user_rows [B], or
    history_rows and history_mask [B, H]; negative_rows [K] and
    negative_log_counts [K]; hidden [B, B + K]."""
    sampling, pairs = self._sampling, self._pairs
    users, items = pairs.user_rows[rows], pairs.item_rows[rows]
    log_counts = lambda of: self._negatives.log_expected_counts(of, len(rows))
    counts = pairs.user_counts[users].astype(np.float32)
    batch = {
      'item_rows': np.asarray(items, np.int32),
      'log_counts': log_counts(items),
      'example_weights': counts ** np.float32(-sampling.user_exponent),
    }
    if self._by_history:
      batch['history_rows'], batch['history_mask'] = pairs.histories(
        users, items, sampling.history_length, generator
      )
    else:
      batch['user_rows'] = np.asarray(users, np.int32)
    candidates = items
    if sampling.extra_negatives:
      drawn = self._negatives.draw(generator)
      batch['negative_rows'] = drawn
      batch['negative_log_counts'] = log_counts(drawn)
      candidates = np.concatenate([items, drawn])
    if sampling.hide_positives:
      batch['hidden'] = pairs.known(users, candidates)
    return batch


def make_sampled_softmax_loss(graphdef, correction: Correction):
  """The training step's loss of a TwoTower and batches of `BatchSource`."""

  def loss_fn(params, frozen, batch, key):
    del key
    model = nnx.merge(graphdef, params, frozen)
    rows, log_counts = batch['item_rows'], batch['log_counts']
    if 'negative_rows' in batch:
      rows = jnp.concatenate([rows, batch['negative_rows']])
      log_counts = jnp.concatenate([log_counts, batch['negative_log_counts']])
    loss = sampled_softmax_loss(
      model(batch, rows),
      rows,
      log_counts,
      example_mask=jnp.ones(len(batch['item_rows']), bool),
      example_weights=batch['example_weights'],
      hidden=batch.get('hidden'),
      correction=correction,
    )
    return loss, {}

  return loss_fn


def _check_divisible(sampling, sharding: jax.sharding.NamedSharding) -> None:
  axes = sharding.spec[0]
  shards = math.prod(sharding.mesh.shape[axis] for axis in axes)
  for name in ('batch_size', 'extra_negatives'):
    if getattr(sampling, name) % shards:
      raise UserError(
        f'{name} is {getattr(sampling, name)}, which cannot be split over the '
        f'{shards} data shards of MESH_SHAPE; make it a multiple of {shards}'
      )


def _tables(
  graphdef, state: TrainState, interactions, pairs, model: TwoTowerConfig
) -> TwoTowerFit:
  module = nnx.merge(graphdef, state.params, state.frozen)
  items = _outputs(module.item_tower, pairs.item_counts)
  if model.user_tower == 'id':
    users = _outputs(module.user_tower, pairs.user_counts)
    return TwoTowerFit(users, items, None)
  tower = HistoryTower(
    np.asarray(module.user_tower.table[...])[: interactions.num_items],
    _layers(module.user_tower),
  )
  return TwoTowerFit(tower.embed(interactions), items, tower)


def _outputs(tower: Tower, counts: np.ndarray) -> np.ndarray:
  """The outputs of a tower's rows, zero where `counts` is."""
  table = np.asarray(tower.table[...])[: len(counts)]
  return np.where(counts[:, None] > 0, _layers(tower)(table), np.float32(0))


def _layers(tower: Tower) -> Layers:
  return Layers(
    tuple(np.asarray(layer.kernel[...]) for layer in tower.layers),
    tuple(np.asarray(layer.bias[...]) for layer in tower.layers),
    tower.normalize,
  )
