r"""One half step of alternating least squares.

With the other side's table Y fixed, the row x of user u minimises

  sum_{i observed} c_i (p_i - x.y_i)^2 + alpha0 sum_{all i} (x.y_i)^2
    + lambda_u |x|^2,
that is  (Y_u^T C Y_u + alpha0 Y^T Y + lambda_u 1) x = Y_u^T C p.

All is done in the eigenbasis of Y^T Y = Q diag(w) Q^T, where the part that all
users share is diagonal: V = sqrt(C) Y_u Q, t = sqrt(C) p and d = alpha0 w +
lambda_u leave `solvers.py` the system (V^T V + diag d) x = V^T t, and the row
found is turned back by Q.

Over N devices (`placement.py`) each keeps a block of either table, and the
entries of its rows in both orders. A half step gathers the other table once on
every device and then needs no communication but the sum of a Gram matrix:

  memory of a device, bytes   4 E (U + I) / N         the tables' blocks
                              + 4 E max(U, I)         the gathered table
                              + 24 M / N              entries, both orders
  communication an epoch      4 E (U + I) received + 8 E^2 summed

10^7 users, 10^6 items and 10^9 entries at E = 128 take 5.6 + 4 + 24 = 34 GB
over 8 devices' 4.2 each, and 5.1 for the gathered users: 9.3 GB a device. More
devices shrink all but the gathered table. ALX (Mehta et al. 2021) exchanges
rows batch by batch instead, which sends 8 E M / N = 128 GB a device here and
epoch but never holds a whole table.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from p4lm.cf import solvers
from p4lm.cf.buckets import Bucket
from p4lm.cf.placement import BY_ROW, EVERYWHERE, Placement, put
from p4lm.cf.rows import CompressedRows
from p4lm.typing import Array, Float


class HalfStep:
  """Solves every row of one side; holds that side's entries on the devices.

  The result does not depend on the number of devices, up to rounding.
  """

  def __init__(
    self,
    side: CompressedRows,
    buckets: list[Bucket],
    placement: Placement,
    columns_at: np.ndarray,
    root_weights: np.ndarray,
    targets: np.ndarray,
    regularization: np.ndarray,
    *,
    width: int,
    dtype: str,
    alpha0: float,
    solver: solvers.Solver | None = None,
  ):
    """Moves one side to the devices.

    Args:
      side: R rows.
      buckets: of its rows.
      placement: of its rows.
      columns_at: int [C], where each column's row lies in the other table.
      root_weights: float [M], sqrt(c), in the order of the side.
      targets: float [M], sqrt(c) p, in the order of the side.
      regularization: float [R], lambda of each row; positive for rows with
        entries.
      width: E.
      dtype: 'float32' or 'float64' (the latter within `jax.enable_x64`).
      alpha0: weight of all entries.
      solver: exact by default.
    """
    self._mesh = placement.mesh
    self._alpha0 = alpha0
    self._dtype = dtype
    self._solver = solver or solvers.Solver()
    put_blocks = functools.partial(put, spec=BY_ROW, mesh=self._mesh)
    entries = _entries_by_device(side, placement)
    self._data = {
      'starts': put_blocks(_starts(side.counts, placement)),
      'counts': put_blocks(_in_blocks(side.counts, placement, 0)),
      'regularization': put_blocks(
        _in_blocks(np.asarray(regularization, dtype), placement, 1)
      ),
      'columns': put_blocks(entries(columns_at[side.columns])),
      'root_weights': put_blocks(entries(np.asarray(root_weights, dtype))),
      'targets': put_blocks(entries(np.asarray(targets, dtype))),
    }
    self._lengths = [(b.length, b.segment) for b in buckets]
    batches = [_batches(bucket, placement, width) for bucket in buckets]
    self._batches = [put_blocks(rows) for rows in batches]
    self._slots = put_blocks(_slots(batches, placement))

  def __call__(
    self,
    table: Float[Array, 'C E'],
    rows: Float[Array, 'R E'] | None = None,
  ) -> tuple[Float[Array, 'R E'], float]:
    """Best rows for the other side's `table`, or better ones.

    Args:
      table: float [C, E], the other side, placed.
      rows: float [R, E], this side's present rows, placed; what an inexact
        solver starts from (None: from zero).
    Returns:
      (rows float [R, E], placed, with zeros where a row has no entries;
       squared float64: sum over observed c (p - x.y)^2 at the new rows).
    """
    gram = np.asarray(_gram(table, mesh=self._mesh), np.float64)
    eigenvalues, basis = np.linalg.eigh(gram)
    # Rounding may leave -1e-12 where the table has low rank.
    shared = self._alpha0 * np.maximum(eigenvalues, 0.0)
    basis = put(np.asarray(basis, self._dtype), EVERYWHERE, self._mesh)
    shared = put(np.asarray(shared, self._dtype), EVERYWHERE, self._mesh)
    turned = _turn_and_gather(table, basis, mesh=self._mesh)
    start = None
    if not self._solver.is_exact:
      start = self._start(rows, basis)
    # The programs are independent, so that the runtime may run one while
    # another waits.
    solved = [
      _solve_bucket(
        batches, turned, shared, start, self._data,
        length=length, segment=segment, solver=self._solver,
        mesh=self._mesh,
      )
      for batches, (length, segment) in zip(self._batches, self._lengths)
    ]  # fmt: skip
    found = _collect(
      [x for x, _ in solved], self._slots, basis, mesh=self._mesh
    )
    squared = jax.device_get(
      [_replicated(residuals, mesh=self._mesh) for _, residuals in solved]
    )
    return found, sum(float(np.sum(r, dtype=np.float64)) for r in squared)

  def _start(self, rows, basis):
    if rows is None:
      shape = (*self._slots.shape, basis.shape[0])
      zeros = np.zeros((shape[0] * shape[1], shape[2]), self._dtype)
      return put(zeros, BY_ROW, self._mesh)
    return _turn(rows, basis)


def _in_blocks(values, placement: Placement, fill) -> np.ndarray:
  """One value a row, [R] -> [N, block]."""
  laid = np.full(placement.num_devices * placement.block, fill, values.dtype)
  laid[placement.positions] = values
  return laid.reshape(placement.num_devices, placement.block)


def _starts(counts, placement: Placement) -> np.ndarray:
  """Where each row's entries begin on its device, int32 [N, block]."""
  laid = _in_blocks(np.asarray(counts, np.int32), placement, 0)
  return (np.cumsum(laid, axis=1) - laid).astype(np.int32)


def _entries_by_device(side: CompressedRows, placement: Placement):
  """A function that deals values of entries, [M] -> [N, most entries]."""
  if placement.num_devices == 1:
    return lambda values: values[None]
  owners = np.repeat(placement.owners, side.counts)
  of_device = [
    np.flatnonzero(owners == device) for device in range(placement.num_devices)
  ]
  most = max(len(entries) for entries in of_device)

  def deal(values):
    dealt = np.zeros((len(of_device), most), values.dtype)
    for row, entries in zip(dealt, of_device):
      row[: len(entries)] = values[entries]
    return dealt

  return deal


def _batches(bucket: Bucket, placement: Placement, width: int) -> np.ndarray:
  """The bucket's rows by device and batch, int32 [N, K, R]; padding: block."""
  devices, block = placement.num_devices, placement.block
  owners = placement.owners[bucket.rows]
  local = placement.positions[bucket.rows] % block
  by_device = [local[owners == device] for device in range(devices)]
  most = max(len(rows) for rows in by_device)
  size = min(bucket.batch_size(width), most)
  batches = -(-most // size)
  padded = np.full((devices, batches * size), block, np.int32)
  for row, rows in zip(padded, by_device):
    row[: len(rows)] = rows
  return padded.reshape(devices, batches, size)


def _slots(batches, placement: Placement) -> np.ndarray:
  """Where each row is found among all solved ones, int32 [N, block].

  Rows of no bucket point behind the last one, where there is a zero.
  """
  devices, block = placement.num_devices, placement.block
  solved = np.concatenate(
    [rows.reshape(devices, -1) for rows in batches]
    or [np.zeros((devices, 0), np.int32)],
    axis=1,
  )
  count = solved.shape[1]
  slots = np.full((devices, block + 1), count, np.int32)
  np.put_along_axis(
    slots, solved, np.arange(count, dtype=np.int32)[None], axis=1
  )
  return slots[:, :block]


@functools.partial(jax.jit, static_argnames='mesh')
def _gram(table, *, mesh):
  gram = solvers.einsum('ce,cf->ef', table, table)
  return _constrain(gram, EVERYWHERE, mesh)


@jax.jit
def _turn(table, basis):
  return solvers.einsum('ce,ef->cf', table, basis)


@functools.partial(jax.jit, static_argnames='mesh')
def _turn_and_gather(table, basis, *, mesh):
  return _constrain(_turn(table, basis), EVERYWHERE, mesh)


@functools.partial(jax.jit, static_argnames='mesh')
def _replicated(array, *, mesh):
  return _constrain(array, EVERYWHERE, mesh)


def _constrain(array, spec, mesh):
  sharding = jax.sharding.NamedSharding(mesh, spec)
  return jax.lax.with_sharding_constraint(array, sharding)


@functools.partial(jax.jit, static_argnames='mesh')
def _collect(solved, slots, basis, *, mesh):
  """The table [N * block, E] of the solved rows, turned back."""

  def collect(solved, slots, basis):
    nothing = jnp.zeros((1, basis.shape[0]), basis.dtype)
    together = jnp.concatenate([*solved, nothing])
    return solvers.einsum('re,fe->rf', together[slots[0]], basis)

  return jax.shard_map(
    collect,
    mesh=mesh,
    in_specs=(BY_ROW, BY_ROW, EVERYWHERE),
    out_specs=BY_ROW,
  )(solved, slots, basis)


@functools.partial(
  jax.jit, static_argnames=('length', 'segment', 'solver', 'mesh')
)
def _solve_bucket(
  batches, table, shared, start, data, *, length, segment, solver, mesh
):
  """Solves a bucket [N, K, R]: rows [N * K * R, E], residuals [N * K, R]."""

  def solve(batches, table, shared, start, data):
    data = {name: values[0] for name, values in data.items()}

    def solve_batch(_, rows):
      return None, _solve_batch(
        rows, table, shared, start, data, length, segment, solver
      )

    _, (x, squared) = jax.lax.scan(solve_batch, None, batches[0])
    return x.reshape(-1, table.shape[1]), squared

  return jax.shard_map(
    solve,
    mesh=mesh,
    in_specs=(BY_ROW, EVERYWHERE, EVERYWHERE, BY_ROW, BY_ROW),
    out_specs=(BY_ROW, BY_ROW),
    # The loop over segments begins with zeros, which every device has.
    check_vma=False,
  )(batches, table, shared, start, data)


def _solve_batch(rows, table, shared, start, data, length, segment, solver):
  real = rows < data['counts'].shape[0]
  starts = data['starts'][rows]
  counts = jnp.where(real, data['counts'][rows], 0)
  # A padding row has no entry; any positive lambda keeps it solvable.
  ridge = jnp.where(real, data['regularization'][rows], 1)
  diagonal = shared[None, :] + ridge[:, None]
  if start is not None:
    start = start[rows]

  def read(offset, size):
    return _read(table, data, starts, counts, offset, size)

  if not segment:
    return solvers.solve_entries(*read(0, length), diagonal, start, solver)
  # A row with fewer segments than others has its rest in the loop.
  segments = -(-jnp.maximum(jnp.max(counts) - length, 0) // segment)
  sums = jax.lax.fori_loop(
    0,
    segments,
    lambda at, sums: _add(sums, _sums(*read(at * segment, segment))),
    _sums(*read(segments * segment, length)),
  )
  return solvers.solve_gram(*sums, diagonal, start, solver)


def _read(table, data, starts, counts, offset, size):
  """Weighted factors V [R, T, E] and targets t [R, T] from an offset on."""
  offsets = offset + jnp.arange(size)
  kept = offsets[None, :] < counts[:, None]
  positions = jnp.where(kept, starts[:, None] + offsets[None, :], 0)
  root = jnp.where(kept, data['root_weights'][positions], 0)
  targets = jnp.where(kept, data['targets'][positions], 0)
  factors = table[data['columns'][positions]] * root[:, :, None]
  return factors, targets


def _sums(factors, targets):
  """V^T V, V^T t and t^T t."""
  return (
    solvers.einsum('rte,rtf->ref', factors, factors),
    solvers.einsum('rte,rt->re', factors, targets),
    jnp.sum(targets**2, axis=1),
  )


def _add(sums, more):
  return jax.tree.map(jnp.add, sums, more)
