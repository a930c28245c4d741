"""Texts of reward models to token ids, paying once for what repeats.

Within one batch many texts share an item (its plot is the longest part of a
prompt) and all terms share the responses.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import Protocol


class Encoder(Protocol):
  """The part of a vocabulary that is needed here."""

  def encode(self, text: str) -> list[int]: ...


class CachingEncoder:
  """Encodes texts and remembers them; one can serve many terms.

  Args:
    vocabulary: anything with `encode(text) -> list[int]`.
    cache_size: distinct texts remembered; the oldest are forgotten first.
  """

  def __init__(self, vocabulary: Encoder, *, cache_size: int = 1 << 15):
    self.encode = functools.lru_cache(cache_size)(
      lambda text: tuple(vocabulary.encode(text))
    )


def repeats_of_each(keys: Sequence[Hashable], batch_size: int) -> int:
  """G where every key comes G times in a row, else 1.

  >>> repeats_of_each(['a', 'a', 'b', 'b', 'b', 'b'], 4)
  2
  >>> repeats_of_each(['a', 'a', 'b'], 4)
  1

  Args:
    keys: of the rows.
    batch_size: G must divide it, or groups would be cut.
  """
  first = next((i for i, key in enumerate(keys) if key != keys[0]), len(keys))
  for count in range(first, 1, -1):
    if first % count or len(keys) % count or batch_size % count:
      continue
    if all(keys[row] == keys[row - row % count] for row in range(len(keys))):
      return count
  return 1
