"""The records of TFRecord files, in blocks of many.

A record is its length (uint64), a checksum of that, its bytes, and a checksum
of those; both are masked CRC-32C, and all numbers are little-endian
(tensorflow/core/lib/io/record_writer.h). `tf.data` takes 2 microseconds to read
one; here it is cut out and checked in 0.6, and TensorFlow is not needed.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Iterator

import google_crc32c
import numpy as np

from p4lm.errors import UserError

_HEADER, _FOOTER = 12, 4
# So many bytes of records: what is made of them stays in a core's cache.
_BLOCK = 1 << 22


@dataclasses.dataclass(frozen=True)
class Places:
  """Where records lie in a block.

  Attributes:
    starts: int64 [R], where each record's own bytes begin.
    lengths: int64 [R], how many they are.
  """

  starts: np.ndarray
  lengths: np.ndarray


@dataclasses.dataclass(frozen=True)
class Block:
  """Some records of a file: bytes, and the records' places in them."""

  data: bytes
  places: Places


def read(path: str | os.PathLike, size: int = _BLOCK) -> Iterator[Block]:
  """The records of a file in their order, in blocks.

  Args:
    path: the file.
    size: bytes that are read at a time.
  Raises:
    UserError: the file ends within a record, or a checksum is wrong.
    OSError: it cannot be read.
  """
  place, rest = 0, b''
  with open(path, 'rb') as file:
    while more := file.read(size):
      data = rest + more
      places, end = _cut(data, path, place)
      if len(places.starts):
        yield Block(data, places)
      place, rest = place + end, data[end:]
  if rest:
    raise UserError(f'{path} ends within the record at byte {place}')


def _cut(data: bytes, path, place: int) -> tuple[Places, int]:
  """The whole records in `data`, and where they end."""
  headers = _headers(data)
  lengths = _checked_lengths(data, headers, path, place)
  stops = headers + _HEADER + lengths
  whole = int(np.searchsorted(stops + _FOOTER, len(data), 'right'))
  places = Places(headers[:whole] + _HEADER, lengths[:whole])
  stops = stops[:whole]
  checksum = google_crc32c.value
  found = [
    checksum(data[start:stop])
    for start, stop in zip(places.starts.tolist(), stops.tolist())
  ]
  wrong = _masked(found) != _numbers(data, stops, '<u4')
  if wrong.any():
    record = place + int(headers[np.argmax(wrong)])
    raise UserError(
      f'{path}: the record at byte {record} does not have its checksum'
    )
  return places, int(stops[-1]) + _FOOTER if whole else 0


def _headers(data: bytes) -> np.ndarray:
  """int64 [R], where records begin, one that is cut off included."""
  length_at = struct.Struct('<Q').unpack_from
  at, last, found = 0, len(data) - _HEADER, []
  while at <= last:
    found.append(at)
    at += length_at(data, at)[0] + _HEADER + _FOOTER
  return np.array(found, np.int64)


def _checked_lengths(
  data: bytes, headers: np.ndarray, path, place: int
) -> np.ndarray:
  """int64 [R], the lengths that headers give; each must have its checksum."""
  lengths, rows = np.unique(_numbers(data, headers, '<u8'), return_inverse=True)
  found = [google_crc32c.value(length.tobytes()) for length in lengths]
  wrong = _masked(found)[rows] != _numbers(data, headers + 8, '<u4')
  if wrong.any():
    raise UserError(
      f'{path}: the length of the record at byte '
      f'{place + int(headers[np.argmax(wrong)])} does not have its checksum'
    )
  return lengths.astype(np.int64)[rows]


def _numbers(data: bytes, at: np.ndarray, dtype: str) -> np.ndarray:
  """[R], the numbers that lie at some places."""
  places = at[:, None] + np.arange(np.dtype(dtype).itemsize)
  return np.frombuffer(data, np.uint8)[places].view(dtype)[:, 0]


def _masked(checksums: list[int]) -> np.ndarray:
  """uint32 as TFRecord keeps it: turned by 15 bits, and a constant added."""
  checksums = np.array(checksums, np.uint32)
  turned = (checksums >> 15) | (checksums << 17)
  return turned + np.uint32(0xA282EAD8)
