"""Features of a block of serialized tf.train.Examples, without TensorFlow.

An Example is a Protocol Buffers message that maps names to features, and a
feature is a list of bytes, of floats or of integers
(tensorflow/core/example/{example,feature}.proto). The records of a block are
walked together, an entry of their maps at a time: every step is a few
operations of NumPy on arrays with one element a record.

Fields must be in their order and numbers packed, as the writers of Protocol
Buffers leave them; names may come in any order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from p4lm.data.tfrecords import Block

# A field's number and wire type in one byte: the first and the second field
# of a message, each with a length; and the three kinds of list in a feature.
_FIRST, _SECOND = 0x0A, 0x12
_TEXTS, _FLOATS, _INTEGERS = 0x0A, 0x12, 0x1A
_WORD = 8
# A text of so many bytes and its length fit into a word.
_SHORT = _WORD - 1
# Bytes of the longest number, each with 7 bits of it.
_LONGEST = 10


class NotAnExample(ValueError):
  """A record is not the Example that it should be; the message says why."""


def parse(block: Block, names: Sequence[str]) -> dict[str, Feature]:
  """Finds features of all records of a block.

  Args:
    block: R records.
    names: of the features; others are skipped.
  Raises:
    NotAnExample: a record is none, or lacks one of the features.
  """
  data = _Bytes(block.data)
  starts = block.places.starts.astype(np.int64)
  stops = starts + block.places.lengths
  at, ends = data.message(starts, stops, _FIRST)
  _check(ends == stops, 'it has more than features')
  found = {name: (np.full_like(at, -1), np.full_like(at, -1)) for name in names}
  rows = np.flatnonzero(at < ends)
  while len(rows):
    entry, after = data.message(at[rows], ends[rows], _FIRST)
    key, key_end = data.message(entry, after, _FIRST)
    value, value_end = data.message(key_end, after, _SECOND)
    _check(value_end == after, 'an entry has more than a name and a value')
    for name, (first, last) in found.items():
      named = data.equal(key, key_end, name.encode())
      first[rows[named]], last[rows[named]] = value[named], value_end[named]
    at[rows] = after
    rows = rows[after < ends[rows]]
  for name, (first, _) in found.items():
    _check(first >= 0, f'it has no {name!r}')
  return {name: Feature(data, name, *place) for name, place in found.items()}


@dataclasses.dataclass(frozen=True)
class Feature:
  """A feature of each of R records.

  Attributes:
    data: the records.
    name: what they call it.
    starts, stops: int64 [R], where its message lies.
  """

  data: _Bytes
  name: str
  starts: np.ndarray
  stops: np.ndarray

  def texts(self) -> pa.StringArray:
    """[R], for lists of one text each."""
    return _utf8(self._binary(*self._one_text()))

  def ids(self) -> pa.UInt64Array | pa.BinaryArray:
    """[R], as `texts`, for `join_ids`: short ones as a word each."""
    starts, stops = self._one_text()
    lengths = stops - starts
    if lengths.max(initial=0) > _SHORT:
      return self._binary(starts, stops)
    bits = _unsigned(8 * lengths)
    words = self.data.words(starts) & ((np.uint64(1) << bits) - np.uint64(1))
    words |= _unsigned(lengths) << np.uint64(8 * _SHORT)
    return pa.array(words)

  def floats(self) -> np.ndarray:
    """float32 [R], for lists of one number each."""
    starts, stops = self._packed(_FLOATS)
    _check(stops - starts == 4, f'its {self.name!r} is not one number')
    return self.data.words(starts).astype(np.uint32).view(np.float32)

  def integers(self) -> np.ndarray:
    """int64 [R], for lists of one number each."""
    starts, stops = self._packed(_INTEGERS)
    values, ends = self.data.numbers(starts)
    _check(ends == stops, f'its {self.name!r} is not one number')
    return values

  def integer_lists(self) -> pa.ListArray:
    """int64 lists [R] of any lengths."""
    starts, stops = self._packed(_INTEGERS)
    rows = np.repeat(np.arange(len(starts)), stops - starts)
    places = _ranges(starts, stops)
    ends_number = self.data.bytes[places] < 0x80
    ends_list = np.append(rows[1:] != rows[:-1], True)[: len(rows)]
    whole = np.ones(len(starts), bool)
    whole[rows[ends_list & ~ends_number]] = False
    _check(whole, f'a number of its {self.name!r} has no end')
    begins_number = np.append(True, ends_number[:-1])[: len(rows)]
    values, _ = self.data.numbers(places[begins_number])
    sizes = np.bincount(rows[ends_number], minlength=len(starts))
    return pa.ListArray.from_arrays(
      pa.array(_offsets(sizes), pa.int32()), pa.array(values)
    )

  def _list(self, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the lists of one kind lie; those without a kind are empty."""
    starts, stops = self.starts.copy(), self.stops.copy()
    rows = np.flatnonzero(starts < stops)
    starts[rows], ends = self.data.message(starts[rows], stops[rows], kind)
    _check(ends == stops[rows], f'its {self.name!r} has more than a list')
    return starts, stops

  def _packed(self, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the numbers of a list lie, one after the other."""
    starts, stops = self._list(kind)
    rows = np.flatnonzero(starts < stops)
    starts[rows], ends = self.data.message(starts[rows], stops[rows], _FIRST)
    _check(ends == stops[rows], f'the numbers of its {self.name!r} are apart')
    return starts, stops

  def _one_text(self) -> tuple[np.ndarray, np.ndarray]:
    starts, stops = self._list(_TEXTS)
    starts, ends = self.data.message(starts, stops, _FIRST)
    _check(ends == stops, f'its {self.name!r} is not one text')
    return starts, stops

  def _binary(self, starts: np.ndarray, stops: np.ndarray) -> pa.BinaryArray:
    return _binary(self.data.bytes[_ranges(starts, stops)], stops - starts)


def join_ids(
  pieces: Sequence[pa.UInt64Array | pa.BinaryArray],
) -> pa.DictionaryArray:
  """The ids of some blocks, one block after the other; equal ones are one.

  Raises:
    NotAnExample: one is not UTF-8.
  """
  if all(pa.types.is_uint64(piece.type) for piece in pieces):
    words = pa.chunked_array(pieces, pa.uint64()).combine_chunks()
    coded = words.dictionary_encode()
    texts = _short_texts(coded.dictionary)
  else:
    texts = [_short_texts(piece) for piece in pieces]
    coded = pa.chunked_array(texts).combine_chunks().dictionary_encode()
    texts = coded.dictionary
  return pa.DictionaryArray.from_arrays(coded.indices, _utf8(texts))


class _Bytes:
  """Bytes of which many places are read at once, also from the last one on."""

  def __init__(self, data: bytes):
    padded = data + bytes(3 * _WORD - len(data) % _WORD)
    self.bytes = np.frombuffer(padded, np.uint8)
    self._aligned = np.frombuffer(padded, '<u8')

  def words(self, at: np.ndarray) -> np.ndarray:
    """uint64 [R], eight bytes from each place on, the first one lowest."""
    number, bits = at >> 3, _unsigned((at & 7) << 3)
    low, high = self._aligned[number], self._aligned[number + 1]
    # A shift by 64 bits leaves nothing, as it should.
    return (low >> bits) | (high << (np.uint64(8 * _WORD) - bits))

  def message(
    self, at: np.ndarray, limits: np.ndarray, tag: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of what has a tag and a length at the places `at`."""
    words = self.words(at)
    _check(
      (at < limits) & ((words & np.uint64(0xFF)) == tag), 'a field is missing'
    )
    lengths = ((words >> np.uint64(8)) & np.uint64(0xFF)).astype(np.int64)
    starts = at + 2
    long = np.flatnonzero(lengths >= 0x80)
    if len(long):
      lengths[long], starts[long] = self.numbers(at[long] + 1)
    _check((lengths >= 0) & (lengths <= limits - starts), 'a field has no end')
    return starts, starts + lengths

  def numbers(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [R], the varint at each place, and where it ends."""
    values, ends = np.zeros(len(at), np.uint64), at.copy()
    rows = np.arange(len(at))
    for shift in range(0, 7 * _LONGEST, 7):
      byte = self.bytes[ends[rows]]
      values[rows] |= _unsigned(byte & 0x7F) << np.uint64(shift)
      ends[rows] += 1
      rows = rows[byte >= 0x80]
      if not len(rows):
        return values.view(np.int64), ends
    raise NotAnExample('a number is too long')

  def equal(
    self, starts: np.ndarray, stops: np.ndarray, text: bytes
  ) -> np.ndarray:
    """bool [R], whether the bytes between two places are a text."""
    equal = stops - starts == len(text)
    for begin in range(0, len(text), _WORD):
      if not equal.any():
        break
      part = text[begin : begin + _WORD]
      mask = np.uint64((1 << 8 * len(part)) - 1)
      wanted = np.uint64(int.from_bytes(part, 'little'))
      rows = np.flatnonzero(equal)
      equal[rows] = (self.words(starts[rows] + begin) & mask) == wanted
    return equal


def _check(holds: np.ndarray, otherwise: str) -> None:
  if not holds.all():
    raise NotAnExample(otherwise)


def _unsigned(values: np.ndarray) -> np.ndarray:
  return values.astype(np.uint64)


def _ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
  """Every place from each start up to its stop."""
  lengths = stops - starts
  before = np.cumsum(lengths) - lengths
  return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def _offsets(lengths: np.ndarray) -> np.ndarray:
  return np.append(0, np.cumsum(lengths)).astype(np.int32)


def _binary(letters: np.ndarray, lengths: np.ndarray) -> pa.BinaryArray:
  """uint8 letters of all texts, one text after the other."""
  buffers = [None, pa.py_buffer(_offsets(lengths)), pa.py_buffer(letters)]
  return pa.BinaryArray.from_buffers(pa.binary(), len(lengths), buffers)


def _short_texts(ids: pa.UInt64Array | pa.BinaryArray) -> pa.BinaryArray:
  """Of each word the lowest bytes, as many as its highest byte says."""
  if not pa.types.is_uint64(ids.type):
    return ids
  words = ids.to_numpy()
  lengths = (words >> np.uint64(8 * _SHORT)).astype(np.int64)
  letters = words.astype('<u8').view(np.uint8).reshape(-1, _WORD)
  return _binary(letters[np.arange(_WORD) < lengths[:, None]], lengths)


def _utf8(texts: pa.BinaryArray) -> pa.StringArray:
  try:
    return texts.cast(pa.string())
  except pa.ArrowInvalid as error:
    raise NotAnExample('a text is not UTF-8') from error
