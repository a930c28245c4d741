"""Parquet tables, the manifest and directories that appear whole."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.data import atomic, rating_arrays, tables
from p4lm.errors import UserError


def _ratings(rows):
  """A ratings table of (user, item, rating, time, split) rows."""
  columns = list(zip(*rows)) if rows else [[]] * 5
  names = tables.SCHEMAS['ratings'].names
  arrays = [
    pa.array(c, t) for c, t in zip(columns, tables.SCHEMAS['ratings'].types)
  ]
  return pa.table(dict(zip(names, arrays)))


ROWS = [
  ('u2', 'b', 4.0, 10, 'train'),
  ('u1', 'a', 3.5, 20, 'test'),
  ('u2', 'a', 0.5, 30, 'train'),
  ('u3', 'c', 5.0, 40, 'validation'),
]


def test_written_tables_come_back_equal(tmp_path):
  target = tmp_path / 'data'
  manifest = tables.write_tables(
    target, {'ratings': _ratings(ROWS)}, {'seed': 3}
  )
  assert tables.read_table(target, 'ratings').to_pylist() == [
    dict(zip(tables.SCHEMAS['ratings'].names, row)) for row in ROWS
  ]
  assert tables.read_manifest(target) == manifest
  data = (target / 'ratings.parquet').read_bytes()
  assert manifest['files'] == {
    'ratings.parquet': {
      'sha256': hashlib.sha256(data).hexdigest(),
      'bytes': len(data),
    }
  }
  assert os.listdir(tmp_path) == ['data']


def test_dictionary_columns_are_read_as_strings(tmp_path):
  table = _ratings(ROWS)
  for name in ('user_id', 'item_id', 'split'):
    position = table.column_names.index(name)
    table = table.set_column(position, name, table[name].dictionary_encode())
  tables.write_tables(tmp_path / 'data', {'ratings': table}, {})
  read = tables.read_table(tmp_path / 'data', 'ratings')
  assert read.schema == tables.SCHEMAS['ratings']
  assert read.equals(_ratings(ROWS))


def test_extra_columns_are_left_out_and_integers_widened(tmp_path):
  table = pa.table(
    {
      'user_id': ['u'],
      'num_train_ratings': pa.array([3], pa.int64()),
      'preferences': [['likes']],
      'more': [1],
    }
  )
  tables.write_tables(tmp_path / 'data', {'users': table}, {})
  read = tables.read_table(tmp_path / 'data', 'users')
  assert read.schema == tables.SCHEMAS['users']
  assert read.to_pylist() == [
    {'user_id': 'u', 'preferences': ['likes'], 'num_train_ratings': 3}
  ]


def test_chosen_columns_keep_their_order(tmp_path):
  tables.write_tables(tmp_path / 'data', {'ratings': _ratings(ROWS)}, {})
  read = tables.read_table(tmp_path / 'data', 'ratings', ['split', 'user_id'])
  assert read.column_names == ['split', 'user_id']


@pytest.mark.parametrize(
  ('splits', 'users', 'items', 'codes'),
  [
    (('train',), ['u2'], ['b', 'a'], [0, 0]),
    (('test', 'validation'), ['u1', 'u3'], ['a', 'c'], [0, 1]),
    (tables.SPLITS, ['u2', 'u1', 'u3'], ['b', 'a', 'c'], [0, 1, 0, 2]),
  ],
)
def test_read_ratings_codes_the_chosen_splits(
  tmp_path, splits, users, items, codes
):
  tables.write_tables(tmp_path / 'data', {'ratings': _ratings(ROWS)}, {})
  arrays = rating_arrays.read_ratings(tmp_path / 'data', splits)
  assert arrays.users.ids == users
  assert arrays.items.ids == items
  assert arrays.users.codes.tolist() == codes
  expected = [r[2] for r in ROWS if r[4] in splits]
  assert arrays.ratings.tolist() == expected
  assert arrays.timestamps.tolist() == [r[3] for r in ROWS if r[4] in splits]


@settings(deadline=None, max_examples=40)
@given(
  st.lists(
    st.tuples(
      st.sampled_from('uvwxy'),
      st.sampled_from('ABCD'),
      st.sampled_from(tables.SPLITS),
    ),
    max_size=12,
  ),
  st.integers(1, 5),
  st.sets(st.sampled_from(tables.SPLITS), min_size=1),
)
def test_ratings_of_many_row_groups_are_those_of_one(rows, size, splits):
  """Each row group has a dictionary of its own."""
  table = pa.Table.from_pylist(
    [
      {'user_id': u, 'item_id': i, 'rating': n, 'timestamp': n, 'split': split}
      for n, (u, i, split) in enumerate(rows)
    ],
    schema=tables.SCHEMAS['ratings'],
  )
  with tempfile.TemporaryDirectory() as directory:
    pq.write_table(
      table,
      Path(directory, 'ratings.parquet'),
      row_group_size=size,
      store_schema=False,
    )
    found = rating_arrays.read_ratings(directory, sorted(splits))
  kept = [n for n, row in enumerate(rows) if row[2] in splits]
  assert found.ratings.tolist() == kept
  assert found.timestamps.tolist() == kept
  for encoded, column in ((found.users, 0), (found.items, 1)):
    expected = [rows[n][column] for n in kept]
    assert [encoded.ids[code] for code in encoded.codes] == expected
    in_file = dict.fromkeys(row[column] for row in rows)
    assert encoded.ids == [id_ for id_ in in_file if id_ in expected]


@given(st.lists(st.lists(st.text(max_size=3), max_size=5), max_size=4))
def test_encode_ids_decodes_to_the_column(chunks):
  column = pa.chunked_array(
    [pa.array(c, pa.string()) for c in chunks], pa.string()
  )
  encoded = tables.encode_ids(column)
  values = [value for chunk in chunks for value in chunk]
  assert [encoded.ids[code] for code in encoded.codes] == values
  assert encoded.ids == list(dict.fromkeys(values))
  back = tables.decode_ids(encoded.codes, encoded.ids)
  assert back.to_pylist() == values


@pytest.mark.parametrize(
  ('act', 'message'),
  [
    (lambda d: tables.read_table(d, 'rating'), "no table 'rating'"),
    (lambda d: tables.read_table(d, 'items'), 'items.parquet does not exist'),
    (
      lambda d: tables.read_table(d, 'users', ['name']),
      "no column 'name' in this table",
    ),
    (lambda d: tables.read_table(d, 'texts'), "'kind' is missing; found text"),
    (lambda d: tables.read_table(d, 'pairs'), 'no readable Parquet file'),
    (lambda d: tables.read_manifest(d), 'must be a directory that make_data'),
    (lambda d: rating_arrays.read_ratings(d, ['dev']), "no split 'dev'"),
    (
      lambda d: tables.write_tables(
        d / 'new', {'rl_prompts': pa.table({'user_id': ['u']})}, {}
      ),
      "no column 'item_id'; it has user_id",
    ),
  ],
)
def test_bad_tables_are_told(tmp_path, act, message):
  tables.save_tables(
    tmp_path,
    {
      'users': pa.table(
        {
          'user_id': ['u'],
          'preferences': [[]],
          'num_train_ratings': [1],
        }
      )
    },
  )
  pq.write_table(pa.table({'text': ['x']}), tmp_path / 'texts.parquet')
  (tmp_path / 'pairs.parquet').write_bytes(b'PAR1 cut off')
  with pytest.raises(UserError, match=message):
    act(tmp_path)
  assert not (tmp_path / 'new').exists()


def test_broken_manifest_is_told(tmp_path):
  (tmp_path / 'manifest.json').write_text('{"seed": ')
  with pytest.raises(UserError, match='manifest.json is no JSON'):
    tables.read_manifest(tmp_path)


def test_failure_leaves_nothing(tmp_path):
  with pytest.raises(RuntimeError, match='halfway'):
    with atomic.atomic_directory(tmp_path / 'a' / 'b') as staging:
      (staging / 'file').write_text('x')
      raise RuntimeError('halfway')
  assert os.listdir(tmp_path) == []


def test_failure_leaves_an_existing_directory_as_it_was(tmp_path):
  (tmp_path / 'config.gin').write_text('SEED = 0')
  with pytest.raises(RuntimeError, match='halfway'):
    with atomic.atomic_directory(tmp_path) as staging:
      (staging / 'file').write_text('x')
      raise RuntimeError('halfway')
  assert os.listdir(tmp_path) == ['config.gin']


def test_a_job_directory_is_filled(tmp_path):
  (tmp_path / 'config.gin').write_text('SEED = 0')
  tables.write_tables(tmp_path, {'ratings': _ratings(ROWS)}, {})
  assert sorted(os.listdir(tmp_path)) == [
    'config.gin',
    'manifest.json',
    'ratings.parquet',
  ]


def test_the_manifest_arrives_last(tmp_path, monkeypatch):
  (tmp_path / 'config.gin').write_text('')
  moved = []
  replace = os.replace
  monkeypatch.setattr(
    os, 'replace', lambda a, b: (moved.append(b.name), replace(a, b))
  )
  with atomic.atomic_directory(tmp_path) as staging:
    for name in ('a', 'manifest.json', 'z'):
      (staging / name).write_text(name)
  assert moved == ['a', 'z', 'manifest.json']


def test_foreign_files_are_not_overwritten(tmp_path):
  (tmp_path / 'thesis.txt').write_text('mine')
  with pytest.raises(UserError, match=r'other files \(thesis.txt\)'):
    tables.write_tables(tmp_path, {'ratings': _ratings(ROWS)}, {})
  assert os.listdir(tmp_path) == ['thesis.txt']


@pytest.mark.parametrize(
  ('name', 'message'),
  [('file', 'is a file'), ('file/below', 'cannot be written')],
)
def test_a_target_that_cannot_be_made_is_told(tmp_path, name, message):
  (tmp_path / 'file').write_text('x')
  with pytest.raises(UserError, match=message):
    with atomic.atomic_directory(tmp_path / name):
      raise AssertionError('the body must not run')
  assert os.listdir(tmp_path) == ['file']


def test_a_full_disk_is_told(tmp_path):
  with pytest.raises(UserError, match='No space left'):
    with atomic.atomic_directory(tmp_path / 'data'):
      raise OSError(28, 'No space left on device')
  assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_removed(tmp_path):
  target = tmp_path / 'data'
  code = (
    'import os, sys\n'
    'from p4lm.data.atomic import atomic_directory\n'
    f'with atomic_directory({str(target)!r}) as staging:\n'
    '  (staging / "half").write_text("x")\n'
    '  os.kill(os.getpid(), 9)\n'
  )
  process = subprocess.run([sys.executable, '-c', code], check=False)
  assert process.returncode == -9
  assert len(os.listdir(tmp_path)) == 1 and not target.exists()
  with atomic.atomic_directory(target) as staging:
    (staging / 'whole').write_text('x')
  assert os.listdir(tmp_path) == ['data']
  assert os.listdir(target) == ['whole']


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.integers()))
def test_manifest_values_survive_json(tmp_path_factory, values):
  directory = tmp_path_factory.mktemp('manifest')
  tables.save_manifest(directory, {'parameters': values})
  assert tables.read_manifest(directory)['parameters'] == json.loads(
    json.dumps(values)
  )


def test_rating_arrays_are_float32():
  arrays = rating_arrays.from_table(_ratings(ROWS))
  assert arrays.ratings.dtype == np.float32
  assert arrays.users.codes.dtype == np.int32
