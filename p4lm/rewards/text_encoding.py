"""Prompts of reward models to token ids, paying once for what repeats.

Within one batch many texts share an item (its plot is the longest part of a
prompt) and all terms share the texts. A SentencePiece model that never joins
pieces across a space gives the same ids for "head tail" as for "head" and then
"tail", so both halves are tokenized once and remembered. Whether a vocabulary
is such a one is checked on the first prompts, not assumed.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

# How many prompts are encoded both ways before halves are trusted.
_PROMPTS_CHECKED = 16


class Encoder(Protocol):
  """The part of a vocabulary that is needed here."""

  def encode(self, text: str) -> list[int]: ...


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
  """Token ids of a prompt and where its response starts.

  Attributes:
    tokens: all ids, of any length.
    response_start: index of the response's first id; None if it is not known
      (the prompt does not end in the response).
  """

  tokens: tuple[int, ...]
  response_start: int | None


class CachingEncoder:
  """Encodes prompts that end in a response; one can serve many terms.

  Args:
    vocabulary: anything with `encode(text) -> list[int]`.
    cache_size: distinct texts remembered; the oldest are forgotten first.
  """

  def __init__(self, vocabulary: Encoder, *, cache_size: int = 1 << 15):
    self._encode = functools.lru_cache(cache_size)(
      lambda text: tuple(vocabulary.encode(text))
    )
    self._vocabulary = vocabulary
    self._checked = 0
    self._joins_across_spaces = False

  def encode(self, prompt: str, response: str) -> EncodedPrompt:
    """Ids of `prompt`, which usually ends in `response` after a space."""
    head = prompt.removesuffix(response).rstrip(' ')
    separated = prompt == f'{head} {response}' and response.strip() == response
    if not response or not separated:
      return EncodedPrompt(self._encode(prompt), None)
    if self._joins_across_spaces:
      return EncodedPrompt(tuple(self._vocabulary.encode(prompt)), None)
    start, tail = self._encode(head), self._encode(response)
    if self._checked < _PROMPTS_CHECKED:
      whole = tuple(self._vocabulary.encode(prompt))
      self._checked += 1
      if whole != start + tail:
        self._joins_across_spaces = True
        return EncodedPrompt(whole, None)
    return EncodedPrompt(start + tail, len(start))
