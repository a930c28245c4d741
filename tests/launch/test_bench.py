"""The benchmark program runs to its table, and measures what it says."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from p4lm.data import amazon, amazon_release, regen
from p4lm.models.t5_config import T5Config


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


@pytest.fixture
def modules(repository, monkeypatch):
  """Imports a module as the benchmark program or its contenders do."""
  monkeypatch.syspath_prepend(str(repository / 'launch'))
  monkeypatch.syspath_prepend(str(repository / 'launch' / 'contenders'))
  return importlib.import_module


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
  assert found['about']['cores'] == dict.fromkeys(by_benchmark, [int(core)])
  assert (output / 'bench.md').read_text().split('\n\n')[1] in done.stdout


def test_language_models_are_trained_sampled_and_improved(bench, tmp_path):
  output = tmp_path / 'bench'
  core = str(min(os.sched_getaffinity(0)))
  done = bench(
    'training', 'sampling', 'rl', '--size=small', '--repeats=1',
    f'--cores={core}', f'--output={output}',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads((output / 'bench.json').read_text())['rows']
  rows = {(row['benchmark'], row['library']): row for row in found}
  # Rows x (in + out), rows x out, prompts x responses x out.
  wanted = {'training': 2 * (8 + 4), 'sampling': 2 * 4, 'rl': 2 * 2 * 4}
  for benchmark, tokens in wanted.items():
    row = rows[benchmark, 'p4lm']
    assert row['unit'] == 'tokens'
    rate, secs = row['rate']['median'], row['wall_secs']['median']
    assert rate == pytest.approx(tokens / secs)
    assert f'{rate:,.0f} tokens/s' in done.stdout
  phases = rows['rl', 'p4lm']['phases']
  assert set(phases) == {'sample', 'judge', 'reference', 'update'}
  assert all(took['median'] > 0 for took in phases.values())
  for library, benchmark in (('transformers', 'training'), ('trl', 'rl')):
    measured = (benchmark, library) in rows
    note = f'{benchmark} small {library}: not installed, left out'
    assert measured != (note in done.stdout)


def test_repeats_are_summed_up_by_their_medians(modules):
  answers = [
    {
      'what': 'x', 'cpu_secs': cpu, 'wall_secs': wall, 'peak_mb': 5,
      'work': 12, 'unit': 'tokens', 'phases': {'sample': wall / 2},
    }
    for cpu, wall in ((1.0, 2.0), (5.0, 6.0), (3.0, 4.0))
  ]  # fmt: skip
  row = modules('bench')._row(answers)
  assert row['cpu_secs'] == {'median': 3.0, 'least': 1.0, 'most': 5.0}
  assert row['rate'] == {'median': 3.0, 'least': 2.0, 'most': 6.0}
  assert row['phases']['sample'] == {'median': 2.0, 'least': 1.0, 'most': 3.0}


def test_what_a_library_cannot_do_is_left_out_and_no_failure(
  modules, monkeypatch, tmp_path, capsys
):
  bench, measuring = modules('bench'), modules('measuring')
  monkeypatch.setattr(sys, 'argv', ['rl.py', 'trl', 't5_tiny', 'd', 'w'])
  # It would keep this process, which goes on, to its cores and threads.
  monkeypatch.setenv('BENCH_CORES', '0')
  monkeypatch.setattr(os, 'sched_setaffinity', lambda *_: None)
  for name in ('OMP', 'OPENBLAS', 'MKL'):
    monkeypatch.setenv(f'{name}_NUM_THREADS', '1')
  with pytest.raises(SystemExit) as stopped:
    measuring.run({'trl': modules('rl').trl})
  assert 'decoder-only' in capsys.readouterr().err
  monkeypatch.setattr(bench, '_run', lambda *_: (stopped.value.code, {}))
  options = argparse.Namespace(repeats=3, cores={'rl': [0]})
  assert bench._compare('rl', 't5_tiny', tmp_path, options) == ([], 0)
  assert 'rl t5_tiny trl: nothing like it, left out' in capsys.readouterr().out
  # Any other status is a failure of the one that gave it.
  monkeypatch.setattr(bench, '_run', lambda *_: (1, {}))
  assert bench._compare('rl', 't5_tiny', tmp_path, options) == ([], 2)


@pytest.mark.parametrize('name', ['t5_tiny', 'llama_tiny'])
def test_libraries_are_given_models_of_one_size(modules, name):
  pytest.importorskip('transformers', reason="pip install 'p4lm[parity]'")
  torch = pytest.importorskip('torch', reason="pip install 'p4lm[parity]'")
  language_models = modules('language_models')
  make = getattr(language_models, f'torch_{name.split("_")[0]}')
  with torch.device('meta'):
    wanted = sum(p.numel() for p in make(name).parameters())
  abstract = nnx.eval_shape(lambda: language_models.recommender(name))
  params = jax.tree.leaves(nnx.state(abstract, nnx.Param))
  assert sum(math.prod(leaf.shape) for leaf in params) == wanted


def test_sizes_are_those_of_the_gin_files(modules):
  sizes = modules('language_models').sizes
  # T5 1.1 small is what a configuration says by default.
  assert T5Config(**sizes('t5_small')) == T5Config()
  assert sizes('t5_tiny')['scan_unroll'] == 0
  assert sizes('llama_tiny') == {
    'd_model': 128, 'd_ff': 256, 'num_layers': 4, 'num_heads': 4,
    'num_kv_heads': 2, 'd_kv': 32, 'scan_unroll': 0, 'vocab_size': 4096,
  }  # fmt: skip


def test_trivial_reward_is_a_share_of_words(modules):
  share = modules('rl').share_of_words
  assert share('1', 'w1 w12 w21 w3') == 0.5
  assert share('1', '') == 0.0


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


def test_generated_releases_are_what_their_readers_expect(modules, tmp_path):
  releases, ratings = modules('releases'), modules('ratings')
  users, items, count = ratings.SHAPES['small']
  for layout in ('amazon', 'regen'):
    releases.write(tmp_path / layout, f'small_{layout}')
  pairs = ratings.distinct_pairs(np.random.default_rng(0), users, items, count)
  expected = {(f'A{u}', f'B{i}') for u, i in zip(*np.divmod(pairs, items))}
  found = amazon.read_amazon(
    amazon_release.find_release(tmp_path / 'amazon', 'amazon-2018')
  )
  assert _pairs(found.ratings) == expected
  histories = regen.read_regen(
    tmp_path / 'regen' / 'histories.jsonl', max_history=items
  )
  assert _pairs(histories.ratings) == expected
  assert found.dropped.keys() <= {'metadata of an item without reviews'}
  assert not histories.dropped and not histories.unknown_keys


def _pairs(table):
  columns = (table[name].to_pylist() for name in ('user_id', 'item_id'))
  return set(zip(*columns))
