"""Entailment sentence by sentence, against a long premise in chunks.

An entailment model that was trained on single sentences reads short texts best,
and a premise longer than its prompt would be cut. Each sentence of the text is
held against each chunk of the premise; a sentence is as entailed as the chunk
that speaks most for it, a text as its weakest sentence or as the mean of them
(SummaC's zero-shot rule: Laban et al. 2022, Section 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from p4lm.data.prompts import clean_text
from p4lm.data.sentences import chunks, split_sentences
from p4lm.errors import UserError
from p4lm.rewards.terms import (
  RewardRequest,
  RewardTerm,
  TermValues,
  evaluate_term,
)

REDUCTIONS = {'min': np.min, 'mean': np.mean}


@dataclasses.dataclass(frozen=True)
class SentenceEntailment:
  """An entailment term that is asked about sentences.

  A text is valid where each of its sentences is; one without any sentence is
  not, and is counted (`without_sentence`).

  Attributes:
    term: the entailment of one text by one plot.
    reduction: 'min' or 'mean' over the sentences.
    premise_words: of a chunk; it must fit into the model's prompt.
  """

  term: RewardTerm
  reduction: str = 'min'
  premise_words: int = 40

  def __post_init__(self):
    if self.reduction not in REDUCTIONS:
      raise UserError(
        f'SentenceEntailment.reduction must be one of '
        f'{", ".join(REDUCTIONS)}, got {self.reduction!r}'
      )
    if self.premise_words < 1:
      raise UserError(
        'SentenceEntailment.premise_words must be 1 or more, got '
        f'{self.premise_words}'
      )

  @property
  def name(self) -> str:
    return self.term.name

  def __call__(self, requests: Sequence[RewardRequest]) -> TermValues:
    """Values float32 [B]; the counts add up those of the term."""
    asked, sentence_of, text_of = [], [], []
    for row, request in enumerate(requests):
      for sentence in split_sentences(clean_text(request.text)):
        text_of.append(row)
        for premise in self._premises(request):
          sentence_of.append(len(text_of) - 1)
          asked.append(_about(request, sentence, premise))
    answer = evaluate_term(self.term, asked)
    sentences = np.full(len(text_of), -np.inf)
    kept = np.array(sentence_of, int)[answer.valid]
    np.maximum.at(sentences, kept, answer.values[answer.valid])
    values = np.full(len(requests), np.nan)
    rows = np.array(text_of, int)
    for row in np.unique(rows):
      values[row] = REDUCTIONS[self.reduction](sentences[rows == row])
    valid = np.isfinite(values)
    counts = {
      **answer.counts,
      'sentences': len(text_of),
      'without_sentence': len(requests) - len(np.unique(rows)),
    }
    return TermValues(
      np.where(valid, values, 0.0), valid, counts, checkpoint=answer.checkpoint
    )

  def _premises(self, request: RewardRequest) -> list[str]:
    """Chunks of the plot; a single empty one where there is none."""
    plot = (request.item or {}).get('plot') or ''
    return chunks(clean_text(plot), self.premise_words) or ['']


def _about(request: RewardRequest, sentence: str, premise: str):
  item = None if request.item is None else {**request.item, 'plot': premise}
  return dataclasses.replace(request, text=sentence, item=item)
