"""Feature converters: a cached example as arrays of fixed shapes.

Before and after, for a pitch with P = 6, L = 4 and one user and one item
vector (90 is the placeholder of a soft token, 1 is EOS):

  inputs   [7 90 8 90 5]     prompt_tokens   [7 90 8 90 5 0]
  targets  [12 13]           response_tokens [12 13 1 0]
  user_id  '42'              response_mask   [T T T F]
  item_id  '7'               cf_embeddings   [W('user', 42), W('item', 7)]
                             cf_kind_ids     [0 1]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from p4lm.errors import UserError

# A vector's kind is its index here, as in the adapters.
KIND_IDS = {'user': 0, 'item': 1}

CFLookup = Callable[[str, str], np.ndarray]
Features = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class CFFeatures:
  """The CF vectors of an example, by the ids in it.

  Attributes:
    lookup: (kind, id) -> float32 [E]; None for text-only tasks.
    width: E; 0 without a lookup.
  """

  lookup: CFLookup | None = None
  width: int = 0

  @classmethod
  def of(cls, tables) -> CFFeatures:
    """Of CF tables (anything with `lookup` and `width`), or of None."""
    return cls() if tables is None else cls(tables.lookup, tables.width)

  def __call__(
    self, example: Mapping[str, object], cf_kinds: Sequence[str]
  ) -> Features:
    """cf_embeddings float32 [N,E] and cf_kind_ids int32 [N]."""
    if cf_kinds and self.lookup is None:
      raise UserError(
        f'the task has CF vectors ({", ".join(cf_kinds)}) but no CF_DIR was '
        'given; run fit_cf and pass --gin.CF_DIR=...'
      )
    vectors = [self.lookup(kind, example[f'{kind}_id']) for kind in cf_kinds]
    embeddings = np.zeros((len(vectors), self.width), np.float32)
    for row, vector in enumerate(vectors):
      embeddings[row] = vector
    kinds = np.array([KIND_IDS[kind] for kind in cf_kinds], np.int32)
    return {'cf_embeddings': embeddings, 'cf_kind_ids': kinds}


@dataclasses.dataclass(frozen=True)
class LMConverter:
  """Prompt and response of a language-model task.

  Attributes:
    prompt_length: P; longer prompts are cut at their end.
    response_length: L; a longer response is cut and then has no EOS.
    eos_id: appended to the response and counted.
    cf: finds the CF vectors.
  """

  prompt_length: int
  response_length: int
  eos_id: int
  cf: CFFeatures = CFFeatures()

  def __call__(self, example, cf_kinds: Sequence[str]) -> Features:
    response = np.append(example['targets'], self.eos_id)
    tokens = padded(response, self.response_length)
    mask = np.arange(self.response_length) < len(response)
    return {
      'prompt_tokens': padded(example['inputs'], self.prompt_length),
      'response_tokens': tokens,
      'response_mask': mask,
      **self.cf(example, cf_kinds),
    }


@dataclasses.dataclass(frozen=True)
class PointwiseConverter:
  """A reward task with one response and a label an example."""

  prompt_length: int
  response_length: int
  eos_id: int
  cf: CFFeatures = CFFeatures()

  def __call__(self, example, cf_kinds: Sequence[str]) -> Features:
    """prompt_tokens [P], response_tokens [L], labels float32 []."""
    response = np.append(example['targets'], self.eos_id)
    return {
      'prompt_tokens': padded(example['inputs'], self.prompt_length),
      'response_tokens': padded(response, self.response_length),
      'labels': np.float32(example['label']),
      **self.cf(example, cf_kinds),
    }


@dataclasses.dataclass(frozen=True)
class PairConverter:
  """A reward task with a chosen and a rejected response an example.

  Attributes:
    prompt_length, response_length, eos_id, cf: as above.
    users: numbers of those users whose pairs are told apart; None for nobody.
  """

  prompt_length: int
  response_length: int
  eos_id: int
  cf: CFFeatures = CFFeatures()
  users: Mapping[str, int] | None = None

  def __call__(self, example, cf_kinds: Sequence[str]) -> Features:
    """prompt_tokens [P], chosen_tokens and rejected_tokens [L], labels.

    The label is 1, or 0.5 for a tie: a float32 []. With `users`, also the
    user's number there, int32 [], -1 for none.
    """
    user = {}
    if self.users is not None:
      user['users'] = np.int32(self.users.get(example.get('user_id', ''), -1))
    chosen, rejected = (
      padded(np.append(example[name], self.eos_id), self.response_length)
      for name in ('targets_chosen', 'targets_rejected')
    )
    return {
      'prompt_tokens': padded(example['inputs'], self.prompt_length),
      'chosen_tokens': chosen,
      'rejected_tokens': rejected,
      'labels': np.float32(example.get('label', 1.0)),
      **user,
      **self.cf(example, cf_kinds),
    }


def padded(tokens: np.ndarray, length: int) -> np.ndarray:
  """int32 [length], cut or right-padded with 0.

  >>> padded(np.array([5, 6]), 3)
  array([5, 6, 0], dtype=int32)
  """
  result = np.zeros(length, np.int32)
  kept = tokens[:length]
  result[: len(kept)] = kept
  return result
