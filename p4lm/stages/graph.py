"""What a stage is, and the order in which a graph of stages can run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

from p4lm.errors import UserError
from p4lm.output_directory import moved


@dataclasses.dataclass(frozen=True)
class Stage:
  """One job with its own configuration and directory.

  Attributes:
    name: unique; also the stage's directory under the run's OUTPUT_DIR.
    job: which `p4lm JOB` it is.
    about: one line that the user reads while it runs.
    gin_files: files passed to the job; empty means its run file.
    bindings: overrides by name; strings, numbers, tuples, dicts, None.
    after: names of the stages whose output it reads.
  """

  name: str
  job: str
  about: str
  bindings: Mapping[str, object]
  after: tuple[str, ...] = ()
  gin_files: tuple[str, ...] = ()

  def arguments(self, output_dir: str) -> list[str]:
    """The command line after `p4lm`, as a user would type it."""
    bindings = {'OUTPUT_DIR': output_dir, **self.bindings}
    return [
      self.job,
      *(f'--gin_file={name}' for name in self.gin_files),
      *(f'--gin.{name}={value!r}' for name, value in bindings.items()),
    ]


def check_graph(stages: Sequence[Stage]) -> None:
  """Raises UserError for a repeated name or a stage before what it reads."""
  seen: set[str] = set()
  for stage in stages:
    if stage.name in seen:
      raise UserError(f'two stages are named {stage.name!r}')
    missing = [name for name in stage.after if name not in seen]
    if missing:
      raise UserError(
        f'stage {stage.name!r} reads {missing}, which no earlier stage makes'
      )
    seen.add(stage.name)


def stages_without_company(stages: Sequence[Stage]) -> set[str]:
  """Names of the stages beside which no other can ever run.

  Every other stage comes before or after such a one, through any number of
  stages between.

  Args:
    stages: in an order that `check_graph` accepts.
  """
  before: dict[str, set[str]] = {}
  for stage in stages:
    before[stage.name] = set(stage.after).union(
      *(before[name] for name in stage.after)
    )
  return {
    name
    for name in before
    if all(
      other == name or other in before[name] or name in before[other]
      for other in before
    )
  }


def fingerprint(stage: Stage, upstream: Sequence[str], root: str) -> str:
  """sha256 hex of a stage's command and of all that it was made from.

  Args:
    stage: the stage.
    upstream: fingerprints of the stages in `stage.after`, in that order.
    root: the run's directory; the same run in another has the same hash.
  """
  arguments = [moved(argument, root, '.') for argument in stage.arguments(root)]
  content = json.dumps([arguments, list(upstream)])
  return hashlib.sha256(content.encode()).hexdigest()
