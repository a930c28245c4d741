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
      device (counters and keys). An optimizer's factored moments have one
      dimension less than their parameter and are sharded along those that are
      left, where the tree holds the parameter too.
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
  shardings, whole = [], _whole_parameters(nodes)
  for path, node in nodes:
    if is_variable(node):
      parts = _path_names(path)
      shardings.append(_variable_sharding(node, parts, whole, mesh, rules))
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


def describe_state(tree: Any, mesh: Mesh, rules: Rules = STANDARD_RULES) -> Any:
  """The same abstract tree with the sharding of every array beside its shape.

  What `put_state` would do to real arrays, for devices that are not here.
  """
  return _described(tree, param_shardings(tree, mesh, rules))


def describe_batch(
  batch: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """The same abstract batch as `put_batch` would place it.

  Raises:
    UserError: a feature whose leading axis the mesh does not divide.
  """
  check_rows({name: value.shape[0] for name, value in batch.items()}, mesh)
  sharding = batch_sharding(mesh)
  return _described(dict(batch), jax.tree.map(lambda _: sharding, dict(batch)))


def _described(tree: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
    shardings,
  )


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
  processes = jax.process_count()
  rows = {name: value.shape[0] * processes for name, value in batch.items()}
  check_rows(rows, mesh)
  if jax.process_count() == 1:
    return jax.device_put(dict(batch), sharding)
  return {
    name: jax.make_array_from_process_local_data(sharding, value)
    for name, value in batch.items()
  }


def check_rows(rows: Mapping[str, int], mesh: Mesh) -> None:
  """Raises UserError for a feature whose rows the mesh does not divide.

  Args:
    rows: {feature: rows of all processes together}.
    mesh: gives the data shards.
  """
  shards = math.prod(mesh.shape[axis] for axis in STANDARD_RULES['batch'])
  for name, count in rows.items():
    if count % shards:
      raise UserError(
        f'BATCH_SIZE: the feature {name!r} has {count} rows, which cannot be'
        f' split over the {shards} data shards of the mesh'
        f' {dict(mesh.shape)}; make BATCH_SIZE a multiple of {shards}.'
      )


# A parameter's names and shape by the end of its path; None where two differ.
_Whole = dict[tuple[str, ...], tuple[tuple[str, ...], tuple[int, ...]] | None]


def _whole_parameters(nodes: list[tuple[Any, Any]]) -> _Whole:
  """The parameters of a tree by every end of their paths."""
  found: _Whole = {}
  for path, node in nodes:
    names = logical_axes(node) if is_variable(node) else None
    if names is None or len(names) != len(node.get_value().shape):
      continue
    described = (tuple(names), tuple(node.get_value().shape))
    parts = tuple(_path_names(path))
    for start in range(len(parts)):
      same = found.setdefault(parts[start:], described)
      if same != described:
        found[parts[start:]] = None
  return found


def _variable_sharding(
  variable: nnx.Variable,
  parts: list[str],
  whole: _Whole,
  mesh: Mesh,
  rules: Rules,
) -> NamedSharding:
  names = logical_axes(variable)
  shape = tuple(variable.get_value().shape)
  # Adafactor keeps a single number where a moment is not factored, or is.
  if names is None or shape == (1,):
    return replicated(mesh)
  if len(names) != len(shape):
    names = _names_left(parts, shape, whole)
  if names is None:
    return replicated(mesh)
  path = '/'.join(parts)
  spec = rules_lib.partition_spec(names, shape, mesh, rules, path=path)
  return NamedSharding(mesh, spec)


def _names_left(
  parts: list[str], shape: tuple[int, ...], whole: _Whole
) -> tuple[str, ...] | None:
  """The names of a factored moment: its parameter's but for one.

  Adafactor's row and column sums carry all names of their parameter with one
  dimension less. The parameter is found by the longest common end of the
  paths, the dimension by the shape; of several that fit, the last.
  """
  for start in range(1, len(parts)):
    described = whole.get(tuple(parts[start:]))
    if described is None:
      continue
    names, full = described
    for gone in reversed(range(len(full))):
      if full[:gone] + full[gone + 1 :] == shape:
        return names[:gone] + names[gone + 1 :]
    return None
  return None


def _path_names(path: tuple[Any, ...]) -> list[str]:
  return [str(getattr(k, 'key', getattr(k, 'name', k))) for k in path]
