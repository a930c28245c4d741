"""Means of step metrics between two log points, read without stalling."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Mapping

import jax

from p4lm.training.step import FLOPS, LOSS_WEIGHT, TOKENS

# Steps that may be queued on the device: enough to keep it busy, few enough
# that queued batches do not fill its memory.
_MAX_QUEUED = 2
# A step whose loss or gradient is not finite has spoilt the parameters.
_CHECKED = ('loss', 'grad_norm')


class NonFinite(ArithmeticError):
  """A checked metric is NaN or infinite.

  Attributes:
    step, name, value: the first such step, the metric and what it was.
  """

  def __init__(self, step: int, name: str, value: float):
    super().__init__(f'{name} is {value} at step {step}')
    self.step, self.name, self.value = step, name, value


class MetricWindow:
  """Collects device metrics; waits only for steps some way behind.

  Args:
    peak_flops: FLOP/s that the devices can do together; None where that is not
      known, and then no MFU is reported.
    began: `time.monotonic()` from which on goodput counts.
  """

  def __init__(
    self, *, peak_flops: float | None = None, began: float | None = None
  ):
    self._peak_flops = peak_flops
    self._run_began = time.monotonic() if began is None else began
    self._productive_secs = 0.0
    self._steps: list[tuple[int, Mapping]] = []
    self._queued = collections.deque()
    self._began = time.monotonic()
    self._timed_steps = 0
    self._first = True

  def add(self, step: int, metrics: Mapping) -> None:
    """Notes the metrics of a step, scalars that may still be computed."""
    self._steps.append((step, metrics))
    self._timed_steps += 1
    self._queued.append(metrics)
    if self._first:
      # The first call compiles: it would spoil the first rate.
      jax.block_until_ready(metrics)
      self._first = False
      self.restart_clock()
    if len(self._queued) > _MAX_QUEUED:
      jax.block_until_ready(self._queued.popleft())

  def restart_clock(self) -> None:
    """Leaves what happened until now out of the rates."""
    self._began = time.monotonic()
    self._timed_steps = 0

  def close(self) -> dict[str, float]:
    """Means since the last call, with rates.

      steps_per_second, tokens_per_second   of the timed steps
      flops_per_second                      of the model, as steps report them
      mfu      flops_per_second over the devices' peak
      goodput  share of the time since the run began that went into timed
               steps and their batches; the rest went into restoring,
               compiling, saving and evaluating

    Raises:
      NonFinite: the loss or the gradient norm of some step was not finite.
    """
    rows = [(step, jax.device_get(row)) for step, row in self._steps]
    secs = time.monotonic() - self._began
    for step, row in rows:
      for name in _CHECKED:
        if name in row and not math.isfinite(row[name]):
          raise NonFinite(step, name, float(row[name]))
    timed = [row for _, row in rows[len(rows) - self._timed_steps :]]
    self._steps.clear()
    self._queued.clear()
    metrics = _means([row for _, row in rows])
    if timed and secs > 0:
      metrics |= self._rates(timed, secs)
    self.restart_clock()
    return metrics

  def _rates(self, rows: list[Mapping], secs: float) -> dict[str, float]:
    """Rates of the steps that took `secs` together."""
    rates = {'steps_per_second': len(rows) / secs}
    for name in (TOKENS, FLOPS):
      if total := sum(float(row.get(name, 0.0)) for row in rows):
        rates[f'{name}_per_second'] = total / secs
    if self._peak_flops and 'flops_per_second' in rates:
      rates['mfu'] = rates['flops_per_second'] / self._peak_flops
    self._productive_secs += secs
    elapsed = time.monotonic() - self._run_began
    rates['goodput'] = self._productive_secs / elapsed
    return rates


def _means(rows: list[Mapping]) -> dict[str, float]:
  columns = collections.defaultdict(list)
  for row in rows:
    for name, value in row.items():
      if name not in (LOSS_WEIGHT, TOKENS, FLOPS):
        columns[name].append(float(value))
  return {name: sum(values) / len(values) for name, values in columns.items()}
