"""What films are about, in words: genres, keywords and tags as attributes.

An attribute has surface forms ('heist stories', 'heist story'), by which it is
written into a text and found again in any text, and a user has an affinity to
it, computed from ratings. So a text about a film can be fitted to a user, and
its fit can be judged by ratings that no model saw.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import scipy.sparse

from p4lm.data import attribute_words as words
from p4lm.data import tables
from p4lm.errors import UserError

MAX_SURFACE_WORDS = 6
_WORD = re.compile(r"[a-z0-9']+")


@dataclasses.dataclass(frozen=True)
class Attribute:
  """One genre, keyword or tag.

  Attributes:
    name: 'genre:crime', 'theme:heist' or 'tone:quirky'.
    singular: forms without an article: 'crime film', 'crime story'.
    plural: forms: 'crime films', 'crime stories'.
    label: as it stands in a list: 'crime', 'heist'.
  """

  name: str
  singular: tuple[str, ...]
  plural: tuple[str, ...]
  label: str

  @property
  def is_genre(self) -> bool:
    return self.name.startswith('genre:')


class Attributes:
  """The attributes of a set of items.

  Attributes:
    all: K attributes, genres first, then by number of items.
    item_ids: I ids.
    matrix: csr float32 [I, K], 1 where the item has the attribute.
  """

  def __init__(
    self,
    all_: Sequence[Attribute],
    item_ids: Sequence[str],
    matrix: scipy.sparse.csr_matrix,
  ):
    self.all = list(all_)
    self.item_ids = list(item_ids)
    self.matrix = matrix
    self._rows = {item_id: row for row, item_id in enumerate(self.item_ids)}
    self._surfaces = {
      tuple(_WORD.findall(form.lower())): k
      for k, attribute in reversed(list(enumerate(self.all)))
      for form in (*attribute.singular, *attribute.plural)
    }

  def __len__(self) -> int:
    return len(self.all)

  def rows(self, item_ids: Iterable[str]) -> np.ndarray:
    """int64 rows of `matrix`.

    Raises:
      UserError: an id is unknown.
    """
    try:
      return np.array([self._rows[id_] for id_ in item_ids], np.int64)
    except KeyError as error:
      raise UserError(f'item {error.args[0]!r} is not in the tables') from error

  def of(self, item_id: str) -> np.ndarray:
    """int32, the attributes of one item, ascending."""
    row = self.rows([item_id])[0]
    start, end = self.matrix.indptr[row : row + 2]
    return self.matrix.indices[start:end]

  def find(self, text: str) -> list[int]:
    """The distinct attributes that a text names, in order of appearance.

    Surface forms are matched word by word, the longest first.
    """
    spoken = _WORD.findall(text.lower())
    found: dict[int, None] = {}
    start = 0
    while start < len(spoken):
      for length in range(MAX_SURFACE_WORDS, 0, -1):
        k = self._surfaces.get(tuple(spoken[start : start + length]))
        if k is not None:
          found[k] = None
          start += length - 1
          break
      start += 1
    return list(found)

  def indicator(self, texts: Sequence[str]) -> np.ndarray:
    """float32 [B, K], 1 where the text names the attribute."""
    result = np.zeros((len(texts), len(self)), np.float32)
    for row, text in enumerate(texts):
      result[row, self.find(text)] = 1
    return result


def build_attributes(
  items: pa.Table, *, min_items: int = 12, max_attributes: int = 300
) -> Attributes:
  """Collects the attributes of items, all genres and the frequent themes.

  Keywords and tags are one kind ('theme', or 'tone' for adjectives); those
  about the production rather than the story, and unfit ones, are left out.

  Args:
    items: genres, keywords and tags are read.
    min_items: a theme is kept if so many items have it.
    max_attributes: the most frequent are kept, genres before themes.
  """
  ids = items['item_id'].to_pylist()
  named = [
    _names(genres, keywords, tags)
    for genres, keywords, tags in zip(
      items['genres'].to_pylist(),
      items['keywords'].to_pylist(),
      items['tags'].to_pylist(),
    )
  ]
  counts = collections.Counter(name for names in named for name in names)
  kept = [
    name
    for name, count in sorted(counts.items(), key=lambda c: (-c[1], c[0]))
    if count >= min_items or name.startswith('genre:')
  ]
  kept.sort(key=lambda name: not name.startswith('genre:'))
  position = {name: k for k, name in enumerate(kept[:max_attributes])}
  pairs = [
    (row, position[name])
    for row, names in enumerate(named)
    for name in names
    if name in position
  ]
  rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
  matrix = scipy.sparse.csr_matrix(
    (np.ones(len(rows), np.float32), (rows, columns)),
    shape=(len(ids), len(position)),
  )
  matrix.sort_indices()
  return Attributes([_attribute(name) for name in position], ids, matrix)


def _names(
  genres: Sequence[str], keywords: Sequence[str], tags: Sequence[str]
) -> list[str]:
  names = [f'genre:{g.lower()}' for g in genres if g.lower() != 'imax']
  for theme in (*keywords, *tags):
    theme = theme.lower()
    if theme in words.TONES:
      names.append(f'tone:{theme}')
    elif not words.is_unfit(theme):
      names.append(f'theme:{theme}')
  return list(dict.fromkeys(names))


def _attribute(name: str) -> Attribute:
  kind, _, word = name.partition(':')
  if kind == 'genre' and word in words.GENRES:
    singular, plural = words.GENRES[word]
    return Attribute(name, singular, plural, word)
  spoken = words.spoken(word)
  if kind == 'tone':
    singular = (f'{spoken} piece', f'{spoken} film')
    plural = (f'{spoken} pieces', f'{spoken} films')
  else:
    singular = (f'{spoken} story', f'{spoken} tale')
    plural = (f'{spoken} stories', f'{spoken} tales')
  return Attribute(name, singular, plural, spoken)


@dataclasses.dataclass(frozen=True)
class AffinityConfig:
  """How ratings become affinities.

  Attributes:
    shrinkage: ratings of weight zero that each mean is pulled by.
    item_shrinkage: the same for an item's own mean, taken out first.
    min_liked_rating: ratings counted as liked in the lift.
    lift_shrinkage: likes, as many as expected, that each lift is pulled by.
    lift_weight: weight of the lift beside the mean, both at deviation 1.
  """

  shrinkage: float = 15.0
  item_shrinkage: float = 5.0
  min_liked_rating: float = 4.0
  lift_shrinkage: float = 5.0
  lift_weight: float = 1.0


def user_affinity(
  ratings: tables.RatingArrays,
  attributes: Attributes,
  user_rows: np.ndarray,
  config: AffinityConfig = AffinityConfig(),
) -> np.ndarray:
  r"""How much users like attributes, compared with other users.

  With e_ui = rating - (mean of u) - (shrunk mean of i after that), over the
  n_uk items with attribute k that user u rated:

      mean_uk = sum_i e_ui / (n_uk + shrinkage)
      lift_uk = log((l_uk + s) / (l_u p_k + s)),  s = lift_shrinkage

  where l_uk of the user's l_u liked items have k, a share p_k of all liked
  ones. The item's mean is taken out so that what everyone likes says nothing
  about this user. affinity = (mean / sd(mean) + w lift / sd(lift)) / (1 + w).

  Args:
    ratings: training ratings of all users; they set the shares and means.
    attributes: K attributes of the items.
    user_rows: int [N], users wanted, codes into `ratings.users`.
    config: shrinkage and weights.
  Returns:
    float32 [N, K]; deviations are taken over these users.
  """
  users, items = ratings.users.codes, ratings.items.codes
  num_users, num_items = len(ratings.users.ids), len(ratings.items.ids)
  rows = attributes.rows(ratings.items.ids)
  residuals = rating_residuals(ratings, config.item_shrinkage)
  liked = ratings.ratings >= config.min_liked_rating
  item_likes = np.bincount(items[liked], minlength=num_items)
  own = attributes.matrix[rows]
  share = (own.T @ item_likes + 0.5) / (item_likes.sum() + 1.0)

  position = np.full(num_users, -1, np.int32)
  position[user_rows] = np.arange(len(user_rows), dtype=np.int32)
  keep = position[users] >= 0
  where = (position[users[keep]], items[keep])
  sums = lambda values: _sums(values, where, (len(user_rows), num_items), own)
  mean = sums(residuals[keep]) / (
    sums(np.ones(int(keep.sum()), np.float32)) + config.shrinkage
  )
  likes = sums(liked[keep].astype(np.float32))
  num_likes = np.bincount(where[0][liked[keep]], minlength=len(user_rows))
  expected = np.outer(num_likes, share)
  lift = np.log(
    (likes + config.lift_shrinkage) / (expected + config.lift_shrinkage)
  )
  weight = config.lift_weight
  mixed = _standardised(mean) + weight * _standardised(lift)
  return (mixed / (1 + weight)).astype(np.float32)


def rating_residuals(
  ratings: tables.RatingArrays, item_shrinkage: float = 5.0
) -> np.ndarray:
  """float32 [M], ratings less the user's mean and the item's shrunk one."""
  users, items = ratings.users.codes, ratings.items.codes
  totals = lambda codes, values, ids: np.bincount(codes, values, len(ids.ids))
  counts = np.bincount(users, minlength=len(ratings.users.ids))
  means = totals(users, ratings.ratings, ratings.users) / counts.clip(1)
  residuals = ratings.ratings - means.astype(np.float32)[users]
  item_counts = np.bincount(items, minlength=len(ratings.items.ids))
  biases = totals(items, residuals, ratings.items)
  biases /= (item_counts + item_shrinkage).clip(1e-9)
  return residuals - biases.astype(np.float32)[items]


def _sums(values, where, shape, own) -> np.ndarray:
  matrix = scipy.sparse.csr_matrix((values, where), shape=shape)
  return (matrix @ own).toarray()


def _standardised(values: np.ndarray) -> np.ndarray:
  return values / (values.std() + 1e-6)
