"""Data sets by name: what `make_data` can read ratings from.

movielens, ml-NAME   a MovieLens release (NAME picks one of several)
tfds:movielens/NAME  a MovieLens release that TensorFlow Datasets prepared
amazon-2018          Amazon Reviews 2018, review and metadata files
amazon-2023          Amazon Reviews 2023, likewise
regen                REGEN: a file of users' histories

(Judged texts, which have no ratings, are read by `judgements`.)

A new one is a class with the members of `Dataset` and a line in `find`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from p4lm.data import (
  amazon,
  amazon_release,
  movielens,
  regen,
  tables,
  tfds_movielens,
)
from p4lm.data.rating_data import RatingData
from p4lm.errors import UserError

WORLD = 'world'
_NAMES = (
  "'world', 'movielens', the name of a MovieLens release such as 'ml-25m', "
  "'tfds:movielens/25m' (or another of TensorFlow Datasets), "
  "'amazon-2018', 'amazon-2023', 'regen', or for judged texts 'nli' or "
  "'preferences'"
)


class Dataset(Protocol):
  """Files of a data set that were found and can be read.

  Attributes:
    plots_file: texts of items that lie beside it, or None.
    is_of_films: whether texts about films can be written from it.
  """

  plots_file: Path | None
  is_of_films: bool

  def describe(self) -> str:
    """How messages call it."""

  def fingerprint(self, plots_file: str | os.PathLike | None) -> dict[str, str]:
    """{file: hash} of all that `read` depends on."""

  def read(self, plots_file: str | os.PathLike | None) -> RatingData:
    """Reads and checks everything.

    Raises:
      UserError: bad input, with file and line.
    """


def kind_of(dataset: str, data_dir: str | os.PathLike | None) -> str:
  """The kind of a DATASET, having looked whether it goes with DATA_DIR.

  A release of TensorFlow Datasets is a kind of its own; 'ml-25m' is of the kind
  'movielens'.

  Raises:
    UserError: no such data set, or a DATA_DIR too many or too few.
  """
  if dataset == WORLD:
    if data_dir is not None:
      raise UserError(
        f"dataset is 'world', which has no DATA_DIR, but DATA_DIR is "
        f"{data_dir}; set DATASET to 'movielens' to read it"
      )
    return WORLD
  kind = 'movielens' if dataset.startswith('ml-') else dataset
  is_tfds = dataset.startswith(tfds_movielens.PREFIX)
  if is_tfds:
    tfds_movielens.release_of(dataset)
  elif kind not in ('movielens', *amazon_release.FORMATS, 'regen'):
    raise UserError(f'no dataset {dataset!r}; DATASET is {_NAMES}')
  if data_dir is None:
    what = (
      'the data directory of TensorFlow Datasets in which it is prepared'
      if is_tfds
      else 'the directory or zip archive of the release'
    )
    raise UserError(f'dataset {dataset!r} needs DATA_DIR: {what}')
  return kind


def find(
  dataset: str,
  data_dir: str | os.PathLike | None,
  *,
  drop_unknown_items: bool = False,
  keep_unknown_items: bool = False,
) -> Dataset | None:
  """Finds the files of a data set; None for the world, which has none.

  Args:
    dataset: a name that `kind_of` knows.
    data_dir: where it is, None for the world.
    drop_unknown_items: MovieLens: count ratings of unlisted films instead of
      failing. Others always count them.
    keep_unknown_items: Amazon: keep reviews of items without a title.
  Raises:
    UserError: it is not there, or does not have what was asked for.
  """
  kind = kind_of(dataset, data_dir)
  if keep_unknown_items and kind not in amazon_release.FORMATS:
    raise UserError(
      f'keep_unknown_items is for Amazon reviews; dataset {dataset!r} has no '
      'ratings of items without titles to keep'
    )
  if keep_unknown_items and drop_unknown_items:
    raise UserError(
      'drop_unknown_items and keep_unknown_items are both True; set one'
    )
  if kind == WORLD:
    return None
  if kind == 'movielens':
    name = '' if dataset == 'movielens' else dataset
    release = movielens.find_release(data_dir, name)
    return _MovieLens(release, drop_unknown_items)
  if kind.startswith(tfds_movielens.PREFIX):
    prepared = tfds_movielens.find_prepared(dataset, data_dir)
    return _TfdsMovieLens(prepared, drop_unknown_items)
  if kind == 'regen':
    return _Regen(regen.find_file(data_dir))
  return _Amazon(
    amazon_release.find_release(data_dir, kind), keep_unknown_items
  )


class _MovieLens:
  is_of_films = True

  def __init__(self, release: movielens.Release, drop_unknown_items: bool):
    self._release = release
    self._drop_unknown_items = drop_unknown_items
    self.plots_file = release.plots_file

  def describe(self) -> str:
    return self._release.source.describe()

  def fingerprint(self, plots_file) -> dict[str, str]:
    return self._release.fingerprint(plots_file)

  def read(self, plots_file) -> RatingData:
    return movielens.read_movielens(
      self._release, plots_file, drop_unknown_items=self._drop_unknown_items
    )


class _TfdsMovieLens:
  is_of_films = True
  plots_file = None

  def __init__(
    self, prepared: tfds_movielens.Prepared, drop_unknown_items: bool
  ):
    self._prepared = prepared
    self._drop_unknown_items = drop_unknown_items

  def describe(self) -> str:
    return self._prepared.describe()

  def fingerprint(self, plots_file) -> dict[str, str]:
    return self._prepared.fingerprint(plots_file)

  def read(self, plots_file) -> RatingData:
    return tfds_movielens.read_prepared(
      self._prepared, plots_file, drop_unknown_items=self._drop_unknown_items
    )


class _Amazon:
  is_of_films = False
  plots_file = None

  def __init__(
    self, release: amazon_release.AmazonRelease, keep_unknown_items: bool
  ):
    self._release = release
    self._keep_unknown_items = keep_unknown_items

  def describe(self) -> str:
    return self._release.source.describe()

  def fingerprint(self, plots_file) -> dict[str, str]:
    return self._release.fingerprint()

  def read(self, plots_file) -> RatingData:
    return amazon.read_amazon(
      self._release, keep_unknown_items=self._keep_unknown_items
    )


class _Regen:
  is_of_films = False
  plots_file = None

  def __init__(self, path: Path):
    self._path = path

  def describe(self) -> str:
    return str(self._path)

  def fingerprint(self, plots_file) -> dict[str, str]:
    return {self._path.name: tables.hash_file(self._path)}

  def read(self, plots_file) -> RatingData:
    data = regen.read_regen(self._path)
    # The tables of a data directory have no place for what users wrote.
    ratings = data.ratings.drop_columns(['review_title', 'review'])
    return RatingData(ratings, data.items, data.dropped)
