"""Files of judged texts: natural language inference, and preferences.

One JSON object a line, plain or gzip. The keys are arguments, with those of
the published files as defaults; the meaning of a label is an explicit map. The
rules, each of which is an error or a count in the result:

- a label that the map does not know is an error that names file and line;
- rows without a gold label ('-', -1, null, none) are dropped and counted, and
  so are those with an empty text;
- a pair of premise and hypothesis that comes again with the same label is
  counted once; with another label, all rows of the pair are dropped;
- a preference between two equal texts, or without a verdict, is dropped.

Texts are compared after `prompts.clean_text`, case and all.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from p4lm.data.archives import DirectorySource
from p4lm.data.json_rows import Column, Kind, Rows, read_rows
from p4lm.data.prompts import clean_text
from p4lm.errors import UserError

# The label of a pair between which the rater saw no difference; 1 is a win.
TIE = 0.5
# What stands for "the annotators did not agree".
NO_LABEL = ('', '-', '-1')
_SUFFIXES = ('.jsonl', '.json', '.jsonl.gz', '.json.gz')


@dataclasses.dataclass(frozen=True)
class NLIColumns:
  """Where premise, hypothesis and label are, and what a label means.

  Attributes:
    premise, hypothesis, label: keys, the first that a row has counts: those of
      the jsonl files of SNLI and of others made alike.
    labels: {label: 1 for entailed, 0 for not}.
    group: a key whose value must not be in two splits either, or None.
    group_pattern: a regular expression; the group is what its first
      parenthesis matches in the value. None takes the whole value.
  """

  premise: Sequence[str] = ('premise', 'sentence1', 'sentence_A')
  hypothesis: Sequence[str] = ('hypothesis', 'sentence2', 'sentence_B')
  label: Sequence[str] = ('gold_label', 'label', 'entailment_label')
  labels: Mapping[str, int] = dataclasses.field(
    default_factory=lambda: {
      'entailment': 1,
      'neutral': 0,
      'contradiction': 0,
      'not_entailment': 0,
    }
  )
  group: str | None = None
  group_pattern: str | None = None

  def __post_init__(self):
    wrong = [n for n, value in self.labels.items() if value not in (0, 1)]
    if wrong or not self.labels:
      raise UserError(
        'NLIColumns.labels maps each label to 1 (entailed) or 0 (not), got '
        f'{dict(self.labels)}'
      )


@dataclasses.dataclass(frozen=True)
class PreferenceColumns:
  """Where the two texts and the verdict are, and what a verdict means.

  Attributes:
    first, second: keys of the texts, the first that a row has counts.
    winner: keys of the verdict; none for files whose first text always won,
      such as those with `chosen` and `rejected`.
    winners: {verdict: 'first', 'second' or 'tie'}.
    group, group_pattern: see `NLIColumns`.
    user: a key of who judged, whose taste a reward may follow; None leaves it
      out. A row may lack it.
  """

  first: Sequence[str] = ('argument1', 'response1', 'chosen')
  second: Sequence[str] = ('argument2', 'response2', 'rejected')
  winner: Sequence[str] = ('winner',)
  winners: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {
      'a1': 'first',
      'a2': 'second',
      '1': 'first',
      '2': 'second',
      'tie': 'tie',
    }
  )
  group: str | None = None
  group_pattern: str | None = None
  user: str | None = None

  def __post_init__(self):
    wrong = set(self.winners.values()) - {'first', 'second', 'tie'}
    if wrong:
      raise UserError(
        "PreferenceColumns.winners maps each verdict to 'first', 'second' or "
        f"'tie', got {dict(self.winners)}"
      )


@dataclasses.dataclass(frozen=True)
class Judgements:
  """Judged pairs of texts.

  Attributes:
    first, second: premises and hypotheses, or the texts that won and lost (of
      a tie in the order of the file).
    labels: 1 entailed, 0 not; of preferences 1, or 0.5 for a tie.
    groups: '' without one.
    users: who judged, '' where the file does not say.
    dropped: {reason: rows}.
  """

  first: list[str]
  second: list[str]
  labels: list[float]
  groups: list[str]
  users: list[str]
  dropped: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class _Row:
  first: str
  second: str
  verdict: str
  group: str
  user: str


class JudgementFiles:
  """The file that a path names, or all JSON-lines files in a directory.

  Raises:
    UserError: there is none.
  """

  def __init__(self, path: str | os.PathLike):
    path = Path(path)
    if path.is_file():
      self._source, self._names = DirectorySource(path.parent), [path.name]
    elif path.is_dir():
      self._source = DirectorySource(path)
      names = self._source.names()
      self._names = [name for name in names if name.endswith(_SUFFIXES)]
    else:
      raise UserError(
        f'DATA_DIR {path} does not exist; give a file with one JSON object a '
        'line, or a directory of them'
      )
    if not self._names:
      raise UserError(
        f'DATA_DIR {path} holds no file that ends with {", ".join(_SUFFIXES)}'
      )
    self._path = path

  def describe(self) -> str:
    return str(self._path)

  def fingerprint(self) -> dict[str, str]:
    """{file: sha256}, of the file's content alone where there is one."""
    return {n: self._source.fingerprint(n) for n in self._names}

  def rows(self, columns: Mapping[str, Column]) -> Iterator[Rows]:
    """The rows of every file; see `read_rows`."""
    for name in self._names:
      yield from read_rows(self._source, name, columns)


def read_nli(files: JudgementFiles, columns: NLIColumns) -> Judgements:
  """Reads premises, hypotheses and labels.

  Raises:
    UserError: bad input, a label that `columns.labels` does not have, or no
      row with a label.
  """
  dropped: collections.Counter = collections.Counter()
  keys = (columns.premise, columns.hypothesis, columns.label)
  found: dict[tuple[str, str], list[tuple[_Row, float]]] = {}
  for row, fail in _rows(files, keys, columns):
    if row.verdict in NO_LABEL:
      dropped['no gold label'] += 1
    elif not row.first or not row.second:
      dropped['empty premise or hypothesis'] += 1
    else:
      label = columns.labels.get(row.verdict)
      if label is None:
        fail(
          _unknown('label', row.verdict, 'NLIColumns.labels', columns.labels)
        )
      found.setdefault((row.first, row.second), []).append((row, float(label)))
  kept = []
  for rows in found.values():
    if len({label for _, label in rows}) > 1:
      dropped['pair with two labels'] += len(rows)
      continue
    dropped['repeated pair'] += len(rows) - 1
    kept.append(rows[0])
  return _judgements(files, kept, dropped)


def read_preferences(
  files: JudgementFiles, columns: PreferenceColumns
) -> Judgements:
  """Reads which of two texts won; several raters of a pair are several rows.

  Raises:
    UserError: bad input, a verdict that `columns.winners` does not have, or no
      row with a winner.
  """
  dropped: collections.Counter = collections.Counter()
  kept = []
  for row, fail in _rows(
    files, (columns.first, columns.second, columns.winner), columns
  ):
    verdict = 'first'
    if columns.winner:
      if row.verdict in NO_LABEL and row.verdict not in columns.winners:
        dropped['no winner'] += 1
        continue
      verdict = columns.winners.get(row.verdict)
      if verdict is None:
        fail(
          _unknown(
            'verdict', row.verdict, 'PreferenceColumns.winners', columns.winners
          )
        )
    if not row.first or not row.second:
      dropped['empty text'] += 1
    elif row.first == row.second:
      dropped['a text against itself'] += 1
    elif verdict == 'second':
      turned = dataclasses.replace(row, first=row.second, second=row.first)
      kept.append((turned, 1.0))
    else:
      kept.append((row, TIE if verdict == 'tie' else 1.0))
  return _judgements(files, kept, dropped)


def _rows(files, keys, columns):
  """(row, its `fail`) of each row, texts cleaned."""
  pattern = None
  if columns.group_pattern is not None:
    pattern = _compiled(columns.group_pattern)
  wanted = {
    'first': Column(Kind.TEXT, tuple(keys[0]), required=True),
    'second': Column(Kind.TEXT, tuple(keys[1]), required=True),
  }
  if keys[2]:
    wanted['verdict'] = Column(Kind.LABEL, tuple(keys[2]))
  if columns.group is not None:
    wanted['group'] = Column(Kind.LABEL, (columns.group,), required=True)
  user = getattr(columns, 'user', None)
  if user is not None:
    wanted['user'] = Column(Kind.LABEL, (user,))
  for rows in files.rows(wanted):
    for index, values in enumerate(rows.table.to_pylist()):
      fail = lambda problem, rows=rows, index=index: rows.fail(index, problem)
      group = values.get('group', '')
      if pattern is not None:
        match = pattern.match(group)
        if match is None:
          fail(
            f'the group {group!r} does not match group_pattern '
            f'{columns.group_pattern!r}'
          )
        group = match[1]
      row = _Row(
        clean_text(values['first']),
        clean_text(values['second']),
        values.get('verdict', '').strip(),
        group,
        values.get('user', '').strip(),
      )
      yield row, fail


def _compiled(pattern: str) -> re.Pattern:
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise UserError(
      f'group_pattern {pattern!r} is no regular expression: {error}'
    ) from error
  if not compiled.groups:
    raise UserError(
      f'group_pattern {pattern!r} needs a parenthesis around the group'
    )
  return compiled


def _unknown(what, value, argument, known) -> str:
  return (
    f'the {what} {value!r} is not in {argument} ({", ".join(known)}); add it '
    'there, or remove the line'
  )


def _judgements(files, kept, dropped) -> Judgements:
  if not kept:
    reasons = ', '.join(f'{reason}: {n}' for reason, n in dropped.items())
    raise UserError(
      f'{files.describe()}: no row has two texts and a verdict ({reasons}); '
      'name the keys of the verdict in NLIColumns.label or '
      'PreferenceColumns.winner (where () says that the first text always won)'
    )
  rows = [row for row, _ in kept]
  return Judgements(
    first=[row.first for row in rows],
    second=[row.second for row in rows],
    labels=[label for _, label in kept],
    groups=[row.group for row in rows],
    users=[row.user for row in rows],
    dropped={reason: count for reason, count in dropped.items() if count},
  )
