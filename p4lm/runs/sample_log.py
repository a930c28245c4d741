"""JSON lines by step that agree with a run however often it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path


class SampleLog:
  """Appends rows `{"step": s, ...}`; rows of steps to come are dropped first.

  A run that was killed after logging step 40 and goes on from the checkpoint
  of step 30 samples steps 30 to 40 again: their old rows must go.

  Args:
    path: the file, made when the first row comes.
  """

  def __init__(self, path: Path):
    self._path = path

  def drop_from(self, step: int) -> None:
    """Removes the rows of `step` and later ones."""
    if self._path.exists():
      _truncate(self._path, step)

  def append(self, step: int, rows: Iterable[Mapping[str, object]]) -> None:
    with self._path.open('a', encoding='utf-8') as stream:
      for row in rows:
        line = json.dumps({'step': step, **row}, ensure_ascii=False)
        stream.write(line + '\n')


def _truncate(path: Path, first_step: int) -> None:
  partial = path.with_name(f'.{path.name}.partial')
  with path.open(encoding='utf-8') as old, partial.open('w') as new:
    for line in old:
      try:
        step = json.loads(line)['step']
      except (json.JSONDecodeError, KeyError):
        break  # The line that was being written when the run was killed.
      if step >= first_step:
        break
      new.write(line)
  os.replace(partial, path)
