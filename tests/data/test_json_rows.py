"""Columns of JSON lines: by Arrow or by Python, the same or the same error."""

import json
import math

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p4lm.data import byte_blocks, json_rows
from p4lm.data.archives import DirectorySource
from p4lm.data.json_rows import Column, Kind
from p4lm.errors import UserError

COLUMNS = {
  'id': Column(Kind.ID, ('id', 'old_id'), required=True),
  'number': Column(Kind.NUMBER, ('number',), required=True),
  'time': Column(Kind.INTEGER, ('time',)),
  'text': Column(Kind.TEXT, ('text',)),
  'parts': Column(Kind.TEXTS, ('parts', 'part')),
  'price': Column(Kind.PRICE, ('price',)),
}


def _read(directory, data, columns=COLUMNS):
  (directory / 'x.jsonl').write_bytes(data)
  parts = json_rows.read_rows(DirectorySource(directory), 'x.jsonl', columns)
  return [row for part in parts for row in part.table.to_pylist()]


def _plain(value):
  """A row as Arrow's and Python's parsers may both give it."""
  row = dict(value)
  row['parts'] = [part or '' for part in row['parts'] or []]
  row['price'] = None if row['price'] is None else str(row['price'])
  return row


def _reference(record):
  """What a line means, said once more without p4lm."""
  first = lambda *keys: next(
    (record[k] for k in keys if record.get(k) is not None), None
  )
  parts, flat = first('parts', 'part'), []
  parts = [] if parts is None else parts
  for part in [parts] if isinstance(parts, str) else parts:
    flat += part if isinstance(part, list) else [part]
  price = first('price')
  if isinstance(price, int):
    price = float(price)
  time = first('time')
  return {
    'id': str(first('id', 'old_id')),
    'number': float(first('number')),
    'time': None if time is None else int(time),
    'text': first('text') or '',
    'parts': [part or '' for part in flat],
    'price': None if price is None else str(price),
  }


_TEXT = st.text(st.characters(codec='utf-8'), max_size=6)
_IDS = st.one_of(
  _TEXT.filter(lambda text: text.strip()), st.integers(-5, 10**20)
)
_OPTIONAL = {
  'old_id': st.none() | _IDS,
  'time': st.none() | st.integers(0, 2**53) | st.sampled_from([3.0, 1e3]),
  'text': st.none() | _TEXT,
  'parts': st.none()
  | _TEXT
  | st.lists(st.none() | _TEXT | st.lists(_TEXT, max_size=2), max_size=3),
  'part': st.none() | st.lists(_TEXT, max_size=2),
  'price': st.none() | st.sampled_from(['$5', '', 5, 2.5, 'from 3']),
  'other': st.none() | st.integers() | st.lists(st.booleans()) | _TEXT,
  'null': st.just({'deep': [{'text': 1}, None]}),
}
_RECORDS = st.fixed_dictionaries(
  {'id': _IDS, 'number': st.integers(-9, 9) | st.floats(-1e3, 1e3)},
  optional=_OPTIONAL,
)


@settings(deadline=None, max_examples=150)
@given(
  st.lists(_RECORDS, min_size=1, max_size=8),
  st.sampled_from(['\n', '\r\n', '\n\n', ' \n ']),
  st.booleans(),
  st.integers(1, 200),
)
def test_legal_lines_are_read_alike(
  tmp_path_factory, records, end, escaped, block_bytes
):
  text = end.join(json.dumps(r, ensure_ascii=escaped) for r in records)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(byte_blocks, 'BLOCK_BYTES', block_bytes)
    patch.setattr(byte_blocks, '_CHUNK_BYTES', block_bytes)
    read = _read(tmp_path_factory.mktemp('json'), text.encode())
  assert [_plain(row) for row in read] == [_reference(r) for r in records]


def test_regular_lines_are_read_by_arrow(tmp_path, monkeypatch):
  """The common case must not fall to the slow way unnoticed."""

  def forbidden(*_):
    raise AssertionError('read line by line')

  monkeypatch.setattr(json_rows, '_parse_lines', forbidden)
  record = {'id': 'é', 'number': 5, 'parts': ['a'], 'other': {'x': [1, 'b']}}
  lines = [
    record,
    {**record, 'number': 4.5, 'price': '$3', 'old_id': 'b'},
    {'old_id': 'b', 'number': 1, 'text': '{"id": 1}\n', 'time': 7},
  ]
  text = '\n'.join(map(json.dumps, lines)) + '\n'
  read = _read(tmp_path, text.encode())
  assert [_plain(row) for row in read] == [_reference(r) for r in lines]
  numbers = text.replace('"$3"', '3.5')
  assert _read(tmp_path, numbers.encode())[1]['price'] == 3.5


_GOOD = '{"id": "a", "number": 1}'
_BAD_LINES = [
  ('{"id": "a", "number": 1', 'is no JSON'),
  ('{"id": "a" "number": 1}', 'is no JSON'),
  (_GOOD * 2, 'is no JSON'),
  (_GOOD + ' null', 'is no JSON'),
  ("{'id': 'a', 'number': 1}", 'is no JSON'),
  ('{"id": "a\tb", "number": 1}', 'is no JSON'),
  ('{"id": "a", "number": 01}', 'is no JSON'),
  ('{"id": "a", "number": 1},', 'is no JSON'),
  ('{"other": ' + '[' * 2000 + ']' * 2000 + '} x', 'is no JSON'),
  ('null', 'expected a JSON object, got None'),
  ('[1]', r'expected a JSON object, got \[1\]'),
  ('"id"', "expected a JSON object, got 'id'"),
  ('{}', "key 'id' or 'old_id' is missing; found none"),
  ('{"number": 1}', "key 'id' or 'old_id' is missing; found number"),
  ('{"id": null, "number": 1}', 'id is null'),
  ('{"id": "a"}', "key 'number' is missing; found id"),
  ('{"id": "", "number": 1}', "id must be an id .*, got ''"),
  ('{"id": " ", "number": 1}', 'id must be an id'),
  ('{"id": 1.5, "number": 1}', 'id must be an id .*, got 1.5'),
  ('{"id": true, "number": 1}', 'id must be an id'),
  ('{"id": ["a"], "number": 1}', 'id must be an id'),
  ('{"id": "a", "number": "1"}', "number must be a number, got '1'"),
  ('{"id": "a", "number": true}', 'number must be a number, got True'),
  ('{"id": "a", "number": 1, "time": 1.5}', 'time must be a whole number'),
  ('{"id": "a", "number": 1, "time": 1e400}', 'time must be a whole number'),
  ('{"id": "a", "number": 1, "time": NaN}', 'time must be a whole number'),
  ('{"id": "a", "number": 1, "time": "3"}', 'time must be a whole number'),
  ('{"id": "a", "number": 1, "text": 3}', 'text must be a string, got 3'),
  ('{"id": "a", "number": 1, "parts": {}}', 'parts must be a list of strings'),
  ('{"id": "a", "number": 1, "part": [[["x"]]]}', 'part must be a list of'),
  ('{"id": "a", "number": 1, "price": []}', 'price must be a string or a num'),
  (b'{"id": "a", "number": 1, "z": "\xff"}', r'not utf-8 \(byte 0xff\)'),
  (b'\xff', 'not utf-8'),
]


@pytest.mark.parametrize(('line', 'message'), _BAD_LINES)
@pytest.mark.parametrize('before', [0, 3])
def test_bad_lines_are_named(tmp_path, line, message, before):
  line = line if isinstance(line, bytes) else line.encode()
  good = _GOOD.encode() + b'\n'
  data = good * before + line + b'\n' + good
  with pytest.raises(UserError, match=message) as error:
    _read(tmp_path, data)
  assert f'x.jsonl, line {before + 1}' in str(error.value)


def test_one_object_over_two_lines_is_no_row(tmp_path):
  # Arrow alone would find as many objects as lines here.
  data = f'{_GOOD}{{"id":\n"b", "number": 1}}\n'.encode()
  with pytest.raises(UserError, match='line 1 is no JSON'):
    _read(tmp_path, data)


def test_a_cut_file_is_told_from_a_bad_line(tmp_path):
  with pytest.raises(UserError, match='line 2 .*seems to be cut here'):
    _read(tmp_path, f'{_GOOD}\n{_GOOD[:-3]}'.encode())
  with pytest.raises(UserError, match='line 1 .*; mend or remove the line'):
    _read(tmp_path, f'{_GOOD[:-3]}\n{_GOOD}'.encode())


@pytest.mark.parametrize('data', [b'', b'\n \n', b'\xef\xbb\xbf\n'])
def test_empty_files_are_told(tmp_path, data):
  with pytest.raises(UserError, match='x.jsonl is empty'):
    _read(tmp_path, data)


def test_failures_of_rows_name_lines_among_blank_ones(tmp_path):
  (tmp_path / 'x.jsonl').write_text(f'\n{_GOOD}\n\n  \n{_GOOD}\n')
  source = DirectorySource(tmp_path)
  (rows,) = json_rows.read_rows(source, 'x.jsonl', COLUMNS)
  for row, line in ((0, 2), (1, 5)):
    with pytest.raises(UserError, match=rf'x.jsonl, line {line}: odd'):
      rows.fail(row, 'odd')
  with pytest.raises(IndexError):
    rows.fail(2, 'odd')


def test_half_surrogates_become_question_marks(tmp_path):
  data = b'{"id": "\\ud800", "number": 1, "text": "a\\udc00\\ud83d\\ude00"}\n'
  (row,) = _read(tmp_path, data)
  assert (row['id'], row['text']) == ('?', 'a?\U0001f600')


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=12), st.integers(0, 60), st.booleans())
@example(b'null\n', 0, True)
@example(b'{}{}\n{', 0, True)
def test_whatever_bytes_there_are_only_user_errors_come(
  tmp_path_factory, junk, place, replace
):
  """Junk in a good file is read as Python's parser reads it, or refused."""
  good = (_GOOD + '\n').encode() * 3
  data = good[:place] + junk + good[place + (len(junk) if replace else 0) :]
  directory = tmp_path_factory.mktemp('junk')
  try:
    read = _read(directory, data)
  except UserError as error:
    assert 'x.jsonl' in str(error)
    return
  lines = data.removeprefix(b'\xef\xbb\xbf').split(b'\n')
  records = [json.loads(line) for line in lines if line.strip()]
  assert [row['id'] for row in read] == [
    str(r.get('id') or r['old_id']) for r in records
  ]
  assert all(
    row['number'] == r['number'] or math.isnan(r['number'])
    for row, r in zip(read, records)
  )


def test_types_do_not_depend_on_the_way(tmp_path):
  (tmp_path / 'x.jsonl').write_text(
    f'{_GOOD}\n{{"id": 2, "number": 1}}\n' * 2, encoding='utf-8'
  )
  source = DirectorySource(tmp_path)
  (slow,) = json_rows.read_rows(source, 'x.jsonl', COLUMNS)
  (tmp_path / 'x.jsonl').write_text(f'{_GOOD}\n', encoding='utf-8')
  (fast,) = json_rows.read_rows(source, 'x.jsonl', COLUMNS)
  assert slow.table.schema == fast.table.schema
  assert fast.table.schema.field('parts').type == pa.list_(pa.string())
