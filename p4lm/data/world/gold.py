"""Gold scores: what a text claims, and how true and how fitting that is."""

import dataclasses
import json
import os
from collections.abc import Sequence

import numpy as np

from p4lm.data.world import lexicon
from p4lm.errors import UserError

TRUTH_FILE, LEXICON_FILE = 'truth.npz', 'lexicon.json'
_TRUTH_ARRAYS = ('user_ids', 'item_ids', 'tastes', 'preferences', 'attributes')


class ClaimParser:
  """Finds the claims of any text by a longest-match scan of a lexicon.

  The text is lowercased, reduced to letters and stripped of articles. From
  left to right the longest known phrase at each word is taken. A phrase right
  after a denier ("never", "dreams of") is mentioned, not claimed. Professions
  are claims only after a role marker.

  Attributes:
    surfaces: phrase (articles dropped) -> value id.
    deniers: phrases that turn the next phrase into a mere mention.
  """

  def __init__(self, surfaces: dict[str, int], deniers: Sequence[str]):
    self.surfaces = dict(surfaces)
    self.deniers = tuple(deniers)
    self._by_first_word: dict[str, list[tuple[list[str], int]]] = {}
    for phrase in sorted(surfaces, key=lambda p: (-len(p.split()), p)):
      words = phrase.split()
      entry = (words, surfaces[phrase])
      self._by_first_word.setdefault(words[0], []).append(entry)
    self._by_last_word: dict[str, list[list[str]]] = {}
    for words in (denier.split() for denier in deniers):
      self._by_last_word.setdefault(words[-1], []).append(words)

  def parse(self, text: str) -> list[int]:
    """Value ids claimed, in order, a repeated claim as often as stated.

    >>> parser = ClaimParser({'comedy': 0, 'hero is thief': 9}, ['never'])
    >>> parser.parse('The hero is a thief. It is never a comedy.')
    [9]
    """
    words = lexicon.drop_articles(lexicon.split_words(text))
    claims, position = [], 0
    while position < len(words):
      for phrase, value in self._by_first_word.get(words[position], ()):
        if words[position : position + len(phrase)] == phrase:
          if not self._is_denied(words, position):
            claims.append(value)
          position += len(phrase)
          break
      else:
        position += 1
    return claims

  def _is_denied(self, words: list[str], position: int) -> bool:
    if position == 0:
      return False
    return any(
      words[max(0, position - len(denier)) : position] == denier
      for denier in self._by_last_word.get(words[position - 1], ())
    )


def world_parser() -> ClaimParser:
  """The parser of the shipped lexicon."""
  return ClaimParser(lexicon.surface_keys(), lexicon.DENIERS)


def appeal_of(text: str, claims: Sequence[int], hook_words: Sequence[str]):
  """Appeal of one text, in [-2, 2].

      -0.5 + 0.75 min(h, 2) + 0.5 [2 <= c <= 4] + 0.5 [12 <= w <= 40] - 1.5 r

  h counts the distinct hook words, c the distinct claims, w the words; r is 1
  if anything is said twice: a claim, a hook word or any four words in a row.

  Args:
    text: the text.
    claims: its claims as `ClaimParser.parse` gives them.
    hook_words: words that draw attention.
  Returns:
    float.
  """
  words = lexicon.split_words(text)
  hooks = [word for word in words if word in hook_words]
  runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
  repeated = any(
    len(set(sequence)) < len(sequence) for sequence in (claims, hooks, runs)
  )
  return (
    -0.5
    + 0.75 * min(len(set(hooks)), 2)
    + 0.5 * (2 <= len(set(claims)) <= 4)
    + 0.5 * (12 <= len(words) <= 40)
    - 1.5 * repeated
  )


@dataclasses.dataclass(frozen=True)
class GoldScorer:
  """Scores texts against the truth of a world.

  Attributes:
    parser: finds claims.
    hook_words: of the appeal.
    user_rows: user id -> row of tastes and preferences.
    item_rows: item id -> row of attributes.
    tastes: float32 [U, V], standardised.
    preferences: int8 [U, V], +1 liked, -1 avoided in the bullets, else 0.
    attributes: int16 [I, facets], the true value ids.
  """

  parser: ClaimParser
  hook_words: tuple[str, ...]
  user_rows: dict[str, int]
  item_rows: dict[str, int]
  tastes: np.ndarray
  preferences: np.ndarray
  attributes: np.ndarray

  @classmethod
  def of_world(cls, world) -> 'GoldScorer':
    """The scorer of a world in memory; archive items included."""
    return cls._of_arrays(
      _truth_arrays(world), world_parser(), lexicon.HOOK_WORDS
    )

  @classmethod
  def load(cls, directory: str | os.PathLike) -> 'GoldScorer':
    """Reads what `save_truth` wrote; nothing is unpickled.

    Raises:
      UserError: a file is missing or is not what save_truth writes.
    """
    path = os.path.join(directory, TRUTH_FILE)
    try:
      with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in _TRUTH_ARRAYS}
      path = os.path.join(directory, LEXICON_FILE)
      with open(path, encoding='utf-8') as file:
        words = json.load(file)
      parser = ClaimParser(words['surfaces'], words['deniers'])
      hook_words = tuple(words['hook_words'])
    except (OSError, KeyError, ValueError) as error:
      raise UserError(
        f'{path}: cannot be read as the truth of a synthetic world ({error}). '
        'Only make_data with the world as its dataset writes it; run it again.'
      ) from error
    return cls._of_arrays(arrays, parser, hook_words)

  @classmethod
  def _of_arrays(cls, arrays, parser, hook_words) -> 'GoldScorer':
    return cls(
      parser=parser,
      hook_words=tuple(hook_words),
      user_rows={str(u): row for row, u in enumerate(arrays['user_ids'])},
      item_rows={str(i): row for row, i in enumerate(arrays['item_ids'])},
      tastes=arrays['tastes'],
      preferences=arrays['preferences'],
      attributes=arrays['attributes'],
    )

  def score(
    self, texts: Sequence[str], user_ids: Sequence[str], item_ids: Sequence[str]
  ) -> dict[str, np.ndarray]:
    r"""Four gold scores of each text for its user and item.

    With C the set of distinct claims of a text, t_u the standardised taste, b_u
    the signed bullets (+1 liked, -1 avoided) and A_i the item's true values:

      precision        |C & A_i| / |C|, in [0, 1]
      personalization  mean of t_u over C, in standard deviations
      appeal           see `appeal_of`, in [-2, 2]
      relevance        sum of b_u over C & A_i
                       / (sqrt|C| sqrt(sum of b_u^2 over A_i)), in [-1, 1]:
                       the cosine between the claims and the bullets that
                       concern this item

    Precision, personalization and relevance of a text without claims are 0,
    and so is relevance when no bullet concerns the item.

    Args:
      texts: B texts.
      user_ids: B user ids.
      item_ids: B item ids.
    Returns:
      the four names -> float64 [B].
    Raises:
      UserError: the lengths differ or an id is unknown.
    """
    if not len(texts) == len(user_ids) == len(item_ids):
      raise UserError(
        f'GoldScorer.score: got {len(texts)} texts, {len(user_ids)} user_ids '
        f'and {len(item_ids)} item_ids; give one user and item a text.'
      )
    scores = np.zeros((4, len(texts)))
    for index, (text, user, item) in enumerate(zip(texts, user_ids, item_ids)):
      claims = self.parser.parse(text)
      scores[2, index] = appeal_of(text, claims, self.hook_words)
      scores[[0, 1, 3], index] = self._score_claims(
        list(set(claims)),
        _row_of(self.user_rows, user, 'user'),
        _row_of(self.item_rows, item, 'item'),
      )
    names = ('precision', 'personalization', 'appeal', 'relevance')
    return dict(zip(names, scores))

  def _score_claims(self, claims: list[int], user: int, item: int):
    """Precision, personalization and relevance of distinct claims."""
    if not claims:
      return 0.0, 0.0, 0.0
    own = self.attributes[item]
    true = [value for value in claims if value in own]
    bullets = self.preferences[user].astype(np.float64)
    norm = np.sqrt(len(claims) * np.square(bullets[own]).sum())
    return (
      len(true) / len(claims),
      self.tastes[user, claims].mean(dtype=np.float64),
      bullets[true].sum() / norm if norm else 0.0,
    )


def save_truth(world, directory: str | os.PathLike) -> None:
  """Writes truth.npz and lexicon.json, all that `GoldScorer.load` reads."""
  np.savez_compressed(
    os.path.join(directory, TRUTH_FILE), **_truth_arrays(world)
  )
  words = {
    'values': lexicon.VALUE_NAMES,
    'surfaces': lexicon.surface_keys(),
    'deniers': lexicon.DENIERS,
    'hook_words': lexicon.HOOK_WORDS,
  }
  path = os.path.join(directory, LEXICON_FILE)
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(words, file, indent=1)


def _truth_arrays(world) -> dict[str, np.ndarray]:
  return {
    'user_ids': np.arange(1, len(world.tastes) + 1).astype(str),
    'item_ids': np.arange(1, len(world.attributes) + 1).astype(str),
    'tastes': world.tastes,
    'preferences': world.preferences,
    'attributes': world.attributes,
    'distractors': world.distractors,
  }


def _row_of(rows: dict[str, int], name: str, kind: str) -> int:
  row = rows.get(name)
  if row is None:
    raise UserError(
      f'GoldScorer.score: {kind} id {name!r} is not of this world, which has '
      f'{len(rows)} {kind}s; take ids from its own tables.'
    )
  return row
