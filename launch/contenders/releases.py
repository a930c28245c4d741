"""Generated ratings in the layouts of releases other than MovieLens."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import prepared
import ratings


def write(directory: pathlib.Path, size: str, seed: int = 0) -> None:
  """Writes the files of a release.

  Args:
    directory: made; it must not exist.
    size: key of `ratings.SHAPES`, and behind `_` a key of LAYOUTS: 25m_amazon.
    seed: of users, items, ratings and times.
  """
  shape, layout = size.split('_')
  users, items, count = ratings.SHAPES[shape]
  generator = np.random.default_rng(seed)
  pairs = ratings.distinct_pairs(generator, users, items, count)
  values = generator.integers(1, 6, count)
  days = generator.integers(0, 3650, count)
  directory.mkdir(parents=True)
  LAYOUTS[layout](directory, pairs, items, values, days)


def _amazon(directory, pairs, items: int, values, days) -> None:
  """Amazon Reviews 2018: a review a line in random order, and metadata."""
  lines = _Lines(
    '{"overall": ', values, '.0, "verified": true, "reviewerID": "A',
    pairs // items, '", "asin": "B', pairs % items,
    '", "reviewText": "It does what it says.", "summary": "Good", '
    '"unixReviewTime": ', _FIRST_SECOND + 86400 * days, '}\n',
  )  # fmt: skip
  with open(directory / 'reviews.jsonl', 'wb') as file:
    for start in range(0, len(pairs), _ROWS):
      file.write(_bytes(lines.text(slice(start, start + _ROWS))))
  with open(directory / 'meta_items.jsonl', 'w', encoding='utf-8') as file:
    for item in range(items):
      record = {'asin': f'B{item}', 'title': f'Thing {item}', 'price': '$3.20'}
      file.write(json.dumps(record | {'category': ['Office', 'Things']}) + '\n')


def _regen(directory, pairs, items: int, values, days) -> None:
  """REGEN: a user a line, with all events in a list."""
  import pyarrow as pa
  import pyarrow.compute as pc

  order = np.argsort(pairs)
  users = pairs[order] // items
  lines = _Lines(
    '{"asin": "B', pairs[order] % items, '", "title": "Thing ',
    pairs[order] % items,
    '", "category": " Office - Things", "price": 3.25, "rating": ',
    values[order],
    ', "review": "It does what it says.", "timestamp_ms": ',
    1000 * (_FIRST_SECOND + 86400 * days[order]), '}',
  )  # fmt: skip
  starts = np.flatnonzero(np.append(True, users[1:] != users[:-1]))
  ends = np.append(starts[1:], len(users))
  with open(directory / 'histories.jsonl', 'wb') as file:
    for first in range(0, len(starts), _USERS):
      rows = slice(starts[first], ends[first : first + _USERS][-1])
      bounds = np.append(starts[first : first + _USERS], rows.stop) - rows.start
      events = pa.ListArray.from_arrays(
        pa.array(bounds, pa.int32()), lines.text(rows)
      )
      of = pa.array(users[starts[first : first + _USERS]]).cast(pa.string())
      text = pc.binary_join_element_wise(
        '{"user_id": "A', of, '", "history": [', pc.binary_join(events, ', '),
        ']}\n', '',
      )  # fmt: skip
      file.write(_bytes(text))


class _Lines:
  """Texts that are joined of constant and of varying parts."""

  def __init__(self, *parts: str | np.ndarray):
    self._parts = parts

  def text(self, rows: slice):
    """Those of some rows, a string array."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = [
      part if isinstance(part, str) else pa.array(part[rows]).cast(pa.string())
      for part in self._parts
    ]
    return pc.binary_join_element_wise(*parts, '')


def _bytes(texts) -> bytes:
  """The texts of an array one after the other."""
  import pyarrow as pa

  offsets = np.frombuffer(texts.buffers()[1], np.int32)[: len(texts) + 1]
  assert pa.types.is_string(texts.type) and texts.offset == 0
  return memoryview(texts.buffers()[2])[offsets[0] : offsets[-1]]


LAYOUTS = {'amazon': _amazon, 'regen': _regen, 'tfds': prepared.write}
_FIRST_SECOND = 1_000_000_000
_ROWS = 1 << 20
_USERS = 1 << 12


if __name__ == '__main__':
  write(pathlib.Path(sys.argv[1]), sys.argv[2])
