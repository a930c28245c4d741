"""What every contender does: stay on its cores, time itself, print a line.

Imported before any library that starts threads.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping

NOT_INSTALLED, NOT_COMPARABLE = 3, 4


class NotComparable(Exception):
  """A library has nothing like what is measured; the message says why."""


def run(contenders: Mapping[str, Callable[[str, str, str], dict]]) -> None:
  """Runs the contender named on the command line and prints its figures.

  A contender takes the size, the directory of data and one to work in, and
  returns `what`, `cpu_secs` and `wall_secs`; `peak_mb` of this process (or of
  a child, if that took more) is added. It may return `work`, a number of
  `unit`s that were done in that time, and `phases`, seconds by name.
  """
  cores = [int(core) for core in os.environ['BENCH_CORES'].split(',')]
  os.sched_setaffinity(0, cores)
  for name in ('OMP', 'OPENBLAS', 'MKL'):
    os.environ.setdefault(f'{name}_NUM_THREADS', str(len(cores)))
  library, size, data, work = sys.argv[1:]
  try:
    found = contenders[library](size, data, work)
  except ImportError as error:
    print(error, file=sys.stderr)
    sys.exit(NOT_INSTALLED)
  except NotComparable as reason:
    print(reason, file=sys.stderr)
    sys.exit(NOT_COMPARABLE)
  peak = max(
    resource.getrusage(who).ru_maxrss
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  print(json.dumps({'peak_mb': peak // 1024, **found}))


def num_cores() -> int:
  """Cores that this process may use."""
  return len(os.sched_getaffinity(0))


def times(call: Callable[[], object], repeats: int) -> dict[str, float]:
  """Medians of the CPU and wall seconds of a call."""
  cpu, wall = [], []
  for _ in range(repeats):
    started = time.process_time(), time.perf_counter()
    call()
    cpu.append(time.process_time() - started[0])
    wall.append(time.perf_counter() - started[1])
  return {
    'cpu_secs': statistics.median(cpu),
    'wall_secs': statistics.median(wall),
  }
