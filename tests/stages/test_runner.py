"""The graph runs in order, side by side, once, and says what failed."""

import json
import os
import sys

import pytest

from p4lm.errors import UserError
from p4lm.stages.display import Display
from p4lm.stages.graph import Stage, check_graph, stages_without_company
from p4lm.stages.runner import Runner

# A stand-in for `p4lm JOB`: records its call, its cores and its start.
SCRIPT = """
import json, os, pathlib, sys, time
job, values = sys.argv[1], dict(
  a[len('--gin.'):].split('=', 1) for a in sys.argv[2:])
out = pathlib.Path(eval(values['OUTPUT_DIR']))
out.mkdir(parents=True, exist_ok=True)
if job == 'fail':
  print('p4lm: error: the item table is empty'); sys.exit(1)
time.sleep(float(values.get('SLEEP', 0)))
with (out / 'calls.jsonl').open('a') as stream:
  print(json.dumps({'time': time.time(), 'values': values,
                    'bytecode': sys.pycache_prefix,
                    'without_bytecode': sys.dont_write_bytecode,
                    'cores': sorted(os.sched_getaffinity(0))}), file=stream)
"""


@pytest.fixture
def runner(tmp_path):
  script = tmp_path / 'job.py'
  script.write_text(SCRIPT)
  (tmp_path / 'run').mkdir()

  def make(parallel=2):
    return Runner(
      tmp_path / 'run', parallel, Display(3), [sys.executable, str(script)]
    )

  return make


def stage(name, job='ok', after=(), **bindings):
  return Stage(name, job, f'about {name}', bindings, tuple(after))


def calls(tmp_path, name):
  path = tmp_path / 'run' / name / 'calls.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_stage_starts_after_what_it_reads(runner, tmp_path):
  stages = [stage('a', SLEEP=0.3), stage('b'), stage('c', after=['a', 'b'])]
  runner().run(stages)
  times = {n: calls(tmp_path, n)[0]['time'] for n in 'abc'}
  assert max(times['a'], times['b']) < times['c']


@pytest.mark.skipif(
  len(os.sched_getaffinity(0)) < 2, reason='needs a machine with two cores'
)
def test_each_stage_keeps_to_its_share_of_the_cores(runner, tmp_path):
  runner().run([stage('a', SLEEP=0.2), stage('b', SLEEP=0.2)])
  first, second = (set(calls(tmp_path, n)[0]['cores']) for n in 'ab')
  assert first and second and not first & second


@pytest.mark.skipif(
  len(os.sched_getaffinity(0)) < 2, reason='needs a machine with two cores'
)
def test_a_stage_that_always_runs_alone_has_every_core(runner, tmp_path):
  diamond = [
    stage('a'),
    stage('b', after=['a']),
    stage('c', after=['a']),
    stage('d', after=['b', 'c']),
  ]
  runner().run(diamond)
  every = sorted(os.sched_getaffinity(0))
  for name, alone in (('a', True), ('b', False), ('c', False), ('d', True)):
    assert (calls(tmp_path, name)[0]['cores'] == every) is alone, name


def test_company_is_a_stage_that_is_neither_before_nor_after():
  chain = [stage('a'), stage('b', after=['a']), stage('c', after=['b'])]
  assert stages_without_company(chain) == {'a', 'b', 'c'}
  # `e` may run beside b and c, though not beside a.
  assert stages_without_company([*chain, stage('e', after=['a'])]) == {'a'}
  assert stages_without_company([stage('a'), stage('b')]) == set()


def test_stages_share_bytecode_where_none_may_be_written(
  runner, tmp_path, monkeypatch
):
  monkeypatch.setenv('PYTHONDONTWRITEBYTECODE', '1')
  monkeypatch.delenv('PYTHONPYCACHEPREFIX', raising=False)
  runner().run([stage('a')])
  found = calls(tmp_path, 'a')[0]
  assert found['bytecode'] == str(tmp_path / 'run' / 'compiled' / 'bytecode')
  assert not found['without_bytecode']
  monkeypatch.delenv('PYTHONDONTWRITEBYTECODE')
  runner().run([stage('b')])
  assert calls(tmp_path, 'b')[0]['bytecode'] is None


def test_finished_stages_are_kept_and_changed_ones_run(runner, tmp_path):
  runner().run([stage('a'), stage('b', after=['a'])])
  runner().run([stage('a'), stage('b', after=['a'])])
  assert len(calls(tmp_path, 'a')) == len(calls(tmp_path, 'b')) == 1
  runner().run([stage('a', X=1), stage('b', after=['a'])])
  assert len(calls(tmp_path, 'a')) == len(calls(tmp_path, 'b')) == 2


def test_a_failure_shows_the_reason_and_keeps_the_rest(runner, tmp_path):
  stages = [stage('a'), stage('bad', 'fail', after=['a'])]
  with pytest.raises(UserError, match='bad ended with status 1: the item ta'):
    runner().run(stages)
  assert (tmp_path / 'run' / 'a' / 'done.json').exists()
  assert not (tmp_path / 'run' / 'bad' / 'done.json').exists()


def test_a_graph_is_checked_before_it_runs():
  with pytest.raises(UserError, match='no earlier stage makes'):
    check_graph([stage('a', after=['b']), stage('b')])
  with pytest.raises(UserError, match="two stages are named 'a'"):
    check_graph([stage('a'), stage('a')])
