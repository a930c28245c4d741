"""Properties of texts that no reference is needed for."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(text: str) -> list[str]:
  """Lower-case words: runs of letters and digits, with inner apostrophes.

  >>> words("It's 2001: a Space-Odyssey")
  ["it's", '2001', 'a', 'space', 'odyssey']
  """
  return _WORD.findall(text.lower())


def distinct(texts: Sequence[str], n: int) -> float:
  """Distinct n-grams of all texts over their number (Li et al. 2016).

  >>> distinct(['a b a', 'b a'], 1)
  0.4

  Args:
    texts: the corpus.
    n: length of the n-grams, in words.
  Returns:
    A share in (0, 1]; 0 where no text has n words.
  """
  grams = [gram for text in texts for gram in _grams(words(text), n)]
  return len(set(grams)) / len(grams) if grams else 0.0


def repetition(text: str, n: int = 3) -> float:
  """Share of a text's n-grams that it already said.

  >>> repetition('a b c a b c', n=3)
  0.25
  """
  grams = _grams(words(text), n)
  return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclasses.dataclass(frozen=True)
class TextStatistics:
  """What the texts of one system are like.

  Attributes:
    texts: number of texts.
    empty: share without a word.
    mean_words: mean length in words.
    distinct_1, distinct_2: distinct n-grams over all n-grams of all texts.
    repetition: mean share of 3-grams that a text repeats.
    most_common: share of the most frequent text, 1 where all are the same.
  """

  texts: int
  empty: float
  mean_words: float
  distinct_1: float
  distinct_2: float
  repetition: float
  most_common: float

  def as_dict(self) -> dict:
    """JSON values."""
    return dataclasses.asdict(self)


def text_statistics(texts: Sequence[str]) -> TextStatistics:
  """Describes the texts of one system; all shares are 0 without texts."""
  count = max(len(texts), 1)
  lengths = [len(words(text)) for text in texts]
  common = collections.Counter(texts).most_common(1)
  return TextStatistics(
    texts=len(texts),
    empty=sum(n == 0 for n in lengths) / count,
    mean_words=sum(lengths) / count,
    distinct_1=distinct(texts, 1),
    distinct_2=distinct(texts, 2),
    repetition=sum(repetition(text) for text in texts) / count,
    most_common=common[0][1] / count if common else 0.0,
  )


def _grams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
  return list(zip(*(tokens[i:] for i in range(n))))
