"""Bars are seen on a terminal, and what is read stays the same."""

import hashlib
import io
import sys
import zipfile

import pyarrow as pa
import pytest

from p4lm.data import byte_blocks, csv_rows, progress, tables
from p4lm.data.archives import open_source

LINES = b'a,b\n' + b'1,2\n' * 1000


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def _read_lines(path):
  blocks = byte_blocks.read_blocks(open_source(path.parent), path.name)
  assert b''.join(block.data for block in blocks) == LINES


def _read_columns(path):
  columns = {'a': pa.int64(), 'b': pa.int64()}
  table = csv_rows.read_columns(open_source(path.parent), path.name, columns)
  assert table.to_pydict() == {'a': [1] * 1000, 'b': [2] * 1000}


def _hash(path):
  assert tables.hash_file(path) == hashlib.sha256(LINES).hexdigest()


@pytest.mark.parametrize(
  ('read', 'what'),
  [
    (_read_lines, 'reading table.csv: 100%'),
    (_read_columns, 'reading table.csv: 100%'),
    (_hash, 'hashing table.csv: 100%'),
  ],
)
def test_a_file_that_takes_long_has_a_bar(tmp_path, monkeypatch, read, what):
  path = tmp_path / 'table.csv'
  path.write_bytes(LINES)
  # Every file takes long; every piece of it moves the bar.
  monkeypatch.setattr(
    progress, '_options', lambda: {'disable': None, 'mininterval': 0}
  )
  for stream in (_Terminal(), io.StringIO()):
    monkeypatch.setattr(sys, 'stderr', stream)
    read(path)
    assert (what in stream.getvalue()) == stream.isatty()


def test_what_is_soon_read_has_none(tmp_path, monkeypatch):
  path = tmp_path / 'table.csv'
  path.write_bytes(LINES)
  stream = _Terminal()
  monkeypatch.setattr(sys, 'stderr', stream)
  _read_lines(path)
  with progress.bar('counting', 10, 'sheep') as bar:
    bar.update(10)
  assert not stream.getvalue().strip()


def test_members_of_an_archive_know_their_size(tmp_path):
  with zipfile.ZipFile(
    tmp_path / 'in.zip', 'w', zipfile.ZIP_DEFLATED
  ) as zipped:
    zipped.writestr('table.csv', LINES)
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'table.csv').write_bytes(LINES)
  for name in ('in', 'in.zip'):
    assert open_source(tmp_path / name).size('table.csv') == len(LINES)
