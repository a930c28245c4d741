"""The shell scripts: how they find Python, what they say, what they run."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

TOOLS = ['bash', 'cat', 'cut', 'dirname', 'find', 'head', 'ls', 'mktemp', 'rm']
TOOLS += ['sed', 'sha256sum']


def _bash(arguments, **environment):
  return subprocess.run(
    ['bash', *[str(argument) for argument in arguments]],
    env={**os.environ, **{k: str(v) for k, v in environment.items()}},
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


@pytest.fixture
def quickstart(repository):
  return repository / 'launch' / 'quickstart.sh'


@pytest.fixture
def bare_path(tmp_path):
  """A PATH with the tools of every Linux machine and no Python."""
  directory = tmp_path / 'bin'
  directory.mkdir()
  for tool in TOOLS:
    (directory / tool).symlink_to(shutil.which(tool))
  return directory


def _fake_python(path, version, has_ensurepip=True):
  """A command that answers the questions asked of an interpreter."""
  path.write_text(
    '#!/bin/sh\ncase "$*" in\n'
    f'  *ensurepip*) exit {0 if has_ensurepip else 1} ;;\n'
    f'  *version_info*) exec {sys.executable} -c "'
    'import sys; '
    f'sys.exit(not (3, 11) <= {version} < (3, 14))" ;;\n'
    'esac\n'
  )
  path.chmod(0o755)


def _find_python(repository, bare_path):
  script = f'source {repository}/launch/environment.sh; find_python'
  return _bash(['-c', script], PATH=bare_path, HOME='/nonexistent')


@pytest.mark.parametrize(
  'versions, found',
  [
    ({'python3': (3, 12)}, 'python3'),
    ({'python3': (3, 14), 'python3.13': (3, 13)}, 'python3.13'),
    ({'python3.12': (3, 9), 'python': (3, 11)}, 'python'),
    ({'python3.13': (3, 13), 'python3.11': (3, 11)}, 'python3.11'),
  ],
)
def test_a_suitable_python_is_found(repository, bare_path, versions, found):
  for name, version in versions.items():
    _fake_python(bare_path / name, version)
  if os.path.exists('/usr/local/bin/python3') and found == 'python':
    pytest.skip('/usr/local/bin/python3 comes before the fake interpreter')
  assert _find_python(repository, bare_path).stdout.strip() == found


def test_no_suitable_python_says_how_to_get_one(repository, bare_path):
  if os.path.exists('/usr/local/bin/python3'):
    pytest.skip('/usr/local/bin/python3 is found whatever PATH says')
  _fake_python(bare_path / 'python3', (3, 10))
  done = _find_python(repository, bare_path)
  assert done.returncode == 1
  assert 'needs Python 3.11, 3.12 or 3.13' in done.stderr
  assert 'P4LM_PYTHON=' in done.stderr


def test_a_python_without_its_venv_module_is_named(repository, bare_path):
  if os.path.exists('/usr/local/bin/python3'):
    pytest.skip('/usr/local/bin/python3 is found whatever PATH says')
  _fake_python(bare_path / 'python3', (3, 11), has_ensurepip=False)
  done = _find_python(repository, bare_path)
  assert done.returncode == 1
  assert 'apt-get install python3-venv' in done.stderr


def test_a_directory_in_the_way_is_left_alone(quickstart, tmp_path):
  (tmp_path / 'kept').write_text('x')
  done = _bash([quickstart, f'--venv={tmp_path}'])
  assert done.returncode == 1
  assert f'{tmp_path} is in the way' in done.stderr
  assert os.listdir(tmp_path) == ['kept']


def test_an_unknown_argument_is_named(quickstart):
  done = _bash([quickstart, '--gin_fiel=x'])
  assert done.returncode == 1
  assert 'unknown argument --gin_fiel=x' in done.stderr


@pytest.fixture
def environment_dir(repository, tmp_path):
  """An environment in which everything is installed, with a fake p4lm."""
  directory = tmp_path / 'venv'
  (directory / 'bin').mkdir(parents=True)
  (directory / 'bin' / 'python').symlink_to(sys.executable)
  program = directory / 'bin' / 'p4lm'
  program.write_text(
    '#!/bin/sh\nprintf "%s\\n" "$@" > "$RECORD"\n'
    'mkdir -p "$OUT/evaluation/report"\n'
    'mkdir -p "$OUT/a_reward/report" "$OUT/z_reward/report"\n'
    'for d in evaluation a_reward z_reward; do\n'
    '  touch "$OUT/$d/report/index.html"\ndone\nexit "$STATUS"\n'
  )
  program.chmod(0o755)
  script = f'source {repository}/launch/environment.sh; _fingerprint "$1" ""'
  done = _bash(['-c', script, 'bash', directory])
  (directory / 'p4lm-installed').write_text(done.stdout)
  return directory


@pytest.mark.parametrize(
  'flags, passed',
  [
    ([], ['--gin_file=experiments/world.gin', '--gin.OUTPUT_DIR={out}']),
    (
      ['--gin_file=my own.gin', '--gin.SEED=3'],
      ['--gin.OUTPUT_DIR={out}', '--gin_file=my own.gin', '--gin.SEED=3'],
    ),
  ],
)
def test_quickstart_runs_the_pipeline_and_names_the_report(
  quickstart, environment_dir, tmp_path, flags, passed
):
  out = tmp_path / 'out'
  record = tmp_path / 'record'
  done = _bash(
    [
      quickstart,
      f'--venv={environment_dir}',
      f'--gin.OUTPUT_DIR={out}',
      *flags,
    ],
    RECORD=record,
    OUT=out,
    STATUS=0,
  )
  assert done.returncode == 0, done.stderr
  wanted = ['pipeline', *(flag.format(out=out) for flag in passed)]
  assert record.read_text().splitlines() == wanted
  last = done.stdout.splitlines()[-1]
  assert last.endswith(f'Report: {out}/evaluation/report/index.html')


def test_quickstart_fails_when_the_pipeline_does(
  quickstart, environment_dir, tmp_path
):
  out = tmp_path / 'out'
  done = _bash(
    [quickstart, f'--venv={environment_dir}', f'--gin.OUTPUT_DIR={out}'],
    RECORD=tmp_path / 'record',
    OUT=out,
    STATUS=1,
  )
  assert done.returncode == 1
  assert 'Run the same command again' in done.stderr
  assert 'Done' not in done.stdout


def test_scripts_parse(repository):
  scripts = [*repository.glob('launch/*.sh'), repository / '.ci' / 'run']
  assert len(scripts) >= 5
  for script in scripts:
    assert _bash(['-n', script]).returncode == 0, script


@pytest.fixture(scope='module')
def stand_in(repository):
  path = repository / 'launch' / 'editdistance_pure' / 'editdistance.py'
  spec = importlib.util.spec_from_file_location('editdistance_pure', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _distance(a, b):
  """The definition: the cheapest of the three ways to end an edit."""
  if not a or not b:
    return len(a) + len(b)
  return min(
    _distance(a[1:], b) + 1,
    _distance(a, b[1:]) + 1,
    _distance(a[1:], b[1:]) + (a[0] != b[0]),
  )


@hypothesis.given(
  st.text(alphabet='abc', max_size=5), st.text(alphabet='abc', max_size=5)
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_the_stand_in_for_editdistance_counts_edits(stand_in, a, b):
  assert stand_in.eval(a, b) == _distance(a, b)


def test_the_stand_in_suits_seqio_and_the_lock(repository, stand_in):
  """SeqIO calls `editdistance.eval`; the lock pins the version it claims."""
  assert stand_in.eval('movielens_pitch', 'movielens_pitsch') == 1
  lock = (repository / 'launch' / 'constraints.txt').read_text()
  setup = repository / 'launch' / 'editdistance_pure' / 'setup.py'
  assert 'editdistance==0.8.1\n' in lock
  assert "version='0.8.1+pure'" in setup.read_text()
