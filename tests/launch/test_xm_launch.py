"""The launcher builds the right command lines and XManager really runs them."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys

import pytest

DRIVER = """
import sys
sys.path.insert(0, {launch!r})
from absl import flags
import executors

executors.import_xmanager()
flags.FLAGS(sys.argv[:1])
executor = executors.LocalExecutor(
  parallel={parallel!r}, program=(sys.executable, {program!r})
)
units = [
  executors.Unit('first', ('a b', "q'$HOME", '--gin.A=[1, "x"]'), {{'V': '1'}}),
  executors.Unit('second', ('fail',)),
  executors.Unit('third', ()),
]
print('FAILED', executor.run('test', units))
"""
PROGRAM = """
import json, os, sys, time
start = time.time()
time.sleep(0.5)
with open(os.environ['RECORD'], 'a') as stream:
  print(json.dumps([sys.argv[1:], os.environ.get('V'), start, time.time()]),
        file=stream)
sys.exit(3 if 'fail' in sys.argv else 0)
"""


@pytest.fixture(scope='module')
def launch_dir(repository):
  return repository / 'launch'


@pytest.fixture(scope='module')
def has_xmanager():
  if importlib.util.find_spec('xmanager') is None:
    pytest.skip("xmanager is not installed: pip install 'p4lm[launch]'")


@pytest.fixture
def environment(tmp_path):
  """A home of its own: XManager records experiments in ~/.xmanager."""
  return {
    **os.environ,
    'HOME': str(tmp_path),
    'RECORD': str(tmp_path / 'record'),
  }


def _run(command, environment, cwd):
  return subprocess.run(
    [str(part) for part in command],
    env=environment,
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


@pytest.fixture(scope='module')
def xm_launch(launch_dir):
  """The launcher as a module, without this process's arguments."""
  spec = importlib.util.spec_from_file_location(
    'xm_launch', launch_dir / 'xm_launch.py'
  )
  module = importlib.util.module_from_spec(spec)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'argv', ['xm_launch'])
    # Units are built without XManager; its flags stay out of this process.
    patch.setitem(sys.modules, 'xmanager', None)
    spec.loader.exec_module(module)
  return module


def test_a_job_is_one_unit_with_its_flags_in_order(xm_launch):
  [unit] = xm_launch.build_units(
    'train_lm',
    ['runs/train_lm.gin', 'mine.gin'],
    ['/more'],
    [('STEPS', '3'), ('train_lm.seed', '1')],
    {},
  )
  assert unit.arguments == (
    'train_lm',
    '--gin_file=runs/train_lm.gin',
    '--gin_file=mine.gin',
    '--gin_search_paths=/more',
    '--gin.STEPS=3',
    '--gin.train_lm.seed=1',
  )


def test_a_sweep_is_every_combination_in_directories_of_its_own(xm_launch):
  units = xm_launch.build_units(
    'fit_cf',
    [],
    [],
    [('OUTPUT_DIR', 'out')],
    {'SEED': ['0', '1'], 'RANK': ['8', '16']},
  )
  assert [unit.arguments[2:] for unit in units] == [
    (f'--gin.SEED={s}', f'--gin.RANK={r}', f'--gin.OUTPUT_DIR=out/{d}')
    for s, r, d in [
      (0, 8, 'SEED=0,RANK=8'),
      (0, 16, 'SEED=0,RANK=16'),
      (1, 8, 'SEED=1,RANK=8'),
      (1, 16, 'SEED=1,RANK=16'),
    ]
  ]


def test_a_swept_path_makes_no_directories_elsewhere(xm_launch):
  [unit] = xm_launch.build_units(
    'fit_cf', [], [], [('OUTPUT_DIR', 'out')], {'DATA_DIR': ['../a/b']}
  )
  assert unit.arguments[-1] == '--gin.OUTPUT_DIR=out/DATA_DIR=.._a_b'


@pytest.mark.parametrize(
  'bindings, sweeps, message',
  [
    ([], {'SEED': ['0', '1']}, 'needs --gin.OUTPUT_DIR'),
    ([('OUTPUT_DIR', 'o')], {'SEED': ['1', '1']}, 'same directory twice'),
  ],
)
def test_sweeps_that_would_write_over_each_other(
  xm_launch, bindings, sweeps, message
):
  with pytest.raises(xm_launch.executors.LaunchError, match=message):
    xm_launch.build_units('fit_cf', [], [], bindings, sweeps)


@pytest.mark.parametrize('parallel', [False, True])
def test_units_get_their_arguments_exactly_and_failures_are_named(
  has_xmanager, launch_dir, environment, tmp_path, parallel
):
  program = tmp_path / 'program.py'
  program.write_text(PROGRAM)
  driver = tmp_path / 'driver.py'
  driver.write_text(
    DRIVER.format(
      launch=str(launch_dir), program=str(program), parallel=parallel
    )
  )
  done = _run([sys.executable, driver], environment, tmp_path)
  assert "FAILED ['second']" in done.stdout, done.stdout + done.stderr
  lines = (tmp_path / 'record').read_text().splitlines()
  calls = {tuple(call[0]): call[1:] for call in map(json.loads, lines)}
  arguments = ('a b', "q'$HOME", '--gin.A=[1, "x"]')
  assert set(calls) == {arguments, ('fail',), ()}
  assert calls[arguments][0] == '1' and calls[()][0] is None
  one_ends, next_starts = calls[arguments][2], calls['fail',][1]
  assert parallel == (next_starts < one_ends)


def test_a_job_runs_through_xmanager(
  has_xmanager, launch_dir, environment, tmp_path
):
  done = _run(
    [
      sys.executable,
      launch_dir / 'xm_launch.py',
      'fit_cf',
      '--gin.DATA_DIR',
      'no such place',
      f'--gin.OUTPUT_DIR={tmp_path / "out"}',
    ],
    environment,
    tmp_path,
  )
  # p4lm itself refuses: its message and status come through.
  assert '[fit_cf] p4lm: error:' in done.stdout, done.stdout + done.stderr
  assert 'no such place' in done.stdout
  assert '1 of 1 failed: fit_cf' in done.stderr
  assert done.returncode == 1


def test_the_xmanager_command_starts_the_launcher(
  has_xmanager, launch_dir, environment, tmp_path
):
  program = 'from xmanager.cli import cli; cli.entrypoint()'
  done = _run(
    [sys.executable, '-c', program, 'launch', launch_dir / 'xm_launch.py']
    + ['--', 'fit_fc', '--gin.SEED=1', '--title=typo'],
    environment,
    tmp_path,
  )
  assert "no job 'fit_fc'; did you mean 'fit_cf'" in done.stdout, done.stderr
  assert done.returncode == 1


@pytest.mark.parametrize(
  'arguments, status, message',
  [
    ([], 1, 'name one job'),
    (['train_lm', 'fit_cf'], 1, 'name one job'),
    (['fit_cf', '--gin_fle=x'], 1, "Unknown command line flag 'gin_fle'"),
    (['fit_cf', '--sweep.SEED=1'], 1, 'needs --gin.OUTPUT_DIR'),
  ],
)
def test_bad_usage(
  launch_dir, environment, tmp_path, arguments, status, message
):
  command = [sys.executable, launch_dir / 'xm_launch.py', *arguments]
  done = _run(command, environment, tmp_path)
  assert message in done.stderr + done.stdout
  assert done.returncode == status
  assert 'Traceback' not in done.stderr


def test_without_xmanager_one_sentence_says_what_to_install(
  launch_dir, environment, tmp_path
):
  program = (
    "import sys, runpy; sys.modules['xmanager'] = None; "
    "sys.argv = ['xm_launch.py', 'fit_cf']; "
    f'runpy.run_path({str(launch_dir / "xm_launch.py")!r}, '
    "run_name='__main__')"
  )
  done = _run([sys.executable, '-c', program], environment, tmp_path)
  assert "pip install 'p4lm[launch]'" in done.stderr
  assert 'Traceback' not in done.stderr
  assert done.returncode == 1


def test_launch_never_imports_p4lm(launch_dir):
  """A launcher runs where p4lm and JAX are not installed.

  The benchmark's contenders are programs of their own, which import what they
  measure when they are run and not before.
  """
  for path in launch_dir.rglob('*.py'):
    tree = ast.parse(path.read_text())
    runs_apart = path.parent.name == 'contenders'
    for node in tree.body if runs_apart else ast.walk(tree):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or '']
      tops = {name.split('.')[0] for name in names}
      assert not tops & {'p4lm', 'tasks', 'jax'}, path
