"""What a vocabulary is learnt from: the texts that models will read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from p4lm.data import prompts

# The vocabulary is as good from so many texts of a kind, and learnt sooner.
_MAX_LINES = 4000
_MAX_PLOTS = 20_000


def training_texts(made: Mapping[str, pa.Table]) -> Iterator[str]:
  """Training texts, in the words of the prompts around them.

  Args:
    made: the tables items, users, texts, pairs, entailment and relevance.
  """
  items = (item for item in made['items'].to_pylist() if item['plot'])
  for item in itertools.islice(items, _MAX_PLOTS):
    yield prompts.pitch_prompt(item).text.replace(prompts.SOFT, '')
  users = made['users']['preferences'].slice(0, _MAX_LINES)
  for preferences in users.to_pylist():
    yield f'user: likes: {prompts.preferences_text(preferences)}'
  yield from _train_texts(made['texts'], 'text')
  for text in _train_texts(made['pairs'], 'chosen'):
    yield f'{prompts.appeal_prompt().text} {prompts.clean_text(text)}'
  for text in _train_texts(made['pairs'], 'rejected'):
    yield f'text: {prompts.clean_text(text)}'
  for text in _train_texts(made['entailment'], 'hypothesis'):
    yield f'premise: hypothesis: {prompts.clean_text(text)}'
  for text in _train_texts(made['relevance'], 'text'):
    yield f'relevant: {prompts.clean_text(text)}'


def judged_texts(table: pa.Table) -> Iterator[str]:
  """Training texts of an `entailment` or a `pairs` table, likewise."""
  if 'premise' in table.column_names:
    premises = dict.fromkeys(_train_texts(table, 'premise', None))
    for premise in premises:
      yield prompts.nli_prompt(premise).text
    yield from _train_texts(table, 'hypothesis', None)
    return
  appeal = prompts.appeal_prompt().text
  sides = [_train_texts(table, name, None) for name in ('chosen', 'rejected')]
  for text in dict.fromkeys(sides[0] + sides[1]):
    yield f'{appeal} {prompts.clean_text(text)}'


def _train_texts(
  table: pa.Table, name: str, limit: int | None = _MAX_LINES
) -> list[str]:
  train = table.filter(pc.equal(table['split'], 'train'))
  return train[name].slice(0, limit).to_pylist()
