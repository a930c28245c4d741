"""Rules for repeated rows and ids that grow, against dictionaries."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.data import rating_data, tables
from p4lm.data.rating_data import GrowingIds

_ROWS = st.lists(
  st.tuples(
    st.sampled_from('uvw'),
    st.sampled_from('ABC'),
    st.sampled_from([1.0, 2.0]),
    st.integers(0, 2),
    st.booleans(),
  ),
  max_size=25,
)


@settings(deadline=None, max_examples=200)
@given(
  st.lists(
    st.tuples(
      st.integers(0, 2**31 - 1) | st.integers(0, 3),
      st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3),
    )
  )
)
def test_order_by_user_and_time_is_that_of_sorted(rows):
  users = np.array([user for user, _ in rows], np.int32)
  times = np.array([time for _, time in rows], np.int64)
  found = rating_data.by_user_and_time(users, times)
  assert found.dtype == np.int64
  assert found.tolist() == sorted(range(len(rows)), key=rows.__getitem__)


@settings(deadline=None, max_examples=200)
@given(_ROWS)
def test_repeats_equal_a_walk_through_the_rows(rows):
  columns = list(zip(*rows)) or [()] * 5
  users, items = (
    tables.encode_ids(pa.array(column, pa.string())) for column in columns[:2]
  )
  ratings = np.array(columns[2], np.float32)
  times, among = np.array(columns[3], np.int64), np.array(columns[4], bool)
  seen, exact, newest = set(), [], {}
  for number, (user, item, rating, time, _) in enumerate(rows):
    exact.append((user, item, rating, time) in seen)
    seen.add((user, item, rating, time))
    if time >= newest.get((user, item), (time,))[0]:
      newest[user, item] = (time, number)
  found = rating_data.exact_repeats(users, items, ratings, times)
  assert found.tolist() == exact
  kept = {number for _, number in newest.values()}
  found = rating_data.latest(users, items, times)
  assert found.tolist() == [number in kept for number in range(len(rows))]
  seen, newest, dropped = set(), {}, {}
  for number, (user, item, rating, time, is_in) in enumerate(rows):
    if is_in and (user, item, rating, time) not in seen:
      seen.add((user, item, rating, time))
      if time >= newest.get((user, item), (time,))[0]:
        newest[user, item] = (time, number)
  found = rating_data.without_repeats(
    users, items, ratings, times, among=among, noun='row', dropped=dropped
  )
  kept = {number for _, number in newest.values()}
  assert set(np.flatnonzero(found).tolist()) == kept
  assert dropped == {
    reason: number
    for reason, number in (
      ('repeated row (same user, item, rating and time)',
       int(among.sum()) - len(seen)),
      ('duplicate (user, item), an older row', len(seen) - len(kept)),
    )
    if number
  }  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.text(max_size=2), max_size=6), max_size=9))
def test_ids_that_grow_equal_a_dictionary(pieces):
  class Few(GrowingIds):
    _FEW = 3

  ids = Few()
  for piece in pieces:
    half = len(piece) // 2
    ids.add(
      pa.chunked_array(
        [pa.array(part, pa.string()) for part in (piece[:half], piece[half:])]
      )
    )
  encoded = ids.encoded()
  flat = [id_ for piece in pieces for id_ in piece]
  assert encoded.ids == list(dict.fromkeys(flat))
  assert [encoded.ids[code] for code in encoded.codes] == flat


def test_unused_ids_leave_the_table():
  encode = lambda ids: tables.encode_ids(pa.array(ids))
  users, items = encode(['u', 'v', 'u']), encode(['A', 'B', 'C'])
  rows = np.array([2, 0])
  table = rating_data.rating_table(
    rating_data.select(users, rows),
    rating_data.select(items, rows),
    np.array([1, 2], np.float32),
    np.array([3, 4]),
  )
  assert table.to_pydict() == {
    'user_id': ['u', 'u'], 'item_id': ['C', 'A'], 'rating': [1.0, 2.0],
    'timestamp': [3, 4],
  }  # fmt: skip
  assert tables.encode_ids(table['item_id']).ids == ['A', 'C']
