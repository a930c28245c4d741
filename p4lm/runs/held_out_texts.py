"""The held-out texts of a reward's task, as requests to other rewards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow.compute as pc

from p4lm.data import tables
from p4lm.data.catalogue import Catalogue
from p4lm.errors import UserError
from p4lm.rewards.kinds import CLASSIFIED, PAIRWISE, check_kind
from p4lm.rewards.terms import RewardRequest

_TEXT = {'nli': 'hypothesis', 'relevance': 'text'}


def held_out_requests(
  data_dir: str | os.PathLike, kind: str, split: str
) -> list[RewardRequest]:
  """One request a text of a split, in the order of the cached task.

  Args:
    data_dir: tables of `make_data`.
    kind: of the reward, which names its table.
    split: of the table.
  Returns:
    The responses; of pairs all chosen texts and then all rejected ones. The
    item is that of the tables (None without an item), of entailment with the
    premise in its plot's place.
  Raises:
    UserError: the table is missing or broken.
  """
  check_kind(kind)
  name = 'pairs' if kind in PAIRWISE else _table(kind)
  table = tables.read_table(data_dir, name)
  table = table.filter(pc.equal(table['split'], split))
  if kind in PAIRWISE:
    table = table.filter(pc.equal(table['kind'], kind))
  rows = table.to_pylist()
  items = _Items(data_dir)
  columns = ('chosen', 'rejected') if kind in PAIRWISE else (_TEXT[kind],)
  return [
    RewardRequest(
      text=row[column],
      item_id=row['item_id'] or '',
      user_id=row.get('user_id') or '',
      item=items.of(row),
    )
    for column in columns
    for row in rows
  ]


def _table(kind: str) -> str:
  return 'entailment' if kind in CLASSIFIED else kind


class _Items:
  """Rows of the items, where the data directory has any."""

  def __init__(self, data_dir: str | os.PathLike):
    self._catalogue = None
    if (Path(data_dir) / 'items.parquet').exists():
      self._catalogue = Catalogue.load(data_dir)

  def of(self, row: Mapping) -> dict | None:
    item = {}
    if self._catalogue is not None and row['item_id']:
      try:
        item = dict(self._catalogue.item(row['item_id']))
      except UserError:
        item = {}
    if 'premise' in row:
      item = {'title': '', **item, 'plot': row['premise']}
    return item or None
