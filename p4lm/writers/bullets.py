"""Ten preference bullets a user, from a few films liked and disliked."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from p4lm.data import pair_order
from p4lm.data.attributes import Attributes, UserAffinity
from p4lm.data.rating_arrays import RatingArrays
from p4lm.data.tables import SCHEMAS
from p4lm.writers import phrases

NUM_FILMS = 5
NUM_BULLETS = 5
LIKED_RATING = 4.0
_USERS_AT_ONCE = 4096


def users_table(
  ratings: RatingArrays,
  attributes: Attributes,
  affinity_of: UserAffinity,
  seed: int,
) -> pa.Table:
  """The `users` table: five bullets of likes, then five of dislikes.

  Args:
    ratings: training ratings.
    attributes: of the items.
    affinity_of: from these ratings; decides which attribute of a film a
      bullet names.
    seed: of the choice among equally rated films and of the wording.
  """
  liked, disliked = select_films(ratings, seed)
  counts = np.bincount(ratings.users.codes, minlength=len(ratings.users.ids))
  rows = attributes.rows(ratings.items.ids)
  preferences = []
  for start in range(0, len(counts), _USERS_AT_ONCE):
    users = np.arange(start, min(start + _USERS_AT_ONCE, len(counts)))
    for user, likes in zip(users, affinity_of(users)):
      rng = random.Random(f'bullets {seed} {ratings.users.ids[user]}')
      preferences.append(
        write_bullets(
          _attributes_of(liked[user], rows, attributes),
          _attributes_of(disliked[user], rows, attributes),
          likes,
          attributes,
          rng,
        )
      )
  return pa.table(
    {
      'user_id': ratings.users.ids,
      'preferences': preferences,
      'num_train_ratings': counts.astype(np.int32),
    },
    schema=SCHEMAS['users'],
  )


def select_films(
  ratings: RatingArrays, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Up to five films rated 4 or more and five rated less, of each user.

  The best and the worst come first, equals in random order.

  Returns:
    Two int32 arrays [U, 5], item codes, -1 where there are fewer films.
  """
  users = ratings.users.codes
  liked = ratings.ratings >= LIKED_RATING
  halves = np.round(2 * ratings.ratings).astype(np.uint64)
  rank = np.where(liked, np.uint64(15) - halves, halves)
  numbers = pair_order.pair_numbers(ratings.users, ratings.items, seed)
  numbers = (rank << np.uint64(60)) | (numbers >> np.uint64(4))
  groups = users.astype(np.int64) * 2 + liked
  num_groups = 2 * len(ratings.users.ids)
  place = pair_order.rank_within(groups, numbers, num_groups)
  chosen = np.full((num_groups, NUM_FILMS), -1, np.int32)
  first = place < NUM_FILMS
  chosen[groups[first], place[first]] = ratings.items.codes[first]
  return chosen[1::2], chosen[::2]


def write_bullets(
  liked: Sequence[Sequence[int]],
  disliked: Sequence[Sequence[int]],
  affinity: np.ndarray,
  attributes: Attributes,
  rng: random.Random,
) -> list[str]:
  """Ten bullets: each names one or two attributes of one of the films.

  Of a liked film the attributes that the user likes most come first, of a
  disliked one those liked least; no attribute is named twice. What the films
  do not give is filled with bullets that say little.

  Args:
    liked: the attributes of each liked film.
    disliked: the same of the disliked ones.
    affinity: float [K], of the user.
    attributes: K attributes.
    rng: consumed.
  """
  used: set[int] = set()
  bullets = []
  for films, sign, verbs, fillers in (
    (liked, 1, phrases.LIKES, phrases.LIKES_FILLERS),
    (disliked, -1, phrases.DISLIKES, phrases.DISLIKES_FILLERS),
  ):
    side = []
    for named in _choices(films, sign * affinity, attributes, used, rng):
      words = ' and '.join(rng.choice(attributes.all[k].plural) for k in named)
      side.append(f'{rng.choice(verbs)} {words}')
      if len(side) == NUM_BULLETS:
        break
    missing = NUM_BULLETS - len(side)
    bullets += side + rng.sample(fillers, missing)
  return bullets


def _choices(films, score, attributes, used, rng) -> Iterator[tuple[int, ...]]:
  """Attributes for one bullet after the other, film by film, round by round."""
  left = [sorted(film, key=lambda k: (-score[k], k)) for film in films]
  while any(left):
    for film in left:
      film[:] = [k for k in film if k not in used]
      if not film:
        continue
      best = film[0]
      named = (best,)
      others = [
        k
        for k in film[1:]
        if attributes.all[k].is_genre != attributes.all[best].is_genre
      ]
      if others and rng.random() < 0.4:
        named = (best, others[0])
      used.update(named)
      yield named


def _attributes_of(codes, rows, attributes: Attributes) -> list[list[int]]:
  matrix = attributes.matrix
  return [
    matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]].tolist()
    for row in rows[codes[codes >= 0]]
  ]
