"""Amazon readers against a plain reading, and against any one corruption."""

import gzip
import html
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.data import amazon, amazon_release, byte_blocks, rating_arrays
from p4lm.errors import UserError
from p4lm.jobs.make_data import make_data

KEYS = {
  'amazon-2018': ('reviewerID', 'asin', 'overall', 'unixReviewTime', 'asin'),
  'amazon-2023': (
    'user_id', 'parent_asin', 'rating', 'timestamp', 'parent_asin'
  ),
}  # fmt: skip
TICKS = {'amazon-2018': 1, 'amazon-2023': 1000}
ITEMS = ('A', 'B', 'C', '4')

# Few of each, so that repeats, ties and items without titles are common.
_REVIEWS = st.lists(
  st.tuples(
    st.sampled_from(['u', 'v', 'w', '\u00fc', 'x']),
    st.sampled_from([*ITEMS, 4, 'D']),
    st.sampled_from([1, 5, 3.0, 4.5]),
    st.integers(0, 3).map(lambda step: step * 600),
  ),
  min_size=1,
  max_size=30,
)
_TITLES = st.sampled_from(
  ['Pen', ' Pen\n', 'Pen &amp; ink', 'Pot', '', None, 'var aPageStart = 1',
   '<span>Pot</span>', '&lt;span&gt;']
)  # fmt: skip
_ITEMS = st.lists(
  st.tuples(st.sampled_from([*ITEMS, 'E']), _TITLES), max_size=12
)
_SPICE = st.dictionaries(
  st.sampled_from(['verified', 'style', 'vote', 'text', 'helpful']),
  st.none() | st.booleans() | st.text(max_size=3) | st.just({'a': [1, None]}),
  max_size=2,
)


def _lines(name, reviews, spices):
  user, item, rating, time, _ = KEYS[name]
  return [
    json.dumps({**spice, user: u, item: i, rating: r, time: t})
    for (u, i, r, t), spice in zip(reviews, spices)
  ]


def _item_lines(name, items):
  key = KEYS[name][-1]
  return [json.dumps({key: i, 'title': title}) for i, title in items]


def reference(name, review_lines, item_lines):
  """(ratings, items, lines lost): the rules with dictionaries and sorted()."""
  user, item, rating, time, key = KEYS[name]
  titles = {}
  for line in item_lines:
    record = json.loads(line)
    title = ' '.join(html.unescape(record['title'] or '').split())
    if title and not re.search('aPageStart|<span', title):
      titles.setdefault(str(record[key]), title)
  rows, users, seen = {}, {}, set()
  for number, line in enumerate(review_lines):
    record = json.loads(line)
    row = (record[user], str(record[item]), record[rating], record[time])
    users.setdefault(row[0], len(users))
    if row in seen:
      continue
    seen.add(row)
    old = rows.get(row[:2])
    if old is None or row[3] >= old[0][3]:
      rows[row[:2]] = (row, number)
  kept = sorted(
    (entry for entry in rows.values() if entry[0][1] in titles),
    key=lambda entry: (users[entry[0][0]], entry[0][3], entry[1]),
  )
  ratings = [
    (u, i, float(r), t // TICKS[name], number) for (u, i, r, t), number in kept
  ]
  reviewed = {str(json.loads(line)[item]) for line in review_lines}
  items = {i: title for i, title in titles.items() if i in reviewed}
  return ratings, items


def _release(directory, name, review_lines, item_lines, pack=False):
  for file, lines in (('Pens', review_lines), ('meta_Pens', item_lines)):
    data = ''.join(line + '\n' for line in lines).encode()
    path = directory / f'{file}.jsonl{".gz" if pack else ""}'
    path.write_bytes(gzip.compress(data) if pack else data)
  return amazon_release.find_release(directory, name)


@pytest.mark.parametrize('name', KEYS)
@settings(deadline=None, max_examples=100)
@given(data=st.data(), pack=st.booleans(), block_bytes=st.integers(50, 2000))
def test_any_order_with_repeats_equals_the_reference(
  tmp_path_factory, name, data, pack, block_bytes
):
  reviews = data.draw(_REVIEWS)
  copies = data.draw(st.lists(st.sampled_from(reviews), max_size=4))
  reviews = data.draw(st.permutations(reviews + copies))
  spices = data.draw(
    st.lists(_SPICE, min_size=len(reviews), max_size=len(reviews))
  )
  items = data.draw(_ITEMS.filter(len))
  lines, item_lines = _lines(name, reviews, spices), _item_lines(name, items)
  directory = tmp_path_factory.mktemp('release')
  release = _release(directory, name, lines, item_lines, pack)
  ratings, titles = reference(name, lines, item_lines)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(byte_blocks, 'BLOCK_BYTES', block_bytes)
    patch.setattr(byte_blocks, '_CHUNK_BYTES', block_bytes)
    if not ratings:
      with pytest.raises(UserError, match='no review is of an item with a'):
        amazon.read_amazon(release)
      return
    read = amazon.read_amazon(release)
  names = ('user_id', 'item_id', 'rating', 'timestamp', 'row')
  columns = [read.ratings[column].to_pylist() for column in names]
  assert list(zip(*columns)) == ratings
  found = read.items.to_pydict()
  assert dict(zip(found['item_id'], found['title'])) == titles
  # Every line has one fate: kept, or counted under one reason.
  about_items = {r: n for r, n in read.dropped.items() if 'metadata' in r}
  about_items.pop('review of an item without metadata', None)
  assert sum(about_items.values()) + len(titles) == len(item_lines)
  about_reviews = sum(read.dropped.values()) - sum(about_items.values())
  assert about_reviews + len(ratings) == len(lines)


_GOOD = [('u', 'A', 5, 600), ('v', 'B', 4, 1200), ('w', 'A', 3.5, 60)] * 3


def _break(draw, line, name):
  """A line made bad in one way; bytes."""
  user, item, rating, time, _ = KEYS[name]
  record = json.loads(line)
  way = draw(st.integers(0, 8))
  if way == 0:
    return line[: draw(st.integers(1, len(line) - 1))].encode()
  if way == 1:
    record.pop(draw(st.sampled_from([user, item, rating, time])))
  elif way == 2:
    record[draw(st.sampled_from([user, item, rating, time]))] = draw(
      st.none() | st.booleans() | st.just([]) | st.just({})
    )
  elif way == 3:
    record[rating] = draw(
      st.sampled_from([0, 0.99, 5.01, -1, 1e300, 10**400, float('nan'), 'x'])
    )
  elif way == 4:
    record[time] = draw(st.sampled_from([-1, 1e300, 2**63, 0.5, '600']))
  elif way == 5:
    record[draw(st.sampled_from([user, item]))] = draw(
      st.sampled_from(['', ' ', 0.5])
    )
  elif way == 6:
    place = draw(st.integers(0, len(line)))
    return line[:place].encode() + b'\xff' + line[place:].encode()
  elif way == 7:
    return draw(st.sampled_from([b'null', b'[]', b'0', b'""', b'{', b'}']))
  else:
    return (line + draw(st.sampled_from([line, ' null', ',', 'x']))).encode()
  return json.dumps(record).encode()


@pytest.mark.parametrize('name', KEYS)
@settings(deadline=None, max_examples=150)
@given(data=st.data(), block_bytes=st.sampled_from([60, 1 << 20]))
def test_any_bad_line_is_named(tmp_path_factory, name, data, block_bytes):
  lines = _lines(name, _GOOD, [{}] * len(_GOOD))
  place = data.draw(st.integers(0, len(lines) - 1))
  encoded = [line.encode() for line in lines]
  encoded[place] = _break(data.draw, lines[place], name)
  directory = tmp_path_factory.mktemp('bad')
  items = _item_lines(name, [('A', 'Pen'), ('B', 'Pot')])
  release = _release(directory, name, lines, items)
  (directory / 'Pens.jsonl').write_bytes(b'\n'.join(encoded) + b'\n')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(byte_blocks, 'BLOCK_BYTES', block_bytes)
    with pytest.raises(UserError) as error:
      amazon.read_amazon(release)
  assert re.search(
    rf'Pens\.jsonl, line {place + 1}(:| is no JSON)', str(error.value)
  )


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_cut_gzip_is_told(tmp_path_factory, data):
  name = 'amazon-2018'
  lines = _lines(name, _GOOD, [{}] * len(_GOOD))
  directory = tmp_path_factory.mktemp('cut')
  items = _item_lines(name, [('A', 'Pen'), ('B', 'Pot')])
  release = _release(directory, name, lines, items, pack=True)
  file = data.draw(st.sampled_from(['Pens.jsonl.gz', 'meta_Pens.jsonl.gz']))
  whole = (directory / file).read_bytes()
  size = data.draw(st.integers(0, len(whole) - 1))
  (directory / file).write_bytes(whole[:size])
  with pytest.raises(UserError, match=f'{file}(, line [0-9]+| is empty)'):
    amazon.read_amazon(release)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_bad_input_leaves_no_output(tmp_path_factory, data):
  name = 'amazon-2018'
  lines = _lines(name, _GOOD, [{}] * len(_GOOD))
  place = data.draw(st.integers(0, len(lines) - 1))
  encoded = [line.encode() for line in lines]
  encoded[place] = _break(data.draw, lines[place], name)
  directory = tmp_path_factory.mktemp('job')
  (directory / 'in').mkdir()
  items = _item_lines(name, [('A', 'Pen'), ('B', 'Pot')])
  _release(directory / 'in', name, lines, items)
  (directory / 'in' / 'Pens.jsonl').write_bytes(b'\n'.join(encoded) + b'\n')
  arguments = dict(
    dataset=name, data_dir=str(directory / 'in'), write_texts=False
  )
  with pytest.raises(UserError, match='Pens.jsonl, line'):
    make_data(output_dir=str(directory / 'out' / 'data'), **arguments)
  assert sorted(path.name for path in directory.iterdir()) == ['in']


def test_the_real_all_beauty_equals_the_reference(data_dir, tmp_path):
  path = data_dir / 'amazon' / 'all_beauty_2018_5core.jsonl.gz'
  if not path.is_file():
    pytest.skip(f'no {path}: put the 5-core reviews of All Beauty 2018 there')
  (tmp_path / path.name).write_bytes(path.read_bytes())
  release = amazon_release.find_release(tmp_path, 'amazon-2018')
  read = amazon.read_amazon(release, keep_unknown_items=True)
  with gzip.open(path, 'rt', encoding='utf-8') as file:
    records = [json.loads(line) for line in file]
  latest, seen = {}, set()
  for record in records:
    row = tuple(
      record[k] for k in ('user', 'asin', 'overall', 'unixReviewTime')
    )
    old = latest.get(row[:2])
    if row not in seen and (old is None or row[3] >= old[3]):
      latest[row[:2]] = row
    seen.add(row)
  names = ('user_id', 'item_id', 'rating', 'timestamp')
  rows = list(zip(*(read.ratings[column].to_pylist() for column in names)))
  assert len(rows) == len(latest) and set(rows) == set(latest.values())
  assert sum(read.dropped.values()) == len(records) - len(rows)
  for user in {row[0] for row in rows}:
    times = [row[3] for row in rows if row[0] == user]
    assert times == sorted(times)
  texts = amazon.read_review_texts(release, read.ratings['row'].to_numpy())
  by_row = dict(zip(texts['row'].to_pylist(), texts['text'].to_pylist()))
  for row in np.random.default_rng(0).choice(list(by_row), 50):
    assert by_row[row] == html.unescape(records[row].get('reviewText') or '')


def test_the_job_takes_the_real_all_beauty(data_dir, tmp_path):
  path = data_dir / 'amazon' / 'all_beauty_2018_5core.jsonl.gz'
  if not path.is_file():
    pytest.skip(f'no {path}: put the 5-core reviews of All Beauty 2018 there')
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / path.name).write_bytes(path.read_bytes())
  manifest = make_data(
    dataset='amazon-2018', data_dir=str(tmp_path / 'in'),
    output_dir=str(tmp_path / 'out'), write_texts=False,
    keep_unknown_items=True, split_rule='leave_one_out',
  )  # fmt: skip
  ratings = rating_arrays.read_ratings(tmp_path / 'out')
  assert len(ratings.ratings) == manifest['counts']['ratings'] == 4092
  assert manifest['counts']['rating_users'] == 991
  assert sum(manifest['dropped'].values()) == 5269 - 4092
