"""Directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from p4lm.errors import UserError

# What a job may have put into its directory before its result arrives.
_RUN_FILES = ('config.gin', 'metrics.jsonl', 'log.txt', 'stderr.txt')
_RUN_PREFIXES = ('.', 'events.out.')


@contextlib.contextmanager
def atomic_directory(
  target: str | os.PathLike, *, last: str = 'manifest.json'
) -> Iterator[Path]:
  """Yields an empty staging directory that becomes `target` on success.

  A target that does not exist yet is made by one rename. One that exists (a
  job's OUTPUT_DIR with its `config.gin`, a mount point) receives the entries
  one by one and `last` at the very end: a directory without that file is not
  complete. When the body raises, nothing of it stays behind; what a killed
  process left is removed by the next one.

  Args:
    target: directory to make.
    last: the entry whose presence says that all the others are there.
  Yields:
    The staging directory, on the same file system as the target.
  Raises:
    UserError: the target cannot be written, or holds files of something else.
  """
  target = Path(os.path.abspath(target))
  made = _make_parents(target)
  staging = _staging_path(target)
  try:
    try:
      _remove_abandoned(staging)
      staging.mkdir()
    except OSError as error:
      raise _not_writable(target, error) from error
    try:
      yield staging
      _move(staging, target, last)
    except OSError as error:
      if _is_ours(error, staging):
        raise _not_writable(target, error) from error
      raise
  except BaseException:
    shutil.rmtree(staging, ignore_errors=True)
    _remove_empty(made)
    raise


def write_json(path: Path, value: object) -> None:
  """Writes a JSON file that is there whole or, killed at any moment, not."""
  partial = path.with_name(f'.{path.name}.partial')
  partial.write_text(json.dumps(value, indent=2) + '\n')
  os.replace(partial, path)


def check_target(target: str | os.PathLike, names: Iterable[str]) -> None:
  """Refuses a directory that holds anything but `names` and a job's own files.

  Raises:
    UserError: the target is a file, or some entry belongs to something else.
  """
  target = Path(target)
  if not target.exists():
    return
  if not target.is_dir():
    raise UserError(f'OUTPUT_DIR {target} is a file; name a directory')
  known = {*names, *_RUN_FILES}
  foreign = [
    name
    for name in sorted(os.listdir(target))
    if name not in known and not name.startswith(_RUN_PREFIXES)
  ]
  if foreign:
    raise UserError(
      f'OUTPUT_DIR {target} holds other files ({", ".join(foreign[:3])}); '
      'choose an empty or a new directory'
    )


def _make_parents(target: Path) -> list[Path]:
  """Makes the parents of `target`; returns those made, deepest first."""
  if target.exists() and not target.is_dir():
    raise UserError(f'OUTPUT_DIR {target} is a file; name a directory')
  missing = [p for p in target.parents if not p.exists()]
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise _not_writable(target, error) from error
  return missing


def _staging_path(target: Path) -> Path:
  name = f'.partial-{socket.gethostname()}-{os.getpid()}'
  if target.exists():
    return target / name
  return target.parent / f'.{target.name}{name}'


def _remove_abandoned(staging: Path) -> None:
  """Removes staging directories of dead processes of this machine."""
  prefix = staging.name[: -len(str(os.getpid()))]
  for other in staging.parent.glob(f'{prefix}*'):
    pid = other.name[len(prefix) :]
    if pid.isdigit() and not _is_alive(int(pid)):
      shutil.rmtree(other, ignore_errors=True)
  shutil.rmtree(staging, ignore_errors=True)


def _is_alive(pid: int) -> bool:
  if pid == os.getpid():
    return False
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True


def _move(staging: Path, target: Path, last: str) -> None:
  if not target.exists():
    os.rename(staging, target)
    return
  names = sorted(os.listdir(staging), key=lambda name: (name == last, name))
  check_target(target, names)
  for name in names:
    if (target / name).is_dir():
      shutil.rmtree(target / name)
    os.replace(staging / name, target / name)
  staging.rmdir()


def _remove_empty(directories: list[Path]) -> None:
  for directory in directories:
    with contextlib.suppress(OSError):
      directory.rmdir()


def _is_ours(error: OSError, staging: Path) -> bool:
  """Whether writing failed (a source that cannot be read is another's)."""
  full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
  return full or str(staging) in str(error.filename or '')


def _not_writable(target: Path, error: OSError) -> UserError:
  return UserError(
    f'OUTPUT_DIR {target} cannot be written: {error.strerror or error}; '
    'choose another directory'
  )
