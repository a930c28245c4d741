"""Reading files of a data set from a directory or straight out of a zip.

Nothing is extracted: members are decompressed as they are read. An archive
with a member that would land outside its directory is refused as a whole.
"""

from __future__ import annotations

import contextlib
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from p4lm.data import tables
from p4lm.errors import UserError


class FileSource(Protocol):
  """Named files, read as bytes."""

  def names(self) -> list[str]:
    """Relative paths with forward slashes, sorted."""

  def open(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    """The file's bytes; damage found while reading is a UserError."""

  def describe(self, name: str = '') -> str:
    """How messages call the file (or the whole source)."""

  def size(self, name: str) -> int:
    """How many bytes `open(name)` reads."""

  def fingerprint(self, name: str) -> str:
    """sha256 of what `open(name)` reads."""


class DirectorySource:
  """Files under a directory, at most two levels deep."""

  def __init__(self, root: str | os.PathLike):
    self._root = Path(root)

  def names(self) -> list[str]:
    found = [
      path.relative_to(self._root).as_posix()
      for pattern in ('*', '*/*')
      for path in self._root.glob(pattern)
      if path.is_file()
    ]
    return sorted(found)

  @contextlib.contextmanager
  def open(self, name: str) -> Iterator[BinaryIO]:
    try:
      file = open(self._root / name, 'rb')
    except OSError as error:
      raise UserError(
        f'{self.describe(name)} cannot be read: {error.strerror}'
      ) from error
    with file:
      yield file

  def describe(self, name: str = '') -> str:
    return str(self._root / name) if name else str(self._root)

  def size(self, name: str) -> int:
    return (self._root / name).stat().st_size

  def fingerprint(self, name: str) -> str:
    return tables.hash_file(self._root / name)


class ZipSource:
  """Members of a zip archive.

  Raises:
    UserError: no zip archive (or a half-written one), or a member whose name
      leaves the archive's directory, or a symbolic link.
  """

  def __init__(self, path: str | os.PathLike):
    self._path = Path(path)
    try:
      self._archive = zipfile.ZipFile(self._path)
    except (zipfile.BadZipFile, OSError) as error:
      raise _damaged(self._path, error) from error
    self._names = {}
    for info in self._archive.infolist():
      _check_member(self._path, info)
      name = str(PurePosixPath(info.filename))
      if not info.is_dir() and not name.startswith('__MACOSX/'):
        self._names[name] = info

  def names(self) -> list[str]:
    return sorted(self._names)

  @contextlib.contextmanager
  def open(self, name: str) -> Iterator[BinaryIO]:
    try:
      with self._archive.open(self._names[name]) as file:
        yield file
    except (
      zipfile.BadZipFile,
      zlib.error,
      EOFError,
      RuntimeError,
      NotImplementedError,
    ) as error:
      raise _damaged(self.describe(name), error) from error

  def describe(self, name: str = '') -> str:
    return f'{self._path}:{name}' if name else str(self._path)

  def size(self, name: str) -> int:
    return self._names[name].file_size

  def fingerprint(self, name: str) -> str:
    info = self._names[name]
    return f'crc32:{info.CRC:08x} bytes:{info.file_size}'


def open_source(path: str | os.PathLike) -> FileSource:
  """A directory or a zip archive as a FileSource.

  Raises:
    UserError: neither exists there.
  """
  path = Path(path)
  if path.is_dir():
    return DirectorySource(path)
  if path.is_file():
    return ZipSource(path)
  raise UserError(
    f'DATA_DIR {path} does not exist; give a directory or a zip archive'
  )


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
  name = info.filename.replace('\\', '/')
  parts = PurePosixPath(name).parts
  escapes = (
    name.startswith('/')
    or '..' in parts
    or (parts and parts[0].endswith(':'))
    or stat.S_ISLNK(info.external_attr >> 16)
  )
  if escapes:
    raise UserError(
      f"{path}: member {info.filename!r} leaves the archive's directory; "
      'the archive is refused. Get it again from its source'
    )


def _damaged(what: object, error: Exception) -> UserError:
  return UserError(
    f'{what} is no whole zip archive ({error}); download it again'
  )
