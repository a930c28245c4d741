r"""One exact half step of alternating least squares.

With the other side's table Y fixed, the row x of user u minimises

  sum_{i observed} c_i (p_i - x.y_i)^2 + alpha0 sum_{all i} (x.y_i)^2
    + lambda_u |x|^2,
that is  (Y_u^T C Y_u + alpha0 Y^T Y + lambda_u 1) x = Y_u^T C p.

Two exact ways, chosen by the number of entries. Both work in the eigenbasis of
Y^T Y = Q diag(w) Q^T, where the part that all users share is diagonal:
V = sqrt(C) Y_u Q, t = sqrt(C) p, d = alpha0 w + lambda_u.

  factors (E x E):  (V^T V + diag d) x = V^T t
  entries (n x n):  (1 + V diag(1/d) V^T) z = t,  x = diag(1/d) V^T z

The second is the matrix inversion lemma; z is the weighted residual. The row
found is turned back by Q.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from p4lm.cf import rows as rows_lib
from p4lm.typing import Array, Float

# TF32 on a GPU would cost three digits of the normal equations.
_EXACT = jax.lax.Precision.HIGHEST
_einsum = functools.partial(jnp.einsum, precision=_EXACT)


class HalfStep:
  """Solves every row of one side; holds that side's interactions on device.

  Rows are sharded along the mesh axis 'data'; tables are replicated. The
  result does not depend on the number of devices, up to rounding.
  """

  def __init__(
    self, side, root_weights, targets, regularization, *, width, dtype,
    alpha0, mesh=None, longest=rows_lib.LONGEST,
  ):  # fmt: skip
    """Moves one side to the devices.

    Args:
      side: CompressedRows, R rows.
      root_weights: float [M], sqrt(c), in the order of the side.
      targets: float [M], sqrt(c) p, in the order of the side.
      regularization: float [R], lambda of each row; positive for rows with
        entries.
      width: E.
      dtype: 'float32' or 'float64' (the latter within `jax.enable_x64`).
      alpha0: weight of all entries.
      mesh: jax.sharding.Mesh with an axis 'data', or None.
      longest: rows with more entries are read in segments of this length.
    """
    self._mesh = mesh
    self._alpha0 = alpha0
    self._num_rows = side.num_rows
    self._width = width
    self._dtype = dtype
    devices = mesh.shape['data'] if mesh is not None else 1
    self._buckets = rows_lib.plan_buckets(
      side.counts, width, num_devices=devices, longest=longest
    )
    put = functools.partial(self._put, spec=PartitionSpec())
    self._data = dict(
      starts=put(side.starts),
      counts=put(side.counts),
      columns=put(side.columns),
      root_weights=put(np.asarray(root_weights, dtype)),
      targets=put(np.asarray(targets, dtype)),
      regularization=put(np.asarray(regularization, dtype)),
    )
    by_row = PartitionSpec(None, 'data')
    self._rows = [self._put(b.rows, spec=by_row) for b in self._buckets]

  def __call__(
    self, table: Float[Array, 'C E']
  ) -> tuple[Float[Array, 'R E'], float]:
    """Best rows for the other side's `table`.

    Args:
      table: float [C, E], the other side.
    Returns:
      (rows float [R, E] with zeros where a row has no entries,
       squared float64: sum over observed c (p - x.y)^2 at the new rows).
    """
    gram = np.asarray(_gram(table), np.float64)
    eigenvalues, basis = np.linalg.eigh(gram)
    # Rounding may leave -1e-12 where the table has low rank.
    shared = self._alpha0 * np.maximum(eigenvalues, 0.0)
    basis = self._put(np.asarray(basis, self._dtype), spec=PartitionSpec())
    shared = self._put(np.asarray(shared, self._dtype), spec=PartitionSpec())
    turned = _turn(table, basis)
    solved = self._put(
      np.zeros((self._num_rows, self._width), self._dtype), spec=PartitionSpec()
    )
    residuals = []
    for bucket, rows in zip(self._buckets, self._rows):
      solved, squared = _solve_bucket(
        solved, rows, turned, shared, self._data,
        length=bucket.length, segmented=bucket.segmented, mesh=self._mesh,
      )  # fmt: skip
      residuals.append(squared)
    squared = sum(
      float(np.sum(np.asarray(r), dtype=np.float64)) for r in residuals
    )
    return _turn(solved, basis.T), squared

  def _put(self, array, spec):
    if self._mesh is None:
      return jnp.asarray(array)
    return jax.device_put(array, NamedSharding(self._mesh, spec))


@jax.jit
def _gram(table):
  return _einsum('ce,cf->ef', table, table)


@jax.jit
def _turn(table, basis):
  return _einsum('ce,ef->cf', table, basis)


@functools.partial(
  jax.jit,
  static_argnames=('length', 'segmented', 'mesh'),
  donate_argnums=0,
)
def _solve_bucket(
  solved, rows, table, shared, data, *, length, segmented, mesh
):
  """Solves the K batches of one bucket; returns (solved, residuals [K, R])."""
  width = table.shape[1]

  def solve_batch(solved, batch_rows):
    real = batch_rows < data['counts'].shape[0]
    starts = data['starts'][batch_rows]
    counts = jnp.where(real, data['counts'][batch_rows], 0)
    # A padding row has no entry; any positive lambda keeps it solvable.
    ridge = jnp.where(real, data['regularization'][batch_rows], 1)
    diagonal = shared[None, :] + ridge[:, None]

    def read(segment):
      return _read(table, data, starts, counts, segment, length)

    if segmented:
      segments = -(-jnp.max(counts) // length)
      x, squared = _solve_segmented(read, diagonal, segments)
    elif rows_lib.solves_dual(length, width):
      x, squared = _solve_entries(*read(0), diagonal)
    else:
      x, squared = _solve_factors(*read(0), diagonal)
    if mesh is not None:
      whole = NamedSharding(mesh, PartitionSpec())
      x, batch_rows, squared = jax.lax.with_sharding_constraint(
        (x, batch_rows, squared), whole
      )
    # Padding rows point past the end and are dropped.
    return solved.at[batch_rows].set(x, mode='drop'), squared

  return jax.lax.scan(solve_batch, solved, rows)


def _read(table, data, starts, counts, segment, length):
  """Weighted factors V [R, T, E] and targets t [R, T] of one segment."""
  offsets = segment * length + jnp.arange(length)
  kept = offsets[None, :] < counts[:, None]
  positions = jnp.where(kept, starts[:, None] + offsets[None, :], 0)
  root = jnp.where(kept, data['root_weights'][positions], 0)
  targets = jnp.where(kept, data['targets'][positions], 0)
  factors = table[data['columns'][positions]] * root[:, :, None]
  return factors, targets


def _solve_factors(factors, targets, diagonal):
  gram = _einsum('rte,rtf->ref', factors, factors)
  right = _einsum('rte,rt->re', factors, targets)
  x = _solve(gram, diagonal, right)
  residual = targets - _einsum('rte,re->rt', factors, x)
  return x, jnp.sum(residual**2, axis=1)


def _solve_entries(factors, targets, diagonal):
  scaled = factors / diagonal[:, None, :]
  kernel = _einsum('rte,rse->rts', scaled, factors)
  z = _solve(kernel, jnp.ones_like(targets), targets)
  x = _einsum('rte,rt->re', scaled, z)
  residual = targets - _einsum('rte,re->rt', factors, x)
  return x, jnp.sum(residual**2, axis=1)


def _solve_segmented(read, diagonal, segments):
  rows, width = diagonal.shape

  def add(segment, sums):
    factors, targets = read(segment)
    return (
      sums[0] + _einsum('rte,rtf->ref', factors, factors),
      sums[1] + _einsum('rte,rt->re', factors, targets),
    )

  zero = jnp.zeros((rows, width, width), diagonal.dtype)
  empty = jnp.zeros_like(diagonal)
  gram, right = jax.lax.fori_loop(0, segments, add, (zero, empty))
  x = _solve(gram, diagonal, right)

  def add_residual(segment, squared):
    factors, targets = read(segment)
    residual = targets - _einsum('rte,re->rt', factors, x)
    return squared + jnp.sum(residual**2, axis=1)

  squared = jnp.zeros(rows, diagonal.dtype)
  return x, jax.lax.fori_loop(0, segments, add_residual, squared)


def _solve(matrix, diagonal, right):
  """Solves (matrix + diag) x = right for each row by Cholesky."""
  identity = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
  matrix = matrix + diagonal[:, :, None] * identity[None]
  lower = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
  return jax.scipy.linalg.cho_solve((lower, True), right[:, :, None])[:, :, 0]
