"""Sentences of a text, and runs of sentences of a limited length."""

from __future__ import annotations

import re
from collections.abc import Iterator

_ABBREVIATIONS = frozenset(
  'mr mrs ms dr st jr sr vs lt col gen sgt capt prof rev no u.s d.c'.split()
)
_END = re.compile(r'([.!?]+["\')\]\u201d]*)\s+(?=["\'(\u201c]?[A-Z0-9])')


def split_sentences(text: str) -> list[str]:
  """Sentences in order; abbreviations and initials do not end one.

  >>> split_sentences('Dr. No meets J. Bond. Who wins?')
  ['Dr. No meets J. Bond.', 'Who wins?']
  """
  sentences, start = [], 0
  for match in _END.finditer(text):
    last_word = text[start : match.start()].split()[-1:] or ['']
    word = last_word[0].strip('("\'').lower()
    if match[1].startswith('.') and (
      word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha())
    ):
      continue
    sentences.append(text[start : match.end()].strip())
    start = match.end()
  rest = text[start:].strip()
  return sentences + [rest] if rest else sentences


def chunks(text: str, max_words: int) -> list[str]:
  """Consecutive sentences, as many together as `max_words` words hold.

  A longer sentence is a chunk of its own.

  >>> chunks('One two. Three. Four five six seven. Eight.', 3)
  ['One two. Three.', 'Four five six seven.', 'Eight.']

  Args:
    text: any; one without words has no chunk.
    max_words: 1 or more.
  """
  return [' '.join(chunk) for chunk in _chunks(text, max_words)]


def _chunks(text: str, max_words: int) -> Iterator[list[str]]:
  chunk, words = [], 0
  for sentence in split_sentences(text):
    count = len(sentence.split())
    if chunk and words + count > max_words:
      yield chunk
      chunk, words = [], 0
    chunk.append(sentence)
    words += count
  if chunk:
    yield chunk
