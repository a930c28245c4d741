"""Work on what is read next, while what was read before is used."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar('T')
R = TypeVar('R')


def in_order(items: Iterable[T], function: Callable[[T], R]) -> Iterator[R]:
  """The results of a function, in the items' order, made by threads ahead.

  As `map`, but as many results are begun before they are asked for as there are
  cores, and one more; so many items and results are in memory. It is of use
  where the function spends its time outside of Python.

  Raises:
    What the function raises, in the place of its result; what the items raise,
    after the results of those before.
  """
  num_threads = len(os.sched_getaffinity(0))
  pending: collections.deque[Future[R]] = collections.deque()
  failure: Exception | None = None
  items = iter(items)
  with ThreadPoolExecutor(num_threads) as pool:
    while True:
      try:
        pending.append(pool.submit(function, next(items)))
      except StopIteration:
        break
      except Exception as error:  # raised again below
        failure = error
        break
      if len(pending) > num_threads:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  if failure is not None:
    raise failure
