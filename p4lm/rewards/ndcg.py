"""The reward of a profile: how high it ranks what the user took next.

LangPTune (Gao et al. 2024): a text about a user is embedded, the items are
ranked by their similarity to it, and the reward is the NDCG of the one relevant
item, 1 / log2(1 + rank) within the cut-off and 0 beyond it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from p4lm.errors import UserError
from p4lm.rewards.terms import RewardRequest, TermValues


@dataclasses.dataclass(frozen=True)
class NDCGTerm:
  """Ranks a catalogue by a text; the request's item is the relevant one.

  Ties go to the lower row of the catalogue, as in `evaluation.ranking`. A
  request about an item that is not in the catalogue, and a text that the
  encoder makes nothing of (a vector of zeros), are masked and counted.

  Attributes:
    encode: texts to float [B, W], comparable by inner product.
    item_ids: I, of the catalogue.
    item_vectors: float [I, W].
    cutoff: ranks beyond it are worth nothing.
    name: of the term.
  """

  encode: Callable[[Sequence[str]], np.ndarray]
  item_ids: Sequence[str]
  item_vectors: np.ndarray
  cutoff: int = 20
  name: str = 'ndcg'

  def __post_init__(self):
    if self.cutoff < 1:
      raise UserError(f'NDCGTerm.cutoff must be 1 or more, got {self.cutoff}')
    if len(self.item_ids) != len(self.item_vectors):
      raise UserError(
        f'NDCGTerm has {len(self.item_ids)} item_ids and '
        f'{len(self.item_vectors)} item_vectors; one vector an item is needed'
      )

  def __call__(self, requests: Sequence[RewardRequest]) -> TermValues:
    """Values float32 [B] in [0, 1]."""
    rows = {id_: row for row, id_ in enumerate(self.item_ids)}
    values = np.zeros(len(requests), np.float32)
    known = np.array([request.item_id in rows for request in requests], bool)
    if not len(requests):
      return TermValues(values, known, {})
    vectors = np.asarray(
      self.encode([request.text for request in requests]), np.float32
    )
    said = np.abs(vectors).sum(axis=1) > 0
    valid = known & said
    for row in np.flatnonzero(valid):
      similarity = np.asarray(self.item_vectors, np.float32) @ vectors[row]
      target = rows[requests[row].item_id]
      above = similarity > similarity[target]
      equal = similarity[:target] == similarity[target]
      rank = 1 + above.sum() + equal.sum()
      if rank <= self.cutoff:
        values[row] = 1 / np.log2(1 + rank)
    counts = {
      'unknown_items': int((~known).sum()),
      'without_meaning': int((known & ~said).sum()),
    }
    return TermValues(values, valid, counts)
