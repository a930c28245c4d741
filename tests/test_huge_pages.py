"""A process that starts itself again with memory in huge pages."""

import os
import subprocess
import sys

import pytest

from p4lm import huge_pages, main

# Prints its id and its arguments, then (of 64 MiB from malloc, touched) how
# many KiB are in huge pages.
PROGRAM = """
import ctypes, os, sys
print(os.getpid(), *sys.argv[1:], flush=True)
from p4lm import huge_pages
huge_pages.restart()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = 64 << 20
libc.memset(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size))), 1, size)
lines = open('/proc/self/smaps_rollup').read().splitlines()
print(*[line.split()[1] for line in lines if line.startswith('AnonHuge')])
"""


def lines_of(tunables: str) -> list[str]:
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, 'one', 'two words'],
    env={**os.environ, 'GLIBC_TUNABLES': tunables},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return done.stdout.splitlines()


@pytest.mark.skipif(
  not huge_pages.on_request(),
  reason='needs glibc 2.35 and Linux that gives huge pages on request '
  '([madvise] in /sys/kernel/mm/transparent_hugepage/enabled)',
)
def test_large_amounts_of_memory_come_in_huge_pages_after_one_restart():
  lines = lines_of('')
  # The program ran twice, as the same process and with the same arguments.
  assert len(lines) == 3 and lines[0] == lines[1]
  assert lines[0].endswith('one two words')
  # glibc's amount need not begin on a border: one huge page less.
  assert int(lines[2]) >= 62 * 1024


def test_who_says_no_to_huge_pages_has_none():
  lines = lines_of('glibc.malloc.hugetlb=0')
  assert len(lines) == 2 and lines[1] == '0'


def test_other_tunables_stay():
  with_huge_pages = huge_pages.with_huge_pages
  assert with_huge_pages('') == 'glibc.malloc.hugetlb=1'
  assert with_huge_pages('a=1:b=2') == 'a=1:b=2:glibc.malloc.hugetlb=1'
  assert with_huge_pages('a=1:glibc.malloc.hugetlb=2') is None
  assert with_huge_pages('glibc.malloc.hugetlb=0') is None


def test_jobs_of_language_models_restart_from_the_command_line(
  monkeypatch, capsys
):
  restarts = []
  monkeypatch.setattr(huge_pages, 'restart', lambda: restarts.append(1))

  def run(*arguments):
    monkeypatch.setattr(sys, 'argv', ['p4lm', *arguments])
    return main.main()

  assert run('infer') == 1
  assert 'needs a value' in capsys.readouterr().err
  assert restarts == [1]
  # Help answers at once; other jobs and callers from Python stay as they are.
  assert run('infer', '--help') == 0
  assert run('fit_cf') == 1
  assert main.main(['infer']) == 1
  assert restarts == [1]
