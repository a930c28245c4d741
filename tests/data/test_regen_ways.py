"""REGEN lines by Arrow and by Python: the same data or the same error."""

import dataclasses
import json
import threading
import time
from concurrent import futures

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.data import (
  byte_blocks,
  regen,
  regen_arrow,
  regen_lines,
  regen_types,
)
from p4lm.data.regen_arrow import ArrowReader
from p4lm.errors import UserError


def _plain(path, **arguments):
  """All that is read, as Python values; an error is its message."""
  try:
    data = regen.read_regen(path, **arguments)
  except UserError as error:
    return str(error)
  return {
    field.name: value.to_pylist() if hasattr(value, 'to_pylist') else value
    for field in dataclasses.fields(data)
    for value in [getattr(data, field.name)]
  }


def _both_ways(path, block_bytes=1 << 20, **arguments):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(byte_blocks, 'BLOCK_BYTES', block_bytes)
    patch.setattr(byte_blocks, '_CHUNK_BYTES', block_bytes)
    patch.setattr(regen, '_TAKEN_ROWS', 3)
    patch.setattr(regen, '_MAX_TEXT_BYTES', 2)
    fast = _plain(path, **arguments)
    patch.undo()
    patch.setattr(ArrowReader, 'read', lambda *_: None)
    return fast, _plain(path, **arguments)


_TEXT = st.one_of(
  st.sampled_from(['', ' ', 'a', 'A &amp; B', '&#39;', 'é', '\x1c', 'a\\"\n']),
  st.text(st.characters(codec='utf-8'), max_size=4),
)
_ID = st.sampled_from(['u', 'v', 'w', 'é'])
_ITEM = st.sampled_from(['A', 'B', 'C'])
_DATE = st.sampled_from(['03/01/2015', '3/2/2015', '2015-03-04', ' 2015-3-4 '])
_TIME = st.integers(1_000_000_000_000, 1_000_000_000_009)
# What most values of a key are, and what a few may be.
_VALUES = {
  'user_id': _ID,
  'reviewerID': _ID,
  'parent_asin': _ITEM,
  'asin': _ITEM,
  'rating': st.integers(1, 5) | st.sampled_from([1.5, 4.0, 3e0]),
  'overall': st.integers(1, 5),
  'title': st.sampled_from(['T', 'U', 'V &amp; W', '<span>x', '']),
  'category': st.sampled_from([' Office - Pens', '', "['a', 'b']"]),
  'categories': st.lists(st.none() | _TEXT, max_size=2),
  'price': st.sampled_from([3, 2.5, -1, 1e400]),
  'store': _TEXT,
  'review_title': _TEXT,
  'summary': _TEXT,
  'review': _TEXT,
  'text': _TEXT,
  'timestamp': _TIME,
  'unixReviewTime': st.integers(1_000_000_000, 1_000_000_002),
  'purchase_date': _DATE,
  'critique': st.sampled_from(['Dear.', 'Cheap.', ' ', '', '\x85']),
  'long_summary': st.sampled_from(['Likes pens.', 'Likes ink.']),
  'votes': st.integers(0, 3) | st.just(0.5),
  'extra': st.fixed_dictionaries({'deep': st.lists(st.none() | _TEXT)}),
}
_ODD = st.sampled_from(
  [None, None, None, 7, 0, -1, 2.0, 'x', '', '$5', True, [], {}, [None],
   ['a', ['b']], {'asin': 'A', 'extra': 2}, 10**20, float('nan'), 1e13]
)  # fmt: skip
_REQUIRED = ('asin', 'rating', 'purchase_date', 'title')


def _objects(keys, how_odd, required=()):
  """A strategy of objects with these keys, a few values missing or odd."""
  value = lambda key: (
    _VALUES[key]
    if not how_odd
    else st.integers(0, 60).flatmap(
      lambda n: _ODD if n < how_odd else _VALUES[key]
    )
  )
  kept = {key: value(key) for key in required}
  return st.fixed_dictionaries(
    kept, optional={key: value(key) for key in keys if key not in kept}
  )


_EVENT_KEYS = [key for key in _VALUES if key not in ('user_id', 'reviewerID')]


@st.composite
def _files(draw):
  """Lines of users that have much in common, as those of a file have."""
  how_odd = draw(st.sampled_from([0, 0, 1, 3]))
  keys = draw(st.lists(st.sampled_from(_EVENT_KEYS), unique=True))
  # Who says whose events these are.
  in_events = draw(st.sampled_from([False, False, True]))
  required = ('user_id', *_REQUIRED) if in_events else _REQUIRED
  event = _objects(keys, how_odd, required)
  if draw(st.booleans()):
    product = _objects(['title', 'store', 'price', *keys], how_odd)
    event = st.builds(
      lambda e, p: {**e, 'product': p}, event, st.none() | product
    )
  history = st.lists(
    event, min_size=draw(st.sampled_from([0, 1, 1])), max_size=4
  )
  if draw(st.integers(0, 9)) == 0:
    history = st.lists(event | _ODD, max_size=4)
  keys = ['reviewerID', 'critique', 'votes', 'extra']
  user = _objects(keys, how_odd, () if in_events else ('user_id',))
  name = draw(st.sampled_from(['history', 'history', 'items']))
  line = st.builds(lambda u, h: {**u, name: h}, user, history)
  if draw(st.booleans()):
    line = st.builds(lambda u, e: {**u, 'heldout': e}, line, st.none() | event)
  if draw(st.integers(0, 9)) == 0:
    line |= history | st.builds(lambda u: {**u, 'events': []}, line)
  elif in_events and draw(st.booleans()):
    line = history
  return draw(st.lists(line, min_size=1, max_size=5))


@settings(deadline=None, max_examples=120)
@given(
  _files(),
  st.sampled_from(['\n', '\n', '\n', '\r\n', '\n\n', ' \n']),
  st.booleans(),
  st.integers(1, 3000),
  st.integers(1, 4),
)
def test_both_ways_read_alike(
  tmp_path_factory, lines, end, escaped, block_bytes, most
):
  path = tmp_path_factory.mktemp('ways') / 'x.jsonl'
  text = end.join(json.dumps(line, ensure_ascii=escaped) for line in lines)
  path.write_text(text + '\n', encoding='utf-8')
  fast, slow = _both_ways(path, block_bytes, max_history=most)
  assert fast == slow


def test_no_thread_gives_up_because_others_learn(monkeypatch):
  """Blocks with new keys are all asked for before any has been learnt."""
  keys = ('price', 'store', 'review', 'votes', 'summary', 'category', 'new')
  event = {'asin': 'A', 'title': 'T', 'rating': 5, 'timestamp': 10**12}
  blocks = [{'user_id': 'u', 'history': [{**event, key: 'x'}]} for key in keys]
  together, learn = threading.Barrier(len(keys)), regen_arrow.learn

  def learn_late(*arguments):
    time.sleep(0.01)
    return learn(*arguments)

  monkeypatch.setattr(regen_arrow, 'learn', learn_late)
  reader = ArrowReader(())

  def read(block):
    together.wait()
    return reader.read(json.dumps(block).encode() + b'\n')

  with futures.ThreadPoolExecutor(len(keys)) as pool:
    assert None not in list(pool.map(read, blocks))


def test_regular_lines_are_read_by_arrow(tmp_path, monkeypatch):
  """The common case must not fall to the slow way unnoticed."""

  def forbidden(where, block, narratives):
    raise AssertionError(f'read line by line: {block.data}')

  event = {'asin': 'A', 'title': 'T', 'rating': 5, 'timestamp': 10**12}
  dated = {**event, 'timestamp': None, 'purchase_date': '3/2/2015'}
  product = {'title': 'P', 'price': 3, 'categories': ['a'], 'new': {'x': [1]}}
  later = {**event, 'timestamp': 10**12 + 1000, 'review': 'Good &amp; cheap'}
  told = {**event, 'critique': 'Dear.', 'price': '$3'}
  lines = [
    # Each is a block of its own: most bring keys or types that are new.
    {'user_id': 'u', 'history': [event, dated]},
    {'user_id': 'v', 'history': [{**event, 'asin': 'B', 'product': product}]},
    {'user_id': 'w', 'critique': 'Kind.', 'history': [told], 'heldout': later},
    [{**event, 'user_id': 'x'}, {**dated, 'user_id': 'y'}],
    {'user_id': 7, 'history': [{**event, 'asin': 9, 'overall': 1.5}]},
    {'user_id': 'z', 'history': [], 'heldout': {**event, 'category': ' a - b'}},
  ]
  path = tmp_path / 'x.jsonl'
  path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
  monkeypatch.setattr(byte_blocks, 'BLOCK_BYTES', 1)
  monkeypatch.setattr(byte_blocks, '_CHUNK_BYTES', 1)
  monkeypatch.setattr(regen_lines, 'read_lines', forbidden)
  data = regen.read_regen(path)
  keys = ('user_id', 'item_id', 'rating', 'timestamp', 'review')
  rows = [tuple(row[key] for key in keys) for row in data.ratings.to_pylist()]
  assert rows == [
    ('u', 'A', 5.0, 1425254400, ''),
    ('v', 'B', 5.0, 10**9, ''),
    ('w', 'A', 5.0, 10**9 + 1, 'Good & cheap'),
    ('x', 'A', 5.0, 10**9, ''),
    ('y', 'A', 5.0, 1425254400, ''),
    ('7', '9', 5.0, 10**9, ''),
    ('z', 'A', 5.0, 10**9, ''),
  ]
  items = data.items.select(['item_id', 'genres', 'price']).to_pylist()
  assert [tuple(item.values()) for item in items] == [
    ('A', [], None),
    ('B', ['a'], 3.0),
    ('9', [], None),
  ]
  assert data.unknown_keys == {'new': 1}
  assert data.narratives.to_pylist() == [
    {'user_id': 'w', 'item_id': '', 'kind': 'critique', 'text': 'Kind.'}
  ]


_PARTS = {
  'EVENT': '{"asin": "A", "title": "T", "rating": 5, "timestamp": 1000',
  'DEEP': '[' * 100_000 + ']' * 100_000,
  'BIG': '0' * 400,
  'WIDE': ', '.join(f'"k{number}": 1' for number in range(2000)),
}


@pytest.mark.parametrize(
  ('line', 'problem'),
  [
    # What Arrow would die of, take for something else, or be slow with.
    ('{"user_id": "u", "history": [EVENT, "x": DEEP}]}', 'no JSON'),
    ('{"user_id": "u", "history": [EVENT, "x": {WIDE}}]}', ''),
    ('[EVENT}], "user_id": "u", "votes": []', 'no JSON'),
    ('[EVENT, "user_id": "u"}], "history": []', 'no JSON'),
    ('[]} {"history": []', 'no JSON'),
    (' '.join(['{"user_id": "u", "history": [EVENT}]}'] * 2), 'no JSON'),
    ('{"user_id": "u", "user_id": "v", "history": [EVENT}]}', ''),
    ('{"user_id": "u", "history": [null, EVENT}]}', 'an event must be'),
    ('{"user_id": "u", "history": [[EVENT}]]}', 'an event must be'),
    ('{"user_id": "u", "history": EVENT}}', 'this is one event'),
    ('{"user_id": "u", "history": [EVENT}], "heldout": []}', 'must be'),
    ('{"user_id": "u", "history": null, "items": [EVENT}]}', ''),
    ('{"user_id": "u", "history": 3, "items": [EVENT}]}', 'must be a list'),
    ('[{"user_id": "u", "items": [EVENT}]}]', ''),
    ('[EVENT, "user_id": "u", "items": [EVENT}]}]', ''),
    ('{"user_id": "u", "history": [EVENT, "product": {}}]}', ''),
    ('{"user_id": "u", "history": [EVENT, "user_id": null}]}', ''),
    ('{"user_id": "u", "\\ud800": 1, "history": [EVENT}]}', ''),
    ('{"user_id": "u", "history": [EVENT, "review": "\\ud800"}]}', ''),
    ('{"user_id": "u", "history": [EVENT, "price": 1BIG}]}', ''),
  ],
)
def test_strange_lines_are_read_alike(tmp_path, line, problem):
  good = '{"user_id": "good", "history": [EVENT}]}'
  path = tmp_path / 'x.jsonl'
  for lines in ([line], [good, line], [line, good]):
    text = '\n'.join(lines) + '\n'
    for name, value in _PARTS.items():
      text = text.replace(name, value)
    path.write_text(text)
    # In one block, and in some where what `good` has is known before.
    fast, slow = _both_ways(path)
    assert _both_ways(path, block_bytes=64) == (fast, slow)
    assert fast == slow
    assert problem in fast if problem else not isinstance(fast, str), fast


def test_keys_without_end_are_not_learnt(monkeypatch):
  """Objects with ids for keys would make every block wider than the last."""
  monkeypatch.setattr(regen_types, '_MAX_TYPES', 20)
  reader = ArrowReader(())
  event = {'asin': 'A', 'rating': 5, 'timestamp': 1000}

  def fits(number):
    line = {'user_id': 'u', 'history': [{**event, 'votes': {f'u{number}': 1}}]}
    return reader.read(f'{json.dumps(line)}\n'.encode()) is not None

  # user_id, history and its object, three keys and votes: seven others.
  assert [fits(number) for number in range(15)] == [True] * 13 + [False] * 2
  assert fits(0)


_TOLD = st.lists(
  st.tuples(
    st.sampled_from('uv'),
    st.sampled_from('ABC'),
    st.fixed_dictionaries(
      {},
      optional=dict.fromkeys(
        ('critique', 'user_profile'), st.sampled_from('xyz ')
      ),
    ),
    st.sampled_from([None, None, 'x', 'y']),
  ),
  min_size=1,
  max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(_TOLD, st.integers(1, 3))
def test_narratives_equal_dictionaries(tmp_path_factory, told, most):
  """By plain dictionaries; every event has its line, its time and a title."""
  kinds = ('user_profile', 'critique')
  lines, latest = [], {}
  for number, (user, item, texts, about) in enumerate(told):
    event = {'asin': item, 'title': 'T', 'rating': 5, 'timestamp': number}
    line = {'user_id': user, 'history': [{**event, **texts}]}
    lines.append({**line, 'critique': about})
    latest[user, item] = number
  kept = {
    number
    for user in 'uv'
    for number in sorted(n for (u, _), n in latest.items() if u == user)[-most:]
  }
  places = {}
  for number, (user, _, texts, about) in enumerate(told):
    for kind in kinds:
      if number in kept and texts.get(kind, ' ') != ' ':
        places.setdefault((user, kind, texts[kind]), []).append((number, 0))
    if about is not None:
      places.setdefault((user, 'critique', about), []).append((number, 1))
  order = lambda key: (places[key][0], kinds.index(key[1]))
  expected = []
  for key in sorted(places, key=order):
    (number, is_of_user), *more = places[key]
    item = '' if more or is_of_user else told[number][1]
    expected.append((key[0], item, *key[1:]))
  path = tmp_path_factory.mktemp('told') / 'x.jsonl'
  path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
  data = regen.read_regen(path, max_history=most, narratives=kinds)
  found = [tuple(row.values()) for row in data.narratives.to_pylist()]
  assert found == expected
