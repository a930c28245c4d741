"""Amazon Reviews 2018 and 2023: their files and the keys in them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from p4lm.data.archives import FileSource, open_source
from p4lm.data.json_rows import Column, Kind
from p4lm.errors import UserError

ENDINGS = tuple(
  f'{ending}{gz}'
  for ending in ('.jsonl', '.json', '.ndjson')
  for gz in ('', '.gz')
)
_METADATA_PREFIXES = ('meta', 'items')


@dataclasses.dataclass(frozen=True)
class Format:
  """How a release calls what p4lm reads.

  Attributes:
    reviews: user, item, rating and time of a review.
    texts: its title and text, and whether the purchase is verified.
    items: of the metadata.
    ticks: of its clock, a second.
  """

  reviews: Mapping[str, Column]
  texts: Mapping[str, Column]
  items: Mapping[str, Column]
  ticks: int


def _required(kind: Kind, *keys: str) -> Column:
  return Column(kind, keys, required=True)


_ITEM_TEXTS = {
  'title': Column(Kind.TEXT, ('title',)),
  'description': Column(Kind.TEXTS, ('description',)),
  'price': Column(Kind.PRICE, ('price',)),
  'average_rating': Column(Kind.NUMBER, ('average_rating',)),
}
FORMATS: Mapping[str, Format] = {
  'amazon-2018': Format(
    reviews={
      'user': _required(Kind.ID, 'reviewerID', 'user'),
      'item': _required(Kind.ID, 'asin'),
      'rating': _required(Kind.NUMBER, 'overall'),
      'time': _required(Kind.INTEGER, 'unixReviewTime'),
    },
    texts={
      'title': Column(Kind.TEXT, ('summary',)),
      'text': Column(Kind.TEXT, ('reviewText',)),
      'verified': Column(Kind.FLAG, ('verified',)),
    },
    items=_ITEM_TEXTS
    | {
      'item_id': _required(Kind.ID, 'asin', 'item_id'),
      'features': Column(Kind.TEXTS, ('feature',)),
      'categories': Column(Kind.TEXTS, ('category', 'categories')),
      'brand': Column(Kind.TEXT, ('brand',)),
    },
    ticks=1,
  ),
  'amazon-2023': Format(
    reviews={
      'user': _required(Kind.ID, 'user_id'),
      'item': _required(Kind.ID, 'parent_asin', 'asin'),
      'rating': _required(Kind.NUMBER, 'rating'),
      'time': _required(Kind.INTEGER, 'timestamp'),
    },
    texts={
      'title': Column(Kind.TEXT, ('title',)),
      'text': Column(Kind.TEXT, ('text',)),
      'verified': Column(Kind.FLAG, ('verified_purchase',)),
    },
    items=_ITEM_TEXTS
    | {
      'item_id': _required(Kind.ID, 'parent_asin', 'asin'),
      'features': Column(Kind.TEXTS, ('features',)),
      'categories': Column(Kind.TEXTS, ('categories',)),
      'brand': Column(Kind.TEXT, ('store',)),
    },
    ticks=1000,
  ),
}


@dataclasses.dataclass(frozen=True)
class AmazonRelease:
  """The files of a release found in a directory or an archive.

  Attributes:
    name: key of FORMATS.
    source: where its files are.
    reviews: paths within the source, read in this order.
    metadata: likewise; empty where there is none.
  """

  name: str
  source: FileSource
  reviews: tuple[str, ...]
  metadata: tuple[str, ...]

  @property
  def format(self) -> Format:
    return FORMATS[self.name]

  def fingerprint(self) -> dict[str, str]:
    """{file: hash} of everything that reading this release depends on."""
    names = (*self.reviews, *self.metadata)
    return {name: self.source.fingerprint(name) for name in names}


def find_release(data_dir: str | os.PathLike, name: str) -> AmazonRelease:
  """Finds review and metadata files in a directory, or one folder below.

  They end in .json or .jsonl, perhaps with .gz behind; metadata files begin
  with `meta` or `items`, all others are reviews.

  Args:
    data_dir: directory or zip archive.
    name: key of FORMATS.
  Raises:
    UserError: no reviews there, or reviews in several folders.
  """
  path = Path(data_dir)
  if path.is_file() and path.suffix != '.zip':
    raise UserError(
      f'DATA_DIR {path} is a file; give the directory that holds it'
    )
  source = open_source(path)
  files = [f for f in source.names() if f.lower().endswith(ENDINGS)]
  metadata = [f for f in files if _base(f).startswith(_METADATA_PREFIXES)]
  reviews = [f for f in files if f not in metadata]
  if not reviews:
    raise UserError(
      f'{source.describe()} holds no reviews (looked for files that end in '
      f'{", ".join(ENDINGS[:4])} and do not begin with meta; found '
      f'{", ".join(source.names()[:5]) or "no files"})'
    )
  folders = sorted({str(PurePosixPath(f).parent) for f in reviews})
  if len(folders) > 1:
    raise UserError(
      f'{source.describe()} holds reviews in several folders '
      f'({", ".join(folders)}); name one of them in DATA_DIR'
    )
  beside = [f for f in metadata if str(PurePosixPath(f).parent) == folders[0]]
  return AmazonRelease(name, source, tuple(reviews), tuple(beside))


def _base(file: str) -> str:
  return PurePosixPath(file).name.lower()
