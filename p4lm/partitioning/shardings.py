"""Shardings of model states and batches, and placing them on a mesh.

A parameter is any Flax NNX variable with `logical_axes` metadata, wherever it
stands: in a model's state, in a training state, or inside the moments that an
optimizer keeps (they inherit the metadata of the parameter they belong to).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from p4lm.errors import UserError
from p4lm.partitioning import rules as rules_lib
from p4lm.partitioning.rules import STANDARD_RULES, Rules


def is_variable(node: Any) -> bool:
  """True for an nnx variable, the leaves that carry metadata."""
  return isinstance(node, nnx.Variable)


def logical_axes(variable: nnx.Variable) -> tuple[str, ...] | None:
  """The logical axis names of a variable, None when it has none."""
  return variable.get_metadata().get('logical_axes')


def param_shardings(
  tree: Any, mesh: Mesh, rules: Rules = STANDARD_RULES
) -> Any:
  """Shardings with the tree's own structure, for jit and device_put.

  Args:
    tree: a pytree of arrays or ShapeDtypeStructs; nnx variables with logical
      axes are sharded by the rules, everything else is kept whole on every
      device (counters, keys, and an optimizer's factored moments, whose rank
      is not their parameter's).
    mesh: from `make_mesh`.
    rules: logical name to mesh axes.

  Returns:
    A pytree like `tree` with a NamedSharding in place of every array.

  Raises:
    UserError: a rule naming no axis of the mesh, a logical name without a
      rule, or a dimension that the mesh does not divide.
  """
  rules_lib.check_rules(rules, mesh)
  nodes, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)
  shardings = []
  for path, node in nodes:
    if is_variable(node):
      name = '/'.join(_path_names(path))
      shardings.append(_variable_sharding(node, name, mesh, rules))
    else:
      shardings.append(NamedSharding(mesh, PartitionSpec()))
  return jax.tree.unflatten(jax.tree.structure(tree), shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Leading axis over replica, data and fsdp; the other axes whole."""
  return NamedSharding(mesh, PartitionSpec(STANDARD_RULES['batch']))


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def put_state(tree: Any, mesh: Mesh, rules: Rules = STANDARD_RULES) -> Any:
  """The same tree with every array placed by `param_shardings`."""
  return jax.device_put(tree, param_shardings(tree, mesh, rules))


def put_batch(
  batch: Mapping[str, np.ndarray], mesh: Mesh
) -> dict[str, jax.Array]:
  """Host arrays as global arrays with the leading axis sharded.

  Every process gives its own part of the batch; with a single process that is
  the whole batch.

  Raises:
    UserError: a feature whose leading axis the mesh does not divide.
  """
  sharding = batch_sharding(mesh)
  shards = math.prod(mesh.shape[axis] for axis in STANDARD_RULES['batch'])
  for name, value in batch.items():
    rows = value.shape[0] * jax.process_count()
    if rows % shards:
      raise UserError(
        f'BATCH_SIZE: the feature {name!r} has {rows} rows, which cannot be'
        f' split over the {shards} data shards of the mesh'
        f' {dict(mesh.shape)}; make BATCH_SIZE a multiple of {shards}.'
      )
  if jax.process_count() == 1:
    return jax.device_put(dict(batch), sharding)
  return {
    name: jax.make_array_from_process_local_data(sharding, value)
    for name, value in batch.items()
  }


def _variable_sharding(
  variable: nnx.Variable, path: str, mesh: Mesh, rules: Rules
) -> NamedSharding:
  names = logical_axes(variable)
  shape = variable.get_value().shape
  # Adafactor's row and column moments carry their parameter's names with
  # fewer, or unit, dimensions; they are small and kept whole.
  if names is None or len(names) != len(shape) or shape == (1,):
    return replicated(mesh)
  spec = rules_lib.partition_spec(names, shape, mesh, rules, path=path)
  return NamedSharding(mesh, spec)


def _path_names(path: tuple[Any, ...]) -> list[str]:
  return [str(getattr(k, 'key', getattr(k, 'name', k))) for k in path]
