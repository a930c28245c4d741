"""The records of TFRecord files: where they lie, and blocks of them.

A record is its length (uint64), a checksum of that, its bytes, and a checksum
of those; both are masked CRC-32C, and all numbers are little-endian
(tensorflow/core/lib/io/record_writer.h). `tf.data` takes 2 microseconds to read
one. Here processes that know nothing of TensorFlow find and check the records
of the next files, while a block of those of this one is parsed as a whole.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import google_crc32c
import numpy as np

from p4lm import child_process
from p4lm.data import ahead
from p4lm.errors import UserError

_HEADER, _FOOTER = 12, 4
_BLOCK = 1 << 24


@dataclasses.dataclass(frozen=True)
class Places:
  """Where records lie in a file or in a part of it.

  Attributes:
    starts: int64 [R], where each record's own bytes begin.
    lengths: int64 [R], how many they are.
  """

  starts: np.ndarray
  lengths: np.ndarray


@dataclasses.dataclass(frozen=True)
class Block:
  """Some records of a file, one after the other: bytes, and places in them."""

  data: bytes
  places: Places


def read(
  paths: Sequence[str | os.PathLike], size: int = _BLOCK
) -> Iterator[Block]:
  """The records of all files in their order, in blocks of about `size` bytes.

  Raises:
    UserError: a file ends within a record, or a checksum is wrong.
    OSError: a file cannot be read.
  """
  num_processes = min(len(os.sched_getaffinity(0)), max(1, len(paths)))
  with ProcessPoolExecutor(
    num_processes,
    mp_context=multiprocessing.get_context('spawn'),
    initializer=child_process.end_with,
    initargs=(os.getpid(),),
  ) as pool:
    for path, places in zip(paths, ahead.in_order(paths, find, pool)):
      yield from _blocks(path, places, size)


def find(path: str | os.PathLike, size: int = _BLOCK) -> Places:
  """Finds the records of a file, and checks their checksums.

  Args:
    path: the file.
    size: bytes that are read at a time.
  """
  place, rest, found = 0, b'', []
  with open(path, 'rb') as file:
    while more := file.read(size):
      data = rest + more
      starts, stops, end = _cut(data, path, place)
      found.append((place + starts, stops - starts))
      place, rest = place + end, data[end:]
  if rest:
    raise UserError(f'{path} ends within the record at byte {place}')
  none = np.zeros(0, np.int64)
  starts, lengths = zip(*found) if found else ((none,), (none,))
  return Places(np.concatenate(starts), np.concatenate(lengths))


def _blocks(path, places: Places, size: int) -> Iterator[Block]:
  ends = places.starts + places.lengths
  first = 0
  with open(path, 'rb') as file:
    while first < len(ends):
      begin = places.starts[first]
      last = max(first + 1, np.searchsorted(ends, begin + size, 'right'))
      file.seek(begin)
      data = file.read(ends[last - 1] - begin)
      rows = slice(first, last)
      yield Block(
        data, Places(places.starts[rows] - begin, places.lengths[rows])
      )
      first = last


def _cut(data: bytes, path, place: int) -> tuple[np.ndarray, np.ndarray, int]:
  """Starts and stops of the whole records in `data`, and where they end."""
  lengths: dict[bytes, int] = {}
  starts, stops, checksums = [], [], []
  checksum = google_crc32c.value
  at, size = 0, len(data)
  while at + _HEADER <= size:
    header = data[at : at + _HEADER]
    length = lengths.get(header)
    if length is None:
      length = lengths[header] = _length(header, path, place + at)
    start = at + _HEADER
    stop = start + length
    if stop + _FOOTER > size:
      break
    starts.append(start)
    stops.append(stop)
    checksums.append(checksum(data[start:stop]))
    at = stop + _FOOTER
  starts, stops = np.array(starts, np.int64), np.array(stops, np.int64)
  noted = np.frombuffer(data, np.uint8)[stops[:, None] + np.arange(_FOOTER)]
  wrong = _masked(np.array(checksums, np.uint32)) != noted.view('<u4')[:, 0]
  if wrong.any():
    record = place + int(starts[np.argmax(wrong)]) - _HEADER
    raise UserError(
      f'{path}: the record at byte {record} does not have its checksum'
    )
  return starts, stops, at


def _length(header: bytes, path, place: int) -> int:
  length, noted = struct.unpack('<QI', header)
  checksum = np.array([google_crc32c.value(header[:8])], np.uint32)
  if _masked(checksum)[0] != noted:
    raise UserError(
      f'{path}: the length of the record at byte {place} does not have its '
      'checksum'
    )
  return length


def _masked(checksums: np.ndarray) -> np.ndarray:
  """uint32 as TFRecord keeps it: turned by 15 bits, and a constant added."""
  turned = (checksums >> 15) | (checksums << 17)
  return turned + np.uint32(0xA282EAD8)
