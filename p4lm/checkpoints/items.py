"""Trees as {name: array}, which is how checkpoints hold them.

Names make a checkpoint independent of the containers it was saved from, and
let a restore say which array is missing, unexpected or of another shape.
Random keys are held as their integers.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from p4lm.training.leaf_names import leaf_name, named_leaves
from p4lm.typing import PyTree

Arrays = dict[str, jax.Array]


def to_arrays(tree: PyTree) -> Arrays:
  """{name: array} of a tree of arrays, random keys and Python numbers."""
  return {name: _to_array(leaf) for name, leaf in named_leaves(tree).items()}


def to_abstract(tree: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes, dtypes and shardings of `to_arrays(tree)`.

  The tree may be abstract. JAX leaves without a sharding go to the first
  device; NumPy arrays and Python numbers have none, which Orbax restores as
  NumPy arrays (on a device, 64-bit integers would lose half their bits).
  """
  return {name: _abstract(leaf) for name, leaf in named_leaves(tree).items()}


def from_arrays(template: PyTree, arrays: Mapping[str, jax.Array]) -> PyTree:
  """The template's tree with the saved arrays of its leaves' names.

  Keys, NumPy arrays and Python numbers come where the template has them, JAX
  arrays elsewhere.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: _like(leaf, arrays[leaf_name(path)]), template
  )


def mismatches(
  wanted: Mapping[str, jax.ShapeDtypeStruct], saved: Mapping[str, object]
) -> list[str]:
  """Every difference of names, shapes and dtypes, one clause each."""
  found = [f'{name} is missing' for name in wanted if name not in saved]
  found += [f'{name} is unexpected' for name in saved if name not in wanted]
  for name in wanted:
    if name in saved and _kind(wanted[name]) != _kind(saved[name]):
      found.append(
        f'{name} is {_kind(saved[name])}, expected {_kind(wanted[name])}'
      )
  return found


def _kind(array) -> str:
  dtype = np.dtype(array.dtype).name
  return f'{dtype}[{",".join(str(size) for size in array.shape)}]'


def _is_key(leaf) -> bool:
  dtype = getattr(leaf, 'dtype', None)
  return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def _to_array(leaf):
  if _is_key(leaf):
    return jax.random.key_data(leaf)
  return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _key_impl(key):
  """`jax.random.key_impl`, which takes no `ShapeDtypeStruct`."""
  found = []

  def note(traced):
    found.append(jax.random.key_impl(traced))
    return traced

  jax.eval_shape(note, key)
  return found[0]


def _abstract(leaf) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, 'sharding', None)
  if _is_key(leaf):
    leaf = jax.eval_shape(jax.random.key_data, leaf)
    # A key's integers are an axis more than the key: one device, or all.
    if isinstance(sharding, jax.sharding.NamedSharding):
      spec = jax.sharding.PartitionSpec()
      sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
  elif not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
    leaf = np.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  if sharding is None:
    if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _like(template, array: jax.Array):
  if _is_key(template):
    return jax.random.wrap_key_data(array, impl=_key_impl(template))
  if isinstance(template, (bool, int, float)):
    return type(template)(array.item())
  if isinstance(template, (np.ndarray, np.generic)):
    return np.array(array)
  return array
