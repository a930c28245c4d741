"""Rewards by rule: no model, one text at a time.

Each factory returns a term of the given name; use them to hold back what a
learned reward does not see (rambling, repetition).
"""

from __future__ import annotations

import collections

from p4lm.rewards.terms import CallableTerm, RewardRequest


def length_term(
  *, fewest_words: int, most_words: int, name: str = 'length'
) -> CallableTerm:
  """0 for a text within the range, else minus the relative excess or lack.

  >>> term = length_term(fewest_words=2, most_words=4)
  >>> values = term([RewardRequest(t, 'i', 'u')
  ...                for t in ('', 'a b c', 'a b c d e f')]).values
  >>> print(values)
  [-1.   0.  -0.5]

  Raises:
    ValueError: not 1 <= fewest_words <= most_words.
  """
  if not 1 <= fewest_words <= most_words:
    raise ValueError(
      'fewest_words must be in 1..most_words, got '
      f'{fewest_words} and {most_words}'
    )

  def score(request: RewardRequest) -> float:
    words = len(request.text.split())
    if words < fewest_words:
      return (words - fewest_words) / fewest_words
    return -max(words - most_words, 0) / most_words

  return CallableTerm(name, score)


def repetition_term(
  *, ngram: int = 3, name: str = 'repetition'
) -> CallableTerm:
  """Minus the share of word n-grams that occurred earlier in the text.

  0 for a text that never repeats itself or is shorter than an n-gram.

  >>> term = repetition_term(ngram=1)
  >>> print(term([RewardRequest('good good Good film', 'i', 'u')]).values)
  [-0.5]
  """
  if ngram < 1:
    raise ValueError(f'ngram must be 1 or more, got {ngram}')

  def score(request: RewardRequest) -> float:
    words = request.text.lower().split()
    grams = [tuple(words[k : k + ngram]) for k in range(len(words) - ngram + 1)]
    if not grams:
      return 0.0
    repeats = len(grams) - len(collections.Counter(grams))
    return -repeats / len(grams)

  return CallableTerm(name, score)
