"""Clauses of a plot that are short enough for a pitch."""

from __future__ import annotations

from p4lm.data.sentences import split_sentences

MIN_WORDS = 6
MAX_WORDS = 15

# A clause may end before these words; the rest would hang in the air.
_BREAK_WORDS = frozenset('and but while when as after until where'.split())
# A sentence that begins so leans on the one before.
_LEANING = frozenset(
  'he she they it but however his her their this these that then so and '
  "meanwhile there also it's he's she's they're".split()
)
# Without its main clause, what begins so says nothing.
_SUBORDINATE = frozenset(
  'after although as based because before during faced following forced from '
  'if in inspired like living now on once set since still through told unable '
  'upon when while with'.split()
)
# 'A sergeant, who starts well,' still waits for its verb.
_RELATIVE = frozenset('who whose which'.split())
# A clause cannot stop after these.
_DANGLING = frozenset(
  'a an the of to in on at by for with from and or but as his her their its '
  'into is are was be who which that'.split()
)


def clauses(text: str) -> list[str]:
  """One clause a sentence that stands alone, MIN_WORDS to MAX_WORDS long.

  Sentences that lean on their neighbours are left out, long ones are cut at
  the end of a clause.

  >>> clauses('A thief plans one last job in Rome, but what she does not know '
  ...         'is that her old crew has sold her to the police. They lie.')
  ['A thief plans one last job in Rome.']
  """
  found = []
  for sentence in split_sentences(text):
    words = sentence.split()
    if words[0].lower().strip('"\'') in _LEANING:
      continue
    words = _clip(words)
    if words is not None:
      found.append(_closed(' '.join(words)))
  return found


def _clip(words: list[str]) -> list[str] | None:
  if MIN_WORDS <= len(words) <= MAX_WORDS:
    return words
  # The earliest end: what follows a comma often waits for its verb.
  for end in range(MIN_WORDS, min(MAX_WORDS, len(words) - 1) + 1):
    ends_clause = (
      words[end - 1][-1:] in ',;:' or words[end].lower() in _BREAK_WORDS
    )
    waits = words[end].lower() in _RELATIVE
    if ends_clause and not waits and _stands_alone(words[:end]):
      return words[:end]
  return None


def _stands_alone(words: list[str]) -> bool:
  """Whether the beginning of a sentence can pass for a whole one."""
  commas = [i for i, word in enumerate(words[:-1]) if word.endswith(',')]
  last = words[-1].strip(',;:\u2013-').lower()
  if not last or last in _DANGLING:
    return False
  if words[0].lower() in _SUBORDINATE and not commas:
    return False
  after = words[commas[-1] + 1] if commas else ''
  return after.lower() not in _RELATIVE


def _closed(clause: str) -> str:
  clause = clause.rstrip(' ,;:\u2013-')
  if clause.count('(') != clause.count(')'):
    clause = clause.replace('(', '').replace(')', '')
  if clause.count('"') % 2:
    clause = clause.replace('"', '')
  return clause if clause[-1] in '.!?' else f'{clause}.'
