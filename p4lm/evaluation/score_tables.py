"""Scores of every pair in one Parquet file, and of several evaluations as one.

    judge  system  criterion  pair  user_id  item_id  score

A score that is missing is null. The file lets evaluations of several seeds be
compared as one, pair by pair.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from p4lm.errors import UserError
from p4lm.evaluation.table_one import Scores

FILE = 'scores.parquet'
_COLUMNS = ('judge', 'system', 'criterion', 'pair', 'user_id', 'item_id')


@dataclasses.dataclass(frozen=True)
class ScoreTable:
  """Scores of M pairs.

  Attributes:
    users, items: M ids.
    scores: {judge: {system: {criterion: float [M], NaN where missing}}}.
  """

  users: Sequence[str]
  items: Sequence[str]
  scores: Mapping[str, Scores]

  def save(self, directory) -> None:
    """Writes `scores.parquet`, replacing it whole."""
    columns: dict[str, list] = {name: [] for name in (*_COLUMNS, 'score')}
    for judge, by_system in self.scores.items():
      for system, by_criterion in by_system.items():
        for criterion, values in by_criterion.items():
          count = len(values)
          for name, part in (
            ('judge', [judge] * count),
            ('system', [system] * count),
            ('criterion', [criterion] * count),
            ('pair', range(count)),
            ('user_id', self.users),
            ('item_id', self.items),
            ('score', np.asarray(values, np.float64)),
          ):
            columns[name].extend(part)
    scores = pa.array(columns.pop('score'), pa.float64(), from_pandas=True)
    table = pa.table(columns).append_column('score', scores)
    path = Path(directory) / FILE
    partial = path.with_name(f'.{FILE}.partial')
    pq.write_table(table, partial)
    os.replace(partial, path)

  @classmethod
  def load(cls, directory) -> ScoreTable:
    """Reads what `save` wrote.

    Raises:
      UserError: there is no such file, or it is no table of scores.
    """
    path = Path(directory) / FILE
    if not path.is_file():
      raise UserError(
        f'{path} does not exist; EVALUATIONS names directories that evaluate '
        'wrote for SYSTEMS'
      )
    try:
      table = pq.read_table(path)
      columns = {name: table[name].to_pylist() for name in _COLUMNS}
      values = table['score'].to_numpy()
    except (pa.ArrowException, KeyError) as error:
      raise UserError(f'{path} is no table of scores: {error}') from error
    scores: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    keys = list(zip(*(columns[name] for name in _COLUMNS[:3])))
    starts = [row for row, pair in enumerate(columns['pair']) if pair == 0]
    users, items = [], []
    for start, end in zip(starts, [*starts[1:], len(keys)]):
      judge, system, criterion = keys[start]
      by_system = scores.setdefault(judge, {})
      by_system.setdefault(system, {})[criterion] = values[start:end]
      users = columns['user_id'][start:end]
      items = columns['item_id'][start:end]
    return cls(users, items, scores)


def pool(tables: Mapping[str, ScoreTable]) -> ScoreTable:
  """Several evaluations as one; a user of two of them counts as two.

  What not all of them scored is left out.

  Args:
    tables: {name: scores}.
  Raises:
    UserError: no judge or no system is common to all.
  """
  users = [f'{name}/{user}' for name, t in tables.items() for user in t.users]
  items = [item for table in tables.values() for item in table.items]
  every = list(tables.values())
  scores = {}
  for judge in _common([table.scores for table in every]):
    by_judge = [table.scores[judge] for table in every]
    scores[judge] = {
      system: {
        criterion: np.concatenate(
          [by_system[system][criterion] for by_system in by_judge]
        )
        for criterion in _common([by_system[system] for by_system in by_judge])
      }
      for system in _common(by_judge)
    }
  if not any(scores.values()):
    raise UserError(
      f'the evaluations {", ".join(tables)} have no system in common'
    )
  return ScoreTable(users, items, scores)


def _common(mappings: Sequence[Mapping]) -> list:
  """Keys of all mappings, in the order of the first."""
  first, *others = mappings
  return [key for key in first if all(key in other for other in others)]
