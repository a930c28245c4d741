"""Memory in huge pages, for programs that XLA runs on a CPU.

XLA takes the memory of each execution from malloc and gives it back, and glibc
hands an amount like that back to Linux: every training step finds its memory
untouched, and Linux maps and clears it page by page. In pages of 4 KiB that was
a third of a tiny model's step. glibc asks for pages of 2 MiB where the tunable
`glibc.malloc.hugetlb` says so, and reads it as the process starts; so the
process starts once more, under the same id, before it has done anything.
"""

from __future__ import annotations

import os
import pathlib
import sys

_TUNABLES = 'GLIBC_TUNABLES'
_HUGE_PAGES = 'glibc.malloc.hugetlb'
# The first glibc that has the tunable.
_GLIBC = (2, 35)
_LINUX = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def restart() -> None:
  """Starts this process again with huge pages; returns where it has them.

  It returns too where there are none to be had (another system or C library,
  or Linux gives huge pages to all or to nobody), and where the environment's
  GLIBC_TUNABLES says anything about them: `glibc.malloc.hugetlb=0` is how to do
  without.
  """
  if not sys.executable or not on_request():
    return
  tunables = with_huge_pages(os.environ.get(_TUNABLES, ''))
  if tunables is None:
    return
  sys.stdout.flush()
  sys.stderr.flush()
  os.execve(
    sys.executable,
    [sys.executable, *sys.orig_argv[1:]],
    {**os.environ, _TUNABLES: tunables},
  )


def with_huge_pages(tunables: str) -> str | None:
  """The value of GLIBC_TUNABLES that asks for huge pages as well.

  >>> with_huge_pages('glibc.malloc.arena_max=2')
  'glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1'

  Args:
    tunables: the value so far, `name=value` divided by colons.
  Returns:
    None where it names huge pages already.
  """
  settings = [setting for setting in tunables.split(':') if setting]
  if any(setting.split('=')[0] == _HUGE_PAGES for setting in settings):
    return None
  return ':'.join([*settings, f'{_HUGE_PAGES}=1'])


def on_request() -> bool:
  """Whether a process has huge pages if its C library asks for them."""
  try:
    library, version = os.confstr('CS_GNU_LIBC_VERSION').split()
    number = tuple(int(part) for part in version.split('.')[:2])
    chosen = _LINUX.read_text()
  except (AttributeError, OSError, ValueError):
    return False
  return library == 'glibc' and number >= _GLIBC and '[madvise]' in chosen
