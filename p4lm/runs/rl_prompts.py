"""The prompts that RL asks its policy to answer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp

from p4lm.data import tables
from p4lm.data.catalogue import Catalogue
from p4lm.data.order import epoch_rows
from p4lm.errors import UserError
from p4lm.rewards.terms import RewardRequest
from p4lm.rewards.weightings import WeightingConfig
from p4lm.runs.model_directory import LoadedModel
from p4lm.runs.task_prompts import writing_request
from p4lm.writers.checkpoint import CheckpointWriter


class RlPrompts:
  """Prompts for policies to answer, shuffled each epoch, addressed by step.

  Args:
    policy: its vocabulary, prompts and CF vectors; its arrays are not kept.
    data_dir: tables of `make_data`; prompts are its `rl_prompts`.
    batch_size: prompts a step.
    seed: of their order, and of the weightings told in them.
    weighting: of a policy that is told weightings of the rewards, else None.
  Raises:
    UserError: there are no prompts.
  """

  def __init__(
    self,
    policy: LoadedModel,
    data_dir: str | os.PathLike,
    batch_size: int,
    seed: int,
    weighting: WeightingConfig | None = None,
  ):
    self._policy, self._weighting = policy.described(), weighting
    self._catalogue = Catalogue.load(data_dir)
    self._rows = tables.read_table(data_dir, 'rl_prompts').to_pylist()
    self._batch_size, self._seed = batch_size, seed
    if not self._rows:
      raise UserError(f'{data_dir}: rl_prompts.parquet has no rows')
    self._features = CheckpointWriter(
      graphdef=policy.graphdef,
      params=None,
      vocabulary=policy.vocabulary,
      cf_lookup=policy.cf_lookup,
      prompt_length=policy.card.prompt_length,
      batch_size=batch_size,
      length_bucket=policy.card.prompt_length,
      pad_id=policy.config.lm.pad_id,
    ).features

  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Of the features of a batch."""
    features = next(self.batches_from(0))['features']
    return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, features))

  def batches_from(self, start: int) -> Iterator[dict]:
    """{'features': arrays, 'subjects': requests} of step `start` and on."""
    size = self._batch_size
    orders = epoch_rows(len(self._rows), size, self._seed, start)
    for step, indices in enumerate(orders, start):
      rows = [
        {**self._rows[index], 'weights': self._weights(step * size + place)}
        for place, index in enumerate(indices)
      ]
      subjects = [
        RewardRequest(
          text='',
          item_id=row['item_id'],
          user_id=row['user_id'],
          item=self._catalogue.item(row['item_id']),
          shares=row['weights'],
        )
        for row in rows
      ]
      yield {'features': self.features_of(rows), 'subjects': subjects}

  def features_of(self, rows: Sequence[Mapping]) -> dict:
    """Arrays of the prompts of at most `batch_size` (user, item) rows."""
    return self._features(
      [
        writing_request(
          self._policy,
          self._catalogue,
          row['user_id'],
          row['item_id'],
          weights=row.get('weights'),
        )
        for row in rows
      ]
    )

  def _weights(self, number: int) -> dict[str, float] | None:
    """{term: share} told in prompt `number` of the run; None for none."""
    weighted = self._policy.weighted
    if weighted is None:
      return None
    concentration = self._weighting.concentration
    return weighted.shares(weighted.drawn(concentration, self._seed, number))
