"""Results come in order, and errors in the place of what they befell."""

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from p4lm.data.ahead import in_order


def test_results_are_in_order_whatever_each_takes():
  def slow_at_first(number):
    time.sleep(0.02 / (number + 1))
    return number * number

  found = list(in_order(range(20), slow_at_first))
  assert found == [number * number for number in range(20)]
  assert list(in_order([], slow_at_first)) == []


def test_no_more_is_read_than_threads_need():
  read = []

  def items():
    for number in range(100):
      read.append(number)
      yield number

  results = in_order(items(), lambda number: number)
  next(results)
  assert len(read) <= len(os.sched_getaffinity(0)) + 1
  results.close()
  assert len(read) < 100


def test_work_is_done_while_the_reader_does_something_else():
  begun = threading.Event()

  def work(number):
    if number == 1:
      begun.set()
    return number

  results = in_order(range(3), work)
  assert next(results) == 0
  assert begun.wait(10)


def test_a_failure_of_the_function_stands_in_its_place():
  def odd_fails(number):
    if number == 3:
      raise ValueError('three')
    return number

  results = in_order(range(10), odd_fails)
  assert [next(results) for _ in range(3)] == [0, 1, 2]
  with pytest.raises(ValueError, match='three'):
    next(results)


def test_a_failure_of_the_items_comes_after_the_results_before_it():
  def items():
    yield 0
    yield 1
    raise OSError('cut')

  results = in_order(items(), lambda number: number + 1)
  assert next(results) == 1
  assert next(results) == 2
  with pytest.raises(OSError, match='cut'):
    next(results)


def test_processes_may_do_the_work():
  with ProcessPoolExecutor(
    1, mp_context=multiprocessing.get_context('spawn')
  ) as pool:
    assert list(in_order([-3, 4, -5], abs, pool)) == [3, 4, 5]
