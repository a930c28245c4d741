"""Plots of films from JSON lines: `movieId`, `overview`, perhaps `keywords`."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from p4lm.data.archives import DirectorySource
from p4lm.data.csv_rows import decoded_lines
from p4lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Plot:
  """What the plots file says of one film.

  Attributes:
    overview: one line, '' when the file has none.
    keywords: in the file's order, lower case, without repeats.
  """

  overview: str
  keywords: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class PlotFile:
  """Plots by item id and how many lines were repeats of an item."""

  plots: dict[str, Plot]
  num_duplicates: int


def read_plots(path: str | os.PathLike) -> PlotFile:
  """Reads a plots file; of several lines for one film the first is kept.

  Args:
    path: one JSON object a line: `movieId` (number or string), `overview`
      (string or null), optional `keywords` (list of strings). Blank lines and
      other keys are skipped.
  Raises:
    UserError: a line that is no JSON object, a missing key or a value of
      another type (file and line are named), another encoding, an empty file.
  """
  path = Path(path)
  plots: dict[str, Plot] = {}
  duplicates, number = 0, 0
  lines = decoded_lines(DirectorySource(path.parent), path.name)
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    item_id, plot = _parse(f'{path}, line {number}', line)
    duplicates += item_id in plots
    plots.setdefault(item_id, plot)
  if not plots:
    raise UserError(
      f'{path} holds no plots; each line must be JSON like '
      '{"movieId": 1, "overview": "..."}'
    )
  return PlotFile(plots, duplicates)


def _parse(where: str, line: str) -> tuple[str, Plot]:
  try:
    record = json.loads(line)
  except ValueError as error:
    raise UserError(
      f'{where} is no JSON ({error}): {line.strip()[:60]!r}'
    ) from error
  if not isinstance(record, dict):
    raise UserError(f'{where}: expected a JSON object, got {line[:60]!r}')
  for key in ('movieId', 'overview'):
    if key not in record:
      raise UserError(
        f'{where}: key {key!r} is missing; found {", ".join(record) or "none"}'
      )
  item_id, overview = record['movieId'], record['overview'] or ''
  keywords = record.get('keywords') or []
  if isinstance(item_id, bool) or not isinstance(item_id, (int, str)):
    raise UserError(f'{where}: movieId must be an id, got {item_id!r}')
  if not isinstance(overview, str):
    raise UserError(f'{where}: overview must be a string, got {overview!r}')
  if not isinstance(keywords, list) or not all(
    isinstance(keyword, str) for keyword in keywords
  ):
    raise UserError(f'{where}: keywords must be a list of strings')
  lowered = (' '.join(keyword.lower().split()) for keyword in keywords)
  return str(item_id), Plot(
    ' '.join(overview.split()), tuple(dict.fromkeys(filter(None, lowered)))
  )
