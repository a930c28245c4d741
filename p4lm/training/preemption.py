"""Notices that the machine is about to be taken away."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

# What a shell reports for a process that SIGTERM ended.
EXIT_STATUS = 128 + signal.SIGTERM


class Preempted(SystemExit):
  """The process was told to end and has saved; exits with status 143."""

  def __init__(self, message: str):
    super().__init__(EXIT_STATUS)
    self.message = message

  def __str__(self) -> str:
    return self.message


class Preemption:
  """Remembers that SIGTERM arrived, for a loop to poll."""

  def __init__(self):
    self._requested = False

  def request(self, *_) -> None:
    """Asks the loop to save and stop; also the signal's handler."""
    self._requested = True

  def requested(self, step: int) -> bool:
    """Whether to save and stop after `step`; every process says the same.

    Where JAX runs distributed, it catches the signal itself and the processes
    agree on one step at which all of them stop.
    """
    if jax.distributed.is_initialized():
      return self._requested or multihost_utils.reached_preemption_sync_point(
        step
      )
    return self._requested


@contextlib.contextmanager
def watch_preemption() -> Iterator[Preemption]:
  """While entered, SIGTERM sets a flag instead of ending the process.

  In a thread other than the main one, which cannot handle signals, the flag
  stays unset. With JAX distributed its own handler is left in place.
  """
  preemption = Preemption()
  try:
    if jax.distributed.is_initialized():
      raise ValueError('JAX handles the signal')
    previous = signal.signal(signal.SIGTERM, preemption.request)
  except ValueError:
    yield preemption
    return
  try:
    yield preemption
  finally:
    signal.signal(signal.SIGTERM, previous)
