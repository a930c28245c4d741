"""Histories that cannot be read: one error with file, line and mend."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.data import regen
from p4lm.errors import UserError


def event(item, day, rating=5, **more):
  return {
    'asin': item,
    'title': f'Title {item}',
    'rating': rating,
    'purchase_date': f'03/{day:02}/2015',
    **more,
  }


BARE = [event('A', 1, reviewer_id='u'), event('B', 2, reviewer_id='u')]
GOOD = {'user_id': 'u', 'history': [event('A', 1)]}


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{"user_id": "u", ', ' is no JSON'),
    ('null', ': expected a user .* or a list of events'),
    ('[1]', ': expected a user'),
    (event('A', 1, user_id='u'), ': this is one event and no user'),
    ({'history': [event('A', 1)]}, ": key 'user_id' or .* is missing"),
    ({'user_id': 'u', 'history': [3]}, ': an event must be a JSON object, got'),
    ({'user_id': 'u', 'history': [event(None, 1)]}, ': asin is null'),
    ({'user_id': 'u', 'history': [event('A', 1, 0)]}, r': rating 0 is outside'),
    (
      {'user_id': 'u', 'history': [event('A', 1, 'x')]},
      ': rating must be a nu',
    ),
    ({'user_id': 'u', 'history': [event('A', 1, None)]}, ': rating is null'),
    ({'user_id': 'u', 'history': [event('A', 32)]}, ': purchase_date must be'),
    (
      {'user_id': 'u', 'history': [event('A', 1, purchase_date='May')]},
      ": purchase_date must be a date like 07/22/2014, got 'May'",
    ),
    (
      {'user_id': 'u', 'history': [event('A', 1, purchase_date=None)]},
      ': purchase_date is null',
    ),
    (
      {'user_id': 'u', 'history': [event('A', 1, timestamp=10**14)]},
      ': timestamp 100000000000000 is not between 1970 and 2100',
    ),
    (
      {'user_id': 'u', 'history': [event('A', 1, product=[])]},
      r': product must be a JSON object, got \[\]',
    ),
    (
      {'user_id': 'u', 'history': [event('A', 1, long_summary=5)]},
      ': long_summary must be a string, got 5',
    ),
  ],
)
def test_bad_lines_are_named(tmp_path, line, message):
  bad = line if isinstance(line, str) else json.dumps(line)
  text = f'{json.dumps(GOOD)}\n\n{bad}\n{json.dumps(GOOD)}\n'
  (tmp_path / 'x.jsonl').write_text(text)
  with pytest.raises(UserError, match=f'x.jsonl, line 3{message}'):
    regen.read_regen(tmp_path / 'x.jsonl')


def test_bad_files_are_named(tmp_path):
  path = tmp_path / 'x.json'
  with pytest.raises(UserError, match='x.json does not exist'):
    regen.read_regen(path)
  indented = json.dumps(BARE, indent=1)
  for data, message in (
    (b'', 'x.json holds no events'),
    (b'[]\n', 'x.json holds no events'),
    (json.dumps(GOOD).encode('utf-16'), 'line 1: the text is UTF-16'),
    (indented[:-9].encode(), r'x.json, line \d+ is no JSON'),
    (indented.replace('5', '\xe9').encode('latin-1'), r'line \d+: the text is'),
    (gzip.compress(indented.encode())[:-9], 'gzip data ends in the middle'),
    (json.dumps([event('A', 1, user_id='u', title='')]).encode(),
     'no event is of an item with a title'),
  ):  # fmt: skip
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
      regen.read_regen(path)


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_any_cut_line_is_named(tmp_path_factory, data):
  lines = [json.dumps({**GOOD, 'user_id': f'u{i}'}) for i in range(4)]
  place = data.draw(st.integers(0, 3))
  # A lone `{` on the first line begins an indented document.
  size = data.draw(st.integers(2, len(lines[place]) - 1))
  lines[place] = lines[place][:size]
  path = tmp_path_factory.mktemp('cut') / 'x.jsonl'
  path.write_text('\n'.join(lines) + '\n')
  with pytest.raises(UserError, match=f'x.jsonl, line {place + 1} is no JSON'):
    regen.read_regen(path)
