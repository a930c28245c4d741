"""Text files, plain or gzip, in blocks of whole lines that know their numbers.

Memory is one block however large the file is. Whether a file is gzip is told
by its first bytes: downloads are unpacked on the way now and then and keep
their name.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from p4lm.data import progress
from p4lm.data.archives import FileSource
from p4lm.errors import UserError

UTF8_BOM = b'\xef\xbb\xbf'
BLOCK_BYTES = 16 << 20
MAX_LINE_BYTES = 256 << 20
_UTF16_BOMS = (b'\xff\xfe', b'\xfe\xff')
_CHUNK_BYTES = 1 << 20
_GZIP_MAGIC = b'\x1f\x8b'


@dataclasses.dataclass(frozen=True)
class Block:
  """Some lines of a file.

  Attributes:
    first_line: number of the first, from 1.
    data: the lines, each with its end.
    is_unended: the file's last line is in here and had no end; a file that
      was cut looks so.
  """

  first_line: int
  data: bytes
  is_unended: bool = False

  def lines(self) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that is not blank."""
    for number, line in enumerate(self.data.split(b'\n'), self.first_line):
      if line and not line.isspace():
        yield number, line


class _Damaged(Exception):
  """The compressed data ends or fails; raised after what can be read."""


def read_blocks(source: FileSource, name: str) -> Iterator[Block]:
  """Reads a file front to back; a byte order mark is removed.

  Args:
    source: directory or archive.
    name: file within it, plain or gzip.
  Yields:
    Blocks of some BLOCK_BYTES, or of one line that is longer.
  Raises:
    UserError: UTF-16, gzip data that is cut or damaged (after the blocks
      before the damage; the line is named), a line without end.
  """
  where = source.describe(name)
  rest, line, damage = b'', 1, None
  what, size = f'reading {name}', source.size(name)
  with (
    source.open(name) as opened,
    progress.watched(opened, what, size) as file,
  ):
    for data in _pieces(file):
      if isinstance(data, _Damaged):
        damage = data
        break
      if line == 1 and not rest:
        check_not_utf16(where, data)
        data = data.removeprefix(UTF8_BOM)
      end = data.rfind(b'\n') + 1
      if end:
        lines = b''.join([rest, memoryview(data)[:end]])  # one copy
        yield Block(line, lines)
        line += _num_ends(lines)
        rest = b''
      rest += data[end:]
      if len(rest) > MAX_LINE_BYTES:
        raise UserError(
          f'{where}, line {line} is longer than {MAX_LINE_BYTES >> 20} MiB: '
          'this is no file of lines; give one JSON object a line'
        )
  if damage is not None:
    raise UserError(f'{where}, line {line}: {damage}; download the file again')
  if rest:
    yield Block(line, rest + b'\n', is_unended=True)


def _num_ends(data: bytes) -> int:
  """Ends of lines; `bytes.count` takes twice the time."""
  return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord('\n')))


def check_not_utf16(where: str, start: bytes) -> None:
  """Refuses a file that begins with a UTF-16 byte order mark."""
  if start[:2] in _UTF16_BOMS:
    raise UserError(f'{where}, line 1: the text is UTF-16; save it as UTF-8')


def _pieces(file: BinaryIO) -> Iterator[bytes | _Damaged]:
  """Unpacked data in pieces of BLOCK_BYTES, at last perhaps the damage."""
  start = file.read(_CHUNK_BYTES)
  is_gzip = start.startswith(_GZIP_MAGIC)
  chunks = _unzipped(file, start) if is_gzip else _plain(file, start)
  parts, size = [], 0
  try:
    for chunk in chunks:
      parts.append(chunk)
      size += len(chunk)
      if size >= BLOCK_BYTES:
        yield b''.join(parts)
        parts, size = [], 0
  except _Damaged as error:
    yield b''.join(parts)
    yield error
    return
  if parts:
    yield b''.join(parts)


def _plain(file: BinaryIO, chunk: bytes) -> Iterator[bytes]:
  while chunk:
    yield chunk
    chunk = file.read(_CHUNK_BYTES)


def _unzipped(file: BinaryIO, data: bytes) -> Iterator[bytes]:
  """All members of a gzip file; zeros behind a member are padding.

  gzip.GzipFile would lose what a cut member still holds, and with it the
  number of the line at which the file is cut.
  """
  stream = zlib.decompressobj(wbits=31)
  while True:
    before = stream.copy()
    try:
      chunk = stream.decompress(data, _CHUNK_BYTES)
    except zlib.error as error:
      yield _until_damage(before, data)
      raise _Damaged(f'the gzip data is damaged ({error})') from error
    if chunk:
      yield chunk
    data = stream.unconsumed_tail
    if stream.eof:
      data = stream.unused_data.lstrip(b'\0')
      while not data and (more := file.read(_CHUNK_BYTES)):
        data = more.lstrip(b'\0')
      if not data:
        return
      stream = zlib.decompressobj(wbits=31)
    elif not data and len(chunk) < _CHUNK_BYTES:
      # A full chunk may have left more inside the stream.
      data = file.read(_CHUNK_BYTES)
      if not data:
        raise _Damaged('the gzip data ends in the middle')


def _until_damage(stream, data: bytes) -> bytes:
  """What can be unpacked of data that fails at some byte."""
  found = []
  try:
    for place in range(len(data)):
      found.append(stream.decompress(data[place : place + 1]))
  except zlib.error:
    pass
  return b''.join(found)
