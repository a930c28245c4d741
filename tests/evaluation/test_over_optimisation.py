"""Windows of a run's samples, by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.evaluation import over_optimisation as curves


def sample(step, kl, reward, text='x'):
  return curves.SampledText(step, 'u', 'i', text, kl, reward)


def lengths(samples):
  return {'length': np.array([float(len(s.text)) for s in samples])}


def test_windows_by_hand():
  samples = [
    sample(0, 0.0, 1.0, 'a'),
    sample(0, 2.0, 3.0, 'abc'),
    sample(1, 4.0, 5.0, 'abcd'),
    sample(2, 9.0, 7.0, 'ab'),
  ]
  first, last = curves.windows(samples, lengths, count=2)
  assert (first.steps, last.steps) == ((0, 1), (2, 2))
  assert first.kl == 2.0 and last.distance == 3.0
  assert first.reward == pytest.approx((3.0, 2 / math.sqrt(3)))
  mean, error = first.unseen['length']
  assert mean == pytest.approx(8 / 3)
  assert error == pytest.approx(np.std([1, 3, 4], ddof=1) / math.sqrt(3))
  assert last.unseen['length'] == (2.0, 0.0)
  assert curves.best_window([first, last], 'length') == 0


def test_a_fall_is_told_from_noise():
  def window(mean, error):
    return curves.Window((0, 0), 1.0, (0.0, 0.0), {'gold': (mean, error)})

  rising = window(0.5, 0.03)
  # Twice the standard error of the difference is 0.0848.
  assert curves.has_fallen([rising, window(0.41, 0.03)], 'gold')
  assert not curves.has_fallen([rising, window(0.42, 0.03)], 'gold')
  assert not curves.has_fallen([window(0.41, 0.03), rising], 'gold')


def test_many_samples_are_thinned_for_the_unseen_score_alone():
  seen = []

  def score(samples):
    seen.append(len(samples))
    return lengths(samples)

  samples = [sample(0, 1.0, float(k)) for k in range(100)]
  (window,) = curves.windows(samples, score, count=4, most=30)
  assert seen == [25]
  assert window.reward[0] == pytest.approx(49.5)


def test_a_negative_sampled_kl_is_no_distance():
  (window,) = curves.windows([sample(0, -0.5, 1.0)], lengths)
  assert window.kl == -0.5 and window.distance == 0.0


def test_samples_are_read_without_the_masked_ones(tmp_path):
  row = {
    'step': 3, 'user_id': 'u', 'item_id': 'i', 'text': 't', 'kl': 0.5,
    'reward': 1.5, 'valid': True,
  }  # fmt: skip
  path = tmp_path / 'samples.jsonl'
  path.write_text(
    json.dumps(row) + '\n' + json.dumps(row | {'valid': False}) + '\n'
  )
  runs = {'p4lm': str(tmp_path), 'sft': str(tmp_path / 'none')}
  found = curves.read_runs(runs)
  assert found == {'p4lm': [curves.SampledText(3, 'u', 'i', 't', 0.5, 1.5)]}
  path.write_text('{"step": 1}\n')
  with pytest.raises(UserError, match='line 1: no sample of train_rl'):
    curves.read_runs(runs)


def test_section_shows_every_score_of_every_policy():
  samples = [sample(step, step, step, 'x' * (step + 1)) for step in range(6)]
  found = curves.windows(samples, lengths, count=3)
  section = curves.section({'p4lm': found, 'other': found}, 'gold')
  assert [row[0] for row in section.rows] == ['p4lm', 'other']
  assert all(svg.startswith('<svg') for svg in section.charts.values())
  assert json.dumps(section.figures, allow_nan=False)
  assert '4 to 5' in section.rows[0]
