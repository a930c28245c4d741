"""Which systems give up nothing for what they have: the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p4lm.evaluation import charts
from p4lm.evaluation.sections import Section
from p4lm.evaluation.statistics import finite_or_none
from p4lm.evaluation.table_one import Scores, label

_AXES = ('precision', 'personalization')
_NOTE = (
  'A system is on the front if no other has a higher mean in one of the two '
  'scores and none lower in the other. Means without their errors: neighbours '
  'on the front may not be apart.'
)


def front(points: np.ndarray) -> np.ndarray:
  """bool [N]: points [N, K] that no other point dominates; more is better.

  A point dominates another if it is nowhere lower and somewhere higher; equal
  points do not dominate each other, and a point with NaN is never on the front.

  >>> front(np.array([[1.0, 3.0], [2.0, 2.0], [1.5, 1.5], [2.0, 2.0]])).tolist()
  [True, True, False, True]
  """
  points = np.asarray(points, np.float64)
  known = np.isfinite(points).all(axis=1)
  left, right = points[:, None, :], points[None, :, :]
  dominated = (right >= left).all(axis=2) & (right > left).any(axis=2)
  return known & ~(dominated & known[None, :]).any(axis=1)


def section(scores: Scores, systems: Sequence[str], judge: str) -> Section:
  """The report's part on two scores of systems.

  Args:
    scores: {system: {criterion: float [M]}}.
    systems: those to compare.
    judge: who scored, 'learned' or 'gold'.
  """
  means = np.array(
    [[np.nanmean(scores[s][criterion]) for criterion in _AXES] for s in systems]
  )
  on_front = front(means)
  rows = [
    [system, *(f'{value:.3f}' for value in values), 'front' if best else '']
    for system, values, best in zip(systems, means, on_front)
  ]
  names = [label(criterion, judge) for criterion in _AXES]
  return Section(
    'pareto',
    f'Precision against personalization ({judge})',
    ['System', *names, ''],
    rows,
    _NOTE,
    {
      'Mean scores of every system; the front is drawn through': (
        charts.front_chart(systems, means, on_front, names)
      )
    },
    {
      'judge': judge,
      'front': [s for s, best in zip(systems, on_front) if best],
      'means': {
        system: [finite_or_none(float(value)) for value in values]
        for system, values in zip(systems, means)
      },
    },
  )
