"""The front against its definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from p4lm.evaluation import pareto

_POINTS = st.lists(
  st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12
)


@given(_POINTS)
def test_front_is_what_no_point_dominates(points):
  def dominates(a, b):
    return a[0] >= b[0] and a[1] >= b[1] and a != b

  found = pareto.front(np.array(points, float))
  for point, on_front in zip(points, found):
    assert on_front == (not any(dominates(other, point) for other in points))


def test_a_point_with_nan_neither_is_on_the_front_nor_keeps_others_off():
  points = np.array([[np.nan, 9.0], [1.0, 1.0], [0.0, 0.0]])
  assert pareto.front(points).tolist() == [False, True, False]


def test_section_marks_the_front():
  scores = {
    'SFT': {'precision': np.array([0.2, 0.4]), 'personalization': np.ones(2)},
    'P4LM': {
      'precision': np.array([0.5, np.nan]),
      'personalization': np.ones(2),
    },
  }
  found = pareto.section(scores, ['SFT', 'P4LM'], 'gold')
  assert found.rows == [
    ['SFT', '0.300', '1.000', ''],
    ['P4LM', '0.500', '1.000', 'front'],
  ]
  assert found.figures['front'] == ['P4LM']
