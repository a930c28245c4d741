"""Items of Amazon's metadata files: titles, texts, prices.

Rules, each with its count in the drop report:

- a title that is a script or HTML (of pages that were crawled wrongly) is no
  title, and rows without a title are passed over;
- of an item's rows with titles the first counts; the others are counted, apart
  when their title is another one;
- items that nobody reviewed are left out;
- a price is the first number of '$12.99', '1,299.00', 'from 12' or
  '$5.00 - $9.00' (the lower end); anything else is null.
"""

from __future__ import annotations

import ast
import html
import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence

import pyarrow as pa

from p4lm.data import tables
from p4lm.data.archives import FileSource
from p4lm.data.json_rows import Column, Rows, read_rows
from p4lm.data.rating_data import count

# Scripts and tags that crawled pages left in titles and categories.
_MARKUP = re.compile(
  r'var\s+aPageStart|getTime\s*\(|'
  r'</?(?:a|br|div|img|input|li|p|script|span|style|table|td|tr|ul)\b[^>]*>?',
  re.IGNORECASE,
)
_PRICE = re.compile(
  r'(?:from\s+)?\$?\s*([0-9][0-9,]*(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?|\.[0-9]+)'
  r'(?:\s*-\s*\$?\s*[0-9][0-9,]*(?:\.[0-9]*)?)?',
  re.IGNORECASE,
)
_ITEM_COLUMNS = tuple(tables.SCHEMAS['items'])
_SCHEMA = pa.schema(
  [
    *_ITEM_COLUMNS,
    ('brand', pa.string()),
    ('price', pa.float32()),
    ('average_rating', pa.float32()),
  ]
)


def read_items(
  source: FileSource,
  names: Sequence[str],
  columns: Mapping[str, Column],
  reviewed: Collection[str],
  dropped: dict[str, int],
) -> tuple[pa.Table, pa.Table]:
  """Reads the metadata of some items.

  Args:
    source: directory or archive.
    names: metadata files within it, read in this order.
    columns: how the files call item_id, title, description, features,
      categories, brand, price and average_rating.
    reviewed: ids of the items to keep.
    dropped: {reason: rows}, added to.
  Returns:
    Two tables in the `items` schema with brand, price (float or null) and
    average_rating (float or null), in the files' order: items with a title,
    and items without one. Their genres are the categories and their plot is
    the description, or the features where there is none.
  Raises:
    UserError: bad input, with file and line.
  """
  titled: dict[str, dict] = {}
  untitled: dict[str, dict] = {}
  for name in names:
    for rows in read_rows(source, name, columns):
      for record in _kept_records(rows, reviewed, dropped):
        _add(record, titled, untitled, dropped)
  never = [r for item_id, r in untitled.items() if item_id not in titled]
  return item_table(titled.values()), item_table(never)


def item_table(records: Collection[Mapping]) -> pa.Table:
  """Item records as a table; a key that a record lacks is empty or null."""
  empty = {'title': '', 'plot': '', 'brand': ''}
  empty |= {'genres': [], 'tags': [], 'keywords': []}
  return pa.Table.from_pylist(
    [{**empty, **record} for record in records], schema=_SCHEMA
  )


def clean_text(text: str | None) -> str:
  """HTML entities decoded, white space made single spaces.

  >>> clean_text(' Salt &amp; Pepper\\n&#39;Duo&#39;')
  "Salt & Pepper 'Duo'"
  """
  return ' '.join(html.unescape(text or '').split())


def clean_title(text: str | None) -> str | None:
  """The title, or None when it is a script or HTML.

  >>> clean_title('Tom &amp; Jerry'), clean_title('<span id="x">Tom</span>')
  ('Tom & Jerry', None)
  """
  title = clean_text(text)
  return None if _MARKUP.search(title) else title


def clean_texts(parts: Sequence[str | None] | None) -> list[str]:
  """Cleaned strings without empty ones.

  One string that is itself a list, as some releases write it, counts as that
  list.
  """
  parts = list(parts or ())
  if len(parts) == 1:
    parts = _written_list(parts[0] or '') or parts
  return [text for text in map(clean_text, parts) if text]


def parse_price(value: str | float | None) -> float | None:
  """A price as a number, None where there is none to read.

  >>> [parse_price(p) for p in ('$12.99', '$5.00 - $9.00', 'from 12', '')]
  [12.99, 5.0, 12.0, None]
  """
  if value is None:
    return None
  if isinstance(value, str):
    match = _PRICE.fullmatch(clean_text(value))
    if not match:
      return None
    value = float(match[1].replace(',', ''))
  return value if math.isfinite(value) and value >= 0 else None


def _kept_records(rows: Rows, reviewed, dropped) -> Iterator[dict]:
  ids = rows.table['item_id'].to_pylist()
  kept = [row for row, item_id in enumerate(ids) if item_id in reviewed]
  count(dropped, 'metadata of an item without reviews', len(ids) - len(kept))
  yield from rows.table.take(pa.array(kept, pa.int64())).to_pylist()


def _add(record, titled, untitled, dropped) -> None:
  """Files one row of metadata under its item."""
  item_id, title = record['item_id'], clean_title(record['title'])
  if not title:
    reason = 'without a title' if title == '' else 'with a script for a title'
    count(dropped, f'metadata {reason}')
    untitled.setdefault(item_id, _record(record, ''))
  elif item_id in titled:
    is_same = titled[item_id]['title'] == title
    other = '' if is_same else ', with another title'
    count(dropped, f'repeated metadata of an item{other}')
  else:
    titled[item_id] = _record(record, title)
    if titled[item_id]['price'] is None and record['price'] not in (None, ''):
      count(dropped, 'price that is no number (the item is kept without)')


def _record(record: Mapping, title: str) -> dict:
  description = ' '.join(clean_texts(record['description']))
  categories = clean_texts(record['categories'])
  return {
    'item_id': record['item_id'],
    'title': title,
    'genres': [name for name in categories if not _MARKUP.search(name)],
    'plot': description or ' '.join(clean_texts(record['features'])),
    'brand': clean_text(record['brand']),
    'price': parse_price(record['price']),
    'average_rating': record['average_rating'],
  }


def _written_list(text: str) -> list[str] | None:
  """The list that a string spells out in Python's notation, if it does."""
  text = text.strip()
  if not (text.startswith('[') and text.endswith(']')):
    return None
  try:
    with warnings.catch_warnings():
      # Backslashes in descriptions are no escapes that anybody meant.
      warnings.simplefilter('ignore')
      value = ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return None
  is_list = isinstance(value, list) and all(isinstance(p, str) for p in value)
  return value if is_list else None
