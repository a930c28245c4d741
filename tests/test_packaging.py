"""A wheel carries all that p4lm needs; the lock fits setup.py; help is fast."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile

import pytest
from packaging.requirements import Requirement

from p4lm import gin_files
from p4lm.errors import UserError

BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_wheel(sys.argv[1]))
"""
SOURCES = ['p4lm', 'tasks', 'gin']
# Left out of the lock: their builds depend on the machine.
MACHINE_EXTRAS = {'gpu', 'tpu', 'parity', 'bench'}


@pytest.fixture(scope='module')
def wheel(repository, tmp_path_factory):
  """A wheel built offline from a copy: a build writes beside its sources."""
  copy = tmp_path_factory.mktemp('sources')
  for name in SOURCES:
    shutil.copytree(
      repository / name,
      copy / name,
      ignore=shutil.ignore_patterns('__pycache__'),
    )
  for name in ['setup.py', 'pyproject.toml', 'README.md', 'LICENSE']:
    shutil.copy(repository / name, copy / name)
  done = subprocess.run(
    [sys.executable, '-c', BUILD, str(copy)],
    cwd=copy,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return next(copy.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """The unpacked wheel, as an installer lays it out."""
  directory = tmp_path_factory.mktemp('site')
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(directory)
  return directory


def _files(directory, repository):
  return {
    path.relative_to(repository)
    for path in (repository / directory).rglob('*')
    if path.is_file() and '__pycache__' not in path.parts
  }


def test_the_wheel_has_every_source_file(installed, repository):
  wanted = _files('p4lm', repository) | _files('tasks', repository)
  missing = [str(p) for p in sorted(wanted) if not (installed / p).is_file()]
  assert not missing


def test_the_wheel_has_every_gin_file_and_no_package_gin(installed, repository):
  wanted = {p.relative_to('gin') for p in _files('gin', repository)}
  carried = _files('p4lm/_gin', installed)
  assert {p.relative_to('p4lm/_gin') for p in carried} == wanted
  assert {p.suffix for p in wanted} == {'.gin'}
  assert not (installed / 'gin').exists()


def test_an_installed_p4lm_works_from_any_directory(installed, tmp_path):
  program = (
    'import p4lm, gin; from p4lm import gin_files, main; '
    "print(p4lm.__file__); assert hasattr(gin, 'parse_config'); "
    "assert main.main(['pipeline', '--help']) == 0"
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(installed)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(str(installed / 'p4lm'))
  assert 'OUTPUT_DIR' in done.stdout


def _metadata(installed):
  [path] = installed.glob('*.dist-info/METADATA')
  return path.parent, email.message_from_string(path.read_text('utf-8'))


def test_the_wheel_names_its_command_licence_and_pythons(installed):
  directory, metadata = _metadata(installed)
  commands = (directory / 'entry_points.txt').read_text()
  assert 'p4lm = p4lm.main:console_main' in commands
  assert metadata['License-Expression'] or metadata['License'] == 'Apache-2.0'
  assert 'Apache License' in next(directory.rglob('LICENSE')).read_text()
  assert set(metadata['Requires-Python'].split(',')) == {'>=3.11', '<3.14'}


def _lock(repository):
  lines = (repository / 'launch' / 'constraints.txt').read_text().splitlines()
  pins = [line for line in lines if not line.startswith('#')]
  assert all(re.fullmatch(r'[a-z0-9._-]+==[\w.+!]+', pin) for pin in pins)
  pinned = dict(pin.split('==') for pin in pins)
  assert len(pinned) == len(pins)
  return pinned


def test_the_lock_pins_a_fitting_version_of_every_requirement(
  installed, repository
):
  pinned = _lock(repository)
  _, metadata = _metadata(installed)
  checked = 0
  for line in metadata.get_all('Requires-Dist'):
    extra = re.search(r'extra == "(\w+)"', line)
    if extra and extra.group(1) in MACHINE_EXTRAS:
      continue
    requirement = Requirement(line)
    name = requirement.name.lower().replace('_', '-')
    assert name in pinned, f'{line}: run launch/lock.sh'
    assert requirement.specifier.contains(pinned[name]), line
    checked += 1
  assert checked > 20


def test_every_directory_of_modules_is_a_package(repository):
  """setup.py leaves out directories without `__init__.py`, silently."""
  for top in ['p4lm', 'tasks']:
    for module in (repository / top).rglob('*.py'):
      assert (module.parent / '__init__.py').is_file(), module


def test_gin_is_no_package(repository):
  """It would shadow gin-config wherever the checkout is on the path."""
  assert not list((repository / 'gin').rglob('*.py'))


def test_gin_files_of_a_checkout(repository):
  assert gin_files.gin_roots() == [repository / 'gin']


def test_gin_files_that_are_missing(monkeypatch, tmp_path):
  monkeypatch.setattr(gin_files, '__file__', str(tmp_path / 'p4lm' / 'x.py'))
  with pytest.raises(UserError, match='without its gin files.*install it'):
    gin_files.gin_roots()


def test_help_takes_less_than_two_seconds(tmp_path):
  secs = []
  for _ in range(3):
    started = time.perf_counter()
    done = subprocess.run(
      [sys.executable, '-m', 'p4lm.main', '--help'],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      check=True,
    )
    secs.append(time.perf_counter() - started)
  assert 'usage: p4lm JOB' in done.stdout
  # The best of three: other work on the machine slows single starts.
  assert min(secs) < 2


def test_help_imports_nothing_heavy(tmp_path):
  program = (
    'import sys; from p4lm import main; main.main(["--help"]); '
    'heavy = {"jax", "tensorflow", "seqio", "flax", "numpy", "gin"}; '
    'assert not heavy & set(sys.modules), heavy & set(sys.modules)'
  )
  subprocess.run(
    [sys.executable, '-c', program],
    cwd=tmp_path,
    stdout=subprocess.DEVNULL,
    check=True,
  )
