"""The ids of a model that came without a tokenizer p4lm can read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from p4lm.errors import UserError

_ADVICE = (
  'this model came without a tokenizer that p4lm reads: give prompt_tokens,'
  ' and response_tokens to be scored'
)


@dataclasses.dataclass(frozen=True)
class TokenIds:
  """Stands where a `Vocabulary` does, for requests that are ids already.

  Attributes:
    size: number of ids.
    eos_id: ends a response; -1 for a model that has no such id.
    soft_token_id: None, there are no placeholders.
    path, sha256, file_name: None, there is no file.
  """

  size: int
  eos_id: int
  soft_token_id: int | None = None
  path: None = None
  sha256: None = None
  file_name: None = None

  def encode(self, text: str) -> list[int]:
    """Raises UserError: only a tokenizer could do that."""
    raise UserError(_ADVICE)

  def encode_prompt(self, text: str) -> list[int]:
    """Raises UserError: only a tokenizer could do that."""
    raise UserError(_ADVICE)

  def decode(self, ids: Iterable[int]) -> None:
    """None: the ids are all there is."""
    del ids

  def decode_batch(self, rows: Sequence[Iterable[int]]) -> list[None]:
    """`decode` of each row."""
    return [None for _ in rows]
