"""Where a long loop stands: a bar on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping

import tqdm

_log = logging.getLogger(__name__)
# A log file that nobody watches needs few lines.
_SECS_BETWEEN_LINES = 10.0


class Progress:
  """Reports steps of a known total with rate and time left.

  Args:
    description: what is running, in front of every line.
    total: steps in all.
    start: steps done by an earlier process.
  """

  def __init__(self, description: str, total: int, start: int = 0):
    self._description, self._total, self._start = description, total, start
    self._began = time.monotonic()
    self._said = -float('inf')
    self._done = start
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        desc=description, total=total, initial=start, dynamic_ncols=True
      )

  def advance(self, step: int) -> None:
    """Moves to `step` done."""
    if self._bar is not None:
      self._bar.update(step - self._done)
    self._done = step

  def report(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows metrics; without a terminal at most a line every ten seconds."""
    shown = [f'{k} {v:.4g}' for k, v in metrics.items() if k in _SHOWN]
    if self._bar is not None:
      self._bar.set_postfix_str(' '.join(shown))
      return
    now = time.monotonic()
    if now - self._said < _SECS_BETWEEN_LINES and step < self._total:
      return
    self._said = now
    left = (now - self._began) / max(1, step - self._start)
    left *= self._total - step
    _log.info(
      '%s: step %d of %d, %s, %.0f s left',
      self._description,
      step,
      self._total,
      ', '.join(shown),
      left,
    )

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


_SHOWN = (
  'loss',
  'accuracy',
  'reward',
  'kl',
  'steps_per_second',
  'tokens_per_second',
  'mfu',
  'goodput',
)
