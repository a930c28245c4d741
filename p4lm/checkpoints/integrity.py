"""Tells a whole checkpoint from a truncated one.

A file cut short does not always fail to load, and one that fails does so in
many ways. After a step is complete its files are listed with sizes and
checksums; a step is read only if its files still match. A process killed
before it wrote the list leaves a step without one, which is complete all the
same (the directory got its name last) and is then trusted.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path

LIST_NAME = 'files.json'
# Larger files are checked by size alone: reading them all again would take as
# long as the restore itself.
_CHECKSUM_BYTES = 64 * 1024 * 1024


def write_file_list(step_dir: Path) -> None:
  """Lists the files of a complete step with sizes and checksums."""
  files = {
    path.relative_to(step_dir).as_posix(): [
      path.stat().st_size,
      _checksum(path),
    ]
    for path in _files(step_dir)
  }
  partial = step_dir / f'.{LIST_NAME}.partial'
  partial.write_text(json.dumps(files))
  os.replace(partial, step_dir / LIST_NAME)


def find_damage(step_dir: Path) -> str | None:
  """What differs from the list in one clause; None for a whole step."""
  path = step_dir / LIST_NAME
  if not path.exists():
    return None
  try:
    files = json.loads(path.read_text())
    for name, (size, checksum) in files.items():
      file = step_dir / name
      if not file.exists():
        return f'{name} is missing'
      if file.stat().st_size != size:
        return f'{name} has {file.stat().st_size} of {size} bytes'
      if checksum is not None and _checksum(file) != checksum:
        return f'{name} has other contents'
  except (ValueError, TypeError, AttributeError):
    return f'{LIST_NAME} is damaged'
  return None


def identity(step_dir: Path) -> str:
  """Another text for every saving of a step; '' for a step without a list."""
  try:
    return hashlib.sha256((step_dir / LIST_NAME).read_bytes()).hexdigest()
  except OSError:
    return ''


def _files(step_dir: Path) -> list[Path]:
  return sorted(
    path
    for path in step_dir.rglob('*')
    if path.is_file() and LIST_NAME not in path.name
  )


def _checksum(path: Path) -> int | None:
  if path.stat().st_size > _CHECKSUM_BYTES:
    return None
  return zlib.crc32(path.read_bytes())
