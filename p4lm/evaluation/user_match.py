r"""Does a text fit the user it was written for? A judge that no model saw.

The judge knows a user by held-out ratings alone (split 'test'), never those
that embeddings, texts or rewards were made from. Films are TF-IDF vectors over
the words of their genres, keywords, tags and plot,

  v_i[t] = (1 + log n_it) sqrt(log(I / df_t)),  scaled to length 1,

a user is the mean of the films rated above the user's own mean rating less the
mean of those rated below it (Rocchio 1971), each weighing as much as its rating
is off the mean, without the film that the text is about; and a text's score for
a user is the cosine of the two vectors:

  p_u = sum_{r_ui > m_u} (r_ui - m_u) v_i / sum_{r_ui > m_u} (r_ui - m_u)
      - sum_{r_ui < m_u} (m_u - r_ui) v_i / sum_{r_ui < m_u} (m_u - r_ui),
  s(text, u) = cos(w(text), p_u).

(The root makes the inverse document frequency enter a product of two vectors
once; entering twice, words of two or three films drown those of a taste.) The
words of the film's title are taken out of the text. Two tests:

  text        P(s(text_ui, u) > s(text_ui, u')) for random other users u', ties
              half: an AUC, 0.5 where a text fits its user no better than
              anyone. The choice of the film is part of it, for a user who
              likes horror is told about horror films.
  controlled  P(s(text_ui, u) > s(text_u'i, u)): against the text that the same
              model wrote for another user about the same film, so that the
              film's own fit cancels. 0.5 for texts that ignore the user.

Intervals resample users.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import scipy.sparse

from p4lm.data import tables
from p4lm.errors import UserError
from p4lm.evaluation import statistics
from p4lm.evaluation.statistics import Interval
from p4lm.evaluation.text import words
from p4lm.evaluation.win_rates import wins


def stem(word: str) -> str:
  """Takes an English plural's ending off (the "S" stemmer, Harman 1991).

  >>> [stem(w) for w in ('comedies', 'heroes', 'spies', 'class', 'its')]
  ['comedy', 'heroe', 'spy', 'class', 'it']
  """
  if word.endswith('ies') and not word.endswith(('eies', 'aies')):
    return word[:-3] + 'y'
  if word.endswith('es') and not word.endswith(('aes', 'ees', 'oes')):
    return word[:-1]
  if word.endswith('s') and not word.endswith(('us', 'ss')):
    return word[:-1]
  return word


def terms(text: str) -> list[str]:
  """Stemmed words of a text, in order."""
  return [stem(word) for word in words(text)]


class HeldOutJudge:
  """Scores how well texts fit users, from held-out ratings and item texts."""

  def __init__(
    self, items: pa.Table, ratings: pa.Table, *, split: str = 'test',
    min_ratings: int = 3,
  ):  # fmt: skip
    """Builds item vectors and reads the users' held-out ratings.

    Args:
      items: the table items (item_id, title, genres, tags, keywords, plot).
      ratings: the table ratings (user_id, item_id, rating, split), all splits:
        a user's mean is over all of them.
      split: whose rows make the profiles.
      min_ratings: users with fewer rated films of the split, not counting the
        judged one, have no score.
    Raises:
      UserError: no rating of the split.
    """
    item_ids = items['item_id'].to_pylist()
    self._item_row = {id_: row for row, id_ in enumerate(item_ids)}
    self._titles = items['title'].to_pylist()
    self._vocabulary, self._idf, self._items = _item_vectors(items)
    users = tables.encode_ids(ratings['user_id'])
    self._user_row = {id_: row for row, id_ in enumerate(users.ids)}
    self.user_ids = users.ids
    stars = ratings['rating'].to_numpy().astype(np.float64)
    count = np.bincount(users.codes, minlength=len(users.ids))
    means = np.bincount(users.codes, stars, len(users.ids)) / np.maximum(
      count, 1
    )
    held_out = ratings['split'].to_numpy(zero_copy_only=False) == split
    if not held_out.any():
      raise UserError(f'no rating of split {split!r} to judge users by')
    rated = tables.encode_ids(ratings['item_id'].filter(pa.array(held_out)))
    known = np.array([self._item_row.get(i, -1) for i in rated.ids], np.int64)
    self._read(
      users.codes[held_out],
      known[rated.codes],
      (stars - means[users.codes])[held_out],
    )
    self._min_ratings = min_ratings
    enough = np.diff(self._starts) > min_ratings
    mixed = self._has_opinion()
    self.eligible = np.flatnonzero(enough & mixed)

  def _read(self, users, items, deviations) -> None:
    """Sorts the held-out ratings by user."""
    kept = items >= 0
    users, items, deviations = users[kept], items[kept], deviations[kept]
    order = np.argsort(users, kind='stable')
    self._rated, self._deviations = items[order], deviations[order]
    counts = np.bincount(users, minlength=len(self.user_ids))
    self._starts = np.concatenate([[0], np.cumsum(counts)])

  def _has_opinion(self) -> np.ndarray:
    users = np.repeat(np.arange(len(self.user_ids)), np.diff(self._starts))
    return (
      np.bincount(users, np.abs(self._deviations) > 1e-6, len(self.user_ids))
      > 1
    )

  def score(
    self, texts: Sequence[str], user_ids: Sequence[str], item_ids: Sequence[str]
  ) -> np.ndarray:
    """s(text, user) of each triple.

    Args:
      texts: M texts.
      user_ids: the user to fit, M.
      item_ids: the film each text is about; it is left out of the profile, and
        its title out of the text.
    Returns:
      float64 [M] in [-1, 1]; NaN for a user without a profile, 0 for a text
      without a word that two films share.
    Raises:
      UserError: sequences of different lengths.
    """
    if not len(texts) == len(user_ids) == len(item_ids):
      raise UserError(
        f'{len(texts)} texts, {len(user_ids)} user_ids and {len(item_ids)} '
        'item_ids; give one of each per pair'
      )
    rows = np.array([self._user_row.get(u, -1) for u in user_ids], int)
    return self._score_rows(texts, rows, item_ids)

  def _score_rows(self, texts, user_rows, item_ids) -> np.ndarray:
    profiles, valid = self._profiles(user_rows, item_ids)
    vectors = self._text_vectors(texts, item_ids)
    products = np.asarray(vectors.multiply(profiles).sum(axis=1)).ravel()
    sizes = _norms(vectors) * _norms(profiles)
    scores = products / np.where(sizes > 0, sizes, 1.0)
    return np.where(valid & (_norms(profiles) > 0), scores, np.nan)

  def _profiles(self, user_rows, item_ids):
    """Profiles [M, terms], and whether enough ratings are behind each."""
    columns, weights, counts = [], [], []
    valid = np.zeros(len(user_rows), bool)
    for m, (user, item_id) in enumerate(zip(user_rows, item_ids)):
      first, last = (0, 0) if user < 0 else self._starts[[user, user + 1]]
      rated = self._rated[first:last]
      kept = rated != self._item_row.get(item_id, -1)
      rated = rated[kept]
      columns.append(rated)
      weights.append(_rocchio(self._deviations[first:last][kept]))
      counts.append(len(rated))
      valid[m] = len(rated) >= self._min_ratings
    starts = np.concatenate([[0], np.cumsum(counts)])
    shape = (len(user_rows), self._items.shape[0])
    mixing = scipy.sparse.csr_matrix(
      (_concatenate(weights, float), _concatenate(columns, int), starts), shape
    )
    return mixing @ self._items, valid

  def _text_vectors(self, texts, item_ids) -> scipy.sparse.csr_matrix:
    counts = []
    for text, item_id in zip(texts, item_ids):
      row = self._item_row.get(item_id)
      title = set(terms(self._titles[row])) if row is not None else set()
      found = collections.Counter(t for t in terms(text) if t not in title)
      counts.append(found)
    return _tf_idf(counts, self._vocabulary, self._idf)


@dataclasses.dataclass(frozen=True)
class UserMatch:
  """Result of the matched-versus-shuffled-user test for one system.

  Attributes:
    matched_auc: P(matched user scores higher than a shuffled one).
    controlled_auc: the item-controlled version, or None without the other
      users' texts.
    pairs: pairs with a score.
    pairs_without_profile: pairs left out, for their user has too few held-out
      ratings.
    users: distinct users of the scored pairs.
    shuffles: other users drawn for each pair.
  """

  matched_auc: Interval
  controlled_auc: Interval | None
  pairs: int
  pairs_without_profile: int
  users: int
  shuffles: int

  def as_dict(self) -> dict:
    """JSON values for results.json."""
    controlled = self.controlled_auc
    return dataclasses.asdict(self) | {
      'matched_auc': self.matched_auc.as_dict(),
      'controlled_auc': None if controlled is None else controlled.as_dict(),
    }


def user_match(
  judge: HeldOutJudge, texts: Sequence[str], user_ids: Sequence[str],
  item_ids: Sequence[str], *,
  counterfactual_texts: Sequence[str] | None = None, shuffles: int = 20,
  samples: int = statistics.SAMPLES, level: float = 0.95, seed: int = 0,
) -> UserMatch:  # fmt: skip
  """Runs both versions of the test on one system's texts.

  Args:
    judge: built from the held-out ratings.
    texts: the text for each pair (user, item), M.
    user_ids, item_ids: the pairs.
    counterfactual_texts: for each pair the text that the same system wrote
      about the same item for another user; without them only the first
      version runs.
    shuffles: other users drawn for each pair.
    samples, level: of the bootstrap over users.
    seed: of the shuffles and the bootstrap.
  Returns:
    Both AUCs.
  Raises:
    UserError: lengths differ, or fewer than two users have a profile.
  """
  own = judge.score(texts, user_ids, item_ids)
  kept = np.flatnonzero(~np.isnan(own))
  if len(judge.eligible) < 2 or not len(kept):
    raise UserError(
      'fewer than two users have enough held-out ratings to be told apart; '
      'take a larger test split or a smaller min_ratings'
    )
  others = _draw_others(judge, [user_ids[m] for m in kept], shuffles, seed)
  repeated = np.repeat(kept, shuffles)
  shuffled = judge._score_rows(
    [texts[m] for m in repeated],
    others.ravel(),
    [item_ids[m] for m in repeated],
  ).reshape(len(kept), shuffles)
  won = wins(own[kept, None], shuffled)
  by_pair = _mean_of_valid(won, ~np.isnan(shuffled))
  clusters = np.array([user_ids[m] for m in kept])
  options = dict(samples=samples, level=level, seed=seed)
  (matched,) = statistics.mean_intervals(by_pair, clusters=clusters, **options)
  controlled = None
  if counterfactual_texts is not None:
    other = judge.score(counterfactual_texts, user_ids, item_ids)
    (controlled,) = statistics.mean_intervals(
      wins(own[kept], other[kept]), clusters=clusters, **options
    )
  return UserMatch(
    matched_auc=matched,
    controlled_auc=controlled,
    pairs=len(kept),
    pairs_without_profile=len(own) - len(kept),
    users=len(set(clusters.tolist())),
    shuffles=shuffles,
  )


def _draw_others(judge, user_ids, shuffles: int, seed: int) -> np.ndarray:
  """int [M, shuffles]: eligible users other than each pair's own."""
  generator = np.random.default_rng([seed, 1])
  own = np.array([judge._user_row[u] for u in user_ids])
  place = np.searchsorted(judge.eligible, own)
  bounded = np.minimum(place, len(judge.eligible) - 1)
  among = judge.eligible[bounded] == own
  # Drawn among the others by leaving a gap at the user's own place.
  size = len(judge.eligible) - among
  drawn = (generator.random((len(own), shuffles)) * size[:, None]).astype(int)
  drawn += among[:, None] & (drawn >= place[:, None])
  return judge.eligible[drawn]


def _rocchio(deviations: np.ndarray) -> np.ndarray:
  """Weights of a user's films: those liked sum to 1, those disliked to -1."""
  liked, disliked = np.maximum(deviations, 0), np.minimum(deviations, 0)
  # A rating at the mean, up to the rounding of the mean, says nothing.
  liked[liked < 1e-6], disliked[disliked > -1e-6] = 0, 0
  up, down = liked.sum(), -disliked.sum()
  return liked / (up if up else 1.0) + disliked / (down if down else 1.0)


def _mean_of_valid(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
  """Row means over valid entries; 1/2, no evidence, where none is."""
  count = valid.sum(1)
  total = np.where(valid, values, 0.0).sum(1)
  return np.where(count > 0, total / np.maximum(count, 1), 0.5)


def _item_vectors(items: pa.Table):
  """Vocabulary, root of the IDF, and the items' TF-IDF rows of length 1."""
  counts = []
  for genres, keywords, tags, plot in zip(
    *(
      items[name].to_pylist() for name in ('genres', 'keywords', 'tags', 'plot')
    )
  ):
    lists = (genres or []) + (keywords or []) + (tags or [])
    counts.append(collections.Counter(terms(' '.join([*lists, plot or '']))))
  frequency = collections.Counter(term for count in counts for term in count)
  # A term of one film alone cannot carry a taste to another film.
  shared = sorted(term for term, films in frequency.items() if films > 1)
  vocabulary = {term: column for column, term in enumerate(shared)}
  films = np.array([frequency[term] for term in shared], float)
  idf = np.sqrt(np.log(len(counts) / np.maximum(films, 1)))
  vectors = _tf_idf(counts, vocabulary, idf)
  norms = _norms(vectors)
  scale = scipy.sparse.diags(1 / np.where(norms > 0, norms, 1.0))
  return vocabulary, idf, scipy.sparse.csr_matrix(scale @ vectors)


def _tf_idf(
  counts: Sequence[Mapping[str, int]], vocabulary, idf
) -> scipy.sparse.csr_matrix:
  columns, values, starts = [], [], [0]
  for count in counts:
    for term, number in count.items():
      column = vocabulary.get(term)
      if column is not None:
        columns.append(column)
        values.append((1 + np.log(number)) * idf[column])
    starts.append(len(columns))
  return scipy.sparse.csr_matrix(
    (np.array(values, float), np.array(columns, int), starts),
    shape=(len(counts), len(vocabulary)),
  )


def _norms(matrix) -> np.ndarray:
  return np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())


def _concatenate(parts, dtype) -> np.ndarray:
  return np.concatenate(parts) if parts else np.zeros(0, dtype)
