"""Rates of a metric window, with a clock that the test moves."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from p4lm.training import metric_windows
from p4lm.training.metric_windows import MetricWindow


@pytest.fixture
def clock(monkeypatch):
  """A list whose one number is the time."""
  now = [100.0]
  monkeypatch.setattr(metric_windows.time, 'monotonic', lambda: now[0])
  return now


def add(window, clock, step, secs, **metrics):
  clock[0] += secs
  window.add(step, {'loss': jnp.float32(step), **metrics})


def test_rates_counted_by_hand(clock):
  window = MetricWindow(peak_flops=1000.0, began=90.0)
  # The first step compiles: 30 seconds that count for goodput alone.
  add(window, clock, 1, 30.0, tokens=7.0, flops=500.0)
  add(window, clock, 2, 2.0, tokens=7.0, flops=500.0)
  add(window, clock, 3, 2.0, tokens=9.0, flops=700.0)
  metrics = window.close()
  assert metrics['loss'] == 2.0
  assert metrics['steps_per_second'] == 2 / 4
  assert metrics['tokens_per_second'] == 16 / 4
  assert metrics['flops_per_second'] == 1200 / 4
  assert metrics['mfu'] == 0.3
  assert metrics['goodput'] == 4 / 44
  assert not {'tokens', 'flops'} & metrics.keys()
  # Six seconds of saving, then a step of four.
  clock[0] += 6.0
  window.restart_clock()
  add(window, clock, 4, 4.0, flops=500.0)
  metrics = window.close()
  assert metrics['flops_per_second'] == 125.0
  assert metrics['goodput'] == (4 + 4) / 54


def test_an_unknown_chip_has_no_mfu(clock):
  window = MetricWindow()
  add(window, clock, 1, 1.0, flops=500.0)
  add(window, clock, 2, 1.0, flops=500.0)
  metrics = window.close()
  assert metrics['flops_per_second'] == 500.0
  assert 'mfu' not in metrics and 'goodput' in metrics


def test_steps_that_report_no_flops_have_no_mfu(clock):
  window = MetricWindow(peak_flops=1000.0)
  add(window, clock, 1, 1.0)
  add(window, clock, 2, 1.0)
  metrics = window.close()
  assert metrics['steps_per_second'] == 1.0
  assert not {'mfu', 'flops_per_second'} & metrics.keys()
