"""Work on what is read next, while what was read before is used."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar('T')
R = TypeVar('R')


def in_order(
  items: Iterable[T], function: Callable[[T], R], pool: Executor | None = None
) -> Iterator[R]:
  """The results of a function, in the items' order, made ahead.

  As `map`, but as many results are begun before they are asked for as there are
  cores, and one more; so many items and results are in memory.

  Args:
    items: what the function is called with.
    function: without a pool it is of use where it spends its time outside of
      Python.
    pool: what calls the function; None for threads, one a core.
  Raises:
    What the function raises, in the place of its result; what the items raise,
    after the results of those before.
  """
  num_cores = len(os.sched_getaffinity(0))
  if pool is None:
    with ThreadPoolExecutor(num_cores) as threads:
      yield from in_order(items, function, threads)
    return
  pending: collections.deque[Future[R]] = collections.deque()
  failure: Exception | None = None
  items = iter(items)
  while True:
    try:
      pending.append(pool.submit(function, next(items)))
    except StopIteration:
      break
    except Exception as error:  # raised again below
      failure = error
      break
    if len(pending) > num_cores:
      yield pending.popleft().result()
  while pending:
    yield pending.popleft().result()
  if failure is not None:
    raise failure
