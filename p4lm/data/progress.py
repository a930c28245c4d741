"""Bars on a terminal, for what takes long to read."""

from __future__ import annotations

import contextlib
from typing import BinaryIO

import tqdm

# What is read sooner than that needs no bar.
_DELAY_SECS = 2.0


def watched(
  file: BinaryIO, what: str, size: int
) -> contextlib.AbstractContextManager[BinaryIO]:
  """The file, whose `read` moves a bar: share, rate and time left.

  Args:
    file: of which `size` bytes are read.
    what: words before the bar.
  """
  return tqdm.tqdm.wrapattr(file, 'read', desc=what, total=size, **_options())


def bar(what: str, total: int, unit: str) -> tqdm.tqdm:
  """A bar to `update`, as that of a file."""
  return tqdm.tqdm(desc=what, total=total, unit=unit, **_options())


def _options() -> dict:
  """It goes away at the end, and is not there where nobody looks."""
  return {
    'delay': _DELAY_SECS,
    'disable': None,
    'leave': False,
    'unit_scale': True,
  }
