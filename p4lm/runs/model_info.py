"""`model-info.txt`: every parameter, how it is laid out, whether it trains.

The file has T5X's purpose: one look tells what a run changes, how it is laid
out over the mesh, and what it takes of a device's memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import jax
from flax import nnx

from p4lm.models.selection import parameter_name
from p4lm.partitioning.shardings import logical_axes
from p4lm.pods.memory import bytes_a_chip
from p4lm.training.state import TrainState

_HEADER = ('parameter', 'shape', 'axes', 'split over', 'size', 'trains')
_MIB = 2**20


def write_model_info(
  directory: Path, state: TrainState, mesh: jax.sharding.Mesh
) -> None:
  """Writes the table of a run, atomically.

  Args:
    directory: gets `model-info.txt`.
    state: placed on the mesh.
    mesh: of the run.
  """
  parts = {'yes': state.params, 'frozen': state.frozen}
  _write(directory, _rows(parts), _totals(state, mesh))


def write_parameter_info(directory: Path, params: nnx.State) -> None:
  """Writes the table of a model that no run has placed yet, atomically.

  Args:
    directory: gets `model-info.txt`.
    params: arrays, or their shapes alone.
  """
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  _write(directory, _rows({'yes': params}), [f'parameters: {count:,}'])


def _rows(parts: Mapping[str, nnx.State]) -> list[tuple[str, ...]]:
  return [
    _row(path, variable, trains)
    for trains, part in parts.items()
    for path, variable in nnx.to_flat_state(part)
  ]


def _write(directory: Path, rows, totals: list[str]) -> None:
  table = [_HEADER, *sorted(rows)]
  widths = [max(len(row[i]) for row in table) for i in range(len(_HEADER))]
  lines = [
    '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    for row in table
  ]
  lines += ['', *totals]
  partial = directory / '.model-info.txt.partial'
  partial.write_text('\n'.join(lines) + '\n')
  os.replace(partial, directory / 'model-info.txt')


def _row(path, variable: nnx.Variable, trains: str) -> tuple[str, ...]:
  array = variable.get_value()
  placed = getattr(array.sharding, 'spec', ())
  spec = [*placed, *[None] * array.ndim][: array.ndim]
  split = [
    '+'.join(axes) if isinstance(axes, tuple) else axes or '-' for axes in spec
  ]
  return (
    parameter_name(path),
    'x'.join(map(str, array.shape)),
    ', '.join(logical_axes(variable) or ()),
    ', '.join(split),
    f'{math.prod(array.shape):,}',
    trains,
  )


def _totals(state: TrainState, mesh: jax.sharding.Mesh) -> list[str]:
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  mib = lambda tree: f'{bytes_a_chip(tree) / _MIB:,.1f} MiB'
  axes = ', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
  return [
    f'trained: {count(state.params):,}  frozen: {count(state.frozen):,}  '
    f'optimizer: {count(state.opt_state):,}',
    f'mesh: {axes}',
    f'on one device: {mib((state.params, state.frozen))} of parameters, '
    f'{mib(state.opt_state)} of optimizer state',
  ]
