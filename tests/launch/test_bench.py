"""The benchmark program runs to its table, and measures what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest


@pytest.fixture(scope='module')
def bench(repository):
  """Runs launch/bench.py with these arguments."""

  def run(*arguments):
    return subprocess.run(
      [sys.executable, str(repository / 'launch' / 'bench.py'), *arguments],
      capture_output=True,
      text=True,
      cwd=repository,
      env=os.environ | {'PYTHONPATH': str(repository)},
      timeout=300,
    )

  return run


def test_small_run_ends_with_a_table(bench, tmp_path):
  output = tmp_path / 'bench'
  core = str(min(os.sched_getaffinity(0)))
  done = bench(
    'wals', 'top_items', '--size=small', '--repeats=1', f'--cores={core}',
    f'--output={output}',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads((output / 'bench.json').read_text())
  by_benchmark = {
    row['benchmark']: row for row in found['rows'] if row['library'] == 'p4lm'
  }
  assert set(by_benchmark) == {'wals', 'top_items'}
  for row in by_benchmark.values():
    assert 0 < row['cpu_secs']['median'] < 60
    # On one core no more CPU time than time passes.
    assert row['cpu_secs']['median'] < 1.2 * row['wall_secs']['median'] + 0.05
    assert 50 < row['peak_mb']['median'] < 4000
  assert found['about']['cores'] == [int(core)]
  assert (output / 'bench.md').read_text().split('\n\n')[1] in done.stdout


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('speed', "no benchmark 'speed'; choose from wals, reading, top_items"),
    ('--size=2m', "no size '2m'; choose from"),
    ('--cores=a', '--cores=a must be numbers'),
    ('--cores=100000', '--cores=100000: no core 100000 here'),
    ('--repeats=0', '--repeats=0 must be 1 or more'),
  ],
)
def test_wrong_arguments_are_told(bench, argument, message):
  done = bench(argument)
  assert done.returncode == 2
  assert message in done.stderr


def test_generated_pairs_are_distinct_and_reproducible(repository, monkeypatch):
  monkeypatch.syspath_prepend(str(repository / 'launch'))
  from contenders import ratings

  pairs = ratings.distinct_pairs(np.random.default_rng(3), 40, 30, 700)
  assert len(np.unique(pairs)) == len(pairs) == 700
  assert 0 <= pairs.min() and pairs.max() < 40 * 30
  again = ratings.distinct_pairs(np.random.default_rng(3), 40, 30, 700)
  np.testing.assert_array_equal(pairs, again)
