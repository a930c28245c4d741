"""Table 1 and contrasts on scores whose answers are plain."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.evaluation import text_tables
from p4lm.evaluation.table_one import (
  CRITERIA,
  Contrast,
  contrast_cells,
  contrasts,
  table_one,
)

M = 120


@pytest.fixture(scope='module')
def scores():
  """P4LM is 0.3 above SFT, with shared noise; SFT equals the writer."""
  generator = np.random.default_rng(0)
  base = generator.normal(size=(len(CRITERIA), M))
  found = {}
  for system, gain in (('SFT', 0.0), ('P4LM', 0.3), ('Writer', 0.0)):
    noise = generator.normal(scale=0.2, size=base.shape)
    found[system] = dict(zip(CRITERIA, base + gain + noise))
  found['SFT']['appeal'] = np.where(np.arange(M) < 5, np.nan, base[2])
  return found


@pytest.fixture(scope='module')
def table(scores):
  return table_one(scores, baseline='Writer', samples=500)


def test_rows(scores, table):
  assert len(table.rows) == 3 * 4
  assert [r.system for r in table.rows[:3]] == ['Writer', 'SFT', 'P4LM']
  assert table.row('Writer', 'precision').comparison is None
  row = table.row('P4LM', 'precision')
  values = scores['P4LM']['precision']
  gain = values - scores['Writer']['precision']
  assert row.mean.mean == pytest.approx(values.mean())
  assert row.mean.standard_error == pytest.approx(
    values.std(ddof=1) / np.sqrt(M)
  )
  found = row.comparison
  assert found.absolute_increase.estimate == pytest.approx(gain.mean())
  assert found.win_rate.estimate == pytest.approx((gain > 0).mean())
  assert found.absolute_increase.lies_apart_from(0.0)
  assert table.row('SFT', 'appeal').mean.count == M - 5
  assert table.row('SFT', 'appeal').comparison.pairs == M - 5


def test_pairing_makes_intervals_narrow(table):
  """Unpaired, the noise of the pairs (sd 1) would hide the gain of 0.3."""
  found = table.row('P4LM', 'relevance').comparison.absolute_increase
  assert found.high - found.low < 0.15


def test_json_has_no_nan(table):
  text = json.dumps(table.as_dict(), allow_nan=False)
  assert json.loads(text)['baseline'] == 'Writer'
  none = table_one(
    {'a': {'x': np.array([np.nan])}, 'b': {'x': np.array([1.0])}},
    baseline='b', criteria=['x'], samples=10,
  )  # fmt: skip
  json.dumps(none.as_dict(), allow_nan=False)


def test_markdown_and_terminal(table):
  lines = table.to_markdown().splitlines()
  assert len(lines) == 2 + 12
  assert {line.count('|') for line in lines} == {9}
  text = table.to_text()
  assert 'Precision (NLI)' in text and '±' in text
  # The baseline's row ends early; a blank line parts the criteria.
  assert text.count('\n\n') == 3
  starts = {line.index('SFT') for line in text.splitlines() if 'SFT ' in line}
  assert len(starts) == 1


def test_contrasts_and_verdicts(scores):
  found = contrasts(
    scores, [('P4LM', 'SFT'), ('SFT', 'Writer')], judge='gold', samples=500
  )
  assert len(found) == 8
  by_key = {(c.first, c.criterion): c for c in found}
  assert by_key['P4LM', 'precision'].verdict == 'higher'
  assert by_key['SFT', 'precision'].verdict == 'not apart'
  (flipped,) = contrasts(
    scores, [('SFT', 'P4LM')], judge='gold', criteria=['precision'],
    samples=500,
  )  # fmt: skip
  assert flipped.verdict == 'lower'
  assert flipped.difference.estimate == pytest.approx(
    -by_key['P4LM', 'precision'].difference.estimate
  )
  header, rows = contrast_cells(found)
  assert {len(row) for row in rows} == {len(header)}
  assert isinstance(found[0], Contrast)
  json.dumps([c.as_dict() for c in found], allow_nan=False)


def test_users_are_resampled_whole(scores):
  users = np.repeat(np.arange(M // 10), 10)
  narrow = table_one(scores, baseline='Writer', samples=500)
  wide = table_one(scores, baseline='Writer', samples=500, clusters=users)
  row = ('P4LM', 'precision')
  assert wide.row(*row).mean == narrow.row(*row).mean
  assert wide.row(*row).comparison != narrow.row(*row).comparison


def test_bad_input(scores):
  with pytest.raises(UserError, match="baseline 'PaLM' has no scores"):
    table_one(scores, baseline='PaLM')
  with pytest.raises(UserError, match="no scores for 'precision'"):
    table_one({'a': {}}, baseline='a')
  uneven = {'a': {'x': np.zeros(2)}, 'b': {'x': np.zeros(3)}}
  with pytest.raises(UserError, match='different numbers of pairs'):
    table_one(uneven, baseline='a', criteria=['x'])
  with pytest.raises(UserError, match="no scores of 'X'"):
    contrasts(scores, [('X', 'SFT')], judge='gold')


def test_tables_of_text():
  assert doctest.testmod(text_tables).failed == 0
  text = text_tables.plain(['a', 'bb'], [['映', '1'], ['xyz', '2']])
  lines = text.splitlines()
  assert lines[2] == '映   1'
  assert lines[3] == 'xyz  2'
