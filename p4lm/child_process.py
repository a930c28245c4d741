"""Processes that p4lm starts end with the one that started them.

A killed pipeline must not leave a stage behind that goes on writing where the
next start writes too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PARENT = 'P4LM_PARENT'
_PR_SET_PDEATHSIG = 1
# Memory that is given back to Linux between batches must be cleared for the
# next one, which TensorFlow's large batches wait for.
_KEEP_MEMORY = ':'.join(
  f'glibc.malloc.{name}={value}'
  for name, value in (
    ('hugetlb', 1),
    ('mmap_threshold', 1 << 25),
    ('trim_threshold', 1 << 32),
  )
)


def environment() -> dict[str, str]:
  """What to add to a child's environment for `end_with_parent`."""
  return {_PARENT: str(os.getpid())}


def reading_environment() -> dict[str, str]:
  """The whole environment of a Python child that reads many records.

  It finds the modules that this process finds.
  """
  return {
    **os.environ,
    **environment(),
    'PYTHONPATH': os.pathsep.join(path for path in sys.path if path),
    'GLIBC_TUNABLES': os.environ.get('GLIBC_TUNABLES', _KEEP_MEMORY),
  }


def tensorflow_environment() -> dict[str, str]:
  """As `reading_environment`, for a child that loads TensorFlow.

  It gets no accelerator, which it does not need and whose memory TensorFlow
  would take.
  """
  return {
    **reading_environment(),
    'CUDA_VISIBLE_DEVICES': '',
    'JAX_PLATFORMS': 'cpu',
    'TF_CPP_MIN_LOG_LEVEL': '3',
  }


def end_with_parent() -> None:
  """Asks Linux to kill this process when its parent dies, however it dies.

  Does nothing in a process that no `environment` was made for. Jobs resume
  exactly, so a kill at any moment loses time alone.
  """
  parent = os.environ.pop(_PARENT, None)
  if parent is None:
    return
  end_with(int(parent))


def end_with(parent: int) -> None:
  """Asks Linux to kill this process when its parent, a process id, dies."""
  if not sys.platform.startswith('linux'):
    return
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent:  # It died before the request.
    os.kill(os.getpid(), signal.SIGKILL)
