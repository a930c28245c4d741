"""What a reward term is, and how its answer is checked.

A term takes requests (a text with its item and user) and returns one value a
request with a validity mask. A value that is not finite is masked and counted,
never taken for a zero; an answer of another length, or a term that throws,
stops the job with the term's name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from p4lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class RewardRequest:
  """One text to be judged.

  Attributes:
    text: the response.
    item_id: the item that it is about.
    user_id: the user whom it addresses.
    item: what the tables say about the item (title, plot, ...), or None.
    preferences: the user's preference bullets, for terms that read them.
    shares: {term: number} by which a joint reward multiplies this text's
      terms, 0 for those left out; None multiplies by nothing.
  """

  text: str
  item_id: str
  user_id: str
  item: Mapping[str, Any] | None = None
  preferences: tuple[str, ...] = ()
  shares: Mapping[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class TermValues:
  """A term's answer.

  Attributes:
    values: float32 [B], of no meaning where not valid.
    valid: bool [B].
    counts: events worth a line in the log, such as {'truncated': 3}.
    checkpoint: hash of the model that answered, '' for a rule.
    spread: float32 [B], how far the heads of an ensemble disagree, or None.
  """

  values: np.ndarray
  valid: np.ndarray
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  checkpoint: str = ''
  spread: np.ndarray | None = None


class RewardTerm(Protocol):
  """A named judge of texts."""

  name: str

  def __call__(self, requests: Sequence[RewardRequest]) -> TermValues: ...


@dataclasses.dataclass(frozen=True)
class CallableTerm:
  """Makes a term of a function of one request or of the whole batch.

  Attributes:
    name: of the term.
    function: takes one RewardRequest and returns a number, or, if `batched`,
      takes all requests and returns as many numbers. NaN and None mean "no
      answer": that request is masked and counted.
    batched: see `function`.
  """

  name: str
  function: Callable[..., Any]
  batched: bool = False

  def __call__(self, requests: Sequence[RewardRequest]) -> TermValues:
    if self.batched:
      return _as_term_values(self.function(requests))
    return _as_term_values([self.function(request) for request in requests])


def evaluate_term(
  term: RewardTerm, requests: Sequence[RewardRequest]
) -> TermValues:
  """Calls a term and checks what it returns.

  Args:
    term: any term.
    requests: B texts.
  Returns:
    values float32 [B] with 0 where not valid, valid bool [B] that is False for
    every value that is not finite, and the term's counts.
  Raises:
    UserError: the term threw, or answered with another length or with what is
      no number; the message names the term.
  """
  try:
    answer = _as_term_values(term(requests))
  except UserError:
    raise
  except Exception as error:
    raise UserError(
      f'reward term {term.name!r} failed on a batch of {len(requests)} texts: '
      f'{type(error).__name__}: {error}'
    ) from error
  shapes = {'values': answer.values.shape, 'valid': answer.valid.shape}
  for part, shape in shapes.items():
    if shape != (len(requests),):
      raise UserError(
        f'reward term {term.name!r} must return one value a text: got {part} '
        f'of shape {shape} for {len(requests)} texts'
      )
  valid = answer.valid & np.isfinite(answer.values)
  values = np.where(valid, answer.values, 0.0).astype(np.float32)
  return dataclasses.replace(
    answer, values=values, valid=valid, counts=dict(answer.counts)
  )


def _as_term_values(answer) -> TermValues:
  if isinstance(answer, TermValues):
    return dataclasses.replace(
      answer,
      values=np.asarray(answer.values, np.float32),
      valid=np.asarray(answer.valid, bool),
    )
  # float turns None into NaN, and fails on what is no number.
  with np.errstate(over='ignore'):
    values = np.asarray(answer, np.float64).astype(np.float32)
  return TermValues(values, np.ones(values.shape, bool))
