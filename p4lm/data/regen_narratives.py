"""REGEN's narratives: which there are, and whether of an item or of a user."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from p4lm.data import tables
from p4lm.data.regen_format import Narrative
from p4lm.data.tables import EncodedIds

_GROUP = ('user', 'kind', 'text')


class Narratives:
  """Narratives of events that come in pieces; equal texts are kept once."""

  def __init__(self, kinds: Sequence[str]):
    self._kinds = list(kinds)
    self._pieces: list[tuple[int, Narrative]] = []

  def add(self, narrative: Narrative, first_row: int) -> None:
    """Appends narratives of events.

    Args:
      narrative: some of one kind.
      first_row: number of the event that its row 0 is.
    """
    self._pieces.append((first_row, narrative))

  def table(
    self, users: EncodedIds, items: EncodedIds, kept: np.ndarray
  ) -> pa.Table:
    """Each user's texts, one row a kind and text; see `regen.RegenData`.

    Args:
      users, items: of all events [M].
      kept: int64, the events that count: a text in no other event is left
        out, and so is what stands beside a history without such events.
    """
    places = self._kept_places(users, kept)
    texts = places['text'].unify_dictionaries().combine_chunks()
    places = places.set_column(
      places.column_names.index('text'), 'text', texts.indices
    )
    found = places.group_by(list(_GROUP)).aggregate(
      [('place', 'min'), ('place', 'count'), ('is_of_user', 'max')]
    )
    column = {name: found[name].to_numpy() for name in found.column_names}
    # No two rows are equal in these: a place has one text of a kind.
    order = np.lexsort([column['kind'], column['place_min']])
    column = {name: values[order] for name, values in column.items()}
    is_of_user = (column['is_of_user_max'] > 0) | (column['place_count'] > 1)
    no_item = len(items.ids)
    of_items = np.where(
      is_of_user, no_item, items.codes[column['place_min'] // 2]
    )
    return pa.table(
      {
        'user_id': _ids(column['user'], users.ids),
        'item_id': _ids(of_items, [*items.ids, '']),
        'kind': pa.array(self._kinds, pa.string()).take(
          pa.array(column['kind'])
        ),
        'text': texts.dictionary.take(pa.array(column['text'])),
      }
    )

  def _kept_places(self, users: EncodedIds, kept: np.ndarray) -> pa.Table:
    """A row for each narrative of each event that counts."""
    is_kept = np.zeros(len(users.codes), bool)
    is_kept[kept] = True
    is_kept_user = np.zeros(len(users.ids), bool)
    is_kept_user[users.codes[kept]] = True
    pieces = [_PLACES.empty_table()]
    for first_row, narrative in self._pieces:
      rows = narrative.rows.astype(np.int64) + first_row
      counts = (
        is_kept_user[users.codes[rows]]
        if narrative.is_of_user
        else is_kept[rows]
      )
      rows = rows[counts]
      pieces.append(
        pa.table(
          {
            'user': users.codes[rows],
            'kind': np.full(len(rows), self._kinds.index(narrative.kind)),
            'text': _large(narrative.texts.filter(pa.array(counts))),
            'place': rows * 2 + narrative.is_of_user,
            'is_of_user': np.full(len(rows), narrative.is_of_user),
          },
          schema=_PLACES,
        )
      )
    return pa.concat_tables(pieces)


# Texts of all users may be more than the 2 GiB of a plain string column.
_TEXTS = pa.dictionary(pa.int32(), pa.large_string())
# A place is twice the event, and one more beside its history.
_PLACES = pa.schema(
  [
    ('user', pa.int32()),
    ('kind', pa.int8()),
    ('text', _TEXTS),
    ('place', pa.int64()),
    ('is_of_user', pa.int8()),
  ]
)


def _large(texts: pa.DictionaryArray) -> pa.DictionaryArray:
  return pa.DictionaryArray.from_arrays(
    texts.indices, texts.dictionary.cast(pa.large_string())
  )


def _ids(codes: np.ndarray, ids: list[str]) -> pa.DictionaryArray:
  used = tables.drop_unused(EncodedIds(codes, ids))
  return tables.decode_ids(used.codes, used.ids)
