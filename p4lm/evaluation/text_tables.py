"""Rows of text as a markdown table or as a plain one for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A GitHub table; pipes and line ends inside cells are escaped.

  >>> print(markdown(['a', 'b'], [['1', 'x|y']]))
  | a | b |
  | --- | --- |
  | 1 | x\\|y |
  """
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join(
    '| ' + ' | '.join(_one_line(cell) for cell in line) + ' |' for line in lines
  )


def plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table aligned by spaces, a rule under the header.

  A blank first cell continues the group above; a new group is set off by an
  empty line.
  """
  widths = [
    max(_width(line[column]) for line in (header, *rows))
    for column in range(len(header))
  ]
  lines = [_aligned(header, widths), '  '.join('─' * w for w in widths)]
  grouped = any(not row[0] for row in rows)
  for number, row in enumerate(rows):
    if grouped and number and row[0]:
      lines.append('')
    lines.append(_aligned(row, widths))
  return '\n'.join(lines)


def _aligned(cells, widths) -> str:
  padded = (c + ' ' * (w - _width(c)) for c, w in zip(cells, widths))
  return '  '.join(padded).rstrip()


def _width(text: str) -> int:
  """Columns of a terminal: wide East Asian characters take two."""
  return sum(
    0
    if unicodedata.combining(letter)
    else 2
    if unicodedata.east_asian_width(letter) in 'WF'
    else 1
    for letter in text
  )


def _one_line(cell: str) -> str:
  return ' '.join(cell.split()).replace('|', '\\|')
