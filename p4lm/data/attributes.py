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
from p4lm.data import rating_arrays
from p4lm.errors import UserError

MAX_SURFACE_WORDS = 6
# Enough users to know the spread of affinities by.
_USERS_OF_SCALE = 4096
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


class UserAffinity:
  r"""How much users like attributes, compared with other users.

  With e_ui = rating - (mean of u) - (shrunk mean of i after that), over the
  n_uk items with attribute k that user u rated:

      mean_uk = sum_i e_ui / (n_uk + shrinkage)
      lift_uk = log((l_uk + s) / (l_u p_k + s)),  s = lift_shrinkage

  where l_uk of the user's l_u liked items have k, a share p_k of all liked
  ones. The item's mean is taken out so that what everyone likes says nothing
  about this user. affinity = (mean / sd(mean) + w lift / sd(lift)) / (1 + w),
  deviations over all entries of up to 4096 users.

  Args:
    ratings: ratings of all users that may be asked for.
    attributes: K attributes of the items.
    config: shrinkage and weights.
  """

  def __init__(
    self,
    ratings: rating_arrays.RatingArrays,
    attributes: Attributes,
    config: AffinityConfig = AffinityConfig(),
  ):
    users, items = ratings.users.codes, ratings.items.codes
    self._config = config
    self._own = attributes.matrix[attributes.rows(ratings.items.ids)]
    liked = ratings.ratings >= config.min_liked_rating
    item_likes = np.bincount(items[liked], minlength=len(ratings.items.ids))
    self._share = (self._own.T @ item_likes + 0.5) / (item_likes.sum() + 1.0)
    order = np.argsort(users, kind='stable')
    self._items, self._liked = items[order], liked[order]
    self._residuals = rating_residuals(ratings, config.item_shrinkage)[order]
    self._counts = np.bincount(users, minlength=len(ratings.users.ids))
    self._starts = np.cumsum(self._counts) - self._counts
    step = -(-len(self._counts) // _USERS_OF_SCALE)
    some = self._parts(np.arange(0, len(self._counts), step))
    self._scales = [part.std() + 1e-6 for part in some]

  def __call__(self, user_rows: np.ndarray) -> np.ndarray:
    """float32 [N, K] for users given as int [N] codes."""
    mean, lift = self._parts(user_rows)
    weight = self._config.lift_weight
    mixed = mean / self._scales[0] + weight * lift / self._scales[1]
    return (mixed / (1 + weight)).astype(np.float32)

  def _parts(self, user_rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean and lift of some users, float [N, K] each."""
    counts = self._counts[user_rows]
    ends = np.append(0, np.cumsum(counts))
    shift = np.repeat(self._starts[user_rows] - ends[:-1], counts)
    rows = np.arange(ends[-1]) + shift
    shape = (len(user_rows), self._own.shape[0])

    def sums(values):
      values = values.astype(np.float32, copy=False)
      matrix = scipy.sparse.csr_matrix(
        (values, self._items[rows], ends), shape=shape
      )
      return (matrix @ self._own).toarray(), matrix.sum(1)

    residuals, _ = sums(self._residuals[rows])
    numbers, _ = sums(np.ones(len(rows)))
    likes, all_likes = sums(self._liked[rows])
    shrinkage = self._config.lift_shrinkage
    expected = np.asarray(all_likes).reshape(-1, 1) * self._share
    lift = np.log((likes + shrinkage) / (expected + shrinkage))
    return residuals / (numbers + self._config.shrinkage), lift


def rating_residuals(
  ratings: rating_arrays.RatingArrays, item_shrinkage: float = 5.0
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
