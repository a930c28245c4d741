"""Items and users by id: what a prompt about them needs to say."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping

import pyarrow as pa

from p4lm.data import tables
from p4lm.errors import UserError


class Catalogue:
  """Look-ups into `items.parquet` and `users.parquet`.

  Rows stay in Arrow and are decoded when asked for, so a catalogue of a
  million items costs its columns and one dictionary of ids.
  """

  def __init__(self, items: pa.Table, users: pa.Table):
    self._tables = {'item': items, 'user': users}
    self._rows = {
      kind: _row_by_id(table, f'{kind}_id')
      for kind, table in self._tables.items()
    }

  @classmethod
  def load(cls, data_dir: str | os.PathLike) -> Catalogue:
    """Reads the tables that `make_data` wrote to `data_dir`."""
    return cls(
      tables.read_table(data_dir, 'items'), tables.read_table(data_dir, 'users')
    )

  def item(self, item_id: str) -> Mapping[str, object]:
    """The item's row: title, year, genres, tags, keywords, plot.

    Raises:
      UserError: no such item.
    """
    return self._row('item', item_id)

  def preferences(self, user_id: str) -> list[str]:
    """The user's preference bullets.

    Raises:
      UserError: no such user.
    """
    return self._row('user', user_id)['preferences']

  def item_ids(self) -> list[str]:
    return list(self._rows['item'])

  def _row(self, kind: str, id_: str) -> dict[str, object]:
    row = self._rows[kind].get(str(id_))
    if row is None:
      near = difflib.get_close_matches(
        str(id_), list(self._rows[kind])[:5000], n=1
      )
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise UserError(f'no {kind} {id_!r} in the tables{hint}')
    return self._tables[kind].slice(row, 1).to_pylist()[0]


def _row_by_id(table: pa.Table, column: str) -> dict[str, int]:
  return {id_: row for row, id_ in enumerate(table[column].to_pylist())}
