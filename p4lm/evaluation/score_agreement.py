"""How far scores agree with one another: their correlations over all texts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from p4lm.evaluation.sections import Section
from p4lm.evaluation.table_one import Scores

_NOTE = (
  'Pearson correlation over the texts of all systems; a learned score that '
  'follows what it stands for agrees with the gold score of its name.'
)


def correlations(
  scores: Mapping[str, Scores], systems
) -> tuple[list[str], np.ndarray]:
  """Names of N scores and their correlations, float64 [N, N].

  NaN where a score is the same for all texts, or fewer than 3 have both.

  Args:
    scores: {judge: {system: {criterion: float [M]}}}.
    systems: whose texts count.
  """
  names, columns = [], []
  for judge, by_system in scores.items():
    for criterion in next(iter(by_system.values())):
      names.append(f'{judge} {criterion}')
      columns.append(
        np.concatenate([by_system[system][criterion] for system in systems])
      )
  found = np.full((len(names), len(names)), np.nan)
  for row, left in enumerate(columns):
    for column, right in enumerate(columns):
      both = np.isfinite(left) & np.isfinite(right)
      a, b = left[both], right[both]
      if len(a) > 2 and a.std() > 0 and b.std() > 0:
        found[row, column] = np.corrcoef(a, b)[0, 1]
  return names, found


def section(scores: Mapping[str, Scores], systems) -> Section:
  """The report's matrix."""
  names, found = correlations(scores, systems)
  rows = [
    [name, *('' if np.isnan(v) else f'{v:+.2f}' for v in values)]
    for name, values in zip(names, found)
  ]
  figures = {
    name: {
      other: None if np.isnan(value) else float(value)
      for other, value in zip(names, values)
    }
    for name, values in zip(names, found)
  }
  return Section(
    'agreement', 'Agreement of scores', ['', *names], rows, _NOTE, {}, figures
  )
