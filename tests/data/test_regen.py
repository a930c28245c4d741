"""REGEN histories: rules, shapes of files, errors, real ones."""

import collections
import datetime
import gzip
import hashlib
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.data import regen, tables
from p4lm.errors import UserError
from p4lm.jobs.make_data import make_data


def event(item, day, rating=5, **more):
  return {
    'asin': item,
    'title': f'Title {item}',
    'rating': rating,
    'purchase_date': f'03/{day:02}/2015',
    **more,
  }


def write(directory, *lines, name='x.jsonl'):
  path = directory / name
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return path


def rows_of(data):
  names = ('user_id', 'item_id', 'rating', 'timestamp')
  return list(zip(*(data.ratings[name].to_pylist() for name in names)))


def march(day):
  date = datetime.datetime(2015, 3, day, tzinfo=datetime.UTC)
  return int(date.timestamp())


def test_users_items_and_reviews(tmp_path):
  path = write(
    tmp_path,
    {'user_id': 'v', 'history': [
      event('B', 9, 3, review='So &amp; so.', review_title='Hm'),
      event('A', 2, category=' Office &amp; School - Pens - Blue',
            price='$2.50', brand='Acme'),
    ]},
    {'reviewerID': 'u', 'history': [event('A', 4)]},
  )  # fmt: skip
  data = regen.read_regen(path)
  assert rows_of(data) == [
    ('v', 'A', 5.0, march(2)), ('v', 'B', 3.0, march(9)),
    ('u', 'A', 5.0, march(4)),
  ]  # fmt: skip
  assert data.ratings['review'].to_pylist() == ['', 'So & so.', '']
  assert data.ratings['review_title'].to_pylist() == ['', 'Hm', '']
  first = {row['item_id']: row for row in data.items.to_pylist()}
  assert first['B']['title'] == 'Title B' and first['B']['genres'] == []
  assert data.dropped == data.unknown_keys == {}
  assert len(data.narratives) == 0


def test_repeats_titles_and_length_are_counted(tmp_path):
  path = write(
    tmp_path,
    {'user_id': 'u', 'history': [
      event('A', 1), event('A', 1), event('A', 3, 2), event('A', 2),
      event('B', 9), event('C', 4, title=None), event('D', 4, title='<span>'),
      event('E', 5), event('F', 5),
    ]},
    {'user_id': 'v', 'history': [event('B', 1, title=''), event('C', 2)]},
  )  # fmt: skip
  data = regen.read_regen(path, max_history=3)
  # C has a title in another event; E and F are of one day.
  assert [row[:2] for row in rows_of(data)] == [
    ('u', 'E'), ('u', 'F'), ('u', 'B'), ('v', 'B'), ('v', 'C'),
  ]  # fmt: skip
  assert data.items['title'].to_pylist() == [
    'Title B', 'Title C', 'Title E', 'Title F'
  ]  # fmt: skip
  assert data.dropped == {
    'repeated event (same user, item, rating and time)': 1,
    'duplicate (user, item), an older event': 2,
    'event with an item without a title': 1,
    'event before the latest 3 of its user': 2,
  }


def test_narratives_are_of_events_or_of_users(tmp_path):
  say = lambda kind, text: {kind: text}
  path = write(
    tmp_path,
    {'user_id': 'u', 'user_profile': 'Thrifty.', 'history': [
      event('A', 1, **say('long_summary', 'Likes pens.')),
      event('B', 2, **say('long_summary', 'Likes pens.'),
            **say('purchase_reason', 'Ran out.')),
      event('C', 3, **say('critique', ' ')),
    ]},
    {'user_id': 'v', 'history': [event('A', 1, long_summary='Likes pens.')]},
  )  # fmt: skip
  data = regen.read_regen(path)
  rows = {tuple(row.values()) for row in data.narratives.to_pylist()}
  assert rows == {
    ('u', '', 'user_profile', 'Thrifty.'),
    ('u', '', 'long_summary', 'Likes pens.'),
    ('u', 'B', 'purchase_reason', 'Ran out.'),
    ('v', 'A', 'long_summary', 'Likes pens.'),
  }
  data = regen.read_regen(path, max_history=1, narratives=['purchase_reason'])
  assert len(data.narratives) == 0  # B is no longer in the history
  assert data.unknown_keys == {
    'critique': 1, 'long_summary': 3, 'user_profile': 1
  }  # fmt: skip


def test_unknown_keys_are_listed_once(tmp_path):
  users = [
    {'user_id': f'u{i}', 'zip': 1, 'history': [event('A', 1, vote=3, x=None)]}
    for i in range(5)
  ]
  data = regen.read_regen(write(tmp_path, *users))
  assert data.unknown_keys == {'vote': 5, 'zip': 5}  # x is null


BARE = [event('A', 1, reviewer_id='u'), event('B', 2, reviewer_id='u')]


@pytest.mark.parametrize(
  'text',
  [
    json.dumps(BARE),
    json.dumps(BARE, indent=1),
    json.dumps({'user_id': 'u', 'history': BARE}),
    json.dumps({'user_id': 'u', 'history': BARE}, indent=2),
    json.dumps([{'user_id': 'u', 'history': BARE}], indent=1),
    json.dumps({'user_id': 'u', 'events': BARE[:1], 'heldout': BARE[1]}),
    json.dumps(BARE[:1]) + '\r\n\n' + json.dumps(BARE[1:]) + '\n',
  ],
  ids=['list', 'document', 'user', 'indented user', 'indented users',
       'held out', 'user on two lines'],
)  # fmt: skip
@pytest.mark.parametrize(
  'pack', [str.encode, lambda t: gzip.compress(t.encode())]
)
def test_shapes_of_files(tmp_path, text, pack):
  (tmp_path / 'x.json').write_bytes(pack('\ufeff\n' + text))
  data = regen.read_regen(tmp_path / 'x.json')
  assert rows_of(data) == [
    ('u', 'A', 5.0, march(1)), ('u', 'B', 5.0, march(2))
  ]  # fmt: skip


@pytest.mark.parametrize(
  ('time', 'seconds'),
  [
    ({'purchase_date': '3/2/2015'}, march(2)),
    ({'purchase_date': ' 2015-03-02 '}, march(2)),
    ({'timestamp': march(2) * 1000 + 999}, march(2)),
    ({'timestamp_ms': march(2) * 1000, 'purchase_date': 'x'}, march(2)),
    ({'unixReviewTime': march(2)}, march(2)),
  ],
)
def test_times(tmp_path, time, seconds):
  line = {'user_id': 'u', 'history': [{**event('A', 1), **time}]}
  if 'purchase_date' not in time:
    line['history'][0].pop('purchase_date')
  assert rows_of(regen.read_regen(write(tmp_path, line)))[0][3] == seconds


def test_milliseconds_order_events_within_a_second(tmp_path):
  events = [
    {**event(item, 1), 'timestamp': 1000 + ms}
    for item, ms in (('A', 5), ('B', 3), ('C', 5), ('D', 0))
  ]
  path = write(tmp_path, {'user_id': 'u', 'history': events})
  items = regen.read_regen(path).ratings['item_id'].to_pylist()
  assert items == ['D', 'B', 'A', 'C']


def _expected_split(user, seed, test, validation):
  """The rule once more: 64 bits of blake2b as a number in [0, 1)."""
  key = f'user split {seed} {user}'.encode()
  digest = hashlib.blake2b(key, digest_size=8).digest()
  number = int.from_bytes(digest, 'little') / 2**64
  if number < test:
    return 'test'
  return 'validation' if number < test + validation else 'train'


def test_users_are_divided_by_their_ids_alone(tmp_path):
  users = [{'user_id': f'u{i}', 'history': [event('A', 1)]} for i in range(300)]
  shares = dict(seed=4, test_share=0.3, validation_share=0.2)
  divide = lambda lines: {
    row['user_id']: row['split']
    for row in regen.read_regen(
      write(tmp_path, *lines), **shares
    ).splits.to_pylist()
  }
  found = divide(users)
  assert found == {u: _expected_split(u, 4, 0.3, 0.2) for u in found}
  assert set(found.values()) == set(tables.SPLITS)
  assert divide(users[::-1]) == found
  alone = divide(users[:7])
  assert alone == {user: found[user] for user in alone}


_EVENTS = st.lists(
  st.tuples(
    st.sampled_from('uvw'),
    st.sampled_from('ABCDE'),
    st.integers(1, 3),
    st.integers(1, 5),
    st.booleans(),
  ),
  min_size=1,
  max_size=40,
)


@settings(deadline=None, max_examples=120)
@given(_EVENTS, st.randoms(), st.integers(1, 5))
def test_reading_equals_dictionaries(tmp_path_factory, drawn, random, most):
  drawn = random.sample(drawn, len(drawn))
  lines, place = [], 0
  while place < len(drawn):
    # Runs of one user share a line.
    user = drawn[place][0]
    history = []
    while place < len(drawn) and drawn[place][0] == user:
      _, item, day, rating, titled = drawn[place]
      title = f'Title {item}' if titled else None
      history.append(event(item, day, rating, title=title))
      place += 1
    lines.append({'user_id': user, 'history': history})
  path = write(tmp_path_factory.mktemp('regen'), *lines)
  titled = {item for _, item, _, _, has_title in drawn if has_title}
  kept, seen = {}, set()
  for number, (user, item, day, rating, _) in enumerate(drawn):
    if item in titled and (user, item, day, rating) not in seen:
      old = kept.get((user, item))
      if old is None or day >= old[2]:
        kept[user, item] = (user, item, day, rating, number)
    seen.add((user, item, day, rating))
  order = list(dict.fromkeys(row[0] for row in drawn))
  histories = collections.defaultdict(list)
  for row in sorted(kept.values(), key=lambda row: (row[2], row[4])):
    histories[row[0]].append(row)
  expected = [
    (user, item, float(rating), march(day))
    for name in order
    for user, item, day, rating, _ in histories[name][-most:]
  ]
  if not expected:
    with pytest.raises(UserError, match='no event is of an item with a title'):
      regen.read_regen(path, max_history=most)
    return
  data = regen.read_regen(path, max_history=most)
  assert rows_of(data) == expected
  assert sum(data.dropped.values()) == len(drawn) - len(expected)


def test_the_real_user(data_dir):
  path = data_dir / 'amazon' / 'regen_office_one_user.json'
  if not path.is_file():
    pytest.skip(f'no {path}: one user of REGEN office')
  records = json.loads(path.read_text())
  data = regen.read_regen(path)
  unique = {record['asin']: record for record in records}
  assert data.dropped == {
    'repeated event (same user, item, rating and time)': 1
  }
  assert data.unknown_keys == {}
  assert data.ratings['item_id'].to_pylist() == list(unique)
  for row, record in zip(data.ratings.to_pylist(), unique.values()):
    date = datetime.datetime.fromtimestamp(row['timestamp'], datetime.UTC)
    assert date.strftime('%m/%d/%Y') == record['purchase_date']
    assert row['review'] == record['review']
    assert row['rating'] == record['rating']
  for item, record in zip(data.items.to_pylist(), unique.values()):
    assert item['title'] == record['title']
    assert item['price'] == pytest.approx(record['price'], rel=1e-6)
    assert ' - '.join(item['genres']) == record['category'].strip()
  (narrative,) = data.narratives.to_pylist()
  assert narrative['text'] == records[0]['long_summary']
  assert narrative['item_id'] == ''


def test_the_real_histories(data_dir):
  path = data_dir / 'amazon' / 'amazon2023_user_histories.jsonl'
  if not path.is_file():
    pytest.skip(f'no {path}: histories of Amazon Reviews 2023')
  events = collections.defaultdict(list)
  for line in path.read_text().splitlines():
    user = json.loads(line)
    events[user['user_id']] += [*user['history'], user['heldout']]
  data = regen.read_regen(path)
  assert set(data.unknown_keys) == {'category', 'review_excerpt'}
  num_events = sum(map(len, events.values()))
  assert len(data.ratings) + sum(data.dropped.values()) == num_events
  assert data.splits['user_id'].to_pylist() == list(events)
  found = collections.defaultdict(list)
  for row in data.ratings.to_pylist():
    found[row['user_id']].append(row)
  for user, rows in found.items():
    assert len(rows) <= 50
    newest = max(events[user], key=lambda e: e['timestamp_ms'])
    if newest['product']['title']:
      assert rows[-1]['item_id'] == newest['parent_asin']
      assert rows[-1]['timestamp'] == newest['timestamp_ms'] // 1000


def test_the_job_takes_histories(tmp_path):
  users = [
    {'user_id': f'u{i}', 'history': [event(item, 1 + i) for item in 'ABC']}
    for i in range(20)
  ]
  (tmp_path / 'in').mkdir()
  write(tmp_path / 'in', *users)
  arguments = dict(dataset='regen', data_dir=str(tmp_path / 'in'))
  manifest = make_data(
    output_dir=str(tmp_path / 'out'), split_rule='user_disjoint',
    test_share=0.3, write_texts=False, **arguments,
  )  # fmt: skip
  assert manifest['counts']['ratings'] == 60
  assert manifest['split_check'] == 'no user is in two splits'
  ratings = tables.read_table(tmp_path / 'out', 'ratings').to_pylist()
  assert {(r['user_id'], r['split']) for r in ratings} == {
    (f'u{i}', _expected_split(f'u{i}', 0, 0.3, 0.1)) for i in range(20)
  }
  write(tmp_path / 'in', *users, name='y.jsonl')
  with pytest.raises(UserError, match=re.escape('found x.jsonl, y.jsonl')):
    make_data(output_dir=str(tmp_path / 'two'), write_texts=False, **arguments)
