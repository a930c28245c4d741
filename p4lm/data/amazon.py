"""Amazon Reviews 2018 and 2023 (review and metadata files) as tables.

The rules, each of which is either an error or a count in the result:

- a line that is no JSON object, lacks a key, has a rating outside [1, 5] or a
  time that is none is an error naming file and line;
- a review with user, item, rating and time of an earlier one is removed;
- of the other reviews of an item by one user the latest is kept (the later
  line of those with the same time), the others are counted;
- reviews of items that have no metadata, or no title there, are dropped and
  counted, or kept with an empty title on request; `amazon_items` has the rules
  about metadata;
- users come in the order of their first review in the file; the reviews of a
  user are in the order of time, those of one moment in that of the lines. (The
  times of the 2018 release are days; those of 2023 are milliseconds, which
  order the reviews before they become seconds in the table.)
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from p4lm.data import amazon_items, rating_data
from p4lm.data.amazon_release import AmazonRelease
from p4lm.data.json_rows import Rows, read_rows
from p4lm.data.rating_data import GrowingIds, RatingData, count, select
from p4lm.data.tables import EncodedIds
from p4lm.errors import UserError

RATING_RANGE = (1.0, 5.0)
_LAST_SECOND = 4_102_444_800  # 2100; more is another unit


def read_amazon(
  release: AmazonRelease,
  *,
  keep_unknown_items: bool = False,
  keep_repeats: bool = False,
) -> RatingData:
  """Reads a release, checks every line, and joins the metadata.

  Args:
    release: what `find_release` found.
    keep_unknown_items: keep reviews of items without metadata or title.
    keep_repeats: keep all reviews of an item by one user, which splits and
      `fit_cf` do not take.
  Returns:
    The reviews that were kept and how many were not, by reason. Ratings have a
    further column `row`, int64: the review's place among all reviews of the
    release, for `read_review_texts`. Items have brand, price and
    average_rating too.
  Raises:
    UserError: bad input; the message names the file and, where there is one,
      the line.
  """
  if not release.metadata and not keep_unknown_items:
    raise UserError(
      f'{release.source.describe()} holds no metadata (a file that begins with '
      'meta) for its reviews; put it there, or keep items without titles: '
      'keep_unknown_items = True'
    )
  dropped: dict[str, int] = {}
  reviews = _read_reviews(release)
  keep = np.ones(len(reviews.times), bool)
  if not keep_repeats:
    keep = rating_data.without_repeats(
      reviews.users, reviews.items, reviews.ratings, reviews.times,
      among=keep, noun='review', dropped=dropped,
    )  # fmt: skip
  titled, untitled = amazon_items.read_items(
    release.source,
    release.metadata,
    release.format.items,
    set(reviews.items.ids),
    dropped,
  )
  if not keep_unknown_items:
    keep &= _has_title(reviews.items, keep, titled, untitled, dropped)
  if not keep.any():
    raise UserError(
      f'{release.source.describe()}: no review is of an item with a title; '
      'are these the metadata of other reviews?'
    )
  items = titled
  if keep_unknown_items:
    items = _with_all_items(reviews.items, titled, untitled)
  return RatingData(
    _rating_table(reviews, keep, release.format.ticks), items, dropped
  )


def read_review_texts(release: AmazonRelease, rows: np.ndarray) -> pa.Table:
  """What users wrote in some reviews, in a second pass over the files.

  Args:
    release: what `find_release` found.
    rows: values of the column `row` that `read_amazon` gave, in any order.
  Returns:
    Table with row (ascending), title and text (HTML entities decoded, '' for
    none) and verified (whether the purchase is, or null). Memory is that of
    these rows.
  Raises:
    UserError: bad input; IndexError: no such row.
  """
  wanted = np.unique(rows)
  first, pieces = 0, [_TEXTS.empty_table()]
  for name in release.reviews:
    for part in read_rows(release.source, name, release.format.texts):
      low, high = np.searchsorted(wanted, (first, first + len(part.table)))
      here = wanted[low:high]
      found = part.table.take(pa.array(here - first, pa.int64())).to_pydict()
      for column in ('title', 'text'):
        found[column] = [html.unescape(text) for text in found[column]]
      pieces.append(pa.table({'row': here, **found}, schema=_TEXTS))
      first += len(part.table)
  if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < first:
    raise IndexError(
      f'rows go from 0 to {first - 1}; got {wanted[0]} to {wanted[-1]}'
    )
  return pa.concat_tables(pieces)


_TEXTS = pa.schema(
  [
    ('row', pa.int64()),
    ('title', pa.string()),
    ('text', pa.string()),
    ('verified', pa.bool_()),
  ]
)


@dataclasses.dataclass(frozen=True)
class _Reviews:
  """All reviews as read: times int64 [M] in ticks, ratings float32 [M]."""

  users: EncodedIds
  items: EncodedIds
  ratings: np.ndarray
  times: np.ndarray


def _read_reviews(release: AmazonRelease) -> _Reviews:
  users, items = GrowingIds(), GrowingIds()
  ratings, times = [], []
  for rows in _review_rows(release):
    rating = rows.table['rating'].to_numpy()
    time = rows.table['time'].to_numpy()
    _check_ratings(rows, rating)
    _check_times(rows, time, release.format.ticks)
    users.add(rows.table['user'])
    items.add(rows.table['item'])
    ratings.append(rating.astype(np.float32))
    times.append(time)
  return _Reviews(
    users.encoded(),
    items.encoded(),
    np.concatenate(ratings),
    np.concatenate(times),
  )


def _review_rows(release: AmazonRelease) -> Iterator[Rows]:
  for name in release.reviews:
    yield from read_rows(release.source, name, release.format.reviews)


def _check_ratings(rows: Rows, rating: np.ndarray) -> None:
  low, high = RATING_RANGE
  # A NaN fails both comparisons.
  bad = np.flatnonzero(~((rating >= low) & (rating <= high)))
  if len(bad):
    rows.fail(
      bad[0],
      f'rating {rating[bad[0]]:g} is outside [{low:g}, {high:g}]; mend or '
      'remove the line',
    )


def _check_times(rows: Rows, time: np.ndarray, ticks: int) -> None:
  bad = np.flatnonzero((time < 0) | (time >= _LAST_SECOND * ticks))
  if len(bad):
    unit = 'seconds' if ticks == 1 else 'milliseconds'
    rows.fail(
      bad[0],
      f'time {time[bad[0]]} is not between 1970 and 2100 in {unit}; mend or '
      'remove the line, or take the DATASET of that release',
    )


def _has_title(items: EncodedIds, keep, titled, untitled, dropped):
  """bool [M], whether the review's item has a title."""
  ids = pa.array(items.ids, pa.string())
  has_title = pc.is_in(ids, titled['item_id'].combine_chunks()).to_numpy(False)
  is_listed = has_title | pc.is_in(
    ids, untitled['item_id'].combine_chunks()
  ).to_numpy(False)
  kept = items.codes[keep]
  count(dropped, 'review of an item without metadata', (~is_listed[kept]).sum())
  count(
    dropped,
    'review of an item without a title',
    (is_listed & ~has_title)[kept].sum(),
  )
  return has_title[items.codes]


def _with_all_items(items: EncodedIds, titled, untitled) -> pa.Table:
  """The items of the metadata, then those without, in order of first review."""
  listed = set(titled['item_id'].to_pylist())
  listed |= set(untitled['item_id'].to_pylist())
  unlisted = [{'item_id': id_} for id_ in items.ids if id_ not in listed]
  return pa.concat_tables([titled, untitled, amazon_items.item_table(unlisted)])


def _rating_table(reviews: _Reviews, keep: np.ndarray, ticks: int) -> pa.Table:
  rows = np.flatnonzero(keep)
  users, times = reviews.users.codes[rows], reviews.times[rows]
  rows = rows[rating_data.by_user_and_time(users, times)]
  table = rating_data.rating_table(
    select(reviews.users, rows),
    select(reviews.items, rows),
    reviews.ratings[rows],
    reviews.times[rows] // ticks,
  )
  return table.append_column('row', pa.array(rows, pa.int64()))
