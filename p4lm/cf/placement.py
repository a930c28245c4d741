"""Which device solves and keeps which row of a table.

A table of R rows lies on N devices in blocks of equal size, laid end to end:

  buckets {0 3 4} and {2 1 5}, row 6 has no entry; each is dealt out in turn, so
  that all devices have the same work

  device 0    0 1 4 6            row         0 1 2 3 4 5 6
  device 1    2 3 5 .            position    0 1 4 5 2 6 3
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from p4lm.cf.buckets import Bucket

AXIS = 'data'
BY_ROW = PartitionSpec(AXIS)
EVERYWHERE = PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Placement:
  """The place of every row of a table.

  Attributes:
    owners: int [R], the device of each row.
    positions: int32 [R], its index in the N blocks laid end to end.
    block: rows of a block; N * block >= R.
    mesh: its axis 'data' has N devices.
  """

  owners: np.ndarray
  positions: np.ndarray
  block: int
  mesh: Mesh

  @property
  def num_devices(self) -> int:
    return self.mesh.shape[AXIS]

  def put(self, table) -> jax.Array:
    """A table [R, E] of the host as [N * block, E] on the devices."""
    if len(table) == self.num_devices * self.block:
      if self.num_devices == 1:
        return put(table, BY_ROW, self.mesh)
    laid = np.zeros(
      (self.num_devices * self.block, *table.shape[1:]), table.dtype
    )
    laid[self.positions] = table
    return put(laid, BY_ROW, self.mesh)

  def get(self, table: jax.Array) -> np.ndarray:
    """A table [N * block, E] of the devices as [R, E] on the host."""
    if not table.is_fully_addressable:
      table = _gathered(table, self.mesh).addressable_data(0)
    found = np.asarray(table)
    return found if self.num_devices == 1 else found[self.positions]


def place(num_rows: int, buckets: Sequence[Bucket], mesh: Mesh) -> Placement:
  """Deals the rows of each bucket out to the devices; empty rows last."""
  devices = mesh.shape[AXIS]
  owners = np.full(num_rows, -1)
  dealt = 0
  for bucket in buckets:
    owners[bucket.rows] = (dealt + np.arange(len(bucket.rows))) % devices
    dealt += len(bucket.rows)
  empty = np.flatnonzero(owners < 0)
  owners[empty] = (dealt + np.arange(len(empty))) % devices
  return _placement(owners, mesh)


def place_evenly(num_rows: int, mesh: Mesh) -> Placement:
  """Row r on device r mod N, for tables that are only read."""
  return _placement(np.arange(num_rows) % mesh.shape[AXIS], mesh)


def one_device_mesh() -> Mesh:
  """A mesh of the first device alone."""
  return Mesh(np.array(jax.devices()[:1]), (AXIS,))


def put(array, spec: PartitionSpec, mesh: Mesh) -> jax.Array:
  """An array of the host on the devices."""
  return jax.device_put(array, NamedSharding(mesh, spec))


def _placement(owners: np.ndarray, mesh: Mesh) -> Placement:
  devices = mesh.shape[AXIS]
  sizes = np.bincount(owners, minlength=devices)
  block = max(1, int(sizes.max(initial=0)))
  order = np.argsort(owners, kind='stable')
  firsts = np.cumsum(sizes) - sizes
  positions = np.empty(len(owners), np.int32)
  within = np.arange(len(owners)) - firsts[owners[order]]
  positions[order] = owners[order] * block + within
  return Placement(owners, positions, block, mesh)


def _gathered(table, mesh):
  return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, EVERYWHERE))(
    table
  )
