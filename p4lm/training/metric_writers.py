"""Metrics of a run: `metrics.jsonl` and TensorBoard events."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import jax

FILE_NAME = 'metrics.jsonl'


class MetricWriter:
  """Appends one JSON object a logged step; process 0 alone writes.

  Args:
    output_dir: gets `metrics.jsonl` and TensorBoard event files.
    tensorboard: whether to write the events too.
  """

  def __init__(
    self, output_dir: str | os.PathLike, *, tensorboard: bool = True
  ):
    self.path = Path(output_dir) / FILE_NAME
    self._writes = jax.process_index() == 0
    self._tensorboard = tensorboard and self._writes
    self._purge_step = None
    self._lines = None
    self._events = None

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends metrics; a value that is not finite becomes null."""
    if not self._writes:
      return
    line = {
      name: float(value) if math.isfinite(value) else None
      for name, value in metrics.items()
    }
    if self._lines is None:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self._lines = self.path.open('a', encoding='utf-8')
    self._lines.write(json.dumps({'step': step, **line}) + '\n')
    self._lines.flush()
    if self._tensorboard:
      for name, value in metrics.items():
        self._event_writer().add_scalar(name, float(value), step)

  def drop_after(self, step: int) -> None:
    """Forgets what was logged after `step`, and a line cut off by a crash.

    A run that goes on from a checkpoint writes those steps again.
    """
    self._purge_step = step + 1
    if not self._writes or not self.path.exists():
      return
    self.close()
    lines = self.path.read_text(encoding='utf-8', errors='replace')
    kept = [line for line in lines.splitlines() if _logged_by(line, step)]
    partial = self.path.with_name(f'.{FILE_NAME}.partial')
    partial.write_text(''.join(f'{line}\n' for line in kept), encoding='utf-8')
    os.replace(partial, self.path)

  def close(self) -> None:
    """Writes everything out; a later `write` opens the files again."""
    for file in (self._lines, self._events):
      if file is not None:
        file.close()
    self._lines = self._events = None

  def __enter__(self) -> MetricWriter:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _event_writer(self):
    if self._events is None:
      # Its import costs a second: not for every job.
      self._events = _import_tensorboardx().SummaryWriter(
        str(self.path.parent), purge_step=self._purge_step
      )
    return self._events


def read_metrics(output_dir: str | os.PathLike) -> list[dict]:
  """The logged objects in order; a last line cut off by a crash is skipped."""
  path = Path(output_dir) / FILE_NAME
  records = []
  for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
    try:
      records.append(json.loads(line))
    except ValueError:
      continue
  return records


def _logged_by(line: str, step: int) -> bool:
  try:
    return json.loads(line)['step'] <= step
  except (ValueError, KeyError, TypeError):
    return False


def _import_tensorboardx():
  """tensorboardX, which loads PyTorch (0.5 GB) wherever it is installed.

  Scalars need none of it, so that import finds none, as where it is missing.
  """
  with contextlib.ExitStack() as stack:
    if 'torch' not in sys.modules:
      sys.modules['torch'] = None  # Its import raises ImportError.
      stack.callback(sys.modules.pop, 'torch')
    return importlib.import_module('tensorboardX')
