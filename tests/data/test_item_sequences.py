"""Events of a history and the next item: rules, errors, the real office set."""

import ast
import json

import pytest

from p4lm.data.item_sequences import read_sequences
from p4lm.errors import UserError


def _write(directory, **files):
  for name, lines in files.items():
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (directory / f'{name}.jsonl').write_text(text)
  return directory


def _event(user, history, target):
  return {'user_id': user, 'history': history, 'target': target}


ITEMS = [
  {'item_id': 0, 'title': 'Pen', 'description': "['Blue &amp; fine.', '']"},
  {'item_id': 1, 'title': 'Pot', 'description': ''},
  {'item_id': 2, 'title': '', 'description': ''},
  {'item_id': 9, 'title': 'Unused', 'description': ''},
]


def test_rules_are_counted(tmp_path):
  _write(
    tmp_path,
    items=ITEMS,
    train=[_event('u', [0, 2, 0], 1), _event('u', [2], 1)],
    valid=[_event('u', [0], 2), _event('v', ['0'], 1)],
    test=[_event('v', [0], 1), _event('w', [0, 7], 0), _event('w', [], 0)],
  )
  data = read_sequences(tmp_path)
  assert data.events.to_pylist() == [
    _event('u', ['0', '0'], '1') | {'split': 'train'},
    _event('v', ['0'], '1') | {'split': 'validation'},
    _event('w', ['0'], '0') | {'split': 'test'},
  ]
  assert data.items['title'].to_pylist() == ['Pen', 'Pot']
  assert data.items['plot'].to_pylist() == ['Blue & fine.', '']
  assert data.dropped == {
    'repeated event': 1,
    'event whose target has no title': 1,
    'event without a history': 2,
    'item of a history without a title': 3,
    'metadata of an item without reviews': 1,
    'metadata without a title': 1,
  }


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ({'history': [0], 'target': 1}, "key 'user_id' is missing"),
    (_event('u', 'x', 1), "history must be a list of item ids, got 'x'"),
    ({'user_id': 'u', 'target': 1}, 'history must be a list of item ids, got'),
    (_event('u', [1.5], 1), 'history must be an id'),
    (_event('u', [None], 1), 'history is null'),
    (_event('u', [0], None), 'target is null'),
    ([1], 'expected a JSON object'),
  ],
)
def test_bad_events_are_named(tmp_path, line, message):
  _write(tmp_path, items=ITEMS, test=[_event('u', [0], 1), line])
  with pytest.raises(UserError, match=f'test.jsonl, line 2: {message}'):
    read_sequences(tmp_path)


def test_missing_and_empty_files_are_told(tmp_path):
  with pytest.raises(UserError, match='must hold items.jsonl and'):
    read_sequences(_write(tmp_path, items=ITEMS))
  with pytest.raises(UserError, match='test.jsonl is empty'):
    read_sequences(_write(tmp_path, test=[]))
  with pytest.raises(UserError, match='no event is of items with titles'):
    read_sequences(_write(tmp_path, test=[_event('u', [2], 2)]))


def test_the_real_office_products(data_dir):
  directory = data_dir / 'amazon' / 'office_products_2018'
  if not directory.is_dir():
    pytest.skip(f'no {directory}: items.jsonl, valid.jsonl, test.jsonl')
  data, expected, seen = read_sequences(directory), [], set()
  for name, split in (('valid', 'validation'), ('test', 'test')):
    for line in (directory / f'{name}.jsonl').read_text().splitlines():
      event = json.loads(line)
      row = (event['user_id'], tuple(event['history']), event['target'])
      if row not in seen:
        expected.append((row[0], [str(i) for i in row[1]], str(row[2]), split))
      seen.add(row)
  names = ('user_id', 'history', 'target', 'split')
  found = list(zip(*(data.events[name].to_pylist() for name in names)))
  assert found == expected
  lines = (directory / 'items.jsonl').read_text().splitlines()
  items = {str(item['item_id']): item for item in map(json.loads, lines)}
  used = {i for _, history, target, _ in found for i in (*history, target)}
  assert set(data.items['item_id'].to_pylist()) == used
  repeats = 2 * 4866 - len(found)
  assert data.dropped == {
    reason: number
    for reason, number in (
      ('metadata of an item without reviews', len(items) - len(used)),
      ('repeated event', repeats),
    )
    if number
  }
  plots = dict(
    zip(data.items['item_id'].to_pylist(), data.items['plot'].to_pylist())
  )
  parts = ast.literal_eval(items['1']['description'])
  assert plots['1'] == ' '.join(parts) == 'An Amazon Brand.'
