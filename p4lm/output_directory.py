"""A job's OUTPUT_DIR belongs to one configuration and one process at a time.

`config.gin` in the directory is the resolved configuration. A second start
with the same configuration goes on; one with another is refused before it can
touch anything. Parameters that only say how far to go or how to report may
change between starts, and what lists things side by side, such as the systems
of an evaluation or the variants of an experiment, may list more. A directory
may be moved or copied, with what it reads from beside it. A running job holds a
lock on `.running`, which the system takes away when the process ends, however
it ends.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from p4lm.errors import UserError

# Extending a run or moving it between machines is no other experiment.
_MAY_CHANGE = re.compile(
  r'^(STEPS|OUTPUT_DIR|\S*\.?(log_every|checkpoint_every|parallel))$'
)
# Lists of what is compared: more entries leave the old ones as they are.
_MAY_GROW = {
  'pipeline': {'VARIANTS'},
  'evaluate': {
    'SYSTEMS', 'WEIGHTS', 'RANKERS', 'EVALUATIONS', 'RUNS', 'CONTRASTS',
  },
}  # fmt: skip
_active: list[tuple[str, str]] = []
_LOCK = '.running'
# The configuration, a pipeline's logs and the programs it compiled.
_LEFT_BY_FAILURES = ('config.gin', _LOCK, 'logs', 'compiled')
# Descriptors that stay open until the process ends, and the locks with them.
_held: dict[Path, int] = {}


def check(output_dir: str | os.PathLike, job: str, text: str) -> None:
  """Raises UserError when the directory is unusable or holds another run.

  Args:
    output_dir: the directory, which need not exist.
    job: name of the job that wants it.
    text: resolved gin configuration of this start.
  """
  path = Path(output_dir) / 'config.gin'
  if Path(output_dir).exists() and not Path(output_dir).is_dir():
    raise UserError(f'OUTPUT_DIR {output_dir} is a file, not a directory')
  if not path.exists() or not _holds_results(Path(output_dir)):
    return
  new = bindings_of(_with_job(job, text))
  old = _where_it_lies_now(bindings_of(path.read_text()), new)
  changed = [
    f'{name}: {old.get(name, "(default)")} there, '
    f'{new.get(name, "(default)")} now'
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
    and not _MAY_CHANGE.match(name)
    and not (
      name in _MAY_GROW.get(job, ())
      and _has_grown(old.get(name, '()'), new.get(name, '()'))
    )
  ]
  if changed:
    raise UserError(
      f'OUTPUT_DIR {output_dir} holds another experiment '
      f'({"; ".join(changed[:4])}). Choose another --gin.OUTPUT_DIR, or '
      'start with the configuration in its config.gin'
    )


def _where_it_lies_now(
  old: Mapping[str, str], new: Mapping[str, str]
) -> dict[str, str]:
  """The old configuration, had all been made where OUTPUT_DIR is now."""
  name = 'OUTPUT_DIR'
  if name not in old or name not in new:
    return dict(old)
  before, now = (Path(ast.literal_eval(found[name])) for found in (old, new))
  # What is called the same in both may have been moved along.
  while before.name == now.name and before.parent.name and now.parent.name:
    before, now = before.parent, now.parent
  return {
    key: moved(value, str(before), str(now)) for key, value in old.items()
  }


def moved(text: str, before: str, now: str) -> str:
  """Replaces one directory by another in all quoted paths at or below it."""
  return re.sub(
    rf"""(?<=['"]){re.escape(before)}(?=[/'"])""", lambda _: now, text
  )


def _has_grown(old: str, new: str) -> bool:
  """Whether every entry of a list or mapping is still there."""
  try:
    before, now = ast.literal_eval(old), ast.literal_eval(new)
  except (ValueError, SyntaxError):
    return False  # A reference to another name.
  if isinstance(before, dict) and isinstance(now, dict):
    return {**now, **before} == now
  are_lists = isinstance(before, Sequence) and isinstance(now, Sequence)
  return not before or (are_lists and all(entry in now for entry in before))


def _holds_results(directory: Path) -> bool:
  """False after a start that failed before it made anything.

  A corrected command may then use the same directory.
  """
  return any(
    entry.name not in _LEFT_BY_FAILURES
    and (not entry.is_dir() or _holds_results(entry))
    for entry in directory.iterdir()
  )


@contextlib.contextmanager
def configured(job: str, text: str):
  """While a configured job runs, `claim` knows the text to record."""
  _active.append((job, text))
  try:
    yield
  finally:
    _active.pop()


def claim(output_dir: str | os.PathLike) -> Path:
  """Makes and locks the directory, records the configuration, returns its path.

  Raises:
    UserError: the directory cannot be made or written, or another process is
      writing it.
  """
  path = Path(output_dir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / '.writable'
    probe.write_text('')
    probe.unlink()
  except OSError as error:
    raise UserError(
      f'OUTPUT_DIR {output_dir} cannot be written: {error.strerror}; '
      'choose another with --gin.OUTPUT_DIR'
    ) from error
  _lock(path)
  if _active:
    record(path, *_active[-1])
  return path


def _lock(directory: Path) -> None:
  """Takes the directory for this process until it ends."""
  directory = directory.resolve()
  if directory in _held or not _is_first_host():
    return
  lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    owner = os.read(lock, 200).decode(errors='replace') or 'unknown'
    os.close(lock)
    raise UserError(
      f'OUTPUT_DIR {directory} is being written by another process ({owner}); '
      'wait for it, stop it, or choose another --gin.OUTPUT_DIR'
    ) from error
  except OSError:
    pass  # A file system without locks.
  os.truncate(lock, 0)
  os.write(lock, f'process {os.getpid()} on {socket.gethostname()}'.encode())
  _held[directory] = lock


def _is_first_host() -> bool:
  """The hosts of one job write one directory: the first holds the lock."""
  import jax

  return not jax.distributed.is_initialized() or jax.process_index() == 0


def record(output_dir: str | os.PathLike, job: str, text: str) -> None:
  """Writes `config.gin` atomically; does nothing without a directory."""
  directory = Path(output_dir)
  if not directory.is_dir():
    return
  partial = directory / '.config.gin.partial'
  partial.write_text(_with_job(job, text))
  os.replace(partial, directory / 'config.gin')


def _with_job(job: str, text: str) -> str:
  return f'# p4lm {job}\n{text}'


def bindings_of(text: str) -> dict[str, str]:
  """{name: value} of a resolved configuration, plus the job's name."""
  found = {}
  first = re.match(r'# p4lm (\w+)', text)
  if first:
    found['job'] = first.group(1)
  joined = re.sub(r'\\\n\s*', '', text)
  joined = re.sub(r'\n[ \t]+', ' ', re.sub(r'^#.*$', '', joined, flags=re.M))
  for name, value in re.findall(r'^([\w./]+) = *(.*)$', joined, re.M):
    found[name] = ' '.join(value.split())
  return found
