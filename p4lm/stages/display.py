"""What a user sees while stages run: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
  BarColumn,
  Progress,
  TaskProgressColumn,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

from p4lm.stages.graph import Stage


class Display:
  """Numbers the stages, follows their metrics, says what each one made."""

  def __init__(self, total: int, console: Console | None = None):
    self._console = console or Console(highlight=False, soft_wrap=True)
    self._total = total
    self._count = 0
    self._start = time.monotonic()
    self._tasks: dict[str, int] = {}
    self._bars = Progress(
      TextColumn('  {task.description:<22}'),
      BarColumn(bar_width=28),
      TaskProgressColumn(),
      TextColumn('{task.fields[note]}'),
      TimeElapsedColumn(),
      TimeRemainingColumn(),
      console=self._console,
      transient=True,
    )
    if self._console.is_terminal:
      self._bars.start()

  def close(self) -> None:
    if self._console.is_terminal:
      self._bars.stop()

  def skipped(self, stage: Stage) -> None:
    self._count += 1
    self._say(f'{self._number()} {stage.name}: finished before, kept')

  def started(self, stage: Stage) -> None:
    steps = stage.bindings.get('STEPS')
    self._tasks[stage.name] = self._bars.add_task(
      stage.name, total=steps, note=''
    )
    self._say(f'          {stage.name}: {stage.about}', dim=True)

  def refresh(self, running: Sequence[Stage], output_dir: Path) -> None:
    for stage in running:
      last = _last_metrics(output_dir / stage.name / 'metrics.jsonl')
      if last:
        self._bars.update(
          self._tasks[stage.name],
          completed=last.get('step', 0),
          note=_summary(last),
        )

  def finished(self, stage: Stage, secs: float, output_dir: Path) -> None:
    self._count += 1
    self._bars.remove_task(self._tasks.pop(stage.name))
    last = _last_metrics(output_dir / stage.name / 'metrics.jsonl')
    note = f'; {_summary(last)}' if last else ''
    self._say(
      f'{self._number()} {stage.name}: done in {secs:.0f} s{note} '
      f'-> {output_dir / stage.name}'
    )

  def _number(self) -> str:
    elapsed = time.monotonic() - self._start
    return f'[{self._count:>2}/{self._total}] {elapsed:>5.0f} s'

  def _say(self, text: str, dim: bool = False) -> None:
    self._console.print(text, style='dim' if dim else None, markup=False)


def _last_metrics(path: Path) -> dict:
  """The last whole line of a metrics file; empty when there is none."""
  try:
    with path.open('rb') as stream:
      stream.seek(0, 2)
      stream.seek(max(0, stream.tell() - 4096))
      lines = stream.read().splitlines()
  except OSError:
    return {}
  for line in reversed(lines):
    try:
      return json.loads(line)
    except json.JSONDecodeError:
      continue
  return {}


def _summary(metrics: dict) -> str:
  shown = ('loss', 'reward', 'kl', 'accuracy', 'objective')
  pairs = [
    f'{name} {metrics[name]:.3g}'
    for name in shown
    if isinstance(metrics.get(name), (int, float))
  ]
  return ' '.join(pairs)
