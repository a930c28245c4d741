r"""The paper's Table 1: systems by criteria, against the text-only writer.

Four criteria score each pair (user, item): precision (entailment),
personalization, appeal and preference relevance. A row gives a system's mean
± standard error, its win rate against the baseline (ties half) and its
increases over it, absolute and in percent of |phi(baseline)|, each with a
paired bootstrap interval (P4LM, Section 5).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from p4lm.errors import UserError
from p4lm.evaluation import statistics, text_tables
from p4lm.evaluation.statistics import Interval, Mean
from p4lm.evaluation.win_rates import Comparison, compare

CRITERIA = ('precision', 'personalization', 'appeal', 'relevance')
LABELS = {
  'precision': 'Precision (NLI)',
  'personalization': 'Personalization',
  'appeal': 'Appeal',
  'relevance': 'Pref. Relevance',
}
# {system: {criterion: float [M], NaN where a score is invalid}}
Scores = Mapping[str, Mapping[str, np.ndarray]]


def label(criterion: str, judge: str = 'learned') -> str:
  """The paper's name of a criterion; only a learned judge of precision is NLI.

  >>> label('precision'), label('precision', 'gold')
  ('Precision (NLI)', 'Precision')
  """
  if (criterion, judge) == ('precision', 'gold'):
    return 'Precision'
  return LABELS.get(criterion, criterion)


@dataclasses.dataclass(frozen=True)
class Row:
  """One system under one criterion; the baseline has no comparison."""

  system: str
  criterion: str
  mean: Mean
  comparison: Comparison | None

  def as_dict(self) -> dict:
    """JSON values."""
    found = {
      'system': self.system,
      'criterion': self.criterion,
      'mean': statistics.finite_or_none(self.mean.mean),
      'standard_error': statistics.finite_or_none(self.mean.standard_error),
      'count': self.mean.count,
    }
    if self.comparison is not None:
      found |= self.comparison.as_dict()
    return found


@dataclasses.dataclass(frozen=True)
class TableOne:
  """All rows, criterion by criterion, the baseline first.

  Attributes:
    baseline: the system that the others are compared with.
    rows: one a system and criterion.
    judge: who scored: 'learned' reward models or the world's 'gold' scorers.
  """

  baseline: str
  rows: tuple[Row, ...]
  judge: str = 'learned'

  def row(self, system: str, criterion: str) -> Row:
    """The row of a system under a criterion."""
    return next(
      r for r in self.rows if (r.system, r.criterion) == (system, criterion)
    )

  def as_dict(self) -> dict:
    """JSON values for results.json."""
    return {
      'baseline': self.baseline,
      'judge': self.judge,
      'rows': [row.as_dict() for row in self.rows],
    }

  def cells(self, *, narrow: bool = False):
    """Header and rows as text; a criterion stands on its first row only.

    Args:
      narrow: without the intervals of the percentages, for a terminal.
    """
    header = [
      'Criterion', 'System', 'Mean ± SE', 'Win rate', 'Increase',
      'Increase %', 'of means %', 'Pairs',
    ]  # fmt: skip
    body, previous = [], None
    for row in self.rows:
      first = (
        '' if row.criterion == previous else label(row.criterion, self.judge)
      )
      compared = _compared(row, narrow)
      body.append([first, row.system, format_mean(row.mean), *compared])
      previous = row.criterion
    return header, body

  def to_markdown(self) -> str:
    """A GitHub table."""
    return text_tables.markdown(*self.cells())

  def to_text(self) -> str:
    """A table for a terminal, columns aligned by spaces."""
    return text_tables.plain(*self.cells(narrow=True))


def table_one(
  scores: Scores, *, baseline: str, judge: str = 'learned',
  criteria: Sequence[str] = CRITERIA, clusters=None,
  samples: int = statistics.SAMPLES, level: float = 0.95, seed: int = 0,
) -> TableOne:  # fmt: skip
  """Computes the table.

  Args:
    scores: {system: {criterion: float [M]}}, the same M pairs everywhere; NaN
      marks an invalid score. Systems keep their order.
    baseline: the system that the others are compared with.
    judge: who scored, 'learned' or 'gold'.
    criteria: keys of the inner mapping, in the order of the table.
    clusters: [M] user of each pair, resampled together; None resamples pairs.
    samples, level, seed: of the paired bootstrap.
  Returns:
    The table.
  Raises:
    UserError: no such baseline, a system without a criterion, or other numbers
      of pairs.
  """
  check_scores(scores, criteria)
  if baseline not in scores:
    raise UserError(
      f'baseline {baseline!r} has no scores; systems: {", ".join(scores)}'
    )
  systems = [baseline, *(s for s in scores if s != baseline)]
  rows = []
  for criterion in criteria:
    reference = scores[baseline][criterion]
    for system in systems:
      values = scores[system][criterion]
      comparison = None
      if system != baseline:
        comparison = compare(
          values, reference, clusters=clusters, samples=samples, level=level,
          seed=seed,
        )  # fmt: skip
      mean = statistics.mean_and_standard_error(values)
      rows.append(Row(system, criterion, mean, comparison))
  return TableOne(baseline, tuple(rows), judge)


Verdict = Literal['higher', 'lower', 'not apart']


@dataclasses.dataclass(frozen=True)
class Contrast:
  """first - second under one criterion, paired.

  Attributes:
    judge: who scored, 'learned' or 'gold'.
    criterion: which score.
    first, second: the systems.
    comparison: first against second.
  """

  judge: str
  criterion: str
  first: str
  second: str
  comparison: Comparison

  @property
  def difference(self) -> Interval:
    """Mean difference with its interval."""
    return self.comparison.absolute_increase

  @property
  def verdict(self) -> Verdict:
    """Whether the interval is apart from zero, and on which side."""
    if not self.difference.lies_apart_from(0.0):
      return 'not apart'
    return 'higher' if self.difference.low > 0 else 'lower'

  def as_dict(self) -> dict:
    """JSON values for results.json."""
    return {
      'judge': self.judge,
      'criterion': self.criterion,
      'first': self.first,
      'second': self.second,
      'verdict': self.verdict,
      **self.comparison.as_dict(),
    }


def contrasts(
  scores: Scores, pairs: Sequence[tuple[str, str]], *, judge: str,
  criteria: Sequence[str] = CRITERIA, clusters=None,
  samples: int = statistics.SAMPLES, level: float = 0.95, seed: int = 0,
) -> list[Contrast]:  # fmt: skip
  """Paired differences between systems, e.g. ('P4LM', 'SFT').

  Args:
    scores: as in `table_one`.
    pairs: (first, second) systems; the difference is first - second.
    judge: who scored, 'learned' or 'gold'.
    criteria, clusters, samples, level, seed: as in `table_one`.
  Returns:
    One contrast a pair and criterion.
  Raises:
    UserError: as in `table_one`, or an unknown system.
  """
  check_scores(scores, criteria)
  found = []
  for first, second in pairs:
    for system in (first, second):
      if system not in scores:
        raise UserError(
          f'no scores of {system!r}; systems: {", ".join(scores)}'
        )
    for criterion in criteria:
      comparison = compare(
        scores[first][criterion], scores[second][criterion],
        clusters=clusters, samples=samples, level=level, seed=seed,
      )  # fmt: skip
      found.append(Contrast(judge, criterion, first, second, comparison))
  return found


def contrast_cells(found: Sequence[Contrast], spec: str = '.3f'):
  """Header and rows of contrasts as text; `spec` is of the differences."""
  header = [
    'Judge', 'Criterion', 'Contrast', 'Difference', 'Win rate', 'Verdict',
  ]  # fmt: skip
  words = {'higher': 'higher', 'lower': 'LOWER', 'not apart': 'not apart'}
  body = [
    [
      c.judge,
      label(c.criterion, c.judge),
      f'{c.first} − {c.second}',
      format_interval(c.difference, spec),
      format_interval(c.comparison.win_rate, '.2f', sign=False),
      words[c.verdict],
    ]
    for c in found
  ]
  return header, body


def check_scores(scores: Scores, criteria: Sequence[str]) -> None:
  """Raises UserError unless every system scored the same pairs."""
  sizes = {}
  for system, by_criterion in scores.items():
    for criterion in criteria:
      if criterion not in by_criterion:
        raise UserError(f'system {system!r} has no scores for {criterion!r}')
      sizes[system, criterion] = np.shape(by_criterion[criterion])
  if len(set(sizes.values())) > 1:
    listed = ', '.join(f'{s}/{c} {n}' for (s, c), n in sizes.items())
    raise UserError(f'systems scored different numbers of pairs: {listed}')


def format_mean(mean: Mean) -> str:
  """'0.512 ± 0.020'."""
  return f'{mean.mean:.3f} ± {mean.standard_error:.3f}'


def format_interval(interval: Interval, spec: str = '.3f', *, sign=True) -> str:
  """'+0.120 [+0.080, +0.160]'."""
  spec = f'+{spec}' if sign else spec
  low, high = f'{interval.low:{spec}}', f'{interval.high:{spec}}'
  return f'{interval.estimate:{spec}} [{low}, {high}]'


def _compared(row: Row, narrow: bool) -> list[str]:
  if row.comparison is None:
    return ['', '', '', '', str(row.mean.count)]
  found = row.comparison
  return [
    format_interval(found.win_rate, '.2f', sign=False),
    format_interval(found.absolute_increase),
    *(
      f'{percentage.estimate:+.0f}'
      if narrow
      else format_interval(percentage, '.0f')
      for percentage in (found.percentage_increase, found.percentage_of_means)
    ),
    str(found.pairs),
  ]
