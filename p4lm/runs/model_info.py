"""`model-info.txt`: every parameter with its shape, axes and whether it trains.

The file has T5X's purpose: one look tells what a run changes and how it is
laid out over the mesh.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from flax import nnx

from p4lm.models.selection import parameter_name
from p4lm.partitioning.shardings import logical_axes

_HEADER = ('parameter', 'shape', 'axes', 'size', 'trains')


def write_model_info(
  directory: Path, params: nnx.State, frozen: nnx.State
) -> None:
  """Writes the table, atomically.

  Args:
    directory: gets `model-info.txt`.
    params: what trains.
    frozen: what stays bit-identical.
  """
  rows = [_HEADER]
  totals = {}
  for trains, state in (('yes', params), ('frozen', frozen)):
    totals[trains] = 0
    for path, variable in nnx.to_flat_state(state):
      shape = variable.get_value().shape
      size = math.prod(shape)
      totals[trains] += size
      axes = logical_axes(variable) or ()
      rows.append(
        (
          parameter_name(path),
          'x'.join(map(str, shape)),
          ', '.join(map(str, axes)),
          f'{size:,}',
          trains,
        )
      )
  body = sorted(rows[1:])
  widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
  lines = [
    '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    for row in [_HEADER, *body]
  ]
  lines.append('')
  lines.append(f'trained: {totals["yes"]:,}  frozen: {totals["frozen"]:,}')
  partial = directory / '.model-info.txt.partial'
  partial.write_text('\n'.join(lines) + '\n')
  os.replace(partial, directory / 'model-info.txt')
