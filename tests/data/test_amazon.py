"""Amazon Reviews 2018 and 2023: the rules, one by one, and bad input."""

import gzip
import json
import zipfile

import numpy as np
import pytest

from p4lm.data import amazon, amazon_release
from p4lm.errors import UserError

DAY = 86_400


def review(release, user, item, rating=5.0, time=DAY, **more):
  """A line of a review file; `time` in seconds."""
  if release == 'amazon-2018':
    line = {'overall': rating, 'verified': True, 'reviewerID': user,
            'asin': item, 'reviewText': 'Fine.', 'summary': 'Five Stars',
            'unixReviewTime': time}  # fmt: skip
  else:
    line = {'rating': rating, 'title': 'Five Stars', 'text': 'Fine.',
            'images': [], 'asin': f'child of {item}', 'parent_asin': item,
            'user_id': user, 'timestamp': round(time * 1000),
            'helpful_vote': 0, 'verified_purchase': True}  # fmt: skip
  return line | more


def metadata(release, item, title='A title', **more):
  key = 'asin' if release == 'amazon-2018' else 'parent_asin'
  return {key: item, 'title': title, **more}


def write(path, lines):
  data = ''.join(json.dumps(line) + '\n' for line in lines).encode()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


def release_of(directory, name, reviews, items, ending='.jsonl'):
  write(directory / f'Tools{ending}', reviews)
  if items is not None:
    write(directory / f'meta_Tools{ending}', items)
  return amazon_release.find_release(directory, name)


def rows_of(data):
  names = ('user_id', 'item_id', 'rating', 'timestamp')
  return list(zip(*(data.ratings[name].to_pylist() for name in names)))


RELEASES = pytest.mark.parametrize('name', ['amazon-2018', 'amazon-2023'])


@RELEASES
@pytest.mark.parametrize('ending', ['.jsonl', '.json', '.jsonl.gz', '.json.gz'])
def test_a_release_is_read(tmp_path, name, ending):
  is_2018 = name == 'amazon-2018'
  words = {'feature': ['Sharp']} if is_2018 else {'features': ['Sharp']}
  words |= {'brand': 'Acme'} if is_2018 else {'store': 'Acme'}
  words |= {'category' if is_2018 else 'categories': ['Tools', 'Saws &amp; c']}
  reviews = [
    review(name, 'u2', 'B1', 4.0, 3 * DAY),
    review(name, 'u1', 'B2', 1.0, DAY),
    review(name, 'u2', 'B2', 5, 2 * DAY),
  ]
  items = [
    metadata(name, 'B2', 'Plain'),
    metadata(
      name, 'B1', ' Tom &amp; Jerry&#39;s\n saw ', price='$1,012.50',
      description=['It&nbsp;cuts.', '', 'Well.'], **words
    ),
    metadata(name, 'B9', 'Nobody reviewed it'),
  ]  # fmt: skip
  data = amazon.read_amazon(release_of(tmp_path, name, reviews, items, ending))
  assert rows_of(data) == [
    ('u2', 'B2', 5.0, 2 * DAY),
    ('u2', 'B1', 4.0, 3 * DAY),
    ('u1', 'B2', 1.0, DAY),
  ]
  assert data.ratings['row'].to_pylist() == [2, 0, 1]
  plain, saw = data.items.to_pylist()
  assert saw == {
    'item_id': 'B1', 'title': "Tom & Jerry's saw", 'year': None,
    'genres': ['Tools', 'Saws & c'], 'tags': [], 'keywords': [],
    'plot': 'It cuts. Well.', 'brand': 'Acme', 'price': 1012.5,
    'average_rating': None,
  }  # fmt: skip
  assert (plain['title'], plain['plot'], plain['price']) == ('Plain', '', None)
  assert data.dropped == {'metadata of an item without reviews': 1}


@RELEASES
def test_repeats_and_unknown_items_are_counted(tmp_path, name):
  reviews = [
    review(name, 'u', 'A', 3.0, 5),
    review(name, 'u', 'A', 3.0, 5, helpful=3),  # an exact repeat
    review(name, 'u', 'A', 2.0, 9),  # the latest
    review(name, 'u', 'A', 1.0, 7),
    review(name, 'u', 'B', 1.0, 4),
    review(name, 'u', 'B', 2.0, 4),  # the later line at the same time
    review(name, 'u', 'B', 1.0, 4),  # the first one again
    review(name, 'v', 'unlisted', 5.0, 1),
    review(name, 'v', 'unlisted', 4.0, 2),
    review(name, 'v', 'untitled', 5.0, 2),
    review(name, 'w', 'scripted', 5.0, 3),
  ]
  items = [
    metadata(name, 'A'), metadata(name, 'B'), metadata(name, 'untitled', None),
    metadata(name, 'scripted', 'var aPageStart = (new Date()).getTime();'),
  ]  # fmt: skip
  release = release_of(tmp_path, name, reviews, items)
  data = amazon.read_amazon(release)
  assert rows_of(data) == [('u', 'B', 2.0, 4), ('u', 'A', 2.0, 9)]
  assert data.items['item_id'].to_pylist() == ['A', 'B']
  assert data.dropped == {
    'repeated review (same user, item, rating and time)': 2,
    'duplicate (user, item), an older review': 4,
    'review of an item without metadata': 1,
    'review of an item without a title': 2,
    'metadata without a title': 1,
    'metadata with a script for a title': 1,
  }
  kept = amazon.read_amazon(release, keep_unknown_items=True)
  assert rows_of(kept)[2:] == [
    ('v', 'unlisted', 4.0, 2), ('v', 'untitled', 5.0, 2),
    ('w', 'scripted', 5.0, 3),
  ]  # fmt: skip
  titles = dict(
    zip(kept.items['item_id'].to_pylist(), kept.items['title'].to_pylist())
  )
  assert titles == {
    'A': 'A title', 'B': 'A title', 'untitled': '', 'scripted': '',
    'unlisted': '',
  }  # fmt: skip
  assert 'review of an item without a title' not in kept.dropped
  every = amazon.read_amazon(release, keep_repeats=True)
  assert [r for r in rows_of(every) if r[0] == 'u'] == [
    ('u', 'B', 1.0, 4), ('u', 'B', 2.0, 4), ('u', 'B', 1.0, 4),
    ('u', 'A', 3.0, 5), ('u', 'A', 3.0, 5), ('u', 'A', 1.0, 7),
    ('u', 'A', 2.0, 9),
  ]  # fmt: skip


@RELEASES
def test_reviews_without_metadata(tmp_path, name):
  release = release_of(tmp_path, name, [review(name, 'u', 'A')], None)
  with pytest.raises(UserError, match='keep_unknown_items = True'):
    amazon.read_amazon(release)
  data = amazon.read_amazon(release, keep_unknown_items=True)
  assert rows_of(data) == [('u', 'A', 5.0, DAY)]
  assert data.items.select(['item_id', 'title']).to_pylist() == [
    {'item_id': 'A', 'title': ''}
  ]


@RELEASES
def test_metadata_of_other_reviews_is_told(tmp_path, name):
  items = [metadata(name, 'B')]
  release = release_of(tmp_path, name, [review(name, 'u', 'A')], items)
  with pytest.raises(UserError, match='no review is of an item with a title'):
    amazon.read_amazon(release)


def test_one_moment_keeps_the_order_of_lines(tmp_path):
  """2018 knows days; 2023 milliseconds, which order what seconds tie."""
  for name, times in (
    ('amazon-2018', [DAY] * 4),
    ('amazon-2023', [DAY + 0.2, DAY + 0.1, DAY + 0.2, DAY]),
  ):
    reviews = [review(name, 'u', c, time=t) for c, t in zip('BADC', times)]
    items = [metadata(name, c) for c in 'ABCD']
    release = release_of(tmp_path / name, name, reviews, items)
    data = amazon.read_amazon(release)
    expected = {'amazon-2018': 'BADC', 'amazon-2023': 'CABD'}[name]
    assert data.ratings['item_id'].to_pylist() == list(expected)
    assert data.ratings['timestamp'].to_pylist() == [DAY] * 4


def test_the_first_title_of_an_item_counts(tmp_path):
  name = 'amazon-2018'
  items = [
    metadata(name, 'A', '<span id="productTitle">x</span>', price='$1'),
    metadata(name, 'A', None),
    metadata(name, 'A', 'First', price='$2'),
    metadata(name, 'A', ' First ', price='$3'),
    metadata(name, 'A', 'Second'),
    metadata(name, 'A', ''),
  ]
  release = release_of(tmp_path, name, [review(name, 'u', 'A')], items)
  data = amazon.read_amazon(release)
  assert data.items.select(['title', 'price']).to_pylist() == [
    {'title': 'First', 'price': 2.0}
  ]
  assert data.dropped == {
    'metadata with a script for a title': 1,
    'metadata without a title': 2,
    'repeated metadata of an item': 1,
    'repeated metadata of an item, with another title': 1,
  }


def test_unreadable_prices_are_counted(tmp_path):
  name = 'amazon-2023'
  prices = [None, 3.5, '—', 'from 4', '$x']
  items = [metadata(name, f'{i}', price=p) for i, p in enumerate(prices)]
  reviews = [review(name, 'u', f'{i}', time=i) for i in range(5)]
  data = amazon.read_amazon(release_of(tmp_path, name, reviews, items))
  assert data.items['price'].to_pylist() == [None, 3.5, None, 4.0, None]
  reason = 'price that is no number (the item is kept without)'
  assert data.dropped == {reason: 2}


def test_categories_lose_html(tmp_path):
  name = 'amazon-2018'
  items = [metadata(name, 'A', category=['Beauty', '</span></span>', 'Soap'])]
  release = release_of(tmp_path, name, [review(name, 'u', 'A')], items)
  data = amazon.read_amazon(release)
  assert data.items['genres'].to_pylist() == [['Beauty', 'Soap']]


def test_texts_of_chosen_reviews(tmp_path):
  name = 'amazon-2023'
  reviews = [
    review(name, 'u', f'{i}', time=i, text=f'T{i} &amp;\n', title=f'&lt;{i}')
    for i in range(9)
  ]
  reviews[4] |= {'text': None, 'verified_purchase': None}
  reviews[8] |= {'verified_purchase': False}
  write(tmp_path / 'A.jsonl', reviews[:4])
  write(tmp_path / 'B.jsonl.gz', reviews[4:])
  release = amazon_release.find_release(tmp_path, name)
  table = amazon.read_review_texts(release, np.array([8, 4, 0, 8]))
  assert table.to_pylist() == [
    {'row': 0, 'title': '<0', 'text': 'T0 &\n', 'verified': True},
    {'row': 4, 'title': '<4', 'text': '', 'verified': None},
    {'row': 8, 'title': '<8', 'text': 'T8 &\n', 'verified': False},
  ]
  assert len(amazon.read_review_texts(release, np.array([], np.int64))) == 0
  for row in (-1, 9):
    with pytest.raises(IndexError, match='rows go from 0 to 8'):
      amazon.read_review_texts(release, np.array([row]))


def test_files_are_found_by_their_names(tmp_path):
  name, line = 'amazon-2018', [review('amazon-2018', 'u', 'A')]
  with pytest.raises(UserError, match='does not exist'):
    amazon_release.find_release(tmp_path / 'nowhere', name)
  (tmp_path / 'README.txt').write_text('x')
  with pytest.raises(UserError, match='holds no reviews .*found README.txt'):
    amazon_release.find_release(tmp_path, name)
  write(tmp_path / 'one' / 'Mugs_5.json.gz', line)
  write(tmp_path / 'one' / 'Cups_5.json.gz', line)
  write(tmp_path / 'one' / 'meta_Cups.json.gz', [metadata(name, 'A')])
  release = amazon_release.find_release(tmp_path, name)
  assert release.reviews == ('one/Cups_5.json.gz', 'one/Mugs_5.json.gz')
  assert release.metadata == ('one/meta_Cups.json.gz',)
  assert sorted(release.fingerprint()) == sorted(
    release.reviews + release.metadata
  )
  write(tmp_path / 'two' / 'Saws_5.json', line)
  with pytest.raises(UserError, match=r'several folders \(one, two\)'):
    amazon_release.find_release(tmp_path, name)
  with pytest.raises(UserError, match='is a file; give the directory'):
    amazon_release.find_release(tmp_path / 'two' / 'Saws_5.json', name)


def test_a_zip_is_read_in_place(tmp_path):
  name = 'amazon-2018'
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as archive:
    archive.writestr('a/R.json', json.dumps(review(name, 'u', 'A')))
    archive.writestr('a/meta_R.json', json.dumps(metadata(name, 'A')))
  release = amazon_release.find_release(tmp_path / 'x.zip', name)
  assert rows_of(amazon.read_amazon(release)) == [('u', 'A', 5.0, DAY)]


BAD = [
  ({'overall': 0.5}, r'rating 0.5 is outside \[1, 5\]'),
  ({'overall': 6}, 'rating 6 is outside'),
  ({'overall': float('nan')}, 'rating nan is outside'),
  ({'overall': float('inf')}, 'rating inf is outside'),
  ({'overall': None}, 'overall is null'),
  ({'overall': '5'}, "overall must be a number, got '5'"),
  ({'unixReviewTime': -1}, 'time -1 is not between 1970 and 2100 in seconds'),
  ({'unixReviewTime': DAY * 10**6}, 'take the DATASET of that release'),
  ({'unixReviewTime': 1.5}, 'unixReviewTime must be a whole number'),
  ({'reviewerID': ''}, 'reviewerID must be an id'),
  ({'asin': None}, 'asin is null'),
]


@pytest.mark.parametrize(('change', 'message'), BAD)
@pytest.mark.parametrize('ending', ['.jsonl', '.jsonl.gz'])
def test_bad_reviews_are_named(tmp_path, change, message, ending):
  name = 'amazon-2018'
  reviews = [review(name, 'u', 'A', time=i) for i in range(5)]
  reviews[3] |= change
  items = [metadata(name, 'A')]
  release = release_of(tmp_path, name, reviews, items, ending)
  with pytest.raises(UserError, match=message) as error:
    amazon.read_amazon(release)
  assert f'Tools{ending}, line 4: ' in str(error.value)


def test_the_other_release_is_told(tmp_path):
  reviews = [review('amazon-2023', 'u', 'A')]
  release = release_of(tmp_path, 'amazon-2018', reviews, [])
  with pytest.raises(
    UserError, match="line 1: key 'reviewerID' or 'user' is missing; found rat"
  ):
    amazon.read_amazon(release)
  reviews = [review('amazon-2018', 'u', 'A')]
  release = release_of(tmp_path, 'amazon-2023', reviews, [])
  with pytest.raises(UserError, match="line 1: key 'user_id' is missing"):
    amazon.read_amazon(release)


@pytest.mark.parametrize('file', ['Tools.jsonl', 'meta_Tools.jsonl'])
@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'', ' is empty'),
    (b'\n', ' is empty'),
    (b'\xff\xfe{\x00', ', line 1: the text is UTF-16'),
    (b'{"asin": "\xe9"}\n', r', line 1: the text is not utf-8 \(byte 0xe9\)'),
    (b'{"asin": ', ', line 1 is no JSON'),
    (b'{}', ', line 1: key .* is missing'),
    (
      gzip.compress(b'{}', mtime=0)[:-9],
      ', line 1: the gzip data ends in the middle',
    ),
  ],
  ids=['empty', 'blank', 'utf-16', 'latin-1', 'cut', 'keys', 'cut gzip'],
)
def test_bad_files_are_named(tmp_path, file, data, message):
  name = 'amazon-2018'
  reviews, items = [review(name, 'u', 'A')], [metadata(name, 'A')]
  release = release_of(tmp_path, name, reviews, items)
  (tmp_path / file).write_bytes(data)
  with pytest.raises(UserError, match=file + message):
    amazon.read_amazon(release)


def test_marks_ends_and_blank_lines_are_legal(tmp_path):
  name = 'amazon-2018'
  lines = [json.dumps(review(name, u, 'A')) for u in 'uv']
  release = release_of(tmp_path, name, [], [metadata(name, 'A')])
  data = '\ufeff' + '\r\n\r\n'.join(lines)
  (tmp_path / 'Tools.jsonl').write_bytes(data.encode())
  assert [row[0] for row in rows_of(amazon.read_amazon(release))] == ['u', 'v']
