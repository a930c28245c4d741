"""Scores come back as they were written, and several tables become one."""

from __future__ import annotations

import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.evaluation.score_agreement import correlations
from p4lm.evaluation.score_tables import FILE, ScoreTable, pool


def table(offset=0.0, systems=('SFT', 'P4LM'), pairs=3):
  generator = np.random.default_rng(int(offset))
  scores = {
    judge: {
      system: {
        criterion: generator.normal(size=pairs) + offset
        for criterion in ('precision', 'appeal')
      }
      for system in systems
    }
    for judge in ('learned', 'gold')
  }
  scores['gold'][systems[0]]['appeal'][1] = np.nan
  users = [f'u{row}' for row in range(pairs)]
  return ScoreTable(users, ['i', 'j', 'k', 'l'][:pairs], scores)


def test_scores_come_back(tmp_path):
  written = table()
  written.save(tmp_path)
  found = ScoreTable.load(tmp_path)
  assert list(found.users) == written.users
  assert list(found.items) == written.items
  assert {j: list(s) for j, s in found.scores.items()} == {
    j: list(s) for j, s in written.scores.items()
  }
  for judge, by_system in written.scores.items():
    for system, by_criterion in by_system.items():
      for criterion, values in by_criterion.items():
        np.testing.assert_array_equal(
          found.scores[judge][system][criterion], values
        )


def test_pooled_scores_are_those_of_all_pairs():
  one, two = table(1.0), table(2.0, systems=('SFT', 'P4LM', 'More'), pairs=4)
  found = pool({'a': one, 'b': two})
  assert found.users[:3] == ['a/u0', 'a/u1', 'a/u2']
  assert found.users[3:] == ['b/u0', 'b/u1', 'b/u2', 'b/u3']
  assert list(found.scores['gold']) == ['SFT', 'P4LM']
  np.testing.assert_array_equal(
    found.scores['gold']['P4LM']['precision'],
    [
      *one.scores['gold']['P4LM']['precision'],
      *two.scores['gold']['P4LM']['precision'],
    ],
  )


def test_what_cannot_be_pooled_is_told(tmp_path):
  with pytest.raises(UserError, match='no system in common'):
    pool({'a': table(systems=('A',)), 'b': table(systems=('B',))})
  with pytest.raises(UserError, match='does not exist; EVALUATIONS names'):
    ScoreTable.load(tmp_path)
  (tmp_path / FILE).write_bytes(b'no table')
  with pytest.raises(UserError, match='no table of scores'):
    ScoreTable.load(tmp_path)


def test_correlations_by_hand():
  """1 2 3 against 2 4 6 is +1, against 3 2 1 is -1; NaN pairs left out."""
  scores = {
    'learned': {'S': {'a': np.array([1.0, 2, 3, 9])}},
    'gold': {
      'S': {
        'b': np.array([2.0, 4, 6, np.nan]),
        'c': np.array([3.0, 2, 1, np.nan]),
        'd': np.ones(4),
      }
    },
  }
  names, found = correlations(scores, ['S'])
  assert names == ['learned a', 'gold b', 'gold c', 'gold d']
  np.testing.assert_allclose(found[0, :3], [1, 1, -1])
  np.testing.assert_allclose(found[2, :3], [-1, -1, 1])
  assert np.isnan(found[3]).all() and np.isnan(found[:, 3]).all()
