"""Runs a graph of stages, each in its own process pinned to its own cores."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from p4lm import child_process
from p4lm.errors import UserError
from p4lm.stages.display import Display
from p4lm.stages.graph import (
  Stage,
  check_graph,
  fingerprint,
  stages_without_company,
)

_POLL_SECS = 0.2
_MARKER = 'done.json'


@dataclasses.dataclass
class _Running:
  stage: Stage
  process: subprocess.Popen
  slot: int
  started: float


class Runner:
  """Runs what is not finished, `parallel` stages at a time.

  Cores are divided into `parallel` equal slots before anything starts, so a
  stage always computes with the same number of threads: the same numbers, bit
  for bit, whatever runs beside it.

  Args:
    output_dir: the run's directory; a stage gets the subdirectory of its name
      and the log `logs/NAME.log`.
    parallel: stages at a time; at most one a core.
    display: says what starts, runs and ends.
    command: what a stage's arguments are given to.
  """

  def __init__(
    self,
    output_dir: Path,
    parallel: int,
    display: Display,
    command: Sequence[str] = (sys.executable, '-m', 'p4lm.main'),
  ):
    cores = sorted(os.sched_getaffinity(0))
    self._all_cores = cores
    self._alone: set[str] = set()
    self._parallel = max(1, min(parallel, len(cores)))
    share = len(cores) // self._parallel
    self._cores = [
      cores[slot * share : (slot + 1) * share] for slot in range(self._parallel)
    ]
    self._output_dir = output_dir
    self._command = list(command)
    self._display = display
    self._running: list[_Running] = []

  def run(self, stages: Sequence[Stage]) -> None:
    """Runs the graph to its end.

    Raises:
      UserError: a stage failed; the message holds the end of its log. Stages
        beside it are stopped cleanly first and go on at the next start.
    """
    check_graph(stages)
    # From the graph and not from what happens to run: the number of threads may
    # show in the last bit, and a second start must not.
    self._alone = stages_without_company(stages)
    prints: dict[str, str] = {}
    for stage in stages:
      upstream = [prints[name] for name in stage.after]
      prints[stage.name] = fingerprint(stage, upstream, str(self._output_dir))
    done = {s.name for s in stages if self._is_done(s, prints[s.name])}
    # A stage made from something that must be made again is made again too.
    for stage in stages:
      if any(name not in done for name in stage.after):
        done.discard(stage.name)
    for stage in stages:
      if stage.name in done:
        self._display.skipped(stage)
    waiting = [stage for stage in stages if stage.name not in done]
    try:
      while waiting or self._running:
        self._start_ready(waiting, done)
        self._wait_for_one(done, prints)
    except BaseException:
      self._stop_all()
      raise

  def _is_done(self, stage: Stage, print_: str) -> bool:
    marker = self._output_dir / stage.name / _MARKER
    if not marker.exists():
      return False
    return json.loads(marker.read_text()).get('fingerprint') == print_

  def _start_ready(self, waiting: list[Stage], done: set[str]) -> None:
    free = set(range(self._parallel)) - {r.slot for r in self._running}
    for stage in list(waiting):
      if not free:
        return
      if all(name in done for name in stage.after):
        waiting.remove(stage)
        self._start(stage, free.pop())

  def _start(self, stage: Stage, slot: int) -> None:
    log = self._log(stage)
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = stage.arguments(str(self._output_dir / stage.name))
    cores = self._all_cores if stage.name in self._alone else self._cores[slot]
    with log.open('ab') as stream:
      process = subprocess.Popen(
        [*self._command, *arguments],
        stdout=stream,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=self._environment(),
      )
    # Before the interpreter is up; its threads are made later and inherit it.
    os.sched_setaffinity(process.pid, cores)
    self._display.started(stage)
    self._running.append(_Running(stage, process, slot, time.monotonic()))

  def _environment(self) -> dict[str, str]:
    """Of a stage's process: what stages share, so that each starts quickly."""
    shared = {
      # Stages of the same shapes share their compiled programs.
      'JAX_COMPILATION_CACHE_DIR': str(self._output_dir / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3',
      'PYTHONUNBUFFERED': '1',
      **os.environ,
      **child_process.environment(),
    }
    if shared.pop('PYTHONDONTWRITEBYTECODE', ''):
      # Nothing is written beside the sources, as asked; but compiling JAX's
      # own takes four seconds a stage, and once is enough.
      bytecode = str(self._output_dir / 'compiled' / 'bytecode')
      shared.setdefault('PYTHONPYCACHEPREFIX', bytecode)
    return shared

  def _wait_for_one(self, done: set[str], prints: dict[str, str]) -> None:
    while self._running:
      for running in self._running:
        if running.process.poll() is not None:
          self._running.remove(running)
          self._finish(running, done, prints)
          return
      self._display.refresh([r.stage for r in self._running], self._output_dir)
      time.sleep(_POLL_SECS)

  def _finish(self, running, done, prints) -> None:
    stage, secs = running.stage, time.monotonic() - running.started
    if running.process.returncode != 0:
      raise UserError(self._failure(running))
    directory = self._output_dir / stage.name
    partial = directory / f'.{_MARKER}.partial'
    marker = {'fingerprint': prints[stage.name], 'secs': round(secs, 1)}
    partial.write_text(json.dumps(marker))
    os.replace(partial, directory / _MARKER)
    done.add(stage.name)
    self._display.finished(stage, secs, self._output_dir)

  def _failure(self, running: _Running) -> str:
    tail = self._log(running.stage).read_text(errors='replace').splitlines()
    reason = [line for line in tail if line.startswith('p4lm: error: ')]
    shown = reason[-1:] or tail[-15:]
    text = '\n'.join(shown).removeprefix('p4lm: error: ')
    return (
      f'stage {running.stage.name} ended with status '
      f'{running.process.returncode}: {text}\n'
      f'(whole log: {self._log(running.stage)}; mend and start again: '
      'finished stages are kept)'
    )

  def _stop_all(self) -> None:
    for running in self._running:
      running.process.send_signal(signal.SIGTERM)
    for running in self._running:
      try:
        running.process.wait(timeout=30)
      except subprocess.TimeoutExpired:
        running.process.kill()
        running.process.wait()

  def _log(self, stage: Stage) -> Path:
    return self._output_dir / 'logs' / f'{stage.name}.log'
