"""Where jobs run: one small interface, and this machine behind it.

An executor takes units, each one command line of p4lm, and runs them. It knows
nothing about gin or about p4lm's jobs, and whoever builds the units knows
nothing about machines, so a pod needs one more class here and no other change.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = (sys.executable, '-m', 'p4lm.main')


class LaunchError(Exception):
  """A launch that the user can mend; the message says how."""


@dataclasses.dataclass(frozen=True)
class Unit:
  """One run of p4lm.

  Attributes:
    name: short and unique among the units of a launch.
    arguments: what follows `p4lm` on its command line.
    environment: variables added to those that the launcher has.
  """

  name: str
  arguments: tuple[str, ...]
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Executor(Protocol):
  """Runs units somewhere."""

  def run(self, title: str, units: Sequence[Unit]) -> list[str]:
    """Runs every unit and waits for all of them.

    Args:
      title: name of the experiment that the units belong to.
      units: the runs; they do not depend on each other.
    Returns:
      Names of the units that failed, in the order given.
    Raises:
      LaunchError: nothing could be started.
    """


@dataclasses.dataclass(frozen=True)
class LocalExecutor:
  """Processes of this machine, through XManager's local scheduler.

  XManager runs an interpreter that is here already (`xm.Binary`), so neither
  Docker nor Bazel nor an account is needed. It records each experiment in
  `~/.xmanager`.

  Attributes:
    parallel: start all units at once. The default is one after another: units
      of one machine compete for its cores.
    program: command that runs p4lm, an existing file and its arguments.
  """

  parallel: bool = False
  program: tuple[str, ...] = PROGRAM

  def run(self, title: str, units: Sequence[Unit]) -> list[str]:
    return asyncio.run(self._run(title, units))

  async def _run(self, title: str, units: Sequence[Unit]) -> list[str]:
    xm, xm_local = import_xmanager()
    failed = set()

    async def wait_for(unit, work_unit):
      try:
        await work_unit.wait_until_complete()
      except xm.ExperimentUnitError:
        failed.add(unit.name)

    try:
      async with _create_experiment(xm_local, title) as experiment:
        executable = self._package(experiment, xm, xm_local)
        started = []
        for unit in units:
          job = xm.Job(
            executable=executable,
            executor=xm_local.Local(),
            name=unit.name,
            args=list(unit.arguments),
            env_vars=dict(unit.environment),
          )
          started.append((unit, await experiment.add(job)))
          if not self.parallel:
            await wait_for(*started.pop())
        for unit, work_unit in started:
          await wait_for(unit, work_unit)
    except RuntimeError:
      # Leaving the experiment waits again and raises for the units that
      # failed; those are known by name here.
      if not failed:
        raise
    return [unit.name for unit in units if unit.name in failed]

  def _package(self, experiment, xm, xm_local):
    [executable] = experiment.package(
      [
        xm.Packageable(
          executable_spec=xm.Binary(path=self.program[0]),
          executor_spec=xm_local.LocalSpec(),
          args=list(self.program[1:]),
          env_vars={'PYTHONPATH': _python_path()},
        )
      ]
    )
    return executable


def import_xmanager():
  """The modules `xm` and `xm_local`, or one sentence about their absence."""
  try:
    from xmanager import xm, xm_local
  except ImportError as error:
    raise LaunchError(
      f'the launcher needs XManager ({error}): pip install '
      "'p4lm[launch]', or in a clone: pip install -c launch/constraints.txt "
      "-e '.[launch]'"
    ) from error
  return xm, xm_local


def _create_experiment(xm_local, title: str):
  # XManager's database tells of each of its migrations at level INFO.
  logging.getLogger('alembic').setLevel(logging.WARNING)
  # SQLAlchemy comes with XManager, so it is only known to be here by now.
  from sqlalchemy.exc import SQLAlchemyError

  try:
    return xm_local.create_experiment(title)
  except (OSError, SQLAlchemyError) as error:
    reason = str(error).splitlines()[0]
    raise LaunchError(
      f'XManager cannot open its database in ~/.xmanager ({reason}): make '
      'that directory writable, or set HOME to one that is'
    ) from error


def _python_path() -> str:
  """The checkout first, so that its p4lm runs even where none is installed."""
  rest = os.environ.get('PYTHONPATH')
  return os.pathsep.join([str(ROOT), *([rest] if rest else [])])


EXECUTORS = {'local': LocalExecutor}
