"""Evaluations of the same systems, such as of several seeds, as one table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from p4lm.errors import UserError
from p4lm.evaluation import pareto, score_agreement, table_one
from p4lm.evaluation.report import Report
from p4lm.evaluation.score_tables import ScoreTable, pool
from p4lm.evaluation.sections import Section

_NOTE = (
  'The mean difference of each evaluation alone, and the deviation between '
  'them. Intervals of the tables above resample users within the evaluations '
  'that there are: they speak of these runs, not of further seeds.'
)


def pooled_report(
  evaluations: Mapping[str, str],
  *,
  baseline: str,
  shuffled: str,
  contrasts: Sequence[tuple[str, str]],
  seed: int,
) -> Report:
  """The paper's tables over all pairs of all evaluations.

  Args:
    evaluations: {name: directory that evaluate wrote for SYSTEMS}.
    baseline: the system that the tables compare with.
    shuffled: suffix of systems that the tables leave out.
    contrasts: (first, second) systems; none means those that every evaluation
      has.
    seed: of the bootstrap.
  Raises:
    UserError: a directory without scores, a contrast that names no system.
  """
  tables = {name: ScoreTable.load(path) for name, path in evaluations.items()}
  pooled = pool(tables)
  contrasts = contrasts or _common_contrasts(evaluations.values())
  options = {'clusters': np.array(pooled.users), 'seed': seed}
  by_judge, compared = {}, []
  for judge, scores in pooled.scores.items():
    if baseline not in scores:
      raise UserError(f'the evaluations have no scores of {baseline!r}')
    shown = {s: v for s, v in scores.items() if not s.endswith(shuffled)}
    by_judge[judge] = table_one.table_one(
      shown, baseline=baseline, judge=judge, **options
    )
  for judge, scores in reversed(pooled.scores.items()):
    compared += table_one.contrasts(scores, contrasts, judge=judge, **options)
  systems = [
    system
    for system in next(iter(pooled.scores.values()))
    if not system.endswith(shuffled)
  ]
  sections = comparing_sections(pooled.scores, systems)
  if contrasts:
    sections.insert(0, _by_evaluation(tables, contrasts))
  return Report(
    title='P4LM, several evaluations',
    lead=f'{len(tables)} evaluations of {len(pooled.users)} pairs in all.',
    facts={
      'evaluations': ', '.join(tables),
      'pairs': len(pooled.users),
      'users': len(set(pooled.users)),
      'seed': seed,
    },
    table=by_judge['learned'],
    gold=by_judge.get('gold'),
    contrasts=compared,
    sections=sections,
  )


def _common_contrasts(directories: Iterable[str]) -> list[tuple[str, str]]:
  """The contrasts that every evaluation reports, in the order of the first."""
  reported = [_reported_contrasts(Path(path)) for path in directories]
  return [pair for pair in reported[0] if all(pair in r for r in reported)]


def _reported_contrasts(directory: Path) -> list[tuple[str, str]]:
  try:
    results = json.loads((directory / 'results.json').read_text())
    rows = [(row['first'], row['second']) for row in results['contrasts']]
  except (OSError, ValueError, KeyError, TypeError):
    return []  # The scores are all that is needed.
  return list(dict.fromkeys(rows))


def comparing_sections(
  scores: Mapping[str, table_one.Scores], systems: Sequence[str]
) -> list[Section]:
  """The parts of a report that set systems and scores against each other.

  Args:
    scores: {judge: {system: {criterion: float [M]}}}.
    systems: those to show.
  """
  judge = 'gold' if 'gold' in scores else 'learned'
  return [
    pareto.section(scores[judge], systems, judge),
    score_agreement.section(scores, systems),
  ]


def _by_evaluation(tables: Mapping[str, ScoreTable], contrasts) -> Section:
  rows, figures = [], []
  judges = next(iter(tables.values())).scores
  for judge in reversed(judges):
    for criterion in table_one.CRITERIA:
      for first, second in contrasts:
        gaps = [
          float(
            np.nanmean(
              table.scores[judge][first][criterion]
              - table.scores[judge][second][criterion]
            )
          )
          for table in tables.values()
        ]
        spread = float(np.std(gaps, ddof=1)) if len(gaps) > 1 else 0.0
        rows.append(
          [
            judge,
            table_one.label(criterion, judge),
            f'{first} − {second}',
            *(f'{gap:+.3f}' for gap in gaps),
            f'{np.mean(gaps):+.3f}',
            f'{spread:.3f}',
          ]
        )
        figures.append(
          {
            'judge': judge,
            'criterion': criterion,
            'first': first,
            'second': second,
            'differences': gaps,
            'deviation': spread,
          }
        )
  header = [
    'Judge', 'Criterion', 'Contrast', *tables, 'Mean', 'Deviation',
  ]  # fmt: skip
  return Section(
    'by_evaluation',
    'Differences by evaluation',
    header,
    rows,
    _NOTE,
    {},
    {'differences': figures},
  )
