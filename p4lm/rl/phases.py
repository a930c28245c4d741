"""How long the phases of an iteration take, by the host's clock."""

from __future__ import annotations

import time


class PhaseClock:
  """Seconds of phases that follow each other; started when it is made.

  JAX answers before it has computed: a phase is over when its results have
  been waited for.
  """

  def __init__(self):
    self.metrics: dict[str, float] = {}
    self._began = time.monotonic()

  def ends(self, phase: str) -> None:
    """Notes `secs/PHASE`, the time since the last phase ended."""
    now = time.monotonic()
    self.metrics[f'secs/{phase}'] = now - self._began
    self._began = now
