"""Who ranks held-out items: `fit_cf` directories, popularity, chance.

All but chance score by x_u.y_i + offset_i, in the rows of a `HeldOut`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from p4lm.cf.biases import Biases
from p4lm.cf.recency import recency_weights
from p4lm.cf.tables import CFTables
from p4lm.errors import UserError
from p4lm.evaluation.item_lists import ItemLists
from p4lm.evaluation.top_items import check_cutoff, top_items
from p4lm.runs.held_out import HeldOut, positions


@dataclasses.dataclass(frozen=True)
class Ranker:
  """Scores of a ranking problem's users and items.

  Attributes:
    user_embeddings: float32 [U, E].
    item_embeddings: float32 [I, E].
    item_offsets: float32 [I]; -inf for items that it cannot rank.
    is_known: bool [U]; the others get an empty list.
  """

  user_embeddings: np.ndarray
  item_embeddings: np.ndarray
  item_offsets: np.ndarray
  is_known: np.ndarray

  @property
  def unknown_users(self) -> int:
    """Users with an empty list."""
    return int(np.sum(~self.is_known))

  def top(
    self, held_out: HeldOut, k: int, *, mesh=None,
    on_users: Callable[[int], None] | None = None,
  ) -> np.ndarray:  # fmt: skip
    """The lists, int32 [U, k]; see `top_items`."""
    top = top_items(
      self.user_embeddings, self.item_embeddings, k, exclude=held_out.seen,
      item_offsets=self.item_offsets, mesh=mesh, on_users=on_users,
    )  # fmt: skip
    return np.where(self.is_known[:, None], top, np.int32(-1))


@dataclasses.dataclass(frozen=True)
class Fit:
  """A `fit_cf` directory.

  Attributes:
    tables: its embeddings, raw.
    item_biases: float [I] of an explicit fit, else None.
    splits: whose ratings it read.
  """

  tables: CFTables
  item_biases: np.ndarray | None
  splits: tuple[str, ...]

  @classmethod
  def load(cls, directory, ratings_sha256: str) -> Fit:
    """Reads a directory.

    Args:
      directory: OUTPUT_DIR of `fit_cf`.
      ratings_sha256: hash of the ratings that are to be ranked.
    Raises:
      UserError: no finished tables, or tables of other ratings.
    """
    directory = Path(directory)
    tables = CFTables.load(directory, scale='raw')
    try:
      about = json.loads((directory / 'config.json').read_text())
      found = about['ratings_sha256']
      mode = about.get('factorization', {}).get('mode')
    except (
      OSError, ValueError, KeyError, TypeError, AttributeError,
    ) as error:  # fmt: skip
      raise UserError(
        f'{directory}/config.json does not say how its CF tables were fitted '
        f'({error}); give an OUTPUT_DIR of fit_cf'
      ) from error
    if found != ratings_sha256:
      raise UserError(
        f'{directory} was fitted on other ratings than those of DATA_DIR '
        f'(sha256 {found[:12]} there, {ratings_sha256[:12]} here); give its '
        'own data directory, or run fit_cf on this one'
      )
    biases = Biases.load(directory).items if mode == 'explicit' else None
    return cls(tables, biases, tuple(about.get('splits', ('train',))))


def ranker_of_tables(
  held_out: HeldOut, tables: CFTables, item_biases=None
) -> Ranker:
  """CF embeddings in the rows of a ranking problem.

  mu and b_u are the same for all items of a user, so of an explicit fit's
  biases b_i alone matters.

  Args:
    held_out: the problem.
    tables: embeddings, raw. An item without a row is never ranked.
    item_biases: float [rows of the tables' items], or None.
  """
  users = positions(held_out.user_ids, tables.user_ids)
  items = positions(held_out.item_ids, tables.item_ids)
  if item_biases is None:
    item_biases = np.zeros(len(tables.item_ids), np.float32)
  offsets = np.append(np.asarray(item_biases, np.float32), np.float32(-np.inf))
  return Ranker(
    _rows(tables.user_embeddings, users),
    _rows(tables.item_embeddings, items),
    offsets[items],
    users >= 0,
  )


def popularity_ranker(
  held_out: HeldOut, half_life_days: float | None = None
) -> Ranker:
  """Items by their number of known ratings, the same for every user.

  Args:
    held_out: the problem.
    half_life_days: a rating counts half as much for every so many days that it
      is older than the newest known one; None counts all alike.
  """
  known, users = held_out.known, len(held_out.user_ids)
  weights = None
  if half_life_days is not None:
    weights = recency_weights(known.timestamps, half_life_days)
  counts = np.bincount(
    known.items.codes, weights=weights, minlength=len(held_out.item_ids)
  )
  return Ranker(
    np.ones((users, 1), np.float32),
    counts[:, None].astype(np.float32),
    np.zeros(len(counts), np.float32),
    np.ones(users, bool),
  )


def random_lists(
  seen: ItemLists, num_items: int, k: int, *, seed: int
) -> np.ndarray:
  """k items of each user drawn without replacement, seen ones left out.

  Args:
    seen: U lists of items that never enter.
    num_items: I.
    k: length of the lists, at least 1.
    seed: of the draw.
  Returns:
    int32 [U, k], -1 where fewer than k items are left.
  """
  check_cutoff(k)
  generator = np.random.default_rng(seed)
  top = np.full((len(seen), k), -1, np.int32)
  for user in range(len(seen)):
    # So many that k unseen ones are among them, if there are k at all.
    size = min(num_items, k + len(seen[user]))
    drawn = generator.choice(num_items, size, replace=False)
    left = drawn[~np.isin(drawn, seen[user])][:k]
    top[user, : len(left)] = left
  return top


def same_splits(fits: dict[str, Fit]) -> tuple[str, ...]:
  """The splits that all fits read.

  Raises:
    UserError: they read different ones, which would be no fair comparison.
  """
  splits = {name: fit.splits for name, fit in fits.items()}
  if len(set(splits.values())) > 1:
    listed = '; '.join(f'{name}: {" + ".join(s)}' for name, s in splits.items())
    raise UserError(
      f'the RANKERS were fitted on different splits ({listed}); compare those '
      'that know the same ratings'
    )
  return next(iter(splits.values()))


def _rows(table: np.ndarray, rows: Sequence[int]) -> np.ndarray:
  """Rows of a table; zeros for -1."""
  width = table.shape[1]
  table = np.concatenate([table, np.zeros((1, width), table.dtype)])
  return table[rows]
