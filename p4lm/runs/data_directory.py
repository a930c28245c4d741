"""A directory that `make_data` makes: whether it is there, and its progress."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from p4lm.data import tables
from p4lm.data.atomic import check_target
from p4lm.errors import UserError

FORMAT = 1
VOCABULARY_FILE = 'vocabulary.model'


def already_made(
  output_dir: str | os.PathLike,
  parameters: Mapping,
  others: Iterable[str] = (),
) -> dict | None:
  """The manifest of a directory made from the same parameters, or None.

  Args:
    output_dir: the directory.
    parameters: JSON values that decide what is in it.
    others: files that an interrupted run may have left there, beside tables
      and vocabulary.
  Raises:
    UserError: it holds another data set, is damaged, or is something else.
  """
  directory = Path(output_dir)
  if not (directory / tables.MANIFEST).exists():
    names = [f'{name}.parquet' for name in tables.SCHEMAS]
    check_target(directory, [*names, VOCABULARY_FILE, *others])
    return None
  manifest = tables.read_manifest(directory)
  old, new = _flat(manifest.get('parameters', {})), _flat(parameters)
  changed = [
    f'{name}: {old.get(name)!r} there, {new.get(name)!r} now'
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
  ]
  if manifest.get('format') != FORMAT:
    changed.insert(0, f'format: {manifest.get("format")} there, {FORMAT} now')
  if changed:
    raise UserError(
      f'OUTPUT_DIR {output_dir} holds another data set '
      f'({"; ".join(changed[:3])}); choose another OUTPUT_DIR or remove it'
    )
  for name, file in manifest['files'].items():
    path = directory / name
    if not path.is_file() or path.stat().st_size != file['bytes']:
      raise UserError(
        f'OUTPUT_DIR {output_dir} is damaged: {name} is missing or of another '
        'size; remove the directory and run make_data again'
      )
  return manifest


def _flat(parameters: Mapping, prefix: str = '') -> dict[str, object]:
  """{'texts.num_pairs': 6000, ...} of nested dictionaries."""
  flat = {}
  for name, value in parameters.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat


class Steps:
  """One line for each step that is done, with its seconds."""

  def __init__(self):
    self._last = time.monotonic()

  def done(self, name: str, about: str) -> None:
    now = time.monotonic()
    print(f'  {name:<11}{now - self._last:6.1f} s  {about}', flush=True)
    self._last = now


def megabytes(manifest: Mapping) -> str:
  """Size of all files, such as '1.5 MB'."""
  total = sum(file['bytes'] for file in manifest['files'].values())
  return f'{total / 1e6:.1f} MB'
