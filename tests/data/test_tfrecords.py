"""Records of TFRecord files, written here by the format's definition."""

import struct

import pytest

from p4lm.data import tfrecords
from p4lm.errors import UserError


def crc32c(data: bytes) -> int:
  """Bit by bit, with Castagnoli's polynomial turned round."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
  crc = crc32c(data)
  turned = (crc >> 15 | crc << 17) & 0xFFFFFFFF
  return struct.pack('<I', (turned + 0xA282EAD8) & 0xFFFFFFFF)


def framed(record: bytes) -> bytes:
  length = struct.pack('<Q', len(record))
  return length + masked(length) + record + masked(record)


RECORDS = [b'a' * 5, b'', b'bc' * 40, b'a' * 5, b'\x00' * 16, b'end']


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'one.tfrecord'
  path.write_bytes(b''.join(map(framed, RECORDS)))
  return path


def test_the_checksum_is_castagnolis():
  """Its check value, and the 32 zero bytes of RFC 3720, B.4."""
  assert crc32c(b'123456789') == 0xE3069283
  assert crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize('size', [1, 7, 30, 101, 1 << 20])
def test_all_records_come_whatever_is_read_at_a_time(path, size):
  blocks = list(tfrecords.read(path, size))
  assert [
    block.data[start : start + length]
    for block in blocks
    for start, length in zip(block.places.starts, block.places.lengths)
  ] == RECORDS
  if size == 1 << 20:
    assert len(blocks) == 1


def test_an_empty_file_has_none(tmp_path):
  (tmp_path / 'empty').touch()
  assert list(tfrecords.read(tmp_path / 'empty')) == []


def test_a_cut_file_is_an_error(path):
  data = path.read_bytes()
  for end in (len(data) - 1, len(data) - len(framed(b'end')) + 1):
    path.write_bytes(data[:end])
    at = len(data) - len(framed(b'end'))
    with pytest.raises(UserError, match=f'ends within the record at byte {at}'):
      list(tfrecords.read(path))


def test_a_changed_byte_is_an_error(path):
  data = path.read_bytes()
  second = len(framed(RECORDS[0]))
  third = second + len(framed(RECORDS[1]))
  for at, message in (
    (third + 20, f'the record at byte {third} does not have its checksum'),
    (third, f'the length of the record at byte {third} does not have its'),
  ):
    changed = bytearray(data)
    changed[at] ^= 4
    path.write_bytes(changed)
    for size in (16, 1 << 20):
      with pytest.raises(UserError, match=message):
        list(tfrecords.read(path, size))
