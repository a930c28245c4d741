"""Blocks of lines: numbers, gzip members, and every place a file may be cut."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.data import byte_blocks
from p4lm.data.archives import DirectorySource
from p4lm.errors import UserError


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of some bytes, so that short files have several."""
  monkeypatch.setattr(byte_blocks, 'BLOCK_BYTES', 7)
  monkeypatch.setattr(byte_blocks, '_CHUNK_BYTES', 5)


def _blocks(directory, data, name='x.txt'):
  (directory / name).write_bytes(data)
  return list(byte_blocks.read_blocks(DirectorySource(directory), name))


def _lines(blocks):
  return [line for block in blocks for line in block.lines()]


def _expected(data):
  """Numbered lines that are not blank, by str.split alone."""
  text = data.decode().removeprefix('\ufeff')
  return [
    (number, line.encode())
    for number, line in enumerate(text.split('\n'), 1)
    if line.strip(' \t\r\x0b\x0c')
  ]


_TEXT = st.text(st.sampled_from('ab \r\né'), max_size=40)


@pytest.mark.usefixtures('small_blocks')
@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_lines_keep_their_numbers(tmp_path_factory, pack):
  sizes = []

  @settings(deadline=None, max_examples=80)
  @given(_TEXT, st.booleans())
  def check(text, has_mark):
    data = (('\ufeff' if has_mark else '') + text).encode()
    directory = tmp_path_factory.mktemp('blocks')
    blocks = _blocks(directory, pack(data))
    assert _lines(blocks) == _expected(data)
    assert all(block.data.endswith(b'\n') for block in blocks)
    unended = [block.is_unended for block in blocks]
    whole = data.removeprefix(b'\xef\xbb\xbf')
    assert any(unended) == (not whole.endswith(b'\n') and whole != b'')
    assert not any(unended[:-1])
    sizes.append(len(blocks))

  check()
  assert max(sizes) > 2


@pytest.mark.usefixtures('small_blocks')
def test_gzip_members_and_padding_are_one_file(tmp_path):
  data = gzip.compress(b'one\ntw') + gzip.compress(b'o\nthree\n') + b'\0' * 99
  assert _lines(_blocks(tmp_path, data)) == [
    (1, b'one'), (2, b'two'), (3, b'three'),
  ]  # fmt: skip


@pytest.mark.usefixtures('small_blocks')
def test_a_file_that_compresses_well_is_read_in_pieces(tmp_path):
  data = b'0123456789\n' * 20_000
  blocks = _blocks(tmp_path, gzip.compress(data))
  assert b''.join(block.data for block in blocks) == data
  assert max(len(block.data) for block in blocks) < 40
  firsts = [block.first_line for block in blocks]
  assert firsts == sorted(set(firsts)) and firsts[0] == 1


@pytest.mark.usefixtures('small_blocks')
def test_cut_gzip_names_the_line_wherever_it_is_cut(tmp_path):
  lines = [f'{{"a": {i * 7919 % 1000}}}'.encode() for i in range(60)]
  whole = gzip.compress(b'\n'.join(lines) + b'\n', mtime=0)
  seen = []
  for size in range(2, len(whole)):
    (tmp_path / 'x.gz').write_bytes(whole[:size])
    read = []
    with pytest.raises(UserError, match='ends in the middle') as error:
      for block in byte_blocks.read_blocks(DirectorySource(tmp_path), 'x.gz'):
        read += block.lines()
    assert [line for _, line in read] == lines[: len(read)]
    assert f'x.gz, line {len(read) + 1}: ' in str(error.value)
    seen.append(len(read))
  assert seen[0] == 0 and seen[-1] == 60 and len(set(seen)) > 20


def test_damaged_gzip_is_told(tmp_path):
  whole = bytearray(gzip.compress(b'line\n' * 1000))
  whole[-6] ^= 0xFF  # the checksum
  with pytest.raises(UserError, match=r'x.gz, line 1001: the gzip data is dam'):
    _blocks(tmp_path, bytes(whole), 'x.gz')
  garbage = gzip.compress(b'line\n') + b'garbage'
  with pytest.raises(UserError, match=r'line 2: the gzip data is damaged'):
    _blocks(tmp_path, garbage, 'x.gz')


def test_a_plain_file_may_be_called_gz(tmp_path):
  assert _lines(_blocks(tmp_path, b'plain\n', 'x.json.gz')) == [(1, b'plain')]


@pytest.mark.parametrize('encoding', ['utf-16-le', 'utf-16-be'])
def test_utf16_is_told(tmp_path, encoding):
  with pytest.raises(UserError, match=r'x.txt, line 1: the text is UTF-16'):
    _blocks(tmp_path, '\ufeffone\n'.encode(encoding))


def test_endless_lines_are_told(tmp_path, monkeypatch):
  monkeypatch.setattr(byte_blocks, 'MAX_LINE_BYTES', 1 << 20)
  monkeypatch.setattr(byte_blocks, 'BLOCK_BYTES', 1 << 18)
  with pytest.raises(UserError, match=r'x.txt, line 2 is longer than 1 MiB'):
    _blocks(tmp_path, b'one\n' + b'a' * (3 << 20))


def test_an_empty_file_has_no_blocks(tmp_path):
  assert _blocks(tmp_path, b'') == []
  assert _blocks(tmp_path, gzip.compress(b'')) == []
  assert _lines(_blocks(tmp_path, b'\xef\xbb\xbf')) == []
