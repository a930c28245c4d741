"""Logical axis names and the mesh axes they are sharded over.

Models name the axes of their parameters and activations with the words of
`STANDARD_RULES` and know nothing else of the machine. A rule maps a word to a
mesh axis, to several, or to None (kept whole on every device).
"""

import difflib
import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from p4lm.errors import UserError

MeshAxes = str | tuple[str, ...] | None
Rules = Mapping[str, MeshAxes]


def _as_tuple(axes: MeshAxes) -> tuple[str, ...]:
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)


STANDARD_RULES: Rules = {
  'batch': ('replica', 'data', 'fsdp'),
  'length': None,
  'embed': 'fsdp',
  'heads': 'model',
  'kv_heads': 'model',
  'kv': None,
  'mlp': 'model',
  'vocab': 'model',
  'layers': None,
  'cf_embed': None,
  'soft_tokens': None,
  'relpos_buckets': None,
  'lora_rank': None,
  'scores': None,
  'features': None,
  'users': ('fsdp', 'model'),
  'items': ('fsdp', 'model'),
}
# Grouped queries share few key heads, down to one: kept whole where their mesh
# axis does not divide them.
WHOLE_WHERE_ODD = ('kv_heads',)
# For weights that are read again and again: split over `model` alone.
WITHOUT_FSDP: Rules = {
  name: 'model' if 'model' in _as_tuple(axes) else None
  for name, axes in STANDARD_RULES.items()
}


def with_changes(changes: Mapping[str, MeshAxes] | None) -> Rules:
  """STANDARD_RULES with some replaced, for parameters.

  Raises:
    UserError: a name that no parameter has, or `batch`, which activations and
      features follow too and which is always split.
  """
  for name in changes or {}:
    if name not in STANDARD_RULES or name == 'batch':
      names = [known for known in STANDARD_RULES if known != 'batch']
      near = difflib.get_close_matches(name, names, n=1)
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise UserError(
        f'axis_rules has a rule for {name!r}, which is no axis of a parameter'
        f'{hint} (axes: {", ".join(names)})'
      )
  return {**STANDARD_RULES, **(changes or {})}


def check_rules(rules: Rules, mesh: Mesh | AbstractMesh) -> None:
  """Raises UserError when a rule names an axis that the mesh lacks."""
  for name, axes in rules.items():
    for axis in _as_tuple(axes):
      if axis not in mesh.axis_names:
        raise UserError(
          f'The axis rule {name!r} -> {axes!r} names the mesh axis {axis!r};'
          f' the mesh has {", ".join(mesh.axis_names)}.'
        )


def partition_spec(
  names: Sequence[str],
  shape: Sequence[int],
  mesh: Mesh | AbstractMesh,
  rules: Rules = STANDARD_RULES,
  *,
  path: str = 'array',
) -> PartitionSpec:
  """The PartitionSpec of an array with logical axis names.

  A mesh axis shards one dimension at most: where two names of the same array
  map to it, the first keeps it and the second dimension stays whole.

  Args:
    names: a logical name for each dimension.
    shape: the array's shape.
    mesh: gives the axis sizes.
    rules: logical name to mesh axes.
    path: the parameter's name, for messages.

  Raises:
    UserError: a name without a rule, or a dimension that its mesh axes do not
      divide (for `heads`: a model axis that does not divide the heads), unless
      it is one of WHOLE_WHERE_ODD.
  """
  if len(names) != len(shape):
    raise UserError(
      f'{path} has shape {tuple(shape)} but {len(names)} logical axis names'
      f' {tuple(names)}; give one a dimension.'
    )
  taken: set[str] = set()
  spec: list[MeshAxes] = []
  for name, size in zip(names, shape):
    if name not in rules:
      raise UserError(
        f'{path} has the logical axis {name!r}, which no rule maps; known:'
        f' {", ".join(rules)}. Add a rule for it (None keeps it whole).'
      )
    axes = tuple(a for a in _as_tuple(rules[name]) if a not in taken)
    shards = math.prod(mesh.shape[axis] for axis in axes)
    if size % shards and name in WHOLE_WHERE_ODD:
      axes = ()
    elif size % shards:
      raise UserError(
        f'{path}: its {name!r} axis of size {size} cannot be split over'
        f' {" x ".join(f"{a}={mesh.shape[a]}" for a in axes)}; choose a'
        f' MESH_SHAPE whose {"/".join(axes)} size divides {size}.'
      )
    taken.update(axes)
    spec.append(axes[0] if len(axes) == 1 else axes or None)
  return PartitionSpec(*spec)


def constrain(
  array: jax.Array, *names: str | None, rules: Rules = STANDARD_RULES
) -> jax.Array:
  """Pins an activation's sharding when a mesh is in force, else does nothing.

  The mesh is that of `jax.set_mesh`. None leaves a dimension whole; so is one
  that its mesh axes do not divide (a last, smaller batch must still run). Of
  two dimensions with one mesh axis the first has it.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or all(size == 1 for size in mesh.shape.values()):
    return array
  taken: set[str] = set()
  spec: list[MeshAxes] = []
  for name, size in zip(names, array.shape, strict=True):
    axes = _as_tuple(rules[name]) if name else ()
    axes = tuple(axis for axis in axes if axis not in taken)
    shards = math.prod(mesh.shape.get(axis, 1) for axis in axes)
    spec.append(axes if axes and size % shards == 0 else None)
    taken.update(spec[-1] or ())
  return jax.lax.with_sharding_constraint(array, PartitionSpec(*spec))
