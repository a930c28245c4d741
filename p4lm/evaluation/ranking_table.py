"""Rankers side by side: a table, paired differences, and what they mean."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from p4lm.evaluation import charts, page, text_tables
from p4lm.evaluation.ranking import CONVENTIONS, RankingResult
from p4lm.evaluation.report import write_files
from p4lm.evaluation.statistics import Interval
from p4lm.evaluation.table_one import (
  Contrast,
  contrast_cells,
  format_interval,
)

LABELS = {
  'ndcg': 'NDCG',
  'recall': 'Recall',
  'hr': 'HR',
  'mrr': 'MRR',
  'precision': 'Precision',
  'recall_truncated': 'Recall (truncated)',
  'coverage': 'Coverage',
}
# Those of the table that have their interval beside them; the intervals of all
# are in results.json.
_WITH_INTERVALS = ('ndcg', 'recall', 'hr')
_MEANS = ('mrr', 'precision', 'recall_truncated')
METHOD = (
  'Means over users with 95% bootstrap intervals, users drawn again with '
  'replacement. Differences are paired by user; a win is a user served better, '
  'ties half.'
)


@dataclasses.dataclass(frozen=True)
class RankingReport:
  """What an evaluation of rankers shows.

  Attributes:
    title: heading.
    lead: one sentence: what was ranked for whom.
    facts: {name: value}: data, catalogue, users and items that were counted.
    results: {ranker: its result}, of the same users.
    unknown_users: {ranker: users that it has no vector of, whose lists are
      empty}.
    cutoffs: each has a table of its own.
    contrasts: paired differences.
    notes: findings and warnings, one sentence each.
    samples, seed: of the bootstrap.
  """

  title: str
  lead: str
  facts: Mapping[str, object]
  results: Mapping[str, RankingResult]
  unknown_users: Mapping[str, int]
  cutoffs: Sequence[int]
  contrasts: Sequence[Contrast]
  notes: Sequence[str]
  samples: int
  seed: int

  @functools.cached_property
  def intervals(self) -> dict[str, dict[str, Interval]]:
    """{ranker: {'ndcg@20': interval of the mean}}."""
    return {
      name: result.intervals(samples=self.samples, seed=self.seed)
      for name, result in self.results.items()
    }

  def as_dict(self) -> dict:
    """JSON values of all figures."""
    return {
      'title': self.title,
      'facts': {name: str(value) for name, value in self.facts.items()},
      'conventions': CONVENTIONS,
      'rankers': {name: self._figures(name) for name in self.results},
      'contrasts': [contrast.as_dict() for contrast in self.contrasts],
      'notes': list(self.notes),
    }

  def metrics(self) -> dict[str, float]:
    """{'RANKER/ndcg_at_20': mean} of all, for metrics.jsonl.

    TensorBoard takes letters, digits and few signs in a name: '_' for others.
    """
    return {
      re.sub(r'[^\w./-]', '_', f'{name}/{metric.replace("@", "_at_")}'): value
      for name, result in self.results.items()
      for metric, value in (result.means() | dict(result.coverage)).items()
    }

  def cells(self, k: int):
    """Header and rows of the table at one cut-off."""
    shown = (*_WITH_INTERVALS, *_MEANS, 'coverage')
    header = ['Ranker', *(f'{LABELS[metric]}@{k}' for metric in shown)]
    body = []
    for name, result in self.results.items():
      means = result.means()
      body.append(
        [
          name,
          *(
            format_interval(self.intervals[name][f'{m}@{k}'], '.4f', sign=False)
            for m in _WITH_INTERVALS
          ),
          *(f'{means[f"{m}@{k}"]:.4f}' for m in _MEANS),
          f'{result.coverage[f"coverage@{k}"]:.4f}',
        ]
      )
    return header, body

  def to_markdown(self) -> str:
    """results.md."""
    parts = [f'# {self.title}', self.lead]
    parts += [f'- {name}: {value}' for name, value in self.facts.items()]
    for k in self.cutoffs:
      parts += [f'## Rankers at {k}', text_tables.markdown(*self.cells(k))]
    parts += [METHOD, f'Conventions: {CONVENTIONS}.']
    if self.contrasts:
      parts += ['## Contrasts', text_tables.markdown(*self._contrast_cells())]
    if self.notes:
      parts += ['## Notes', *(f'- {note}' for note in self.notes)]
    # Items of one list stand together.
    return '\n\n'.join(parts).replace('\n\n- ', '\n- ') + '\n'

  def to_text(self) -> str:
    """What ends a run on the screen."""
    parts = [self.title, self.lead]
    parts.append('\n'.join(f'{n}: {value}' for n, value in self.facts.items()))
    parts += [text_tables.plain(*self.cells(k)) for k in self.cutoffs]
    parts.append(f'Conventions: {CONVENTIONS}.')
    if self.contrasts:
      parts += ['Contrasts', text_tables.plain(*self._contrast_cells())]
    parts += ['\n'.join(f'* {note}' for note in self.notes)] * bool(self.notes)
    return '\n\n'.join(parts)

  def to_html(self) -> str:
    """The page."""
    notes = ''.join(f'<li>{page.escape(note)}</li>' for note in self.notes)
    overview = page.facts(self.facts)
    overview += f'<ul class="findings">{notes}</ul>' if notes else ''
    tables = ''.join(_table_html(*self.cells(k)) for k in self.cutoffs)
    tables += page.paragraph(METHOD, 'note')
    tables += page.paragraph(f'Conventions: {CONVENTIONS}.', 'note')
    compared = ''
    if self.contrasts:
      compared = page.figure(
        charts.forest_chart(self.contrasts), 'Differences with 95% intervals'
      ) + _table_html(*self._contrast_cells())
    return page.page(
      self.title,
      self.lead,
      [
        ('run', 'What was run', overview),
        ('rankers', 'Rankers', tables),
        ('contrasts', 'Contrasts', compared),
      ],
    )

  def write(self, output_dir) -> Path:
    """Writes results.json, results.md and report/index.html; its path."""
    return write_files(
      output_dir, self.as_dict(), self.to_markdown(), self.to_html()
    )

  def _figures(self, name: str) -> dict:
    found = {
      metric: interval.as_dict()
      for metric, interval in self.intervals[name].items()
    }
    return {
      'users': self.results[name].users,
      'unknown_users': self.unknown_users.get(name, 0),
      **found,
      **self.results[name].coverage,
    }

  def _contrast_cells(self):
    """Without the judge, who is one: the held-out ratings."""
    header, body = contrast_cells(self.contrasts, '.4f')
    rows = [[_label(row[1]), *row[2:]] for row in body]
    return ['Metric', *header[2:]], rows


def _label(metric: str) -> str:
  """'NDCG@20' of 'ndcg@20'."""
  name, _, k = metric.partition('@')
  return f'{LABELS.get(name, name)}@{k}'


def _table_html(header, body) -> str:
  rows = [page.row([page.escape(cell) for cell in line]) for line in body]
  return page.table(header, rows)
